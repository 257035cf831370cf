"""Memorisation from a training and from `pforce evaluate`. Oracles: copies of training images that are planted here,
and other paths to the same numbers."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pforce import results
from pforce.base.console import DONE
from pforce.base.errors import ConfigError, FieldError
from pforce.commands.evaluate import evaluate
from pforce.config import Experiment, with_fields
from pforce.data import Manifest, Split, openmoji, read_split
from pforce.data.emoji import CLASSES
from pforce.data.writer import Sample, write_shard
from pforce.records.ledger import Ledger
from pforce.records.parts import Inputs, cell_parts, request_of
from pforce.records.row import Row
from pforce.results.pictures import NEAREST_PAIRS
from pforce.storage import Storage
from pforce.tracking import default_uri
from pforce.trial import reference
from pforce.trial.reference import inputs_of
from pforce.trial.run import run_trial
from pforce.trial.where import Paths, Where
from tests.support.asked import asked
from tests.training.conftest import tiny

pytestmark = [pytest.mark.timeout(600), pytest.mark.process]
TRAIN, HELD_OUT, SIZE = 64, 24, 32


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 training drawings in 4 shards and 24 held-out ones, no two alike."""
    folder, drawings = tmp_path_factory.mktemp("drawings"), openmoji.catalogue()[::40]
    different: dict[bytes, Sample] = {}
    for drawing in drawings:
        file = io.BytesIO()
        openmoji.draw(drawing.hexcode, SIZE).save(file, format="PNG")
        different.setdefault(file.getvalue(), Sample(drawing.hexcode, file.getvalue(), drawing.label, "", "png"))
    made = list(different.values())
    train, held_out = made[:TRAIN], made[TRAIN : TRAIN + HELD_OUT]
    shards = [write_shard(folder / f"train-{i:05d}.tar", train[i::4]) for i in range(4)]
    validation = Split((write_shard(folder / "validation-00000.tar", held_out),))
    Manifest(
        name="small", resolution=SIZE, channels=3, classes=CLASSES, train=Split(tuple(shards)), validation=validation,
        licence="CC BY-SA 4.0", attribution="OpenMoji", versions={},
    ).save(folder)  # fmt: skip
    return folder


def experiment(data: Path, **changes: object) -> Experiment:
    settings = {
        "data.path": str(data),
        "evaluation.images": 70,
        "evaluation.held_out_images": HELD_OUT,
        "evaluation.metrics": ("frechet", "memorisation"),
    }
    return with_fields(tiny(2), {**settings, **{name.replace("__", "."): value for name, value in changes.items()}})


def trained(data: Path, storage: Path, **changes: object) -> Row:
    paths = Paths(data, Storage.open(storage))
    row = run_trial(experiment(data, **changes), paths, Where(torch.device("cpu")))
    assert isinstance(row, Row)
    return row


def of_images(row: Row) -> dict[str, float]:
    return {name: value for name, value in row.metrics.items() if name.startswith(("fd", "memorisation"))}


@pytest.fixture(scope="module")
def cell(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Row]:
    """The storage and the row of a training that measured memorisation."""
    storage = tmp_path_factory.mktemp("cell")
    return storage, trained(data, storage)


def test_a_cell_records_memorisation_with_its_counts(cell):
    row = cell[1]
    counts = [row.metrics[f"memorisation/auc/openmoji_{each}"] for each in ("images", "reference_images")]
    assert counts == [70, TRAIN]
    assert row.metrics["memorisation/pixel_auc_held_out_images"] == HELD_OUT
    assert row.metrics["memorisation/copies/openmoji"] == 0
    (record,) = (record for record in row.parts if record.identity["canonical"].get("metric") == "memorisation")
    assert len(record.files) == 1


def test_features_that_are_kept_alone_are_drawn_again_and_give_the_same_numbers(data, cell, tmp_path, recwarn):
    """First only the Fréchet distance, then memorisation too: what the cell measured at once."""
    first = trained(data, tmp_path, evaluation__metrics=("frechet",))
    assert not list(tmp_path.glob("drawings/*/pixels"))
    both = trained(data, tmp_path)
    said = "64 images were drawn before, but their features or pixels are not kept"
    assert any(said in str(each.message) for each in recwarn)  # the first 64 are kept as images
    assert of_images(both) == of_images(cell[1])
    assert of_images(first).items() <= of_images(both).items()
    for path in tmp_path.glob("drawings/*/pixels/64-*"):
        path.unlink()
    ledger = Ledger(Storage.open(tmp_path))
    for record in both.parts:
        ledger.forget(record.digest, "measured again")
    assert of_images(trained(data, tmp_path)) == of_images(cell[1])


def test_the_first_detector_alone_measures_it_and_the_others_read_the_same_drawing(data, cell, tmp_path):
    """Oracles: the cell, class accuracy without pixels beside the features, and the images that were drawn."""
    further = {"evaluation__further_detectors": ("tests.test_several_detectors:coarse",)}
    row = trained(data, tmp_path / "all", evaluation__metrics=("frechet", "memorisation", "class_accuracy"), **further)
    assert {name: row.metrics[name] for name in of_images(cell[1])} == of_images(cell[1])
    assert "fd/coarse" in row.metrics
    assert not [name for name in row.metrics if name.startswith("memorisation") and "coarse" in name]
    storage = Ledger(Storage.open(tmp_path / "all"))
    assert sum(record.cost["images"] for record in storage.all() if record.kind == "drawing") == 128
    alone = trained(data, tmp_path / "alone", evaluation__metrics=("class_accuracy",))
    name = "class_accuracy/openmoji"
    assert row.metrics[name] == alone.metrics[name]
    with pytest.raises(ConfigError, match="memorisation is the only metric"):
        experiment(data, evaluation__metrics=("memorisation",), **further)


def test_a_large_training_set_is_streamed_with_the_same_numbers(data, cell, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "KEPT_BYTES", 0)
    monkeypatch.setattr(reference, "TRAINING_AT_ONCE", 32)
    row = trained(data, tmp_path)
    kept = list((tmp_path / "references").glob("*.npz"))
    assert len(kept) == 2  # of the Fréchet distance's reference and of the held-out images
    assert of_images(row) == pytest.approx(of_images(cell[1]), rel=1e-6)


def small_experiment(folder: Path, data: Path) -> Path:
    """A module with the experiment, as `--data` takes it."""
    path = folder / "small.py"
    path.write_text(
        "from tests.test_evaluate_memorisation import experiment\n\n\n"
        f"def small():\n    return experiment({str(data)!r})\n"
    )
    return path


def test_evaluate_finds_planted_copies_and_draws_them(data, cell, tmp_path):
    """25 of 50 given images are training images, the others noise; the model's own images are as its cell says."""
    file = small_experiment(tmp_path, data)
    train = read_split(data, "train").images[:25].permute(0, 2, 3, 1).numpy()
    noise = np.random.default_rng(0).integers(0, 256, (25, SIZE, SIZE, 3), np.uint8)
    np.savez(tmp_path / "planted.npz", np.concatenate([train, noise]))
    options = {"data": f"{file}:small", "metrics": ("frechet", "memorisation")}
    assert evaluate(asked(tmp_path / "planted.npz", tmp_path / "runs", **options)) == DONE
    (folder,) = (tmp_path / "runs" / "evaluations").iterdir()
    found = json.loads((folder / "evaluation.json").read_text())["metrics"]
    assert found["memorisation/pixel_auc"] == 0.5  # half are nearer than all held-out ones, half farther
    assert found["memorisation/pixel_copies"] == found["memorisation/copies/openmoji"] == 0.5
    with Image.open(folder / NEAREST_PAIRS) as picture:
        assert picture.size[0] > 1000
    assert NEAREST_PAIRS in {path.name for path in (tmp_path / "runs" / "artifacts").rglob("*.png")}
    assert "memorisation/auc/openmoji" in results.runs(default_uri(tmp_path / "runs"), "evaluations").columns


def test_evaluate_measures_a_model_as_its_training_did(data, cell, tmp_path):
    (snapshot,) = (cell[0] / "trainings").glob("*")
    options = {"images": 70, "held_out_images": HELD_OUT, "label_images": 16, "reference_images": 16}
    options |= {"metrics": ("frechet", "memorisation"), "measure": ("images",), "batch": 64}
    assert evaluate(asked(snapshot, tmp_path, **options)) == DONE
    (folder,) = (tmp_path / "evaluations").iterdir()
    found = json.loads((folder / "evaluation.json").read_text())["metrics"]
    assert {name: found[name] for name in of_images(cell[1])} == of_images(cell[1])
    assert (folder / NEAREST_PAIRS).exists()


def test_what_has_no_training_images_is_refused(data, tmp_path):
    np.savez(tmp_path / "some.npz", np.zeros((30, 48, 48, 3), np.uint8))
    options = {"metrics": ("memorisation",), "detector": "openmoji", "reference": str(tmp_path / "some.npz")}
    with pytest.raises(FieldError, match=r"no data set is known.*--data"):
        evaluate(asked(tmp_path / "some.npz", tmp_path / "runs", **options))
    with pytest.raises(FieldError, match="images of 48×48 do not compare with training images of 32²"):
        evaluate(
            asked(tmp_path / "some.npz", tmp_path / "runs", data=f"{small_experiment(tmp_path, data)}:small", **options)
        )


def test_the_name_depends_on_the_training_images_and_the_held_out_ones_only(data):
    """Not on the reference that distances are to; and no other metric's name depends on it."""

    def parts(inputs: Inputs, **changes: object) -> dict[str, str]:
        made = experiment(data, **changes)
        request = request_of(made.evaluation, made.sampler, inputs, classes=11, difficulty_head=True)
        return {name: part.digest for name, part in request.image_parts("w").items()}

    made = experiment(data)
    inputs = inputs_of(made.evaluation, Manifest.load(data), made.evaluation.load_detector())
    first = parts(inputs)
    other = parts(inputs, evaluation__reference="train")
    assert first["memorisation"] == other["memorisation"]
    assert first["frechet"] != other["frechet"]
    assert parts(inputs, evaluation__held_out_images=20)["memorisation"] != first["memorisation"]
    assert parts(inputs, evaluation__metrics=("frechet",)) == {"frechet": first["frechet"]}
    assert cell_parts(made, inputs).request.needs_pixels
