"""Oracle: outputs recorded from the published implementation on small random weights; agreement 1e-4."""

from __future__ import annotations

import pytest
import torch

from pforce import flow
from pforce.sampling import Guidance, dual_loop, euler, look_ahead

TOLERANCE = 1e-4


def close(a, b):
    torch.testing.assert_close(a, b, atol=TOLERANCE, rtol=0, check_dtype=False)


@torch.no_grad()
def test_forward_with_a_timestep_a_patch(small_pft, small):
    velocity, log_variance = small_pft(small["x0"], small["t"], small["y"])
    close(velocity, small["velocity"])
    close(log_variance, small["log_variance"])


@torch.no_grad()
def test_sit_forward(small_sit, small):
    prediction = small_sit(small["x0"], small["t_global"], small["y"])
    close(prediction.velocity, small["sit_velocity"])
    assert prediction.log_variance is None


def test_interpolation_and_target(small):
    close(flow.interpolate(small["x0"], small["x1"], small["t"], patch=2), small["xt"])
    close(flow.velocity_target(small["x0"], small["x1"]), small["target"])


@torch.no_grad()
def test_loss(small_pft, small):
    losses = flow.loss(small_pft, small["x1"], small["y"], small["t"], small["x0"])
    close(losses.mse, small["loss_mse"])
    close(losses.nll, small["loss_nll"])
    close(losses.total, small["loss_mse"] + 0.01 * small["loss_nll"])


def test_validation_segments(small_pft, small):
    close(flow.validation_loss(small_pft, small["x1"], small["y"], small["x0"]), small["val_segments"])


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_euler(small_pft, small, scale):
    x1 = euler(small_pft, small["x0"], small["timesteps"], y=small["y"], guidance=Guidance(scale))
    close(x1, small[f"euler_cfg{scale}"])


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize(("quantile", "inner"), [(0.4, 4), (0.7, 2)])
def test_dual_loop(small_pft, small, quantile, inner, scale):
    x1 = dual_loop(small_pft, small["x0"], small["timesteps"], y=small["y"], guidance=Guidance(scale),
                   quantile=quantile, inner_steps=inner)  # fmt: skip
    close(x1, small[f"dual_p{quantile}_inner{inner}_cfg{scale}"])


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize(("quantile", "ratio"), [(0.4, 1.4), (0.7, 2.0)])
def test_look_ahead(small_pft, small, quantile, ratio, scale):
    x1 = look_ahead(small_pft, small["x0"], small["timesteps"], y=small["y"], guidance=Guidance(scale),
                    quantile=quantile, context_ratio=ratio)  # fmt: skip
    close(x1, small[f"look_p{quantile}_ratio{ratio}_cfg{scale}"])
