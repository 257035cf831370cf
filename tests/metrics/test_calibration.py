"""Calibration of the predicted variance. Oracle: models whose error at each patch is known, by construction."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pforce import grid
from pforce.flow import Prediction, velocity_target
from pforce.metrics import (
    PatchErrors,
    calibration,
    calibration_of,
    correlation_of,
    difficulty_correlation,
)
from pforce.metrics.held_out import held_out_data, measure_difficulty, measure_loss
from pforce.models import ModelConfig, build

M, SIDE, PATCH = 200, 8, 2  # 16 patches an image, 320 a decile, 12 values a patch


class KnownError:
    """Predicts the true velocity plus an error of known variance at each patch, and a multiple of that variance."""

    patch = PATCH

    def __init__(self, target, variance, error, *, said=1.0):
        self.target, self.error, self.done, self.calls = target, error, 0, 0
        self.log_variance = (said * grid.to_pixels(variance, PATCH, SIDE, SIDE)).log()

    def __call__(self, x, t, y):
        rows = slice(self.done, self.done + len(x))
        self.done = (self.done + len(x)) % M
        self.calls += 1
        return Prediction(self.target[rows] + self.error[rows], self.log_variance[rows])


def data():
    return torch.randn(M, 3, SIDE, SIDE), torch.zeros(M, dtype=torch.long), torch.randn(M, 3, SIDE, SIDE)


def variances():
    """Log-uniform over two orders of magnitude."""
    return 10 ** (2 * torch.rand(M, 16) - 2)


def model_of(x1, x0, variance, *, noise: bool, said=1.0):
    scale = grid.to_pixels(variance, PATCH, SIDE, SIDE).sqrt()
    unit = torch.randn(M, 3, SIDE, SIDE) if noise else torch.randn(M, 3, SIDE, SIDE).sign()
    return KnownError(velocity_target(x0, x1), variance, scale * unit, said=said)


def by_image(*values, images: int):
    """Flat values as (M, N), and labels."""
    return *(each.reshape(images, -1) for each in values), np.zeros(images, dtype=np.int64)


def test_the_right_variance_is_on_the_diagonal():
    """Gaussian errors of the predicted variance: a decile's mean of 3,840 squares is within 5 × √(2/3840)."""
    x1, y, x0 = data()
    variance = variances()
    (c,) = calibration(model_of(x1, x0, variance, noise=True), x1, y, x0, timesteps=(0.3,), batch=64)
    assert (c.t, c.images, c.patches) == (0.3, M, M * 16)
    assert c.expected == pytest.approx(variance.flatten().sort().values.reshape(10, -1).mean(1).numpy(), rel=1e-5)
    assert c.observed == pytest.approx(c.expected, rel=0.12)
    assert c.error < 0.05


@pytest.mark.parametrize("said", [4.0, 0.25, 1.0])
def test_a_variance_wrong_by_a_factor_is_off_by_its_logarithm(said):
    """Errors of ±√variance: the observed squared error is the variance itself, in every decile and at every t."""
    x1, y, x0 = data()
    model = model_of(x1, x0, variances(), noise=False, said=said)
    for c in calibration(model, x1, y, x0, timesteps=(0.2, 0.6), batch=50):
        assert np.log(c.observed / c.expected) == pytest.approx(np.full(10, -math.log(said)), abs=1e-4)
        assert c.error == pytest.approx(abs(math.log(said)), abs=1e-4)
    assert model.calls == 8


def test_a_variance_that_is_right_only_on_average():
    """One variance for all patches is their mean: R has nothing to go by, and neither have the deciles."""
    observed = np.arange(1.0, 31.0)
    flat = PatchErrors(0.5, *by_image(np.ones(30), np.full(30, observed.mean()), observed, images=3))
    c = calibration_of(flat)
    assert c.observed == pytest.approx(np.full(10, 15.5))
    assert c.error == pytest.approx(0, abs=1e-12)
    assert math.isnan(correlation_of(flat).pearson)


def test_deciles_by_hand():
    """Twelve patches: the first two deciles have two. The order of the patches does not enter."""
    expected = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12.0])
    order = np.random.default_rng(0).permutation(12)
    c = calibration_of(PatchErrors(0.5, *by_image(expected, expected[order], 2 * expected[order], images=2)))
    assert list(c.expected) == [1.5, 3.5, 5, 6, 7, 8, 9, 10, 11, 12]
    assert list(c.observed) == [3, 7, 10, 12, 14, 16, 18, 20, 22, 24]
    assert c.error == pytest.approx(math.log(2))


def test_log_variance_is_averaged_as_a_variance_and_clamped_as_in_the_loss():
    """exp inside the mean: pixels of variance 1 and 3 are 2, not √3. ℓ = 60 counts as 20, an error of 0 as e^−30."""
    x1, y, x0 = torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.long), torch.zeros(2, 1, 8, 8)

    class Two:
        patch = PATCH
        log_variance = torch.tensor([0.0, math.log(3)]).repeat(2, 1, 8, 4)

        def __call__(self, x, t, y):
            return Prediction(torch.zeros_like(x), self.log_variance)

    model = Two()
    (c,) = calibration(model, x1, y, x0, timesteps=(0.5,))
    assert c.expected == pytest.approx(np.full(10, 2.0))
    assert c.error == pytest.approx(math.log(2) + 30)
    model.log_variance = torch.full((2, 1, 8, 8), 60.0)
    assert calibration(model, x1, y, x0, timesteps=(0.5,))[0].expected == pytest.approx(np.full(10, math.exp(20)))
    model.log_variance = torch.full((2, 1, 8, 8), -60.0)
    assert calibration(model, x1, y, x0, timesteps=(0.5,))[0].error == pytest.approx(0, abs=1e-6)


def tiny(**changes) -> ModelConfig:
    fields = {"depth": 1, "width": 16, "heads": 2, "patch": 8, "image_size": (32, 32), "channels": 3, "classes": 3}
    return ModelConfig(**{**fields, **changes})


def test_a_model_without_a_head_is_refused():
    x1, y, x0 = torch.randn(2, 3, 32, 32), torch.zeros(2, dtype=torch.long), torch.randn(2, 3, 32, 32)
    with pytest.raises(ValueError, match="without a difficulty head"):
        calibration(build(tiny(difficulty_head=False)).eval(), x1, y, x0, timesteps=(0.5,))


def test_fewer_than_ten_patches_are_refused():
    x1, y, x0 = torch.randn(2, 3, 32, 32), torch.zeros(2, dtype=torch.long), torch.randn(2, 3, 32, 32)
    with pytest.raises(ValueError, match="8 patches: ten deciles need at least 10"):
        calibration(build(tiny(patch=16)).eval(), x1, y, x0, timesteps=(0.5,))


def measured(config: ModelConfig):
    """An evaluation of a model with random weights everywhere, and the number of its forward passes by timestep."""
    model = build(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    times: list[float] = []
    model.register_forward_pre_hook(lambda module, inputs: times.append(inputs[1].flatten()[0].item()))
    images, labels = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8), torch.arange(6) % 3
    data = held_out_data(images, labels, seed=0, batch=6, device=torch.device("cpu"))
    metrics = dict(measure_loss(model, data).values)
    for t in (0.2, 0.6) if config.difficulty_head else ():
        metrics |= measure_difficulty(model, data, t).values
    return metrics, times


def test_the_evaluation_measures_it_in_the_correlation_s_forward_passes():
    """Names of DESIGN, 21 a timestep; six images in one batch are one pass a timestep for both."""
    metrics, times = measured(tiny())
    own = {name for name in metrics if name.startswith("calibration/")}
    assert own == {f"calibration/error_t{t}" for t in ("0.20", "0.60")} | {
        f"calibration/{kind}_t{t}_d{decile}"
        for kind in ("expected", "observed") for t in ("0.20", "0.60") for decile in range(1, 11)
    }  # fmt: skip
    deciles = [metrics[f"calibration/expected_t0.60_d{decile}"] for decile in range(1, 11)]
    assert deciles == sorted(deciles)
    assert [sum(abs(time - t) < 1e-6 for time in times) for t in (0.2, 0.6)] == [1, 1]


def test_a_model_without_a_head_or_without_deciles_has_none():
    """One patch an image and six images: R is there, and the trial does not fail for want of deciles."""
    assert not any(
        name.startswith(("calibration/", "difficulty/")) for name in measured(tiny(difficulty_head=False))[0]
    )
    few = measured(tiny(patch=32))[0]
    assert not any(name.startswith("calibration/") for name in few)
    assert math.isfinite(few["difficulty/pearson_t0.20"])


def test_the_correlation_does_not_see_a_wrong_scale():
    """R is the same for σ and 2σ: what calibration is for."""
    x1, y, x0 = data()
    variance = variances()
    model, doubled = (model_of(x1, x0, variance, noise=False, said=said) for said in (1.0, 4.0))
    (a,), (b,) = (difficulty_correlation(each, x1, y, x0, timesteps=(0.3,)) for each in (model, doubled))
    assert a.pearson == pytest.approx(b.pearson, abs=1e-6)
