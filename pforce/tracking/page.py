"""A page, which is an MLflow experiment: its runs are found by key, made, and brought up to date."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from pforce.records.status import FINISHED, RUNNING
from pforce.tracking import artifacts, charts
from pforce.tracking.checks import transient
from pforce.tracking.database import CONTEXT, Found
from pforce.tracking.view import OF_A_RESULT, OF_AN_ATTEMPT, PARENT, USER, DataSet, Point, Tags, View, key_of

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Experiment, Metric

    from pforce.tracking.mirror import Mirror

METRICS_A_CALL, PARAMS_A_CALL = 800, 100
RUNS_AT_ONCE = 100
"""Runs that are made in one transaction."""
KEYS_A_CALL = 8
"""Most keys that are looked up one by one on a server; for more, all runs of the page are read."""

Progress = Callable[[int], None]


@dataclass
class Run:
    """A run of the store, with what it is known to show."""

    run_id: str
    deleted: bool = False
    status: str = RUNNING
    content: str = ""
    """Digest of everything that it shows; empty while that is incomplete."""
    made: bool = False
    """Whether it was made just now."""
    read: bool = False
    """Whether the following fields have been read."""
    tags: dict[str, str] = field(default_factory=dict)
    params: set[str] = field(default_factory=set)
    filed: bool = False
    """Whether files of it have been written, or begun to be."""
    linked: DataSet | None = None
    """Data set that it is known to be linked with."""
    steps: set[int] | None = None
    """Steps of the points of its curve; None where they have not been read."""
    filing: bool = False
    """Whether its files are being written: where that has failed, it shows everything else."""


class Shown(NamedTuple):
    """Counts of runs by the outcome of showing them."""

    made: int = 0
    updated: int = 0
    there: int = 0
    """Runs that were up to date already."""
    deleted: int = 0
    """Runs that a person has deleted."""
    refused: int = 0
    """Runs that the store refuses although it takes others."""

    def __add__(self, other: Shown) -> Shown:  # type: ignore[override]
        return Shown(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


class Page:
    """The MLflow experiment that shows the sweeps of one name of a storage."""

    def __init__(self, mirror: Mirror, name: str, experiment: Experiment) -> None:
        self.mirror, self.name = mirror, name
        self.client, self.database = mirror.tracker.client, mirror.database
        self.experiment_id = str(experiment.experiment_id)
        self.artifacts = str(experiment.artifact_location)
        self.deleted = experiment.lifecycle_stage != "active"

    def key(self, *what: str) -> str:
        """The key of a sweep (its identity) or cell (its digest) of this page."""
        return key_of(self.mirror.identity, self.name, *what)

    # --- finding -----------------------------------------------------------------------------------------------

    def tagged(self, tag: str, values: Sequence[str] | None = None, also: Sequence[str] = ()) -> list[Found]:
        """Runs, including deleted ones, with a tag that has one of the given values, or any value where none are given;
        the earliest start first."""
        if self.database is not None:
            return self.database.tagged(self.experiment_id, tag, values, also)
        from mlflow.entities import ViewType

        few = values is not None and len(values) <= KEYS_A_CALL
        filters = [f"tags.`{tag}` = '{value}'" for value in values or ()] if few else [f"tags.`{tag}` LIKE '%'"]
        found: list[Found] = []
        for condition in filters:
            token: str | None = None
            while True:
                page = self.client.search_runs(
                    [self.experiment_id], condition, run_view_type=ViewType.ALL, max_results=1000, page_token=token,
                    order_by=["attributes.start_time ASC"],
                )  # fmt: skip
                for run in page:
                    tags = {name: run.data.tags[name] for name in (tag, *also) if name in run.data.tags}
                    if values is None or tags.get(tag) in values:
                        deleted = run.info.lifecycle_stage != "active"
                        found.append(Found(run.info.run_id, deleted, run.info.status, run.info.start_time, tags))
                token = page.token
                if not token:
                    break
        return found

    def find(self, keys: Sequence[str], prefer: str = "") -> dict[str, Run]:
        """Runs by their keys. Of several runs with one key, which a server makes that answers a creation too late, one
        is kept.

        Args:
            prefer: id of the run to keep, where it is one of them.
        """
        several: dict[str, list[Found]] = {}
        for found in self.tagged(Tags.KEY, keys, [Tags.SHOWN]):
            several.setdefault(found.tags[Tags.KEY], []).append(found)
        runs = {}
        for key, same in several.items():
            first, *others = sorted(same, key=lambda each: (
                each.deleted, each.run_id != prefer, Tags.SHOWN not in each.tags, each.status == RUNNING,
            ))  # fmt: skip
            for other in others:
                if not other.deleted:
                    self._untag(other.run_id, Tags.KEY)  # first, or a person would seem to have deleted it
                    self.client.delete_run(other.run_id)
            runs[key] = Run(first.run_id, first.deleted, first.status, first.tags.get(Tags.SHOWN, ""))
        return runs

    def adopt(self) -> None:
        """Give runs of earlier versions their keys: of several runs of a cell, the newest finished one gets it."""
        for tag, kind in ((Tags.FINGERPRINT, "trial"), (Tags.SWEEP, "sweep")):
            of_values: dict[str, list[Found]] = {}
            for found in self.tagged(tag, None, [Tags.KIND, Tags.KEY]):
                if found.tags.get(Tags.KIND) == kind and not found.deleted:
                    of_values.setdefault(found.tags[tag], []).append(found)
            for value, same in of_values.items():
                if not any(Tags.KEY in found.tags for found in same):
                    best = max(same, key=lambda found: (found.status == FINISHED, found.started))
                    self.client.set_tag(best.run_id, Tags.KEY, self.key(value))

    # --- making -------------------------------------------------------------------------------------------------

    def ensure(self, views: Mapping[str, View], parent: str | None = None) -> dict[str, Run]:
        """The runs of these keys. Missing runs are made with everything that their views show except files. Where a
        person has deleted the page meanwhile (see `deleted`), none is made.

        Args:
            parent: id of the run below which new ones are shown.
        """
        with self.mirror.alone(self.name):
            runs = self.find(list(views))
            above = {PARENT: parent} if parent else {}
            new = {key: view.with_tags({Tags.KEY: key, **above}).shortened()
                   for key, view in views.items() if key not in runs}  # fmt: skip
            if new:
                self.deleted = self.client.get_experiment(self.experiment_id).lifecycle_stage != "active"
            if self.deleted:
                return runs
            if new and self.database is not None:
                curves = [view.points() for view in new.values()]
                metrics = [_metrics(view, curve) for view, curve in zip(new.values(), curves, strict=True)]
                ids = self.database.insert(self.experiment_id, self.artifacts, list(new.values()), metrics)
                for (key, view), run_id, curve in zip(new.items(), ids, curves, strict=True):
                    steps = {point.step for point in curve}
                    tags, params = dict(view.tags), set(view.params)
                    runs[key] = Run(
                        run_id, False, view.status, "", True, True, tags, params, linked=view.data, steps=steps
                    )
                return runs
            for key, view in new.items():
                tags = {name: view.tags[name] for name in (Tags.KEY, PARENT, Tags.KIND, USER) if name in view.tags}
                made = self.client.create_run(
                    self.experiment_id, start_time=view.started or None, run_name=view.name, tags=tags
                )
                runs[key] = Run(made.info.run_id, False, RUNNING, "", True, True, tags, set(), steps=set())
        return runs

    # --- bringing up to date ------------------------------------------------------------------------------------

    def bring(self, run: Run, view: View, content: str = "") -> None:
        """Bring a run up to date with a view; what it shows already is not written again.

        Args:
            content: digest of the view, for a cell that has ended.
        """
        from mlflow.entities import Param, RunTag

        view, client = view.shortened(), self.client
        self.read(run)
        self._take_away(run, view)
        params = [Param(name, value) for name, value in view.params.items() if name not in run.params]
        tags = [RunTag(name, value) for name, value in view.tags.items()
                if name != PARENT and run.tags.get(name) != value]  # fmt: skip
        points = self._new_points(run, view)
        whole = run.content != content or not content
        batches = [*_batches(points), *([_numbers(view, _time(run, view))] if whole and view.finite else [])]
        first = PARAMS_A_CALL
        if params or tags or batches:
            metrics = batches.pop(0) if batches else []
            client.log_batch(run.run_id, metrics=metrics, params=params[:first], tags=tags)
        for metrics in batches:
            client.log_batch(run.run_id, metrics=metrics)
        for start in range(first, len(params), PARAMS_A_CALL):
            client.log_batch(run.run_id, params=params[start : start + PARAMS_A_CALL])
        run.tags |= {tag.key: tag.value for tag in tags}
        run.params |= {param.key for param in params}
        if points:
            assert run.steps is not None
            run.steps |= {point.step for point in points}
        if run.status != view.status or (run.content and whole):
            if view.ended is None:
                client.update_run(run.run_id, status=view.status)
            else:
                client.set_terminated(run.run_id, status=view.status, end_time=view.ended)
            run.status = view.status
        if view.data is not None and run.linked != view.data:
            self.client.log_inputs(run.run_id, [_input(view.data)])  # which does nothing where it is linked already
            run.linked = view.data
        if view.charts:
            self.client.set_experiment_tag(self.experiment_id, charts.TAG + charts.key_of_page(self.key()), view.charts)
        if whole:  # files last: a store that refuses them shows everything else
            self._files(run, view)
        self._shown(run, content)

    def read(self, run: Run) -> None:
        """Read what a run shows, unless that is known."""
        if not run.read:
            found = self.client.get_run(run.run_id)
            run.tags, run.params, run.status = dict(found.data.tags), set(found.data.params), found.info.status
            run.read = True

    def _take_away(self, run: Run, view: View) -> None:
        """Remove tags of an earlier attempt or of other results that the view does not have."""
        for name in OF_AN_ATTEMPT if view.status == RUNNING else OF_A_RESULT:
            if name in run.tags and name not in view.tags:
                self._untag(run.run_id, name)
                del run.tags[name]
        if view.status == RUNNING:
            run.content = ""

    def _untag(self, run_id: str, name: str) -> None:
        """Remove a tag, unless another process has just done so."""
        try:
            self.client.delete_tag(run_id, name)
        except Exception as error:  # every kind of store raises its own
            if transient(error) or name in self.client.get_run(run_id).data.tags:
                raise

    def _new_points(self, run: Run, view: View) -> list[Point]:
        """Points whose steps the run does not have yet. Known steps are not repeated: a training that was killed passes
        them again, with the same values at other times."""
        points = view.points()
        if not points:
            return []
        if run.steps is None:
            name = next(iter(points[0].values))
            run.steps = {metric.step for metric in self.client.get_metric_history(run.run_id, name)}
        return [point for point in points if point.step not in run.steps]

    def _files(self, run: Run, view: View) -> None:
        """Write a view's files, texts and pictures into the run's artifacts. Those of a run that was just inserted lie
        where the insertion said, which spares a query per run."""
        run.filing = True
        inserted = run.made and self.database is not None
        folder = f"{self.artifacts}/{run.run_id}/artifacts" if inserted else None
        artifacts.write(self.client, run.run_id, view, folder=folder)
        fresh, run.filed = run.made and not run.filed, True
        artifacts.write_pictures(self.client, run.run_id, view, fresh=fresh, say=self.mirror.say)
        run.filing = False

    def _shown(self, run: Run, content: str) -> None:
        if content != run.content and content:
            self.client.set_tag(run.run_id, Tags.SHOWN, content)
            run.content = content

    # --- several cells that have ended ---------------------------------------------------------------------------

    def show(
        self, views: Mapping[str, View], parent: str | None = None, *, restore: bool = False,
        progress: Progress = lambda done: None,
    ) -> Shown:  # fmt: skip
        """Bring the runs of these keys up to date with their views, which are of cells that have ended.

        Args:
            parent: id of the run below which new ones are shown.
            restore: restore runs that a person has deleted.
            progress: callback that gets the number of runs that are done.
        """
        result, done = Shown(), 0
        if self.deleted or not views:
            return Shown(deleted=len(views))
        runs = self.find(list(views))
        new = [key for key in views if key not in runs]
        for key, run in runs.items():
            result += self._update(run, views[key], restore=restore)
            done += 1
            progress(done)
        for first in range(0, len(new), RUNS_AT_ONCE):
            some = {key: views[key] for key in new[first : first + RUNS_AT_ONCE]}
            result += self._make(some, parent, restore=restore)
            done += len(some)
            progress(done)
        return result

    def _make(self, views: Mapping[str, View], parent: str | None, *, restore: bool) -> Shown:
        """Make runs that were missing, and count the outcomes."""
        result, whole = Shown(), {}
        for key, run in self.ensure(views, parent).items():
            if not run.made or self.database is None:  # another process was faster, or the run shows nothing yet
                result += self._update(run, views[key], restore=restore)
                continue
            try:
                self._files(run, views[key])
            except Exception as error:  # every kind of store raises its own
                result += self.refused(run, views[key], error)
            else:
                whole[run.run_id] = views[key].content
        if self.database is not None:
            self.database.tag(Tags.SHOWN, whole)
        missing = len(views) - sum(result) - len(whole)  # the page was deleted meanwhile
        return result + Shown(made=len(whole), deleted=missing)

    def _update(self, run: Run, view: View, *, restore: bool) -> Shown:
        if run.deleted:
            if not restore:
                return Shown(deleted=1)
            self.client.restore_run(run.run_id)
            run.deleted = False
        if run.content == view.content and run.status == view.status:
            return Shown(there=1)
        try:
            self.bring(run, view, view.content)
        except Exception as error:  # every kind of store raises its own
            return self.refused(run, view, error)
        return Shown(made=1) if run.made else Shown(updated=1)

    def refused(self, run: Run, view: View, error: Exception) -> Shown:
        """Report a run that cannot be written although others can. Raises the error where the store is unreachable."""
        if transient(error) and not self.mirror.answers():
            raise error
        self.mirror.refuse(run, view.name, error)
        return Shown(refused=1)


def _input(data: DataSet) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    own = Dataset(data.name, data.digest, data.source_type, data.source)
    return DatasetInput(own, [InputTag(CONTEXT, data.context)])


def _time(run: Run, view: View) -> int:
    """Time of a run's numbers, in milliseconds since 1970. Numbers that replace others get a later time."""
    return int(time.time() * 1000) if run.content or view.ended is None else view.ended


def _numbers(view: View, at: int) -> list[Metric]:
    from mlflow.entities import Metric

    earlier = [metric for point in view.before for metric in _of(point)]
    return [*earlier, *(Metric(name, value, at, view.step) for name, value in view.finite.items())]


def _of(point: Point) -> list[Metric]:
    from mlflow.entities import Metric

    return [Metric(name, value, point.time, point.step) for name, value in point.values.items()]


def _metrics(view: View, curve: Iterable[Point]) -> list[Metric]:
    """Metrics of a view: its curve and its numbers."""
    at = int(time.time() * 1000) if view.ended is None else view.ended
    return [*(metric for point in curve for metric in _of(point)), *_numbers(view, at)]


def _batches(points: Iterable[Point]) -> list[list[Metric]]:
    """Metrics of points in batches of a size that a store takes; those of one point stay together."""
    found: list[list[Metric]] = []
    for point in points:
        metrics = _of(point)
        if not found or len(found[-1]) + len(metrics) > METRICS_A_CALL:
            found.append([])
        found[-1] += metrics
    return found
