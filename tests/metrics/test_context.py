"""Context ablations. Oracles: a model whose error on a patch is a known function of the others' timesteps and that
checks what it is shown, a loop with a timestep a patch in place of levels, and a bootstrap by hand.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pforce import flow, grid
from pforce.base.errors import FieldError
from pforce.flow import Prediction
from pforce.metrics import context_helps, context_uncertainty
from pforce.models import ModelConfig, TimestepLevels, build

M, SIDE, PATCH, N = 10, 16, 2, 64
CONFIDENT = 25  # of 64 at a share of 0.4, as the samplers' rule has it
SLOPE = 0.5


def best(t):
    """The mean timestep of the other patches at which the fake model errs least: two fifths of the way to 1."""
    return t + 0.4 * (CONFIDENT / (N - 1)) * (1 - t)


class Seeing:
    """Errs on a patch by 1 + (mean t of the other patches − best)², times a scale an image; σ falls with that mean.

    Alone, its variance at a patch is `u`, in an order of its own an image: the 25 smallest are confident. It asserts
    that it is shown the line from the same noise, with the confident patches at one context time and the others at t.
    """

    patch = PATCH

    def __init__(self, x1, x0, t):
        self.x1, self.x0, self.t = x1, x0, t
        self.u = 0.1 + torch.stack([torch.randperm(N) for _ in range(M)]) / N  # (M, N)
        self.confident = self.u.argsort(dim=1).argsort(dim=1) < CONFIDENT
        self.scale = 0.5 + torch.rand(M)
        self.calls: list[tuple[int, float]] = []

    def __call__(self, x, t, y):
        rows = y  # labels are the images' numbers, so that the model knows which it is shown
        times = t.values.gather(1, t.index) if isinstance(t, TimestepLevels) else t
        times = times[:, None].expand(-1, N) if times.ndim == 1 else times
        confident = self.confident[rows]
        assert (times[~confident] == torch.tensor(self.t)).all()  # the others are untouched
        shown = times[confident].unique()
        assert len(shown) == 1
        at = grid.to_pixels(times, PATCH, SIDE, SIDE)
        assert torch.equal(x, at * self.x1[rows] + (1 - at) * self.x0[rows])
        self.calls.append((len(x), shown.item()))
        others = (times.sum(dim=1, keepdim=True) - times) / (N - 1)
        error = self.scale[rows, None] * (1 + (others - best(self.t)) ** 2)
        target = self.x1[rows] - self.x0[rows]
        log_variance = self.u[rows].log() - 2 * SLOPE * (others - self.t)
        return Prediction(
            target + grid.to_pixels(error, PATCH, SIDE, SIDE), grid.to_pixels(log_variance, PATCH, SIDE, SIDE)
        )

    def losses(self, context_time):
        """Losses per image, in closed form: all uncertain patches see 25 others at the context time and 38 at t."""
        others = self.t + CONFIDENT / (N - 1) * (context_time - self.t)
        return (self.scale.double() * (1 + (others - best(self.t)) ** 2)).square().numpy()


def data():
    return torch.randn(M, 3, SIDE, SIDE), torch.arange(M), torch.randn(M, 3, SIDE, SIDE)


def test_the_loss_is_the_closed_form():
    """At t = 0.2, in batches of 4, 4 and 2: values, changes, minimum; 25 of 64 patches are confident."""
    x1, y, x0 = data()
    model = Seeing(x1, x0, 0.2)
    c = context_helps(model, x1, y, x0, t=0.2, batch=4)
    known = np.stack([model.losses(time) for time in c.context_times], axis=1)  # (M, K)
    assert c.loss == pytest.approx(known.mean(axis=0), rel=1e-5)
    assert c.change == pytest.approx(known.mean(axis=0) - known[:, 0].mean(), abs=1e-5)
    assert (c.context_times[0], c.change[0], c.change_low[0], c.change_high[0]) == (0.2, 0, 0, 0)
    finest = context_helps(model, x1, y, x0, t=0.2, context_times=np.linspace(0.2, 1, 11))
    assert finest.context_times[finest.loss.argmin()] == pytest.approx(0.2 + 0.4 * 0.8)
    assert (c.t, c.images, c.uncertain_patches) == (0.2, M, M * (N - CONFIDENT))


def test_the_default_context_times():
    """Thirteen from t to 1, and 2t where it is not one of them and not past 1."""
    x1, y, x0 = data()
    times = {t: context_helps(Seeing(x1, x0, t), x1, y, x0, t=t).context_times for t in (0.1, 0.2, 0.6)}
    assert times[0.1] == pytest.approx(sorted([*np.linspace(0.1, 1, 13), 0.2]))
    assert times[0.2] == pytest.approx(np.linspace(0.2, 1, 13))  # 2t is the fourth of them
    assert times[0.6] == pytest.approx(np.linspace(0.6, 1, 13))


def test_intervals_are_a_bootstrap_over_images_paired_for_the_change():
    """By a loop over resamples, each a mean over drawn images: the same draws give the same bounds."""
    x1, y, x0 = data()
    model = Seeing(x1, x0, 0.3)
    c = context_helps(model, x1, y, x0, t=0.3, context_times=(0.5, 1.0))
    known = np.stack([model.losses(time) for time in (0.3, 0.5, 1.0)], axis=1)
    drawn = np.random.default_rng(0).integers(0, M, (2000, M))
    means = np.array([known[rows].mean(axis=0) for rows in drawn])
    low, high = np.quantile(means, (0.025, 0.975), axis=0)
    assert c.low == pytest.approx(low, rel=1e-5)
    assert c.high == pytest.approx(high, rel=1e-5)
    low, high = np.quantile(means - means[:, :1], (0.025, 0.975), axis=0)
    assert c.change_low == pytest.approx(low, abs=1e-5)
    assert c.change_high == pytest.approx(high, abs=1e-5)
    assert (c.change_high - c.change_low < c.high - c.low).all()  # paired


def test_each_context_time_is_one_pass_of_every_image():
    """t' = t is the pass that splits the patches. Progress rises to 1."""
    x1, y, x0 = data()
    model, told = Seeing(x1, x0, 0.2), []
    context_helps(model, x1, y, x0, t=0.2, context_times=(1.0, 0.4, 0.4, 0.2), batch=6, progress=told.append)
    assert model.calls == [(size, pytest.approx(time)) for size in (6, 4) for time in (0.2, 0.4, 1.0)]
    assert told == pytest.approx([k / 6 for k in range(1, 7)])
    model.calls.clear()
    told.clear()
    context_uncertainty(model, x1, y, x0, t=0.2, batch=6, progress=told.append)
    assert model.calls == [(size, pytest.approx(time)) for size in (6, 4) for time in (0.2, 0.4)]
    assert told == sorted(told)
    assert told[-1] == 1


@pytest.mark.parametrize(("t", "given", "context_time"), [(0.2, None, 0.4), (0.7, None, 1.0), (0.2, 0.9, 0.9)])
def test_log_sigma_on_the_uncertain_patches(t, given, context_time):
    """½·log u without context, lower by SLOPE × the rise of the others' mean timestep with it."""
    x1, y, x0 = data()
    model = Seeing(x1, x0, t)
    c = context_uncertainty(model, x1, y, x0, t=t, context_time=given, batch=4)
    fall = SLOPE * CONFIDENT / (N - 1) * (context_time - t)
    assert c.alone == pytest.approx((model.u.log() / 2)[~model.confident].numpy(), abs=1e-5)
    assert c.with_context == pytest.approx(c.alone - fall, abs=1e-5)
    assert c.difference.value == pytest.approx(-fall, abs=1e-5)
    assert (c.difference.low, c.difference.high) == pytest.approx((-fall, -fall), abs=1e-5)  # the same in all images
    assert (c.t, c.context_time, c.images, len(c.alone)) == (t, context_time, M, M * (N - CONFIDENT))


def test_the_difference_s_interval_is_over_images():
    """Alternating images fall by 0 and by 2: mean −1, and the interval of a mean of ten such values."""

    class Two:
        patch = PATCH

        def __call__(self, x, t, y):
            ranked = torch.linspace(0, 1, N).expand(len(x), -1)
            fall = 2.0 * (y % 2) * float(isinstance(t, TimestepLevels))
            return Prediction(torch.zeros_like(x), grid.to_pixels(ranked - 2 * fall[:, None], PATCH, SIDE, SIDE))

    x1, y, x0 = data()
    d = context_uncertainty(Two(), x1, y, x0, t=0.2).difference
    assert (d.value, d.n) == (pytest.approx(-1), M)
    assert d.low == pytest.approx(-1 - 1.96 * math.sqrt(1 / M), abs=0.1)
    assert d.high == pytest.approx(-1 + 1.96 * math.sqrt(1 / M), abs=0.1)


def test_a_real_model_with_a_timestep_a_patch_agrees():
    """PFT: levels are only cheaper. The same by a loop over images with (1, N) timesteps."""
    fields = {"depth": 2, "width": 32, "heads": 2, "patch": 2, "image_size": (16, 16), "channels": 3, "classes": M}
    model = build(ModelConfig(**fields)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x1, y, x0 = data()
    helps = context_helps(model, x1, y, x0, t=0.2, context_times=(0.4, 1.0), batch=4)
    known = context_uncertainty(model, x1, y, x0, t=0.2, batch=3)
    losses, before, after = np.zeros((M, 3)), [], []
    with torch.no_grad():
        for i in range(M):
            a, b, label = x1[i : i + 1], x0[i : i + 1], y[i : i + 1]
            alone = model(0.2 * a + 0.8 * b, torch.full((1, N), 0.2), label)
            order = grid.pool(alone.log_variance.exp(), PATCH)[0].argsort()
            for k, time in enumerate((0.2, 0.4, 1.0)):
                times = torch.full((1, N), 0.2)
                times[0, order[:CONFIDENT]] = time
                p = model(flow.interpolate(b, a, times, PATCH), times, label)
                losses[i, k] = grid.pool((a - b - p.velocity) ** 2, PATCH)[0, order[CONFIDENT:]].mean()
                if k == 1:
                    kept = order[CONFIDENT:].sort().values
                    before.append(grid.pool(alone.log_variance / 2, PATCH)[0, kept])
                    after.append(grid.pool(p.log_variance / 2, PATCH)[0, kept])
    assert helps.loss == pytest.approx(losses.mean(axis=0), rel=1e-5)
    assert helps.change == pytest.approx((losses - losses[:, :1]).mean(axis=0), abs=1e-5 * losses.mean())
    assert known.alone == pytest.approx(torch.cat(before).numpy(), abs=1e-4)
    assert known.with_context == pytest.approx(torch.cat(after).numpy(), abs=1e-4)
    assert np.abs(known.with_context - known.alone).max() > 1e-2  # there is something to compare


@pytest.mark.parametrize("measure", [context_helps, context_uncertainty])
def test_a_model_without_a_head_is_refused(measure):
    fields = {"depth": 1, "width": 16, "heads": 2, "patch": 2, "image_size": (16, 16), "channels": 3, "classes": M}
    model = build(ModelConfig(**fields, difficulty_head=False)).eval()
    with pytest.raises(ValueError, match="without a difficulty head predicts no uncertainty"):
        measure(model, *data(), t=0.2)


@pytest.mark.parametrize("measure", [context_helps, context_uncertainty])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"t": 0.0}, "t = 0.0: must be between 0 and 1"),
        ({"t": 1.0}, "t = 1.0: must be between 0 and 1"),
        ({"t": math.nan}, "t = nan"),
        ({"confident_share": 1.0}, "confident_share = 1.0: must be between 0 and 1"),
        ({"batch": 0}, "batch = 0: must be > 0"),
    ],
)
def test_values_out_of_range_are_refused(measure, changed, message):
    x1, y, x0 = data()
    with pytest.raises(FieldError, match=message):
        measure(Seeing(x1, x0, 0.2), x1, y, x0, **{"t": 0.2, **changed})


def test_context_before_t_or_after_1_is_refused():
    x1, y, x0 = data()
    model = Seeing(x1, x0, 0.2)
    for time in (0.1, 1.1, math.nan):
        with pytest.raises(FieldError, match=rf"context_times = {time}: must be in \[t, 1\] = \[0.2, 1\]"):
            context_helps(model, x1, y, x0, t=0.2, context_times=(0.5, time))
        with pytest.raises(FieldError, match=rf"context_time = {time}: must be in"):
            context_uncertainty(model, x1, y, x0, t=0.2, context_time=time)
    with pytest.raises(FieldError, match="at least 2 images"):
        context_helps(model, x1[:1], y[:1], x0[:1], t=0.2)
