"""The launcher without Ray: trials one after the other in this process. For debugging and single trainings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rich.console import Console

from pforce.executors.placement import place, this_machine
from pforce.orchestration.plan import Plan, payload
from pforce.orchestration.recorder import Recorder
from pforce.orchestration.worker import CellFailed, run_cell
from pforce.training import Callback, ProgressBar


def launch(plan: Plan, recorder: Recorder, console: Console, *, callbacks: Sequence[Callback] = ()) -> None:
    """Run what is missing here, on all cores or the first GPU. The callbacks see every training."""
    placement = place(
        1,
        nodes=[this_machine()],
        cpus=plan.options.cpus_per_trial,
        gpus=plan.options.gpus_per_trial,
    )
    recorder.begin()
    for item in plan.missing:
        recorder.start(item)
        recorder.display.progress.stop()  # two live displays on one terminal disturb each other
        try:
            report = partial(recorder.report, item)
            run_cell(payload(plan, item, placement), report, callbacks=(ProgressBar(console), *callbacks))
        except CellFailed as failure:  # there is no other process that could try again
            recorder.fail(item, failure.reason, failure.message)
