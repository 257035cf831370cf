"""Difficulty correlation. Oracle: models whose uncertainty is known in relation to their error."""

from __future__ import annotations

import pytest
import torch

from pforce import grid
from pforce.flow import Prediction
from pforce.metrics import difficulty_correlation

B, SIDE, PATCH = 6, 8, 2


class Known:
    """Predicts zero velocity, and log-variance that gives a chosen σ at each patch."""

    patch = PATCH

    def __init__(self, sigma):
        self.sigma, self.done = sigma, 0

    def __call__(self, x, t, y):
        if self.sigma is None:
            return Prediction(torch.zeros_like(x), None)
        rows = self.sigma[self.done : self.done + len(x)]
        self.done += len(x)
        return Prediction(torch.zeros_like(x), 2 * grid.to_pixels(rows, PATCH, SIDE, SIDE).log())


def data():
    return torch.randn(B, 3, SIDE, SIDE), torch.zeros(B, dtype=torch.long), torch.randn(B, 3, SIDE, SIDE)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_linear_relation_is_one(sign):
    """σ an affine function of the patch's error: |R| = 1; over batches of 4 and 2 images, pooled."""
    x1, y, x0 = data()
    error = grid.pool((x1 - x0).square(), PATCH)
    model = Known(10 + sign * error)
    (r,) = difficulty_correlation(model, x1, y, x0, timesteps=(0.3,), batch=4)
    assert r.pearson == pytest.approx(sign, abs=1e-5)
    assert r.spearman == pytest.approx(sign, abs=1e-5)
    assert (r.t, r.images, r.patches) == (0.3, B, B * 16)


def test_a_monotonic_relation_is_one_for_ranks_only():
    x1, y, x0 = data()
    error = grid.pool((x1 - x0).square(), PATCH)
    (r,) = difficulty_correlation(Known((2 * error).exp()), x1, y, x0, timesteps=(0.3,), batch=B)
    assert r.spearman == pytest.approx(1, abs=1e-5)
    assert r.pearson < 0.9


def test_a_model_without_a_head_is_refused():
    x1, y, x0 = data()
    with pytest.raises(ValueError, match="without a difficulty head"):
        difficulty_correlation(Known(None), x1, y, x0, timesteps=(0.3,))
