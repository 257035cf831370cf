"""Figures of the difficulty head. Oracle: they are drawn, at a size that can be read, without a warning, and what
must be seen of the data is there: the colours of ours and of the paper's.
"""

from __future__ import annotations

import math
import warnings

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from pforce.metrics import (
    Calibration,
    ContextHelps,
    ContextUncertainty,
    DifficultyCorrelation,
    PatchErrors,
    correlation_of,
)
from pforce.metrics.intervals import Estimate
from pforce.results import difficulty_figures as figures


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def seen(path) -> set[str]:
    """The colours of a picture that is large enough to read and small enough for a README."""
    image = Image.open(path).convert("RGB")
    assert 450 <= image.width <= 2400
    assert 250 <= image.height <= 2400
    return {"#" + bytes(pixel).hex() for pixel in np.unique(np.asarray(image).reshape(-1, 3), axis=0).astype(np.uint8)}


def errors(t: float, seed: int = 0) -> PatchErrors:
    generator = np.random.default_rng(seed)
    sigma = generator.gamma(2, 0.2, (20, 16))
    return PatchErrors(t, sigma, sigma**2, sigma**2 * generator.exponential(1, (20, 16)), np.arange(20) % 3)


def correlation(t: float, r: float) -> DifficultyCorrelation:
    return DifficultyCorrelation(t, r, r + 0.1, (r - 0.05, r + 0.05), (r + 0.05, r + 0.15), 100, 6400)


def helps(t: float) -> ContextHelps:
    times = np.linspace(t, 1, 5)
    loss = 0.4 + (times - 2 * t) ** 2
    change = loss - loss[0]
    return ContextHelps(t, times, loss, loss - 0.01, loss + 0.01, change, change - 0.005, change + 0.005, 100, 3900)


def test_the_correlation_beside_the_paper_s(tmp_path):
    curve = [correlation(t, t) for t in (0.2, 0.5, 0.8)]
    figures.difficulty_figure(curve, tmp_path / "a" / "r.png")
    assert {figures.OURS, figures.PAPER} <= seen(tmp_path / "a" / "r.png")
    nowhere = (math.nan, math.nan)
    untrained = [DifficultyCorrelation(t, math.nan, math.nan, nowhere, nowhere, 9, 99) for t in (0.2, 0.8)]
    figures.difficulty_figure(untrained, tmp_path / "none.png")  # a head with λ = 0
    figures.difficulty_figure(curve, tmp_path / "two.png", baseline=[correlation(0.2, -0.3), correlation(0.8, 0.1)])
    seen(tmp_path / "two.png")


def test_the_scatter_of_one_and_of_several(tmp_path):
    figures.difficulty_scatter(errors(0.2), tmp_path / "one.png")
    zero = errors(0.6)
    zero.observed[0] = 0  # no place on a logarithmic axis
    figures.difficulty_scatter([errors(t) for t in (0.2, 0.4, 0.8)] + [zero], tmp_path / "four.png")
    assert figures.PAPER in seen(tmp_path / "one.png") & seen(tmp_path / "four.png")


def test_classes(tmp_path):
    by_class = {"Food & Drink": correlation(0.5, 0.6), "Flags": correlation_of(errors(0.5))}
    by_class["Objects"] = by_class["Flags"]._replace(pearson=math.nan, pearson_interval=(math.nan, math.nan))
    figures.r_by_class(by_class, tmp_path / "class.png")
    assert figures.OURS in seen(tmp_path / "class.png")


def test_calibrations(tmp_path):
    deciles = np.geomspace(0.01, 1, 10)
    figures.calibrations_figure([Calibration(t, deciles, 2 * deciles, 0.7, 100, 6400) for t in (0.2, 0.6)],
                                tmp_path / "calibration.png")  # fmt: skip
    seen(tmp_path / "calibration.png")


def test_context_beside_the_paper_s(tmp_path):
    figures.context_helps_figure([helps(t) for t in (0.1, 0.2, 0.3)], tmp_path / "helps.png")
    assert {figures.OURS, figures.PAPER} <= seen(tmp_path / "helps.png")
    figures.context_helps_figure([helps(0.45)], tmp_path / "alone.png")  # a t that the paper does not show
    assert figures.PAPER not in seen(tmp_path / "alone.png")


def test_context_uncertainty(tmp_path):
    generator = np.random.default_rng(0)
    alone, difference = generator.normal(-1, 0.3, 400), Estimate(-0.2, -0.25, -0.15, 10)
    results = [ContextUncertainty(t, 2 * t, alone, alone - 0.2, difference, 10) for t in (0.1, 0.2, 0.3, 0.4)]
    figures.context_uncertainty_figure(results, tmp_path / "four.png")
    figures.context_uncertainty_figure(results[:1], tmp_path / "one.png")
    assert figures.OURS in seen(tmp_path / "four.png") & seen(tmp_path / "one.png")


def test_maps_share_a_scale(tmp_path):
    """Two flat maps at σ = 0.1, the lowest, have the darkest colour; two at 0.5 the middle one, but for one brightest
    patch at 0.9: areas of 32, 31 and 1 of the 4 × 16 patches.
    """
    images = np.full((2, 3, 8, 8), 255, dtype=np.uint8)
    sigma = {0.8: np.full((2, 4, 4), 0.5), 0.2: np.full((2, 4, 4), 0.1)}
    sigma[0.8][1, 0, 0] = 0.9
    figures.uncertainty_maps(images, sigma, tmp_path / "maps.png")
    seen(tmp_path / "maps.png")
    pixels = np.asarray(Image.open(tmp_path / "maps.png").convert("RGB"))
    colours = mpl.colormaps["magma"]([0.0, 0.5, 1.0], bytes=True)[:, :3]
    lowest, middle, highest = ((pixels == colour).all(axis=2).sum() for colour in colours)
    assert lowest / middle == pytest.approx(32 / 31, rel=0.1)
    assert lowest / highest == pytest.approx(32, rel=0.5)  # the colour bar has some of it, too
