"""A sampling job: many images of one model, drawn in passes that survive a kill, into the drawings of a storage.

Image i starts from noise keyed by (seed, i), so neither the number of workers nor an interruption changes an image.
Images are kept as a drawing's blocks (see `pforce.trial.draw`): an evaluation of the same drawing reads them there, and
a job for a drawing that an evaluation made draws only the missing images.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pforce import seeding
from pforce.base.errors import InputError, require
from pforce.base.files import read_whole, write_json
from pforce.base.foreign import parse_object
from pforce.images import to_uint8
from pforce.models.autoencoder import Decoder, load_decoder
from pforce.records.contents import label_cycle
from pforce.records.identity import canonical_sampler
from pforce.records.parts import Request
from pforce.sampling import Sampler
from pforce.sampling.trace import Trace
from pforce.storage import Storage
from pforce.trial.draw import BLOCK, IMAGES, Arrays, Blocks, Span, count_of, folder_of, joined, spans_to_draw
from pforce.trial.source import Source, SourceError, Weights, load_source

RECORD, LATENTS, MAPS = "job.json", "latents", "maps"


class JobError(InputError, ValueError):
    """A job's folder holds other images. The message says what differs."""


@dataclass(frozen=True)
class Job:
    """A sampling job: a model, a sampler and a number of images."""

    source: str
    """Path of the model, as `load_source` reads it."""
    sha256: str
    """SHA-256 of the model's configuration and weights, which must be unchanged when the source is read again."""
    sampler: Sampler
    classes: tuple[int, ...]
    """Classes of the images in turn: image i has class classes[i mod len(classes)]."""
    count: int
    """Number of images."""
    storage: str
    """URI of the storage that keeps the drawing."""
    seed: int = 0
    batch: int = BLOCK
    """Images per forward pass."""
    maps: bool = False
    """Keep uncertainty and timestep maps."""
    weights: Weights = "ema"
    heads: int | None = None
    """Attention heads of an original SiT of unusual size."""
    decoder: str | None = None
    """Folder of an autoencoder that decodes the model's latents to pixels; None keeps the model's own output."""
    decoder_sha256: str | None = None
    """SHA-256 of the decoder's folder."""
    pixels: bool = True
    """Whether the output is images, not latents."""

    def __post_init__(self) -> None:
        require(self.count >= 1, "count", self.count, "≥ 1 image")
        require(self.batch >= 1, "batch", self.batch, "≥ 1 image")
        require(self.seed >= 0, "seed", self.seed, "≥ 0")
        require(len(self.classes) > 0, "classes", self.classes, "at least one class")

    @cached_property
    def request(self) -> Request:
        """The job as a request for the model, like an evaluation's."""
        return Request(
            images=self.count,
            seed=self.seed,
            sampler=canonical_sampler(self.sampler),
            labels=label_cycle(self.classes),
            decoder=self.decoder_sha256,
        )

    @property
    def identity(self) -> str:
        """Digest of the drawing: equal for an evaluation of the same images."""
        return self.request.drawing(self.sha256).digest

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the drawing's folders in which its output is kept."""
        return (IMAGES if self.pixels else LATENTS, *([MAPS] if self.maps else []))

    def record(self) -> dict[str, Any]:
        """Everything that determines the images, as plain data. The number of images is not part of it, so a job can be
        extended."""
        return {
            "sha256": self.sha256,
            "sampler": self.sampler.canonical(),
            "classes": list(self.classes),
            "seed": self.seed,
            "batch": self.batch,
            "maps": self.maps,
            "decoder": self.decoder_sha256,
        }


class Drawn(NamedTuple):
    """The images of one pass and their cost."""

    span: Span
    arrays: dict[str, Arrays]
    """Kind → arrays of these images: `images` (B, 3, H, W) uint8, or `latents` (B, C, H, W) float32; with maps also
    `timesteps` and `sigma`, (B, E, h, w)."""
    num_function_evaluations: int
    forward_passes: int
    seconds: float
    device: str
    """Name of the device that drew them."""


class Drawer:
    """Draws passes of a job with a model that is loaded once. SourceError where the model has changed."""

    def __init__(self, job: Job, device: torch.device) -> None:
        source = load_source(job.source, weights=job.weights, heads=job.heads)
        if source.sha256 != job.sha256:
            raise SourceError(
                f"{job.source} now holds other weights ({source.sha256[:12]}) than when the job began "
                f"({job.sha256[:12]}): give the checkpoint's own folder (step_…), or another output folder"
            )
        self.job, self.device = job, device
        self.model = source.model.to(device)
        self.decode = None if job.decoder is None else decoder_for(source, job.decoder, device)

    def __call__(self, span: Span) -> Drawn:
        job, config = self.job, self.model.config
        started = time.perf_counter()
        count = span.end - span.first
        y = torch.tensor([job.classes[i % len(job.classes)] for i in range(*span)], device=self.device)
        x0 = seeding.noise_for_images(job.seed, span.first, count, (config.channels, *config.image_size), self.device)
        trace = Trace(config.image_size, config.patch)
        x1 = job.sampler.sample(self.model, x0, y, seed=job.seed, first=span.first, callback=trace)
        pixels = x1 if self.decode is None else self.decode(x1)
        arrays: dict[str, Arrays] = {}
        if job.pixels:
            arrays[IMAGES] = {"images": to_uint8(pixels).cpu().numpy()}
        else:
            arrays[LATENTS] = {"latents": pixels.float().cpu().numpy()}
        if job.maps:
            arrays[MAPS] = {"timesteps": trace.timesteps.numpy()}
            if trace.sigma is not None:
                arrays[MAPS]["sigma"] = trace.sigma.numpy()
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return Drawn(span, arrays, trace.evaluations, trace.forward_passes, time.perf_counter() - started, name)


def decoder_for(source: Source, path: str, device: torch.device) -> Decoder:
    """The decoder for a model's latents. SourceError for a model of pixels; AutoencoderError as in `load_decoder`."""
    channels = source.model.config.channels
    if channels == 3:
        raise SourceError(f"decoder {path}: {source.path} samples pixels, not latents: leave the decoder out")
    return load_decoder(path, device, channels=channels)


def claim(folder: Path, job: Job) -> None:
    """Make the folder of a job's outputs, or check that it is this job's. JobError names the differences."""
    path = folder / RECORD
    if not path.exists():
        write_json(path, job.record())
        return
    there, now = _flat(parse_object(read_whole(path))), _flat(job.record())
    differing = [key for key in {**there, **now} if there.get(key) != now.get(key)]
    if differing:
        told = "; ".join(f"{key} {there.get(key)!r}, now {now.get(key)!r}" for key in differing)
        raise JobError(f"{folder}: holds images of another request ({told}): choose another output folder")


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in record.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def blocks_of(job: Job) -> dict[str, Blocks]:
    """Kind of output → its blocks."""
    storage = Storage.open(job.storage)
    return {kind: Blocks(storage, f"{folder_of(job.identity)}/{kind}") for kind in job.kinds}


def ends_of(job: Job, blocks: Iterable[int]) -> dict[int, int]:
    """First image → end of the images that are kept, for each of the given blocks."""
    several = [(kept, kept.names()) for kept in blocks_of(job).values()]
    ends: dict[int, int] = {}
    for first in blocks:
        found = [kept.block(first, names) for kept, names in several]
        ends[first] = min(first + (0 if arrays is None else count_of(arrays)) for arrays in found)
    return ends


def missing(job: Job) -> list[list[Span]]:
    """Passes whose images are missing or damaged, grouped by the blocks that they fill."""
    return spans_to_draw(job.count, job.batch, ends_of(job, range(0, job.count, BLOCK)))


def blocks_in(group: Sequence[Span]) -> range:
    """First images of the blocks that a group of passes fills."""
    return range(group[0].first // BLOCK * BLOCK, group[-1].end, BLOCK)


class Keeper:
    """Takes passes in any order and keeps each block's images without gaps from its start on."""

    def __init__(self, job: Job, ends: dict[int, int]) -> None:
        self.blocks, self.ends = blocks_of(job), dict(ends)
        self.waiting: dict[int, dict[int, dict[str, Arrays]]] = {}
        """Block → first image → arrays of passes that wait for earlier images of the block."""

    def take(self, drawn: Drawn) -> None:
        """Keep the images of a pass; each block appears whole."""
        for first in range(drawn.span.first // BLOCK * BLOCK, drawn.span.end, BLOCK):
            low, high = max(first, drawn.span.first), min(first + BLOCK, drawn.span.end)
            rows = slice(low - drawn.span.first, high - drawn.span.first)
            part = {kind: {key: value[rows] for key, value in arrays.items()} for kind, arrays in drawn.arrays.items()}
            self.waiting.setdefault(first, {})[low] = part
            self._keep(first)

    def _keep(self, first: int) -> None:
        waiting, found = self.waiting[first], []
        end = start = self.ends.get(first, first)
        while end in waiting:
            found.append(waiting.pop(end))
            end += count_of(next(iter(found[-1].values())))
        if not found:
            return
        for kind, blocks in self.blocks.items():
            before = blocks.block(first)
            there = 0 if before is None else count_of(before)
            if first + there >= end:
                continue  # an evaluation has kept more of the images than of the maps
            if first + there < start:
                raise JobError(f"{blocks.folder}: lacks images {first + there} to {start - 1}, which were there when "
                               "the command began: run it again")  # fmt: skip
            parts = [] if before is None else [{key: value[: start - first] for key, value in before.items()}]
            blocks.save(first, joined([*(part for part in parts if count_of(part)), *(part[kind] for part in found)]))
        self.ends[first] = end


def drawn_batches(job: Job, keys: Sequence[str] | None = None) -> Iterator[dict[str, NDArray[Any]]]:
    """All images of a job in order, with one block in memory at a time: all their arrays or those named by `keys`.

    The arrays are `images` (B, H, W, 3) uint8 or `latents` (B, C, H, W) float32, `labels` (B,), and with maps
    `timesteps` and `sigma`, (B, E, h, w).
    """
    several = [(blocks, blocks.names()) for blocks in blocks_of(job).values()]
    for first in range(0, job.count, BLOCK):
        rows = min(BLOCK, job.count - first)
        found: dict[str, NDArray[Any]] = {
            "labels": np.array([job.classes[i % len(job.classes)] for i in range(first, first + rows)])
        }
        for blocks, names in several:
            arrays = blocks.block(first, names)
            if arrays is None or count_of(arrays) < rows:
                raise JobError(f"{blocks.folder}: lacks images {first} to {first + rows - 1}: run the command again")
            found |= {key: value[:rows] for key, value in arrays.items()}
        if IMAGES in found:
            found[IMAGES] = found[IMAGES].transpose(0, 2, 3, 1)
        yield {key: value for key, value in found.items() if keys is None or key in keys}


def recorded_batch(folder: Path) -> int | None:
    """The batch of the job whose outputs a folder holds; None where there are none. JobError where its record cannot be
    read."""
    try:
        return int(parse_object(read_whole(folder / RECORD))["batch"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, OSError) as error:
        raise JobError(f"{folder / RECORD}: cannot be read ({error}): choose another output folder") from error
