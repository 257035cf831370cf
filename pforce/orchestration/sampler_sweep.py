"""A sampler sweep: nothing is trained. Workers keep the model, Optuna suggests samplers, the storage keeps results."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

import pandas as pd
from rich.console import Console

from pforce.config import sampler_from_dict, to_dict
from pforce.files import digest
from pforce.metrics.distances import metric_name
from pforce.orchestration.display import SweepDisplay
from pforce.orchestration.launch import STOP_SECONDS, stop_on_signals
from pforce.orchestration.measuring import Done, Failed, Measurable, Measurer, Task
from pforce.orchestration.plan import provenance, this_command
from pforce.orchestration.pool import Pool, drain, make_pool
from pforce.orchestration.sampler_search import Search, SearchSpace
from pforce.records.identity import canonical_sampler
from pforce.records.lease import leased
from pforce.records.ledger import Ledger
from pforce.records.parts import Request
from pforce.records.provenance import user
from pforce.records.row import joined
from pforce.records.sweeps import CellEntry, SweepEntry, read_sweep
from pforce.results.pareto import on_front
from pforce.results.shown import recorded_view, show_cells
from pforce.sampling import Euler, Guidance, Sampler
from pforce.storage import Storage
from pforce.terminal import DONE, SOME_FAILED, STOPPED
from pforce.tracking import Live, Mirror, Page, Status, Tags, Tracker
from pforce.tracking.page import Progress
from pforce.trial.measure import missing
from pforce.validation import require


@dataclass(frozen=True)
class Measurement:
    """A sampler, and the seed of the noise that all samplers start from."""

    sampler: Sampler
    seed: int


@dataclass(frozen=True)
class SamplerSweep:
    """What is searched on one model."""

    name: str
    """Name of the MLflow experiment and of the files."""
    subject: Measurable
    """The model, and what every sampler is measured with."""
    space: SearchSpace
    trials: int
    """Samplers that are measured."""
    guidance: Guidance = field(default_factory=Guidance)
    seed: int = 0
    """Seed of Optuna's sampler."""
    confirm: bool = True
    """Measure the front once more from other noise: the best of many is flattered by its noise."""
    weights: str = "ema"
    """What the model's weights are called in the record: ema, raw, or unknown."""

    def __post_init__(self) -> None:
        require(bool(re.fullmatch(r"[\w.-]+", self.name)), "name", self.name, "letters, digits, '.', '_' and '-' (it "
                "names files)")  # fmt: skip

    @property
    def noise_seed(self) -> int:
        """Seed of the noise that the search draws from."""
        return self.subject.request.seed

    @property
    def distance(self) -> str:
        """The metric that is searched for."""
        return metric_name("fd", self.subject.request.detector["name"])

    def request(self, task: Measurement) -> Request:
        """What is asked of the model for a sampler."""
        return replace(self.subject.request, sampler=canonical_sampler(task.sampler), seed=task.seed)

    def key(self, task: Measurement) -> str:
        """Digest of a measurement."""
        parts = self.request(task).image_parts(self.subject.sha256).values()
        return digest("measurement", sorted(part.digest for part in parts))

    @property
    def identity(self) -> str:
        """Digest of what is searched, the number of trials left out: the same command with more of them goes on."""
        task = Measurement(Euler(guidance=self.guidance), self.noise_seed)
        own = [self.name, self.space.identity, asdict(self.guidance), self.seed, self.key(task)]
        return digest("sampler sweep", json.loads(json.dumps(own)))


@dataclass
class Outcome:
    """What a call of a sweep ends with."""

    code: int
    frame: pd.DataFrame
    """A row a sampler: its settings, NFE, passes, GFLOPs/image, s/image, distance, n, front, and `again`."""
    seconds: float
    """Wall-clock time of this call's measurements."""
    busy_seconds: float
    """Worker seconds in them."""
    measured: int
    """Measurements of this call."""
    workers: int
    failed: dict[str, str] = field(default_factory=dict)
    """What could not be measured, and why."""


class _Run:
    """The state of a call: the ledger, the search, the runs under way."""

    def __init__(self, sweep: SamplerSweep, live: Live, storage: Storage, console: Console) -> None:
        self.sweep, self.live, self.storage, self.console = sweep, live, storage, console
        self.distance = sweep.distance
        self.ledger = Ledger(storage, self._say)
        self.search = Search(sweep.space, sweep.guidance, seed=sweep.seed)
        self.metrics: dict[str, dict[str, float]] = {}
        """Key → what is known of a measurement."""
        self.configs: dict[str, Sampler] = {}
        """Key → sampler, of the search's own seed, in the order they came."""
        self.confirmed: dict[str, Measurement] = {}
        """Key → measurement, of those from other noise."""
        self.reused: list[str] = []
        """The samplers among these that were measured before, by whomever."""
        self.failed: dict[str, str] = {}
        """Label → reason."""
        self.open: set[str] = set()
        """Keys of the measurements under way."""
        self.tags = provenance()
        live.open({**self.tags, Tags.COMMAND: this_command()})
        self.seconds = self.busy = 0.0
        self.measured = 0
        self._recall()

    def _say(self, line: str) -> None:
        self.console.print(f"warning: {line}", markup=False, soft_wrap=True, highlight=False)

    def _recall(self) -> None:
        """The samplers that earlier calls of this sweep measured."""
        there = read_sweep(self.storage, self.sweep.name, self.sweep.identity, self._say)
        for cell in there.cells if there else ():
            if cell.seed != self.sweep.noise_seed:
                continue
            config = sampler_from_dict(json.loads(str(cell.params["sampler.json"])))
            task = Measurement(config, self.sweep.noise_seed)
            if self.known(task):
                self.accept(config, self.sweep.key(task), reused=False)

    def known(self, task: Measurement) -> bool:
        """Whether a measurement is there, whoever made it: none is made twice."""
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

    def accept(self, config: Sampler, key: str, *, reused: bool) -> None:
        """A sampler whose metrics are known becomes part of this sweep."""
        self.configs[key] = config
        if reused:
            self.reused.append(key)
        self.search.tell(config, self.metrics[key][self.distance], self.metrics[key]["cost/nfe"])
        self.keep()

    def keep(self) -> None:
        """Write down which samplers this sweep is of."""
        tasks = [*(Measurement(config, self.sweep.noise_seed) for config in self.configs.values()),
                 *self.confirmed.values()]  # fmt: skip
        cells = {(entry := self.entry(task)).cell: entry for task in tasks}
        sweep = self.sweep
        with leased(self.storage, f"sweep/{sweep.identity}", "writing down a sweep"):  # others may be at it, too
            there = read_sweep(self.storage, sweep.name, sweep.identity, self._say)
            others = {cell.cell: cell for cell in there.cells} if there else {}
            several = list({**others, **cells}.values())
            SweepEntry(sweep.name, sweep.identity, several, command=this_command(), user=user()).write(self.storage)

    def entry(self, task: Measurement) -> CellEntry:
        """A measurement as the sweep's file tells it."""
        request, weights = self.sweep.request(task).plain(), self.sweep.subject.sha256
        return CellEntry(label(task), self.sweep.key(task), self.params(task), request, task.seed, weights=weights)

    def params(self, task: Measurement) -> dict[str, object]:
        """A measurement's parameters, as its run shows them."""
        record = task.sampler.canonical()
        guidance = record.pop("guidance")
        return {
            **{f"sampler.{name}": value for name, value in record.items()},
            "sampler.guidance": guidance["scale"],
            "sampler.json": json.dumps(to_dict(task.sampler)),
            "evaluation.images": self.sweep.subject.request.images,
            "evaluation.seed": task.seed,
        }

    def start(self, task: Measurement) -> None:
        """Open the run of a measurement."""
        subject = self.sweep.subject
        tags = {**self.tags, "model": subject.source, "model.sha256": subject.sha256, "weights": self.sweep.weights}
        key = self.sweep.key(task)
        self.open.add(key)
        self.live.start(key, label(task), {name: str(value) for name, value in self.params(task).items()}, tags)

    def finish(self, task: Measurement, result: Done | Failed) -> None:
        """Close the run of a measurement."""
        key, entry = self.sweep.key(task), self.entry(task)
        if isinstance(result, Failed):
            self.live.tag(key, {Tags.REASON: result.reason, Tags.ERROR: result.error})
            self.live.close(key, "FAILED")
        else:
            self.live.close(key, "FINISHED", lambda: recorded_view(entry, self.storage, self._say))
            self.busy += result.seconds
            self.measured += 1
        self.open.discard(key)

    def kill(self) -> None:
        """Close what is under way; the next call measures it again."""
        for key in self.open:
            self.live.close(key, "KILLED")

    def frame(self, again: int | None = None) -> pd.DataFrame:
        """A row a sampler; `again` is the seed of the confirmation."""
        rows = []
        for key, config in self.configs.items():
            metrics = self.metrics[key]
            other = None if again is None else self.metrics.get(self.sweep.key(Measurement(config, again)))
            record = config.canonical()
            rows.append({
                "sampler": config.name,
                **{name: record.get(name) for name in self.sweep.space.settings},
                "NFE": int(metrics["cost/nfe"]),
                "passes": metrics.get("cost/forward_passes", float("nan")),
                "GFLOPs/image": metrics["cost/flops_per_image"] / 1e9,
                "s/image": metrics.get("cost/sampling_seconds_per_image", float("nan")),
                self.distance: metrics[self.distance],
                "again": other[self.distance] if other else float("nan"),
                "n": self.sweep.subject.request.images,
            })  # fmt: skip
        frame = pd.DataFrame(rows)
        frame["front"] = on_front(frame, [self.distance, "NFE"]) if len(frame) else []
        return frame

    def told(self, task: Measurement, result: Done | Failed) -> None:
        """A result, before the next sampler is suggested: the search and the table know it from here on."""
        searched = task.seed == self.sweep.noise_seed
        if isinstance(result, Failed):
            self.failed[label(task)] = result.reason
            if searched:
                self.search.fail(task.sampler)
            return
        key = self.sweep.key(task)
        self.metrics[key] = result.metrics
        if searched:
            self.accept(task.sampler, key, reused=False)
        else:
            self.confirmed[key] = task
            self.keep()

    def drive(
        self,
        pool: Pool[Task, Done | Failed],
        ask: Callable[[], Measurement | None],
        display: SweepDisplay,
        also: Callable[[Measurement], None] = lambda task: None,
    ) -> None:
        """Measure until `ask` has no more, and record; `also` is called with each first."""
        started = time.perf_counter()

        def asked() -> Task | None:
            wanted = ask()
            return None if wanted is None else Task(0, "all", wanted.sampler, self.sweep.request(wanted))

        def measurement(task: Task) -> Measurement:
            assert task.sampler is not None
            assert task.request is not None
            return Measurement(task.sampler, task.request.seed)

        def tell(task: Task, result: Done | Failed) -> None:
            also(measurement(task))
            self.told(measurement(task), result)

        def begin(task: Task) -> None:
            self.start(measurement(task))
            display.update(label(measurement(task)), 0.0, "measuring")

        for task, result in drain(pool, asked, tell=tell, begin=begin):
            of = measurement(task)
            self.finish(of, result)
            if isinstance(result, Failed):
                display.end(label(of), f"FAILED ({result.reason}): {result.error}")
            else:
                note = f"{self.distance} {result.metrics[self.distance]:.2f} · {result.metrics['cost/nfe']:.0f} NFE"
                display.end(label(of), note)
        self.seconds += time.perf_counter() - started


def label(task: Measurement) -> str:
    """`dual_loop 24 NFE quantile=0.4 inner_steps=4`."""
    record = task.sampler.canonical()
    own = [f"{name}={record[name]:g}" for name in task.sampler.searched if name in record]
    return " ".join([task.sampler.name, f"{record['num_function_evaluations']} NFE", *own])


def run(
    sweep: SamplerSweep,
    tracker: Tracker,
    storage: Storage,
    console: Console,
    *,
    workers: int | None,
    address: str | None,
) -> Outcome:
    """Measure what is missing of the trials, then the front again. Stopped calls go on where they were; several at
    once share the work."""

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    ledger = Ledger(storage, say)

    def before(page: Page, parent: str, between: Progress) -> None:
        there = read_sweep(storage, sweep.name, sweep.identity, say)
        if there is not None:
            show_cells(page, there.cells, ledger, parent, progress=between)

    with Live(Mirror(tracker, storage, say), sweep.name, sweep.identity, say, before) as live:
        return _run(sweep, live, storage, console, workers=workers, address=address)


def _run(
    sweep: SamplerSweep, live: Live, storage: Storage, console: Console, *, workers: int | None, address: str | None
) -> Outcome:  # fmt: skip
    state = _Run(sweep, live, storage, console)
    seed = sweep.noise_seed
    again = seed + 1 if sweep.confirm else None
    code, used = STOPPED, 0
    with stop_on_signals():
        try:
            used = _measure(state, seed, again, workers, address)
            code = SOME_FAILED if state.failed else DONE
        except (KeyboardInterrupt, SystemExit) as stopped:  # Ray's own SIGTERM handler, while it starts, exits
            console.print(f"Stopped by {stopped}; the same command goes on from here.", markup=False)
        finally:
            state.kill()
            live.catch_up()  # samplers that were measured before, by whomever
            ended: dict[int, Status] = {DONE: "FINISHED", SOME_FAILED: "FAILED", STOPPED: "KILLED"}
            live.end(ended[code], {"trials": str(len(state.configs)), Tags.REUSED: " ".join(state.reused)})
            live.finish(limit=STOP_SECONDS if code == STOPPED else float("inf"))
    return Outcome(code, state.frame(again), state.seconds, state.busy, state.measured, used, state.failed)


def _measure(state: _Run, seed: int, again: int | None, workers: int | None, address: str | None) -> int:
    """The search, then its confirmation. Returns the number of workers; 0 where nothing had to be measured."""
    sweep = state.sweep
    tried = 0

    def ask() -> Measurement | None:
        nonlocal tried
        # What failed counts as tried in this call; the next one tries it again.
        while len(state.configs) + len(state.failed) + tried < sweep.trials:
            config = state.search.ask()
            if config is None:
                return None
            task = Measurement(config, seed)
            if not state.known(task):
                tried += 1
                return task
            state.accept(config, sweep.key(task), reused=True)
        return None

    first = ask()
    if first is None and not _unconfirmed(state, again):
        return 0
    waiting = [] if first is None else [first]

    def following() -> Measurement | None:
        return waiting.pop() if waiting else ask()

    def told(task: Measurement) -> None:
        nonlocal tried
        tried -= 1

    pool: Pool[Task, Done | Failed] = make_pool(workers, address, Measurer, (sweep.subject,))
    # Once more: starting Ray puts a handler of its own over SIGTERM.
    with stop_on_signals(restore=False), pool:
        with SweepDisplay(state.console, sweep.trials, len(state.configs)) as display:
            state.drive(pool, following, display, told)
        if len(state.configs) + len(state.failed) < sweep.trials:
            state.console.print(f"The space is used up: it has {len(state.configs)} different samplers.")
        if front := _unconfirmed(state, again):
            assert again is not None
            tasks = iter([Measurement(config, again) for config in front])
            with SweepDisplay(state.console, len(front), 0) as second:
                state.drive(pool, lambda: next(tasks, None), second)
        return pool.workers


def _unconfirmed(state: _Run, again: int | None) -> list[Sampler]:
    """The front's samplers that were not measured from the other noise yet."""
    if again is None or not state.configs:
        return []
    for config in state.configs.values():
        state.known(Measurement(config, again))
    frame = state.frame(again)
    configs = list(state.configs.values())
    return [config for config, front, value in zip(configs, frame["front"], frame["again"], strict=True)
            if front and pd.isna(value)]  # fmt: skip
