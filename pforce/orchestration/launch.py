"""The frame around every launcher: runs opened and closed, signals, exit codes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from rich.console import Console

from pforce.orchestration.display import SweepDisplay
from pforce.orchestration.plan import Plan, entry_of, provenance, sweep_entry, this_command
from pforce.orchestration.recorder import Recorder
from pforce.records.ledger import Ledger
from pforce.results.shown import show_cells, show_sweep
from pforce.terminal import DONE, SOME_FAILED, STOPPED
from pforce.tracking import Live, Mirror, Page, Status, Tags, TrackingError
from pforce.tracking.checks import why
from pforce.tracking.live import CATCH_UP
from pforce.tracking.page import Progress
from pforce.trial.failures import DISK_FULL, is_disk_full

STOP_SECONDS = 5.0
"""The longest wait for the tracking store after a signal."""
RESERVE_BYTES = 2**20
STOPPED_BY = "Stopped by {}; the same command goes on from here."
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


def _size(plan: Plan) -> dict[str, str]:
    """Tags that tell how large a sweep is, for whoever watches it: cells, and those that others had finished."""
    # Shortened: a tag holds 4,000 characters.
    return {Tags.CELLS: str(len(plan.work)), Tags.REUSED: " ".join(sorted(done[:12] for done in plan.done)[:300])}


def nothing_ran(plan: Plan) -> int:
    """The exit code of a sweep of which nothing is left to run."""
    return SOME_FAILED if plan.diverged else DONE


def show_finished(plan: Plan, say: Callable[[str], None]) -> None:
    """A sweep of which nothing is left to run, in MLflow. A store that does not take it is warned of: the results are
    in the storage."""
    if plan.tracker is None:  # the plan has said so
        return
    try:
        mirror = Mirror(plan.tracker, plan.options.place, say)
        entry = sweep_entry(plan)
        page = mirror.page(entry.name, {entry.identity, *(item.fingerprint for item in plan.work)})
        shown = show_sweep(page, entry, plan.ledger)
    except Exception as error:  # every kind of store raises its own
        say(f"warning: {plan.tracker.shown} does not show this sweep: {why(error)}. {CATCH_UP}")
        return
    if shown.made or shown.updated:
        say(f"{shown.made} run(s) made in {plan.tracker.shown}, {shown.updated} brought up to date")


def execute(plan: Plan, console: Console, launcher: Launcher | None) -> int:
    """Run what is missing. Returns DONE, SOME_FAILED or STOPPED; everything that ended is in the storage.

    A killed sweep needs no state of its launcher's to go on: finished parts are records, and a running training has
    checkpoints in a folder named by its digest. Several drivers of one sweep share its work.

    Args:
        launcher: may be None where nothing is missing.
    """

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    if not plan.missing or launcher is None:
        show_finished(plan, say)
        return nothing_ran(plan)
    try:
        with stop_on_signals():
            plan.forget_divergences()
            with plan.in_order():
                return _execute(plan, console, launcher, say)
    except KeyboardInterrupt as stopped:
        say(STOPPED_BY.format(stopped))
        return STOPPED
    except (OSError, RuntimeError) as error:  # where the driver's own files lie there is no room
        if not is_disk_full(error):
            raise
        say(disk_full_message(plan.options.root, str(error)))
        return STOPPED


def _execute(plan: Plan, console: Console, launcher: Launcher, say: Callable[[str], None]) -> int:
    tags, identity = provenance(), plan.sweep.identity(plan.work)
    assert plan.tracker is not None  # something is missing
    mirror = Mirror(plan.tracker, plan.options.place, say)
    done = {*plan.done, *plan.diverged}
    ledger = Ledger(plan.options.place, plan.ledger.say)  # of its own, for another thread

    def before(page: Page, parent: str, between: Progress) -> None:
        cells = [entry_of(item) for item in plan.work if item.fingerprint in done]
        show_cells(page, cells, ledger, parent, progress=between)

    with Live(mirror, plan.sweep.name, identity, say, before) as live, _reserve(plan.options.root, identity) as reserve:
        display = SweepDisplay(console, len(plan.work), len(plan.work) - len(plan.missing))
        recorder = Recorder(plan, live, display, tags, {**tags, **_size(plan), Tags.COMMAND: this_command()})
        try:
            with display:
                launcher(plan, recorder, console)
        except (KeyboardInterrupt, SystemExit) as stopped:  # Ray's own SIGTERM handler, while it starts, exits
            say(STOPPED_BY.format(stopped))
            _stop(recorder, live, "stopped", limit=STOP_SECONDS)
            return STOPPED
        except Exception as error:
            if not recorder.disk_full and not is_disk_full(error):
                away = isinstance(error, TrackingError)
                limit = STOP_SECONDS if away else float("inf")
                _stop(recorder, live, f"driver: {type(error).__name__}", status="FAILED", limit=limit)
                raise
            reserve.unlink(missing_ok=True)  # room for what is still to be shown
            say(disk_full_message(plan.options.root, recorder.disk_full or str(error)))
            with suppress(OSError, TrackingError):
                _stop(recorder, live, DISK_FULL, limit=STOP_SECONDS)
            return STOPPED
        recorder.kill_all("time limit")
        ended = {*plan.done, *plan.diverged, *recorder.finished, *recorder.failed}
        if any(item.fingerprint not in ended for item in plan.work):
            recorder.close("KILLED")
            console.print("Stopped by the wall-clock limit; the same command goes on from here.")
            live.finish()
            return STOPPED
        failed = bool(recorder.failed or plan.diverged)
        recorder.close("FAILED" if failed else "FINISHED")
        live.finish()
        return SOME_FAILED if failed else DONE


def _stop(
    recorder: Recorder, live: Live, reason: str, *, status: Status = "KILLED", limit: float = float("inf")
) -> None:
    """Close the runs of the trials under way as KILLED, and the sweep's own."""
    recorder.kill_all(reason)
    recorder.close(status)
    live.finish(limit=limit)


@contextmanager
def _reserve(folder: Path, identity: str) -> Iterator[Path]:
    """A file that holds some room on the disk, to be removed when there is none left. Those of killed drivers of this
    machine go."""
    host = socket.gethostname()
    path = folder / f".reserve-{identity[:12]}-{host}-{os.getpid()}"
    for left in folder.glob(f".reserve-{identity[:12]}-{host}-*"):
        process = left.name.rpartition("-")[2]
        if process.isdecimal() and not Path(f"/proc/{process}").exists():
            left.unlink(missing_ok=True)
    try:
        path.write_bytes(b"\0" * RESERVE_BYTES)
        yield path
    finally:
        path.unlink(missing_ok=True)


def disk_full_message(folder: Path, error: str) -> str:
    """What is said where a file could not be written for want of space."""
    free = shutil.disk_usage(folder).free / 2**20
    return (
        f"Stopped, the disk is full: {folder.absolute()} has {free:,.0f} MiB free ({error}). The last good checkpoints "
        "are kept. Make room, or a larger quota; the same command then goes on from here."
    )
