"""Foreign files that are refused, in one line. Oracles: what was damaged, and a marker file that code in a checkpoint
would write."""

from __future__ import annotations

import os
import pickle
import types
import warnings
from pathlib import Path

import pytest
import torch

from pforce.models.published import PFT, REPA, SIT, load_published
from pforce.models.store import save_model
from tests.models.published import TINY, TINY_SIT, refusal
from tests.models.test_transformer import awake


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
        (Payload(write_marker, str(marker)), "tests.models.test_published_refused.write_marker"),
        (Payload(eval, f"open({str(marker)!r}, 'w').close()"), "eval"),
        (types.SimpleNamespace(a=1), "types.SimpleNamespace"),
    ]:
        evil = {**checkpoint, place: payload}
        torch.save(evil, path, _use_new_zipfile_serialization=not legacy)
        message = refusal(path)
        assert ("no checkpoint" if legacy else f"carries code or unknown objects ({name}) and was not") in message
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
        assert "no checkpoint" in refusal(tmp_path / "plain.pkl")
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
    assert "a folder, not a file" in refusal(tmp_path)
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


def test_heads_must_agree(tiny):
    path, _ = tiny
    assert load_published(path, heads=2).config == TINY
    assert "heads = 4, but config.params.num_heads = 2" in refusal(path, heads=4)


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


def test_a_name_with_and_without_prefix_is_refused(tiny):
    path, checkpoint = tiny
    checkpoint["state_dict"]["module.pos_embed"] = torch.zeros(1, 4, 16)
    torch.save(checkpoint, path)
    assert "'pos_embed' is there twice" in refusal(path)


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
    assert "'pos_embed' is not a dense floating-point tensor" in refusal(path)


@pytest.mark.parametrize("shape", [(2**33,), (2**20, 2**13)])
def test_a_tensor_has_a_value_for_each_entry(shape, tiny):
    """A view of one value of four bytes shows it 2^33 times, and takes 32 GB once it is copied."""
    path, checkpoint = tiny
    checkpoint["state_dict"]["pos_embed"] = torch.zeros(1).expand(*shape)
    torch.save(checkpoint, path)
    assert path.stat().st_size < 100_000
    assert "of which the file lacks values" in refusal(path)


@pytest.mark.parametrize("change", [{"depth": 10**9}, {"hidden_size": 2**62}, {"input_size": 2**30}])
def test_a_configuration_makes_no_room(change, tiny):
    path, checkpoint = tiny
    checkpoint["config"]["params"] |= change
    torch.save(checkpoint, path)
    assert "describes a model of at least" in refusal(path)
