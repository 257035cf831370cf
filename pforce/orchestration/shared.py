"""Measurements of several models that workers share, with drawings divided into ranges of images: the missing ones, the
finished ones, and their cost. A lost worker loses only the range that it was drawing."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from pforce.metrics.detectors import Detector, load_detector
from pforce.records.ledger import Ledger
from pforce.trial.draw import Span, count_of, features_folder, spans_to_draw
from pforce.trial.drawn_images import record_drawing
from pforce.trial.measurable import Measurable
from pforce.trial.measure import missing
from pforce.trial.readers import reader_of, store_of
from pforce.trial.subject import Subject
from pforce.trial.task import Done, Measure, Spent


class Wanted(NamedTuple):
    """A model to be measured for a cell."""

    cell: str
    """Digest of the cell; empty where there is none."""
    label: str
    model: Measurable


class Shared:
    """Tasks of about one block of images each, and the models that need them. Cells with the same drawing share it:
    those that need fewer images wait for the others."""

    def __init__(self, wanted: Sequence[Wanted], ledger: Ledger) -> None:
        self.wanted, self.ledger = wanted, ledger
        self.started = time.time()
        self.left: dict[int, set[str]] = {number: set() for number in range(len(wanted))}
        """Number of a model → tasks that are not done."""
        self.sharers: dict[str, list[int]] = {}
        """Task → numbers of the models that wait for it."""
        self.drawer: dict[str, int] = {}
        """Task of a range → number of the model that draws it."""
        self.spent: dict[int, list[tuple[Spent, float]]] = {number: [] for number in range(len(wanted))}

    def tasks(self, *, held_out: bool) -> list[Measure]:
        """Tasks for everything that is missing; with `held_out`, also for held-out measurements."""
        found: list[Measure] = []
        drawings: dict[str, list[int]] = {}
        for number, (_, label, model) in enumerate(self.wanted):
            todo = missing(model.request, model.sha256, self.ledger)
            if todo.metrics:
                drawings.setdefault(self.folder(model), []).append(number)
            if held_out and todo.held_out:
                found.append(self._for([number], Measure(f"held_out/{number}", label, model, "held_out")))
        for several in drawings.values():
            requests = {number: self.wanted[number].model.request for number in several}
            drawer = max(several, key=lambda number: (requests[number].needs_pixels, requests[number].images))
            _, label, model = self.wanted[drawer]
            for group in self.groups(model):
                span = f"{group[0].first}-{group[-1].end}"
                task = Measure(f"images/{drawer}/{span}", f"{label}: images {span}", model, "images", (tuple(group),))
                found.append(self._for(several, task))
                self.drawer[task.id] = drawer
        return found

    def _for(self, several: list[int], task: Measure) -> Measure:
        self.sharers[task.id] = several
        for number in several:
            self.left[number].add(task.id)
        cells = tuple(self.wanted[number].cell for number in several if self.wanted[number].cell)
        return Measure(task.id, task.label, task.model, task.what, task.groups, cells)

    def folder(self, model: Measurable) -> str:
        """Folder of the features of a model's images, below the storage's root."""
        return features_folder(model.request.drawing(model.sha256).digest, _detector(model))

    def groups(self, model: Measurable) -> list[list[Span]]:
        """Missing passes of a model's drawing, grouped by blocks."""
        drawing, reader = model.request.drawing(model.sha256).digest, reader_of(_detector(model), model.request.metrics)
        features, pictures = store_of(self.ledger, drawing, reader)
        kept = features.load(model.request.images)
        ends = {first: first + count_of(arrays) for first, arrays in kept.items()}
        names = pictures.names()
        for first in (first for first in names if first < model.request.images):
            found = pictures.block(first, names)
            ends[first] = max(ends.get(first, first), first + (count_of(found) if found else 0))
        return spans_to_draw(model.request.images, model.evaluation.batch, ends)

    def take(self, task: Measure, done: Done) -> list[int]:
        """Take a finished task. Returns the models whose tasks are now all done."""
        if task.id in self.drawer:
            self.spent[self.drawer[task.id]].append((done.spent, done.seconds))
        return self.drop(task)

    def drop(self, task: Measure) -> list[int]:
        """Drop a task that nobody waits for. Returns the models whose tasks are now all done."""
        several = [number for number in self.sharers[task.id] if task.id in self.left[number]]
        for number in several:
            self.left[number].discard(task.id)
        return [number for number in several if not self.left[number]]

    def last(self, number: int, finished: Collection[int]) -> bool:
        """Whether no other model waits for a model's features."""
        others = {each for several in self.sharers.values() if number in several for each in several}
        return others <= {number, *finished}

    def record(self, number: int, subject: Callable[[], Subject]) -> None:
        """Record the cost of a model's drawing."""
        spent = [(each, seconds) for each, seconds in self.spent[number] if each.images]
        if spent:
            record_drawing(
                self.wanted[number].model.request, subject(), self.ledger, started=self.started,
                images=sum(each.images for each, _ in spent), passes=spent[0][0].forward_passes,
                sampling=sum(each.sampling_seconds for each, _ in spent),
                seconds=sum(seconds for _, seconds in spent),
            )  # fmt: skip


def _detector(model: Measurable) -> Detector:
    """The detector of a model's images."""
    return load_detector(model.detector, model.detector_weights, model.request.detector.get("sha256"))
