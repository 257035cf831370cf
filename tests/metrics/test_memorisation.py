"""Distances to the nearest training image. Oracles: all pairs of distances, closed forms, planted copies."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy import special

from pforce.metrics.detectors import WithPixels
from pforce.metrics.detectors.base import Reading
from pforce.metrics.detectors.pixels import thumbnails
from pforce.metrics.distances import LEAST, NEAREST, distances, memorised, thresholds
from pforce.metrics.features import FeatureSet, collect
from pforce.metrics.frechet import FeatureError
from pforce.metrics.intervals import auc
from pforce.metrics.memorisation import (
    COPIES,
    FARTHER,
    NEARER,
    Nearest,
    Training,
    distinct,
    families,
    memorisation,
    nearness,
)
from pforce.metrics.names import MEMORISATION, PIXEL_MEMORISATION, MetricName
from pforce.metrics.reference import of_features

SIZE = 8
PROJECTION = torch.randn(3 * SIZE * SIZE, 12, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def images(count: int, seed: int, size: int = SIZE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def read(pixels: torch.Tensor) -> FeatureSet:
    """Features are a fixed linear projection of the pixels, as a detector's would be a function of them."""
    features = pixels.flatten(1).double() / 255 @ PROJECTION
    return FeatureSet("toy", "0", features.float(), pixels=pixels)


def training(train: torch.Tensor, held_out: torch.Tensor, block: int = 32) -> Training:
    def blocks() -> Iterator[FeatureSet]:
        for part in train.split(block):
            yield read(part)

    return Training(read(held_out), len(train), blocks)


# --- the AUC and its interval ---------------------------------------------------------------------------------------


def test_auc_is_the_share_of_pairs_in_which_the_first_is_smaller_and_ties_count_half():
    generator = np.random.default_rng(0)
    for m, n in ((2, 2), (7, 30), (40, 3)):
        first, second = (generator.integers(0, 6, size).astype(float) for size in (m, n))
        pairs = np.sign(second[None] - first[:, None])
        assert auc(first, second).value == pytest.approx((pairs.mean() + 1) / 2, abs=1e-15)


def test_the_interval_covers_the_true_auc_of_two_normal_distributions():
    """Oracle: P(X < Y) = Φ(d / √2) for means apart by d; 95 % of 1,000 intervals, within 4 standard errors."""
    generator = np.random.default_rng(1)
    for apart in (0.0, 0.8, 2.0):
        truth = float(special.ndtr(apart / np.sqrt(2)))
        found = [auc(generator.normal(size=60), generator.normal(apart, size=40)) for _ in range(1000)]
        covered = np.mean([each.low <= truth <= each.high for each in found])
        assert abs(covered - 0.95) < 0.028, (apart, covered)
        assert np.mean([each.value for each in found]) == pytest.approx(truth, abs=0.01)


def test_values_of_one_group_count_together():
    """Held-out values come in groups of 1 to 10 equal ones. Oracle: P(X < Y) of two normal distributions, 95 % of 1,000
    intervals within 5 standard errors; taken one by one, they cover less."""
    generator = np.random.default_rng(2)
    truth = float(special.ndtr(0.5 / np.sqrt(2)))
    groups = np.repeat(np.arange(60), np.arange(60) % 10 + 1)
    together, alone = [], []
    for _ in range(1000):
        first, second = generator.normal(size=200), generator.normal(0.5, size=60)[groups]
        for found, told in ((together, auc(first, second, groups)), (alone, auc(first, second))):
            found.append(told.low <= truth <= told.high)
    assert abs(np.mean(together) - 0.95) < 0.035
    assert np.mean(alone) < 0.8
    assert auc(first, second, np.arange(len(second))) == auc(first, second)


def test_variants_of_one_image_are_a_family():
    """Held-out images in threes that differ by a little are families; those alone are families of one."""
    drawings = images(20, 2).int()
    held_out = torch.cat([drawings, drawings[:8] + 1, drawings[:8] - 1]).clamp(0, 255).to(torch.uint8)
    search = Nearest(held_out)
    search.look((drawings + torch.arange(3 * SIZE * SIZE).reshape(3, SIZE, SIZE) % 41 - 20).clamp(0, 255))
    found = families(search)
    assert found[:20].tolist() == list(range(20))
    assert found[20:].tolist() == [*range(8), *range(8)]


@pytest.mark.parametrize(("first", "second", "value"), [(0.0, 1.0, 1.0), (1.0, 0.0, 0.0), (1.0, 1.0, 0.5)])
def test_without_overlap_and_with_equal_values_only_the_interval_keeps_a_width(first, second, value):
    """Oracle: Wilson's bound at a share of 1 of n is n / (n + z²)."""
    found = auc(np.full(30, first), np.full(20, second))
    assert found.value == value
    assert 0 <= found.low < found.high <= 1
    bound = 20 / (20 + special.ndtri(0.975) ** 2)
    if value != 0.5:
        assert (found.low if value else 1 - found.high) == pytest.approx(bound)


# --- the search -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("queries", "rows", "block"), [(1, 1, 1), (5, 70, 7), (2500, 30, 64)])
def test_nearest_rows_are_those_of_all_pairs(queries, rows, block):
    a, b = images(queries, 1, 3), images(rows, 2, 3)
    search = Nearest(a)
    for part in b.split(block):
        search.look(part)
    pairs = (a.flatten(1).double()[:, None] - b.flatten(1).double()[None]).square().sum(dim=2)
    assert torch.equal(search.squared, pairs.min(dim=1).values)  # integers, so exact
    assert torch.equal(search.index, pairs.argmin(dim=1))
    assert search.distances(per=27) == pytest.approx((pairs.min(dim=1).values / 27).sqrt().numpy(), abs=0)


def test_a_copy_has_the_distance_0_though_its_features_are_large():
    rows = 1e4 + torch.randn(50, 300, generator=torch.Generator().manual_seed(0))
    search = Nearest(rows[[7, 31]])
    search.look(rows)
    assert search.index.tolist() == [7, 31]
    assert search.squared.tolist() == [0.0, 0.0]


# --- planted copies, and none ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0, 2])
def test_planted_copies_are_found_in_closed_form(noise):
    """60 of 300 images are training images (with `noise`, each byte is off by up to 2); the others are the held-out
    images themselves. So P(nearer) = 0.2 + 0.8 / 2, and of 200 held-out images 2 are below the 1 % quantile."""
    train, held_out = images(400, 1), images(200, 2)
    off = torch.randint(-noise, noise + 1, (60, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(3))
    planted = (train[100:160].int() + off).clamp(0, 255).to(torch.uint8)
    generated = read(torch.cat([planted, held_out, held_out[:40]]))
    found = memorisation(generated, training(train, held_out))
    # The 40 repeated images are distributed almost as the 200: their share below is counted, not assumed.
    for near, held in (
        (found.features, found.arrays["held_out_features"]),
        (found.pixels, found.arrays["held_out_pixels"]),
    ):
        others = np.concatenate([held, held[:40]])
        rest = np.mean((np.sign(held[None] - others[:, None]) + 1) / 2)
        assert near.auc.value == pytest.approx(0.2 + 0.8 * rest, abs=1e-12)
        assert abs(near.auc.value - 0.6) < 0.02
        assert near.auc.low > 0.5
        assert near.copies.value == pytest.approx((60 + (others <= near.threshold).sum()) / 300, abs=1e-15)
        assert (held <= near.threshold).sum() == 2
        assert near.copies.low < 0.2 < near.copies.high + 0.01
    assert found.arrays["nearest_pixels"][:60].tolist() == list(range(100, 160))
    assert found.arrays["nearest_features"][:60].tolist() == list(range(100, 160))
    assert (found.training_images, found.held_out_images) == (400, 200)
    if not noise:
        assert found.arrays["features_pairs"].tolist() == [[0.0, 0.0]] * 8
        assert np.array_equal(found.arrays["pixels_generated"], found.arrays["pixels_training"])


def test_a_set_without_copies_is_not_distinguishable():
    """Oracle of the copies: below the third smallest of 200 values lies a share of Beta(3, 198), here its 99.9 %."""
    found = memorisation(read(images(300, 4)), training(images(400, 1), images(200, 2)))
    for near in (found.features, found.pixels):
        assert near.auc.low < 0.5 < near.auc.high
        assert near.copies.value < special.betaincinv(3, 198, 0.999)


def test_no_more_than_one_in_twenty_sets_without_copies_is_called_distinguishable():
    """Oracle: the level of a 95 % interval, over 200 sets, within 3 standard errors (images share the training set)."""
    train = read(images(100, 1)).features
    called = 0
    for seed in range(200):
        search = Nearest(read(images(80, 1000 + seed)).features)
        search.look(train)
        near = search.distances()
        found = nearness(near[:40], near[40:])
        called += not found.auc.low <= 0.5 <= found.auc.high
    assert called <= 0.05 * 200 + 3 * (200 * 0.05 * 0.95) ** 0.5


def test_pairs_are_the_nearest_with_both_of_their_distances():
    """Oracle: all pairs."""
    train, generated = images(50, 1), images(30, 4)
    found = memorisation(read(generated), training(train, images(20, 2))).arrays
    features = torch.cdist(read(generated).features.double(), read(train).features.double())
    pixels = torch.cdist(generated.flatten(1).double(), train.flatten(1).double()) / 255 / (3 * SIZE * SIZE) ** 0.5
    for space, of in (("features", features), ("pixels", pixels)):
        near, at = of.min(dim=1)
        order = near.argsort()[:8]
        assert found[space] == pytest.approx(near.numpy(), rel=1e-9)
        assert np.array_equal(found[f"{space}_generated"], generated[order].numpy())
        assert np.array_equal(found[f"{space}_training"], train[at[order]].numpy())
        both = torch.stack([features[order, at[order]], pixels[order, at[order]]], dim=1)
        assert found[f"{space}_pairs"] == pytest.approx(both.numpy(), rel=1e-9)


# --- as a metric ----------------------------------------------------------------------------------------------------


def measured(generated: torch.Tensor, held_out: int = 200):
    reference = of_features(read(images(50, 9)), "these", "these")
    return distances(
        read(generated), reference, ["memorisation"], training=training(images(400, 1), images(held_out, 2))
    )


def test_numbers_have_names_intervals_thresholds_and_counts_and_only_memorised_images_a_sentence():
    found = measured(torch.cat([images(400, 1)[:100], images(100, 4)]))
    names = {name: MetricName.parse(name) for name in found.metrics}
    assert all(str(name) == text for text, name in names.items())
    assert {name.kind for name in names.values() if name} == {*MEMORISATION, *PIXEL_MEMORISATION}
    counts = [
        found.metrics[f"memorisation/auc/toy_{each}"] for each in ("images", "reference_images", "held_out_images")
    ]
    assert counts == [200, 400, 200]
    assert found.metrics["memorisation/copies/toy_threshold"] > 0
    assert found.metrics["memorisation/pixel_copies"] == pytest.approx(0.5, abs=0.02)
    assert any("as 1% of the 200 held-out ones are" in note for note in thresholds(found.metrics))
    told = memorised(found.metrics)
    assert [NEARER in line for line in told] == [True, False, True, False]
    assert [COPIES in line for line in told] == [False, True, False, True]
    assert told[0].startswith("memorisation/auc/toy 0.7")
    assert "nearer to the training images" in told[0]
    assert memorised(measured(images(200, 4)).metrics) == []


def test_images_farther_from_the_training_images_are_told_apart_from_copies():
    flat = torch.zeros(60, 3, SIZE, SIZE, dtype=torch.uint8)
    pixels = distinct(measured(flat).metrics)[-1]
    assert (pixels.name, pixels.says) == ("memorisation/pixel_auc", FARTHER)
    assert pixels.auc == 0


def test_a_few_copies_among_images_that_are_far_away_are_told_though_the_auc_is_small():
    """10 of 100 images are copies; all others are farther than any held-out image."""
    flat = torch.zeros(90, 3, SIZE, SIZE, dtype=torch.uint8)
    found = distinct(measured(torch.cat([images(400, 1)[:10], flat])).metrics)
    pixels = [each for each in found if each.name == "memorisation/pixel_auc"]
    assert [each.says for each in pixels] == [COPIES, FARTHER]
    assert pixels[0].auc == pytest.approx(0.1)


@pytest.mark.parametrize(("generated", "held_out"), [(LEAST[NEAREST] - 1, 200), (200, LEAST[NEAREST] - 1)])
def test_too_few_images_of_either_side_are_left_out_with_a_note(generated, held_out):
    found = measured(images(generated, 4), held_out)
    assert not found.metrics
    assert found.notes == ("memorisation: left out, as 19 images are fewer than the 20 that it needs",)


def test_images_of_another_size_and_broken_features_are_refused():
    with pytest.raises(FeatureError, match="16×16 pixels cannot be compared with training images of 8×8"):
        memorisation(
            dataclasses.replace(read(images(30, 4)), pixels=images(30, 4, 16)), training(images(40, 1), images(30, 2))
        )
    broken = dataclasses.replace(read(images(30, 4)), features=torch.full((30, 12), torch.nan))
    with pytest.raises(FeatureError, match="NaN"):
        memorisation(broken, training(images(40, 1), images(30, 2)))


def test_pixels_are_the_images_up_to_64_and_means_above():
    small, large = images(2, 0, 64), images(2, 1, 256)
    assert thumbnails(small) is small
    means = large.double().reshape(2, 3, 64, 4, 64, 4).mean(dim=(3, 5))
    assert (thumbnails(large).double() - means).abs().max() <= 0.5 + 1e-4
    assert thumbnails(torch.full((1, 3, 65, 100), 7, dtype=torch.uint8)).unique().tolist() == [7]


class Toy:
    name, sha256, preprocessing, feature_size, minimum_size = "toy", "0", "none", 12, 1

    def to(self, device: torch.device):
        return self

    def read(self, pixels: torch.Tensor) -> Reading:
        return Reading(read(pixels).features, logits=torch.ones(len(pixels), 2))


def test_a_detector_with_pixels_reads_what_the_detector_reads():
    both, bare = WithPixels(Toy()).read(images(3, 0)), WithPixels(Toy(), bare=True).read(images(3, 0))
    assert torch.equal(both.features, Toy().read(images(3, 0)).features)
    assert both.logits is not None
    assert bare.logits is None
    assert torch.equal(collect(Toy(), [both, both]).pixels, torch.cat([images(3, 0)] * 2))
