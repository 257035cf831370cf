"""Reading models from wherever they are. Oracles: the weights in the checkpoint's tensors, and round trips."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from pforce.commands.sample import class_numbers
from pforce.config import to_dict, with_fields
from pforce.data import DataError
from pforce.models import load_published, save_model, save_published
from pforce.training.checkpoint import saved
from pforce.trial.source import SourceError, load_source
from tests.training.conftest import tiny


def test_a_trial_gives_its_newest_averaged_weights(trained):
    newest = saved(trained)[-1]
    stored = load_file(newest / "state.safetensors")
    for path in (trained, trained / "snapshots", newest):
        source = load_source(path)
        assert source.path == newest
        assert source.images_seen == 320
        assert source.experiment == with_fields(tiny(20), {"training.precision": "float32"})
        assert not source.model.training
        for name, tensor in source.model.state_dict().items():
            assert torch.equal(tensor, stored[f"ema/{name}"])
    raw = load_source(trained, weights="raw")
    assert torch.equal(raw.model.state_dict()["pos_embed"], stored["model/pos_embed"])
    assert raw.sha256 != load_source(trained).sha256


def test_one_model_has_one_hash_in_every_format(trained, tmp_path):
    source = load_source(trained)
    save_model(source.model, tmp_path / "model.safetensors", about={"images_seen": 320, "weights": "ema"})
    ours = load_source(tmp_path / "model.safetensors")
    assert (ours.sha256, ours.images_seen, ours.weights) == (source.sha256, 320, "ema")
    save_published(source.model, tmp_path / "model.ckpt")
    published = load_source(tmp_path / "model.ckpt")
    assert published.sha256 == source.sha256
    assert published.experiment is None


def test_a_damaged_newest_checkpoint_is_passed_over(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "copy")
    older, newest = saved(tmp_path / "copy")[-2:]
    (newest / "state.safetensors").write_bytes(b"cut off")
    assert load_source(tmp_path / "copy").path == older
    with pytest.raises(SourceError, match="sha256"):
        load_source(newest)


def test_what_is_no_model_is_refused(trained, tmp_path):
    with pytest.raises(SourceError, match="does not exist"):
        load_source(tmp_path / "nothing")
    (tmp_path / "note.txt").write_text("no model")
    with pytest.raises(SourceError, match=r"is not a folder, \.safetensors"):
        load_source(tmp_path / "note.txt")
    with pytest.raises(SourceError, match="holds no checkpoint"):
        load_source(tmp_path)
    shutil.copytree(trained, tmp_path / "copy")
    (tmp_path / "copy" / "experiment.json").unlink()
    with pytest.raises(SourceError, match=r"experiment\.json cannot be read"):
        load_source(tmp_path / "copy")


def test_a_sampler_of_a_package_that_is_not_installed_is_named(trained, tmp_path):
    """Once, however many checkpoints there are, and with the cure."""
    shutil.copytree(trained, tmp_path / "copy")
    record = tmp_path / "copy" / "experiment.json"
    content = json.loads(record.read_text())
    content["sampler"]["name"] = "theirs"
    record.write_text(json.dumps(content))
    with pytest.raises(SourceError) as refused:
        load_source(tmp_path / "copy")
    assert str(refused.value) == (
        f"{record}: its sampler theirs is not installed here: install the package that it comes from; the package "
        "names its modules by an entry point pforce.experiments"
    )


def test_the_experiment_lies_beside_the_checkpoints(trained):
    assert json.loads((trained / "experiment.json").read_text())["name"] == "tiny"


def test_exported_weights_are_the_trained_ones(trained, tmp_path):
    """The published format holds the averaged weights, bit for bit."""
    source = load_source(trained)
    save_published(source.model, tmp_path / "m.ckpt")
    again = load_published(tmp_path / "m.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(source.model.parameters(), again.parameters(), strict=True))


def test_a_file_of_a_stranger_builds_and_loads_nothing_at_a_place_that_it_names(trained, tmp_path, monkeypatch):
    """A model file whose experiment names folders, weights and code. Oracle: what is there afterwards."""
    monkeypatch.chdir(tmp_path)
    source = load_source(trained)
    for place in (str(tmp_path / "absolute"), "../relative"):
        plain = to_dict(source.experiment)
        plain["data"] |= {"name": "openmoji", "path": place}
        theirs = {"detector_weights": "/etc/passwd", "reference": "/etc/passwd.npz", "reference_images": None}
        plain["evaluation"] |= theirs
        about = {"experiment_json": json.dumps(plain)}
        save_model(source.model, tmp_path / "theirs.safetensors", about=about)
        found = load_source(tmp_path / "theirs.safetensors").experiment
        assert found is not None
        assert (found.data.path, found.evaluation.detector_weights) == (None, None)
        assert found.evaluation.reference == "validation"
    folder = tmp_path / "training"
    shutil.copytree(trained, folder)
    plain = to_dict(source.experiment)
    plain["data"] |= {"name": "openmoji", "path": str(tmp_path / "built")}
    (folder / "experiment.json").write_text(json.dumps(plain))
    with pytest.raises(DataError, match="as the folder of its data set, where there is none"):
        class_numbers(("Animals",), load_source(folder))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs.safetensors", "training"]
    assert not (tmp_path.parent / "relative").exists()
