"""Token-sparse inner steps. Oracles: exact where nothing is left out; a dense forward of the same attention."""

from __future__ import annotations

import pytest
import torch

from pforce import grid
from pforce.models import build
from pforce.models.layers import KeyValues
from pforce.models.transformer import flat_rows
from pforce.sampling import Guidance, SamplerConfig, dual_loop, generate
from pforce.validation import FieldError
from tests.sampling.test_adaptive import UNEVEN, awake, start


@torch.no_grad()
def test_all_tokens_are_the_dense_forward():
    """With every patch moving, in whatever order, nothing is approximated."""
    model = awake()
    x0, y = start(model)
    memory = [KeyValues() for _ in range(model.config.depth)]
    t = torch.full((3,), 0.3)
    first = model(x0, t, y, memory=memory)
    torch.testing.assert_close(first.velocity, model(x0, t, y).velocity, rtol=0, atol=1e-6)
    x, later = torch.randn_like(x0), torch.full((3,), 0.6)
    order = torch.stack([torch.randperm(model.config.patches) for _ in range(3)])
    some = model.forward_tokens(x, later, y, flat_rows(order, model.config.patches), memory)
    dense = model(x, later, y)
    torch.testing.assert_close(some.velocity, dense.velocity, rtol=0, atol=1e-5)
    torch.testing.assert_close(some.log_variance, dense.log_variance, rtol=0, atol=1e-5)


@torch.no_grad()
def test_unchanged_patches_lose_nothing():
    """At the same state and time the kept keys and values are right: exact at the moving patches, 0 elsewhere."""
    model = awake()
    x0, y = start(model)
    memory = [KeyValues() for _ in range(model.config.depth)]
    t = torch.full((3,), 0.3)
    dense = model(x0, t, y, memory=memory).velocity
    tokens = torch.tensor([[0, 3], [1, 2], [5, 7]])
    some = model.forward_tokens(x0, t, y, flat_rows(tokens, 8), memory).velocity
    inside = torch.zeros(3, 8, dtype=torch.bool).scatter_(1, tokens, True)
    mask = grid.to_pixels(inside, 2, 8, 4).expand_as(dense)
    torch.testing.assert_close(some[mask], dense[mask], rtol=0, atol=1e-5)
    assert not some[~mask].any()


@pytest.mark.parametrize("guidance", [Guidance(), Guidance(2.0), Guidance(2.0, (0.1, 0.5))])
def test_sparse_dual_loop_is_close_to_the_dense_one_and_ends_at_one(guidance):
    model = awake()
    x0, y = start(model)
    dense = dual_loop(model, x0, UNEVEN, y=y, guidance=guidance)
    seen = []
    sparse = dual_loop(model, x0, UNEVEN, y=y, guidance=guidance, sparse=True, callback=seen.append)
    assert (seen[-1].timesteps == 1).all()
    relative = (sparse - dense).norm() / (dense - x0).norm()
    assert 0 < relative < 0.3
    assert len(seen) == 4 * (len(UNEVEN) - 1)


@pytest.mark.parametrize("guidance", [Guidance(), Guidance(2.0), Guidance(2.0, (0.1, 0.5))])
def test_without_attention_sparse_is_dense(guidance):
    """With attention's output zero, patches are independent, and nothing is approximated in a whole sampling."""
    model = awake()
    for block in model.blocks:
        torch.nn.init.zeros_(block.attn.proj.weight)
        torch.nn.init.zeros_(block.attn.proj.bias)
    x0, y = start(model)
    dense, sparse = [], []
    a = dual_loop(model, x0, UNEVEN, y=y, guidance=guidance, callback=dense.append)
    b = dual_loop(model, x0, UNEVEN, y=y, guidance=guidance, sparse=True, callback=sparse.append)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    assert [step.forward_passes for step in dense] == [step.forward_passes for step in sparse]


def test_maps_keep_the_uncertainty_of_patches_that_were_not_evaluated():
    """Oracle: the step's first evaluation, in which all patches were."""
    model = awake()
    x0, y = start(model)
    seen = []
    dual_loop(model, x0, UNEVEN, y=y, sparse=True, callback=seen.append)
    for first in range(0, len(seen), 4):
        confident = grid.to_pixels(seen[first].confident, 2, 8, 4)
        for inner in seen[first + 1 : first + 4]:
            kept, began = inner.prediction.log_variance, seen[first].prediction.log_variance
            assert torch.equal(kept[confident], began[confident])
            assert not torch.equal(kept[~confident], began[~confident])


def test_equal_uncertainty_keeps_the_count():
    """A fresh model predicts one variance for all: no patch is strictly below, the sparse shapes must still hold."""
    model = build(awake().config).eval()
    x0, y = start(model)
    seen = []
    dual_loop(model, x0, UNEVEN, y=y, sparse=True, callback=seen.append)
    assert (seen[0].confident.sum(dim=1) == 3).all()


def test_sparse_needs_a_known_count():
    model = awake()
    x0, y = start(model)
    with pytest.raises(FieldError, match="threshold"):
        dual_loop(model, x0, UNEVEN, y=y, sparse=True, threshold=1.0)
    with pytest.raises(FieldError, match="sparse"):
        SamplerConfig("dual_loop", sparse=True, threshold=1.0)


def test_a_configured_sparse_sampler_runs():
    config = SamplerConfig("dual_loop", num_function_evaluations=8, sparse=True)
    (generated,) = generate(awake(), config, torch.arange(2), seed=0, batch=2, device="cpu")
    assert generated.images.isfinite().all()
    assert generated.num_function_evaluations == 8
