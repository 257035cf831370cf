"""A sampler sweep: nothing is trained. Workers keep the model, Optuna suggests samplers, MLflow keeps the results."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd
from rich.console import Console

from pforce.orchestration.display import SweepDisplay
from pforce.orchestration.launch import stop_on_signals
from pforce.orchestration.measurer import Measurement, Measurer, Subject
from pforce.orchestration.plan import DONE, STOPPED, provenance
from pforce.orchestration.pool import Pool, make_pool
from pforce.orchestration.sampler_search import Search, SearchSpace
from pforce.results.pareto import on_front
from pforce.sampling import Guidance, SamplerConfig
from pforce.tracking import RunSpec, SweepRun, Tags, Tracker, runs_frame


@dataclass(frozen=True)
class SamplerSweep:
    """What is searched on one model."""

    name: str
    """Of the MLflow experiment and the files."""
    subject: Subject
    space: SearchSpace
    trials: int
    """Samplers that are measured."""
    guidance: Guidance = field(default_factory=Guidance)
    seed: int = 0
    """Of Optuna's suggestions."""
    confirm: bool = True
    """Measure the front once more from other noise: the best of many is flattered by its noise."""

    @property
    def identity(self) -> str:
        """Hash of what is searched, the number of trials left out: the same command with more of them goes on."""
        record = {
            "name": self.name,
            "space": asdict(self.space),
            "guidance": asdict(self.guidance),
            "search_seed": self.seed,
            "subject": self.subject.fingerprint(SamplerConfig(guidance=self.guidance), self.subject.evaluation.seed),
        }
        return hashlib.blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=16).hexdigest()


SHOWN = ("sampler", "quantile", "inner_steps", "context_ratio", "start_after")


@dataclass
class Outcome:
    """What a call of a sweep ends with."""

    code: int
    frame: pd.DataFrame
    """A row a sampler: its settings, NFE, passes, GFLOPs/image, s/image, distance, n, front, and `again`."""
    seconds: float
    """Of this call's measurements, wall-clock."""
    busy_seconds: float
    """Worker seconds in them."""
    measured: int
    """Measurements of this call."""
    workers: int


class _Run:
    """The state of a call: the ledger, the search, the runs under way."""

    def __init__(self, sweep: SamplerSweep, tracker: Tracker, console: Console) -> None:
        self.sweep, self.tracker, self.console = sweep, tracker, console
        self.evaluation = sweep.subject.evaluation
        self.distance = f"fd/{self.evaluation.detector}"
        self.search = Search(sweep.space, sweep.guidance, seed=sweep.seed)
        self.metrics: dict[str, dict[str, float]] = {}
        """Fingerprint → what is known of it."""
        self.configs: dict[str, SamplerConfig] = {}
        """Fingerprint → sampler, of the search's own seed, in the order they came."""
        self.open: dict[str, str] = {}
        self.tags = provenance()
        self.parent = tracker.open_sweep(sweep.name, sweep.identity, self.tags)
        self.seconds = self.busy = 0.0
        self.measured = 0
        self._recall()

    def _recall(self) -> None:
        """What earlier calls measured, from the store."""
        frame = runs_frame(self.tracker, self.sweep.name)
        if frame.empty:
            return
        mine = frame[(frame["status"] == "FINISHED") & (frame["parent"] == self.parent.run_id)]
        for _, row in mine.sort_values("start_time").iterrows():
            config = SamplerConfig(**_from_json(str(row["sampler.json"])))
            key = str(row["fingerprint"])
            self.metrics[key] = {name: float(row[name]) for name in row.index
                                 if "/" in str(name) and pd.notna(row[name])}  # fmt: skip
            if key == self.sweep.subject.fingerprint(config, self.evaluation.seed):
                self.configs[key] = config
                self.search.tell(config, self.metrics[key][self.distance], self.metrics[key]["cost/nfe"])

    def start(self, task: Measurement) -> None:
        """Open the run of a measurement."""
        key = self.sweep.subject.fingerprint(task.sampler, task.seed)
        record = task.sampler.canonical()
        guidance = record.pop("guidance")
        params = {
            **{f"sampler.{name}": value for name, value in record.items()},
            "sampler.guidance": guidance["scale"],
            "sampler.json": _to_json(task.sampler),
            "evaluation.images": self.evaluation.images,
            "evaluation.seed": task.seed,
        }
        subject = self.sweep.subject
        tags = {**self.tags, "model": subject.source, "model.sha256": subject.sha256, "weights": subject.weights}
        self.open[key] = self.tracker.open_trial(self.parent, RunSpec(label(task), key, params, tags))

    def finish(self, task: Measurement, metrics: dict[str, float]) -> None:
        """Record a measurement."""
        key = self.sweep.subject.fingerprint(task.sampler, task.seed)
        self.metrics[key] = metrics
        run_id = self.open.pop(key)
        self.tracker.log(run_id, metrics)
        self.tracker.close(run_id, "FINISHED")
        self.busy += metrics["cost/evaluation_seconds"]
        self.measured += 1

    def kill(self) -> None:
        """Close what is under way; the next call measures it again."""
        for run_id in self.open.values():
            self.tracker.close(run_id, "KILLED")

    def frame(self, again: int | None = None) -> pd.DataFrame:
        """A row a sampler; `again` is the seed of the confirmation."""
        rows = []
        for key, config in self.configs.items():
            metrics = self.metrics[key]
            other = None if again is None else self.metrics.get(self.sweep.subject.fingerprint(config, again))
            record = config.canonical()
            rows.append({
                "sampler": config.name,
                **{name: record.get(name) for name in SHOWN[1:]},
                "NFE": int(metrics["cost/nfe"]),
                "passes": int(metrics["cost/forward_passes"]),
                "GFLOPs/image": metrics["cost/flops_per_image"] / 1e9,
                "s/image": metrics["cost/sampling_seconds_per_image"],
                self.distance: metrics[self.distance],
                "again": other[self.distance] if other else float("nan"),
                "n": self.evaluation.images,
            })  # fmt: skip
        frame = pd.DataFrame(rows)
        frame["front"] = on_front(frame, [self.distance, "NFE"]) if len(frame) else []
        return frame

    def drive(
        self, pool: Pool[Measurement, dict[str, float]], ask: Callable[[], Measurement | None], display: SweepDisplay,
        done: Callable[[Measurement, dict[str, float]], None],
    ) -> None:  # fmt: skip
        """Keep every worker busy until `ask` has no more; each gets its next task before a result is recorded."""
        started = time.perf_counter()
        under_way = 0

        def submit() -> int:
            task = ask()
            if task is None:
                return 0
            pool.submit(task)
            self.start(task)
            display.update(label(task), 0.0, "measuring")
            return 1

        for _ in range(pool.workers):
            under_way += submit()
        while under_way:
            task, metrics = pool.next()
            under_way -= 1
            done(task, metrics)
            under_way += submit()
            self.finish(task, metrics)
            note = f"{self.distance} {metrics[self.distance]:.2f} · {metrics['cost/nfe']:.0f} NFE"
            display.end(label(task), note)
        self.seconds += time.perf_counter() - started


def _to_json(config: SamplerConfig) -> str:
    given = {name: value for name, value in asdict(config).items() if value is not None and name != "guidance"}
    interval = config.guidance.interval
    return json.dumps({**given, "guidance": {"scale": config.guidance.scale, "interval": interval}})


def _from_json(text: str) -> dict[str, Any]:
    data = json.loads(text)
    interval = data["guidance"]["interval"]
    return {**data, "guidance": Guidance(data["guidance"]["scale"], tuple(interval) if interval else None)}


def label(task: Measurement) -> str:
    """`dual_loop 24 NFE quantile=0.4 inner_steps=4`."""
    record = task.sampler.canonical()
    own = [f"{name}={record[name]:g}" for name in SHOWN[1:] if name in record]
    return " ".join([task.sampler.name, f"{record['num_function_evaluations']} NFE", *own])


def run(sweep: SamplerSweep, tracker: Tracker, console: Console, *, workers: int, address: str | None) -> Outcome:
    """Measure what is missing of the trials, then the front again. Stopped calls go on where they were."""
    state = _Run(sweep, tracker, console)
    seed = sweep.subject.evaluation.seed
    again = seed + 1 if sweep.confirm else None
    code, used = DONE, 0
    with stop_on_signals():
        try:
            used = _measure(state, seed, again, workers, address)
        except KeyboardInterrupt as stopped:
            console.print(f"Stopped by {stopped}; the same command goes on from here.", markup=False)
            code = STOPPED
        finally:
            state.kill()
            _close(tracker, state.parent, code, state)
    return Outcome(code, state.frame(again), state.seconds, state.busy, state.measured, used)


def _close(tracker: Tracker, parent: SweepRun, code: int, state: _Run) -> None:
    tracker.tag(parent.run_id, {Tags.KIND: "sweep", "trials": str(len(state.configs))})
    tracker.close(parent.run_id, "FINISHED" if code == DONE and not state.open else "KILLED")


def _measure(state: _Run, seed: int, again: int | None, workers: int, address: str | None) -> int:
    """The search, then its confirmation. Returns the number of workers."""
    sweep = state.sweep
    left = sweep.trials - len(state.configs)
    if left <= 0 and not _unconfirmed(state, again):
        return 0
    display = SweepDisplay(state.console, sweep.trials, len(state.configs))
    made = make_pool(workers, address, Measurer, sweep.subject)
    pool: Pool[Measurement, dict[str, float]] = made
    asked = 0

    def ask() -> Measurement | None:
        nonlocal asked
        config = state.search.ask() if asked < left else None
        if config is None:
            return None
        asked += 1
        return Measurement(config, seed)

    def done(task: Measurement, metrics: dict[str, float]) -> None:
        state.search.tell(task.sampler, metrics[state.distance], metrics["cost/nfe"])
        state.configs[sweep.subject.fingerprint(task.sampler, seed)] = task.sampler

    # Once more: starting Ray puts a handler of its own over SIGTERM.
    with stop_on_signals(restore=False), pool:
        with display:
            state.drive(pool, ask, display, done)
        front = _unconfirmed(state, again)
        if front:
            assert again is not None
            tasks = iter([Measurement(config, again) for config in front])
            with SweepDisplay(state.console, len(front), 0) as second:
                state.drive(pool, lambda: next(tasks, None), second, lambda task, metrics: None)
    return pool.workers


def _unconfirmed(state: _Run, again: int | None) -> list[SamplerConfig]:
    """The front's samplers that were not measured from the other noise yet."""
    if again is None or not state.configs:
        return []
    frame = state.frame(again)
    configs = list(state.configs.values())
    return [config for config, front, value in zip(configs, frame["front"], frame["again"], strict=True)
            if front and pd.isna(value)]  # fmt: skip
