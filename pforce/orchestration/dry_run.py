"""What a sweep would do: its cells, which of them are done, and the time, device-hours and end of the others."""

from __future__ import annotations

from datetime import datetime, timedelta

from rich.console import Console
from rich.table import Table

from pforce.base.console import duration
from pforce.base.errors import ConfigError
from pforce.base.words import counted
from pforce.orchestration.calibration import TIMED_EVALUATIONS, TIMED_STEPS, Estimate, estimate
from pforce.orchestration.plan import Plan


def print_dry_run(planned: Plan, console: Console) -> None:
    """Print the cells of a plan, which of them are done, and what the others would take on this machine."""
    table = Table(title=f"{planned.sweep.name}: {counted(len(planned.work), 'trial')}", title_justify="left")
    for name in ("cell", "fingerprint", "state"):
        table.add_column(name)
    for item in planned.work:
        state = "done" if item.fingerprint in planned.done else "to run"
        state = "diverged" if item.fingerprint in planned.diverged else state
        table.add_row(item.label, item.fingerprint, state)
    if planned.work:  # a search's trials are not known before
        console.print(table)
    if not planned.left:
        console.print("Nothing to run.")
        return
    options = planned.options
    try:
        e = estimate(
            (planned.missing or planned.work)[0].experiment if planned.work else planned.sweep.base,
            planned.data,
            planned.left,
            cpus=options.cpus_per_trial,
            gpus=options.gpus_per_trial,
            workers=options.workers,
            whole_nodes=options.whole_nodes,
            alone=options.executor == "local",
        )
    except ConfigError as error:  # a cluster may have room
        console.print(f"No estimate for this machine: {error}", soft_wrap=True)
        return
    each = f" on each of {options.workers} workers" if options.workers > 1 else ""
    console.print(
        f"Estimate for this machine, from {TIMED_STEPS} training steps and {TIMED_EVALUATIONS} evaluations: "
        f"{e.training_seconds + e.evaluation_seconds:,.0f} s per trial ({e.training_seconds:,.0f} s training), "
        f"{e.placement.concurrent} at a time on {counted(e.placement.cpus, 'core')}{each}: about "
        f"{duration(e.seconds)} for {counted(planned.left, 'trial')}, until {_clock(e.seconds)}; "
        f"{_device_hours(e, planned.left, options.workers)}.",
        soft_wrap=True,
    )


def _clock(seconds: float) -> str:
    """The time of day so many seconds from now, with the day where it is another one."""
    now, then = datetime.now(), datetime.now() + timedelta(seconds=seconds)
    return then.strftime("%H:%M" if then.date() == now.date() else "%a %d %b %H:%M")


def _device_hours(e: Estimate, trials: int, workers: int) -> str:
    """Hours of devices that trials take."""
    devices, what = (e.placement.gpus, "GPU-hours") if e.placement.gpus else (float(e.placement.cpus), "core-hours")
    return f"{(e.training_seconds + e.evaluation_seconds) * trials * devices * workers / 3600:.3g} {what}"
