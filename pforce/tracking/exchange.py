"""Cells that were finished elsewhere as runs: what a page shows of imported and migrated records."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pforce.files import digest
from pforce.tracking.store import RunSpec, Tracker

IMPORTED = "pforce.imported"
"""Tag of a run that was made from records: where they come from."""


class FinishedCell(NamedTuple):
    """A finished cell, as a run shows it."""

    sweep: str
    """Name of the sweep (MLflow experiment)."""
    label: str
    fingerprint: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    started: int
    """Milliseconds since 1970."""
    ended: int
    step: int
    """Images seen."""
    pictures: Sequence[Path] = ()


def show_cells(
    tracker: Tracker,
    cells: Sequence[FinishedCell],
    origin: str,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[int, int]:
    """Make FINISHED runs of cells whose fingerprints no finished run has; (made, there before).

    The runs of one sweep get a parent; a run that is killed half made is not FINISHED, and the next call takes it up.
    """
    there = set(tracker.finished([cell.fingerprint for cell in cells]))
    of_sweeps: defaultdict[str, list[FinishedCell]] = defaultdict(list)
    for cell in cells:
        if cell.fingerprint not in there:
            of_sweeps[cell.sweep].append(cell)
            there.add(cell.fingerprint)
    made = 0
    for name, missing in of_sweeps.items():
        tracker.check(name)
        parent = tracker.open_sweep(name, digest("records", name), {IMPORTED: origin})
        for cell in missing:
            spec = RunSpec(cell.label, cell.fingerprint, cell.params, {**cell.tags, IMPORTED: origin})
            run_id = tracker.open_trial(parent, spec, started=cell.started)
            finite = {key: value for key, value in cell.metrics.items() if math.isfinite(value)}
            tracker.log(run_id, finite, step=cell.step)
            for path in cell.pictures:
                tracker.artifact(run_id, path)
            tracker.close(run_id, "FINISHED", ended=cell.ended)
            made += 1
            progress(made)
        tracker.close(parent.run_id, "FINISHED")
    return made, len(cells) - made
