"""The run of a planned sweep: opens and closes its page, reserves disk space, and returns the exit code."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pandas as pd
from rich.console import Console

from pforce.base.console import DONE, SOME_FAILED, STOPPED, stop_on_signals
from pforce.base.files import write_bytes
from pforce.base.machine import cores_withheld
from pforce.base.words import counted
from pforce.executors.executor import Executor, make
from pforce.orchestration import apart
from pforce.orchestration.display import Display
from pforce.orchestration.drive import TIME_LIMIT, DiskFull, RetryPolicy, drive
from pforce.orchestration.options import setup_of
from pforce.orchestration.plan import Plan, entry_of, provenance, sweep_entry, this_command
from pforce.orchestration.recorder import Recorder
from pforce.orchestration.sweep_report import sweep_frame, sweep_summary
from pforce.orchestration.trials import Trials, entries
from pforce.records.ledger import Ledger
from pforce.records.status import FAILED, FINISHED, Status
from pforce.results.pictures import snapshots_before
from pforce.results.shown import show_cells, views_of
from pforce.results.sweep_run import Summary, run_view, show_sweep
from pforce.tracking import Live, Mirror, Page, Tags, TrackingError, View
from pforce.tracking.checks import why
from pforce.tracking.live import CATCH_UP
from pforce.tracking.page import Progress
from pforce.training import Callback
from pforce.trial.failures import DISK_FULL, is_disk_full

Summarize = Callable[[Plan, pd.DataFrame, bool], Summary]
"""Function from a plan, the frame of its cells, and whether claims are made, to what the sweep has come to."""
STOP_SECONDS = 5.0
"""Most seconds to wait for the tracking store after a signal."""
RESERVE_BYTES = 2**20
CLAIMED: tuple[Status, ...] = (FINISHED, FAILED)
"""States of a sweep at whose end claims are made; those of a stopped one would be an early look."""
STOPPED_BY = "Stopped by {}; the same command resumes from here."


def _size(plan: Plan) -> dict[str, str]:
    """Tags of a sweep's size: its number of cells, and the cells that were finished before."""
    # Shortened, as a tag holds at most 4,000 characters.
    cells = len(plan.work) + (plan.supply.left if plan.supply else 0)
    return {Tags.CELLS: str(cells), Tags.REUSED: " ".join(sorted(done[:12] for done in plan.done)[:300])}


def nothing_ran(plan: Plan) -> int:
    """The exit code of a sweep with nothing left to run."""
    return SOME_FAILED if plan.diverged else DONE


def show_finished(plan: Plan, say: Callable[[str], None], summarize: Summarize = sweep_summary) -> None:
    """Show a sweep with nothing left to run in MLflow. Where the store refuses, there is only a warning: the results
    are in the storage."""
    if plan.tracker is None:  # the plan has reported that
        return
    try:
        mirror = Mirror(plan.tracker, plan.options.place, say)
        entry = sweep_entry(plan)
        page = mirror.page(entry.name, {entry.identity, *(item.fingerprint for item in plan.work)})
        shown = show_sweep(
            page, entry, plan.ledger, final=True, summarize=lambda entry: summarize(plan, sweep_frame(plan), True)
        )
    except Exception as error:  # every kind of store raises its own
        say(f"warning: {plan.tracker.shown} does not show this sweep: {why(error)}. {CATCH_UP}")
        return
    mirror.say_refused(say)
    if shown.made or shown.updated:
        say(f"{counted(shown.made, 'run')} made in {plan.tracker.shown}, {shown.updated} brought up to date")


def execute(
    plan: Plan, console: Console, executor: str, *, callbacks: Sequence[Callback] = (),
    summarize: Summarize = sweep_summary,
) -> int:  # fmt: skip
    """Run the missing cells of a plan. Returns DONE, SOME_FAILED or STOPPED; all finished work is in the storage.

    A killed sweep needs no state of its executor to be resumed: finished parts are records, and a running training has
    checkpoints in a folder named by its digest. Several drivers of one sweep share its work.

    Args:
        executor: name of the executor.
        callbacks: callbacks of trainings that run in this process.
        summarize: function that gives what MLflow shows of the sweep itself.
    """

    def say(text: str) -> None:
        console.print(text, soft_wrap=True)

    if not plan.left:
        show_finished(plan, say, summarize)
        return nothing_ran(plan)
    try:
        with stop_on_signals():
            plan.forget_divergences()
            with plan.in_order():
                return _execute(plan, console, executor, callbacks=callbacks, say=say, summarize=summarize)
    except (KeyboardInterrupt, SystemExit) as stopped:  # Ray's own SIGTERM handler, while it starts, exits
        say(STOPPED_BY.format(stopped))
        return STOPPED
    except (OSError, RuntimeError) as error:  # the disk of the driver's own files may be full
        if not is_disk_full(error):
            raise
        say(disk_full_message(plan.options.root, str(error)))
        return STOPPED


@contextmanager
def _page(
    plan: Plan, done: set[str], say: Callable[[str], None], summarize: Summarize
) -> Iterator[Live | None]:  # fmt: skip
    """The live page of a sweep; None where there is no store.

    Args:
        done: digests of cells that it shows from their records at the start, and whenever it catches up.
    """
    if plan.tracker is None:
        yield None
        return
    mirror = Mirror(plan.tracker, plan.options.place, say)
    ledger = Ledger(plan.options.place, plan.ledger.say)  # its own ledger, for another thread

    def before(page: Page, parent: str, between: Progress) -> None:
        ledger.refresh()
        cells = [entry_of(item) for item in list(plan.work) if item.fingerprint in done]
        show_cells(page, cells, ledger, parent, progress=between)

    def own(status: Status) -> View | None:
        entry = sweep_entry(plan)
        frame, final = sweep_frame(plan, ledger), status in CLAIMED
        views = views_of(entry.cells, plan.options.place, ledger)
        if not views:
            return None
        return run_view(entry, views, summarize(plan, frame, final), ledger, status=status, final=final)

    with Live(mirror, plan.sweep.name, plan.identity, say, before, own=own) as live:
        yield live


def describe(plan: Plan, executor: Executor) -> str:
    """A sentence on the number of simultaneous trials and their resources."""
    placement, options = executor.placement, plan.options
    kind = f"{placement.gpu_type} GPU" if placement.gpu_type else "GPU"
    gpus = f" and {counted(placement.gpus, kind)}" if placement.gpus else ""
    text = f"{counted(plan.left, 'trial')}, {placement.concurrent} at a time, each on "
    cores = counted(placement.cpus, "core")
    withheld = cores_withheld() if executor.here else ""
    whole = placement.workers // placement.per_node if placement.per_node is not None else 0
    alone = f", on {counted(whole, 'node')} of its own" if whole else ""
    within = f"{alone}, in all on {withheld}" if withheld else alone
    if placement.workers == 1:
        return f"{text}{cores}{gpus}{within}"
    spread = ", each on a node of its own" if placement.spread else ""
    return (
        f"{text}{placement.workers} workers of {cores}{gpus}{spread}{within}; a worker that does not answer "
        f"is given up after {options.collective_timeout:g} s"
    )


def _execute(
    plan: Plan, console: Console, name: str, *, callbacks: Sequence[Callback], say: Callable[[str], None],
    summarize: Summarize,
) -> int:  # fmt: skip
    tags, identity, options = provenance(), plan.identity, plan.options
    done = {*plan.done, *plan.diverged}
    with ExitStack() as stack:
        live = stack.enter_context(_page(plan, done, say, summarize))
        reserve = stack.enter_context(_reserve(options.root, identity))
        finished = len(plan.work) - len(plan.missing)
        display = Display(console, "sweep", finished + plan.left, finished)
        recorder = Recorder(
            live, display, entries(plan, tags), folder=options.root,
            tags={**tags, **_size(plan), Tags.COMMAND: this_command()},
        )  # fmt: skip
        try:
            stopped = _run(plan, name, callbacks, recorder, say)
        except (KeyboardInterrupt, SystemExit) as interrupted:
            say(STOPPED_BY.format(interrupted))
            _stop(plan, recorder, live, "stopped", limit=STOP_SECONDS)
            return STOPPED
        except Exception as error:
            if not isinstance(error, DiskFull) and not is_disk_full(error):
                limit = STOP_SECONDS if isinstance(error, TrackingError) else float("inf")
                _stop(plan, recorder, live, f"driver: {type(error).__name__}", status="FAILED", limit=limit)
                raise
            reserve.unlink(missing_ok=True)  # frees room for what is still to be written
            say(disk_full_message(options.root, str(error)))
            with suppress(OSError, TrackingError):
                _stop(plan, recorder, live, DISK_FULL, limit=STOP_SECONDS)
            return STOPPED
        if stopped:
            say("Stopped by the wall-clock limit; the same command resumes from here.")
            _stop(plan, recorder, live, TIME_LIMIT)
            return STOPPED
        plan.failed |= recorder.failed
        if live is not None and snapshots_before([entry_of(item) for item in plan.work]):
            done |= recorder.finished  # pictures of snapshots may have come after those of longer trainings
            live.catch_up()
        failed = bool(recorder.failed or plan.diverged)
        _stop(plan, recorder, live, "", status="FAILED" if failed else "FINISHED")
        return SOME_FAILED if failed else DONE


def _run(
    plan: Plan, name: str, callbacks: Sequence[Callback], recorder: Recorder, say: Callable[[str], None]
) -> bool:  # fmt: skip
    """Train, then make separate measurements. Returns whether the time limit has stopped it."""
    limit = plan.options.max_hours
    deadline = None if limit is None else time.monotonic() + limit * 3600
    source = Trials(plan, recorder)
    setup = setup_of(plan.options, plan.sweep.name, tasks=plan.left, say=recorder.display.line, callbacks=callbacks)
    with make(name, setup) as executor:
        alone = executor.placement.workers == 1 and plan.options.evaluation_workers is None
        source.beside = alone and executor.placement.concurrent > 1
        say(describe(plan, executor))
        recorder.begin()
        with recorder.display:
            ended = drive(executor, source, recorder, retry=RetryPolicy(plan.options.retries), deadline=deadline)
    if source.trained and ended.stopped is None:
        with recorder.display:
            ended = apart.evaluate(plan, recorder, source.trained, say, deadline)
    return ended.stopped is not None


def _stop(
    plan: Plan,
    recorder: Recorder,
    live: Live | None,
    reason: str,
    *,
    status: Status = "KILLED",
    limit: float = float("inf"),
) -> None:
    """Close the runs of running trials as KILLED, and the sweep's own run."""
    recorder.kill_all(reason)
    recorder.close(status, _size(plan))  # it may have grown
    if live is not None:
        live.finish(limit=limit)


@contextmanager
def _reserve(folder: Path, identity: str) -> Iterator[Path]:
    """A file that reserves room on the disk, to be removed when the disk is full. Reserves of this machine's killed
    drivers are removed."""
    host = socket.gethostname()
    path = folder / f".reserve-{identity[:12]}-{host}-{os.getpid()}"
    for left in folder.glob(f".reserve-{identity[:12]}-{host}-*"):
        process = left.name.rpartition("-")[2]
        if process.isdecimal() and not Path(f"/proc/{process}").exists():
            left.unlink(missing_ok=True)
    try:
        write_bytes(path, b"\0" * RESERVE_BYTES, lasting=False)
        yield path
    finally:
        path.unlink(missing_ok=True)


def disk_full_message(folder: Path, error: str) -> str:
    """The message where a file could not be written because the disk is full."""
    free = shutil.disk_usage(folder).free / 2**20
    return (
        f"Stopped, the disk is full: {folder.absolute()} has {free:,.0f} MiB free ({error}). The last good checkpoints "
        "are kept. Make room, or get a larger quota; the same command then resumes from here."
    )
