"""What the server knows: devices, releases, reports, quotas, and which requests it has seen."""

from cloud.catalog.catalog import Catalog
from cloud.catalog.records import Device, Release, RoundRow, device_class

__all__ = ["Catalog", "Device", "Release", "RoundRow", "device_class"]
