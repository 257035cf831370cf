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
from pforce.base.files import read_small, write_bytes
from pforce.base.foreign import ForeignError, inside, parse_object, quoted

FORMAT_VERSION = 1
"""Version of manifest.json. A folder of another version is refused."""
FILE_NAME = "manifest.json"
MOST_BYTES = 256 << 20
MOST_RESOLUTION = 4096
MOST_CHANNELS = 1024
LEAST_SAMPLE_BYTES = 1024
"""Fewest bytes of a sample in a tar file: the header and the padded content of one file."""

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
            content = parse_object(read_small(path, MOST_BYTES))
        except FileNotFoundError as error:
            raise DataError(f"{path} is missing: {folder} is not a dataset. Check the path, or build it") from error
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error}). Remove {folder} and build it again") from error
        version = content.get("format")
        if version != FORMAT_VERSION:
            raise DataError(
                f"{path} has format {quoted(version)}, this pforce reads {FORMAT_VERSION}. Build the dataset again "
                "with it"
            )
        try:
            manifest = cls._parse(content, Path(folder))
        except ForeignError as error:
            raise DataError(f"{path} is not a manifest: {error}. Remove {folder} and build it again") from error
        if manifest.hash != content.get("hash"):
            raise DataError(f"{path} was changed by hand: its hash is not that of its entries. Build the dataset again")
        return manifest

    @classmethod
    def _parse(cls, content: dict[str, Any], folder: Path) -> Manifest:
        """A manifest from plain data. ForeignError names the entry that is missing or not what it should be."""

        def shard(entry: dict[str, Any]) -> Shard:
            name, samples, size = _text(entry, "name"), _whole(entry, "samples", 2**40), _whole(entry, "bytes", 2**50)
            inside(folder, name)
            if samples * LEAST_SAMPLE_BYTES > size:
                raise ForeignError(f"{quoted(name)} has {samples:,} samples in {size:,} bytes, which hold fewer")
            return Shard(name, samples, size, _text(entry, "sha256"))

        def split(name: str) -> Split:
            entry = _entry(_entry(content, "splits", dict), name, dict)
            return Split(tuple(shard(each) for each in _entries(entry, "shards", dict)))

        classes = tuple(_entries(content, "classes", str))
        versions = _entry(content, "versions", dict)
        if not all(isinstance(version, str) for version in versions.values()):
            raise ForeignError("versions are not texts")
        return cls(
            name=_text(content, "name"),
            resolution=_whole(content, "resolution", MOST_RESOLUTION),
            channels=_whole(content, "channels", MOST_CHANNELS),
            classes=classes,
            train=split("train"),
            validation=split("validation"),
            licence=_text(content, "licence"),
            attribution=_text(content, "attribution"),
            versions=versions,
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


def _entry(of: dict[str, Any], name: str, kind: type) -> Any:
    """An entry of a type. ForeignError where it is missing or another."""
    value = of.get(name)
    if type(value) is not kind:
        raise ForeignError(f"{name} = {quoted(value)}: must be of type {kind.__name__}")
    return value


def _text(of: dict[str, Any], name: str) -> str:
    return str(_entry(of, name, str))


def _whole(of: dict[str, Any], name: str, most: int) -> int:
    """A positive whole number. ForeignError where it is none, or above `most`."""
    value = int(_entry(of, name, int))
    if not 0 < value <= most:
        raise ForeignError(f"{name} = {value}: must be from 1 to {most:,}")
    return value


def _entries(of: dict[str, Any], name: str, kind: type) -> list[Any]:
    """A list whose entries are of a type."""
    values = _entry(of, name, list)
    if not all(type(value) is kind for value in values):
        raise ForeignError(f"{name} holds something that is not of type {kind.__name__}")
    return list(values)
