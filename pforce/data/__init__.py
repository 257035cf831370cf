"""Datasets: their description (`config`, `manifest`), building (`openmoji`, `fashion_mnist`, `writer`) and reading
(`reader`)."""

from pforce.data.cache import ensure
from pforce.data.config import DataConfig
from pforce.data.manifest import DataError, Manifest, Shard, Split
from pforce.data.reader import Batch, TrainingStream, check_streams, merge_states, read_batches, read_labels, read_split

__all__ = [
    "Batch",
    "DataConfig",
    "DataError",
    "Manifest",
    "Shard",
    "Split",
    "TrainingStream",
    "check_streams",
    "ensure",
    "merge_states",
    "read_batches",
    "read_labels",
    "read_split",
]
