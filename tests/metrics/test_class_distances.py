"""Kernel distances class by class. Oracles: closed forms of normal features, a double loop over pairs, and repeated
draws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pforce.metrics.distances import MOST_CLASSES, distances
from pforce.metrics.features import FeatureSet
from pforce.metrics.fidelity import LEAST_PER_CLASS, ClassDistances, class_distances
from pforce.metrics.frechet import FeatureError, frechet_distance
from pforce.metrics.names import headline
from pforce.metrics.reference import ReferenceStatistics, of_features

METRIC = ("class_kernel",)


def squared_distance(mean: float) -> float:
    """Squared distance of N(mean, 1) and N(0, 1) under the kernel (xy + 1)³: E k(x, x′) + E k(y, y′) − 2 E k(x, y) with
    E (s + 1)³ = 1 + 3 E s + 3 E s² + E s³, where the moments of s are products of those of its two factors."""

    def moment(first: float, second: float) -> float:
        moments = [(m, m**2 + 1, m**3 + 3 * m) for m in (first, second)]
        one, two, three = (a * b for a, b in zip(*moments, strict=True))
        return 1 + 3 * one + 3 * two + three

    return moment(mean, mean) + moment(0, 0) - 2 * moment(mean, 0)


def pairs(a: Tensor, b: Tensor) -> float:
    """The unbiased squared distance, pair by pair."""

    def kernel(x: Tensor, y: Tensor) -> float:
        return (float(x.double() @ y.double()) / len(x) + 1) ** 3

    within = [np.mean([kernel(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j]) for s in (a, b)]
    return float(sum(within) - 2 * np.mean([kernel(x, y) for x in a for y in b]))


def drawn(sizes: dict[int, int], shifts: dict[int, float], seed: int, width: int = 1) -> tuple[Tensor, Tensor]:
    """Normal features (N, width) around a shift per class, and their classes (N,), shuffled."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.full((count,), label) for label, count in sizes.items()])
    labels = labels[torch.randperm(len(labels), generator=generator)]
    around = torch.tensor([shifts.get(int(label), 0.0) for label in labels])
    return torch.randn(len(labels), width, generator=generator) + around[:, None], labels


def compared(sizes: dict[int, int], shifts: dict[int, float], seed: int, width: int = 1) -> ClassDistances:
    found = class_distances(*drawn(sizes, shifts, 2 * seed, width), *drawn(sizes, {}, 2 * seed + 1, width))
    assert found is not None
    return found


def sets(sizes: dict[int, int], shifts: dict[int, float]) -> tuple[FeatureSet, ReferenceStatistics]:
    """A generated set of three features, and its reference."""
    (a, of_a), (b, of_b) = drawn(sizes, shifts, 0, 3), drawn(sizes, {}, 1, 3)
    reference = of_features(FeatureSet("toy", "0", b, labels=of_b), "toys", "0")
    return FeatureSet("toy", "0", a, labels=of_a), reference


def test_means_over_draws_are_the_closed_form() -> None:
    """Within four standard errors, for unlike numbers of images per class; a class of one distribution is at 0."""
    sizes, shifts = {0: 10, 2: 40, 7: 80}, {2: 0.7, 7: -1.0}
    several = [compared(sizes, shifts, seed) for seed in range(150)]
    for label in sizes:
        values = np.array([each.by_class[label].value for each in several])
        expected = squared_distance(shifts.get(label, 0.0))
        assert abs(values.mean() - expected) < 4 * values.std(ddof=1) / np.sqrt(len(values)), label
    assert squared_distance(0) == 0 > min(each.by_class[0].value for each in several)
    first = several[0]
    assert first.mean.value == pytest.approx(np.mean([each.value for each in first.by_class.values()]))
    assert (first.mean.n, first.references) == (130, sizes)


def test_a_frechet_distance_of_as_few_images_is_biased() -> None:
    """Why there is none: two sets of ten images of one distribution, which are at 0 from each other."""
    apart = [drawn({0: 10}, {}, seed, width=16)[0] for seed in range(100)]
    assert min(frechet_distance(a, b) for a, b in zip(apart[::2], apart[1::2], strict=True)) > 5


def test_a_value_is_the_mean_over_pairs() -> None:
    a, of_a = drawn({1: 11, 4: 13}, {4: 0.5}, 0, width=5)
    b, of_b = drawn({1: 12, 4: 10}, {}, 1, width=5)
    found = class_distances(a, of_a, b, of_b)
    assert found is not None
    for label in (1, 4):
        assert found.by_class[label].value == pytest.approx(pairs(a[of_a == label], b[of_b == label]), rel=1e-9)


def test_intervals_are_as_wide_as_other_images_vary() -> None:
    """Oracle: the standard deviation over 150 draws against one reference. The half width is t(9) = 2.26 of it."""
    sizes = {0: 30, 1: 60}
    b, of_b = drawn(sizes, {}, 9999, width=4)
    several = [class_distances(*drawn(sizes, {0: 0.5}, seed, 4), b, of_b) for seed in range(150)]
    for pick in (lambda each: each.mean, lambda each: each.by_class[0], lambda each: each.by_class[1]):
        estimates = [pick(each) for each in several]
        half = np.median([(each.high - each.low) / 2 for each in estimates])
        assert half / 2.262 == pytest.approx(np.std([each.value for each in estimates], ddof=1), rel=0.25)


def test_a_shifted_class_is_found_and_named() -> None:
    metrics = distances(*sets({0: 40, 1: 40, 2: 40}, {1: 1.0}), METRIC).metrics
    by_class = {label: metrics[f"per_class/kd/toy_c{label}"] for label in range(3)}
    assert max(by_class, key=by_class.__getitem__) == 1
    assert metrics["per_class/kd/toy_c1_low"] > max(metrics[f"per_class/kd/toy_c{label}_high"] for label in (0, 2))
    assert metrics["per_class/kd/toy_c1_images"] == metrics["per_class/kd/toy_c1_reference_images"] == 40
    assert metrics["class_kd/toy"] == pytest.approx(np.mean(list(by_class.values())))
    assert metrics["class_kd/toy_images"] == 120
    assert headline(metrics) == ["class_kd/toy"], "single classes are no headline metrics"


def test_classes_with_few_images_are_left_out_and_named() -> None:
    few = LEAST_PER_CLASS - 1
    generated, reference = sets({0: 20, 3: few, 5: 20}, {})
    found = distances(generated, reference, METRIC)
    least = "10 generated and 10 reference images"
    assert found.notes == (f"class_kd/toy: over 2 classes, without class 3, which lack {least}",)
    assert "per_class/kd/toy_c3" not in found.metrics
    assert found.metrics["class_kd/toy_images"] == 40
    absent = distances(generated, replace(reference, labels=lambda: torch.full((40 + few,), 5)), METRIC)
    assert "without classes 0, 3, which" in absent.notes[0]
    nothing = distances(*sets({0: few, 1: few}, {}), METRIC)
    assert nothing.metrics == {}
    assert nothing.notes == (f"class_kernel: left out, as no class has {least}",)


def test_images_without_classes_are_left_out() -> None:
    generated, reference = sets({0: 20, 1: 20}, {})
    given = distances(replace(generated, labels=None), reference, METRIC)
    assert (given.metrics, len(given.notes)) == ({}, 1)
    assert "nobody says of which classes the images should be" in given.notes[0]
    for stored in (replace(reference, labels=None), replace(reference, features=None)):
        told = distances(generated, stored, METRIC)
        assert told.metrics == {}
        assert told.notes == ("class_kernel: left out, as nobody says of which classes the images of toys are",)
    with pytest.raises(FeatureError, match="classes of 40 and 39 images are given for 40 and 40"):
        distances(generated, replace(reference, labels=lambda: torch.zeros(39)), METRIC)


def test_very_many_classes_keep_their_mean_alone() -> None:
    found = distances(*sets(dict.fromkeys(range(MOST_CLASSES + 1), LEAST_PER_CLASS), {}), METRIC)
    assert sorted(found.metrics) == [
        f"class_kd/toy{end}" for end in ("", "_high", "_images", "_low", "_reference_images")
    ]
    assert found.notes == ("class_kernel: only the mean is kept, as 101 classes are more than 100",)
