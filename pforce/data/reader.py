"""Reading of a dataset: training batches, in an order that does not depend on the number of workers, and whole splits.

The order is that of V virtual streams. Shard i belongs to stream i mod V. In each of its epochs a stream permutes its
shards and the samples within each, keyed by (seed, stream, epoch). A global batch takes batch / V samples of every
stream, streams in order. Rank r of W serves the streams v with v mod W = r, so W workers together read the same samples
as one, and a position (epoch, index) per stream is all that a resume needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pforce.base.errors import require
from pforce.base.machine import usable_cores
from pforce.data.config import DataConfig
from pforce.data.manifest import DataError, Manifest, Shard, SplitName
from pforce.data.shards import CACHE, DamageCount, DecodedShard, ShardCache, load_shard
from pforce.seeding import generator

STATE_FORMAT = 1


@dataclass(frozen=True)
class Batch:
    """A batch of samples."""

    images: Tensor
    """Images (B, C, H, W) uint8."""
    labels: Tensor
    """Labels (B,) int64."""
    captions: list[str]
    """Captions; empty strings where the shards hold none."""
    damaged: int
    """Damaged samples that were skipped while reading these."""


def _decoding_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(4, usable_cores()), thread_name_prefix="pforce-decode")


class _Stream:
    """One virtual stream: its shards and its position."""

    def __init__(self, number: int, shards: dict[int, Shard], seed: int, load: Callable[[Shard], DecodedShard]) -> None:
        self.epoch = 0
        self.index = 0
        """Index in the epoch of the next sample. It counts damaged samples, so that the position is known without
        reading the samples before."""
        self.samples = sum(shard.samples for shard in shards.values())
        self._number, self._shards, self._seed, self._load = number, shards, seed, load
        self._visits: list[tuple[int, int]] = []  # (index in the epoch of its first sample, shard) in visiting order
        self._visits_epoch = -1
        # The current shard stays here, whatever the cache drops; otherwise streams would evict each other's.
        self._current: tuple[int, int] | None = None  # (epoch, shard)
        self._decoded: DecodedShard
        self._order: list[int]

    def take(self) -> tuple[DecodedShard, int, int]:
        """The next intact sample as (shard, index in it), and the number of damaged samples skipped before it."""
        skipped = 0
        while True:
            if self.index == self.samples:
                self.epoch, self.index = self.epoch + 1, 0
            first = self._open()
            place = self._order[self.index - first]
            self.index += 1
            if self._decoded.intact[place]:
                return self._decoded, place, skipped
            skipped += 1
            if skipped > self.samples:
                raise DataError(f"stream {self._number}: all of its {self.samples} samples are damaged")

    def _open(self) -> int:
        """Make the shard at the current position current; returns the index in the epoch of its first sample."""
        if self._visits_epoch != self.epoch:
            self._visits, self._visits_epoch = self._plan(), self.epoch
        first, number = next(visit for visit in reversed(self._visits) if visit[0] <= self.index)
        if self._current != (self.epoch, number):
            shard = self._shards[number]
            self._decoded = self._load(shard)
            key = generator("data", self._seed, self._number, self.epoch, "samples", number)
            self._order = torch.randperm(shard.samples, generator=key).tolist()
            self._current = (self.epoch, number)
        return first

    def _plan(self) -> list[tuple[int, int]]:
        numbers = [number for number, shard in self._shards.items() if shard.samples > 0]
        key = generator("data", self._seed, self._number, self.epoch, "shards")
        visits, first = [], 0
        for i in torch.randperm(len(numbers), generator=key).tolist():
            visits.append((first, numbers[i]))
            first += self._shards[numbers[i]].samples
        return visits


class TrainingStream:
    """This rank's share of an endless sequence of global batches.

    Args:
        folder: folder of the dataset, with its manifest.json.
        config: `resolution` must be the dataset's; `streams` is V.
        batch: the global batch size, a multiple of V.
        seed: the experiment's seed.
        rank, world_size: this process's rank among world_size; V must be a multiple of world_size.
        cache: decoded shards kept in addition to each stream's current one; by default, this process's.

    Attributes:
        manifest: manifest of the dataset.
        rows: indices of this rank's samples in the global batch, (batch / world_size,) int64: use them to slice
            globally drawn noise.

    Raises:
        FieldError: sizes that do not divide, or a resolution that is not the dataset's.
        DataError: the manifest or shards are missing, or there are fewer shards than streams.
    """

    def __init__(
        self,
        folder: Path,
        config: DataConfig,
        *,
        batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        cache: ShardCache = CACHE,
    ) -> None:
        count = config.streams
        require(world_size > 0 and count % world_size == 0, "streams", count, f"a multiple of the {world_size} workers")
        require(0 <= rank < world_size, "rank", rank, f"in [0, {world_size})")
        self.manifest = _open_manifest(folder)
        check_streams(folder, self.manifest, config, batch=batch)
        shards = self.manifest.train.shards
        self._folder, self._seed, self._count = folder, seed, count
        self._cache = cache
        self._damage = DamageCount(folder, self.manifest.train)
        self._executor = _decoding_threads()
        self._share = batch // count  # samples of each stream in a batch
        self._streams = {
            number: _Stream(number, {i: shards[i] for i in range(number, len(shards), count)}, seed, self._load)
            for number in range(rank, count, world_size)
        }
        self.rows = torch.cat([torch.arange(v * self._share, (v + 1) * self._share) for v in self._streams])

    @property
    def damaged(self) -> dict[str, int]:
        """Damaged samples by shard name, for the shards that this rank has read."""
        return dict(self._damage.counts)

    def next_batch(self) -> Batch:
        """This rank's samples of the next global batch, in the order of `rows`.

        Raises:
            DataError: a shard has vanished, or more than 1 % of the samples are damaged.
        """
        taken = [stream.take() for stream in self._streams.values() for _ in range(self._share)]
        return Batch(
            images=torch.stack([shard.images[place] for shard, place, _ in taken]),
            labels=torch.stack([shard.labels[place] for shard, place, _ in taken]),
            captions=[shard.captions[place] for shard, place, _ in taken],
            damaged=sum(skipped for _, _, skipped in taken),
        )

    def state_dict(self) -> dict[str, Any]:
        """The position of every stream of this rank, as JSON. `merge_states` joins the states of all ranks."""
        return {
            "format": STATE_FORMAT,
            "manifest": self.manifest.hash,
            "seed": self._seed,
            "streams": self._count,
            "positions": {str(number): [stream.epoch, stream.index] for number, stream in self._streams.items()},
            "damaged": self.damaged,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken, on any number of workers. Nothing is read before the next batch.

        Raises:
            DataError: the state belongs to other data, another seed or number of streams, or lacks a stream.
        """
        own = self.state_dict()
        for field in ("format", "manifest", "seed", "streams"):
            if state[field] != own[field]:
                raise DataError(
                    f"the checkpoint's data position has {field} {state[field]!r}, this run has {own[field]!r}: "
                    "it cannot be resumed. Resume with the same data configuration and seed, or start a new run"
                )
        lacking = sorted(set(own["positions"]) - set(state["positions"]), key=int)
        if lacking:
            raise DataError(
                f"the checkpoint's data position lacks the streams {', '.join(lacking)}: it holds some ranks only. "
                "Save merge_states(the states of all ranks)"
            )
        for number, stream in self._streams.items():
            stream.epoch, stream.index = (int(value) for value in state["positions"][str(number)])
        own_shards = {shard.name for v in self._streams for shard in self.manifest.train.shards[v :: self._count]}
        self._damage.counts = {name: int(n) for name, n in state["damaged"].items() if name in own_shards}

    def merge(self, states: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Join the states of all ranks; see `merge_states`."""
        return merge_states(states)

    def _load(self, shard: Shard) -> DecodedShard:
        decoded = load_shard(self._folder, shard, self.manifest, self._executor, cache=self._cache)
        self._damage.add(shard, decoded)
        return decoded


def check_streams(folder: Path, manifest: Manifest, config: DataConfig, *, batch: int) -> None:
    """Raise FieldError for a batch or a resolution that does not fit, DataError for fewer shards than streams.

    Nothing is read.
    """
    count, here, shards = config.streams, manifest.resolution, manifest.train.shards
    require(batch > 0 and batch % count == 0, "batch", batch, f"a positive multiple of streams = {count}")
    require(config.resolution == here, "resolution", config.resolution, f"{here}, the resolution of {folder}")
    for number in range(count):
        if sum(shard.samples for shard in shards[number::count]) == 0:
            raise DataError(
                f"{folder} has {len(shards)} training shards for {count} streams: stream {number} would be empty. "
                f"Set streams to at most {len(shards)}, or write the data in more shards"
            )


def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The state with the streams of all ranks, joined from the `state_dict` of each."""
    merged = dict(states[0])
    merged["positions"] = {number: place for state in states for number, place in state["positions"].items()}
    merged["damaged"] = {name: count for state in states for name, count in state["damaged"].items()}
    return merged


def read_split(folder: Path, split: SplitName, *, limit: int | None = None) -> Batch:
    """All images of a split in the order of the shards, or `limit` images spread evenly over it (always the same;
    shards without any are not read).

    Damaged samples are left out and counted, so fewer than `limit` may be returned.

    Raises:
        FieldError: the limit is not in [1, samples of the split].
        DataError: the manifest or shards are missing, or more than 1 % of the samples are damaged.
    """
    manifest = _open_manifest(folder)
    shards = manifest.split(split)
    total = shards.samples
    require(limit is None or 1 <= limit <= total, "limit", limit, f"1 to {total}, the {split} samples of {folder}")
    places = torch.arange(total) if limit is None else (2 * torch.arange(limit) + 1) * total // (2 * limit)
    damage = DamageCount(folder, shards)
    images, labels, captions, skipped, first = [], [], [], 0, 0
    with _decoding_threads() as executor:
        for shard in shards.shards:
            wanted = places[(places >= first) & (places < first + shard.samples)] - first
            first += shard.samples
            if len(wanted) == 0:
                continue
            decoded = load_shard(folder, shard, manifest, executor)
            damage.add(shard, decoded)
            kept = wanted[decoded.intact[wanted]]
            skipped += len(wanted) - len(kept)
            images.append(decoded.images[kept])
            labels.append(decoded.labels[kept])
            captions += [decoded.captions[place] for place in kept.tolist()]
    return Batch(torch.cat(images), torch.cat(labels), captions, skipped)


def read_batches(folder: Path, split: SplitName, size: int) -> Iterator[Tensor]:
    """All images of a split in the order of the shards, in batches (size, 3, H, W) uint8, the last one smaller. It
    holds one shard in memory at a time. DataError as in `read_split`."""
    rest: list[Tensor] = []
    for decoded in _shards(folder, split):
        *whole, last = torch.cat([*rest, decoded.images[decoded.intact]]).split(size)
        yield from whole
        rest = [last]
    yield from (last for last in rest if len(last))


def read_labels(folder: Path, split: SplitName, *, limit: int | None = None) -> Tensor:
    """Labels (N,) int64 of the images that `read_split` returns. Of a whole split it holds one shard in memory at a
    time. FieldError and DataError as in `read_split`."""
    if limit not in (None, _open_manifest(folder).split(split).samples):
        return read_split(folder, split, limit=limit).labels
    return torch.cat([decoded.labels[decoded.intact] for decoded in _shards(folder, split)])


def _shards(folder: Path, split: SplitName) -> Iterator[DecodedShard]:
    """The shards of a split in order, one in memory at a time."""
    manifest = _open_manifest(folder)
    shards = manifest.split(split)
    damage = DamageCount(folder, shards)
    with _decoding_threads() as executor:
        for shard in shards.shards:
            decoded = load_shard(folder, shard, manifest, executor, keep=False)
            damage.add(shard, decoded)
            yield decoded


def _open_manifest(folder: Path) -> Manifest:
    manifest = Manifest.load(folder)
    manifest.check(folder)
    if manifest.channels != 3:
        raise DataError(f"{folder} has images of {manifest.channels} channels; this reader takes 3. Convert to RGB")
    return manifest
