"""What a run of MLflow is to show, and the names of the tags that pforce sets."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from pforce.base.files import digest
from pforce.records.status import RUNNING, Status

PARENT, USER = "mlflow.parentRunId", "mlflow.user"
NAME_LENGTH = 250
TAG_LENGTH = 4000
PARAMETER_LENGTH = 6000
NAME = re.compile(r"[\w.\-/ ]{1,250}")
"""Names of parameters and metrics, as MLflow takes them on every system."""


class Tags:
    """Names of the tags that pforce sets."""

    KEY = "pforce.key"
    """What a run, or an experiment, is found by, whatever people call it (see `key_of`)."""
    SHOWN = "pforce.shown"
    """Digest of what a run shows, once it shows all of it."""
    NAME = "pforce.name"
    """Tag of an experiment: name of its sweeps."""
    FINGERPRINT = "pforce.fingerprint"
    TRAINING = "pforce.training"
    """Fingerprint of the training: names the folder of its checkpoints."""
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
    """Where numbers come from that were not measured in this storage."""
    ATTEMPTS = "pforce.attempts"
    """How often a trial was begun within one sweep, where that is more than once."""
    RETRIED = "pforce.retried"
    """Why it was begun again."""
    COMMAND = "pforce.command"
    """Tag of a sweep: the command that first ran it."""
    REUSED = "pforce.reused"
    """Tag of a sweep: fingerprints of cells that were finished when it was called."""
    CELLS = "pforce.cells"
    """Tag of a sweep: how many distinct cells it plans."""


OF_A_RESULT = (Tags.REASON, Tags.ERROR, Tags.ORIGIN, Tags.NOTES)
"""Tags that other results take away."""
OF_AN_ATTEMPT = (*OF_A_RESULT, Tags.WARNING, Tags.ATTEMPTS, Tags.RETRIED, Tags.SHOWN)
"""Tags that a new attempt takes away."""


def key_of(storage: str, *what: str) -> str:
    """The key of an experiment (a sweep's name), of a sweep (its name and identity) or of a cell (its sweep's name and
    its digest).

    Args:
        storage: its identity, so that two storages may have sweeps of one name on one server.
    """
    return digest("mirror", [storage, *what])


class Point(NamedTuple):
    """A point of a curve."""

    step: int
    """Images seen."""
    time: int
    """When it was made, milliseconds since 1970."""
    values: Mapping[str, float]
    """Metric → value."""


def no_points() -> Sequence[Point]:
    """No curve."""
    return ()


def no_files() -> Sequence[Path]:
    """No files."""
    return ()


@dataclass(frozen=True)
class View:
    """What a run is to show. ValueError for a name that MLflow does not take.

    Curve and files are looked up when they are needed: of a run that shows the same already they are not.
    """

    name: str
    tags: Mapping[str, str]
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Its numbers: finite ones are shown, at `step`. What is undefined or infinite has no place in a store that would
    make a large number of it."""
    step: int = 0
    status: Status = RUNNING
    started: int = 0
    """Milliseconds since 1970."""
    ended: int | None = None
    points: Callable[[], Sequence[Point]] = no_points
    files: Callable[[], Sequence[Path]] = no_files

    def __post_init__(self) -> None:
        for kind, names in (("parameter", self.params), ("metric", self.metrics)):
            for name in names:
                if not NAME.fullmatch(name):
                    raise ValueError(f"{kind} {name!r} of {self.name}: MLflow takes letters, digits and _ - . / only")

    def shortened(self) -> View:
        """With name, tags and parameters of the lengths that MLflow takes."""
        tags = {name: value[:TAG_LENGTH] for name, value in self.tags.items()}
        params = {name: value[:PARAMETER_LENGTH] for name, value in self.params.items()}
        return replace(self, name=self.name[:NAME_LENGTH], tags=tags, params=params)

    def with_tags(self, tags: Mapping[str, str]) -> View:
        """With further tags."""
        return replace(self, tags={**self.tags, **tags})

    def with_points(self, points: Sequence[Point]) -> View:
        """With this curve."""
        return replace(self, points=lambda: points)

    def with_files(self, files: Sequence[Path]) -> View:
        """With these files."""
        return replace(self, files=lambda: files)

    @property
    def finite(self) -> dict[str, float]:
        """The numbers that are shown."""
        return {name: value for name, value in self.metrics.items() if math.isfinite(value)}

    @property
    def content(self) -> str:
        """Digest of all that it shows but curve and files, which follow from that."""
        return digest(
            "view", [self.name, dict(self.tags), dict(self.params), self.finite, self.step, self.status, self.ended]
        )
