"""The adaptive solvers. Oracles: Euler where a solver reduces to it, closed forms on known fields, torch.quantile,
and counted model calls. Recorded outputs of the published implementation are in tests/parity."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pforce import grid
from pforce.base.errors import FieldError
from pforce.flow import Prediction
from pforce.models import ModelConfig, TimestepLevels, build
from pforce.sampling import SAMPLERS, Guidance, RandomOrder, dual_loop, euler, generate, look_ahead, random_order
from pforce.sampling.confidence import confident_count, confident_patches, quantile_threshold
from pforce.sampling.trace import Trace

GRIDS = [(1, 4, 6), (2, 8, 4), (4, 8, 16)]
"""(patch, height, width): patch sizes 1, 2, 4 on grids that are not square."""
UNEVEN = torch.tensor([0.0, 0.03, 0.2, 0.35, 0.9, 1.0], dtype=torch.float64)


def awake(patch=2, height=8, width=4, **fields):
    """A small PFT whose zero-initialised layers are random, so that every patch and timestep matters."""
    config = ModelConfig(
        depth=2, width=16, heads=2, patch=patch, image_size=(height, width), channels=3, classes=5, **fields
    )
    model = build(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.15)
    return model


def start(model, batch=3):
    return torch.randn(batch, 3, *model.config.image_size), torch.arange(batch) % 5


class Counting:
    """A model that counts what it is asked."""

    def __init__(self, model):
        self.model, self.config, self.calls, self.rows, self.levels = model, model.config, 0, 0, []

    def __call__(self, x, t, y):
        self.calls += 1
        self.rows += len(x)
        self.levels.append(t.values.shape[1] if isinstance(t, TimestepLevels) else 1)
        return self.model(x, t, y)


class Clock:
    """v = 1 everywhere, uncertainty growing along the patches: x − x0 is the time that each patch has run."""

    def __init__(self, patch, height, width):
        self.config = ModelConfig(
            depth=1, width=16, heads=2, patch=patch, image_size=(height, width), channels=3, classes=5
        )

    def __call__(self, x, t, y):
        n = self.config.patches
        ramp = torch.linspace(-3, 1, n).expand(len(x), n)
        return Prediction(torch.ones_like(x), grid.to_pixels(ramp, self.config.patch, *x.shape[2:]).clone())


@pytest.mark.parametrize("shape", GRIDS)
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_dual_loop_with_one_inner_step_is_euler(shape, scale):
    model = awake(*shape)
    x0, y = start(model)
    expected = euler(model, x0, UNEVEN, y=y, guidance=Guidance(scale))
    for solver in (dual_loop, random_order):
        result = solver(model, x0, UNEVEN, y=y, guidance=Guidance(scale), inner_steps=1)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", GRIDS)
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_dual_loop_without_confident_patches_is_euler_on_the_refined_grid(shape, scale):
    model = awake(*shape)
    x0, y = start(model)
    k = 3
    refined = [a + (b - a) * j / k for a, b in itertools.pairwise(UNEVEN.tolist()) for j in range(k)] + [1.0]
    expected = euler(model, x0, torch.tensor(refined, dtype=torch.float64), y=y, guidance=Guidance(scale))
    result = dual_loop(model, x0, UNEVEN, y=y, guidance=Guidance(scale), inner_steps=k, threshold=0.0)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", GRIDS)
def test_look_ahead_with_ratio_one_is_euler(shape):
    model = awake(*shape)
    x0, y = start(model)
    result = look_ahead(model, x0, UNEVEN, y=y, context_ratio=1.0)
    torch.testing.assert_close(result, euler(model, x0, UNEVEN, y=y), rtol=0, atol=1e-5)


def test_context_changes_what_the_samplers_give():
    """The reductions above would also hold for samplers that do nothing: here they must differ from Euler."""
    model = awake()
    x0, y = start(model)
    straight = euler(model, x0, UNEVEN, y=y)
    for result in (
        dual_loop(model, x0, UNEVEN, y=y),
        look_ahead(model, x0, UNEVEN, y=y),
        random_order(model, x0, UNEVEN, y=y, generator=torch.Generator().manual_seed(0)),
    ):
        assert (result - straight).abs().max() > 1e-3


times = st.lists(st.floats(0.001, 0.999), min_size=0, max_size=6, unique=True).map(
    lambda inner: torch.tensor([0.0, *sorted(inner), 1.0], dtype=torch.float64)
)


@settings(max_examples=25, deadline=None)
@given(times, st.sampled_from(GRIDS), st.integers(1, 5), st.floats(0.05, 0.95))
def test_all_patches_end_at_one(timesteps, shape, inner_steps, quantile):
    """For any grid: v = 1, so x − x0 is the time that a patch has run, and the callback's timesteps say the same."""
    clock = Clock(*shape)
    x0, y = torch.randn(2, 3, *shape[1:]), torch.arange(2)
    ends = []

    def check(step):
        elapsed = grid.pool(step.x - x0, shape[0])
        torch.testing.assert_close(elapsed, step.timesteps.to(elapsed), rtol=0, atol=1e-5)
        ends.append(step.timesteps)

    own = {"quantile": quantile}
    for solver, more in [
        (euler, {}),
        (dual_loop, {**own, "inner_steps": inner_steps}),
        (random_order, {**own, "inner_steps": inner_steps}),
        (look_ahead, own),
    ]:
        result = solver(clock, x0, timesteps, y=y, callback=check, **more)
        torch.testing.assert_close(result - x0, torch.ones_like(x0), rtol=0, atol=1e-5)
        torch.testing.assert_close(ends[-1], torch.ones(2, clock.config.patches), rtol=0, atol=1e-6)


def test_confident_patches_lead_within_a_step():
    """The patches of low uncertainty (the first ones of the ramp) stand at the step's end, the others behind."""
    clock = Clock(2, 8, 4)
    steps = []
    dual_loop(clock, *start(clock, 1)[:1], torch.tensor([0.0, 1.0]), y=torch.zeros(1, dtype=torch.long), inner_steps=4,
              quantile=0.5, callback=steps.append)  # fmt: skip
    first = torch.arange(8) < 4
    for inner, step in enumerate(steps):
        assert step.confident is not None
        assert torch.equal(step.confident[0], first)
        expected = torch.where(first, 1.0, (inner + 1) / 4)
        torch.testing.assert_close(step.timesteps[0], expected)
    steps.clear()
    look_ahead(clock, *start(clock, 1)[:1], torch.tensor([0.0, 0.5, 1.0]), y=torch.zeros(1, dtype=torch.long),
               quantile=0.5, context_ratio=1.4, callback=steps.append)  # fmt: skip
    torch.testing.assert_close(steps[1].timesteps[0], torch.where(first, 0.7, 0.5))


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("euler", {}),
        ("dual_loop", {"inner_steps": 3}),
        ("dual_loop", {"inner_steps": 4, "threshold": 1.0}),
        ("random_order", {"inner_steps": 2}),
        ("look_ahead", {"start_after": 0.2}),
        ("look_ahead", {"start_after": 0.0, "spacing": "cosine"}),
    ],
)
@pytest.mark.parametrize("guidance", [Guidance(), Guidance(2.0), Guidance(2.0, (0.25, 0.6))])
def test_the_nfe_is_what_the_model_is_asked(name, own, guidance):
    """NFE = calls; forward passes = rows of the batch; both as stated; never more than two levels of timesteps."""
    model = Counting(awake())
    config = SAMPLERS[name](num_function_evaluations=12, guidance=guidance, **own)
    (generated,) = generate(model, config, torch.arange(2), seed=0, batch=2, device="cpu")
    assert model.calls == generated.num_function_evaluations == config.schedule().num_function_evaluations
    assert model.rows == 2 * generated.forward_passes
    assert max(model.levels) <= 2
    assert (generated.forward_passes > model.calls) == (guidance.scale != 1)


@pytest.mark.parametrize("shape", [(3, 64), (2, 15), (2, 2)])
@pytest.mark.parametrize("patch", [1, 2, 3])
@pytest.mark.parametrize("quantile", [0.01, 0.25, 0.4, 0.5, 0.7, 0.99])
def test_the_quantile_is_that_of_the_pixel_map(shape, patch, quantile):
    """Oracle: torch.quantile over the map in which every patch stands p² times."""
    u = torch.rand(shape, dtype=torch.float64).exp()
    pixels = u.repeat_interleave(patch**2, dim=1)
    expected = torch.quantile(pixels, quantile, dim=1, keepdim=True)
    torch.testing.assert_close(quantile_threshold(u, quantile, patch), expected, rtol=1e-14, atol=0)
    confident = confident_patches(u, patch, quantile=quantile, threshold=None)
    assert torch.equal(confident, u < expected)
    assert (confident.sum(dim=1) == confident_count(quantile, shape[1], patch)).all()


def test_the_count_that_the_paper_s_code_gives():
    """25 and 44 of 64 patches at 0.4 and 0.7 with patch 2 (DESIGN); the quantile over patches would give 26 and 45."""
    assert confident_count(0.4, 64, 2) == 25
    assert confident_count(0.7, 64, 2) == 44


def test_the_patch_size_is_the_model_s():
    """Pooling over the model's own patches: an outlier pixel makes its own 4×4 patch uncertain and no other."""
    clock = Clock(4, 8, 16)

    class Spot(Clock):
        def __call__(self, x, t, y):
            log_variance = torch.zeros(len(x), 1, *x.shape[2:])
            log_variance[:, :, 5, 9] = 3.0  # patch (1, 2): number 6
            return Prediction(torch.ones_like(x), log_variance)

    clock.__class__ = Spot
    steps = []
    x0 = torch.randn(1, 3, 8, 16)
    for pooling, threshold in (("mean", 1.5), ("max", 19.0), ("min", 1.5)):
        steps.clear()
        y = torch.zeros(1, dtype=torch.long)
        dual_loop(clock, x0, torch.tensor([0.0, 1.0]), y=y, pooling=pooling, threshold=threshold,
                  callback=steps.append)  # fmt: skip
        expected = torch.ones(8, dtype=torch.bool)
        expected[6] = pooling == "min"  # the minimum over the patch does not see the pixel
        assert torch.equal(steps[0].confident[0], expected), pooling


def test_random_order_belongs_to_the_image_not_to_the_batch():
    model = awake()
    config = RandomOrder(num_function_evaluations=8, inner_steps=2)
    labels = torch.arange(7) % 5
    runs = [
        torch.cat([g.images for g in generate(model, config, labels, seed=3, batch=b, device="cpu")]) for b in (3, 7)
    ]
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=1e-5)
    other = torch.cat([g.images for g in generate(model, config, labels, seed=4, batch=7, device="cpu")])
    assert (other - runs[0]).abs().max() > 0.1


def test_random_order_moves_as_many_patches_as_dual_loop():
    model = awake(patch=1)
    x0, y = start(model)
    masks = []
    for solver in (dual_loop, random_order):
        seen = []
        generator = torch.Generator().manual_seed(1)
        solver(model, x0, UNEVEN, y=y, quantile=0.3, generator=generator, callback=seen.append)
        masks.append(torch.stack([step.confident for step in seen]))
    assert torch.equal(masks[0].sum(dim=2), masks[1].sum(dim=2))
    assert not torch.equal(masks[0], masks[1])


def test_an_interval_is_decided_by_the_start_of_the_step_for_all_its_evaluations():
    model = Counting(awake())
    x0, y = start(model)
    passes = []
    dual_loop(model, x0, torch.tensor([0.0, 0.5, 1.0]), y=y, guidance=Guidance(2.0, (0.4, 0.6)), inner_steps=3,
              callback=lambda step: passes.append(step.forward_passes))  # fmt: skip
    assert passes == [1, 1, 1, 2, 2, 2]


def test_before_start_after_look_ahead_takes_the_conditional_velocity():
    """One evaluation of one pass, although guidance is on; its result is Euler's without guidance."""
    model = awake()
    x0, y = start(model)
    grid_ = torch.tensor([0.0, 0.1, 1.0])
    steps = []
    look_ahead(model, x0, grid_, y=y, guidance=Guidance(3.0), start_after=0.05, callback=steps.append)
    assert [step.forward_passes for step in steps] == [1, 2, 2]
    torch.testing.assert_close(steps[0].x, euler(model, x0, grid_[:2], y=y))


def test_float32_timesteps_do_not_cross_start_after():
    """0.05 in float32 is above 0.05; it must still count as not later."""
    model = Counting(awake())
    x0, y = start(model)
    look_ahead(model, x0, torch.linspace(0, 1, 21, dtype=torch.float32), y=y, start_after=0.05)
    assert model.calls == 2 * 20 - 2


@pytest.mark.parametrize("solver", [dual_loop, look_ahead, random_order])
@pytest.mark.parametrize("quantile", [0, 1, -0.1, float("nan")])
def test_a_quantile_outside_is_refused(solver, quantile):
    model = awake()
    x0, y = start(model)
    with pytest.raises(FieldError, match="quantile = "):
        solver(model, x0, UNEVEN, y=y, quantile=quantile)


@pytest.mark.parametrize("solver", [dual_loop, look_ahead, random_order])
def test_a_model_without_a_difficulty_head_is_refused(solver):
    model = awake(difficulty_head=False)
    x0, y = start(model)
    with pytest.raises(ValueError, match="without a difficulty head"):
        solver(model, x0, UNEVEN, y=y)


def test_guidance_without_label_dropout_is_refused():
    model = awake(class_dropout=0.0)
    x0, y = start(model)
    for solver in (dual_loop, look_ahead, random_order):
        with pytest.raises(ValueError, match="class_dropout = 0"):
            solver(model, x0, UNEVEN, y=y, guidance=Guidance(1.5))


@pytest.mark.parametrize(
    "own",
    [{"inner_steps": 0}, {"threshold": -1.0}, {"pooling": "median"}],
)
def test_other_bad_settings_are_refused(own):
    model = awake()
    x0, y = start(model)
    with pytest.raises(ValueError, match=next(iter(own))):
        dual_loop(model, x0, UNEVEN, y=y, **own)
    with pytest.raises(FieldError, match="context_ratio"):
        look_ahead(model, x0, UNEVEN, y=y, context_ratio=0.9)


class OneBuffer:
    """A model that answers in the same memory each time, spoilt before each answer, as a CUDA graph does."""

    def __init__(self, model):
        self.model, self.config, self.buffers = model, model.config, {}

    def __call__(self, x, t, y):
        for buffer in self.buffers.values():
            buffer.fill_(torch.nan)
        answer = self.model(x, t, y)
        kept = []
        for name, value in answer._asdict().items():
            buffer = self.buffers.setdefault((name, len(x)), torch.empty_like(value))
            kept.append(buffer.copy_(value))
        return Prediction(*kept)


@pytest.mark.parametrize("guidance", [Guidance(), Guidance(2.0)])
@pytest.mark.parametrize("solver", [euler, dual_loop, look_ahead, random_order])
def test_nothing_of_an_evaluation_is_read_after_the_next(solver, guidance):
    """Oracle: the same model without reuse of its memory; with a callback that keeps its own copies."""
    model = awake()
    x0, y = start(model)
    results = []
    for one in (model, OneBuffer(model)):
        trace = Trace(model.config.image_size, 2)
        generator = torch.Generator().manual_seed(0)
        x1 = solver(one, x0, UNEVEN, y=y, guidance=guidance, generator=generator, callback=trace)
        results.append((x1, trace.sigma, trace.timesteps))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.process  # of a compiler
def test_compiled_solvers_agree():
    """Under torch.compile (full graph, so no break on data) the solvers give what they give without."""
    model = awake()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled_model = Counting(model)
    compiled_model.model = compiled
    x0, y = start(model)
    for solver in (euler, dual_loop, look_ahead):
        expected = solver(model, x0, UNEVEN, y=y, guidance=Guidance(1.5))
        result = solver(compiled_model, x0, UNEVEN, y=y, guidance=Guidance(1.5))
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
