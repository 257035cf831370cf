"""The measurement of a model: the missing parts of a request are drawn, measured and recorded.

Trainings call it for the weights in memory; `pforce evaluate`, separate evaluation and the search of samplers call it
in their workers or in the driver: the same function gives the same numbers. It is lazy (an image is drawn only where a
metric needs it) and does not depend on where it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from pforce.parallel import ALONE, Workers
from pforce.records.ledger import Ledger
from pforce.records.parts import Analysis, Request, metric_key
from pforce.records.record import Record
from pforce.trial.drawn_images import measure_images
from pforce.trial.held_out import measure_held_out
from pforce.trial.subject import Subject
from pforce.trial.watch import UNSEEN, Watch


class Missing(NamedTuple):
    """The missing measurements of a request."""

    metrics: tuple[str, ...]
    """Names of image metrics, as in `Request.image_parts`."""
    held_out: tuple[tuple[Analysis, str], ...]

    def __bool__(self) -> bool:
        return bool(self.metrics or self.held_out)


def missing(request: Request, weights: str, ledger: Ledger) -> Missing:
    """The parts of a request that have no record."""
    images, held_out = request.image_parts(weights), request.held_out_parts(weights)
    there = ledger.find([*images.values(), *held_out.values()])
    return Missing(
        tuple(name for name, part in images.items() if part.digest not in there),
        tuple(key for key, part in held_out.items() if part.digest not in there),
    )


def _by_detector(
    request: Request, subject: Subject, metrics: Sequence[str]
) -> list[tuple[Request, Subject, tuple[str, ...]]]:
    """The request and the model for each detector that has missing metrics, and their names."""
    subjects = [subject]
    subjects += [replace(subject, detector=detector, reference=reference) for detector, reference in subject.further]
    found = []
    for place, one in enumerate(request.each):
        further = None if place == 0 else one.detector["name"]
        own = tuple(metric for metric in one.metrics if metric_key(metric, further) in metrics)
        if own:
            found.append((one, subjects[place], own))
    return found


def measure(
    request: Request,
    subject: Subject,
    ledger: Ledger,
    *,
    workers: Workers = ALONE,
    watch: Watch = UNSEEN,
    trim: bool = True,
) -> dict[str, Record] | None:
    """Draw and measure the missing parts of a request, put them into the ledger, and return all its records by digest.

    Args:
        workers: workers that share the images, each with the same model; all must call this. The first writes records
            and gets them, the others get None. Their number changes no digit.
        trim: keep at most KEPT_BYTES of features.
    """
    todo = workers.first_does(lambda: missing(request, subject.weights, ledger))
    if workers.first and todo.held_out:
        measure_held_out(request, subject, ledger, todo.held_out, watch=watch)
    left = _by_detector(request, subject, todo.metrics)
    while left:
        one, with_it, metrics = left.pop(0)
        others = [other.detector for _, other, _ in left if other.detector is not None]
        measure_images(one, with_it, ledger, metrics, others=others, workers=workers, watch=watch, trim=trim)
    return ledger.find(request.parts(subject.weights)) if workers.first else None
