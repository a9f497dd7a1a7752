"""Interactions of any origin, as events over a vocabulary of items."""

from cloud.datasets.columnar import StreamedDataset
from cloud.datasets.dataset import Dataset, ReadReport, write_history
from cloud.datasets.preparing import prepare
from cloud.datasets.raw import listed_users
from cloud.datasets.reading import EXAMPLE, READERS, example, read

__all__ = [
    "EXAMPLE",
    "READERS",
    "Dataset",
    "ReadReport",
    "StreamedDataset",
    "example",
    "listed_users",
    "prepare",
    "read",
    "write_history",
]
