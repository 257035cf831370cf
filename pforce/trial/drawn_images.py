"""Measurements of a model on images that it draws. Missing images are drawn, read through the detector and kept in
blocks, and each metric becomes a record."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pforce.metrics.detectors import Detector, Reading, WithPixels
from pforce.metrics.distances import NEAREST, distances
from pforce.metrics.features import FeatureSet, collect
from pforce.metrics.held_out import (
    Arrays,
)
from pforce.metrics.memorisation import Training
from pforce.metrics.names import CostName
from pforce.metrics.reference import ReferenceStatistics
from pforce.parallel import Workers
from pforce.records.contents import labels_in_words
from pforce.records.lease import Wait, leased, patient, shared
from pforce.records.ledger import Ledger
from pforce.records.parts import Part, Request
from pforce.records.record import Record
from pforce.sampling import count_flops
from pforce.trial.draw import (
    BLOCK,
    KEPT_BYTES,
    Span,
    count_of,
    draw,
    joined,
    read_block,
    spans_to_draw,
    to_arrays,
    to_reading,
)
from pforce.trial.held_out import keep_arrays
from pforce.trial.readers import Reader, Store, reader_of, readers, store_of
from pforce.trial.subject import Subject
from pforce.trial.watch import Progress, Watch, quiet


class _Block(NamedTuple):
    """A block drawn by one worker."""

    first: int
    reading: Reading
    drawn: int
    """Number of its images that were drawn now."""
    num_function_evaluations: int
    forward_passes: int
    seconds: float


def draw_blocks(
    request: Request,
    subject: Subject,
    detector: Detector,
    groups: Sequence[Sequence[Span]],
    *,
    kept: Mapping[int, Arrays],
    store: Store,
    others: Sequence[Reader] = (),
    progress: Callable[[int], None] = lambda drawn: None,
    wait: Wait = patient,
) -> Iterator[_Block]:
    """Draw groups of passes, read them through the detector, and keep and yield each block as soon as it is whole.

    Groups that other processes draw meanwhile are left to them: they are not yielded, but kept when this ends.

    Args:
        kept: blocks of which a part is there already.
        store: blocks of features, and blocks of images.
        others: further detectors that read the images, too.
        progress: callback that gets the number of images just drawn.
        wait: called while other processes draw the last groups.
    """
    features, _ = store
    own = shared(
        features.storage, groups, key=lambda group: f"{features.relative}/{group[0].first // BLOCK}",
        done=lambda group: features.has(group[-1].end, group[0].first), doing="drawing images", wait=wait,
    )  # fmt: skip
    for group in own:
        for block in draw_group(request, subject, detector, group, kept=kept, store=store, others=others):
            progress(block.drawn)
            yield block


def draw_group(
    request: Request, subject: Subject, detector: Detector, group: Sequence[Span], *, kept: Mapping[int, Arrays],
    store: Store, others: Sequence[Reader] = (),
) -> Iterator[_Block]:  # fmt: skip
    """Draw one group of passes as `draw_blocks` does, without regard to other processes."""
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
                raise ValueError(f"images {block} to {first + start - 1} of a drawing are no longer kept")
            arrays = joined([{key: value[:there] for key, value in before.items()}, arrays])
        for other in others:  # first, as the block counts as drawn once its own features are kept
            other.read(block, there, part)
        features.save(block, arrays)
        if first + start == 0:
            images.save(0, {"images": part.cpu().numpy()})
        yield _Block(block, to_reading(arrays), len(part), nfe, passes, seconds * len(part) / total)


def measure_images(
    request: Request,
    subject: Subject,
    ledger: Ledger,
    metrics: Sequence[str],
    *,
    others: Sequence[Callable[[], Detector]] = (),
    workers: Workers,
    watch: Watch,
    trim: bool,
) -> None:
    """Draw the missing images of a request and record metrics of all its images. All workers must call it.

    Args:
        metrics: names of the metrics that have no record.
        others: functions that return further detectors, which read and keep the images that are drawn now.
        trim: keep at most KEPT_BYTES of features.
    """
    assert subject.detector is not None
    assert subject.reference is not None
    detector = reader_of(subject.detector(), metrics)
    started, clock = time.time(), time.perf_counter()
    drawing = request.drawing(subject.weights)
    store = store_of(ledger, drawing.digest, detector)
    reference: ReferenceStatistics | None = None
    if workers.first:
        watch.progress("features of the reference", 0.0)
        reference = subject.reference()  # before drawing, so that a broken reference is found first
    kept, groups = workers.first_does(lambda: _to_draw(request, subject, ledger, detector, store))
    own = groups[workers.rank :: workers.count]
    to_draw = sum(span.end - span.first for group in own for span in group)
    done = 0

    def drew(count: int) -> None:
        nonlocal done
        done += count
        watch.progress("sampling", min(1.0, done / max(1, to_draw)))

    made = draw_blocks(
        request, subject, detector, own, kept=kept, store=store, progress=drew, wait=watch.waits,
        others=readers(drawing.digest, others, ledger) if own else (),
    )  # fmt: skip
    blocks = [block for part in workers.to_first(list(made)) for block in part]
    if reference is None:
        return
    readings = {first: to_reading(arrays) for first, arrays in kept.items()}
    readings |= {block.first: block.reading for block in blocks}
    blocks += _by_others(request, subject, detector, readings, store)
    record_drawing(
        request, subject, ledger, started=started, seconds=time.perf_counter() - clock,
        images=sum(block.drawn for block in blocks), sampling=sum(block.seconds for block in blocks),
        passes=blocks[0].forward_passes if blocks else 0,
    )  # fmt: skip
    # Those that have waited for the last images would all measure them at once.
    with leased(ledger.storage, f"metrics/{drawing.digest}", "measuring images", wait=watch.waits):
        _record_missing(
            request, subject, ledger, metrics, detector=detector, readings=readings, reference=reference, watch=watch
        )
    if trim:
        store[0].trim(KEPT_BYTES)


def _record_missing(
    request: Request, subject: Subject, ledger: Ledger, metrics: Sequence[str], *, detector: Detector,
    readings: Mapping[int, Reading], reference: ReferenceStatistics, watch: Watch,
) -> None:  # fmt: skip
    """Record those metrics that still have no record."""
    parts = {name: part for name, part in request.image_parts(subject.weights).items() if name in metrics}
    ledger.look_again(parts.values())
    left = {name: part for name, part in parts.items() if ledger.get(part) is None}
    if left:
        record_metrics(
            left, _measured(request, subject, detector, readings), reference, ledger, subject=subject,
            training=subject.training, progress=watch.progress, told=labels_in_words(request.labels),
        )  # fmt: skip


def _measured(request: Request, subject: Subject, reader: Detector, readings: Mapping[int, Reading]) -> FeatureSet:
    """Features and classes of a request's images, from the features of all blocks."""
    assert subject.detector is not None
    found = collect(reader, (readings[first] for first in sorted(readings)))
    return found.of_classes(subject.labels(), subject.detector()).cut(request.images)


def _to_draw(
    request: Request, subject: Subject, ledger: Ledger, detector: Detector, store: Store
) -> tuple[dict[int, Arrays], list[list[Span]]]:
    """Kept blocks of features, and groups of passes that are missing."""
    kept = store[0].load(request.images)
    read_pictures(store, detector, kept, request.images, subject.device)
    ends = {first: first + len(next(iter(arrays.values()))) for first, arrays in kept.items()}
    found = spans_to_draw(request.images, subject.batch, ends)
    if found and ledger.get(request.drawn(subject.weights)) is not None:
        again = sum(span.end - span.first for group in found for span in group)
        what = "features or pixels are not" if isinstance(detector, WithPixels) else "features are no longer"
        warnings.warn(
            f"{again:,} images were drawn before, but their {what} kept (only {KEPT_BYTES >> 20} MB per drawing are "
            "kept): they are drawn again",
            stacklevel=2,
        )
    return kept, found


def _by_others(
    request: Request, subject: Subject, detector: Detector, readings: dict[int, Reading], store: Store
) -> list[_Block]:
    """Add the features of blocks that other processes have drawn. Returns the blocks that had to be drawn here, because
    other processes have trimmed them since."""
    others = [first for first in range(0, request.images, BLOCK) if _short(readings.get(first), first, request)]
    if not others:
        return []
    features = store[0]
    names: Any = features.names()
    there = {first: arrays for first in others if (arrays := features.block(first, names)) is not None}
    readings |= {first: to_reading(arrays) for first, arrays in there.items()}
    ends = {first: first + len(reading.features) for first, reading in readings.items()}
    drawn: list[_Block] = []
    for group in spans_to_draw(request.images, subject.batch, ends):
        drawn += draw_group(request, subject, detector, group, kept=there, store=store)
    readings |= {block.first: block.reading for block in drawn}
    return drawn


def _short(reading: Reading | None, first: int, request: Request) -> bool:
    """Whether images of a block are missing in its features."""
    return reading is None or len(reading.features) < min(BLOCK, request.images - first)


def beyond_kept(images: int, detector: Detector) -> str | None:
    """A plan's note on a drawing whose features cannot all be kept; None where all are kept."""
    if images * detector.feature_size * 4 <= KEPT_BYTES // 4:  # clearly few enough, without a pass of the detector
        return None
    size = detector.minimum_size
    reading = detector.read(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    block = BLOCK * sum(part.numel() * part.element_size() for part in reading if part is not None)
    kept = KEPT_BYTES // block * BLOCK
    if images <= kept:
        return None
    return (
        f"{images:,} images: the features of about {kept:,} are kept ({KEPT_BYTES / 2**20:,.0f} MB per drawing and "
        f"detector); measuring another metric or more images later draws the other {images - kept:,} again"
    )


def read_pictures(store: Store, detector: Detector, kept: dict[int, Arrays], count: int, device: torch.device) -> None:
    """Add features of kept images that this detector has not read yet, so that they are not drawn again."""
    features, pictures = store
    read = {first: count_of(kept[first]) if first in kept else 0 for first in range(0, count, BLOCK)}
    short = [first for first, there in read.items() if there < min(BLOCK, count - first)]
    if not short:
        return
    names = pictures.names()
    for first in short:
        arrays = pictures.block(first, names)  # one block at a time: images of a large drawing take gigabytes
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
    """Record the cost of those images of a drawing that were drawn now. Each process that drew some of them records its
    share.

    Args:
        started: time of the start, in seconds since 1970.
        images: number of images drawn now.
        passes: forward passes per image.
        sampling: seconds of the sampler.
        seconds: seconds in total, including features.
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
    training: Callable[[], Training] | None = None,
    told: str | None = None,
    progress: Progress = quiet,
) -> dict[str, Record]:
    """Measure image metrics of features and record each of them; returns metric → record.

    Args:
        parts: metric → part.
        subject: model that drew the images; None for given images.
        training: function that returns the training images, for memorisation.
        told: a note on the images, for readers of the numbers.
    """
    found: dict[str, Record] = {}
    for number, (metric, part) in enumerate(parts.items()):
        progress("distances", number / len(parts))
        started, clock = time.time(), time.perf_counter()
        near = training() if metric == NEAREST and training is not None else None
        measured = distances(
            features, reference, [metric], training=near,
            progress=lambda share: progress("nearest training images", share),
        )  # fmt: skip
        seconds = time.perf_counter() - clock
        notes = (*measured.notes, *([told] if told else []))
        record = Record.of(
            part, values=measured.metrics, files=keep_arrays(ledger, measured.arrays), notes=notes,
            started=started, finished=time.time(),
            provenance=subject.provenance if subject else {},
            cost={"seconds": seconds, "device_seconds": seconds * (subject.devices if subject else 1.0)},
        )  # fmt: skip
        found[metric] = ledger.put(record)
        progress("distances", (number + 1) / len(parts))
    return found
