"""The frame around every launcher: runs opened and closed, signals, exit codes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console

from pforce.orchestration.display import SweepDisplay
from pforce.orchestration.plan import DONE, SOME_FAILED, STOPPED, Plan, provenance
from pforce.orchestration.recorder import Recorder

Launcher = Callable[[Plan, Recorder, Console], None]
"""Runs what is missing of a plan and reports to the recorder."""


@contextmanager
def stop_on_signals(*, restore: bool = True) -> Iterator[None]:
    """SIGTERM and SIGINT both raise KeyboardInterrupt here, once; further ones are ignored during the clean-up.

    Args:
        restore: put the handlers back that were there before. An inner use within another one does not: the
            clean-up that follows must not be interrupted either.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {each: signal.signal(each, stop) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        if restore:
            for each, handler in before.items():
                signal.signal(each, handler)


def execute(plan: Plan, console: Console, launcher: Launcher) -> int:
    """Run what is missing. Returns DONE, SOME_FAILED or STOPPED; everything that ended is in MLflow.

    A killed sweep needs no state of its launcher's to go on: finished cells are in the store by their fingerprint,
    and a running one has checkpoints in a folder named by its fingerprint.
    """
    if not plan.missing:
        return DONE
    tags = provenance()
    tracker = plan.tracker
    with stop_on_signals():
        sweep_run = tracker.open_sweep(plan.sweep.name, plan.sweep.identity(plan.work), tags)
        display = SweepDisplay(console, len(plan.work), len(plan.work) - len(plan.missing))
        recorder = Recorder(plan, sweep_run, display, tags)
        try:
            with display:
                launcher(plan, recorder, console)
        except (KeyboardInterrupt, SystemExit) as stopped:  # Ray's own SIGTERM handler, while it starts, exits
            console.print(f"Stopped by {stopped}; the same command goes on from here.", markup=False)
            recorder.kill_all("stopped")
            tracker.close(sweep_run.run_id, "KILLED")
            return STOPPED
        except Exception as error:
            recorder.kill_all(f"driver: {type(error).__name__}")
            tracker.close(sweep_run.run_id, "FAILED")
            raise
        recorder.kill_all("time limit")
        done = tracker.finished([item.fingerprint for item in plan.work])
        if any(item.fingerprint not in {*done, *recorder.failed} for item in plan.work):
            tracker.close(sweep_run.run_id, "KILLED")
            console.print("Stopped by the wall-clock limit; the same command goes on from here.")
            return STOPPED
        tracker.close(sweep_run.run_id, "FAILED" if recorder.failed else "FINISHED")
        return SOME_FAILED if recorder.failed else DONE
