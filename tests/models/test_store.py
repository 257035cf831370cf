"""Our model file. Oracles: what was saved, bit for bit; what safetensors itself says of the file."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pforce.base.errors import FieldError
from pforce.models import ModelConfig
from pforce.models.store import FORMAT, ModelFileError, load_model, save_model
from tests.models.test_transformer import awake

TINY = ModelConfig(
    depth=1,
    width=16,
    heads=2,
    patch=2,
    image_size=(4, 6),
    channels=3,
    classes=5,
    mlp_ratio=2.0,
    class_dropout=0.2,
)
ABOUT = {"source": "run 7", "images_seen": 12_800, "learning_rate": 1e-4, "averaged": True, "parent": None}


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(awake(TINY), path, about=ABOUT)
    return path


def metadata_of(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def rewrite(path, **metadata):
    """Weights with some of the metadata replaced, or removed where None."""
    new = {key: value for key, value in {**metadata_of(path), **metadata}.items() if value is not None}
    save_file(load_file(path), path, new)


def refusal(path):
    with pytest.raises(ModelFileError) as caught:
        load_model(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("head", [True, False])
def test_round_trip(head, tmp_path):
    config = ModelConfig(
        depth=1, width=16, heads=2, patch=2, image_size=(4, 6), channels=3, classes=5, difficulty_head=head
    )
    model = awake(config)
    save_model(model, tmp_path / "model.safetensors", about=ABOUT)
    again, about = load_model(str(tmp_path / "model.safetensors"))
    assert again.config == config
    assert about == ABOUT
    assert not again.training
    assert all(parameter.requires_grad for parameter in again.parameters())
    assert list(again.state_dict()) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_every_field_is_kept(stored):
    assert load_model(stored)[0].config == TINY
    metadata = metadata_of(stored)
    assert metadata["format"] == FORMAT
    assert json.loads(metadata["config"])["image_size"] == [4, 6]
    assert json.loads(metadata["about"]) == ABOUT


def test_stored_as_float32(tmp_path):
    save_model(awake(TINY).to(torch.bfloat16), tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}
    assert load_model(tmp_path / "model.safetensors")[1] == {}


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated(share, stored):
    whole = stored.read_bytes()
    stored.write_bytes(whole[: int(len(whole) * share)])
    assert "copy it again" in refusal(stored)


def test_missing_foreign_and_other_formats(stored, tmp_path):
    assert "no such file" in refusal(tmp_path / "nothing.safetensors")
    refusal(tmp_path)
    (tmp_path / "text.safetensors").write_text("hello, world\n" * 100)
    assert "not a safetensors file" in refusal(tmp_path / "text.safetensors")
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    assert "its format is None" in refusal(tmp_path / "foreign.safetensors")
    rewrite(stored, format="pforce-model-9")
    assert "'pforce-model-9', this version reads 'pforce-model-1'" in refusal(stored)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"window": 7, "rope": True}, "does not know: rope, window"),
        ({"heads": None}, "config lacks heads"),
        ({"heads": 3}, "heads = 3: must be a divisor"),
        ({"depth": "1"}, "config.depth = '1': must be of type int"),
        ({"depth": True}, "config.depth = True: must be of type int"),
        ({"image_size": 4}, "config.image_size = 4: must be of type tuple"),
        ({"image_size": [4, 6, 8]}, "must be two integers"),
        ({"image_size": [4, 6.0]}, "must be two integers"),
    ],
)
def test_config_is_checked(change, words, stored):
    with safe_open(stored, framework="pt") as file:
        fields = {**json.loads(file.metadata()["config"]), **change}
    rewrite(stored, config=json.dumps({key: value for key, value in fields.items() if value is not None}))
    assert words in refusal(stored)


@pytest.mark.parametrize("record", ["config", "about"])
def test_damaged_records(record, stored):
    rewrite(stored, **{record: "{"})
    assert "Expecting" in refusal(stored)
    rewrite(stored, **{record: "[]"})
    assert f"{record}: it holds a list" in refusal(stored)
    rewrite(stored, **{record: None})
    assert f"{record}: it holds a NoneType" in refusal(stored)


def test_weights_are_checked(stored):
    metadata = metadata_of(stored)
    tensors = load_file(stored)
    bias = tensors.pop("final_layer.linear.bias")
    save_file({**tensors, "extra": bias}, stored, metadata)
    assert "missing final_layer.linear.bias; unknown extra" in refusal(stored)
    save_file({**tensors, "final_layer.linear.bias": bias[1:].clone()}, stored, metadata)
    assert "final_layer.linear.bias has shape (15,), the configuration wants (16,)" in refusal(stored)
    save_file({**tensors, "final_layer.linear.bias": bias / 0}, stored, metadata)
    assert "final_layer.linear.bias holds values that are not finite" in refusal(stored)


def test_attention_of_another_machine_can_be_replaced(stored):
    with safe_open(stored, framework="pt") as file:
        fields = json.loads(file.metadata()["config"])
    rewrite(stored, config=json.dumps({**fields, "attention": "flash"}))
    assert load_model(stored, attention="sdpa")[0].config == TINY


@pytest.mark.parametrize(("key", "value"), [("nested", {"a": 1}), ("loss", float("nan")), ("shape", [1, 2])])
def test_about_is_flat(key, value, tmp_path):
    with pytest.raises(FieldError, match=f"about.{key}"):
        save_model(awake(TINY), tmp_path / "model.safetensors", about={key: value})
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    model = awake(TINY)
    with torch.no_grad():
        model.pos_embed[0, 0, 0] = torch.inf
    with pytest.raises(ModelFileError, match=r"model.safetensors: not written: pos_embed"):
        save_model(model, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_an_old_file_is_replaced_whole(stored):
    save_model(awake(TINY, seed=1), stored)
    model, about = load_model(stored)
    assert about == {}
    assert torch.equal(model.final_layer.linear.bias, awake(TINY, seed=1).final_layer.linear.bias)
    assert [entry.name for entry in stored.parent.iterdir()] == [stored.name]


@pytest.mark.parametrize(
    "change",
    [
        {"depth": 10**9}, {"width": 2**62, "heads": 1}, {"width": 2**30, "heads": 1}, {"classes": 2**40},
        {"image_size": [2**20, 2**20]}, {"channels": 2**31}, {"patch": 1, "image_size": [2**16, 2**16]},
    ],
)  # fmt: skip
def test_a_configuration_makes_no_room(stored, change):
    """Oracle: the refusal, where building such a model takes minutes or more memory than there is."""
    config = {**json.loads(metadata_of(stored)["config"]), **change}
    rewrite(stored, config=json.dumps(config))
    with pytest.raises(ModelFileError, match=r"describes a model of at least .* where the file holds"):
        load_model(stored)


@pytest.mark.parametrize("text", ["[" * 200_000, "{" + '"a": ' + "9" * 5000 + "}", '{"depth": NaN}', "\x1b[2J"])
def test_metadata_that_are_no_json(text, stored):
    rewrite(stored, config=text)
    with pytest.raises(ModelFileError) as error:
        load_model(stored)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000


def test_names_are_shown_harmless(stored):
    config = {**json.loads(metadata_of(stored)["config"]), "\x1b[2J": 1}
    rewrite(stored, config=json.dumps(config))
    with pytest.raises(ModelFileError, match=r"does not know: \\x1b\[2J"):
        load_model(stored)
