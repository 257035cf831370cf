"""Runs of MLflow that show what a storage holds: made, brought up to date, never twice.

Runs and experiments are found by a tag, their key, so that people may call them what they like. Whoever makes one
holds a lease of the storage meanwhile. A run that a person has deleted stays deleted until it is asked for; one that is
gone with its database is made again. What a run shows of a cell that has ended is named by a digest in its last tag:
where that is the same there is nothing to do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from pforce.files import digest
from pforce.records.lease import Lease, Wait, leased, patient
from pforce.storage import Storage
from pforce.storage.identity import identity_of
from pforce.tracking.checks import TrackingError, is_database, is_server, sqlite_path, store_name, transient, why
from pforce.tracking.database import USER, Database, Found
from pforce.tracking.store import Tracker
from pforce.tracking.view import OF_AN_ATTEMPT, PARENT, Point, Tags, View, key_of

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Metric

METRICS_A_CALL, PARAMS_A_CALL = 800, 100
RUNS_AT_ONCE = 100
"""Runs that are made in one transaction."""
KEYS_A_CALL = 8
"""Of a server more keys than these are looked up by reading all runs."""
SUFFIX = 6
"""Digits of a storage's identity in the name of an experiment whose own name another storage has."""
RESTORE = "`pforce mirror --restore` shows it again"

Say = Callable[[str], None]
Progress = Callable[[int], None]


@dataclass
class Run:
    """A run of the store, and what it is known to show."""

    run_id: str
    deleted: bool = False
    status: str = "RUNNING"
    content: str = ""
    """Digest of all that it shows; empty while it does not."""
    read: bool = False
    """Whether the following is known."""
    tags: dict[str, str] = field(default_factory=dict)
    params: set[str] = field(default_factory=set)
    steps: set[int] | None = None
    """Of the points of its curve; None where they were not looked up."""


class Shown(NamedTuple):
    """What came of showing several runs."""

    made: int = 0
    updated: int = 0
    there: int = 0
    """Those that showed it already."""
    deleted: int = 0
    """Those that a person has deleted."""
    refused: int = 0

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

    # --- what is there ----------------------------------------------------------------------------------------

    def tagged(self, tag: str, values: Sequence[str] | None = None, also: Sequence[str] = ()) -> list[Found]:
        """Runs, deleted ones too, that have a tag, of one of some values or of any; the first to start first."""
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

    def find(self, keys: Sequence[str] | None = None) -> dict[str, Run]:
        """Runs by their keys. Of several with one, as a server makes that answers a creation too late, one is kept."""
        several: dict[str, list[Found]] = {}
        for found in self.tagged(Tags.KEY, keys, [Tags.SHOWN]):
            several.setdefault(found.tags[Tags.KEY], []).append(found)
        runs = {}
        for key, same in several.items():
            first, *others = sorted(same, key=lambda each: (each.deleted, Tags.SHOWN not in each.tags))
            for other in others:
                if not other.deleted:
                    self.client.delete_tag(other.run_id, Tags.KEY)  # first: else a person seems to have deleted it
                    self.client.delete_run(other.run_id)
            runs[key] = Run(first.run_id, first.deleted, first.status, first.tags.get(Tags.SHOWN, ""))
        return runs

    def adopt(self) -> None:
        """Give runs of earlier versions their keys: of several of one cell the newest finished one."""
        for tag, kind in ((Tags.FINGERPRINT, "trial"), (Tags.SWEEP, "sweep")):
            of_values: dict[str, list[Found]] = {}
            for found in self.tagged(tag, None, [Tags.KIND, Tags.KEY]):
                if found.tags.get(Tags.KIND) == kind and not found.deleted:
                    of_values.setdefault(found.tags[tag], []).append(found)
            for value, same in of_values.items():
                if not any(Tags.KEY in found.tags for found in same):
                    best = max(same, key=lambda found: (found.status == "FINISHED", found.started))
                    self.client.set_tag(best.run_id, Tags.KEY, self.key(value))

    # --- making -------------------------------------------------------------------------------------------------

    def ensure(self, views: Mapping[str, View], parent: str | None = None) -> dict[str, Run]:
        """The runs of these keys; those that are not there are made, with all that their views show but files.

        Args:
            parent: id of the run that a new one is shown below.
        """
        with self.mirror.alone(self.name):
            runs = self.find(list(views))
            above = {PARENT: parent} if parent else {}
            new = {key: view.with_tags({Tags.KEY: key, **above}).shortened()
                   for key, view in views.items() if key not in runs}  # fmt: skip
            if new and self.database is not None:
                curves = [view.points() for view in new.values()]
                metrics = [_metrics(view, curve) for view, curve in zip(new.values(), curves, strict=True)]
                ids = self.database.insert(self.experiment_id, self.artifacts, list(new.values()), metrics)
                for (key, view), run_id, curve in zip(new.items(), ids, curves, strict=True):
                    steps = {point.step for point in curve}
                    tags, params = dict(view.tags), set(view.params)
                    runs[key] = Run(run_id, False, view.status, "", True, tags, params, steps)
                return runs
            for key, view in new.items():
                tags = {name: view.tags[name] for name in (Tags.KEY, PARENT, Tags.KIND, USER) if name in view.tags}
                made = self.client.create_run(
                    self.experiment_id, start_time=view.started or None, run_name=view.name, tags=tags
                )
                runs[key] = Run(made.info.run_id, False, "RUNNING", "", True, tags, set(), set())
        return runs

    # --- bringing up to date ------------------------------------------------------------------------------------

    def bring(self, run: Run, view: View, content: str = "") -> None:
        """Have a run show a view; what it shows already is not written again.

        Args:
            content: of a cell that has ended, the digest of what it shows.
        """
        from mlflow.entities import Param, RunTag

        view, client = view.shortened(), self.client
        self._read(run)
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
        if whole:
            self._files(run, view)
        if run.status != view.status:
            if view.ended is None:
                client.update_run(run.run_id, status=view.status)
            else:
                client.set_terminated(run.run_id, status=view.status, end_time=view.ended)
            run.status = view.status
        self._shown(run, content)

    def _read(self, run: Run) -> None:
        """Look up what a run shows."""
        if not run.read:
            found = self.client.get_run(run.run_id)
            run.tags, run.params, run.status = dict(found.data.tags), set(found.data.params), found.info.status
            run.read = True

    def _take_away(self, run: Run, view: View) -> None:
        """Tags of an earlier attempt: at a new one all, at a good end those that say why it failed."""
        stale = (*OF_AN_ATTEMPT, Tags.SHOWN) if view.status == "RUNNING" else (Tags.REASON, Tags.ERROR)
        run.content = "" if view.status == "RUNNING" else run.content
        for name in stale:
            if name in run.tags and name not in view.tags:
                self.client.delete_tag(run.run_id, name)
                del run.tags[name]

    def _new_points(self, run: Run, view: View) -> list[Point]:
        """Points that are not there. One whose images seen are is not repeated: a training that was killed passes them
        again, with the same values at other times."""
        points = view.points()
        if not points:
            return []
        if run.steps is None:
            name = next(iter(points[0].values))
            run.steps = {metric.step for metric in self.client.get_metric_history(run.run_id, name)}
        return [point for point in points if point.step not in run.steps]

    def _files(self, run: Run, view: View) -> None:
        for path in view.files():
            self.client.log_artifact(run.run_id, str(path))

    def _shown(self, run: Run, content: str) -> None:
        if content != run.content and content:
            self.client.set_tag(run.run_id, Tags.SHOWN, content)
            run.content = content

    # --- several cells that have ended ---------------------------------------------------------------------------

    def show(
        self, views: Mapping[str, View], parent: str | None = None, *, restore: bool = False,
        progress: Progress = lambda done: None,
    ) -> Shown:  # fmt: skip
        """Have the runs of these keys show their views, which are those of cells that have ended.

        Args:
            parent: id of the run that new ones are shown below. restore: those that a person has deleted, too.
            progress: called with the number of runs that are done.
        """
        result, done = Shown(), 0
        if self.deleted:
            return Shown(deleted=len(views))
        runs = self.find(list(views)) if views else {}
        new = [key for key in views if key not in runs]
        for key, run in runs.items():
            result += self._update(run, views[key], restore=restore)
            done += 1
            progress(done)
        for first in range(0, len(new), RUNS_AT_ONCE):
            some = {key: views[key].shortened() for key in new[first : first + RUNS_AT_ONCE]}
            contents = {key: views[key].content for key in some}
            made = self.ensure(some, parent)
            if self.database is None:
                for key, run in made.items():
                    result += self._update(run, views[key], restore=restore, new=True)
            else:
                for key, run in made.items():
                    self._files(run, some[key])
                self.database.tag(Tags.SHOWN, {made[key].run_id: contents[key] for key in some})
                result += Shown(made=len(some))
            done += len(some)
            progress(done)
        return result

    def _update(self, run: Run, view: View, *, restore: bool, new: bool = False) -> Shown:
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
            if transient(error):
                raise
            self.mirror.say(f"warning: {self.mirror.tracker.shown} refuses {view.name}: {why(error)}")
            return Shown(refused=1)
        return Shown(made=1) if new else Shown(updated=1)


class Mirror:
    """Shows what a storage holds in an MLflow store."""

    def __init__(self, tracker: Tracker, storage: Storage, say: Say = lambda line: None, wait: Wait = patient) -> None:
        self.tracker, self.storage, self.say, self.wait = tracker, storage, say, wait
        self.database = Database(tracker.uri) if is_database(tracker.uri) else None
        self.identity = identity_of(storage)

    def alone(self, name: str) -> AbstractContextManager[Lease]:
        """Nobody else of this storage makes runs of this page during the block."""
        key = digest("page", [store_name(self.tracker.uri), name])
        return leased(self.storage, f"mirror/{key}", "showing runs in MLflow", wait=self.wait)

    def page(self, name: str, ours: Collection[str] = (), *, restore: bool = False) -> Page:
        """The experiment that shows the sweeps of a name. It is made where it is not there; where another storage has
        that name, under another one.

        Args:
            ours: digests of cells and sweeps, by which an experiment of an earlier version is known to be this
                storage's. restore: one that a person has deleted, too.
        """
        key = key_of(self.identity, name)
        found = self._by_key(key)
        if found is None:
            with self.alone(name):
                found = self._by_key(key) or self._make(name, key, ours)
        if found.lifecycle_stage != "active" and restore:
            self.tracker.client.restore_experiment(found.experiment_id)
            found = self.tracker.client.get_experiment(found.experiment_id)
        page = Page(self, name, found)
        if page.deleted:
            self.say(f"warning: somebody has deleted the page {found.name} in {self.tracker.shown}; {RESTORE}")
        return page

    def _by_key(self, key: str) -> Experiment | None:
        from mlflow.entities import ViewType

        condition = f"tags.`{Tags.KEY}` = '{key}'"
        found = self.tracker.client.search_experiments(view_type=ViewType.ALL, filter_string=condition)
        return min(found, key=lambda each: (each.lifecycle_stage != "active", int(each.experiment_id)), default=None)

    def _make(self, name: str, key: str, ours: Collection[str]) -> Experiment:
        client = self.tracker.client
        for shown in (name, f"{name}-{self.identity[:SUFFIX]}", f"{name}-{self.identity}"):
            there = client.get_experiment_by_name(shown)
            if there is None:
                experiment_id = client.create_experiment(
                    shown, artifact_location=self._artifacts(shown),
                    # Of the kinds that MLflow knows, the one whose page opens on runs and their charts.
                    tags={"mlflow.experimentKind": "custom_model_development", Tags.KEY: key, Tags.NAME: name},
                )  # fmt: skip
                return client.get_experiment(experiment_id)
            page = Page(self, name, there)
            if Tags.KEY not in there.tags and (shown != name or self._is_ours(page, ours)):
                if not page.deleted:
                    page.adopt()
                    client.set_experiment_tag(there.experiment_id, Tags.NAME, name)
                    client.set_experiment_tag(there.experiment_id, Tags.KEY, key)
                return there
        raise TrackingError(
            f"{self.tracker.shown}: experiments of other storages have all names that {name} could have"
        )

    def _artifacts(self, name: str) -> str | None:
        """Where artifacts of a new experiment go: a server decides itself."""
        if is_server(self.tracker.uri) or not is_database(self.tracker.uri):
            return None
        return (self.tracker.artifacts / name).resolve().as_uri()

    def _is_ours(self, page: Page, ours: Collection[str]) -> bool:
        """Whether an experiment without a key is this storage's: in its own database, empty, or with runs of it."""
        path = sqlite_path(self.tracker.uri)
        if path is not None and path.resolve().parent == self.storage.root.resolve():
            return True
        if not self.tracker.client.search_runs([page.experiment_id], max_results=1):
            return True
        known = set(ours)
        return any(found.tags[tag] in known for tag in (Tags.FINGERPRINT, Tags.SWEEP) for found in page.tagged(tag))


def _time(run: Run, view: View) -> int:
    """When a run's numbers were made. Where it showed others before they come after those."""
    return int(time.time() * 1000) if run.content or view.ended is None else view.ended


def _numbers(view: View, at: int) -> list[Metric]:
    from mlflow.entities import Metric

    return [Metric(name, value, at, view.step) for name, value in view.finite.items()]


def _of(point: Point) -> list[Metric]:
    from mlflow.entities import Metric

    return [Metric(name, value, point.time, point.step) for name, value in point.values.items()]


def _metrics(view: View, curve: Iterable[Point]) -> list[Metric]:
    """Curve and numbers."""
    at = int(time.time() * 1000) if view.ended is None else view.ended
    return [*(metric for point in curve for metric in _of(point)), *_numbers(view, at)]


def _batches(points: Iterable[Point]) -> list[list[Metric]]:
    """Metrics of points, in calls that a store takes; those of a point are together."""
    found: list[list[Metric]] = []
    for point in points:
        metrics = _of(point)
        if not found or len(found[-1]) + len(metrics) > METRICS_A_CALL:
            found.append([])
        found[-1] += metrics
    return found
