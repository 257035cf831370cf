"""Metrics of a set of generated images under their fixed names, with intervals and counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

from numpy.typing import NDArray
from torch import Tensor

from pforce.base.words import counted
from pforce.metrics import adm, manifolds
from pforce.metrics.features import FeatureSet
from pforce.metrics.fidelity import (
    LEAST_PER_CLASS,
    NEIGHBOURS,
    SCORE_SPLITS,
    class_distances,
    inception_score,
    kernel_distance,
    precision_recall,
)
from pforce.metrics.frechet import (
    ENOUGH_PER_FEATURE,
    EXTRAPOLATED_SHARES,
    TOO_LARGE,
    FeatureError,
    Reference,
    frechet_estimate,
    frechet_infinity,
)
from pforce.metrics.intervals import Estimate, share_interval
from pforce.metrics.memorisation import HELD_OUT_SHARE, Training, distinct, memorisation
from pforce.metrics.memorisation import LEAST as LEAST_NEAREST
from pforce.metrics.memorisation import metrics_of as memorisation_metrics
from pforce.metrics.names import KINDS, MEMORISATION, PIXEL_MEMORISATION, MetricName, read_names
from pforce.metrics.reference import ReferenceStatistics

ImageMetric = Literal[
    "frechet", "kernel", "precision_recall", "inception_score", "precision_recall_adm", "inception_score_adm",
    "density_coverage", "sliced", "class_accuracy", "class_kernel", "memorisation",
]  # fmt: skip
IMAGE_METRICS: tuple[ImageMetric, ...] = get_args(ImageMetric)
USUAL: tuple[ImageMetric, ...] = ("frechet", "kernel", "precision_recall", "inception_score")
"""Image metrics that `pforce evaluate` measures where none are asked for. Its list never changes: it names results."""

KINDS_OF = {
    "frechet": ("fd", "sfd"), "frechet_infinity": ("fd_infinity",), "kernel": ("kd",),
    "precision_recall": ("precision", "recall"), "inception_score": ("is",),
    "precision_recall_adm": ("precision_adm", "recall_adm"), "inception_score_adm": ("is_adm",),
    "density_coverage": ("density", "coverage"), "sliced": ("swd",),
    "class_accuracy": ("class_accuracy",), "class_kernel": ("class_kd",),
    "memorisation": (*MEMORISATION, *PIXEL_MEMORISATION),
}  # fmt: skip
"""Image metric → kinds of the numbers that it records, without those of single classes; sfd only where the detector has
spatial features."""

LEAST = {
    "precision_recall": NEIGHBOURS + 1,
    "precision_recall_adm": NEIGHBOURS + 1,
    "density_coverage": manifolds.NEIGHBOURS + 1,
    "inception_score": SCORE_SPLITS,
    "frechet_infinity": 4 * max(EXTRAPOLATED_SHARES),
    "memorisation": LEAST_NEAREST,
}
"""Least number of images for each metric; with fewer it is left out, with a note. Those of `WITH_IMAGES` need as
many reference images, memorisation as many held-out ones."""
MOST_CLASSES = 100
"""Most classes whose own numbers are recorded: those of 1,000 classes would be 5,000 numbers of a row."""
NEAREST = "memorisation"
"""Name of the distances to the nearest training image, the only one of `IMAGE_METRICS` that needs training images."""


def of_further(metrics: Sequence[str]) -> tuple[str, ...]:
    """The metrics that further detectors measure: all but memorisation, which compares pixels, too, and is measured
    once, with the first detector."""
    return tuple(metric for metric in metrics if metric != NEAREST)


class Distances(NamedTuple):
    """Metrics by name: `fid`, `fid_low`, `fid_high`, `fid_images`, …"""

    metrics: dict[str, float]
    notes: tuple[str, ...]
    """Notes for readers of the numbers."""
    arrays: Mapping[str, NDArray[Any]] = MappingProxyType({})
    """Arrays for figures, by name."""


def name_of(kind: str, detector: str) -> MetricName:
    """Name of a metric of images by its kind; the detector is left out where the kind has none."""
    return MetricName(kind, detector if "detector" in KINDS[kind].keys else None)


def metric_name(short: str, detector: str) -> str:
    """Name of a metric by its short name: `fid` for the Fréchet distance (fd) of Inception, `fd/openmoji` for another
    detector's; `memorisation/pixel_auc` whatever the detector."""
    return str(name_of(short, detector))


class _Record:
    """Collects metrics under their names as they are measured."""

    def __init__(self, detector: str, n: int) -> None:
        self.detector, self.n = detector, n
        self.metrics: dict[str, float] = {}

    def put(
        self, short: str, estimate: Estimate, references: int | None, *, images: int | None = None,
        label: int | None = None,
    ) -> None:  # fmt: skip
        """Add a value, its interval where it has one, and the numbers of images. FeatureError for a value that is not
        finite.

        Args:
            images: number of generated images, by default of all.
            label: class of the images, for a metric of one class.
        """
        name = MetricName(short, self.detector, label=label)
        if not math.isfinite(estimate.value):
            raise FeatureError(f"{name} of {TOO_LARGE}")
        self.metrics[str(name)] = estimate.value
        if not math.isnan(estimate.low):
            low, high = map(str, name.bounds)
            self.metrics[low], self.metrics[high] = estimate.low, estimate.high
        self.metrics[str(name.with_beside("images"))] = float(self.n if images is None else images)
        if references is not None:
            self.metrics[str(name.with_beside("reference_images"))] = float(references)


def _frechet(record: _Record, generated: FeatureSet, reference: ReferenceStatistics) -> list[str]:
    """Record Fréchet distances; returns notes."""
    record.put("fd", frechet_estimate(generated.features, Reference(reference.moments)), reference.moments.n)
    size = MetricName("fd", record.detector, beside="features")
    record.metrics[str(size)] = float(generated.features.shape[1])
    if generated.spatial is None:
        return []
    if reference.spatial is None:
        return [f"{MetricName('sfd', record.detector).short}: left out, as {reference.source} has no mu_s and sigma_s"]
    record.put("sfd", frechet_estimate(generated.spatial, Reference(reference.spatial)), reference.spatial.n)
    return []


def _precision_recall_adm(record: _Record, generated: FeatureSet, reference: Tensor) -> None:
    both = adm.precision_recall(generated.features, reference)
    record.put("precision_adm", both.precision, len(reference))
    record.put("recall_adm", both.recall, len(reference))


def _density_coverage(record: _Record, generated: FeatureSet, reference: Tensor) -> None:
    both = manifolds.density_coverage(generated.features, reference)
    record.put("density", both.density, len(reference))
    record.put("coverage", both.coverage, len(reference))


def _sliced(record: _Record, generated: FeatureSet, reference: Tensor) -> None:
    record.put("swd", manifolds.sliced_distance(generated.features, reference), len(reference))


OF_FEATURES: Mapping[str, Callable[[_Record, FeatureSet, Tensor], None]] = {
    "precision_recall_adm": _precision_recall_adm,
    "density_coverage": _density_coverage,
    "sliced": _sliced,
}
"""Further metrics of generated features and features (M, D) of reference images: functions that record them."""
WITH_IMAGES = ("precision_recall", *OF_FEATURES)
"""Metrics whose least number of images holds for the reference, too."""

EXTRAPOLATED = "frechet_infinity"
"""Name of the Fréchet distance extrapolated to infinitely many images, an addition to `IMAGE_METRICS`."""


def _scores(record: _Record, generated: FeatureSet, metrics: Sequence[str]) -> list[str]:
    """Record Inception Scores; returns notes."""
    asked = [metric for metric in ("inception_score", "inception_score_adm") if metric in metrics]
    if generated.logits is None:
        return [f"{metric}: left out, as the detector {generated.detector} has no classes to score" for metric in asked]
    if "inception_score" in asked and len(generated) >= LEAST["inception_score"]:
        record.put("is", inception_score(generated.logits), None)
    if "inception_score_adm" not in asked:
        return []
    record.put("is_adm", adm.inception_score(generated.logits), None)
    uneven = adm.uneven_split(len(generated))
    return [uneven] if uneven else []


def _class_accuracy(record: _Record, generated: FeatureSet) -> list[str]:
    """Record the share of images whose class the detector recognises; returns notes."""
    if generated.predicted is None:
        return [f"class_accuracy: left out, as the detector {generated.detector} is no classifier of the data"]
    if generated.labels is None:
        return ["class_accuracy: left out, as nobody says of which classes the images should be"]
    right = float((generated.labels == generated.predicted).double().mean())
    record.put("class_accuracy", share_interval(right, len(generated)), None)
    return []


def _class_kernel(record: _Record, generated: FeatureSet, reference: ReferenceStatistics) -> list[str]:
    """Record the kernel distance of each class, and their mean; returns notes."""
    if generated.labels is None:
        return ["class_kernel: left out, as nobody says of which classes the images should be"]
    if reference.features is None or reference.labels is None:
        return [f"class_kernel: left out, as nobody says of which classes the images of {reference.source} are"]
    found = class_distances(generated.features, generated.labels, reference.features, reference.labels())
    least = f"{LEAST_PER_CLASS} generated and {LEAST_PER_CLASS} reference images"
    if found is None:
        return [f"class_kernel: left out, as no class has {least}"]
    record.put("class_kd", found.mean, sum(found.references.values()), images=found.mean.n)
    notes, several = [], counted(len(found.by_class), "class", "classes")
    if found.left_out:
        listed = ", ".join(str(label) for label in found.left_out[:MOST_CLASSES])
        without = "class" if len(found.left_out) == 1 else "classes"
        name = MetricName("class_kd", record.detector)
        notes.append(f"{name}: over {several}, without {without} {listed}, which lack {least}")
    if len(found.by_class) > MOST_CLASSES:
        return [*notes, f"class_kernel: only the mean is kept, as {several} are more than {MOST_CLASSES}"]
    for label, estimate in found.by_class.items():
        record.put("per_class/kd", estimate, found.references[label], images=estimate.n, label=label)
    return notes


def distances(
    generated: FeatureSet, reference: ReferenceStatistics, metrics: Sequence[str] = ("frechet",), *,
    training: Training | None = None, progress: Callable[[float], None] = lambda share: None,
) -> Distances:  # fmt: skip
    """Measure generated images against a reference.

    Metrics that cannot be measured (precision without reference images, a score without classes) are left out, with a
    note.

    Args:
        metrics: some of `IMAGE_METRICS`, and `EXTRAPOLATED`.
        training: training images and held-out ones, for memorisation.
        progress: callback that gets the share of the training images that is done.

    Raises:
        ValueError: fewer than two images, values that are not finite, or features of different detectors.
    """
    n = len(generated)
    if (reference.sha256 or generated.sha256) != generated.sha256 or reference.detector != generated.detector:
        raise FeatureError(
            f"features of {generated.detector} ({generated.sha256[:12]}) cannot be compared with a reference of "
            f"{reference.detector} ({(reference.sha256 or '')[:12]})"
        )
    record, notes = _Record(generated.detector, n), []
    if bool((generated.features == generated.features[0]).all()):
        notes.append(f"all {n} images look the same to the detector: a collapsed model, or images that are one")
    if "frechet" in metrics:
        notes += _frechet(record, generated, reference)
    if EXTRAPOLATED in metrics and n >= LEAST[EXTRAPOLATED]:
        record.put("fd_infinity", frechet_infinity(generated.features, Reference(reference.moments)),
                   reference.moments.n)  # fmt: skip
    notes += _of_images(record, generated, reference, metrics)
    notes += _scores(record, generated, metrics)
    if "class_accuracy" in metrics:
        notes += _class_accuracy(record, generated)
    if "class_kernel" in metrics:
        notes += _class_kernel(record, generated, reference)
    fewest = dict.fromkeys(metrics, n)
    if reference.features is not None:
        fewest |= {metric: min(n, len(reference.features)) for metric in WITH_IMAGES if metric in metrics}
    arrays: Mapping[str, NDArray[Any]] = {}
    if NEAREST in metrics:
        if training is None:
            raise ValueError(f"{NEAREST}: needs training images")
        fewest[NEAREST] = min(n, len(training.held_out))
        if fewest[NEAREST] >= LEAST[NEAREST]:
            arrays = _nearest(record, generated, training, progress)
    notes += [
        f"{metric}: left out, as {few} images are fewer than the {LEAST[metric]} that it needs"
        for metric, few in fewest.items()
        if few < LEAST.get(metric, 0)
    ]
    return Distances(record.metrics, tuple(notes), arrays)


def _of_images(
    record: _Record, generated: FeatureSet, reference: ReferenceStatistics, metrics: Sequence[str]
) -> list[str]:
    """Measure what needs the reference's images, not only their moments. Returns notes."""
    if reference.features is None:
        without = [metric for metric in ("kernel", *WITH_IMAGES) if metric in metrics]
        return [f"{metric}: left out, as {reference.source} holds moments but no images" for metric in without]
    if "kernel" in metrics:
        record.put("kd", kernel_distance(generated.features, reference.features), len(reference.features))
    fewest = min(len(generated), len(reference.features))
    if "precision_recall" in metrics and fewest >= LEAST["precision_recall"]:
        both = precision_recall(generated.features, reference.features)
        record.put("precision", both.precision, len(reference.features))
        record.put("recall", both.recall, len(reference.features))
    for metric, put in OF_FEATURES.items():
        if metric in metrics and fewest >= LEAST.get(metric, 0):
            put(record, generated, reference.features)
    return []


def _nearest(
    record: _Record, generated: FeatureSet, training: Training, progress: Callable[[float], None]
) -> Mapping[str, NDArray[Any]]:
    """Measure the distances to the nearest training images. Returns the arrays of their figure."""
    found = memorisation(generated, training, progress)
    record.metrics |= memorisation_metrics(found, generated.detector, len(generated))
    return found.arrays


def thresholds(metrics: Mapping[str, float]) -> list[str]:
    """One sentence for each threshold of copies."""
    names = [name for name in read_names(metrics).values() if name.beside == "threshold"]
    return [
        f"{name.value}: images within {metrics[str(name)]:.4g} of a training image, as {HELD_OUT_SHARE:.0%} of the "
        f"{metrics[str(name.with_beside('held_out_images'))]:,.0f} held-out ones are"
        for name in names
    ]


def memorised(metrics: Mapping[str, float]) -> list[str]:
    """One sentence for each space in which generated images are distinguishable from held-out ones."""
    return [f"{each.name} {each.numbers}: {each.says}" for each in distinct(metrics)]


def few_images(metrics: Mapping[str, float]) -> list[str]:
    """One sentence for each side of a Fréchet distance that has too few images."""
    notes = []
    for key, features in metrics.items():
        size = MetricName.parse(key)
        if size is None or size.beside != "features":
            continue
        name, n = size.value, metrics.get(str(size.with_beside("images")))
        if n is not None and n < ENOUGH_PER_FEATURE * features:
            notes.append(
                f"{name}: {n:,.0f} images are fewer than {ENOUGH_PER_FEATURE} × {features:,.0f} features, so it "
                "depends on their number as much as on the images; compare it only at the same number"
            )
        references = metrics.get(str(size.with_beside("reference_images")))
        if references is not None and references < ENOUGH_PER_FEATURE * features:
            notes.append(
                f"{name}: its {references:,.0f} reference images are fewer than {ENOUGH_PER_FEATURE} × {features:,.0f} "
                "features; compare it only with distances to the same reference"
            )
    return notes
