"""Drawing of a model's images under a sampler, and the blocks of them that a storage keeps.

Image i starts from the noise of (seed, i), so a drawing has no end: more images are drawn from where it stopped. Images
and features are kept in blocks of 64 images, `drawings/ID/NAME/FIRST-END.CONTENT.npz`, where CONTENT is the hash of the
file: a damaged block is drawn again, never used. A forward pass is whole blocks or an equal part of one block, so an
image does not depend on the number of other images, except by the rounding of another batch size.
"""

from __future__ import annotations

import io
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pforce import seeding
from pforce.base.arrays import open_arrays
from pforce.base.files import content_digest, digest, read_whole, write_bytes
from pforce.images import from_uint8, save_grid, to_uint8
from pforce.metrics.detectors import Detector, Reading, WithPixels
from pforce.metrics.features import read_padded
from pforce.models.autoencoder import Decoder
from pforce.records.identity import versions_of
from pforce.sampling import Denoiser, Sampler, Step
from pforce.storage import Storage

BLOCK = 64
"""Images per block."""
KEPT_BYTES = 256 << 20
"""Bytes of features that are kept per drawing and detector once it is measured; further images are drawn again."""
DRAWINGS, IMAGES, PIXELS = "drawings", "images", "pixels"
NAME = re.compile(r"(?P<first>\d{1,12})-(?P<end>\d{1,12})\.(?P<content>[0-9a-f]{32})\.npz")
Arrays = dict[str, NDArray[Any]]
Names = dict[int, list[tuple[int, str]]]
"""First image of blocks → (end, file name)."""


class Span(NamedTuple):
    """A range of images: first … end − 1."""

    first: int
    end: int


def spans_to_draw(count: int, batch: int, there: Mapping[int, int]) -> list[list[Span]]:
    """Forward passes that complete a drawing's first `count` images, grouped by the blocks that they fill.

    Args:
        batch: images per pass; a pass is whole blocks where the batch is at least a block, else an equal part of a
            block.
        there: first image → end of the blocks that are kept.
    """
    groups: list[list[Span]] = []
    together = max(1, batch // BLOCK)
    for block in range(0, count, BLOCK):
        have = there.get(block, block)
        if have >= min(block + BLOCK, count):
            continue
        if batch < BLOCK or have > block:
            least = min(block + BLOCK, count)
            step, spans = min(batch, BLOCK), []
            while have < least:
                spans.append(Span(have, min(have + step, block + BLOCK)))
                have = spans[-1].end
            groups.append(spans)
        elif groups and len(groups[-1]) == 1 and _joins(groups[-1][0], block, together):
            groups[-1] = [Span(groups[-1][0].first, block + BLOCK)]
        else:
            groups.append([Span(block, block + BLOCK)])
    return groups


def _joins(last: Span, block: int, together: int) -> bool:
    return last.end == block and last.first % BLOCK == 0 and (last.end - last.first) // BLOCK < together


class Drawn(NamedTuple):
    """The images of one pass and their cost."""

    span: Span
    images: Tensor
    """Images (B, 3, H, W) uint8, on the device."""
    num_function_evaluations: int
    """NFE per image."""
    forward_passes: int
    """Forward passes of the model per image."""
    seconds: float


def draw(
    model: Denoiser,
    sampler: Sampler,
    labels: Tensor,
    spans: Sequence[Span],
    *,
    seed: int,
    device: torch.device,
    decode: Decoder | None = None,
) -> Iterator[Drawn]:
    """Draw spans of images one after the other; none is held in memory.

    Args:
        labels: classes (M,); image i has class labels[i mod M].
        decode: decoder from latents to pixels.

    Raises:
        ValueError: a value is not finite.
    """
    shape = (model.config.channels, *model.config.image_size)
    for span in spans:
        started = time.perf_counter()
        count = span.end - span.first
        y = labels[torch.arange(span.first, span.end) % len(labels)].to(device)
        x0 = seeding.noise_for_images(seed, span.first, count, shape, device)
        passes: list[int] = []

        def note(step: Step, passes: list[int] = passes) -> None:
            passes.append(step.forward_passes)

        x1 = sampler.sample(model, x0, y, seed=seed, first=span.first, callback=note)
        images = to_uint8(x1 if decode is None else decode(x1))  # reads every value, so the GPU's work is done then
        yield Drawn(span, images, len(passes), sum(passes), time.perf_counter() - started)


def _arrays(content: bytes, named: str, count: int) -> Arrays:
    """The arrays of a block's file. ValueError where the content does not match its name."""
    if content_digest(content) != named:
        raise ValueError("its content does not match its name")
    with open_arrays(content) as arrays:
        found = arrays.read_all(len(content))
    if any(len(value) != count for value in found.values()):
        raise ValueError(f"it does not hold {count} images")
    return found


class Blocks:
    """The blocks of 64 images that a storage keeps of a drawing under one name.

    Args:
        relative: folder below the storage's root.
    """

    def __init__(self, storage: Storage, relative: str) -> None:
        self.storage, self.relative = storage, relative
        self.folder = storage.root / relative

    def names(self, *, here: bool = False) -> dict[int, list[tuple[int, str]]]:
        """First image → (end, file name) of its blocks: the longest first, then by name.

        Args:
            here: list only this machine's blocks.
        """
        if self.storage.remote and not here:  # this mirror may have blocks that were removed there
            names = {name.rpartition("/")[2] for name in self.storage.list(self.relative)}
        else:
            names = {path.name for path in self.folder.glob("*.npz")} if self.folder.is_dir() else set()
        found: dict[int, list[tuple[int, str]]] = {}
        for name in names:
            match = NAME.fullmatch(name)
            if match and int(match["first"]) % BLOCK == 0 and 0 < int(match["end"]) - int(match["first"]) <= BLOCK:
                found.setdefault(int(match["first"]), []).append((int(match["end"]), name))
        return {first: sorted(ends, key=lambda each: (-each[0], each[1])) for first, ends in found.items()}

    def has(self, end: int, first: int) -> bool:
        """Whether images `first` to `end` − 1 are there, judged by names."""
        names = self.names()
        starts = range(first // BLOCK * BLOCK, end, BLOCK)
        return all(start in names and names[start][0][0] >= min(start + BLOCK, end) for start in starts)

    def load(self, count: int) -> dict[int, Arrays]:
        """First image → arrays of each whole block among the first `count` images, with a warning for damaged ones."""
        names = self.names()
        found = {first: self.block(first, names) for first in sorted(names) if first < count}
        return {first: arrays for first, arrays in found.items() if arrays is not None}

    def block(self, first: int, names: Mapping[int, list[tuple[int, str]]] | None = None) -> Arrays | None:
        """Arrays of the longest whole block that begins at `first`, with a warning for damaged ones; None where there
        is none.

        Args:
            names: names of all blocks, where they have been listed.
        """
        for end, name in (self.names() if names is None else names).get(first, ()):
            arrays = self._read(name, end - first)
            if arrays is not None:
                return arrays
        return None

    def _read(self, name: str, count: int) -> Arrays | None:
        def checked(path: Path) -> Arrays:
            return _arrays(read_whole(path), name.split(".")[1], count)

        try:
            return self.storage.read_checked(f"{self.relative}/{name}", checked)
        except (OSError, ValueError, KeyError, EOFError) as error:
            if isinstance(error, PermissionError):  # not damage: the block would be drawn again at every call
                raise
            warnings.warn(f"damaged, drawn again: {self.folder / name} ({error})", stacklevel=2)
            return None

    def save(self, first: int, arrays: Arrays) -> None:
        """Write a block that begins at `first`; it appears whole. Shorter blocks with the same start are removed."""
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]  # the stubs know no names
        content = buffer.getvalue()
        end = first + len(next(iter(arrays.values())))
        name = f"{first}-{end}.{content_digest(content)}.npz"
        # Not flushed: its name holds its hash, and two flushes per 64 small images take longer than drawing them.
        write_bytes(self.folder / name, content, lasting=False)
        self.storage.push(f"{self.relative}/{name}")
        for other_end, other in self.names(here=True).get(first, ()):
            if other_end < end:
                self._remove(other)

    def _remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)
        self.storage.delete(f"{self.relative}/{name}")

    def clear(self) -> None:
        """Remove all blocks."""
        for ends in self.names().values():
            for _, name in ends:
                self._remove(name)

    def trim(self, most_bytes: int) -> int:
        """Remove blocks beyond `most_bytes`, keeping the first ones. Returns the number of images kept from the first
        one on."""
        kept, total = 0, 0
        for first, ends in sorted(self.names().items()):
            for end, name in ends:
                path = self.folder / name
                size = path.stat().st_size if path.exists() else 0
                if total + size > most_bytes:
                    self._remove(name)
                else:
                    total, kept = total + size, end if first == kept - kept % BLOCK else kept
        return kept


def folder_of(drawing: str) -> str:
    """Folder of a drawing (its digest), below the storage's root."""
    return f"{DRAWINGS}/{drawing}"


def features_folder(drawing: str, detector: Detector) -> str:
    """Folder of a drawing's features in a detector, whose name may come from a user and is made safe for a path."""
    name = re.sub(r"[^\w-]", "_", detector.name)[:40]
    version = list(versions_of(f"detector.{detector.name}").values())
    own = digest("detector", [detector.name, detector.sha256, detector.preprocessing, *version])
    return f"{folder_of(drawing)}/{name}-{own[:16]}"


class JointBlocks:
    """Blocks of features together with blocks of pixels, which are kept apart so that features alone are found without
    them. An image is there where both are."""

    def __init__(self, features: Blocks, pixels: Blocks) -> None:
        self.features, self.pixels = features, pixels
        self.storage, self.relative = features.storage, features.relative

    def names(self) -> tuple[Names, Names]:
        """Names of the features' blocks and of the pixels' blocks."""
        return self.features.names(), self.pixels.names()

    def has(self, end: int, first: int) -> bool:
        """Whether images `first` to `end` − 1 are there, judged by names."""
        return self.features.has(end, first) and self.pixels.has(end, first)

    def load(self, count: int) -> dict[int, Arrays]:
        """First image → arrays of each whole block among the first `count` images."""
        names = self.names()
        found = {first: self.block(first, names) for first in sorted(names[0]) if first < count}
        return {first: arrays for first, arrays in found.items() if arrays is not None}

    def block(self, first: int, names: tuple[Names, Names] | None = None) -> Arrays | None:
        """Arrays of the images that both blocks at `first` hold; None where either is missing.

        Args:
            names: names of all blocks, where they have been listed.
        """
        own = names or self.names()
        pixels = self.pixels.block(first, own[1])
        features = None if pixels is None else self.features.block(first, own[0])
        if pixels is None or features is None:
            return None
        both = min(count_of(features), count_of(pixels))
        return {name: value[:both] for name, value in {**features, **pixels}.items()}

    def save(self, first: int, arrays: Arrays) -> None:
        """Write a block that begins at `first`."""
        self.pixels.save(first, {PIXELS: arrays[PIXELS]})
        self.features.save(first, {name: value for name, value in arrays.items() if name != PIXELS})

    def trim(self, most_bytes: int) -> int:
        """Remove blocks beyond `most_bytes` of each. Returns the number of images kept from the first one on."""
        return min(self.features.trim(most_bytes), self.pixels.trim(most_bytes))

    def clear(self) -> None:
        """Remove all blocks."""
        self.features.clear()
        self.pixels.clear()


FeatureBlocks = Blocks | JointBlocks


def feature_blocks(storage: Storage, drawing: str, detector: Detector) -> FeatureBlocks:
    """The blocks of a drawing (its digest) that hold what a detector reads of its images."""
    if not isinstance(detector, WithPixels):
        return Blocks(storage, features_folder(drawing, detector))
    features = Blocks(storage, features_folder(drawing, detector.inner))
    return JointBlocks(features, Blocks(storage, f"{folder_of(drawing)}/{PIXELS}"))


READING = Reading._fields


def to_arrays(reading: Reading) -> Arrays:
    """A detector's output as arrays by name."""
    return {name: part.numpy() for name, part in zip(READING, reading, strict=True) if part is not None}


def to_reading(arrays: Arrays) -> Reading:
    """The inverse of `to_arrays`."""
    parts = {name: torch.from_numpy(arrays[name]) for name in READING if name in arrays}
    return Reading(**parts)


def read_block(detector: Detector, images: Tensor) -> Reading:
    """Features of a block's images (B ≤ 64, 3, H, W) uint8, from a forward pass of exactly 64 images."""
    return read_padded(detector, images, BLOCK)


def count_of(arrays: Arrays) -> int:
    """Number of images in a block."""
    return len(next(iter(arrays.values())))


def joined(parts: Sequence[Arrays]) -> Arrays:
    """Arrays of consecutive images, concatenated."""
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def first_images(storage: Storage, drawing: str, count: int = BLOCK) -> Tensor | None:
    """The first images of a drawing, (≤ 64, 3, H, W) uint8; None where none are kept."""
    found = Blocks(storage, f"{folder_of(drawing)}/{IMAGES}").load(1)
    if 0 not in found:
        return None
    return torch.from_numpy(found[0]["images"])[:count]


def save_samples(storage: Storage, drawing: str, count: int, path: Path) -> bool:
    """Write the first images of a drawing as one PNG, small images enlarged. Returns False where none are kept."""
    images = first_images(storage, drawing, count)
    if images is None:
        return False
    save_grid(from_uint8(images), path, scale=max(1, 64 // images.shape[-1]))
    return True
