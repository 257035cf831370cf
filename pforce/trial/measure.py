"""The way to measure a model: what is missing of a request is drawn and measured, and becomes records.

A trial calls it on the weights in its memory, `pforce evaluate`, evaluation apart from the trainings and the search of
samplers in their workers or in the driver: the same function, the same numbers. It is lazy (an image is drawn where a
metric needs it) and knows nothing of where it runs.
"""

from __future__ import annotations

import hashlib
import io
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pforce.data import Batch
from pforce.metrics.config import EvaluationConfig
from pforce.metrics.detectors import Detector, Reading
from pforce.metrics.distances import distances
from pforce.metrics.features import FeatureSet, collect
from pforce.metrics.held_out import (
    Arrays,
    Found,
    HeldOutData,
    NotFinite,
    held_out_data,
    measure_context,
    measure_difficulty,
    measure_loss,
)
from pforce.metrics.names import HELD_OUT_IMAGES, CostName
from pforce.metrics.reference import ReferenceStatistics
from pforce.models import PatchForcingTransformer
from pforce.models.autoencoder import Decoder
from pforce.parallel import ALONE, Workers
from pforce.records.lease import Wait, patient, shared
from pforce.records.ledger import Ledger
from pforce.records.parts import Analysis, Part, Request, diverged_part
from pforce.records.record import Record
from pforce.records.row import WHY
from pforce.sampling import Euler, Sampler, count_flops
from pforce.trial.draw import (
    BLOCK,
    IMAGES,
    KEPT_BYTES,
    Blocks,
    Span,
    count_of,
    draw,
    features_folder,
    folder_of,
    joined,
    read_block,
    spans_to_draw,
    to_arrays,
    to_reading,
)
from pforce.trial.watch import UNSEEN, Phase, Progress, Watch, quiet

ARRAYS = "arrays.npz"
"""File of a held-out measurement, for figures."""


def _within(progress: Progress, phase: Phase, number: int, count: int, share: float) -> None:
    """Report a share of one of several measurements."""
    progress(phase, (number + share) / count)


@dataclass
class Subject:
    """A model at hand, and what it is measured with. What is read late is a function."""

    model: PatchForcingTransformer
    """On the device, in evaluation mode."""
    weights: str
    """Hash of its tensors."""
    device: torch.device
    sampler: Sampler = field(default_factory=Euler)
    labels: Callable[[], Tensor] = lambda: torch.zeros(1, dtype=torch.long)
    """(M,); drawn image i is of class labels[i mod M]."""
    detector: Callable[[], Detector] | None = None
    """On the device."""
    reference: Callable[[], ReferenceStatistics] | None = None
    held_out: Callable[[], Batch] | None = None
    batch: int = BLOCK
    """Images per forward pass."""
    decode: Decoder | None = None
    devices: float = 1.0
    """Devices that this process stands for, for device-seconds."""
    provenance: Mapping[str, str] = field(default_factory=dict)


class Missing(NamedTuple):
    """What has to be measured of a request."""

    metrics: tuple[str, ...]
    held_out: tuple[tuple[Analysis, str], ...]

    def __bool__(self) -> bool:
        return bool(self.metrics or self.held_out)


def missing(request: Request, weights: str, ledger: Ledger) -> Missing:
    """The parts of a request that no record has."""
    images, held_out = request.image_parts(weights), request.held_out_parts(weights)
    there = ledger.find([*images.values(), *held_out.values()])
    return Missing(
        tuple(name for name, part in images.items() if part.digest not in there),
        tuple(key for key, part in held_out.items() if part.digest not in there),
    )


class _Block(NamedTuple):
    """A block that was drawn by one worker."""

    first: int
    reading: Reading
    drawn: int
    """Images of it that were drawn now."""
    num_function_evaluations: int
    forward_passes: int
    seconds: float


def measure(
    request: Request,
    subject: Subject,
    ledger: Ledger,
    *,
    workers: Workers = ALONE,
    watch: Watch = UNSEEN,
    trim: bool = True,
) -> dict[str, Record] | None:
    """Draw and measure what is missing of a request, put it into the ledger, and return all of its records.

    Args:
        workers: those that share the images, each with the same model and called by all of them; the first writes
            records and gets them, the others None. Their number changes no digit.
        trim: of the features keep no more than KEPT_BYTES.
    """
    todo = workers.first_does(lambda: missing(request, subject.weights, ledger))
    if workers.first and todo.held_out:
        _measure_held_out(request, subject, ledger, todo.held_out, watch=watch)
    if todo.metrics:
        _measure_images(request, subject, ledger, todo.metrics, workers=workers, watch=watch)
        if trim and workers.first:
            assert subject.detector is not None
            folder = features_folder(request.drawing(subject.weights).digest, subject.detector())
            Blocks(ledger.storage, folder).trim(KEPT_BYTES)
    return ledger.find(request.parts(subject.weights)) if workers.first else None


# --- held-out images ---------------------------------------------------------------------------------------------


def _measure_held_out(
    request: Request,
    subject: Subject,
    ledger: Ledger,
    wanted: Sequence[tuple[Analysis, str]],
    *,
    watch: Watch,
) -> None:
    assert subject.held_out is not None
    images = subject.held_out()
    data = held_out_data(
        images.images, images.labels, seed=request.seed, batch=subject.batch, device=subject.device
    )  # fmt: skip
    parts = request.held_out_parts(subject.weights)
    kinds = list(dict.fromkeys(analysis for analysis, _ in wanted))

    def left(kind: Analysis) -> list[str]:
        several = [time_key for analysis, time_key in wanted if analysis == kind]
        ledger.look_again([parts[kind, time_key] for time_key in several])
        return [time_key for time_key in several if ledger.get(parts[kind, time_key]) is None]

    for kind in shared(
        ledger.storage, kinds, key=lambda kind: f"held_out/{subject.weights[:32]}/{kind}",
        done=lambda kind: not left(kind), doing="measuring on held-out images", wait=watch.waits,
    ):  # fmt: skip
        times = left(kind)
        for number, time_key in enumerate(times):
            within = partial(_within, watch.progress, _SAID[kind], number, len(times))
            within(0.0)
            _measure_one(
                parts[kind, time_key], kind, time_key, subject=subject, data=data, ledger=ledger, progress=within
            )
            within(1.0)


def _measure_one(
    part: Part, kind: Analysis, time_key: str, *, subject: Subject, data: HeldOutData, ledger: Ledger,
    progress: Callable[[float], None],
) -> None:  # fmt: skip
    started, clock = time.time(), time.perf_counter()
    found: Found
    try:
        match kind:
            case "loss":
                found = measure_loss(subject.model, data)
            case "difficulty":
                found = measure_difficulty(subject.model, data, float(time_key))
            case "context":
                found = measure_context(subject.model, data, float(time_key), progress)
    except NotFinite as error:
        ledger.put(Record.of(
            diverged_part(part.digest), values={WHY: str(error)}, started=started, finished=time.time(),
            provenance=subject.provenance,
        ))  # fmt: skip
        raise
    seconds = time.perf_counter() - clock
    files = _keep(ledger, found.arrays)
    values = {**found.values, HELD_OUT_IMAGES: float(len(data.x1))}
    ledger.put(Record.of(
        part, values=values, undefined=found.undefined, files=files, notes=found.notes, started=started,
        finished=time.time(), provenance=subject.provenance,
        cost={"seconds": seconds, "device_seconds": seconds * subject.devices},
    ))  # fmt: skip


_SAID: dict[Analysis, Phase] = {"loss": "validation loss", "difficulty": "difficulty", "context": "context"}


def _keep(ledger: Ledger, arrays: Arrays) -> dict[str, str]:
    """Arrays as a file of the storage; what a record says of it. The file comes before the record."""
    if not arrays:
        return {}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # the stubs know no names
    content = buffer.getvalue()
    sha256 = hashlib.sha256(content).hexdigest()
    ledger.put_file(content, sha256)
    return {ARRAYS: sha256}


def arrays_of(ledger: Ledger, record: Record) -> Arrays | None:
    """The arrays of a held-out measurement; None where they are not kept (imported records) or damaged."""
    sha256 = record.files.get(ARRAYS)
    path = ledger.file(sha256) if sha256 else None
    if path is None:
        return None
    with np.load(path) as found:
        return {name: found[name] for name in found.files}


# --- drawn images ------------------------------------------------------------------------------------------------


def draw_blocks(
    request: Request,
    subject: Subject,
    detector: Detector,
    groups: Sequence[Sequence[Span]],
    *,
    kept: Mapping[int, Arrays],
    store: tuple[Blocks, Blocks],
    progress: Callable[[int], None] = lambda drawn: None,
    wait: Wait = patient,
) -> Iterator[_Block]:
    """Draw groups of passes, read them through the detector, keep and give each block as soon as it is whole.

    What other processes draw meanwhile is left to them: it is not given, but kept when this ends.

    Args:
        kept: blocks of which a part is there already.
        store: of the features, and of the images.
        wait: called while others draw the last of it.
    """
    features, _ = store
    own = shared(
        features.storage, groups, key=lambda group: f"{features.relative}/{group[0].first // BLOCK}",
        done=lambda group: features.has(group[-1].end, group[0].first), doing="drawing images", wait=wait,
    )  # fmt: skip
    for group in own:
        for block in draw_group(request, subject, detector, group, kept=kept, store=store):
            progress(block.drawn)
            yield block


def draw_group(
    request: Request, subject: Subject, detector: Detector, group: Sequence[Span], *, kept: Mapping[int, Arrays],
    store: tuple[Blocks, Blocks],
) -> Iterator[_Block]:  # fmt: skip
    """One group of passes of `draw_blocks`, whoever else may be at it."""
    features, images = store
    pixels: list[Tensor] = []
    nfe = passes = 0
    seconds = 0.0
    made = draw(
        subject.model, subject.sampler, subject.labels(), group, seed=request.seed, device=subject.device,
        decode=subject.decode,
    )  # fmt: skip
    for drawn in made:
        pixels.append(drawn.images)
        nfe, passes = drawn.num_function_evaluations, drawn.forward_passes
        seconds += drawn.seconds
    first, all_pixels = group[0].first, torch.cat(pixels)
    total = len(all_pixels)
    for start in range(0, total, BLOCK):
        block = (first + start) // BLOCK * BLOCK
        part = all_pixels[start : start + BLOCK]
        arrays = to_arrays(read_block(detector, part))
        there = first + start - block
        before = kept.get(block) if there else None
        if there:
            if before is None or count_of(before) < there:
                raise ValueError(f"images {block} to {first + start - 1} of a drawing are not kept any more")
            arrays = joined([{key: value[:there] for key, value in before.items()}, arrays])
        features.save(block, arrays)
        if first + start == 0:
            images.save(0, {"images": part.cpu().numpy()})
        yield _Block(block, to_reading(arrays), len(part), nfe, passes, seconds * len(part) / total)


def _measure_images(
    request: Request,
    subject: Subject,
    ledger: Ledger,
    metrics: Sequence[str],
    *,
    workers: Workers,
    watch: Watch,
) -> None:
    assert subject.detector is not None
    assert subject.reference is not None
    detector = subject.detector()
    started, clock = time.time(), time.perf_counter()
    drawing = request.drawing(subject.weights)
    features = Blocks(ledger.storage, features_folder(drawing.digest, detector))
    pictures = Blocks(ledger.storage, f"{folder_of(drawing.digest)}/{IMAGES}")
    reference: ReferenceStatistics | None = None
    if workers.first:
        watch.progress("features of the reference", 0.0)
        reference = subject.reference()  # before anything is drawn: a broken one is found first

    def look() -> tuple[dict[int, Arrays], list[list[Span]]]:
        kept = features.load(request.images)
        read_pictures((features, pictures), detector, kept, request.images, subject.device)
        ends = {first: first + len(next(iter(arrays.values()))) for first, arrays in kept.items()}
        found = spans_to_draw(request.images, subject.batch, ends)
        if found and ledger.get(request.drawn(subject.weights)) is not None:
            again = sum(span.end - span.first for group in found for span in group)
            warnings.warn(
                f"{again:,} images were drawn before, but their features are not kept ({KEPT_BYTES >> 20} MB per "
                "drawing are): they are drawn again",
                stacklevel=2,
            )
        return kept, found

    kept, groups = workers.first_does(look)
    own = groups[workers.rank :: workers.count]
    to_draw = sum(span.end - span.first for group in own for span in group)
    done = 0

    def drew(count: int) -> None:
        nonlocal done
        done += count
        watch.progress("sampling", min(1.0, done / max(1, to_draw)))

    made = list(draw_blocks(
        request, subject, detector, own, kept=kept, store=(features, pictures), progress=drew, wait=watch.waits
    ))  # fmt: skip
    blocks = [block for part in workers.to_first(made) for block in part]
    if reference is None:
        return
    readings = {first: to_reading(arrays) for first, arrays in kept.items()}
    readings |= {block.first: block.reading for block in blocks}
    by_others = [first for first in range(0, request.images, BLOCK) if _short(readings.get(first), first, request)]
    if by_others:
        names = features.names()
        there = {first: arrays for first in by_others if (arrays := features.block(first, names)) is not None}
        readings |= {first: to_reading(arrays) for first, arrays in there.items()}
        ends = {first: first + len(reading.features) for first, reading in readings.items()}
        for group in spans_to_draw(request.images, subject.batch, ends):  # kept by others, and trimmed again
            again = draw_group(request, subject, detector, group, kept=there, store=(features, pictures))
            blocks += (several := list(again))
            readings |= {block.first: block.reading for block in several}
    record_drawing(
        request, subject, ledger, started=started, seconds=time.perf_counter() - clock,
        images=sum(block.drawn for block in blocks), passes=blocks[0].forward_passes if blocks else 0,
        sampling=sum(block.seconds for block in blocks),
    )  # fmt: skip
    found = collect(detector, (readings[first] for first in sorted(readings)))
    parts = request.image_parts(subject.weights)
    record_metrics(
        {name: parts[name] for name in metrics}, found.cut(request.images), reference, ledger, subject=subject,
        progress=watch.progress,
    )  # fmt: skip


def _short(reading: Reading | None, first: int, request: Request) -> bool:
    """Whether images of a block are missing."""
    return reading is None or len(reading.features) < min(BLOCK, request.images - first)


def beyond_kept(images: int, detector: Detector) -> str | None:
    """What a plan says of a drawing whose features are too many to keep all of them; None where all are kept."""
    if images * detector.feature_size * 4 <= KEPT_BYTES // 4:  # far from it, and no pass of the detector to find out
        return None
    size = detector.minimum_size
    reading = detector.read(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    block = BLOCK * sum(part.numel() * part.element_size() for part in reading if part is not None)
    kept = KEPT_BYTES // block * BLOCK
    if images <= kept:
        return None
    return (
        f"{images:,} images: the features of about {kept:,} are kept ({KEPT_BYTES / 2**20:,.0f} MB per drawing and "
        f"detector); another metric or more images, asked for later, draw the other {images - kept:,} again"
    )


def read_pictures(
    store: tuple[Blocks, Blocks], detector: Detector, kept: dict[int, Arrays], count: int, device: torch.device
) -> None:
    """Features of images that are kept and were not read by this detector yet: nothing of them is drawn again."""
    features, pictures = store
    read = {first: count_of(kept[first]) if first in kept else 0 for first in range(0, count, BLOCK)}
    short = [first for first, there in read.items() if there < min(BLOCK, count - first)]
    if not short:
        return
    names = pictures.names()
    for first in short:
        arrays = pictures.block(first, names)  # one at a time: images of a large drawing are gigabytes
        unread = arrays["images"][read[first] :] if arrays else ()
        if len(unread):
            more = to_arrays(read_block(detector, torch.from_numpy(unread).to(device)))
            kept[first] = joined([kept[first], more]) if read[first] else more
            features.save(first, kept[first])


def record_drawing(
    request: Request,
    subject: Subject,
    ledger: Ledger,
    *,
    started: float,
    images: int,
    passes: int,
    sampling: float,
    seconds: float,
) -> None:
    """What the first images of a drawing cost: those of them that were drawn now. Each process that drew some of them
    records its share.

    Args:
        images: drawn now.
        passes: forward passes per image.
        sampling: seconds of it that the sampler took.
        seconds: in all, features included.
    """
    part = request.drawn(subject.weights)
    ledger.look_again([part])
    if ledger.get(part) is not None and not images:
        return
    values: dict[str, float] = {
        CostName.NFE: float(subject.sampler.schedule().num_function_evaluations),
        CostName.FLOPS: float(count_flops(subject.model.config, subject.sampler)),
    }
    if images:
        values[CostName.FORWARD_PASSES] = float(passes)
        values[CostName.SAMPLING_SECONDS] = sampling / images
    cost = {
        "seconds": seconds, "device_seconds": seconds * subject.devices, "images": float(images),
        "passes": float(images * passes),
    }  # fmt: skip
    ledger.put(
        Record.of(part, values=values, started=started, finished=time.time(), cost=cost, provenance=subject.provenance)
    )


def record_metrics(
    parts: Mapping[str, Part],
    features: FeatureSet,
    reference: ReferenceStatistics,
    ledger: Ledger,
    *,
    subject: Subject | None = None,
    progress: Progress = quiet,
) -> dict[str, Record]:
    """Image metrics of features, each as a record.

    Args:
        parts: metric → part.
        subject: whose images they are; None for given images.
    """
    found: dict[str, Record] = {}
    for number, (metric, part) in enumerate(parts.items()):
        progress("distances", number / len(parts))
        started, clock = time.time(), time.perf_counter()
        measured = distances(features, reference, [metric])
        seconds = time.perf_counter() - clock
        record = Record.of(
            part, values=measured.metrics, notes=measured.notes, started=started, finished=time.time(),
            provenance=subject.provenance if subject else {},
            cost={"seconds": seconds, "device_seconds": seconds * (subject.devices if subject else 1.0)},
        )  # fmt: skip
        found[metric] = ledger.put(record)
        progress("distances", (number + 1) / len(parts))
    return found


def cycle_of(config: EvaluationConfig, validation: Callable[[int], Batch], classes: int) -> Tensor:
    """Classes of drawn images in turn, as an evaluation's rule has them.

    Args:
        validation: so many held-out images, spread evenly.
    """
    if config.labels == "classes":
        return torch.arange(classes)
    return validation(config.label_images).labels
