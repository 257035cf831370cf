"""The description of a dataset's folder: `manifest.json` beside the shards.

The manifest is written last, so a folder that has one is complete. Its `hash` names the data in an experiment's
identity: two folders with the same hash hold the same samples in the same order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pforce.base.errors import InputError
from pforce.base.files import write_bytes

FORMAT_VERSION = 1
"""Version of manifest.json. A folder of another version is refused."""
FILE_NAME = "manifest.json"

SplitName = Literal["train", "validation"]


class DataError(InputError, RuntimeError):
    """The data on disk is not what it should be. The message gives the file and the remedy."""


@dataclass(frozen=True)
class Shard:
    """One webdataset tar file."""

    name: str
    """File name inside the dataset's folder."""
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """The shards of one split, in order. A sample's place is (shard, index in the shard)."""

    shards: tuple[Shard, ...]

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)


@dataclass(frozen=True)
class Manifest:
    """Everything about a dataset except its samples."""

    name: str
    resolution: int
    """Height and width of every image, in pixels."""
    channels: int
    classes: tuple[str, ...]
    """Names of the classes; a sample's label is an index into them."""
    train: Split
    validation: Split
    licence: str
    attribution: str
    versions: Mapping[str, str] = field(hash=False)
    """Versions of the packages that made the samples."""

    def split(self, name: SplitName) -> Split:
        return {"train": self.train, "validation": self.validation}[name]

    @property
    def hash(self) -> str:
        """SHA-256 of everything that determines the samples and their order: shards, classes, resolution, channels.
        Names, paths, and the versions of packages do not enter."""
        content = {
            "format": FORMAT_VERSION,
            "resolution": self.resolution,
            "channels": self.channels,
            "classes": self.classes,
            "train": [(shard.sha256, shard.samples) for shard in self.train.shards],
            "validation": [(shard.sha256, shard.samples) for shard in self.validation.shards],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write `manifest.json` into the folder and flush it to disk."""
        content = {"format": FORMAT_VERSION} | {
            k: v for k, v in asdict(self).items() if k not in ("train", "validation")
        }
        content["versions"] = dict(self.versions)
        content["hash"] = self.hash
        content["splits"] = {
            name: {"samples": split.samples, "shards": [asdict(shard) for shard in split.shards]}
            for name, split in (("train", self.train), ("validation", self.validation))
        }
        write_bytes(folder / FILE_NAME, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read `manifest.json`.

        Raises:
            DataError: it is missing, unreadable, of another version, or does not match its own hash.
        """
        path = Path(folder) / FILE_NAME
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise DataError(f"{path} is missing: {folder} is not a dataset. Check the path, or build it") from error
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error}). Remove {folder} and build it again") from error
        version = content.get("format") if isinstance(content, dict) else None
        if version != FORMAT_VERSION:
            raise DataError(
                f"{path} has format {version!r}, this pforce reads {FORMAT_VERSION}. Build the dataset again with it"
            )
        try:
            manifest = cls._parse(content)
            recorded = str(content["hash"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is not a manifest ({error!r}). Remove {folder} and build it again") from error
        if manifest.hash != recorded:
            raise DataError(f"{path} was changed by hand: its hash is not that of its entries. Build the dataset again")
        return manifest

    @classmethod
    def _parse(cls, content: dict[str, Any]) -> Manifest:
        def split(entry: dict[str, Any]) -> Split:
            return Split(
                tuple(
                    Shard(str(shard["name"]), int(shard["samples"]), int(shard["bytes"]), str(shard["sha256"]))
                    for shard in entry["shards"]
                )
            )

        return cls(
            name=str(content["name"]),
            resolution=int(content["resolution"]),
            channels=int(content["channels"]),
            classes=tuple(str(name) for name in content["classes"]),
            train=split(content["splits"]["train"]),
            validation=split(content["splits"]["validation"]),
            licence=str(content["licence"]),
            attribution=str(content["attribution"]),
            versions={str(name): str(version) for name, version in content["versions"].items()},
        )

    def check(self, folder: Path) -> None:
        """Raise `DataError` unless every shard is there. Sizes and contents are not checked here: damage is found and
        counted while reading."""
        shards = (*self.train.shards, *self.validation.shards)
        missing = [shard.name for shard in shards if not (Path(folder) / shard.name).is_file()]
        if missing:
            listing = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
            raise DataError(
                f"{len(missing)} of {len(shards)} shards are missing in {folder}: {listing}. Copy them there, or "
                "remove the folder and build it again"
            )
