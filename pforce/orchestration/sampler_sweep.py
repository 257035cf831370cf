"""A sampler sweep: nothing is trained. Workers keep the model, Optuna suggests samplers, MLflow keeps the results."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd
from rich.console import Console

from pforce.orchestration.display import SweepDisplay
from pforce.orchestration.hold import only_driver
from pforce.orchestration.launch import stop_on_signals
from pforce.orchestration.measurer import Failed, Measurement, Measurer, Subject
from pforce.orchestration.plan import provenance
from pforce.orchestration.pool import Pool, drain, make_pool
from pforce.orchestration.sampler_search import Search, SearchSpace
from pforce.results.pareto import on_front
from pforce.sampling import Guidance, SamplerConfig
from pforce.storage import Storage
from pforce.terminal import DONE, SOME_FAILED, STOPPED
from pforce.tracking import RunSpec, Status, Tags, Tracker, runs_frame
from pforce.validation import require


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
    weights: str = "ema"
    """What the model's weights are called in the record: ema, raw, or unknown."""

    def __post_init__(self) -> None:
        require(bool(re.fullmatch(r"[\w.-]+", self.name)), "name", self.name, "letters, digits, '.', '_' and '-' (it "
                "names files)")  # fmt: skip

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
    failed: dict[str, str] = field(default_factory=dict)
    """What could not be measured, and why."""


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
        self.reused: list[str] = []
        """Of these, those that another sweep measured."""
        self.failed: dict[str, str] = {}
        """Label → reason."""
        self.open: dict[str, str] = {}
        self.tags = provenance()
        self.parent = tracker.open_sweep(sweep.name, sweep.identity, self.tags)
        self.seconds = self.busy = 0.0
        self.measured = 0
        self._recall()

    def _recall(self) -> None:
        """What earlier calls measured, from the store."""
        frame = runs_frame(self.tracker)
        if frame.empty or "sampler.json" not in frame:
            return
        before = self.tracker.tags(self.parent.run_id).get(Tags.REUSED, "").split()
        finished = frame[(frame["status"] == "FINISHED") & frame["sampler.json"].notna()]
        for _, row in finished.sort_values("start_time").iterrows():
            key = str(row["fingerprint"])
            # Of every sampler sweep: a finished measurement is never made twice, whoever made it.
            self.metrics[key] = {name: float(row[name]) for name in row.index
                                 if "/" in str(name) and pd.notna(row[name])}  # fmt: skip
            mine = row["parent"] == self.parent.run_id
            if not mine and key not in before:
                continue
            config = SamplerConfig(**_from_json(str(row["sampler.json"])))
            if key == self.sweep.subject.fingerprint(config, self.evaluation.seed):  # not a confirmation's
                self.accept(config, key, reused=not mine)

    def accept(self, config: SamplerConfig, key: str, *, reused: bool) -> None:
        """A sampler whose metrics are known becomes part of this sweep."""
        self.configs[key] = config
        if reused:
            self.reused.append(key)
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
        tags = {**self.tags, "model": subject.source, "model.sha256": subject.sha256, "weights": self.sweep.weights}
        self.open[key] = self.tracker.open_trial(self.parent, RunSpec(label(task), key, params, tags))

    def finish(self, task: Measurement, metrics: dict[str, float] | Failed) -> None:
        """Record a measurement."""
        key = self.sweep.subject.fingerprint(task.sampler, task.seed)
        run_id = self.open[key]
        if isinstance(metrics, Failed):
            self.tracker.tag(run_id, {Tags.REASON: metrics.reason, Tags.ERROR: metrics.error})
            self.tracker.close(run_id, "FAILED")
        else:
            self.tracker.log(run_id, metrics)
            self.tracker.close(run_id, "FINISHED")
            self.busy += metrics["cost/evaluation_seconds"]
            self.measured += 1
        del self.open[key]

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

    def told(self, task: Measurement, result: dict[str, float] | Failed) -> None:
        """A result, before the next sampler is suggested: the search and the table know it from here on."""
        searched = task.seed == self.evaluation.seed
        if isinstance(result, Failed):
            self.failed[label(task)] = result.reason
            if searched:
                self.search.fail(task.sampler)
            return
        key = self.sweep.subject.fingerprint(task.sampler, task.seed)
        self.metrics[key] = result
        if searched:
            self.accept(task.sampler, key, reused=False)

    def drive(
        self,
        pool: Pool[Measurement, dict[str, float] | Failed],
        ask: Callable[[], Measurement | None],
        display: SweepDisplay,
        also: Callable[[Measurement, dict[str, float] | Failed], None] = lambda task, result: None,
    ) -> None:
        """Measure until `ask` has no more, and record; `also` is told each result first."""
        started = time.perf_counter()

        def tell(task: Measurement, result: dict[str, float] | Failed) -> None:
            also(task, result)
            self.told(task, result)

        def begin(task: Measurement) -> None:
            self.start(task)
            display.update(label(task), 0.0, "measuring")

        for task, result in drain(pool, ask, tell=tell, begin=begin):
            self.finish(task, result)
            if isinstance(result, Failed):
                display.end(label(task), f"FAILED ({result.reason}): {result.error}")
            else:
                note = f"{self.distance} {result[self.distance]:.2f} · {result['cost/nfe']:.0f} NFE"
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


def run(
    sweep: SamplerSweep,
    tracker: Tracker,
    storage: Storage,
    console: Console,
    *,
    workers: int | None,
    address: str | None,
) -> Outcome:
    """Measure what is missing of the trials, then the front again. Stopped calls go on where they were. SweepHeld
    where another process runs this sweep."""

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    with only_driver(storage, sweep.name, sweep.identity, say=say):
        return _run(sweep, tracker, console, workers=workers, address=address)


def _run(
    sweep: SamplerSweep, tracker: Tracker, console: Console, *, workers: int | None, address: str | None
) -> Outcome:
    state = _Run(sweep, tracker, console)
    seed = sweep.subject.evaluation.seed
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
            tracker.tag(state.parent.run_id, {"trials": str(len(state.configs)), Tags.REUSED: " ".join(state.reused)})
            ended: dict[int, Status] = {DONE: "FINISHED", SOME_FAILED: "FAILED", STOPPED: "KILLED"}
            tracker.close(state.parent.run_id, ended[code])
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
            key = sweep.subject.fingerprint(config, seed)
            if key not in state.metrics:
                tried += 1
                return Measurement(config, seed)
            state.accept(config, key, reused=True)
        return None

    first = ask()
    if first is None and not _unconfirmed(state, again):
        return 0
    waiting = [] if first is None else [first]

    def following() -> Measurement | None:
        return waiting.pop() if waiting else ask()

    def told(task: Measurement, result: dict[str, float] | Failed) -> None:
        nonlocal tried
        tried -= 1

    pool: Pool[Measurement, dict[str, float] | Failed] = make_pool(workers, address, Measurer, sweep.subject)
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


def _unconfirmed(state: _Run, again: int | None) -> list[SamplerConfig]:
    """The front's samplers that were not measured from the other noise yet."""
    if again is None or not state.configs:
        return []
    frame = state.frame(again)
    configs = list(state.configs.values())
    return [config for config, front, value in zip(configs, frame["front"], frame["again"], strict=True)
            if front and pd.isna(value)]  # fmt: skip
