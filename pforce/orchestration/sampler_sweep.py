"""Sampler sweeps: workers keep a trained model in memory, Optuna suggests samplers, and the storage keeps results."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import pandas as pd
from rich.console import Console

from pforce.base.console import DONE, SOME_FAILED, STOPPED, stop_on_signals
from pforce.base.files import digest
from pforce.config import sampler_from_dict, to_dict
from pforce.executors.executor import Executor, Workforce
from pforce.metrics.distances import metric_name
from pforce.metrics.names import CostName
from pforce.orchestration.display import Display
from pforce.orchestration.drive import Source, drive
from pforce.orchestration.launch import STOP_SECONDS
from pforce.orchestration.objectives import Objective
from pforce.orchestration.options import SCRATCH
from pforce.orchestration.plan import provenance, this_command
from pforce.orchestration.recorder import Entry, Recorder
from pforce.orchestration.sampler_front import Metrics, front_frame, recorded_samplers
from pforce.orchestration.sampler_search import Measurement, Outcome, Search, SearchSpace, label
from pforce.orchestration.study import Method, Study
from pforce.records.identity import canonical_sampler
from pforce.records.ledger import Ledger
from pforce.records.parts import Request
from pforce.records.provenance import user
from pforce.records.row import joined
from pforce.records.status import Status
from pforce.records.sweeps import CellEntry, SweepEntry, add_cells, read_sweep, require_name
from pforce.results.shown import recorded_view, show_cells, views_of
from pforce.results.sweep_run import Summary, run_view
from pforce.sampling import Euler, Guidance, Sampler
from pforce.storage import Storage
from pforce.tracking import Live, Mirror, Page, Tags, Tracker, View
from pforce.tracking.page import Progress
from pforce.trial.measurable import Measurable
from pforce.trial.measure import missing
from pforce.trial.task import Done, Failed, Idle, Measure, Task


@dataclass(frozen=True)
class SamplerSweep:
    """A search of samplers on one model."""

    name: str
    """Name of the MLflow experiment and of the files."""
    subject: Measurable
    """The model, with everything that samplers are measured with."""
    space: SearchSpace
    trials: int
    """Number of samplers that are measured."""
    guidance: Guidance = field(default_factory=Guidance)
    seed: int = 0
    """Seed of Optuna's sampler."""
    method: Method = "tpe"
    """Optuna's method."""
    study: str | None = None
    """Address of the study's database; None for a journal in the storage."""
    confirm: bool = True
    """Measure the front once more from other noise, because selection favours lucky noise."""
    weights: str = "ema"
    """Kind of the model's weights in the record: ema, raw, or unknown."""

    def __post_init__(self) -> None:
        require_name(self.name)

    @property
    def noise_seed(self) -> int:
        """Seed of the noise that the search draws from."""
        return self.subject.request.seed

    @property
    def distance(self) -> str:
        """The metric that the search minimises."""
        return metric_name("fd", self.subject.request.detector["name"])

    def request(self, task: Measurement) -> Request:
        """The request for a sampler's measurement."""
        return replace(self.subject.request, sampler=canonical_sampler(task.sampler), seed=task.seed)

    def key(self, task: Measurement) -> str:
        """Digest of a measurement."""
        parts = self.request(task).image_parts(self.subject.sha256).values()
        return digest("measurement", sorted(part.digest for part in parts))

    @property
    def identity(self) -> str:
        """Digest of the search without the number of trials, so that the same command with more trials resumes it."""
        task = Measurement(Euler(guidance=self.guidance), self.noise_seed)
        own = [self.name, self.space.identity, asdict(self.guidance), self.seed, self.key(task)]
        return digest("sampler sweep", json.loads(json.dumps(own)))

    def frame(self, measured: Iterable[tuple[Sampler, Metrics, Metrics | None]]) -> pd.DataFrame:
        """One row per sampler, as `front_frame`."""
        return front_frame(measured, self.space.settings, self.distance, self.subject.request.images)

    def open_study(self, storage: Storage) -> Study:
        """The study of the search. ConfigError as `Study`."""
        goal = Objective(self.distance), Objective(CostName.NFE)
        return Study(storage, self.name, self.study, study=f"{self.name}-{self.identity[:8]}", space=self.space,
                     objectives=goal, method=self.method, seed=self.seed, trials=self.trials)  # fmt: skip


class _Run:
    """The state of a call: the ledger, the search, the measurements."""

    def __init__(self, sweep: SamplerSweep, storage: Storage, console: Console) -> None:
        self.sweep, self.storage, self.console = sweep, storage, console
        self.distance = sweep.distance
        self.ledger = Ledger(storage, self._say)
        self.search = Search(sweep.space, sweep.guidance, sweep.open_study(storage))
        self.metrics: dict[str, dict[str, float]] = {}
        """Key → metrics of a measurement."""
        self.configs: dict[str, Sampler] = {}
        """Key → sampler, for measurements with the search's own seed, in order."""
        self.confirmed: dict[str, Measurement] = {}
        """Key → measurement, for those from other noise."""
        self.reused: list[str] = []
        """Keys of samplers that other calls had measured before."""
        self.failed: dict[str, str] = {}
        """Label → reason."""
        self.tags = provenance()
        self.seconds = self.busy = 0.0
        self.measured = 0
        self._recall()

    def _say(self, line: str) -> None:
        self.console.print(f"warning: {line}", soft_wrap=True)

    def _recall(self) -> None:
        """Add the samplers that earlier calls of this sweep measured."""
        there = read_sweep(self.storage, self.sweep.name, self.sweep.identity, self._say)
        for cell in there.cells if there else ():
            if cell.seed != self.sweep.noise_seed:
                continue
            config = sampler_from_dict(json.loads(str(cell.params["sampler.json"])))
            task = Measurement(config, self.sweep.noise_seed)
            if self.known(task):
                self.accept(config, self.sweep.key(task), recalled=True)

    def known(self, task: Measurement) -> bool:
        """Whether a measurement is there, whoever made it, so that none is made twice."""
        key = self.sweep.key(task)
        if key not in self.metrics:
            request, weights = self.sweep.request(task), self.sweep.subject.sha256
            if missing(request, weights, self.ledger):
                return False
            found = self.ledger.find(request.parts(weights))
            self.metrics[key] = joined(request, weights, found, self.ledger.get(request.drawn(weights)))
        if task.seed != self.sweep.noise_seed:
            self.confirmed[key] = task
        return True

    def accept(self, config: Sampler, key: str, *, reused: bool = False, recalled: bool = False) -> None:
        """Add a sampler with known metrics to this sweep."""
        self.configs[key] = config
        if reused:
            self.reused.append(key)
        (self.search.recall if recalled else self.search.tell)(
            config, self.metrics[key][self.distance], self.metrics[key][CostName.NFE]
        )
        if not recalled:
            self.keep()

    def keep(self) -> None:
        """Write the sweep's file with its samplers."""
        tasks = [*(Measurement(config, self.sweep.noise_seed) for config in self.configs.values()),
                 *self.confirmed.values()]  # fmt: skip
        cells = {(entry := self.entry(task)).cell: entry for task in tasks}
        sweep = self.sweep
        own = SweepEntry(sweep.name, sweep.identity, list(cells.values()), command=this_command(), user=user())
        add_cells(self.storage, own, self._say)

    def entry(self, task: Measurement) -> CellEntry:
        """A measurement's entry in the sweep's file."""
        request, weights = self.sweep.request(task).plain(), self.sweep.subject.sha256
        return CellEntry(label(task), self.sweep.key(task), self.params(task), request, task.seed, weights=weights)

    def params(self, task: Measurement) -> dict[str, object]:
        """A measurement's parameters for its run."""
        record = task.sampler.canonical()
        guidance = record.pop("guidance")
        return {
            **{f"sampler.{name}": value for name, value in record.items()},
            "sampler.guidance": guidance["scale"],
            "sampler.json": json.dumps(to_dict(task.sampler)),
            "evaluation.images": self.sweep.subject.request.images,
            "evaluation.seed": task.seed,
        }

    def shown(self, task: Measurement) -> Entry:
        """The content of a measurement's run."""
        subject, entry = self.sweep.subject, self.entry(task)
        tags = {**self.tags, "model": subject.source, "model.sha256": subject.sha256, "weights": self.sweep.weights}
        params = {name: str(value) for name, value in self.params(task).items()}
        whole = partial(recorded_view, entry, self.storage, self._say)
        return Entry(entry.cell, label(task), params, tags, whole=whole)

    def frame(self, again: int | None = None) -> pd.DataFrame:
        """One row per sampler; `again` is the noise seed of the confirmation."""

        def measured(key: str, config: Sampler) -> tuple[Sampler, Metrics, Metrics | None]:
            other = None if again is None else self.metrics.get(self.sweep.key(Measurement(config, again)))
            return config, self.metrics[key], other

        return self.sweep.frame(measured(key, config) for key, config in self.configs.items())

    def unconfirmed(self, again: int | None) -> list[Sampler]:
        """The front's samplers that have not been measured from the other noise yet."""
        if again is None or not self.configs:
            return []
        configs = list(self.configs.values())
        for config in configs:
            self.known(Measurement(config, again))
        frame = self.frame(again)
        shown = zip(configs, frame["front"], frame["again"], strict=True)
        return [config for config, front, value in shown if front and pd.isna(value)]

    def take(self, task: Measurement, metrics: Mapping[str, float]) -> None:
        """Add a finished measurement to the search and the table."""
        key = self.sweep.key(task)
        self.metrics[key] = dict(metrics)
        if task.seed == self.sweep.noise_seed:
            self.accept(task.sampler, key)
        else:
            self.confirmed[key] = task
            self.keep()

    def fail(self, task: Measurement, reason: str) -> None:
        """Note that a sampler could not be measured."""
        self.failed[label(task)] = reason
        if task.seed == self.sweep.noise_seed:
            self.search.fail(task.sampler)


class Searching(Source):
    """The source of measurements: samplers that the search suggests, then those of the front from other noise."""

    recorder: Recorder
    """Recorder of the results; set before the first task is asked for."""

    def __init__(self, state: _Run, display: Display, again: int | None) -> None:
        self.state, self.display, self.again = state, display, again
        self.tasks: dict[str, Measurement] = {}
        """Digest → measurement that was handed out."""
        self.under_way: set[str] = set()
        self.used_up = False
        """Whether the space is exhausted, so that the search is not repeated at every tick."""
        self.confirming: list[Measurement] | None = None
        self.first = self._suggested()  # so that it is known before workers start whether there is anything to do

    def entry(self, cell: str) -> Entry:
        """The content of a measurement's run, by its digest."""
        return self.state.shown(self.tasks[cell])

    @property
    def empty(self) -> bool:
        """Whether there is nothing to measure."""
        return self.first is None and not self.state.unconfirmed(self.again)

    def next(self) -> Task | Idle:
        wanted, self.first = self.first or self._suggested(), None
        if wanted is None and self.under_way and self.confirming is None:
            return Idle.WAIT  # a running one may fail, and the front is not known before the last has ended
        wanted = wanted or self._confirmation()
        if wanted is None:
            return Idle.END
        sweep = self.state.sweep
        key = sweep.key(wanted)
        self.tasks[key] = wanted
        self.under_way.add(key)
        model = replace(sweep.subject, sampler=wanted.sampler, request=sweep.request(wanted))
        return Measure(key, label(wanted), model, cells=(key,))

    def _suggested(self) -> Measurement | None:
        """A sampler that nobody has measured yet, while there are trials left."""
        state, sweep = self.state, self.state.sweep
        # A failed sampler counts as tried in this call; the next call retries it.
        for other in state.search.others():
            if state.known(task := Measurement(other, sweep.noise_seed)):
                state.accept(other, sweep.key(task), reused=True, recalled=True)
                state.keep()
        while self._tried() < sweep.trials and not self.used_up:
            if (config := state.search.ask()) is None:
                self.used_up = True
                return None
            task = Measurement(config, sweep.noise_seed)
            if not state.known(task):
                return task
            state.accept(config, sweep.key(task), reused=True)
        return None

    def _tried(self) -> int:
        """Number of samplers that count as tried: measured, failed, or under way here or in another process."""
        state = self.state
        return len(state.configs) + len(state.failed) + len(self.under_way) + state.search.elsewhere

    def _confirmation(self) -> Measurement | None:
        state = self.state
        if self.confirming is None:
            tried = len(state.configs) + len(state.failed)
            if tried < state.sweep.trials:
                self.display.line(f"The space is exhausted: it has {len(state.configs)} different samplers.")
            front = state.unconfirmed(self.again)
            assert self.again is not None or not front
            self.confirming = [Measurement(config, self.again or 0) for config in front]
            self.display.extend(len(front))
        return self.confirming.pop(0) if self.confirming else None

    def done(self, task: Task, event: Done) -> None:
        of, state = self.tasks[task.id], self.state
        self.under_way.discard(task.id)
        state.take(of, event.metrics)
        state.busy += event.seconds
        state.measured += 1
        note = f"{state.distance} {event.metrics[state.distance]:.2f} · {event.metrics[CostName.NFE]:.0f} NFE"
        self.recorder.finish(task.id, task.label, note)

    def failed(self, task: Task, event: Failed) -> None:
        self.under_way.discard(task.id)
        self.state.fail(self.tasks[task.id], event.failure.reason)


def run(
    sweep: SamplerSweep, tracker: Tracker, storage: Storage, console: Console, workforce: Workforce, *,
    summarize: Callable[[pd.DataFrame], Summary] | None = None,
) -> Outcome:  # fmt: skip
    """Measure the missing trials, then the front again. Stopped calls can be resumed; several simultaneous calls share
    the work.

    Args:
        summarize: function from a frame with one row per sampler to what the search has come to, for MLflow; None
            shows samplers only.
    """

    def say(text: str) -> None:
        console.print(text, soft_wrap=True)

    ledger = Ledger(storage, say)

    def before(page: Page, parent: str, between: Progress) -> None:
        there = read_sweep(storage, sweep.name, sweep.identity, say)
        if there is not None:
            show_cells(page, there.cells, ledger, parent, progress=between)

    def own(status: Status) -> View | None:
        there = read_sweep(storage, sweep.name, sweep.identity, say)
        ledger.refresh()
        views = {} if there is None else views_of(there.cells, storage, ledger)
        if there is None or not views or summarize is None:
            return None
        found = sweep.frame(recorded_samplers(there, ledger, sweep.noise_seed))
        return run_view(there, views, summarize(found), ledger, status=status, final=True) if len(found) else None

    # Errors in the options are reported before anything is shown.
    at = workforce.make(sweep.name, storage.root / SCRATCH, say=say)
    with Live(
        Mirror(tracker, storage, say), sweep.name, sweep.identity, say, before, own=own if summarize else None
    ) as live:
        return _run(sweep, live, storage, console, at)


def _run(sweep: SamplerSweep, live: Live, storage: Storage, console: Console, executor: Executor) -> Outcome:
    state = _Run(sweep, storage, console)
    again = sweep.noise_seed + 1 if sweep.confirm else None
    display = Display(console, "search", sweep.trials, len(state.configs), "samplers")
    source = Searching(state, display, again)
    recorder = Recorder(
        live, display, source.entry, folder=storage.root, tags={**state.tags, Tags.COMMAND: this_command()}
    )  # fmt: skip
    source.recorder = recorder
    code, used = STOPPED, 0
    with stop_on_signals():
        recorder.begin()
        try:
            if not source.empty:
                with executor as at, display:
                    started = time.perf_counter()
                    drive(at, source, recorder)
                    state.seconds, used = time.perf_counter() - started, at.placement.concurrent
            code = SOME_FAILED if state.failed else DONE
        except (KeyboardInterrupt, SystemExit) as stopped:  # Ray's own SIGTERM handler, while it starts, exits
            console.print(f"Stopped by {stopped}; the same command resumes from here.")
        finally:
            recorder.kill_all("stopped")
            live.catch_up()  # shows samplers that other calls had measured before
            ended: dict[int, Status] = {DONE: "FINISHED", SOME_FAILED: "FAILED", STOPPED: "KILLED"}
            recorder.close(ended[code], {"trials": str(len(state.configs)), Tags.REUSED: " ".join(state.reused)})
            live.finish(limit=STOP_SECONDS if code == STOPPED else float("inf"))
    return Outcome(code, state.frame(again), state.seconds, state.busy, state.measured, used, state.failed)
