"""Datasets: what they are (`config`, `manifest`), how they are made (`openmoji`, `writer`) and read (`reader`)."""

from pforce.data.cache import ensure
from pforce.data.config import DataConfig
from pforce.data.manifest import DataError, Manifest, Shard, Split
from pforce.data.reader import Batch, TrainingStream, check_streams, merge_states, read_batches, read_split

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
    "read_split",
]
