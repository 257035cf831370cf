"""Sweeps as the storage has them: the cells that earlier commands of the same name have written down."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any

from pforce.base.errors import ConfigError
from pforce.base.foreign import quoted
from pforce.config import with_fields
from pforce.orchestration.axes import SAMPLER
from pforce.orchestration.sweep import TRIAL, Cell, Sweep, Work, reads_of
from pforce.records.parts import Inputs, cell_parts
from pforce.records.sweeps import IMAGES, CellEntry, SweepEntry, read_sweep
from pforce.storage import Storage
from pforce.trial.where import with_precision

MOST_TOLD = 6
"""Most differences that a message lists."""
OF_SNAPSHOTS = ("training.images", "training.snapshots", "training.resumable")
"""Fields that differ between the rows of one training with snapshots."""
Say = Callable[[str], None]


def differences(entry: SweepEntry, sweep: Sweep) -> list[str]:
    """What a recorded sweep has otherwise than this one, in words."""
    there, here = [*entry.axes], sweep.paths
    told = []
    if sorted(there) != sorted(here):
        told.append(f"it varies {_listed(there)}, and this command {_listed(here)}")
    settings = json.loads(json.dumps(sweep.settings))
    for path, value in (entry.settings or {}).items():
        if path in settings and settings[path] != value and path not in (*there, *here):
            told.append(f"{path} is {quoted(value)} there and {quoted(settings[path])} here")
    return told


def _listed(paths: Sequence[str]) -> str:
    return quoted(" and ".join(paths)) if paths else "nothing"


def check_same(entry: SweepEntry | None, sweep: Sweep) -> None:
    """Raise ConfigError where the storage has a sweep of this name with other settings."""
    if sweep.known_by != "settings" or entry is None:
        return
    told = differences(entry, sweep)
    if told:
        more = f"; and {len(told) - MOST_TOLD} more" if len(told) > MOST_TOLD else ""
        raise ConfigError(
            f"name = {sweep.name}: the storage has a sweep of this name with other settings: "
            f"{'; '.join(told[:MOST_TOLD])}{more}. Give another --name, or the same settings"
        )


def sweep_of_name(sweep: Sweep, storage: Storage, say: Say) -> SweepEntry | None:
    """The recorded sweep that this one adds to; None where there is none. ConfigError as `check_same`."""
    if sweep.known_by == "cells":
        return None
    entry = read_sweep(storage, sweep.name, sweep.identity(()), say)
    check_same(entry, sweep)
    return entry


def work_of(entry: CellEntry, sweep: Sweep, inputs: Inputs) -> Work | None:
    """The piece of work of a recorded cell: the sweep's base with the recorded values of those fields that vary, since
    the file may be anybody's. None for a cell of other data, of other columns, or of fields that cannot vary."""
    values = {pair[0]: pair[1] for pair in entry.values if pair[0] != TRIAL}  # a search may have told it as a trial
    if set(values) != set(sweep.headers) or (sweep.known_by == "name" and not _has_row(sweep, values)):
        return None
    free = OF_SNAPSHOTS if IMAGES in values else ()
    changes: dict[str, Any] = {
        SAMPLER if path == f"{SAMPLER}.name" else path: value
        for path, value in entry.params.items() if path not in sweep.settings or path in free
    }  # fmt: skip
    try:
        experiment = with_fields(sweep.base, {**changes, "seed": entry.seed})
        if reads_of(experiment) != reads_of(sweep.base):
            return None
        experiment = with_precision(experiment, inputs)
        parts = cell_parts(experiment, inputs)
    except (ConfigError, TypeError, ValueError, KeyError, AttributeError):
        return None
    if parts.digest != entry.cell:
        return None
    return Work(parts, (Cell(tuple((header, values[header]) for header in sweep.headers), experiment),))


def _has_row(sweep: Sweep, values: dict[str, str]) -> bool:
    """Whether a table's code still has a recorded row."""
    return not sweep.rows or next(iter(values.values())) in {row.name for row in sweep.rows}


def recorded(sweep: Sweep, entry: SweepEntry | None, inputs: Inputs, known: Collection[str]) -> list[Work]:
    """The recorded cells that are not known yet, as far as they can be carried out here.

    Args:
        known: digests of cells that are left out.
    """
    missing = [cell for cell in (entry.cells if entry else ()) if cell.cell not in known]
    found = (work_of(cell, sweep, inputs) for cell in missing)
    return [item for item in found if item is not None]
