"""Euler, guidance and budgets. Oracles: closed forms on known velocity fields, and counted model calls."""

from __future__ import annotations

import itertools

import pytest
import torch

from pforce.base.errors import FieldError
from pforce.flow import Prediction
from pforce.models import ModelConfig, build
from pforce.sampling import Euler, Guidance, euler, generate, timesteps_for

CONFIG = ModelConfig(depth=1, width=16, heads=2, patch=2, image_size=(4, 6), channels=3, classes=5)


class Field:
    """A known velocity field v(x, t, y) that counts its evaluations."""

    config = CONFIG

    def __init__(self, velocity):
        self.velocity, self.batches, self.times = velocity, [], []

    def __call__(self, x, t, y):
        self.batches.append(len(x))
        self.times.append(t[0].item())
        velocity = self.velocity(x, t.view(-1, 1, 1, 1), y.view(-1, 1, 1, 1).float())
        return Prediction(velocity.expand(x.shape), torch.zeros(len(x), 1, *x.shape[2:]))


def start(batch=2):
    return torch.randn(batch, 3, 4, 6), torch.arange(batch)


def test_a_straight_flow_is_solved_in_one_step():
    """v = x1 − x0 is constant along its path."""
    x0, y = start()
    x1 = torch.randn_like(x0)
    result = euler(Field(lambda x, t, y: x1 - x0), x0, torch.tensor([0.0, 1.0]), y=y)
    torch.testing.assert_close(result, x1)


def test_every_timestep_passed_in_is_honoured():
    """v = t on an uneven grid gives Σ t_i·(t_{i+1} − t_i) exactly; a rebuilt linear grid would not."""
    x0, y = start()
    grid = torch.tensor([0.0, 0.05, 0.3, 0.35, 0.9, 1.0])
    field = Field(lambda x, t, y: t)
    result = euler(field, x0, grid, y=y)
    expected = sum(a * (b - a) for a, b in itertools.pairwise(grid))
    torch.testing.assert_close(result - x0, expected.expand_as(x0), atol=1e-6, rtol=0)
    assert field.times == pytest.approx(grid[:-1].tolist())


def test_guidance_is_extrapolation_in_one_batch():
    """v = y: guided velocity is v_u + w·(v_c − v_u); each evaluation is one batch of twice the size."""
    x0, _ = start()
    y = torch.tensor([2, 4])
    field = Field(lambda x, t, y: y)
    steps = []
    result = euler(field, x0, torch.linspace(0, 1, 4), y=y, guidance=Guidance(2.5), callback=steps.append)
    null = CONFIG.null_class
    expected = (null + 2.5 * (y - null)).view(-1, 1, 1, 1)
    torch.testing.assert_close(result, x0 + expected, atol=1e-5, rtol=0)
    assert field.batches == [4, 4, 4]
    assert [step.forward_passes for step in steps] == [2, 2, 2]
    assert [step.t_end for step in steps] == pytest.approx([1 / 3, 2 / 3, 1.0])


def test_a_guidance_interval_is_decided_by_the_start_of_the_step():
    field = Field(lambda x, t, y: y)
    x0, y = start()
    euler(field, x0, torch.linspace(0, 1, 5), y=y, guidance=Guidance(2.0, interval=(0.25, 0.5)))
    assert field.batches == [2, 4, 4, 2]


def test_guidance_needs_label_dropout():
    config = ModelConfig(**{**CONFIG.__dict__, "class_dropout": 0.0})
    with pytest.raises(ValueError, match="class_dropout = 0"):
        euler(build(config), *start()[:1], torch.linspace(0, 1, 3), y=start()[1], guidance=Guidance(2.0))


def test_images_do_not_depend_on_the_batch():
    """Noise is keyed by (seed, image): batches of 2 and 5 give the same seven images."""
    model = build(CONFIG).eval()
    torch.nn.init.normal_(model.final_layer.linear.weight, std=0.1)
    labels = torch.arange(7) % 5
    runs = [
        torch.cat([g.images for g in generate(model, Euler(num_function_evaluations=3), labels, seed=1, batch=b,
                                             device="cpu")])
        for b in (2, 5)
    ]  # fmt: skip
    torch.testing.assert_close(runs[0], runs[1], atol=1e-6, rtol=0)
    assert runs[0].shape == (7, 3, 4, 6)
    other = next(iter(generate(model, Euler(num_function_evaluations=3), labels, seed=2, batch=7, device="cpu")))
    assert not torch.allclose(other.images, runs[0])


@pytest.mark.parametrize("nfe", [1, 7, 24])
def test_the_schedule_costs_what_it_says(nfe):
    field = Field(lambda x, t, y: t)
    schedule = timesteps_for(euler, nfe)
    x0, y = start()
    euler(field, x0, schedule.timesteps, y=y)
    assert len(field.batches) == schedule.num_function_evaluations == nfe
    assert schedule.timesteps[0] == 0
    assert schedule.timesteps[-1] == 1


def test_bad_settings_are_refused():
    with pytest.raises(FieldError, match="num_function_evaluations = 0"):
        timesteps_for("euler", 0)
    with pytest.raises(FieldError, match="one of euler"):
        timesteps_for("heun", 4)
    with pytest.raises(ValueError, match=r"quantile = 0.3: does not apply to euler: it is a setting of dual_loop"):
        timesteps_for("euler", 4, quantile=0.3)
    with pytest.raises(FieldError, match="interval"):
        Guidance(2.0, interval=(0.6, 0.3))
    with pytest.raises(FieldError, match="scale"):
        Guidance(-1.0)
