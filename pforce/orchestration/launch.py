"""The frame around every launcher: runs opened and closed, signals, exit codes."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from rich.console import Console

from pforce.orchestration.display import SweepDisplay
from pforce.orchestration.failures import DISK_FULL, is_disk_full
from pforce.orchestration.hold import only_driver, this_command
from pforce.orchestration.plan import Plan, provenance, trial_folder
from pforce.orchestration.recorder import Recorder
from pforce.orchestration.sweep import Work
from pforce.records.row import WHY, row_of
from pforce.results.stored import TAGGED
from pforce.terminal import DONE, SOME_FAILED, STOPPED
from pforce.tracking import CELLS, SPOOL, Delivery, Status, Tags, TrackingError, deliver_leftovers
from pforce.trial.folder import curve_of

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
    return {CELLS: str(len(plan.work)), Tags.REUSED: " ".join(sorted(done[:12] for done in plan.done)[:300])}


def nothing_ran(plan: Plan) -> int:
    """The exit code of a sweep of which nothing is left to run."""
    return SOME_FAILED if plan.diverged else DONE


def unshown(plan: Plan) -> list[Work]:
    """Cells that are finished, or diverged, and whose run in this sweep is not ended so: their driver was killed before
    it could say so."""
    plan.recorded = plan.tracker.recorded(plan.sweep.name, [item.fingerprint for item in plan.work])
    open_ones = (plan.done & plan.recorded.keys()) | plan.tracker.running(plan.sweep.name, list(plan.diverged))
    return [item for item in plan.work if item.fingerprint in open_ones]


def execute(plan: Plan, console: Console, launcher: Launcher | None) -> int:
    """Run what is missing. Returns DONE, SOME_FAILED or STOPPED; everything that ended is in MLflow.

    A killed sweep needs no state of its launcher's to go on: finished parts are records in the storage, and a running
    training has checkpoints in a folder named by its digest.

    Args:
        launcher: may be None where nothing is missing.
    """
    identity = plan.sweep.identity(plan.work)
    to_show = unshown(plan)
    if not plan.missing and not to_show and not plan.tracker.is_open(plan.sweep.name, identity):
        return nothing_ran(plan)
    cells = [item.fingerprint for item in (*plan.missing, *to_show)]

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    try:
        with stop_on_signals(), only_driver(plan.options.place, plan.sweep.name, identity, cells, say):
            # Another driver may have ended since the plan was made: its cells are not run again.
            deliver_leftovers(plan.tracker, plan.options.root / SPOOL, say)
            plan.look()
            plan.forget_divergences()
            to_show = unshown(plan)
            return _execute(plan, console, launcher, to_show, say)
    except KeyboardInterrupt as stopped:
        say(STOPPED_BY.format(stopped))
        return STOPPED
    except (OSError, RuntimeError) as error:  # where the driver's own files lie there is no room
        if not is_disk_full(error):
            raise
        say(disk_full_message(plan.options.root, str(error)))
        return STOPPED


def _execute(
    plan: Plan, console: Console, launcher: Launcher | None, to_show: list[Work], say: Callable[[str], None]
) -> int:  # fmt: skip
    tags, identity = provenance(), plan.sweep.identity(plan.work)
    spool = plan.options.root / SPOOL
    with Delivery(plan.tracker, spool, identity, say) as delivery, _reserve(spool, identity) as reserve:
        display = SweepDisplay(console, len(plan.work), len(plan.work) - len(plan.missing))
        recorder = Recorder(plan, delivery, display, tags, {**tags, **_size(plan), Tags.COMMAND: this_command()})
        try:
            with display:
                if plan.missing and launcher is not None:
                    launcher(plan, recorder, console)
                else:
                    recorder.begin()
                for item in to_show:
                    _show(plan, recorder, item)
        except (KeyboardInterrupt, SystemExit) as stopped:  # Ray's own SIGTERM handler, while it starts, exits
            say(STOPPED_BY.format(stopped))
            _stop(recorder, delivery, "stopped", limit=STOP_SECONDS)
            return STOPPED
        except Exception as error:
            if not recorder.disk_full and not is_disk_full(error):
                away = isinstance(error, TrackingError)
                limit = STOP_SECONDS if away else float("inf")
                _stop(recorder, delivery, f"driver: {type(error).__name__}", status="FAILED", limit=limit)
                raise
            reserve.unlink(missing_ok=True)  # room for what is still to be recorded
            say(disk_full_message(plan.options.root, recorder.disk_full or str(error)))
            with suppress(OSError, TrackingError):
                _stop(recorder, delivery, DISK_FULL, limit=STOP_SECONDS)
            return STOPPED
        recorder.kill_all("time limit")
        ended = {*plan.done, *plan.diverged, *recorder.finished, *recorder.failed}
        if any(item.fingerprint not in ended for item in plan.work):
            recorder.close("KILLED")
            console.print("Stopped by the wall-clock limit; the same command goes on from here.")
            delivery.finish()
            return STOPPED
        failed = bool(recorder.failed or plan.diverged)
        recorder.close("FAILED" if failed else "FINISHED")
        if delivery.finish():
            return STOPPED
        return SOME_FAILED if failed else DONE


def _show(plan: Plan, recorder: Recorder, item: Work) -> None:
    """A finished cell in its run: the points of its curve that are not there, its numbers, its pictures; or that it
    diverged."""
    diverged = plan.diverged.get(item.fingerprint)
    if diverged is not None:
        recorder.start(item)
        recorder.fail(item, "diverged", str(diverged.values.get(WHY)))
        return
    row = row_of(item.parts, plan.ledger)
    assert row is not None  # it is done
    recorder.start(item)
    folder, parts = trial_folder(plan.options, item), item.parts
    for point in curve_of(folder, parts.training, until=parts.images_seen, say=recorder.display.line):
        recorder.report(item, {"phase": "training", "record": point._asdict()})
    made = row.weights.provenance
    environment = {name: made[name] for name in TAGGED if name in made}
    recorder.report(item, {"phase": "done", "metrics": row.metrics, "environment": environment})


def _stop(
    recorder: Recorder, delivery: Delivery, reason: str, *, status: Status = "KILLED", limit: float = float("inf")
) -> None:
    """Close the runs of the trials under way as KILLED, and the sweep's own."""
    recorder.kill_all(reason)
    recorder.close(status)
    delivery.finish(limit=limit)


@contextmanager
def _reserve(folder: Path, identity: str) -> Iterator[Path]:
    """A file that holds some room on the disk, to be removed when there is none left. A killed driver's is the next
    one's."""
    path = folder / f"reserve-{identity[:12]}"
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
