"""`pforce sample`: draw images, maps and animations of a trained model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console
from rich.progress import Progress

from pforce import seeding
from pforce.base.console import DONE, SOME_FAILED, STOPPED, duration, make_console
from pforce.base.errors import ConfigError, require, require_applies
from pforce.base.files import folder_hash, write_json
from pforce.base.words import counted
from pforce.commands.options import SamplerOptions, sampler_of
from pforce.data import Manifest, ensure
from pforce.metrics.names import CostName
from pforce.orchestration.drive import WorkFailed
from pforce.orchestration.find import find_model
from pforce.orchestration.options import StoreOptions, WorkerOptions, check_folder
from pforce.orchestration.sample import run_job
from pforce.records.ledger import Ledger
from pforce.records.provenance import provenance
from pforce.results import drawn
from pforce.sampling import check_sampler, count_flops
from pforce.sampling.trace import Trace
from pforce.storage import Storage
from pforce.trial.drawn_images import record_drawing
from pforce.trial.jobs import Job, claim, decoder_for, recorded_batch
from pforce.trial.source import Source
from pforce.trial.subject import Subject
from pforce.trial.task import Spent

DEFAULT_BATCH = 64
SAMPLES = "samples"
"""Default output folder, below the storage."""
Output = Literal["grid", "images", "npz"]


@dataclass(frozen=True, kw_only=True)
class Arguments(SamplerOptions, WorkerOptions, StoreOptions):
    """Draw images of a trained model. The same command resumes a stopped call; the same seed gives the same images."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A trial's folder or checkpoint, a .safetensors or published .ckpt file, an MLflow run id, a trained experiment,
    or best:SWEEP such as best:ltg_grid (the run of a sweep with the smallest distance)."""
    out: Path | None = None
    """Output folder; a folder holds the images of one request. Default: samples below the storage."""
    count: int = 64
    """Number of images."""
    classes: tuple[str, ...] = ()
    """Classes, taken in turn: numbers, or names where the model's data set is known. Default: all."""
    captions: tuple[str, ...] = ()
    """Captions, for text-conditioned models."""
    seed: int = 0
    """Seed of the noise. Image i starts from the noise of (seed, i), whatever the batch and the number of workers."""
    save: tuple[Output, ...] = ("grid",)
    """grid: the first 64 images as one PNG. images: one PNG per image. npz: all images, as ADM's evaluator reads them
    (uint8 NHWC)."""
    save_maps: bool = False
    """Write each patch's timestep and uncertainty at every evaluation (maps.npz), and a picture of those of the first
    images."""
    animate: bool = False
    """Write a GIF of the first images, with their timestep and uncertainty maps side by side."""
    show: int = 4
    """Number of images in the picture of maps and in the animation."""
    decoder: Path | None = None
    """Folder of the autoencoder, in diffusers' format, for models of latents (extra `latents`). Without it, the latents
    are written."""
    weights: Literal["ema", "raw"] = "ema"
    """Averaged (ema) or raw weights, for a checkpoint of pforce."""
    heads: int | None = None
    """Number of attention heads, for an original SiT of unusual size."""
    batch: int | None = None
    """Images per forward pass; changes the images by rounding only. Default: the batch of the folder's earlier images,
    or 64."""


def class_numbers(names: tuple[str, ...], source: Source) -> tuple[int, ...]:
    """Numbers of classes. ConfigError naming the first that the model does not have."""
    classes = source.model.config.classes
    if not names:
        return tuple(range(classes))
    known: dict[str, int] = {}
    if not all(name.lstrip("-").isdigit() for name in names) and source.experiment is not None:
        found = Manifest.load(ensure(source.experiment.data, path_from=source.path)).classes
        known = {name.lower(): number for number, name in enumerate(found)}
    numbers = []
    for name in names:
        number = int(name) if name.lstrip("-").isdigit() else known.get(name.lower(), -1)
        if not 0 <= number < classes:
            told = f", or one of {', '.join(known)}" if known else ""
            raise ConfigError(f"classes: {name}: must be a number from 0 to {classes - 1}{told}")
        numbers.append(number)
    return tuple(numbers)


def _show_first(a: Arguments, job: Job, source: Source, folder: Path, console: Console) -> None:
    """Write pictures of the first images' maps. The images are drawn again, now with every state kept."""
    config = source.model.config
    images = min(a.show, job.count)
    y = torch.tensor([job.classes[i % len(job.classes)] for i in range(images)])
    x0 = seeding.noise_for_images(job.seed, 0, images, (config.channels, *config.image_size))
    trace = Trace(config.image_size, config.patch, images=True)
    x1 = job.sampler.sample(source.model, x0, y, seed=job.seed, first=0, callback=trace)
    assert trace.sigma is not None  # checked before anything was drawn
    decode = decoder_for(source, job.decoder, torch.device("cpu")) if job.decoder else lambda pixels: pixels
    if a.save_maps:
        drawn.maps_figure(decode(x1), trace.timesteps, trace.sigma, folder / "maps.png")
        console.print(f"{folder / 'maps.png'}: image, σ and timesteps of the first {images}")
    if a.animate:
        states = torch.stack([decode(state) for state in trace.images], dim=0)
        drawn.animation(states, trace.timesteps, trace.sigma, folder / "sampling.gif")
        console.print(f"{folder / 'sampling.gif'}: image, timesteps and σ of the first {images}")


@contextmanager
def _exporting(console: Console, job: Job, what: str) -> Iterator[drawn.Told]:
    """Progress bar, shown on a terminal only."""
    with Progress(console=console, transient=True, disable=not console.is_interactive) as progress:
        task = progress.add_task(what, total=job.count)
        yield lambda done: progress.update(task, completed=done)


def _write(a: Arguments, job: Job, folder: Path, console: Console, *, pixels: bool) -> None:
    """Write the requested outputs. Latents have no pictures: they are written as npz."""
    if "npz" in a.save or not pixels:
        with _exporting(console, job, "writing samples.npz") as told:
            drawn.write_npz(job, folder / "samples.npz", told)
        what = "images (uint8 NHWC arr_0)" if pixels else "latents (float32 NCHW); --decoder makes images of them"
        console.print(f"{folder / 'samples.npz'}: {job.count:,} {what}")
    if a.save_maps:
        drawn.write_maps(job, folder / "maps.npz")
        console.print(f"{folder / 'maps.npz'}: timesteps and σ of every patch at every evaluation")
    if "images" in a.save and pixels:
        with _exporting(console, job, "writing PNG files") as told:
            drawn.write_images(job, folder / "images", told)
        console.print(f"{folder / 'images'}: {counted(job.count, 'PNG file')}")
    if "grid" in a.save and pixels:
        drawn.write_grid(job, folder / "grid.png")
        console.print(f"{folder / 'grid.png'}: the first {min(job.count, drawn.GRID_IMAGES)}")


def _tell(job: Job, source: Source, spent: Spent, folder: Path, console: Console, *, seconds: float) -> None:
    """Print the cost of the images, and write it to a file beside them."""
    flops = count_flops(source.model.config, job.sampler)
    record: dict[str, object] = {
        **source.about(), "sampler": job.sampler.canonical(), "seed": job.seed, "images": job.count,
        CostName.NFE: job.sampler.schedule().num_function_evaluations, CostName.FLOPS: flops,
    }  # fmt: skip
    if spent.images:
        per_image = spent.sampling_seconds / spent.images
        record |= {
            CostName.FORWARD_PASSES: spent.forward_passes,
            CostName.SAMPLING_SECONDS: per_image,
            "device": spent.device,
        }
        console.print(
            f"{counted(spent.images, 'image')} in {duration(seconds)}: {spent.num_function_evaluations} NFE, "
            f"{spent.forward_passes} forward passes, {flops / 1e9:.2f} GFLOPs and {per_image:.4f} s of a "
            "worker per image",
            soft_wrap=True,
        )
        write_json(folder / "cost.json", record)
    else:
        console.print("All images were there already.")


def _check(a: Arguments, source: Source) -> bool:
    """Raise FieldError or ConfigError where this model cannot give these outputs; return whether images are pixels."""
    for name, asked in (("save_maps", a.save_maps), ("animate", a.animate)):
        possible = not asked or source.model.config.difficulty_head
        require_applies(possible, name, asked, "to a SiT, which predicts no uncertainty")
    if a.decoder is not None:
        decoder_for(source, str(a.decoder), torch.device("cpu"))  # refused here, before anything is drawn
    pixels = source.model.config.channels == 3 or a.decoder is not None
    require_applies(pixels or not a.animate, "animate", True, "to latents without a --decoder")
    return pixels


def _record(job: Job, source: Source, spent: Spent, storage: Storage, *, started: float, workers: int) -> None:
    """Record the cost of the drawing where an evaluation finds it."""
    devices = float(torch.get_num_threads() if spent.device == "cpu" else workers)  # workers share the cores
    subject = Subject(
        source.model, source.sha256, torch.device("cpu"), sampler=job.sampler, devices=devices,
        provenance={**provenance(), "device": spent.device},
    )  # fmt: skip
    record_drawing(
        job.request, subject, Ledger(storage), started=started, images=spent.images, passes=spent.forward_passes,
        sampling=spent.sampling_seconds, seconds=time.time() - started,
    )  # fmt: skip


def sample(a: Arguments) -> int:
    """Draw images of a trained model: grids, files for evaluators, maps and animations."""
    console = make_console()
    if a.captions:
        raise ConfigError(
            "captions: this version has no text-conditioned models; give --classes (numbers, or names such as 'Animals "
            "& Nature')"
        )
    require(a.show >= 1, "show", a.show, "≥ 1 image")
    source = find_model(a.model, storage=a.storage, tracking_uri=a.tracking_uri, weights=a.weights, heads=a.heads)
    sampler = sampler_of(a, source)
    check_sampler(sampler, source.model.config)
    pixels = _check(a, source)
    storage = a.place
    folder = check_folder(a.out, "--out") if a.out is not None else storage.root / SAMPLES
    storage.check()
    batch = a.batch if a.batch is not None else recorded_batch(folder) or min(DEFAULT_BATCH, a.count)
    job = Job(
        source=str(source.path), sha256=source.sha256, sampler=sampler, classes=class_numbers(a.classes, source),
        count=a.count, storage=storage.uri, seed=a.seed, batch=batch, maps=a.save_maps, weights=a.weights,
        heads=a.heads, decoder=str(a.decoder.absolute()) if a.decoder else None,
        decoder_sha256=folder_hash(a.decoder) if a.decoder else None, pixels=pixels,
    )  # fmt: skip
    seen = f", {source.images_seen:,} images seen" if source.images_seen is not None else ""
    console.print(
        f"{source.path} ({source.kind}, {source.weights} weights{seen}): {counted(job.count, 'image')}, "
        f"{sampler.name}, {sampler.schedule().num_function_evaluations} NFE", soft_wrap=True,
    )  # fmt: skip
    if sampler.unspent:
        console.print(f"note: {sampler.unspent}")
    claim(folder, job)
    started = time.time()
    try:
        spent = run_job(job, console, a.workforce)
    except (KeyboardInterrupt, SystemExit) as stopped:  # Ray's own SIGTERM handler, while it starts, exits
        console.print(f"Stopped by {stopped}; the same command resumes from here.")
        return STOPPED
    except WorkFailed as error:
        console.print(f"FAILED: {error}", soft_wrap=True)
        return SOME_FAILED
    seconds = time.time() - started
    if spent.images and pixels:
        _record(job, source, spent, storage, started=started, workers=a.workers)
    _tell(job, source, spent, folder, console, seconds=seconds)
    _write(a, job, folder, console, pixels=pixels)
    if (a.save_maps or a.animate) and pixels:
        _show_first(a, job, source, folder, console)
    if a.out is None and storage.remote:
        storage.push(SAMPLES)
        console.print(f"Also in {storage}: {SAMPLES}", soft_wrap=True)
    return DONE
