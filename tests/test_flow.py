"""Losses and interpolation. Oracles: closed forms and conserved quantities."""

from __future__ import annotations

import math

import pytest
import torch

from pforce import flow
from pforce.base.errors import FieldError
from pforce.flow import FlowConfig, Prediction
from pforce.models import ModelConfig, build


class KnownModel(torch.nn.Module):
    """Predicts zero velocity and a constant log-variance, both learnable."""

    patch = 2

    def __init__(self, log_variance: float | None) -> None:
        super().__init__()
        self.velocity = torch.nn.Parameter(torch.zeros(()))
        self.log_variance = None if log_variance is None else torch.nn.Parameter(torch.tensor(log_variance))

    def forward(self, x, t, y):
        velocity = self.velocity.expand(x.shape)
        if self.log_variance is None:
            return Prediction(velocity, None)
        return Prediction(velocity, self.log_variance.expand(x.shape[0], 1, *x.shape[2:]))


def inputs():
    return torch.randn(4, 3, 4, 4), torch.zeros(4, dtype=torch.long), torch.rand(4, 4), torch.randn(4, 3, 4, 4)


def test_interpolation_ends_and_velocity():
    """x_0 = x0, x_1 = x1, and dx_t/dt = v* at every patch."""
    x1, _, t, x0 = inputs()
    assert torch.equal(flow.interpolate(x0, x1, torch.zeros(4), 2), x0)
    assert torch.equal(flow.interpolate(x0, x1, torch.ones(4, 4), 2), x1)
    step = 0.25
    moved = flow.interpolate(x0, x1, t + step, 2) - flow.interpolate(x0, x1, t, 2)
    torch.testing.assert_close(moved / step, flow.velocity_target(x0, x1), atol=1e-5, rtol=0)


def test_loss_of_a_known_prediction():
    """Zero velocity, ℓ = log 4: mse = mean v*², nll = ½(log 2π + log 4 + mse/4)."""
    x1, y, t, x0 = inputs()
    losses = flow.loss(KnownModel(math.log(4.0)), x1, y, t, x0, difficulty_weight=0.3)
    mse = (x1 - x0).square().mean()
    nll = 0.5 * (math.log(2 * math.pi) + math.log(4.0) + mse / 4)
    torch.testing.assert_close(losses.mse, mse)
    torch.testing.assert_close(losses.nll, nll)
    torch.testing.assert_close(losses.total, mse + 0.3 * nll)


def test_the_likelihood_does_not_train_the_velocity():
    """Stop-gradient: the velocity's gradient is that of the mse alone, whatever λ."""
    x1, y, t, x0 = inputs()
    gradients = []
    for weight in (0.0, 5.0):
        model = KnownModel(0.5)
        flow.loss(model, x1, y, t, x0, difficulty_weight=weight).total.backward()
        gradients.append(model.velocity.grad)
    assert torch.equal(gradients[0], gradients[1])


def test_the_log_variance_is_fitted_to_the_error():
    """The NLL is least where e^ℓ is the mean squared error."""
    x1, y, t, x0 = inputs()
    best = math.log((x1 - x0).square().mean().item())
    values = [flow.loss(KnownModel(best + d), x1, y, t, x0).nll.item() for d in (-0.2, 0.0, 0.2)]
    assert min(values) == values[1]


@pytest.mark.parametrize(("given", "used"), [(-100.0, -30.0), (100.0, 20.0)])
def test_the_log_variance_is_clamped(given, used):
    error = torch.full((1, 3, 2, 2), 1e-4)
    log_variance = torch.full((1, 1, 2, 2), given)
    expected = 0.5 * (math.log(2 * math.pi) + used + 1e-8 * math.exp(-used))
    assert flow.negative_log_likelihood(error, log_variance).item() == pytest.approx(expected, rel=1e-5)


def test_without_a_difficulty_head_the_loss_is_the_mse():
    x1, y, t, x0 = inputs()
    losses = flow.loss(KnownModel(None), x1, y, t, x0)
    assert losses.total == losses.mse
    assert losses.nll == 0


def test_validation_is_at_the_midpoints_and_pools_by_size():
    """Zero velocity: every segment is mean v*²; t runs through (i + ½)/8."""
    x1, y, _, x0 = inputs()
    seen = []

    class Watch(KnownModel):
        def forward(self, x, t, y):
            seen.append(t.unique().item())
            return super().forward(x, t, y)

    segments = flow.validation_loss(Watch(0.0), x1, y, x0)
    assert seen == [(i + 0.5) / 8 for i in range(8)] == flow.validation_timesteps()
    torch.testing.assert_close(segments, (x1 - x0).double().square().mean().expand(8), atol=1e-6, rtol=0)


def test_gradients_reach_every_parameter():
    """After one step off the zero initialisation nothing of a PFT is dead."""
    config = ModelConfig(depth=2, width=16, heads=2, patch=2, image_size=(4, 4), channels=3, classes=3)
    model = build(config)
    x1, y, t, x0 = inputs()
    for step in range(3):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        optimizer.zero_grad()
        flow.loss(model, x1, y + step, t, x0).total.backward()
        optimizer.step()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


def test_negative_lambda_is_refused():
    with pytest.raises(FieldError, match="difficulty_weight"):
        FlowConfig(difficulty_weight=-0.1)
