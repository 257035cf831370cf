"""The shipped classifiers. Oracles: their records, sha256 of the files, images they were not trained on."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pforce.base.errors import FieldError
from pforce.data import DataError, fashion_mnist, openmoji
from pforce.images import from_uint8, to_uint8
from pforce.metrics.detectors import DetectorError, classifier, load_detector

REPOSITORY = Path(classifier.__file__).parents[3]
both = pytest.mark.parametrize("name", ["openmoji", "fashion-mnist"])


def drawn(hexcodes: list[str], resolution: int = 32) -> torch.Tensor:
    """(B, 3, H, W) uint8."""
    pixels = np.stack([np.array(openmoji.draw(hexcode, resolution)) for hexcode in hexcodes])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def some_images() -> torch.Tensor:
    return drawn([drawing.hexcode for drawing in openmoji.catalogue()[::300]])


def test_openmoji_reaches_the_recorded_accuracy_on_emojis_it_has_not_seen() -> None:
    """Oracle: the record's accuracy and counts, measured again; and guessing the commonest class."""
    record = classifier.read_record("openmoji")
    held_out = [d for d in openmoji.catalogue() if openmoji.share_of(d.base) < record.training["held_out_share"]]
    labels = torch.tensor([drawing.label for drawing in held_out])
    with torch.no_grad():
        predicted = classifier.load("openmoji")(from_uint8(drawn([drawing.hexcode for drawing in held_out]))).argmax(1)
    assert len(held_out) == record.held_out_images
    assert record.held_out_majority_share == pytest.approx(int(labels.bincount().max()) / len(labels))
    # Two images: another machine's convolutions may round a near tie the other way.
    accuracy = (predicted == labels).double().mean().item()
    assert accuracy == pytest.approx(record.held_out_accuracy, abs=2.5 / len(labels))
    assert record.held_out_accuracy > record.held_out_majority_share + 0.1


def test_fashion_mnist_reaches_the_recorded_accuracy_on_the_test_images() -> None:
    """Oracle: the record's accuracy on all 10,000, against that on 3,000 padded by hand: within three standard
    errors of a sample of that size, drawn without putting back."""
    try:
        images = fashion_mnist.read_images(fashion_mnist.find_source(), "t10k")
    except DataError as error:
        pytest.skip(f"the published files are needed: {error}")
    record = classifier.read_record("fashion-mnist")
    assert (record.held_out_images, record.training_images) == (len(images.labels), 60_000) == (10_000, 60_000)
    assert (record.classes, record.held_out_majority_share) == (10, 0.1)
    chosen = np.random.default_rng(0).permutation(10_000)[:3000]
    padded = np.zeros((3000, 3, 32, 32), dtype=np.uint8)
    padded[:, :, 2:30, 2:30] = images.pixels[chosen, None]
    detector = classifier.load("fashion-mnist")
    with torch.no_grad():
        predicted = [detector(from_uint8(part)).argmax(1) for part in torch.from_numpy(padded).split(500)]
    accuracy = (torch.cat(predicted).numpy() == images.labels[chosen]).mean()
    error = np.sqrt(record.held_out_accuracy * (1 - record.held_out_accuracy) / 3000 * 0.7)
    assert accuracy == pytest.approx(record.held_out_accuracy, abs=3 * error)
    assert record.held_out_accuracy > 0.9


@both
def test_reading(name: str, some_images: torch.Tensor) -> None:
    """Oracle: shape and type of the contract; the features of the same bytes as floats, which the classifier reads;
    the file's sha256."""
    detector, model = load_detector(name), classifier.load(name)
    reading = detector.read(some_images)
    assert (reading.features.shape, reading.features.dtype) == ((len(some_images), 64), torch.float32)
    assert (detector.name, detector.feature_size, detector.minimum_size) == (name, 64, 32)
    assert detector.preprocessing == "averaged down to 32², scaled to [−1, 1]"
    assert reading.logits is None
    assert reading.spatial is None
    assert torch.equal(reading.features, model.features(from_uint8(some_images)))
    torch.testing.assert_close(model.classifier(reading.features), model(from_uint8(some_images)))
    content = (classifier.FOLDER / f"{name}.safetensors").read_bytes()
    assert detector.sha256 == hashlib.sha256(content).hexdigest()
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_detectors_differ(some_images: torch.Tensor) -> None:
    """Oracle: one's features are not the other's."""
    one, other = (load_detector(name).read(some_images).features for name in classifier.NAMES)
    assert (one - other).abs().mean() > 0.01


def test_openmoji_is_the_one_distances_were_measured_with() -> None:
    """Oracle: the sha256 of the weights behind the recorded tables."""
    expected = "263374d7930485a8a3b8eca47ae4a5e96d0f4ab210683579f75d48604497b9e1"
    assert load_detector("openmoji").sha256 == expected


@both
def test_an_images_features_do_not_depend_on_its_batch(name: str, some_images: torch.Tensor) -> None:
    """Oracle: each image alone."""
    detector = load_detector(name)
    alone = torch.cat([detector.read(image[None]).features for image in some_images])
    torch.testing.assert_close(detector.read(some_images).features, alone, rtol=1e-5, atol=1e-5)


@both
def test_larger_images_are_averaged(name: str, some_images: torch.Tensor) -> None:
    """Oracle: pixels repeated three times, averaged by hand; and a mean over blocks of a random image."""
    detector = classifier.load(name)
    larger = some_images.repeat_interleave(3, dim=2).repeat_interleave(3, dim=3)
    expected = detector.read(some_images).features
    torch.testing.assert_close(detector.read(larger).features, expected, rtol=1e-4, atol=1e-4)
    random = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(detector.features(random), detector.features(F.avg_pool2d(random, 2)))


@both
def test_refuses_other_images(name: str) -> None:
    """Oracle: shapes that are not (B, 3, H, H) from 32², and floats, each named with what is wanted."""
    detector = classifier.load(name)
    for shape in ((1, 3, 16, 16), (1, 1, 32, 32), (1, 3, 32, 64), (3, 32, 32)):
        with pytest.raises(ValueError, match="must be"):
            detector.features(torch.zeros(shape))
        with pytest.raises(ValueError, match="must be"):
            detector.read(torch.zeros(shape, dtype=torch.uint8))
    floats = torch.zeros(1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"torch\.float32: must be torch\.uint8.*pforce\.images\.to_uint8"):
        detector.read(floats)
    assert detector.read(to_uint8(floats)).features.shape == (1, 64)


@both
def test_refuses_changed_weights(name: str, tmp_path: Path) -> None:
    """Oracle: one byte changed, no file at all, and a record that is none."""
    shutil.copy(classifier.FOLDER / f"{name}.json", tmp_path)
    with pytest.raises(DetectorError, match=r"safetensors cannot be read"):
        classifier.load(name, tmp_path)
    content = bytearray((classifier.FOLDER / f"{name}.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / f"{name}.safetensors").write_bytes(content)
    with pytest.raises(DetectorError, match="sha256"):
        classifier.load(name, tmp_path)
    (tmp_path / f"{name}.json").write_text(json.dumps({"weights_sha256": "x"}))
    with pytest.raises(DetectorError, match=rf"{name}\.json cannot be read"):
        classifier.load(name, tmp_path)


def test_refuses_an_unknown_detector() -> None:
    """Oracle: the error names what there is."""
    with pytest.raises(FieldError, match="openmoji, fashion-mnist"):
        load_detector("resnet")


@pytest.mark.process
def test_needs_no_data_packages() -> None:
    """Oracle: the modules a fresh process has loaded after importing the detectors."""
    code = "import sys, pforce.metrics.detectors.classifier; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    loaded = set(modules.stdout.split())
    assert not loaded & {"webdataset", "ray", "mlflow", "pydantic", "pforce.data"}


def test_the_fused_network_is_the_trained_one():
    """Oracle: the layers that were trained, on images of three sizes."""
    trained, fused = (classifier.load("openmoji", fused=choice) for choice in (False, True))
    assert sum(isinstance(layer, torch.nn.BatchNorm2d) for layer in trained.modules()) == 6
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in fused.modules())
    for size in (32, 50, 64):
        images = torch.randint(0, 256, (5, 3, size, size), dtype=torch.uint8)
        torch.testing.assert_close(fused.read(images).features, trained.read(images).features, rtol=1e-4, atol=1e-5)
