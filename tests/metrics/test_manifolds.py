"""Density, coverage and the sliced Wasserstein distance. Oracles: closed forms, and their definitions by loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from pforce.metrics import manifolds
from pforce.metrics.distances import distances
from pforce.metrics.features import FeatureSet
from pforce.metrics.frechet import FeatureError
from pforce.metrics.intervals import GROUPS
from pforce.metrics.manifolds import density_coverage, directions, sliced_distance
from pforce.metrics.names import KINDS
from pforce.metrics.reference import of_features


def cloud(n: int, seed: int, centre: float = 0.0, spread: float = 1.0, size: int = 6) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(n, size, generator=source, dtype=torch.float64) * spread + centre


# --- density and coverage -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [2000, 7])
def test_density_and_coverage_are_those_of_the_definition(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: Naeem et al.'s sums, by loops over pairs; the interval of density is Student's."""
    monkeypatch.setattr(manifolds, "ROWS", rows)
    a, b = cloud(50, 0, centre=1.0).numpy(), cloud(40, 1).numpy()
    radii = [sorted(np.linalg.norm(v - w) for j, w in enumerate(b) if j != i)[4] for i, v in enumerate(b)]
    inside = np.array([[np.linalg.norm(u - v) < r for v, r in zip(b, radii, strict=True)] for u in a])
    found = density_coverage(torch.from_numpy(a), torch.from_numpy(b))
    assert found.density.value == pytest.approx(inside.sum() / (5 * 50), rel=1e-12)
    assert found.coverage.value == pytest.approx(inside.any(axis=0).mean(), rel=1e-12)
    per_image = inside.sum(axis=1) / 5
    bounds = stats.t.interval(0.95, 49, per_image.mean(), per_image.std(ddof=1) / np.sqrt(50))
    assert (found.density.low, found.density.high) == pytest.approx(bounds, rel=1e-9)
    assert 0 < found.coverage.low < found.coverage.value < found.coverage.high < 1


def test_density_and_coverage_of_constructed_sets() -> None:
    """Oracle: closed forms. A ball holds its centre and k − 1 neighbours, so of the same images density is 1; copies of
    one image lie in the same balls; a set that is far away lies in none."""
    b = cloud(60, 0)
    same, apart = density_coverage(b, b), density_coverage(b + 1000, b)
    assert (same.density.value, same.coverage.value) == (1, 1)
    assert (apart.density.value, apart.coverage.value) == (0, 0)
    half = density_coverage(torch.cat([b, b + 1000]), b)
    assert (half.density.value, half.coverage.value) == (0.5, 1)
    assert density_coverage(b.repeat(3, 1), b).density.value == pytest.approx(1)
    one = density_coverage(b[:1].repeat(4, 1), b)
    assert one.coverage.value == pytest.approx(one.density.value * 5 / 60)
    with pytest.raises(FeatureError, match="k = 5"):
        density_coverage(b, b[:5])


def test_density_of_one_distribution_is_one_and_its_coverage_is_known() -> None:
    """Oracle: Naeem et al.'s expectations for any distribution: 1, and 1 − (M − 1)…(M − k) / (2M − 1)…(2M − k)."""
    found = density_coverage(cloud(1500, 2), cloud(1500, 3))
    expected = 1 - np.prod([(1500 - j) / (3000 - j) for j in range(1, 6)])
    assert found.density.low - 0.03 < 1 < found.density.high + 0.03  # the reference has a spread of its own
    assert found.coverage.value == pytest.approx(expected, abs=0.02)


# --- sliced Wasserstein distance ----------------------------------------------------------------------------------


def test_the_sliced_distance_of_a_shift_is_known() -> None:
    """Oracle: the closed form. Moved by v, every image is nearest to itself along θ: the mean of (θ·v)²."""
    a, v = cloud(70, 0), torch.tensor([1.0, 0, -2, 0, 0.5, 0], dtype=torch.float64)
    along = directions(6)
    np.testing.assert_allclose(np.linalg.norm(along, axis=0), 1)
    found = sliced_distance(a + v, a)
    assert found.value == pytest.approx(np.square(v.numpy() @ along).mean(), rel=1e-5)
    assert found.value == pytest.approx(float(v @ v) / 6, rel=0.1), "a sixth of |v|², over all directions"
    assert sliced_distance(a, a).value == pytest.approx(0, abs=1e-12)
    assert sliced_distance(a[:1].repeat(5, 1), a[1:2].repeat(9, 1)).value == pytest.approx(
        float(np.square((a[0] - a[1]).numpy() @ along).mean()), rel=1e-5
    )


def test_the_sliced_distance_of_two_gaussians() -> None:
    """Oracle: the closed form |μ|²/D + (σa − σb)² for infinitely many images; 4,000 of them are within 5 %."""
    found = sliced_distance(cloud(4000, 0, centre=0.5, spread=1.5), cloud(4000, 1), count=128)
    assert found.value == pytest.approx(0.25 + 0.25, rel=0.05)


@pytest.mark.parametrize(("n", "m"), [(12, 12), (12, 18), (7, 5), (2, 9)])
def test_each_direction_has_the_distance_of_sorted_numbers(n: int, m: int) -> None:
    """Oracle: sorted pairs, images repeated until both sides have as many; the jackknife by whole calls."""
    a, b = cloud(n, 0, centre=0.3), cloud(m, 1)

    def distance(x: Tensor, y: Tensor) -> float:
        rows = np.lcm(len(x), len(y))
        along = directions(6)
        one, other = (np.sort(side.float().double().numpy() @ along, axis=0) for side in (x, y))
        pairs = one.repeat(rows // len(x), axis=0) - other.repeat(rows // len(y), axis=0)
        return float(np.square(pairs).mean())

    found = sliced_distance(a, b)
    assert found.value == pytest.approx(distance(a, b), rel=1e-6)
    groups = min(GROUPS, n)
    without = np.array([distance(a[np.arange(n) % groups != group], b) for group in range(groups)])
    error = np.sqrt((groups - 1) / groups * np.square(without - without.mean()).sum())
    assert (found.high - found.low) / 2 == pytest.approx(stats.t.ppf(0.975, groups - 1) * error, rel=1e-5)


def test_the_sliced_distances_interval_covers_it() -> None:
    """Oracle: the mean of 60 draws lies in about 95 % of their intervals; 85 % leave room for chance."""
    reference = cloud(300, 99)
    found = [sliced_distance(cloud(100, seed, centre=0.4), reference, count=32) for seed in range(60)]
    mean = np.mean([each.value for each in found])
    assert sum(each.low <= mean <= each.high for each in found) >= 51


def test_names_counts_and_notes() -> None:
    """Under their names with intervals and counts; left out with a note where there are too few images, or none."""
    a, b = FeatureSet("toy", "0", cloud(30, 0)), FeatureSet("toy", "0", cloud(40, 1))
    found = distances(a, of_features(b, "toys", "0"), ["density_coverage", "sliced"]).metrics
    for kind in ("density", "coverage", "swd"):
        name = f"{kind}/toy"
        assert found[f"{name}_low"] <= found[name] <= found[f"{name}_high"], name
        assert (found[f"{name}_images"], found[f"{name}_reference_images"]) == (30, 40)
    assert KINDS["density"].larger_is_better
    assert KINDS["coverage"].larger_is_better
    assert not KINDS["swd"].larger_is_better
    few = distances(a.cut(4), of_features(b, "toys", "0"), ["density_coverage", "sliced"])
    assert "swd/toy" in few.metrics
    assert "density/toy" not in few.metrics
    assert few.notes == ("density_coverage: left out, as 4 images are fewer than the 6 that it needs",)
