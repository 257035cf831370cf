"""Several detectors on one drawing, and the rules of classes. Oracle: each detector alone, in a storage of its own, bit
for bit; and the images that the records say were drawn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from pforce.base.console import DONE
from pforce.base.errors import FieldError
from pforce.commands.evaluate import evaluate, results_table
from pforce.config import from_dict, to_dict, with_fields
from pforce.data import read_split
from pforce.images import from_uint8
from pforce.metrics.config import EvaluationConfig
from pforce.metrics.detectors import ModuleDetector
from pforce.metrics.detectors.classifier import load
from pforce.metrics.detectors.module import Detector
from pforce.metrics.distances import distances
from pforce.metrics.features import FeatureSet
from pforce.metrics.reference import of_features
from pforce.orchestration.objectives import recorded_names
from pforce.records.contents import labels_in_words
from pforce.records.ledger import Ledger
from pforce.records.parts import Inputs, Request, cell_parts
from pforce.records.row import Row
from pforce.results.frames import detectors
from pforce.storage import Storage
from pforce.trial.run import run_trial
from pforce.trial.subject import cycle_of, random_classes
from pforce.trial.where import Paths, Where
from tests.support.asked import asked
from tests.training.conftest import DATA, tiny

pytestmark = [pytest.mark.timeout(600), pytest.mark.process]
HERE = "tests.test_several_detectors"
METRICS = ("frechet", "sliced")


def _detector(name: str, pool: int) -> Detector:
    return ModuleDetector(nn.Sequential(nn.AvgPool2d(pool), nn.Flatten()), name, size=32)


def coarse() -> Detector:
    """A detector of 12 features."""
    return _detector("coarse", 16)


def fine() -> Detector:
    """A detector of 48 features."""
    return _detector("fine", 8)


def measure(target: object, storage: Path, **options: object) -> dict[str, float]:
    """Metrics of a call that must succeed."""
    options = {"metrics": METRICS, **options}
    assert evaluate(asked(target, storage, out=storage / "out", **options)) == DONE
    return json.loads((storage / "out" / "evaluation.json").read_text())["metrics"]  # type: ignore[no-any-return]


def drawn(storage: Path) -> float:
    """Images that were drawn into a storage, by its records."""
    ledger = Ledger(Storage.open(storage))
    drawings = {record.digest for record in ledger.all() if record.kind == "drawing"}
    return sum(record.cost["images"] for digest in drawings for record in ledger.several(digest))


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage of measurements with one detector each."""
    return tmp_path_factory.mktemp("single")


def alone(target: object, storage: Path, names: dict[str, str], **options: object) -> dict[str, float]:
    """The distances of each detector alone."""
    found = {}
    for name, detector in names.items():
        metrics = measure(target, storage, detector=detector, **options)
        found |= {key: value for key, value in metrics.items() if f"/{name}" in key}
    return found


NAMES = {"openmoji": "openmoji", "coarse": f"{HERE}:coarse", "fine": f"{HERE}:fine"}
FURTHER = (f"{HERE}:coarse", f"{HERE}:fine")


def test_one_drawing_feeds_all_detectors(trained: Path, tmp_path: Path, single: Path) -> None:
    """Images in passes of 8 are drawn once, and a later call with more images draws only these."""
    options = {"measure": ("images",), "images": 80, "batch": 8}
    found = measure(trained, tmp_path / "all", detector="openmoji", further_detectors=FURTHER, **options)
    expected = alone(trained, single, NAMES, **options)
    assert len(expected) >= 3 * 2 * 5  # value, bounds and counts of two metrics
    assert {name: found[name] for name in expected} == expected
    assert drawn(tmp_path / "all") == 80
    again = measure(trained, tmp_path / "all", detector="openmoji", further_detectors=FURTHER, **options)
    assert {name: again[name] for name in expected} == expected
    more = {**options, "images": 96}
    measure(trained, tmp_path / "all", detector="openmoji", further_detectors=FURTHER, **more)
    assert drawn(tmp_path / "all") == 96, "the last block is filled up for each detector"


def test_a_detector_that_comes_later_gets_the_same_images(trained: Path, tmp_path: Path, single: Path) -> None:
    """The second of two blocks is drawn again, as only the first pictures are kept; the first detector's record
    stays."""
    options = {"measure": ("images",), "images": 70}
    first = measure(trained, tmp_path / "all", detector="openmoji", **options)
    assert drawn(tmp_path / "all") == 128
    both = measure(trained, tmp_path / "all", detector="openmoji", further_detectors=FURTHER[:1], **options)
    assert drawn(tmp_path / "all") == 192
    expected = alone(trained, single, {"coarse": NAMES["coarse"]}, **options)
    assert {name: both[name] for name in expected} == expected
    assert both["fd/openmoji"] == first["fd/openmoji"]


def test_workers_share_images_that_all_detectors_read(trained: Path, tmp_path: Path) -> None:
    """Two processes: the same numbers, and no image is drawn twice."""
    options = {"measure": ("images",), "images": 130, "detector": "openmoji", "further_detectors": FURTHER[:1]}
    one = measure(trained, tmp_path / "one", **options)
    two = measure(trained, tmp_path / "two", workers=2, executor="processes", **options)
    names = [name for name in one if "/openmoji" in name or "/coarse" in name]
    assert {name: two[name] for name in names} == {name: one[name] for name in names}
    assert drawn(tmp_path / "two") == drawn(tmp_path / "one") == 192, "three whole blocks"


def test_given_images_are_read_by_all_detectors(tmp_path: Path, single: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("samples", "reference"):
        np.savez(tmp_path / f"{name}.npz", rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8))
    options = {"reference": str(tmp_path / "reference.npz")}
    target = tmp_path / "samples.npz"
    found = measure(target, tmp_path / "all", detector="openmoji", further_detectors=FURTHER, **options)
    expected = alone(target, single, NAMES, **options)
    assert {name: found[name] for name in expected} == expected
    few = measure(target, tmp_path / "all", detector=f"{HERE}:fine", **options)
    assert few["fd/fine"] == found["fd/fine"], "its record is found, whatever the detector's place"
    stored = tmp_path / "stored.npz"
    measure(target, tmp_path / "all", detector="openmoji", save_reference=stored, **options)
    with pytest.raises(FieldError, match=r"further_detectors.*none with a reference of stored statistics"):
        measure(target, tmp_path / "all", detector="openmoji", reference=str(stored), further_detectors=FURTHER)


def test_a_training_measures_with_all_detectors(tmp_path: Path) -> None:
    """The row of one cell has all of them; the cell without further ones keeps its name and its records."""
    plain = with_fields(tiny(2), {"evaluation.metrics": METRICS})
    several = with_fields(plain, {"evaluation.further_detectors": FURTHER})
    assert from_dict(to_dict(several)) == several
    paths, where = Paths(DATA, Storage.open(tmp_path)), Where(torch.device("cpu"))
    row = run_trial(several, paths, where)
    assert isinstance(row, Row)
    assert {"fd/openmoji", "fd/coarse", "swd/fine"} <= set(row.metrics)
    ledger = Ledger(Storage.open(tmp_path))
    records = len(list(ledger.all()))
    alone_row = run_trial(plain, paths, where)
    assert isinstance(alone_row, Row)
    assert alone_row.metrics["fd/openmoji"] == row.metrics["fd/openmoji"]
    assert len(list(Ledger(Storage.open(tmp_path)).all())) == records, "nothing is measured again"


INPUTS = Inputs("d" * 64, 4000, 447, "openmoji", "e" * 64, "as it is")


def test_names_of_results_stay_where_there_are_no_further_detectors() -> None:
    """Oracle: digests and plain data of the request before there were further detectors."""
    experiment = tiny(2)
    one, several = (cell_parts(experiment, inputs) for inputs in (INPUTS, replace(INPUTS, further=(("x", "y", "z"),))))
    assert "further" not in one.request.plain()
    assert Request.from_plain(one.request.plain()) == one.request
    assert Request.from_plain(json.loads(json.dumps(several.request.plain()))).image_parts("w") == (
        several.request.image_parts("w")
    )
    own, both = one.request.image_parts("w"), several.request.image_parts("w")
    assert {key: part.digest for key, part in both.items() if "/" not in key} == {
        key: part.digest for key, part in own.items()
    }
    assert set(both) - set(own) == {"frechet/x"}
    assert one.digest != several.digest
    assert "fd/x" in recorded_names(experiment, several.request)


def test_wrong_lists_of_detectors_are_refused() -> None:
    for wrong, complaint in [
        (("openmoji",), "another than the others"),
        (("a:same", "b:same"), "another than the others"),
        (("opnemoji",), "did you mean openmoji"),
    ]:
        with pytest.raises(FieldError, match=complaint):
            EvaluationConfig(further_detectors=wrong)
    with pytest.raises(FieldError, match="stored statistics, which are of one detector"):
        EvaluationConfig(further_detectors=("inception=weights.pth",), reference="stats.npz")
    assert EvaluationConfig(further_detectors=("inception=a=b.pth",)).further == (("inception", "a=b.pth"),)


def test_the_first_detector_comes_first_in_tables() -> None:
    """Oracle: DESIGN's order of columns; without the experiment's own name the alphabet decides."""
    frame = pd.DataFrame({"fd/openmoji": [1.0], "fd/dinov2": [2.0]})
    assert detectors(frame) == ["dinov2", "openmoji"]
    assert detectors(frame.assign(**{"evaluation.detector": "openmoji"})) == ["openmoji", "dinov2"]


# --- classes ------------------------------------------------------------------------------------------------------


def test_class_accuracy_is_the_classifiers(trained: Path, tmp_path: Path) -> None:
    """Oracle: the data's own classifier, asked by the test on the pictures that the storage keeps."""
    labels = read_split(DATA, "validation", limit=16).labels
    options = {"metrics": ("class_accuracy",), "measure": ("images",), "images": 20, "label_images": 16}
    found = measure(trained, tmp_path, detector="openmoji", further_detectors=FURTHER[:1], **options)
    (block,) = (tmp_path / "drawings").glob("*/images/*.npz")
    with np.load(block) as arrays:
        images = torch.from_numpy(arrays["images"][:20])
    classifier = load("openmoji", fused=False)
    seen = classifier(from_uint8(images)).argmax(dim=1)
    wanted = labels[torch.arange(20) % 16]
    assert found["class_accuracy/openmoji"] == float((seen == wanted).double().mean())
    assert 0 < found["class_accuracy/openmoji"] < 1
    assert found["class_accuracy/openmoji_low"] < found["class_accuracy/openmoji"]
    notes = json.loads((tmp_path / "out" / "evaluation.json").read_text())["notes"]
    assert "class_accuracy: left out, as the detector coarse is no classifier of the data" in notes


def test_class_accuracy_of_known_sets() -> None:
    """Oracle: all right, all wrong, and a third right, with Wilson's interval around it."""
    labels = torch.arange(30) % 3
    for predicted, share in [(labels, 1.0), ((labels + 1) % 3, 0.0), (torch.zeros(30, dtype=torch.long), 1 / 3)]:
        features = FeatureSet("toy", "0", torch.rand(30, 4), labels=labels, predicted=predicted)
        metrics = distances(features, of_features(features, "toys", "0"), ["class_accuracy"]).metrics
        assert metrics["class_accuracy/toy"] == pytest.approx(share)
        low, high = (metrics[f"class_accuracy/toy_{end}"] for end in ("low", "high"))
        assert 0 <= low < share + 1e-9
        assert share - 1e-9 < high <= 1
    given = FeatureSet("toy", "0", torch.rand(30, 4), predicted=labels)
    told = distances(given, of_features(given, "toys", "0"), ["class_accuracy"])
    assert told.metrics == {}
    assert told.notes == ("class_accuracy: left out, as nobody says of which classes the images should be",)


def test_class_distances_are_of_the_classes_that_images_were_drawn_with(trained: Path, tmp_path: Path) -> None:
    """Oracle: the test's own sums over pairs of the pictures that the storage keeps and the training drawings. Only one
    class has ten of both; its numbers reach the file, its mean the table."""
    options = {"metrics": ("class_kernel",), "measure": ("images",), "images": 32, "label_images": 16}
    found = measure(trained, tmp_path, detector=f"{HERE}:fine", reference="train", **options)
    (block,) = (tmp_path / "drawings").glob("*/images/*.npz")
    with np.load(block) as arrays:
        images = torch.from_numpy(arrays["images"][:32])
    train = read_split(DATA, "train")
    drawn_with = read_split(DATA, "validation", limit=16).labels[torch.arange(32) % 16]
    a, b = (fine().read(side).features.double() for side in (images[drawn_with == 1], train.images[train.labels == 1]))
    within = [((s @ s.T / 48 + 1) ** 3) for s in (a, b)]
    same = [float((k.sum() - k.trace()) / (len(k) * (len(k) - 1))) for k in within]
    expected = sum(same) - 2 * float(((a @ b.T / 48 + 1) ** 3).mean())
    assert found["class_kd/fine"] == found["per_class/kd/fine_c1"] == pytest.approx(expected, rel=1e-5)
    assert (found["per_class/kd/fine_c1_images"], found["per_class/kd/fine_c1_reference_images"]) == (18, 39)
    assert (tmp_path / "out" / "distance_by_class.png").exists()
    assert "per_class" not in "".join(map(str, results_table(found)["metric"]))


# --- rules of classes -----------------------------------------------------------------------------------------------


def test_random_classes_are_equally_likely_and_do_not_depend_on_their_number() -> None:
    """Oracle: expected counts of independent draws, within five standard deviations; numpy's frozen generator."""
    config = EvaluationConfig(labels="random", seed=3)
    found = cycle_of(config, None, 11)
    counts = np.bincount(found.numpy(), minlength=11)
    assert np.abs(counts - len(found) / 11).max() < 5 * np.sqrt(len(found) / 11)
    assert torch.equal(found, random_classes(11, 3))
    assert not torch.equal(found, random_classes(11, 4))
    assert random_classes(11, 0)[:12].tolist() == [5, 0, 3, 3, 7, 9, 3, 5, 2, 4, 7, 6]
    together = found.view(-1, 2)
    assert float((together[:, 0] == together[:, 1]).double().mean()) == pytest.approx(1 / 11, abs=0.005)


def test_the_rule_of_classes_is_told_in_words(trained: Path, single: Path) -> None:
    """Other classes are another drawing; the record and the evaluation say which; the default says nothing."""
    values = {}
    for rule, words in [("validation", ""), ("classes", "listed in turn"), ("random", "drawn at random, each of 11")]:
        values[rule] = measure(trained, single, measure=("images",), images=16, labels=rule)["fd/openmoji"]
        found = json.loads((single / "out" / "evaluation.json").read_text())
        assert found["about"]["labels"] == rule
        told = [note for note in found["notes"] if "classes of its images" in note]
        assert [words in note for note in told] == ([True] if words else []), rule
    assert len(set(values.values())) == 3
    with pytest.raises(FieldError, match="validation, classes or random"):
        EvaluationConfig(labels="balanced")  # type: ignore[arg-type]


def test_rules_of_classes_name_drawings() -> None:
    """Oracle: the identities; the seed names the classes only where they are random."""
    rules = {
        rule: cell_parts(with_fields(tiny(2), {"evaluation.labels": rule}), INPUTS).request
        for rule in ("validation", "classes", "random")
    }
    assert len({request.drawing("w").digest for request in rules.values()}) == 3
    assert rules["random"].labels == {"random": 11, "seed": 0}
    assert labels_in_words(rules["validation"].labels) is None
