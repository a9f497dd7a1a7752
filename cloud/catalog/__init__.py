"""What the server knows: devices, releases and who gets them, reports, quotas, and which requests it has seen."""

from cloud.catalog.catalog import Catalog
from cloud.catalog.records import AuditLine, Device, Operator, Release, RoundRow, device_class
from cloud.catalog.rollouts import Heard, Voice

__all__ = ["AuditLine", "Catalog", "Device", "Heard", "Operator", "Release", "RoundRow", "Voice", "device_class"]
