"""Decoding of webdataset shards into arrays, and handling of damaged samples."""

from __future__ import annotations

import hashlib
import io
import logging
import re
import tarfile
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor
from webdataset.tariterators import group_by_keys

from pforce.base.foreign import ForeignError, inside, open_regular, printable, quoted
from pforce.data.manifest import DataError, Manifest, Shard, Split
from pforce.images import open_picture, to_rgb

logger = logging.getLogger(__name__)

IMAGE_EXTENSIONS = ("png", "jpg", "jpeg")
MAXIMUM_DAMAGED_SHARE = 0.01
GIBIBYTE = 2**30
_HIDDEN = re.compile(r"__[^/]*__($|/)")
"""Names of files about the shard itself, as webdataset leaves them out."""


class DamagedSample(Exception):
    """A sample cannot be used; the message says why. The caller counts it; a single one is never fatal."""


@dataclass(frozen=True)
class DecodedShard:
    """The samples of a shard in the order of the tar file. Damaged ones keep their place, with `intact` False."""

    images: Tensor
    """Images (n, 3, H, W) uint8."""
    labels: Tensor
    """Labels (n,) int64."""
    captions: list[str]
    intact: Tensor
    """Mask (n,) bool of the intact samples."""
    reason: str
    """Reason why the first damaged sample is damaged; empty if none is."""

    @property
    def damaged(self) -> int:
        return int((~self.intact).sum())

    @property
    def bytes(self) -> int:
        return self.images.numel()


def decode_shard(folder: Path, shard: Shard, manifest: Manifest, executor: Executor) -> DecodedShard:
    """Read and decode a whole shard, images in parallel on the executor's threads (Pillow drops the GIL).

    A sample is damaged if its image cannot be decoded or does not have the manifest's size, if its label is missing or
    not a class, or if the manifest counts it but the tar file, as it was written, ends before it.

    Raises:
        DataError: the shard cannot be opened, was damaged or changed since (its hash is not the manifest's), or holds
            more samples than the manifest says.
    """
    path = folder / shard.name
    try:
        with open_regular(inside(folder, shard.name)) as file:
            content = file.read()
    except (OSError, ForeignError) as error:
        raise DataError(f"shard {path} cannot be read: {error}. Copy it there again") from error
    found = hashlib.sha256(content).hexdigest()
    if found != shard.sha256 or len(content) != shard.bytes:
        # Results are named by the manifest: other bytes would give other numbers under the same name.
        raise DataError(
            f"shard {path} is damaged or was changed: its sha256 is {found[:12]}…, its manifest says "
            f"{shard.sha256[:12]}…. Copy it there again, or build the data set again"
        )
    samples, archive_error = _read_tar(content)
    if len(samples) > shard.samples:
        raise DataError(
            f"shard {path} holds {len(samples)} samples, its manifest says {shard.samples}: they do not belong "
            "together. Build or copy the dataset again"
        )
    size = manifest.resolution
    # Numpy's zeros take memory where they are written only: a manifest's numbers make no room.
    images = torch.from_numpy(np.zeros((shard.samples, 3, size, size), np.uint8))
    labels = torch.zeros(shard.samples, dtype=torch.int64)
    intact = torch.zeros(shard.samples, dtype=torch.bool)
    captions = [""] * shard.samples
    reason = ""

    def decode(index: int) -> str:
        try:
            labels[index] = _label(samples[index], len(manifest.classes))
            images[index] = _image(samples[index], size)
        except DamagedSample as error:
            return f"{printable(samples[index]['__key__'])}: {error}"
        captions[index] = samples[index].get("txt", b"").decode("utf-8", errors="replace")
        intact[index] = True
        return ""

    for complaint in executor.map(decode, range(len(samples))):
        reason = reason or complaint
    if len(samples) < shard.samples:
        reason = reason or f"the file ends after {len(samples)} of {shard.samples} samples {archive_error}".rstrip()
    return DecodedShard(images, labels, captions, intact, reason)


def _files(content: bytes) -> Iterator[dict[str, Any]]:
    """The files of a tar as webdataset passes them on. tarfile.TarError where it ends early, is compressed, which
    would unpack to any size, or has a sparse file, whose holes would."""
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        read = -1
        for member in tar:
            if member.size < 0 or member.offset_data <= read:  # a header that leads back to itself
                raise tarfile.ReadError(f"{quoted(member.name)} has an impossible size")
            read = member.offset_data
            if not member.isreg() or _HIDDEN.match(member.name):
                continue
            if member.issparse() or member.size > len(content):
                raise tarfile.ReadError(f"{quoted(member.name)} is sparse, or larger than the file")
            file = tar.extractfile(member)
            assert file is not None  # it is regular
            found = file.read()
            if len(found) < member.size:
                raise tarfile.ReadError(f"unexpected end of data in {quoted(member.name)}")
            yield {"fname": member.name, "data": found, "__url__": ""}


def _read_tar(content: bytes) -> tuple[list[dict[str, Any]], str]:
    """The intact samples at the beginning of a tar file, not decoded, and the error that ended it early ("" if
    none)."""
    errors: list[Exception] = []

    def files() -> Iterator[dict[str, Any]]:
        try:
            yield from _files(content)
        except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:  # any, of a damaged header
            errors.append(error)

    def stop(error: Exception) -> bool:
        errors.append(error)
        return False

    samples: list[dict[str, Any]] = list(group_by_keys(files(), handler=stop))
    if errors and samples:
        samples.pop()  # truncated in this sample or just after it: its last member may be missing
    return samples, f"({errors[0]})" if errors else ""


def _label(sample: Mapping[str, Any], classes: int) -> int:
    if "cls" not in sample:
        raise DamagedSample("it has no .cls")
    try:
        label = int(sample["cls"])
    except ValueError as error:
        raise DamagedSample(f"its label {sample['cls'][:20]!r} is not a number") from error
    if not 0 <= label < classes:
        raise DamagedSample(f"its label {label} is not one of {classes} classes")
    return label


def _image(sample: Mapping[str, Any], size: int) -> Tensor:
    """The image of a sample, (3, H, W) uint8. DamagedSample where it cannot be used."""
    encoded = next((sample[extension] for extension in IMAGE_EXTENSIONS if extension in sample), None)
    if encoded is None:
        raise DamagedSample(f"it has no image ({', '.join('.' + extension for extension in IMAGE_EXTENSIONS)})")
    try:
        with open_picture(encoded) as file:
            if file.size != (size, size):  # known from the header, before anything is decoded
                raise DamagedSample(f"its image is {file.width}×{file.height}, not {size}×{size}")
            pixels = to_rgb(file)
    except ForeignError as error:
        raise DamagedSample(f"its image cannot be used: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


class DamageCount:
    """Counts damaged samples by shard. Each shard is counted and warned about once; too many damaged samples raise
    DataError."""

    def __init__(self, folder: Path, split: Split) -> None:
        self.counts: dict[str, int] = {}
        self._folder = folder
        self._samples = split.samples

    def add(self, shard: Shard, decoded: DecodedShard) -> None:
        """Count a shard that was just decoded.

        Raises:
            DataError: more than 1 % of the split's samples are damaged by now.
        """
        if decoded.damaged == 0 or shard.name in self.counts:
            return
        self.counts[shard.name] = decoded.damaged
        logger.warning(
            "%s: %d of %d samples are damaged and skipped. First: %s",
            self._folder / shard.name,
            decoded.damaged,
            shard.samples,
            decoded.reason,
        )
        total = sum(self.counts.values())
        if total > MAXIMUM_DAMAGED_SHARE * self._samples:
            listing = ", ".join(f"{name} ({count})" for name, count in sorted(self.counts.items()))
            raise DataError(
                f"{total} of {self._samples} samples in {self._folder} are damaged, more than "
                f"{MAXIMUM_DAMAGED_SHARE:.0%}: {listing}. First in {shard.name}: {decoded.reason}. "
                "Copy or build these shards again"
            )


class ShardCache:
    """A cache of decoded shards; beyond its budget, the least recently used are dropped."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._shards: OrderedDict[Hashable, DecodedShard] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def get(self, key: Hashable) -> DecodedShard | None:
        """The shard of a key, where it is there."""
        with self._lock:
            if key in self._shards:
                self._shards.move_to_end(key)
            return self._shards.get(key)

    def put(self, key: Hashable, shard: DecodedShard) -> None:
        """Keep a shard, and drop others where there is no room."""
        with self._lock:
            if key in self._shards:
                return
            self._shards[key] = shard
            self._bytes += shard.bytes
            while self._bytes > self._budget_bytes:
                self._bytes -= self._shards.popitem(last=False)[1].bytes


CACHE = ShardCache(GIBIBYTE)
"""Decoded shards of this process: its next training or evaluation of the same data decodes none of them again."""


def load_shard(
    folder: Path, shard: Shard, manifest: Manifest, executor: Executor, *, cache: ShardCache = CACHE, keep: bool = True
) -> DecodedShard:
    """A decoded shard, from the cache where its file has not changed since, judged by its inode, size and time.

    Args:
        keep: put it into the cache.

    Raises:
        DataError: as in `decode_shard`.
    """
    path = folder / shard.name
    try:
        about = path.stat()
    except OSError as error:
        raise DataError(f"shard {path} cannot be read: {error}. Copy it there again") from error
    file = (path.absolute(), about.st_ino, about.st_size, about.st_mtime_ns)
    key = (file, shard, manifest.resolution, len(manifest.classes))
    found = cache.get(key)
    if found is None:
        found = decode_shard(folder, shard, manifest, executor)
        if keep:
            cache.put(key, found)
    return found
