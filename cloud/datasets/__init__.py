"""Interactions of any origin, as events over a vocabulary of items."""

from cloud.datasets.dataset import Dataset, ReadReport, write_history
from cloud.datasets.reading import EXAMPLE, READERS, example, read

__all__ = ["EXAMPLE", "READERS", "Dataset", "ReadReport", "example", "read", "write_history"]
