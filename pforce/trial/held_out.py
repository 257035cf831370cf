"""Measurements of a model on held-out images: each becomes a record with arrays for figures."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pforce.base.arrays import open_arrays
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
from pforce.metrics.names import HELD_OUT_IMAGES
from pforce.records.lease import shared
from pforce.records.ledger import Ledger
from pforce.records.parts import Analysis, Part, Request, diverged_part
from pforce.records.record import Record
from pforce.records.row import WHY
from pforce.trial.subject import Subject
from pforce.trial.watch import Phase, Progress, Watch

ARRAYS = "arrays.npz"
"""Name of a measurement's file of arrays for figures."""


def _within(progress: Progress, phase: Phase, number: int, count: int, share: float) -> None:
    """Report the progress of one of several measurements."""
    progress(phase, (number + share) / count)


def measure_held_out(
    request: Request,
    subject: Subject,
    ledger: Ledger,
    wanted: Sequence[tuple[Analysis, str]],
    *,
    watch: Watch,
) -> None:
    """Measure a model on held-out images and record each measurement. Other processes may make some of them.

    Args:
        wanted: (analysis, timestep as text) of the measurements that have no record.
    """
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
    files = keep_arrays(ledger, found.arrays)
    values = {**found.values, HELD_OUT_IMAGES: float(len(data.x1))}
    ledger.put(Record.of(
        part, values=values, undefined=found.undefined, files=files, notes=found.notes, started=started,
        finished=time.time(), provenance=subject.provenance,
        cost={"seconds": seconds, "device_seconds": seconds * subject.devices},
    ))  # fmt: skip


_SAID: dict[Analysis, Phase] = {"loss": "validation loss", "difficulty": "difficulty", "context": "context"}


def keep_arrays(ledger: Ledger, arrays: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """Write arrays as a file of the storage, before the record. Returns the record's entry `files`."""
    if not arrays:
        return {}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # the stubs know no names
    content = buffer.getvalue()
    sha256 = hashlib.sha256(content).hexdigest()
    ledger.put_file(content, sha256)
    return {ARRAYS: sha256}


def arrays_of(ledger: Ledger, record: Record) -> Arrays | None:
    """The arrays of a measurement; None where they are not kept (imported records) or damaged."""
    sha256 = record.files.get(ARRAYS)
    path = ledger.file(sha256) if sha256 else None
    if path is None:
        return None
    with open_arrays(path) as found:
        return found.read_all(path.stat().st_size)
