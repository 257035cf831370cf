"""Content of an MLflow run, and the names of the tags that pforce sets."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from pforce.base.files import digest
from pforce.records.status import RUNNING, Status

PARENT, USER = "mlflow.parentRunId", "mlflow.user"
LOGGED = "mlflow.loggedArtifacts"
"""Tag that lists the tables among a run's files."""
NAME_LENGTH = 250
TAG_LENGTH = 4000
PARAMETER_LENGTH = 6000
NAME = re.compile(r"[\w.\-/ ]{1,250}")
"""Names of parameters and metrics that MLflow accepts on every system."""


NOTE = "mlflow.note.content"
"""Tag that MLflow shows as a run's description, in Markdown."""


class Tags:
    """Names of the tags that pforce sets."""

    KEY = "pforce.key"
    """Key by which a run or an experiment is found, whatever its name (see `key_of`)."""
    SHOWN = "pforce.shown"
    """Digest of everything that a run shows, once it is complete."""
    NAME = "pforce.name"
    """Name of an experiment's sweeps."""
    FINGERPRINT = "pforce.fingerprint"
    TRAINING = "pforce.training"
    """Fingerprint of the training, which names the folder of its checkpoints."""
    TRUNK = "pforce.trunk"
    """Fingerprint of the training that this one branches off from."""
    SWEEP = "pforce.sweep"
    KIND = "pforce.kind"
    SEED = "pforce.seed"
    REASON = "reason"
    ERROR = "error"
    WARNING = "warning"
    NOTES = "notes"
    ORIGIN = "origin"
    """Source of numbers that were not measured into this storage."""
    ATTEMPTS = "pforce.attempts"
    """Number of attempts at a trial within one sweep, where there are several."""
    RETRIED = "pforce.retried"
    """Reason of the last retry."""
    COMMAND = "pforce.command"
    """Command that first ran a sweep."""
    REUSED = "pforce.reused"
    """Fingerprints of cells that were finished when a sweep was started."""
    CELLS = "pforce.cells"
    """Number of distinct cells that a sweep plans."""
    SNAPSHOTS = "pforce.snapshots"
    """Images seen of the measured snapshots of a cell's training, whose pictures its run has, too."""
    BEST = "best"
    """Row of a sweep with the best mean of its distance."""


OF_A_RESULT = (Tags.REASON, Tags.ERROR, Tags.ORIGIN, Tags.NOTES)
"""Tags that are removed where a run shows other results."""
OF_AN_ATTEMPT = (*OF_A_RESULT, Tags.WARNING, Tags.ATTEMPTS, Tags.RETRIED, Tags.SHOWN)
"""Tags that a new attempt removes."""


def key_of(storage: str, *what: str) -> str:
    """The key of an experiment (a sweep's name), of a sweep (its name and identity) or of a cell (its sweep's name and
    its digest).

    Args:
        storage: identity of the storage, so that two storages may have sweeps of the same name on one server.
    """
    return digest("mirror", [storage, *what])


class Point(NamedTuple):
    """A point of a curve."""

    step: int
    """Images seen."""
    time: int
    """Time at which it was made, in milliseconds since 1970."""
    values: Mapping[str, float]
    """Metric → value."""


class DataSet(NamedTuple):
    """The data set of a training, as MLflow's column of data sets shows it."""

    name: str
    digest: str
    """At most 36 characters."""
    source: str
    """Its source as JSON."""
    source_type: str = "pforce"
    context: str = "training"


class Picture(NamedTuple):
    """A picture that MLflow compares between runs, at one step."""

    key: str
    """Name that runs share, of letters, digits, spaces and _ - ."""
    step: int
    """Images seen."""
    time: int
    """Time at which it was made, in milliseconds since 1970."""
    path: Path


def no_pictures() -> Sequence[Picture]:
    """An empty list of pictures."""
    return ()


def no_points() -> Sequence[Point]:
    """An empty curve."""
    return ()


def no_files() -> Sequence[Path]:
    """An empty list of files."""
    return ()


@dataclass(frozen=True)
class View:
    """Everything that a run shows. ValueError for a name that MLflow does not accept.

    Curve and files are functions, called only where the run does not show the same already.
    """

    name: str
    tags: Mapping[str, str]
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Numbers of the run, shown at `step`. Only finite ones are shown, because a store would turn others into large
    numbers."""
    step: int = 0
    status: Status = RUNNING
    started: int = 0
    """Time of the start, in milliseconds since 1970; `ended` likewise."""
    ended: int | None = None
    points: Callable[[], Sequence[Point]] = no_points
    files: Callable[[], Sequence[Path]] = no_files
    pictures: Callable[[], Sequence[Picture]] = no_pictures
    texts: Mapping[str, str | bytes] = field(default_factory=dict)
    """Files whose content is here: name → content."""
    data: DataSet | None = None
    inputs: str = ""
    """Digest of what it was made from, which tells whether it has changed where two drawings of one figure differ; else
    empty."""
    before: Sequence[Point] = ()
    """Numbers at earlier steps: of the measured snapshots of a training."""
    charts: str = ""
    """State of the page's saved view that goes with it; see `pforce.tracking.charts`."""

    def __post_init__(self) -> None:
        for kind, names in (("parameter", self.params), ("metric", self.metrics)):
            for name in names:
                if not NAME.fullmatch(name):
                    raise ValueError(f"{kind} {name!r} of {self.name}: MLflow takes letters, digits and _ - . / only")

    def shortened(self) -> View:
        """The view with name, tags and parameters cut to the lengths that MLflow accepts."""
        tags = {name: value[:TAG_LENGTH] for name, value in self.tags.items()}
        params = {name: value[:PARAMETER_LENGTH] for name, value in self.params.items()}
        return replace(self, name=self.name[:NAME_LENGTH], tags=tags, params=params)

    def with_tags(self, tags: Mapping[str, str]) -> View:
        """The view with further tags."""
        return replace(self, tags={**self.tags, **tags})

    def with_points(self, points: Sequence[Point]) -> View:
        """The view with this curve."""
        return replace(self, points=lambda: points)

    def with_files(self, files: Sequence[Path]) -> View:
        """The view with these files."""
        return replace(self, files=lambda: files)

    def with_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> View:
        """The view with a table, which MLflow shows as one.

        Args:
            name: name of its file, which ends in .json.
            rows: values of each row, as JSON has them.
        """
        text = json.dumps({"columns": list(columns), "data": [list(row) for row in rows]}, allow_nan=False)
        logged = [*json.loads(self.tags.get(LOGGED, "[]")), {"path": name, "type": "table"}]
        return replace(self, texts={**self.texts, name: text}, tags={**self.tags, LOGGED: json.dumps(logged)})

    @property
    def finite(self) -> dict[str, float]:
        """The numbers that are shown, which are finite."""
        return {name: value for name, value in self.metrics.items() if math.isfinite(value)}

    @property
    def content(self) -> str:
        """Digest of everything that it shows except curve and files, which follow from the rest."""
        if self.inputs:
            return digest("view", [self.inputs, self.status])
        return digest(
            "view",
            [
                self.name,
                dict(self.tags),
                dict(self.params),
                self.finite,
                self.step,
                self.status,
                self.ended,
                *([{name: str(text) for name, text in self.texts.items()}] if self.texts else []),
            ],
        )
