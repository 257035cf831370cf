"""A sampling job: many images of one model, drawn in batches that survive a kill.

A batch is known by its number. Its images start from noise keyed by (seed, image index), and it always has the
same size (the last one is drawn whole and cut), so neither the number of workers nor an interruption changes an
image. Each finished batch is a file that appears whole; a job goes on with those that are missing.

Folder of a job: `job.json` (what is drawn), `batches/00000000.npz`, and the outputs made from them.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pforce import seeding
from pforce.files import write_whole
from pforce.images import to_uint8
from pforce.models.autoencoder import Decoder, load_decoder
from pforce.sampling import SamplerConfig
from pforce.sampling.trace import Trace
from pforce.sources import Source, SourceError, Weights, load_source
from pforce.validation import InputError, require

RECORD, BATCHES = "job.json", "batches"


class JobError(InputError, ValueError):
    """A job's folder holds something else. The message says what differs."""


@dataclass(frozen=True)
class Job:
    """What is drawn."""

    source: str
    """Path of the model, as `load_source` reads it."""
    sha256: str
    """Of the model's configuration and weights: the source must still be this one when it is read again."""
    sampler: SamplerConfig
    classes: tuple[int, ...]
    """Image i is of class classes[i mod their number]."""
    count: int
    """Images."""
    seed: int = 0
    batch: int = 64
    """Images a forward pass."""
    maps: bool = False
    """Keep uncertainty and timestep maps."""
    weights: Weights = "ema"
    heads: int | None = None
    """Attention heads of an original SiT of unusual size."""
    decoder: str | None = None
    """Folder of an autoencoder whose decoder makes pixels of a model's latents; None keeps what the model samples."""

    def __post_init__(self) -> None:
        require(self.count >= 1, "count", self.count, "≥ 1 image")
        require(self.batch >= 1, "batch", self.batch, "≥ 1 image")
        require(self.seed >= 0, "seed", self.seed, "≥ 0")
        require(len(self.classes) > 0, "classes", self.classes, "at least one class")

    @property
    def batches(self) -> int:
        """How many batches make the images."""
        return -(-self.count // self.batch)

    def record(self) -> dict[str, Any]:
        """What determines the images, as plain data. The count is not part of it: a job can be made longer."""
        return {
            "sha256": self.sha256,
            "sampler": self.sampler.canonical(),
            "classes": list(self.classes),
            "seed": self.seed,
            "batch": self.batch,
            "maps": self.maps,
            "decoder": self.decoder,
        }

    @property
    def identity(self) -> str:
        """Hash of the record."""
        return hashlib.blake2b(json.dumps(self.record(), sort_keys=True).encode(), digest_size=16).hexdigest()


class Drawn(NamedTuple):
    """A finished batch and what it cost."""

    number: int
    arrays: dict[str, NDArray[Any]]
    """`images` (B, H, W, 3) uint8, or `latents` (B, C, H, W) float32; with maps `timesteps`, `sigma` (B, E, h, w)."""
    num_function_evaluations: int
    forward_passes: int
    seconds: float
    device: str
    """That drew it."""


class Drawer:
    """Draws batches of a job. Loads the model once. SourceError where it is no longer the job's."""

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

    def __call__(self, number: int) -> Drawn:
        job, config = self.job, self.model.config
        started = time.perf_counter()
        first = number * job.batch
        labels = [job.classes[i % len(job.classes)] for i in range(first, first + job.batch)]
        y = torch.tensor(labels, device=self.device)
        x0 = seeding.noise_for_images(job.seed, first, job.batch, (config.channels, *config.image_size), self.device)
        trace = Trace(config.image_size, config.patch)
        x1 = job.sampler.sample(self.model, x0, y, seed=job.seed, first=first, callback=trace)
        rows = slice(0, job.count - first)  # the last batch is drawn whole: its size must not change its images
        arrays: dict[str, NDArray[Any]]
        pixels = x1 if self.decode is None else self.decode(x1)
        if pixels.shape[1] == 3:
            arrays = {"images": to_uint8(pixels[rows]).permute(0, 2, 3, 1).cpu().numpy()}
        else:
            arrays = {"latents": pixels[rows].float().cpu().numpy()}
        if job.maps:
            arrays["timesteps"] = trace.timesteps[rows].numpy()
            if trace.sigma is not None:
                arrays["sigma"] = trace.sigma[rows].numpy()
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return Drawn(number, arrays, trace.evaluations, trace.forward_passes, time.perf_counter() - started, name)


def decoder_for(source: Source, path: str, device: torch.device) -> Decoder:
    """The decoder for a model's latents. SourceError for a model of pixels; AutoencoderError as `load_decoder`."""
    channels = source.model.config.channels
    if channels == 3:
        raise SourceError(f"decoder {path}: {source.path} samples pixels, not latents: leave the decoder out")
    return load_decoder(path, device, channels=channels)


def _batch_path(folder: Path, number: int) -> Path:
    return folder / BATCHES / f"{number:08d}.npz"


def claim(folder: Path, job: Job) -> None:
    """Make the job's folder, or check that it is this job's. JobError naming what differs."""
    path = folder / RECORD
    if not path.exists():
        if (folder / BATCHES).exists():
            raise JobError(f"{folder}: holds batches without a {RECORD}: choose another output folder")
        write_whole(path, lambda scratch: _write_json(scratch, job))
        return
    there, now = _flat(json.loads(path.read_text())), _flat(job.record())
    differing = [key for key in {**there, **now} if there.get(key) != now.get(key)]
    if differing:
        told = "; ".join(f"{key} {there.get(key)!r}, now {now.get(key)!r}" for key in differing)
        raise JobError(f"{folder}: holds images of another request ({told}): choose another output folder")


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in record.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _write_json(path: Path, job: Job) -> None:
    path.write_text(json.dumps(job.record(), indent=1))


def missing(folder: Path, job: Job) -> list[int]:
    """Numbers of the batches that are not on disk, or hold too few images (the job was made longer)."""
    found = []
    for number in range(job.batches):
        path = _batch_path(folder, number)
        if not path.exists() or len(load_batch(folder, job, number, ("labels",))["labels"]) < _rows(job, number):
            found.append(number)
    return found


def _rows(job: Job, number: int) -> int:
    return min(job.batch, job.count - number * job.batch)


def save_batch(folder: Path, job: Job, drawn: Drawn) -> None:
    """Write a batch; it appears whole."""
    first = drawn.number * job.batch
    labels = np.array([job.classes[i % len(job.classes)] for i in range(first, first + _rows(job, drawn.number))])

    def write(scratch: Path) -> None:
        with scratch.open("wb") as file:
            np.savez(file, labels=labels, **drawn.arrays)  # type: ignore[arg-type]  # the stubs know no names

    write_whole(_batch_path(folder, drawn.number), write)


def load_batch(folder: Path, job: Job, number: int, keys: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """The arrays of a batch (or some of them), cut to the job's count, with its `labels`."""
    with np.load(_batch_path(folder, number)) as arrays:
        return {key: arrays[key][: _rows(job, number)] for key in keys or arrays.files if key in arrays.files}


def drawn_batches(folder: Path, job: Job, keys: Sequence[str] | None = None) -> Iterator[dict[str, NDArray[Any]]]:
    """All batches in order, one in memory at a time; all their arrays or some of them."""
    for number in range(job.batches):
        yield load_batch(folder, job, number, keys)


def recorded_batch(folder: Path) -> int | None:
    """The batch of the job whose folder this is; None where it is none."""
    try:
        return int(json.loads((folder / RECORD).read_text())["batch"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, OSError) as error:
        raise JobError(f"{folder / RECORD}: cannot be read ({error}): choose another output folder") from error
