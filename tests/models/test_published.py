"""Foreign checkpoints. Oracles: recorded files of the published implementation; an original SiT built here, whose
velocity is the first half of its 2C outputs; a marker file that code in a checkpoint would write."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch

from pforce.base.errors import FieldError
from pforce.models import ModelConfig
from pforce.models.layers import FinalLayer
from pforce.models.published import PFT, REPA, SIT, PublishedError, load_published, save_published
from pforce.models.store import save_model
from tests.conftest import shared_file
from tests.models.test_transformer import awake

TINY = ModelConfig(depth=2, width=16, heads=2, patch=2, image_size=(4, 4), channels=3, classes=5)
TINY_SIT = ModelConfig(
    depth=2, width=16, heads=2, patch=2, image_size=(4, 4), channels=3, classes=5, difficulty_head=False
)
ONE_LINE = re.compile(r"[^\n]+")


def read(path):
    return torch.load(path, weights_only=True)


def same(a, b):
    """Names in order, shapes, dtypes and bits."""
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name], b[name]), name


@pytest.fixture
def tiny(tmp_path):
    """A published file of a tiny PFT, as `(path, checkpoint)`; write the checkpoint again after changing it."""
    path = tmp_path / "tiny.ckpt"
    save_published(awake(TINY), path)
    return path, read(path)


def refusal(path, **arguments):
    """The message of the error that a file is refused with: one line that starts with its path."""
    with pytest.raises(PublishedError) as caught:
        load_published(path, **arguments)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert ONE_LINE.fullmatch(message)
    assert "weights_only" not in message
    return message


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


class Payload:
    """Unpickled without protection, it writes the marker."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def write_marker(path):
    Path(path).write_text("code has run")


@pytest.mark.parametrize("place", ["config", "state_dict", "beside"])
@pytest.mark.parametrize("legacy", [False, True])
def test_code_is_refused_and_does_not_run(place, legacy, tiny, tmp_path):
    path, checkpoint = tiny
    marker = tmp_path / "marker"
    for payload, name in [
        (Payload(os.system, f"touch {marker}"), "posix.system"),
        (Payload(write_marker, str(marker)), "tests.models.test_published.write_marker"),
        (Payload(eval, f"open({str(marker)!r}, 'w').close()"), "eval"),
        (types.SimpleNamespace(a=1), "types.SimpleNamespace"),
    ]:
        evil = {**checkpoint, place: payload}
        torch.save(evil, path, _use_new_zipfile_serialization=not legacy)
        message = refusal(path)
        assert f"carries code or unknown objects ({name}) and was not loaded" in message
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the last payload is harmless
    torch.save({**checkpoint, place: Payload(write_marker, str(marker))}, path)
    torch.load(path, weights_only=False)
    assert marker.exists()  # the oracle: without protection it does run


def test_code_by_another_pickle_protocol(tmp_path):
    marker = tmp_path / "marker"
    with (tmp_path / "plain.pkl").open("wb") as file:
        pickle.dump(Payload(write_marker, str(marker)), file, protocol=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of the protocol
        assert "not a checkpoint" in refusal(tmp_path / "plain.pkl")
    assert not marker.exists()


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_truncated(share, tiny):
    path, _ = tiny
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "get it again" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"hello, world\n" * 100, b"\x80\x02."])
def test_not_a_checkpoint(content, tmp_path):
    (tmp_path / "file.ckpt").write_bytes(content)
    assert "get it again" in refusal(tmp_path / "file.ckpt")


def test_missing_file_folder_and_our_own_format(tmp_path):
    assert "No such file" in refusal(tmp_path / "nothing.ckpt")
    assert "directory" in refusal(tmp_path)
    save_model(awake(TINY_SIT), tmp_path / "ours.safetensors")
    assert "load_model reads" in refusal(tmp_path / "ours.safetensors")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "holds a list"),
        (torch.zeros(3), "holds a Tensor"),
        ({"epoch": 3}, "the entry 'epoch' is a int"),
        ({"weight": torch.zeros(3)}, "neither a published file"),
        ({"state_dict": {}}, "config is not {target, params}"),
        ({"state_dict": [], "config": {"target": SIT, "params": {}}}, "must be dicts"),
    ],
)
def test_other_contents(content, words, tmp_path):
    torch.save(content, tmp_path / "file.ckpt")
    assert words in refusal(tmp_path / "file.ckpt")


def test_unknown_target_is_named_with_those_known(tiny):
    path, checkpoint = tiny
    checkpoint["config"]["target"] = "somewhere.UNet"
    torch.save(checkpoint, path)
    message = refusal(path)
    assert all(target in message for target in ("somewhere.UNet", PFT, SIT, REPA))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"window": 7, "z_dim": 768}, ["unknown window, z_dim"]),
        ({"depth": None, "num_heads": None}, ["missing depth, num_heads"]),
        ({"depth": None, "window": 7}, ["unknown window", "missing depth"]),
        ({"depth": 2.5}, ["config.params.depth = 2.5"]),
        ({"depth": True}, ["config.params.depth = True"]),
        ({"input_size": [4, 8]}, ["config.params.input_size = [4, 8]"]),
        ({"hidden_size": 18}, ["width = 18", "multiple of 4"]),
        ({"depth": "${model.depth}"}, ["config.params.depth", "refers to another configuration"]),
        ({"predict_uncertainty": False}, ["predict_uncertainty"]),
    ],
)
def test_params_are_checked(change, words, tiny):
    path, checkpoint = tiny
    params = {**checkpoint["config"]["params"], **change}
    checkpoint["config"]["params"] = {key: value for key, value in params.items() if value is not None}
    torch.save(checkpoint, path)
    message = refusal(path)
    assert all(word in message for word in words), message


def test_compile_is_ignored_and_may_be_absent(tiny):
    path, checkpoint = tiny
    del checkpoint["config"]["params"]["compile"]
    torch.save(checkpoint, path)
    assert load_published(path).config == TINY


def test_heads_must_agree(tiny):
    path, _ = tiny
    assert load_published(path, heads=2).config == TINY
    assert "heads = 4, but config.params.num_heads = 2" in refusal(path, heads=4)


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


def test_extra_and_missing_keys_are_listed_together(tiny):
    path, checkpoint = tiny
    del checkpoint["state_dict"]["blocks.1.attn.qkv.bias"]
    checkpoint["state_dict"]["projector.0.weight"] = torch.zeros(2)
    torch.save(checkpoint, path)
    assert "missing blocks.1.attn.qkv.bias; unknown projector.0.weight" in refusal(path)


def test_long_lists_are_cut(tiny):
    path, checkpoint = tiny
    checkpoint["config"]["params"]["depth"] = 4  # ten tensors a block are missing twice
    checkpoint["state_dict"].update({f"extra.{i}": torch.zeros(1) for i in range(13)})
    torch.save(checkpoint, path)
    message = refusal(path)
    assert "blocks.2.adaLN_modulation.1.bias and 10 more" in message
    assert "extra.9 and 3 more" in message
    assert "extra.10" not in message


def test_wrong_shape_names_the_key_and_both_shapes(tiny):
    path, checkpoint = tiny
    checkpoint["state_dict"]["pos_embed"] = torch.zeros(1, 9, 16)
    torch.save(checkpoint, path)
    assert "pos_embed has shape (1, 9, 16), the configuration wants (1, 4, 16)" in refusal(path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module._orig_mod."])
def test_wrappers_prefixes_are_stripped(prefix, tiny):
    path, checkpoint = tiny
    state = checkpoint["state_dict"]
    torch.save({**checkpoint, "state_dict": {prefix + name: tensor for name, tensor in state.items()}}, path)
    same(load_published(path).state_dict(), state)


def test_a_name_with_and_without_prefix_is_refused(tiny):
    path, checkpoint = tiny
    checkpoint["state_dict"]["module.pos_embed"] = torch.zeros(1, 4, 16)
    torch.save(checkpoint, path)
    assert "pos_embed is there twice" in refusal(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(dtype, tiny):
    path, checkpoint = tiny
    half = {name: tensor.to(dtype) for name, tensor in checkpoint["state_dict"].items()}
    torch.save({**checkpoint, "state_dict": half}, path)
    same(load_published(path).state_dict(), {name: tensor.float() for name, tensor in half.items()})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value, tiny):
    path, checkpoint = tiny
    checkpoint["state_dict"]["blocks.0.attn.qkv.weight"][3, 2] = value
    torch.save(checkpoint, path)
    assert "blocks.0.attn.qkv.weight holds values that are not finite" in refusal(path)


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize("tensor", [torch.zeros(1, 4, 16, dtype=torch.int64), torch.zeros(1, 4, 16).to_sparse()])
def test_other_kinds_of_tensor_are_refused(tensor, tiny):
    path, checkpoint = tiny
    checkpoint["state_dict"]["pos_embed"] = tensor
    torch.save(checkpoint, path)
    assert "pos_embed is not a dense floating-point tensor" in refusal(path)


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


def test_a_compiled_model_is_saved_under_bare_names(tmp_path):
    model = awake(TINY)
    save_published(torch.compile(model), tmp_path / "model.ckpt")  # compiles nothing: it is never called
    same(read(tmp_path / "model.ckpt")["state_dict"], model.state_dict())
