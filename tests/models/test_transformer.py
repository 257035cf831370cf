"""PFT and SiT. Oracles: published parameter counts, the per-token forward, closed forms at initialisation."""

from __future__ import annotations

import pytest
import torch

from pforce import seeding
from pforce.base.errors import FieldError
from pforce.models import ModelConfig, TimestepLevels, build, sized
from pforce.models.attention import flash_attention, sdpa
from pforce.models.layers import sinusoidal_features

SMALL = ModelConfig(depth=3, width=32, heads=4, patch=2, image_size=(6, 8), channels=3, classes=5)


def awake(config=SMALL, seed=0):
    """A model whose zero-initialised layers are drawn too, so that every path carries a signal."""
    model = build(config, generator=seeding.generator("test", seed)).eval()
    generator = seeding.generator("awake", seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return model


def inputs(config=SMALL, batch=3):
    x = torch.randn(batch, config.channels, *config.image_size)
    return x, torch.randint(0, config.classes + 1, (batch,))


@pytest.mark.parametrize(
    ("size", "sit", "pft"), [("B", 130.304, 130.307), ("L", 457.824, 457.828), ("XL", 674.816, 674.821)]
)
def test_parameter_counts(size, sit, pft):
    """DESIGN section 3: at patch 2 on 32×32×4."""
    for head, expected in ((False, sit), (True, pft)):
        with torch.device("meta"):
            model = build(sized(size, difficulty_head=head))
        assert round(sum(p.numel() for p in model.parameters()) / 1e6, 3) == expected


def test_micro_size():
    model = build(sized("micro", patch=4, image_size=(32, 32), channels=3, classes=11))
    assert 1.25e6 < sum(p.numel() for p in model.parameters()) < 1.35e6


@torch.no_grad()
@pytest.mark.parametrize("levels", [1, 2, 5])
def test_levels_equal_the_per_token_forward(levels):
    """The exact shared modulation: K distinct timesteps an image, gathered, equal to 1e-5."""
    model = awake()
    x, y = inputs()
    values = torch.rand(3, levels)
    index = torch.randint(0, levels, (3, SMALL.patches))
    per_token = model(x, values.gather(1, index), y)
    shared = model(x, TimestepLevels(values, index), y)
    torch.testing.assert_close(shared.velocity, per_token.velocity, atol=1e-5, rtol=0)
    torch.testing.assert_close(shared.log_variance, per_token.log_variance, atol=1e-5, rtol=0)


@torch.no_grad()
def test_one_timestep_a_sample_equals_the_same_for_all_patches():
    model = awake()
    x, y = inputs()
    t = torch.rand(3)
    torch.testing.assert_close(
        model(x, t, y).velocity, model(x, t[:, None].expand(-1, SMALL.patches), y).velocity, atol=1e-5, rtol=0
    )


@torch.no_grad()
def test_a_patch_timestep_reaches_its_patch_first():
    """With attention and positions unchanged, moving one patch's timestep changes that patch the most."""
    model = awake()
    x, y = inputs(batch=1)
    t = torch.full((1, SMALL.patches), 0.4)
    moved = t.clone()
    moved[0, 5] = 0.9
    change = (model(x, moved, y).velocity - model(x, t, y).velocity).abs()
    from pforce import grid

    assert grid.pool(change, SMALL.patch)[0].argmax() == 5


@torch.no_grad()
def test_a_fresh_model_predicts_zero():
    """Zero final layer: velocity and log-variance are exactly 0."""
    velocity, log_variance = build(SMALL)(*inputs()[:1], torch.rand(3), inputs()[1])
    assert velocity.abs().max() == 0
    assert log_variance is not None
    assert log_variance.abs().max() == 0
    assert velocity.shape == (3, 3, 6, 8)
    assert log_variance.shape == (3, 1, 6, 8)


def test_initialisation_is_seeded():
    states = [build(SMALL, generator=seeding.generator("w", seed)).state_dict() for seed in (1, 1, 2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["blocks.0.attn.qkv.weight"], states[2]["blocks.0.attn.qkv.weight"])


def test_parameter_names_are_the_published_ones():
    names = set(build(SMALL).state_dict())
    wanted = {
        "x_embedder.proj.weight", "pos_embed", "t_embedder.mlp.0.weight", "t_embedder.mlp.2.bias",
        "y_embedder.embedding_table.weight", "blocks.0.attn.qkv.weight", "blocks.0.attn.proj.bias",
        "blocks.2.mlp.fc1.weight", "blocks.2.mlp.fc2.bias", "blocks.1.adaLN_modulation.1.weight",
        "final_layer.linear.weight", "final_layer.adaLN_modulation.1.bias",
    }  # fmt: skip
    assert wanted <= names
    assert "pos_embed" not in dict(build(SMALL).named_parameters())


def test_sinusoidal_features_by_their_formula():
    """cos then sin of t·10000^(−k/128)."""
    t = torch.tensor([0.3])
    k = torch.arange(128)
    angles = 0.3 * 10000.0 ** (-k / 128)
    torch.testing.assert_close(sinusoidal_features(t)[0], torch.cat([angles.cos(), angles.sin()]), atol=1e-6, rtol=0)


def test_sit_refuses_a_timestep_a_patch():
    sit = build(ModelConfig(**{**SMALL.__dict__, "difficulty_head": False}))
    x, y = inputs()
    assert sit(x, torch.rand(3), y).log_variance is None
    with pytest.raises(ValueError, match="one timestep per sample"):
        sit(x, torch.rand(3, SMALL.patches), y)


def test_a_wrong_number_of_timesteps_is_refused():
    with pytest.raises(ValueError, match=r"must be \(B,\) or \(B, 12\)"):
        build(SMALL)(*inputs()[:1], torch.rand(3, 7), inputs()[1])


@pytest.mark.parametrize(
    ("fields", "field", "text"),
    [
        ({"heads": 5}, "heads", "a divisor of the width 768"),
        ({"image_size": (30, 31)}, "image_size", "multiples of the patch 2"),
        ({"width": 770}, "width", "multiple of 4"),
        ({"depth": 0}, "depth", "> 0"),
        ({"class_dropout": 1.0}, "class_dropout", "in [0, 1)"),
        ({"attention": "other"}, "attention", "sdpa or flash"),
    ],
)
def test_impossible_models_are_refused(fields, field, text):
    with pytest.raises(FieldError) as error:
        ModelConfig(**fields)
    assert error.value.field == field
    assert text in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is what a machine without a GPU says")
def test_flash_attention_says_what_is_missing():
    with pytest.raises(RuntimeError, match=r"[Ss]et model\.attention to sdpa"):
        flash_attention()


def test_sdpa_is_attention():
    """Oracle: softmax(q·kᵀ/√d)·v written out."""
    q, k, v = (torch.randn(2, 3, 7, 4) for _ in range(3))
    expected = torch.softmax(q @ k.transpose(-1, -2) / 2, dim=-1) @ v
    torch.testing.assert_close(sdpa(q, k, v), expected, atol=1e-5, rtol=0)


@pytest.mark.process  # of a compiler
def test_compiled_levels_keep_their_shapes():
    """torch.compile: one graph for other timesteps and other indices, and the same numbers."""
    model = awake()
    x, y = inputs()
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # what other tests compiled
    with torch.no_grad():
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            levels = TimestepLevels(
                torch.rand(3, 2, generator=generator), torch.randint(0, 2, (3, 12), generator=generator)
            )
            torch.testing.assert_close(compiled(x, levels, y).velocity, model(x, levels, y).velocity)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
