"""MLflow runs that show what a storage holds: they are made once and brought up to date.

Runs and experiments are found by a tag, their key, so that people may rename them. A process that makes one holds a
lease of the storage meanwhile. A run that a person has deleted stays deleted until it is requested; one that is gone
with its database is made again. The last tag of a run of an ended cell is a digest of everything that it shows: where
that is unchanged, there is nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pforce.base.files import digest
from pforce.base.words import counted
from pforce.records.lease import Holder, Lease, leased
from pforce.records.provenance import user
from pforce.storage import Storage
from pforce.storage.identity import identity_of
from pforce.tracking.checks import TrackingError, is_database, is_server, sqlite_path, store_name, transient, why
from pforce.tracking.database import Database
from pforce.tracking.page import Page, Run
from pforce.tracking.store import Tracker
from pforce.tracking.view import Tags, key_of

if TYPE_CHECKING:
    from mlflow.entities import Experiment

MOST_LOOKED_FOR = 100
"""Most digests by which an experiment of an earlier version is recognised: each is a question to the store, since it
may hold thousands of other people's runs."""
SUFFIX = 6
"""Digits of the storage's identity that are added to an experiment's name where another storage uses that name."""
MOST_REFUSALS = 3
"""Refused runs that are reported one by one."""
MEND = "once what refuses them is mended, `pforce mirror` shows them. All results are in the storage"
RESTORE = "`pforce mirror --restore` shows it again"

Say = Callable[[str], None]


class Mirror:
    """Shows what a storage holds in an MLflow store."""

    def __init__(self, tracker: Tracker, storage: Storage, say: Say = lambda line: None) -> None:
        self.tracker, self.storage, self.say = tracker, storage, say
        self.database = Database(tracker.uri) if is_database(tracker.uri) else None
        self.identity = identity_of(storage)
        self.refused: set[str] = set()
        """Names of runs that the store has refused, wholly or in part, although it answers."""

    def refuse(self, run: Run | None, name: str, error: Exception, say: Say | None = None) -> None:
        """Report a run that the store refuses although it answers. The first few are reported, and each once: a folder
        that cannot be written is in the way of every run.

        Args:
            run: the run, where there is one.
            say: called with the line, instead of the mirror's own.
        """
        if name not in self.refused and len(self.refused) < MOST_REFUSALS:
            what = f"files of {name}" if run is not None and run.filing else name
            (say or self.say)(f"warning: tracking store {self.tracker.shown} refuses {what}: {why(error)}")
        self.refused.add(name)

    def say_refused(self, say: Say) -> None:
        """Report what the store lacks because it refuses it, and the cure; nothing where it has taken all."""
        if self.refused:
            say(f"files or numbers of {counted(len(self.refused), 'run')} are not in {self.tracker.shown}: {MEND}")

    def alone(self, name: str) -> AbstractContextManager[Lease]:
        """Hold the lease of a page, so that no other process with this storage makes runs of it during the block."""
        key = digest("page", [store_name(self.tracker.uri), name])
        told: set[str] = set()

        def wait(holder: Holder | None) -> None:
            if str(holder) not in told:
                told.add(str(holder))
                self.say(f"{name}: its page in MLflow waits for {holder or 'another process'}")

        return leased(self.storage, f"mirror/{key}", "showing runs in MLflow", wait=wait)

    def answers(self) -> bool:
        """Whether the store answers anything at all."""
        try:
            self.tracker.client.search_experiments(max_results=1)
        except Exception:  # any error means that it is unreachable
            return False
        return True

    def page(self, name: str, ours: Collection[str] = (), *, restore: bool = False) -> Page:
        """The experiment that shows the sweeps of a name. It is made where it is missing, under another name where
        another storage uses this one.

        Args:
            ours: digests of cells and sweeps by which an experiment of an earlier version is recognised as this
                storage's.
            restore: restore an experiment that a person has deleted.
        """
        key = key_of(self.identity, name)
        found = self._by_key(key)
        if found is None:
            with self.alone(name):
                found = self._by_key(key) or self._make(name, key, ours, restore=restore)
        if found.lifecycle_stage != "active" and restore:
            self.tracker.client.restore_experiment(found.experiment_id)
            found = self.tracker.client.get_experiment(found.experiment_id)
        found = self._here(found)
        page = Page(self, name, found)
        if page.deleted:
            self.say(f"warning: somebody has deleted the page {found.name} in {self.tracker.shown}; {RESTORE}")
        return page

    def _by_key(self, key: str) -> Experiment | None:
        from mlflow.entities import ViewType

        condition = f"tags.`{Tags.KEY}` = '{key}'"
        found = self.tracker.client.search_experiments(view_type=ViewType.ALL, filter_string=condition)
        return min(found, key=lambda each: (each.lifecycle_stage != "active", int(each.experiment_id)), default=None)

    def _make(self, name: str, key: str, ours: Collection[str], *, restore: bool) -> Experiment:
        client = self.tracker.client
        first = self._first_name(name, ours)
        for shown in (first, f"{first}-{self.identity[:SUFFIX]}", f"{first}-{self.identity}"):
            there = client.get_experiment_by_name(shown) or self._made(shown, name, key)
            if there is None:
                there = client.get_experiment_by_name(shown)  # another storage was faster
            if there is None:
                break
            if there.tags.get(Tags.KEY) == key:
                return there
            page = Page(self, name, there)
            if Tags.KEY not in there.tags and (shown != first or self._is_ours(page, ours)):
                if page.deleted and not restore:
                    return there
                if page.deleted:
                    client.restore_experiment(there.experiment_id)
                page.adopt()
                client.set_experiment_tag(there.experiment_id, Tags.NAME, name)
                client.set_experiment_tag(there.experiment_id, Tags.KEY, key)
                return client.get_experiment(there.experiment_id)
        raise TrackingError(f"{self.tracker.shown}: a page for {name} can neither be made nor found")

    def _first_name(self, name: str, ours: Collection[str]) -> str:
        """The name that a page would have where nobody uses it. A server's names are unique among all its users: there
        a page's name says whose it is, but for one of an earlier version."""
        if not is_server(self.tracker.uri):
            return name
        there = self.tracker.client.get_experiment_by_name(name)
        if there is not None and Tags.KEY not in there.tags and self._is_ours(Page(self, name, there), ours):
            return name
        return f"{name} ({user()})"

    def _made(self, shown: str, name: str, key: str) -> Experiment | None:
        """A new experiment; None where another process has just taken its name."""
        client = self.tracker.client
        try:
            experiment_id = client.create_experiment(
                shown, artifact_location=self._artifacts(shown),
                # The one of MLflow's kinds whose page opens with runs and their charts.
                tags={"mlflow.experimentKind": "custom_model_development", Tags.KEY: key, Tags.NAME: name},
            )  # fmt: skip
        except Exception as error:  # every kind of store raises its own
            if transient(error) or client.get_experiment_by_name(shown) is None:
                raise
            return None
        return client.get_experiment(experiment_id)

    def _artifacts(self, name: str) -> str | None:
        """URI for the artifacts of a new experiment; None for a server, which decides itself."""
        if is_server(self.tracker.uri) or not is_database(self.tracker.uri):
            return None
        return (self.tracker.artifacts / name).resolve().as_uri()

    def _here(self, found: Experiment) -> Experiment:
        """An experiment whose artifacts are where they lie: those of a storage that was moved, with its database, lie
        below its new folder."""
        location = str(found.artifact_location)
        folder = self.tracker.artifacts / unquote(location.rpartition("/")[2])
        if self.database is None or not location.startswith("file:") or not self.tracker.artifacts.is_dir():
            return found
        # A storage that was copied has files of its own beside its database, although the first ones are still there.
        path = sqlite_path(self.tracker.uri)
        beside = path is not None and path.resolve().parent == self.storage.root.resolve() and folder.is_dir()
        there = Path(unquote(urlsplit(location).path)).exists()
        if location == folder.resolve().as_uri() or (there and not beside):
            return found
        self.database.move_artifacts(str(found.experiment_id), location, folder.resolve().as_uri())
        return self.tracker.client.get_experiment(found.experiment_id)

    def _is_ours(self, page: Page, ours: Collection[str]) -> bool:
        """Whether an experiment without a key belongs to this storage: it is in the storage's database, empty, or has
        its runs."""
        from mlflow.entities import ViewType

        path = sqlite_path(self.tracker.uri)
        if path is not None and path.resolve().parent == self.storage.root.resolve():
            return True
        some = self.tracker.client.search_runs([page.experiment_id], run_view_type=ViewType.ALL, max_results=1)
        if not some:
            return not page.deleted
        known = sorted(ours)[:MOST_LOOKED_FOR]
        return any(page.tagged(tag, [value]) for value in known for tag in (Tags.SWEEP, Tags.FINGERPRINT))
