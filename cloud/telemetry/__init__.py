"""What the server tells of itself: counters for Prometheus, recall sampled against exact search, and traces."""

from cloud.telemetry.families import FAMILIES
from cloud.telemetry.metrics import Family, Metrics
from cloud.telemetry.recall import RecallSampler

__all__ = ["FAMILIES", "Family", "Metrics", "RecallSampler"]
