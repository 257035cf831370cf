"""Foreign checkpoints. Oracles: recorded files of the published implementation; an original SiT built here, whose
velocity is the first half of its 2C outputs; a marker file that code in a checkpoint would write."""

from __future__ import annotations

import argparse
import sys
import types
from pathlib import Path

import pytest
import torch

from pforce.base.errors import FieldError
from pforce.models import ModelConfig
from pforce.models.layers import FinalLayer
from pforce.models.published import SIT, PublishedError, load_published, save_published
from tests.conftest import shared_file
from tests.models.published import TINY, TINY_SIT, read, refusal, same
from tests.models.test_transformer import awake

# --- Recorded files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["parity_small_pft", "parity_small_sit", "parity_wide_pft"])
def test_recorded_file_round_trip(name, tmp_path):
    recorded = read(shared_file(f"parity/{name}.ckpt"))
    model = load_published(shared_file(f"parity/{name}.ckpt"))
    assert not model.training
    same(model.state_dict(), recorded["state_dict"])
    save_published(model, tmp_path / "again.ckpt")
    again = read(tmp_path / "again.ckpt")
    assert list(again) == list(recorded)
    same(again["state_dict"], recorded["state_dict"])
    assert type(again["config"]) is dict
    assert again["config"] == recorded["config"]
    assert list(again["config"]["params"]) == list(recorded["config"]["params"])
    same(load_published(tmp_path / "again.ckpt").state_dict(), recorded["state_dict"])


@torch.no_grad()
def test_recorded_velocity():
    import numpy as np

    arrays = np.load(shared_file("parity/parity_small.npz"))
    x0, t, y, velocity = (torch.from_numpy(arrays[key]) for key in ("x0", "t", "y", "velocity"))
    model = load_published(shared_file("parity/parity_small_pft.ckpt"))
    torch.testing.assert_close(model(x0, t, y).velocity, velocity, atol=1e-4, rtol=0)


def test_omegaconf_file_equals_the_plain_one():
    allowed = set(torch.serialization.get_safe_globals())
    omegaconf = load_published(shared_file("parity/parity_small_pft_omegaconf.ckpt"))
    assert set(torch.serialization.get_safe_globals()) == allowed  # our allow-list is gone after the call
    plain = load_published(shared_file("parity/parity_small_pft.ckpt"))
    assert omegaconf.config == plain.config
    same(omegaconf.state_dict(), plain.state_dict())


def test_repa_projector_is_dropped_with_a_warning():
    path = shared_file("parity/parity_repa.ckpt")
    with pytest.warns(UserWarning, match=r"parity_repa.ckpt: the projector \(6 tensors\) serves training only") as seen:
        model = load_published(path)
    assert seen[0].filename == __file__
    recorded = read(path)["state_dict"]
    same(model.state_dict(), {name: tensor for name, tensor in recorded.items() if not name.startswith("projector.")})


@torch.no_grad()
def test_repa_velocity():
    import numpy as np

    arrays = np.load(shared_file("parity/parity_repa.npz"))
    x0, t, y, velocity = (torch.from_numpy(arrays[key]) for key in ("x0", "t", "y", "velocity"))
    with pytest.warns(UserWarning, match="projector"):
        model = load_published(shared_file("parity/parity_repa.ckpt"))
    torch.testing.assert_close(model(x0, t, y).velocity, velocity, atol=1e-4, rtol=0)


def test_text_model_is_named():
    assert "text-conditioned models are not supported yet" in refusal(shared_file("parity/parity_text.ckpt"))


# --- The original SiT -----------------------------------------------------------------------------------------


def original_sit(patch, channels):
    """A SiT with 2C outputs a pixel, all weights random, as it was released."""
    config = ModelConfig(
        depth=2,
        width=16,
        heads=2,
        patch=patch,
        image_size=(2 * patch, 2 * patch),
        channels=channels,
        classes=5,
        difficulty_head=False,
    )
    model = awake(config)
    model.final_layer = FinalLayer(config.width, patch, 2 * channels)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize(("patch", "channels"), [(2, 4), (4, 3)])
@pytest.mark.parametrize("form", ["flat", "ema", "published"])
def test_original_sit_loses_its_second_half_of_outputs(patch, channels, form, tmp_path):
    original = original_sit(patch, channels)
    state = original.state_dict()
    params = {"in_channels": channels, "input_size": 2 * patch, "depth": 2, "hidden_size": 16, "patch_size": patch}
    files = {
        "flat": state,
        "ema": {"model": {}, "ema": state, "opt": {"state": {}}, "args": argparse.Namespace(image_size=256)},
        "published": {
            "state_dict": state,
            "config": {"target": SIT, "params": {**params, "num_heads": 2, "num_classes": 5}},
        },
    }
    torch.save(files[form], tmp_path / "sit.pt")
    model = load_published(tmp_path / "sit.pt", heads=2)
    assert model.config == original.config

    x, t, y = torch.randn(2, channels, 2 * patch, 2 * patch), torch.rand(2), torch.tensor([0, 5])
    velocity, variance = original(x, t, y).velocity.chunk(2, dim=1)
    prediction = model(x, t, y)
    torch.testing.assert_close(prediction.velocity, velocity, atol=1e-6, rtol=0)
    assert prediction.log_variance is None
    assert not torch.allclose(velocity, variance)


def test_original_sit_heads_come_from_the_sizes_or_the_caller(tmp_path):
    config = ModelConfig(
        depth=4, width=128, heads=4, patch=4, image_size=(8, 8), channels=3, classes=2, difficulty_head=False
    )
    model = awake(config)
    torch.save(model.state_dict(), tmp_path / "micro.pt")
    assert load_published(tmp_path / "micro.pt").config == config  # the micro's row of SIZES
    torch.save(awake(TINY_SIT).state_dict(), tmp_path / "tiny.pt")
    message = refusal(tmp_path / "tiny.pt")
    assert "depth 2 and width 16" in message
    assert "pass heads=" in message
    assert "heads = 3" in refusal(tmp_path / "tiny.pt", heads=3)  # does not divide the width


def test_a_flat_pft_is_asked_for_its_config(tmp_path):
    torch.save(awake(TINY).state_dict(), tmp_path / "flat.pt")
    assert "16 rows, where a SiT of 3 channels and patch 2 has 12 or 24" in refusal(tmp_path / "flat.pt", heads=2)


@pytest.mark.parametrize(
    "damage",
    [
        {"pos_embed": torch.zeros(1, 3, 16)},
        {"x_embedder.proj.weight": torch.zeros(16, 3, 2, 1)},
    ],
)
def test_only_square_sits_are_read(damage, tmp_path):
    torch.save({**awake(TINY_SIT).state_dict(), **damage}, tmp_path / "sit.pt")
    assert "only square patches and images" in refusal(tmp_path / "sit.pt", heads=2)


# --- Files that are refused -----------------------------------------------------------------------------------


def test_compile_is_ignored_and_may_be_absent(tiny):
    path, checkpoint = tiny
    del checkpoint["config"]["params"]["compile"]
    torch.save(checkpoint, path)
    assert load_published(path).config == TINY


def test_omegaconf_interpolations_and_lists(tiny, monkeypatch):
    """Pickles as OmegaConf makes them, from classes of its names that this test defines."""

    def foreign(module, name):
        made = type(name, (), {"__module__": f"omegaconf.{module}"})
        holder = sys.modules.get(made.__module__) or types.ModuleType(made.__module__)
        setattr(holder, name, made)
        monkeypatch.setitem(sys.modules, made.__module__, holder)
        return made

    def instance(of, **state):
        made = of()
        made.__dict__.update(state)
        return made

    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    node, items = foreign("nodes", "AnyNode"), foreign("listconfig", "ListConfig")
    container = foreign("dictconfig", "DictConfig")
    path, checkpoint = tiny

    def write(**change):
        params = {**checkpoint["config"]["params"], **change}
        nodes = {key: instance(node, _val=value, _parent=None) for key, value in params.items()}
        tags = instance(items, _content=[instance(node, _val="a")])
        config = instance(
            container,
            _content={
                "target": instance(node, _val=checkpoint["config"]["target"]),
                "params": instance(container, _content=nodes, _metadata=None),
                "tags": tags,
            },
        )
        torch.save({**checkpoint, "config": config}, path)

    write()
    assert load_published(path).config == TINY
    write(hidden_size="${model.width}")
    assert "config.params.hidden_size = '${model.width}' refers to another configuration" in refusal(path)


# --- Weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module._orig_mod."])
def test_wrappers_prefixes_are_stripped(prefix, tiny):
    path, checkpoint = tiny
    state = checkpoint["state_dict"]
    torch.save({**checkpoint, "state_dict": {prefix + name: tensor for name, tensor in state.items()}}, path)
    same(load_published(path).state_dict(), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(dtype, tiny):
    path, checkpoint = tiny
    half = {name: tensor.to(dtype) for name, tensor in checkpoint["state_dict"].items()}
    torch.save({**checkpoint, "state_dict": half}, path)
    same(load_published(path).state_dict(), {name: tensor.float() for name, tensor in half.items()})


def test_positions_come_from_the_file_and_parameters_train(tiny):
    path, checkpoint = tiny
    checkpoint["state_dict"]["pos_embed"] += 1
    torch.save(checkpoint, path)
    before = torch.get_rng_state()
    model = load_published(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(model.pos_embed, checkpoint["state_dict"]["pos_embed"])
    assert not model.pos_embed.requires_grad
    assert all(parameter.requires_grad for parameter in model.parameters())


# --- Saving ---------------------------------------------------------------------------------------------------


def test_what_the_format_cannot_express_is_refused_before_writing(tmp_path):
    for change in ({"image_size": (4, 6)}, {"mlp_ratio": 2.0}):
        model = awake(ModelConfig(depth=1, width=16, heads=2, channels=3, classes=5, **{"image_size": (4, 4)} | change))
        with pytest.raises(FieldError, match=next(iter(change))):
            save_published(model, tmp_path / "model.ckpt")
    diverged = awake(TINY)
    with torch.no_grad():
        diverged.final_layer.linear.bias[0] = torch.nan
    with pytest.raises(PublishedError, match=r"model.ckpt: not written: final_layer.linear.bias"):
        save_published(diverged, tmp_path / "model.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_saving_is_atomic_and_float32(tmp_path, monkeypatch):
    path = tmp_path / "new" / "model.ckpt"
    save_published(awake(TINY).half(), path)
    assert {tensor.dtype for tensor in read(path)["state_dict"].values()} == {torch.float32}
    whole = path.read_bytes()

    def fails(_content, scratch):
        Path(scratch).write_bytes(b"half of a file")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match="disk full"):
        save_published(awake(TINY, seed=1), path)
    assert [entry.name for entry in path.parent.iterdir()] == ["model.ckpt"]
    assert path.read_bytes() == whole


@pytest.mark.process  # of a compiler
def test_a_compiled_model_is_saved_under_bare_names(tmp_path):
    model = awake(TINY)
    save_published(torch.compile(model), tmp_path / "model.ckpt")  # compiles nothing: it is never called
    same(read(tmp_path / "model.ckpt")["state_dict"], model.state_dict())
