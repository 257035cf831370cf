"""The launcher without Ray: trials one after the other in this process. For debugging and single trainings."""

from __future__ import annotations

from functools import partial

from rich.console import Console

from pforce.orchestration.placement import place, this_machine
from pforce.orchestration.plan import Plan, payload
from pforce.orchestration.recorder import Recorder
from pforce.orchestration.worker import run_cell
from pforce.training import ProgressBar


def launch(plan: Plan, recorder: Recorder, console: Console) -> None:
    """Run what is missing here, on all cores or the first GPU."""
    placement = place(
        1,
        nodes=[this_machine()],
        cpus=plan.options.cpus_per_trial,
        gpus=plan.options.gpus_per_trial,
    )
    for item in plan.missing:
        recorder.start(item)
        recorder.display.progress.stop()  # two live displays on one terminal disturb each other
        run_cell(payload(plan, item, placement), partial(recorder.report, item), callbacks=(ProgressBar(console),))
