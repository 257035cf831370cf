"""What a worker is given, what it says, and what it is answered: tasks, events and answers, as frozen values.

A task is all that a worker needs to know, by names and paths: it travels to other processes and machines. Whoever
handles events matches them to the end with `assert_never`, so that a new one cannot be forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, NamedTuple, TypeAlias

from pforce.config import Experiment
from pforce.metrics.detectors import Detector
from pforce.metrics.image_sets import ImageSet
from pforce.records.parts import Inputs, Part
from pforce.training import Answer, Record, Sharding
from pforce.trial.draw import Span
from pforce.trial.failures import Failure
from pforce.trial.jobs import Job
from pforce.trial.measurable import Measurable
from pforce.trial.reference import ReferenceImages
from pforce.trial.watch import Phase

STOPPED = "stopped"
"""Reason of an attempt that was told to stop."""


@dataclass(frozen=True)
class Train:
    """Train an experiment to its images seen and, unless others measure it, make the parts of its row."""

    id: str
    """Digest of the cell."""
    label: str
    experiment: Experiment
    """Its precision is resolved."""
    inputs: Inputs
    """What it reads, by content."""
    data: str
    """Folder of the data set, on every machine."""
    storage: str
    """URI of the storage; of a bucket every machine has a mirror of its own."""
    training: str
    """Digest of the training."""
    measures: bool = True
    """Whether its measurements are made in the same process, on the weights in memory."""
    sharding: Sharding = "none"
    provenance: Mapping[str, str] = field(default_factory=dict)
    """What the driver knows of the code."""

    @property
    def cells(self) -> tuple[str, ...]:
        """Digests of the cells that it works for."""
        return (self.id,)


@dataclass(frozen=True)
class Measure:
    """Measure weights that exist: all that is missing of a request, its held-out part, or a range of its images."""

    id: str
    label: str
    model: Measurable
    what: Literal["all", "held_out", "images"] = "all"
    """images: draw a range, and keep its features."""
    groups: tuple[tuple[Span, ...], ...] = ()
    """The range, as passes by the blocks that they fill."""
    cells: tuple[str, ...] = ()
    """Digests of the cells that it works for."""


@dataclass(frozen=True)
class MeasureImages:
    """Measure images that are given: in the process that has them."""

    id: str
    label: str
    images: ImageSet
    parts: Mapping[str, Part]
    """Metric → part."""
    reference: ReferenceImages
    detector: Detector
    storage: str
    cells: tuple[str, ...] = ()


@dataclass(frozen=True)
class Draw:
    """Draw a range of a sampling job's images, and keep them."""

    id: str
    label: str
    job: Job
    group: tuple[Span, ...]
    """Passes that fill one or more blocks."""
    cells: tuple[str, ...] = ()


Task: TypeAlias = Train | Measure | MeasureImages | Draw


class Handed(NamedTuple):
    """A task as it is given to a worker."""

    task: Task
    attempt: int
    """From 1."""


class Idle(Enum):
    """Why a worker is given no task."""

    WAIT = "wait"
    """There may be one once a task under way has ended."""
    END = "end"
    """There are no more, unless a task under way fails and is tried again."""


Next: TypeAlias = Handed | Idle


@dataclass(frozen=True)
class _Event:
    """What a worker says of an attempt at a task."""

    task: str
    """The task's id."""
    attempt: int


@dataclass(frozen=True)
class Started(_Event):
    """The attempt is at work itself: whoever was at its training before has left it."""


@dataclass(frozen=True)
class Waiting(_Event):
    """The attempt waits for another process."""

    holder: str
    """Who that is, and what it does, in words."""


@dataclass(frozen=True)
class Progress(_Event):
    """How far the attempt is."""

    phase: Phase
    share: float
    """Share of the phase that is done, in [0, 1]."""


@dataclass(frozen=True)
class CurvePoint(_Event):
    """A point of the training's loss curve."""

    record: Record


@dataclass(frozen=True)
class Warned(_Event):
    """Something that a person should know; the attempt goes on."""

    message: str


class Spent(NamedTuple):
    """What drawing images took."""

    images: int = 0
    """Images drawn now; others were there."""
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
    """The task is done: what it made lies in the storage."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    """Numbers of the row, or of the training as far as it is one."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What it ran on: device, precision, threads, workers."""
    seconds: float = 0.0
    """Seconds of the worker."""
    spent: Spent = field(default_factory=Spent)


@dataclass(frozen=True)
class Failed(_Event):
    """The attempt has ended without its result."""

    failure: Failure
    traceback: str = ""
    log: str | None = None
    """File of what the attempt said, below the storage's root; None where none could be written."""


Event: TypeAlias = Started | Waiting | Progress | CurvePoint | Warned | Done | Failed

__all__ = [
    "STOPPED", "Answer", "CurvePoint", "Done", "Draw", "Event", "Failed", "Handed", "Idle", "Measure",
    "MeasureImages", "Next", "Progress", "Spent", "Started", "Task", "Train", "Waiting", "Warned",
]  # fmt: skip
