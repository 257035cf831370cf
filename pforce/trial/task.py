"""Tasks for workers, their events, and the answers to these, as frozen values.

A task is everything that a worker needs to know, by names and paths, as it is sent to other processes and machines.
Code that handles events ends its match with `assert_never`, so that a new event cannot be forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, NamedTuple, TypeAlias

from pforce.config import Experiment
from pforce.metrics.detectors import Detector
from pforce.metrics.image_sets import ImageSet
from pforce.records.parts import Inputs, Part, Request, metric_key
from pforce.training import Answer, Record, Sharding
from pforce.trial.draw import Span
from pforce.trial.failures import Failure
from pforce.trial.jobs import Job
from pforce.trial.measurable import Measurable
from pforce.trial.reference import ReferenceImages
from pforce.trial.watch import Phase

STOPPED = "stopped"
"""Reason of an attempt that was asked to stop."""


@dataclass(frozen=True)
class Train:
    """Train an experiment to its images seen and, unless other tasks measure it, make the parts of its row."""

    id: str
    """Digest of the cell."""
    label: str
    experiment: Experiment
    """The experiment, with resolved precision."""
    inputs: Inputs
    """Inputs of the experiment, by content."""
    data: str
    """Folder of the data set, on every machine."""
    storage: str
    """URI of the storage; for a bucket, every machine has a mirror of its own."""
    training: str
    """Digest of the training."""
    measures: bool = True
    """Whether the same process measures the weights in memory."""
    sharding: Sharding = "none"
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Provenance that the driver knows: versions, commit and changes of the code."""
    request: Request | None = None
    """Measurements in place of those of the experiment's evaluation."""

    @property
    def cells(self) -> tuple[str, ...]:
        """Digests of the cells that need it."""
        return (self.id,)


@dataclass(frozen=True)
class Measure:
    """Measure existing weights: all missing parts of a request, its held-out parts, or a range of its images."""

    id: str
    label: str
    model: Measurable
    what: Literal["all", "held_out", "images"] = "all"
    """Parts to make; images: draw a range of images and keep their features."""
    groups: tuple[tuple[Span, ...], ...] = ()
    """The range, as passes grouped by the blocks that they fill."""
    cells: tuple[str, ...] = ()
    """Digests of the cells that need it."""


@dataclass(frozen=True)
class MeasureImages:
    """Measure given images, in the process that has them."""

    id: str
    label: str
    images: ImageSet
    parts: Mapping[str, Part]
    """Metric → part, named as in `Request.image_parts`."""
    reference: ReferenceImages
    detector: Detector
    storage: str
    further: tuple[Detector, ...] = ()
    """Further detectors of the same images."""
    training: tuple[str, int] | None = None
    """Folder of the data set whose training images they are compared with, and the number of held-out images; None
    where no metric needs them."""
    cells: tuple[str, ...] = ()

    def keys(self, further: str | None) -> dict[str, str]:
        """Metric → name among `parts`, of a further detector, or of the first one (None)."""
        metrics = {key.partition("/")[0] for key in self.parts}
        keys = {metric: metric_key(metric, further) for metric in sorted(metrics)}
        return {metric: key for metric, key in keys.items() if key in self.parts}


@dataclass(frozen=True)
class Draw:
    """Draw and keep a range of a sampling job's images."""

    id: str
    label: str
    job: Job
    group: tuple[Span, ...]
    """Passes that fill one or more blocks."""
    cells: tuple[str, ...] = ()


Task: TypeAlias = Train | Measure | MeasureImages | Draw


class Handed(NamedTuple):
    """A task as a worker gets it."""

    task: Task
    attempt: int
    """Number of the attempt, from 1."""


class Idle(Enum):
    """The reason why a worker gets no task."""

    WAIT = "wait"
    """There may be a task once a running one has ended."""
    END = "end"
    """There are no more tasks, unless a running one fails and is retried."""


Next: TypeAlias = Handed | Idle


@dataclass(frozen=True)
class _Event:
    """A worker's report on an attempt at a task."""

    task: str
    """The task's id."""
    attempt: int


@dataclass(frozen=True)
class Started(_Event):
    """The attempt has begun its own work; it no longer waits for another process."""


@dataclass(frozen=True)
class Waiting(_Event):
    """The attempt waits for another process."""

    holder: str
    """The other process and its work, in words."""


@dataclass(frozen=True)
class Progress(_Event):
    """The progress of the attempt."""

    phase: Phase
    share: float
    """Share of the phase that is done, in [0, 1]."""


@dataclass(frozen=True)
class CurvePoint(_Event):
    """A point of the training's loss curve."""

    record: Record


@dataclass(frozen=True)
class Snapshot(_Event):
    """A snapshot of the training is in the storage, with its record."""

    images_seen: int


@dataclass(frozen=True)
class Warned(_Event):
    """A warning for users; the attempt continues."""

    message: str


class Spent(NamedTuple):
    """The cost of drawing images."""

    images: int = 0
    """Number of images drawn now, without those that were there."""
    num_function_evaluations: int = 0
    """NFE per image."""
    forward_passes: int = 0
    """Forward passes of the model per image."""
    sampling_seconds: float = 0.0
    """Seconds of the sampler."""
    device: str = ""
    """Name of the device that drew them."""


@dataclass(frozen=True)
class Done(_Event):
    """The task is done; its results are in the storage."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the row, or of the training where nothing was measured."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment of the attempt: device, precision, threads, workers."""
    seconds: float = 0.0
    """Seconds that the worker took."""
    spent: Spent = field(default_factory=Spent)


@dataclass(frozen=True)
class Failed(_Event):
    """The attempt has ended without its result."""

    failure: Failure
    traceback: str = ""
    log: str | None = None
    """Log of the attempt, below the storage's root; None where it could not be written."""


Event: TypeAlias = Started | Waiting | Progress | CurvePoint | Snapshot | Warned | Done | Failed

__all__ = [
    "STOPPED", "Answer", "CurvePoint", "Done", "Draw", "Event", "Failed", "Handed", "Idle", "Measure",
    "MeasureImages", "Next", "Progress", "Snapshot", "Spent", "Started", "Task", "Train", "Waiting", "Warned",
]  # fmt: skip
