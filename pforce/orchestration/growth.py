"""Sweeps that grow: commands add cells to a sweep's file, and running drivers take them up."""

from __future__ import annotations

import time

from pforce.base.words import counted
from pforce.orchestration.display import Display
from pforce.orchestration.plan import Plan, Supply, finished_of, sweep_entry
from pforce.orchestration.recorded import check_same, recorded
from pforce.orchestration.sweep import TRIAL, Work
from pforce.records.sweeps import add_cells, read_sweep
from pforce.storage import StorageError

LOOK_SECONDS = 5.0
"""Seconds between two looks at the file of a running sweep."""


def keep_sweep(planned: Plan) -> None:
    """Write the sweep's file with its cells and those that other commands have added. ConfigError as `check_same`."""
    own, ledger = sweep_entry(planned), planned.ledger
    if planned.sweep.known_by == "cells":
        own.write(ledger.storage)
    else:
        add_cells(ledger.storage, own, ledger.say, lambda there: check_same(there, planned.sweep))


class Growth(Supply):
    """The cells that other commands add to a sweep's file while its driver runs."""

    def __init__(self, planned: Plan) -> None:
        self.plan = planned
        self.looked = time.monotonic()
        self.passed = dict(planned.passed)
        """Digest of each recorded cell that is known, or cannot be carried out here → when it was asked for."""

    def added(self, display: Display, *, waiting: int, running: int) -> list[Work]:
        last = not waiting and not running
        if self.plan.sweep.known_by == "cells" or (not last and time.monotonic() - self.looked < LOOK_SECONDS):
            return []
        self.looked = time.monotonic()
        plan, sweep = self.plan, self.plan.sweep
        try:
            entry = read_sweep(plan.options.place, sweep.name, plan.identity, plan.ledger.say)
        except StorageError:  # of a bucket that is away, which is told where something has to be kept there
            return []
        if entry is None:
            return []
        # A cell that is asked for again counts as new; a search looks after its trials itself.
        seen = {cell.cell for cell in entry.cells if self.passed.get(cell.cell) == cell.asked}
        seen |= {cell.cell for cell in entry.cells if any(pair[0] == TRIAL for pair in cell.values)}
        new = recorded(sweep, entry, plan.inputs, {*seen, *(item.fingerprint for item in plan.work)})
        self.passed |= {cell.cell: cell.asked for cell in entry.cells}
        if not new:
            return []
        plan.ledger.refresh()
        plan.work += new
        done = finished_of(new, plan.ledger)
        plan.done |= done
        display.extend(len(new), done=len(done))
        display.line(f"{counted(len(new), 'cell')} added to {sweep.name} by another command")
        return [item for item in new if item.fingerprint not in done]

    def ended(self, item: Work) -> None:
        pass

    @property
    def open(self) -> bool:
        return self.plan.sweep.known_by != "cells"
