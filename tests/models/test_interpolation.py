"""Interpolated modulation. Oracles: polynomials, exact modulations, and outputs recorded from the published
implementation."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

from analysis.modulation_error import louder
from pforce import flow
from pforce.models import ModelConfig, build
from pforce.models.interpolation import NODES, TOLERANCE, chebyshev_nodes, lagrange_weights
from tests.models.test_transformer import SMALL, awake, inputs

WIDE = ModelConfig(depth=2, width=64, heads=2, patch=2, image_size=(16, 16), channels=3, classes=5)


def with_nodes(model, nodes: int):
    found = copy.deepcopy(model)
    found.modulation_nodes = nodes
    return found


@pytest.mark.parametrize("count", [1, 2, 8, 33])
def test_weights_interpolate_polynomials_exactly(count):
    """Degrees are below the number of nodes; at a node its own weight is 1 and the others' 0."""
    t = torch.cat([torch.rand(5, 40), torch.tensor([[0.0, 1.0]]).expand(5, 2)], dim=1)
    weights = lagrange_weights(t, count)
    assert weights.shape == (5, 42, count)
    nodes = chebyshev_nodes(count)
    for degree in range(min(count, 9)):
        found = (weights.double() * (2 * nodes - 1) ** degree).sum(dim=-1)
        torch.testing.assert_close(found, (2 * t.double() - 1) ** degree, atol=1e-6, rtol=0)
    torch.testing.assert_close(lagrange_weights(nodes, count), torch.eye(count), atol=1e-7, rtol=0)
    assert (nodes.diff() > 0).all()


def test_times_outside_give_no_number():
    assert lagrange_weights(torch.tensor([-0.1, 1.1]), 8).isnan().all()


@pytest.mark.parametrize("batch", [3, 24])
def test_interpolated_equals_exact(batch):
    """Velocity and log-variance to 1e-5, loss to 1e-6, gradients to 1e-5 of their largest value; of few images, and of
    so many that modulations are computed by class."""
    model = awake(WIDE)
    exact, fitted = with_nodes(model, 0), copy.deepcopy(model)
    x, y = inputs(WIDE, batch)
    x0, t = torch.randn_like(x), torch.rand(batch, WIDE.patches)
    for a, b in zip(fitted(x, t, y), exact(x, t, y), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    losses = [flow.loss(each, x, y, t, x0).total for each in (fitted, exact)]
    torch.testing.assert_close(*losses, atol=1e-6, rtol=0)
    for loss in losses:
        loss.backward()
    for (name, a), b in zip(fitted.named_parameters(), exact.parameters(), strict=True):
        assert (a.grad - b.grad).abs().max() <= 1e-5 * b.grad.abs().max().clamp(min=1e-3), name
    assert fitted.fit_modulation()[0] == 8


def test_one_timestep_per_image_and_levels_are_untouched():
    model = awake(WIDE)
    x, y = inputs(WIDE)
    assert torch.equal(
        model(x, torch.full((3,), 0.3), y).velocity, with_nodes(model, 0)(x, torch.full((3,), 0.3), y)[0]
    )


def test_nodes_are_added_until_they_are_enough():
    """Oracle: the error against exact modulations, measured here on other timesteps."""
    model = louder(awake(WIDE), 200.0)
    nodes, error = model.fit_modulation()
    assert nodes > 8
    assert error <= TOLERANCE
    ((*small,),) = model.modulation_errors([NODES[NODES.index(nodes) - 1]])
    assert max(small) > TOLERANCE
    x, y = inputs(WIDE)
    t = torch.rand(3, WIDE.patches)
    exact = with_nodes(model, 0)(x, t, y).velocity
    # So loud a model amplifies rounding itself a thousandfold.
    apart = [(with_nodes(model, count)(x, t, y).velocity - exact).abs().max() for count in (nodes, nodes // 2)]
    assert apart[0] < 0.05 * apart[1]
    assert torch.equal(model(x, t, y).velocity, with_nodes(model, nodes)(x, t, y).velocity)
    assert model.fit_modulation(48)[0] == 48, "nodes are never removed"


def test_exact_where_no_number_of_nodes_is_enough_or_it_is_asked_for():
    wild = louder(awake(WIDE), 1e6)
    assert wild.fit_modulation() == (0, 0.0)
    x, y = inputs(WIDE)
    t = torch.rand(3, WIDE.patches)
    assert torch.equal(wild(x, t, y).velocity, with_nodes(wild, 0)(x, t, y).velocity)
    asked = build(ModelConfig(**{**WIDE.__dict__, "modulation": "exact"}))
    asked.load_state_dict(awake(WIDE).state_dict())
    assert torch.equal(asked(x, t, y).velocity, with_nodes(awake(WIDE), 0)(x, t, y).velocity)
    broken = louder(awake(WIDE), float("nan"))
    assert broken.fit_modulation() == (0, 0.0)


def test_the_forward_fits_the_weights_that_it_has():
    """Weights that change after a forward, and weights that are loaded."""
    model, other = awake(WIDE), louder(awake(WIDE), 200.0)
    x, y = inputs(WIDE)
    t = torch.rand(3, WIDE.patches)
    expected = other(x, t, y).velocity
    model(x, t, y)
    model.load_state_dict(other.state_dict())
    assert torch.equal(model(x, t, y).velocity, expected)
    model = awake(WIDE)
    model(x, t, y)
    with torch.no_grad():
        for value in model.t_embedder.mlp[2].parameters():
            value.mul_(200.0)
    assert torch.equal(model(x, t, y).velocity, expected)


def test_few_tokens_are_modulated_exactly():
    config = ModelConfig(depth=1, width=32, heads=2, patch=2, image_size=(4, 4), channels=3, classes=5)
    model = awake(config)
    x, y = inputs(config)
    t = torch.rand(3, 4)
    assert torch.equal(model(x, t, y).velocity, with_nodes(model, 0)(x, t, y).velocity)


def test_bfloat16_is_as_near_as_its_rounding():
    model = awake(WIDE)
    x, y = inputs(WIDE)
    t = torch.rand(3, WIDE.patches)
    truth = with_nodes(model, 0)(x, t, y).velocity
    with torch.autocast("cpu", dtype=torch.bfloat16):
        interpolated = (model(x, t, y).velocity - truth).abs().max()
        exact = (with_nodes(model, 0)(x, t, y).velocity - truth).abs().max()
    assert model.fit_modulation()[0] == 8, "the check is in float32 whatever the forward is"
    assert interpolated < 2 * exact + 1e-4


@pytest.mark.process  # of a compiler
def test_it_compiles_as_one_graph():
    model = awake(WIDE)
    model.modulation_nodes = 8
    x, y = inputs(WIDE)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    for seed in range(3):
        t = torch.rand(3, WIDE.patches, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(compiled(x, t, y).velocity, model(x, t, y).velocity, atol=1e-6, rtol=0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@torch.no_grad()
def test_errors_fall_with_the_nodes():
    """By layer: both blocks and the final one."""
    errors = louder(awake(SMALL), 1000.0).modulation_errors([4, 8, 16])
    assert [len(each) for each in errors] == [4, 4, 4]
    for more, fewer in itertools.pairwise(errors):
        assert all(b < a for a, b in zip(more, fewer, strict=True))
