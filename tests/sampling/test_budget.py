"""Budgets, timestep grids, configured samplers. Oracles: hand-counted evaluations, closed forms, counted FLOPs."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel  # torch 2.8 counts no products of its fast attention
from torch.utils.flop_counter import FlopCounterMode

from pforce.base.errors import FieldError
from pforce.models.flops import forward_flops
from pforce.sampling import (
    SAMPLERS,
    DualLoop,
    Euler,
    Guidance,
    LookAhead,
    generate,
    random_order,
    spaced,
    timesteps_for,
)
from pforce.sampling.cost import count_flops
from tests.sampling.test_adaptive import awake


@pytest.mark.parametrize(
    "case",
    [
        ("euler", {}, 24, 24, 24),
        ("dual_loop", {}, 24, 6, 24),
        ("dual_loop", {"inner_steps": 5}, 24, 4, 20),
        ("random_order", {"inner_steps": 2}, 9, 4, 8),
        # 0 ≤ 0.05 is one step of one evaluation; at 20 steps and more a second one starts at 1/S ≤ 0.05.
        ("look_ahead", {}, 23, 12, 23),
        ("look_ahead", {}, 24, 12, 23),
        ("look_ahead", {}, 38, 20, 38),
        ("look_ahead", {}, 1, 1, 1),
        ("look_ahead", {"start_after": 1.0}, 7, 7, 7),
    ],
)
def test_steps_for_a_budget(case, recwarn):
    """(solver, settings, NFE asked for, steps, NFE spent)."""
    name, own, nfe, steps, spent = case
    schedule = timesteps_for(name, nfe, **own)
    assert (len(schedule.timesteps) - 1, schedule.num_function_evaluations) == (steps, spent)
    assert bool(recwarn.list) == (spent < nfe)
    config = SAMPLERS[name](nfe, **own)
    assert config.schedule().num_function_evaluations == spent
    assert (config.unspent is not None) == (spent < nfe)


@pytest.mark.parametrize("spacing", ["cosine", "shifted"])
def test_the_grid_counts_for_look_ahead(spacing):
    """These grids have more steps before start_after, so the same NFE buys more steps than on the linear one."""
    schedule = timesteps_for("look_ahead", 24, spacing=spacing)
    times = schedule.timesteps[:-1]
    assert schedule.num_function_evaluations == len(times) + int((times > 0.05).sum()) in (23, 24)
    assert len(times) > 12


def test_an_nfe_below_the_minimum_is_refused_with_it():
    with pytest.raises(FieldError, match=r"num_function_evaluations = 3: must be ≥ 4 for dual_loop with inner_steps"):
        timesteps_for("dual_loop", 3)
    with pytest.raises(FieldError, match=r"num_function_evaluations = 3: must be ≥ 4"):
        DualLoop(num_function_evaluations=3)


def test_spacings():
    """Closed forms: 1 − cos(π/4) at the middle; the shifted grid is the SD3 shift of the noise level."""
    assert spaced(2, "cosine")[1].item() == pytest.approx(1 - math.cos(math.pi / 4))
    noise = 1 - torch.linspace(0, 1, 9, dtype=torch.float64)
    torch.testing.assert_close(1 - spaced(8, "shifted", shift=3.0), 3 * noise / (1 + 2 * noise))
    for spacing in ("linear", "cosine", "shifted"):
        times = spaced(7, spacing)
        assert (times.diff() > 0).all()
        assert times[0] == 0
        assert times[-1] == 1
    torch.testing.assert_close(spaced(5, "shifted", shift=1.0), spaced(5))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("dual_loop", {"quantile": 0.0}, "quantile = 0.0"),
        ("random_order", {"quantile": 1.0}, "quantile = 1.0"),
        ("dual_loop", {"quantile": 0.3, "threshold": 0.1}, "quantile = 0.3: does not apply beside a threshold"),
        ("look_ahead", {"quantile": 0.3, "threshold": 0.0}, "quantile = 0.3: does not apply beside a threshold"),
        ("dual_loop", {"threshold": -1.0}, "threshold = -1.0"),
        ("dual_loop", {"pooling": "median"}, "pooling = 'median'"),
        ("random_order", {"inner_steps": 0}, "inner_steps = 0: must be ≥ 1"),
        ("look_ahead", {"context_ratio": 0.5}, "context_ratio = 0.5"),
        ("look_ahead", {"context_ratio": math.inf}, "context_ratio = inf"),
        ("look_ahead", {"start_after": 1.5}, "start_after = 1.5"),
        ("euler", {"shift": 2.0}, "shift = 2.0: does not apply to the spacing linear, only to shifted"),
        ("euler", {"shift": 0.0, "spacing": "shifted"}, "shift = 0.0: must be > 0"),
        ("euler", {"spacing": "log"}, "spacing = 'log'"),
        ("euler", {"num_function_evaluations": 0}, "num_function_evaluations = 0"),
    ],
)
def test_samplers_refuse(name, fields, message):
    with pytest.raises(FieldError, match=message):
        SAMPLERS[name](**fields)


def test_a_setting_of_another_solver_is_refused_with_whose_it_is():
    with pytest.raises(FieldError) as error:
        timesteps_for("euler", 24, inner_steps=2)
    assert str(error.value) == (
        "inner_steps = 2: does not apply to euler: it is a setting of dual_loop, random_order; euler has none; "
        "leave it out"
    )
    with pytest.raises(
        FieldError, match=r"threshold = 0\.3: .* of dual_loop, look_ahead; random_order has quantile, in"
    ):
        timesteps_for(random_order, 24, threshold=0.3)
    with pytest.raises(
        FieldError, match="steps = 3: does not apply to dual_loop: it is no setting of euler, dual_loop"
    ):
        timesteps_for("dual_loop", 24, steps=3)
    with pytest.raises(FieldError, match="sampler = 'heun': must be one of euler, dual_loop"):
        timesteps_for("heun", 24)


def test_a_threshold_stands_in_the_quantiles_place():
    """Its default is no contradiction, and no part of what is drawn."""
    assert LookAhead(threshold=0.1, quantile=0.4) == LookAhead(threshold=0.1)
    assert "quantile" not in LookAhead(threshold=0.1).canonical()
    assert DualLoop.overruled({"threshold": 0.1}) == {"quantile": 0.4}
    assert DualLoop.overruled({"quantile": 0.3}) == {"threshold": None}
    assert Euler.overruled({}) == {}


def test_equal_samplers_have_one_canonical_form():
    """Defaults written out, and an NFE that cannot be spent, change nothing; the solver's other settings do."""
    assert DualLoop().canonical() == DualLoop(quantile=0.4, inner_steps=4).canonical()
    assert DualLoop(25).canonical() == DualLoop(24).canonical()
    assert DualLoop(threshold=0.1).canonical() != DualLoop().canonical()
    assert DualLoop(threshold=0.0).canonical()["threshold"] == 0
    assert LookAhead(start_after=0.0).canonical()["start_after"] == 0
    assert Euler(spacing="cosine").canonical() != Euler().canonical()
    # What experiments recorded before there were other solvers must stay what it was.
    assert Euler().canonical() == {
        "name": "euler", "num_function_evaluations": 24, "guidance": {"scale": 1.0, "interval": None},
    }  # fmt: skip


def linear_flops(config, levels):
    """By hand: 2·in·out for each row of each matrix product of one forward pass of one image."""
    d, p, c, n = config.width, config.patch, config.channels, config.patches
    outputs = p * p * (c + 1)
    embed = 2 * n * p * p * c * d + 2 * levels * (256 * d + d * d)
    block = 2 * n * d * (3 * d + d + 8 * d) + 2 * 2 * n * n * d + 2 * levels * d * 6 * d
    return embed + config.depth * block + 2 * n * d * outputs + 2 * levels * d * 2 * d


def test_flops_are_counted():
    """Oracle: the products counted by hand, for one level and two levels."""
    config = awake(patch=2, height=8, width=4).config
    euler = linear_flops(config, 1)
    assert count_flops(config, Euler(8)) == 8 * euler
    two = linear_flops(config, 2)
    assert count_flops(config, DualLoop(8)) == 2 * (euler + 3 * two)
    assert count_flops(config, LookAhead(7)) == 4 * euler + 3 * two


@pytest.mark.parametrize("sampler", ["euler", "dual_loop", "random_order", "look_ahead"])
@pytest.mark.parametrize("guidance", [Guidance(), Guidance(2.0, (0.3, 0.7))])
def test_flops_are_those_of_the_model(sampler, guidance):
    """Oracle: torch's own counter, while the sampler draws an image from the model."""
    model = awake(patch=2, height=8, width=4)
    config = SAMPLERS[sampler](12, guidance=guidance)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        list(generate(model, config, torch.zeros(1, dtype=torch.long), seed=0, batch=1, device="cpu"))
    assert count_flops(model.config, config) == counter.get_total_flops() > 0


def test_flops_of_a_pass():
    """Oracle: torch's counter. SiT, a timestep a patch, exact and interpolated."""
    cases = (
        ({"difficulty_head": False}, torch.rand(1), 0), ({}, torch.rand(1, 8), 0), ({}, torch.rand(1, 8), 6),
        ({"mlp_ratio": 2.0}, torch.rand(1), 0),
    )  # fmt: skip
    for settings, t, nodes in cases:
        model = awake(patch=2, height=8, width=4, **settings)
        model.modulation_nodes = nodes
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(torch.randn(1, model.config.channels, 8, 4), t, torch.zeros(1, dtype=torch.long))
        assert forward_flops(model.config, nodes or t.numel(), interpolated=nodes > 0) == counter.get_total_flops()
