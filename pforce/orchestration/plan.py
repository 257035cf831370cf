"""The plan of a sweep: its cells compared with what is already finished, before anything starts. Without Ray."""

from __future__ import annotations

import os
import random
import shlex
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from pforce.base.errors import ConfigError
from pforce.base.words import counted
from pforce.config import Experiment, flat_params
from pforce.data import Manifest, ensure
from pforce.models.attention import require_attention
from pforce.orchestration.display import Display
from pforce.orchestration.notify import shown
from pforce.orchestration.options import WORKER, Options, tracker_of, tracking_uri_of
from pforce.orchestration.recorded import recorded, sweep_of_name
from pforce.orchestration.sweep import Cell, Sweep, Work, reads_of, same_distribution_notes, unspent_notes
from pforce.records import provenance as made
from pforce.records.lease import Contender, LeaseError, held_below
from pforce.records.ledger import Ledger
from pforce.records.parts import BFLOAT16, FLOAT32, Inputs
from pforce.records.record import Record
from pforce.records.row import divergence_of, missing_of
from pforce.records.sweeps import CellEntry, SweepEntry
from pforce.tracking import Tracker, TrackingError, is_installed, mask
from pforce.tracking.live import CATCH_UP
from pforce.trial.drawn_images import beyond_kept
from pforce.trial.folder import TRAINING, training_folder
from pforce.trial.reference import check_reference, inputs_of
from pforce.trial.where import auto_precision_on, check_data, choose_device, precision_note

ORDER = "order"
"""Lease of the driver that runs a sweep's cells in their order."""


class Supply(ABC):
    """A supply of further cells of a sweep while it runs."""

    @abstractmethod
    def added(self, display: Display, *, waiting: int, running: int) -> list[Work]:
        """New cells that are to run, which are also in the plan from now on.

        Args:
            waiting: number of cells that wait for a worker.
            running: number of cells that workers have.
        """

    @property
    @abstractmethod
    def open(self) -> bool:
        """Whether cells may still come while others run."""

    @property
    def left(self) -> int:
        """Number of cells that are still to come, as far as it is known."""
        return 0

    @abstractmethod
    def ended(self, item: Work) -> None:
        """Take note of a cell that has finished or failed for good."""


@dataclass
class Plan:
    """A sweep compared with what is already finished."""

    sweep: Sweep
    options: Options
    data: Path
    tracker: Tracker | None
    """Tracking store; None where MLflow is not installed, or where the store is unreachable and no cell is missing."""
    inputs: Inputs
    """Inputs of the experiments, by content."""
    work: list[Work]
    ledger: Ledger
    done: set[str]
    """Fingerprints of finished cells."""
    diverged: dict[str, Record] = field(default_factory=dict)
    """Fingerprint → record of the divergence, for cells whose training diverged; --again diverged runs them."""
    failed: dict[str, str] = field(default_factory=dict)
    """Fingerprint → reason, for cells that failed when the plan was carried out."""
    notes: list[str] = field(default_factory=list)
    elsewhere: set[str] = field(default_factory=set)
    """Trainings that other drivers are running; their cells come last."""
    order: int | None = None
    """Seed of a random order of cells, where another driver runs this sweep; else None."""
    first: set[str] = field(default_factory=set)
    """Fingerprints of cells that run before all others (--priority)."""
    supply: Supply | None = None
    """Supply of further cells; None for the sweep's file, to which other commands may add some."""
    passed: dict[str, float] = field(default_factory=dict)
    """Fingerprint of each cell that earlier commands have added and this one does not run → when it was asked for."""
    _items: dict[str, Work] = field(default_factory=dict, repr=False)

    @property
    def identity(self) -> str:
        """The sweep's identity."""
        return self.sweep.identity(self.work)

    @property
    def cells(self) -> list[Cell]:
        """All cells: the sweep's, and those that other commands have added."""
        return [cell for item in self.work for cell in item.cells]

    def item(self, cell: str) -> Work:
        """The piece of work of a cell's digest."""
        if cell not in self._items:
            self._items = {item.fingerprint: item for item in self.work}
        return self._items[cell]

    @property
    def left(self) -> int:
        """Number of cells that still have to run, those to come included."""
        return len(self.missing) + (self.supply.left if self.supply else 0)

    @contextmanager
    def in_order(self) -> Iterator[None]:
        """Choose the order of cells during the block: of several drivers of a sweep, one takes the cells in order, the
        others each in a random order so that they meet late, with cells that others are training last."""
        key = f"{ORDER}/{self.identity}"
        try:
            lease = Contender(self.options.place, key, "running the sweep in its order").try_acquire()
        except LeaseError:  # reported where work is leased
            lease = None
        self.order = None if lease is not None else int.from_bytes(os.urandom(4))
        self.look_elsewhere(self.missing)
        try:
            yield
        finally:
            if lease is not None:
                lease.release()

    def look_elsewhere(self, work: Sequence[Work]) -> None:
        """Look up which trainings of these cells other processes are running."""
        self.elsewhere = held_below(self.options.place, TRAINING, {item.training for item in work})

    def look(self) -> None:
        """Look up which of the other cells are finished by now, and which have diverged and are not to be retried."""
        self.ledger.refresh()
        self.done |= finished_of([item for item in self.work if item.fingerprint not in self.done], self.ledger)
        others = [item for item in self.work if item.fingerprint not in self.done]
        self.diverged = {} if "diverged" in self.options.again else divergences_of(others, self.ledger)

    def forget_divergences(self, work: Sequence[Work] | None = None) -> None:
        """Forget the divergences of cells where --again diverged was given, so that new attempts count.

        Args:
            work: the cells; by default all missing ones.
        """
        if "diverged" in self.options.again:
            for record in divergences_of(self.missing if work is None else list(work), self.ledger).values():
                self.ledger.forget(record.digest, "tried again: --again diverged", who=made.provenance())

    @property
    def missing(self) -> list[Work]:
        """Cells that still have to run. The first cell of each training comes first, so that no trial waits for a
        training that another one runs while a third could be trained."""
        there: Counter[str] = Counter()
        turns = []
        work = list(self.work)
        if self.order is not None:
            random.Random(self.order).shuffle(work)  # no secret
        for item in work:
            if item.fingerprint not in self.done and item.fingerprint not in self.diverged:
                turn = (item.fingerprint not in self.first, item.training in self.elsewhere, there[item.training])
                turns.append((turn, item))
                there[item.training] += 1
        return [item for _, item in sorted(turns, key=lambda turn: turn[0])]


def check_workers(experiment: Experiment, workers: int) -> None:
    """Raise ConfigError where that many workers cannot share the experiment's batches."""
    streams, training = experiment.data.streams, experiment.training
    if streams % workers:
        fitting = ", ".join(str(n) for n in range(1, streams + 1) if streams % n == 0)
        raise ConfigError(f"--workers {workers}: must divide data.streams = {streams}: one of {fitting}")
    share = training.batch // workers
    if share % training.accumulation:
        raise ConfigError(
            f"training.accumulation = {training.accumulation}: must divide a worker's share of the batch, "
            f"{training.batch} / {workers} = {share}"
        )


def check_cell(experiment: Experiment, base: Experiment, workers: int) -> None:
    """Raise ConfigError where a cell reads other data than the base, or where the workers cannot share its batches."""
    if reads_of(experiment) != reads_of(base):
        raise ConfigError(
            "data, evaluation.detector and evaluation.reference cannot be axes; run one sweep for each of their values"
        )
    check_workers(experiment, workers)


def auto_precision(options: Options) -> str:
    """The precision that `training.precision = auto` stands for: bfloat16 where the workers have GPUs that support it,
    as far as this process can know before any worker starts."""
    if options.gpus_per_trial is not None:
        return BFLOAT16 if options.gpus_per_trial > 0 else FLOAT32
    return auto_precision_on(choose_device())


def _add_earlier(sweep: Sweep, work: list[Work], inputs: Inputs, ledger: Ledger) -> dict[str, float]:
    """Add the finished cells that earlier commands of the same name have written down. Returns the fingerprints of
    those that are left out, each with the time at which it was asked for. ConfigError where that sweep has other
    settings."""
    there = sweep_of_name(sweep, ledger.storage, ledger.say)
    if sweep.points is not None or there is None:  # the study of a search has them
        return {}
    earlier = recorded(sweep, there, inputs, {item.fingerprint for item in work})
    # A table of the paper shows the seeds that were asked for: a row with more of them would be no fair one.
    finished = finished_of(earlier, ledger) if sweep.known_by == "settings" else set()
    together = {cell.text: item.cells for item in work for cell in item.cells}
    for item in earlier:
        if item.fingerprint in finished:  # other seeds of values with one distribution have the same row
            names = together.get(item.cells[0].text, item.cells)
            work.append(Work(item.parts, tuple(replace(item.cells[0], values=cell.values) for cell in names)))
    left = {item.fingerprint for item in earlier} - finished
    return {cell.cell: cell.asked for cell in there.cells if cell.cell in left}


def plan(sweep: Sweep, options: Options, console: Console) -> Plan:
    """Check the storage, all cells against the data, and the tracking store, and look up which cells are done. Starts
    no worker."""

    def say(line: str) -> None:
        console.print(f"warning: {line}", soft_wrap=True)

    shows = options.executor != WORKER and is_installed()
    if shows:
        tracking_uri_of(options.place, options.tracking_uri)
    options.place.check()
    folder = ensure(sweep.base.data, progress=console.is_interactive).absolute()  # workers have another directory
    manifest = Manifest.load(folder)
    manifest.check(folder)
    detector = sweep.base.evaluation.load_detector()
    checked: set[tuple[object, ...]] = set()
    cells = [cell.experiment for cell in sweep.cells()] or [sweep.base]  # a search has none yet
    for experiment in cells:
        check_cell(experiment, sweep.base, options.workers)
        what = (experiment.model, experiment.data, experiment.training)
        if what not in checked:  # cells that do not differ in these need no second check
            if not (options.ray_address or os.environ.get("RAY_ADDRESS")):  # else workers are not this machine's
                require_attention(experiment.model.attention)
            check_data(experiment, folder, manifest, detector)
            checked.add(what)
    check_reference(sweep.base.evaluation, detector)
    inputs = inputs_of(sweep.base.evaluation, manifest, detector, auto=auto_precision(options))
    work, ledger = sweep.work(inputs), Ledger(options.place, say)
    passed = _add_earlier(sweep, work, inputs, ledger)
    notes = [*same_distribution_notes(work), *unspent_notes(work)]
    if passed and sweep.known_by == "settings":
        several = f"{counted(len(passed), 'unfinished cell')} of earlier commands of this name"
        notes.append(f"{several} not run: not among this command's; a command with their values runs them")
    beyond = beyond_kept(max((cell.evaluation.images for cell in cells), default=0), detector)
    slow = "" if options.ray_address else precision_note(sweep.base.training.precision, choose_device())
    notes += filter(None, [beyond, slow])
    if sweep.base.training.precision == "auto" and options.ray_address and inputs.auto == FLOAT32:
        notes.append(
            "precision auto is float32, as this machine has no GPU; where the cluster's workers have some, give "
            "--gpus-per-trial, or --set training.precision=bfloat16"
        )
    planned = Plan(sweep, options, folder, None, inputs, work, ledger, set(), notes=notes, passed=passed)
    planned.look()
    if not shows:
        why = "a worker writes to no database" if options.executor == WORKER else "MLflow is not installed here"
        notes.append(f"{why}: results are in the storage, and `pforce mirror` shows them")
        return planned
    notes += filter(None, [options.local_note])
    try:
        planned.tracker = tracker_of(options.place, options.tracking_uri)
        planned.tracker.check()
    except TrackingError as error:
        if planned.missing or sweep.points is not None:  # nothing is trained, as the address may be wrong
            raise
        planned.tracker = None
        notes.append(f"{error}. {CATCH_UP[0].upper()}{CATCH_UP[1:]}")
    return planned


def finished_of(work: list[Work], ledger: Ledger) -> set[str]:
    """Fingerprints of the cells whose parts all have a record."""
    return {item.fingerprint for item in work if missing_of(item.parts, ledger) == []}


def divergences_of(work: list[Work], ledger: Ledger) -> dict[str, Record]:
    """Fingerprint → record of the divergence, for the cells whose training diverged."""
    found = ((item.fingerprint, divergence_of(item.parts, ledger)) for item in work)
    return {fingerprint: record for fingerprint, record in found if record is not None}


def provenance() -> dict[str, str]:
    """Tags of every run: versions, and the git commit of this code where it is a checkout."""
    tags = {**made.versions(), "mlflow.user": made.user()}
    code = made.code()
    if code:
        tags["mlflow.source.git.commit"] = code["commit"]
        # Identities do not reflect edited code; the record does.
        tags["git.uncommitted_changes"] = str("changes" in code)
    return tags


def this_command() -> str:
    """This process's command in shell syntax, with secrets masked."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    for number, word in enumerate(words):
        if word.startswith("--notify="):
            words[number] = f"--notify={shown(word.partition('=')[2])}"
        elif word == "--notify" and number + 1 < len(words):
            words[number + 1] = shown(words[number + 1])
    return mask(shlex.join(words))


def entry_of(item: Work) -> CellEntry:
    """A cell's entry in the sweep's file."""
    params = flat_params(item.experiment)
    return CellEntry.of(item.label, item.parts, params, item.experiment.seed, item.cells[0].text)


def sweep_entry(planned: Plan) -> SweepEntry:
    """The file of a sweep, which lists its cells."""
    cells, sweep = [entry_of(item) for item in planned.work], planned.sweep
    settings = None if sweep.known_by == "cells" else sweep.settings
    return SweepEntry(
        sweep.name, planned.identity, cells, command=this_command(), user=made.user(), axes=sweep.paths,
        settings=settings,
    )  # fmt: skip


def trial_folder(options: Options, item: Work) -> Path:
    """Folder of a cell's training."""
    return options.root / training_folder(item.training)
