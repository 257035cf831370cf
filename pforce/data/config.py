"""Settings of an experiment's data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pforce.base.errors import require


@dataclass(frozen=True)
class DataConfig:
    """The images of an experiment, and the order in which training sees them."""

    name: Literal["openmoji", "fashion-mnist", "shards"] = "openmoji"
    """Dataset. openmoji: drawn from the installed package on first use. fashion-mnist: made from its IDX files on first
    use ($PFORCE_FASHION_MNIST, or Debian's package dataset-fashion-mnist). shards: a folder with a manifest.json."""
    resolution: int = 32
    """Height and width of an image, in pixels (of a latent, in latent pixels)."""
    path: str | None = None
    """Folder of the shards. It does not enter the names of results; the manifest's hash does."""
    streams: int = 16
    """Number of virtual streams. Each has its own shards, and a global batch takes an equal share from each, so that
    the order of the data does not depend on the number of workers."""
    flip: bool = False
    """Mirror half of the training images, chosen by (seed, step)."""

    def __post_init__(self) -> None:
        require(self.resolution > 0, "resolution", self.resolution, "> 0 pixels")
        require(self.streams > 0, "streams", self.streams, "> 0")
        require(self.name != "shards" or self.path is not None, "path", self.path, 'a folder, as name is "shards"')
