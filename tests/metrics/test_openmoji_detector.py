"""The shipped detector. Oracles: its record, sha256 of the file, the drawings it was not trained on."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pforce.data import openmoji as data
from pforce.images import from_uint8
from pforce.metrics.detectors import DetectorError, load_detector, openmoji
from pforce.validation import FieldError

REPOSITORY = Path(openmoji.__file__).parents[3]


def drawn(hexcodes: list[str], resolution: int = 32) -> torch.Tensor:
    """(B, 3, H, W) in [−1, 1]."""
    pixels = np.stack([np.array(data.draw(hexcode, resolution)) for hexcode in hexcodes])
    return from_uint8(torch.from_numpy(pixels).permute(0, 3, 1, 2))


@pytest.fixture(scope="module")
def some_images() -> torch.Tensor:
    return drawn([drawing.hexcode for drawing in data.catalogue()[::300]])


def test_reaches_the_recorded_accuracy_on_emojis_it_has_not_seen() -> None:
    """Oracle: the record's accuracy and counts, measured again; and guessing the commonest class."""
    record = openmoji.read_record()
    held_out = [d for d in data.catalogue() if data.share_of(d.base) < record.training["held_out_share"]]
    labels = torch.tensor([drawing.label for drawing in held_out])
    with torch.no_grad():
        predicted = openmoji.load()(drawn([drawing.hexcode for drawing in held_out])).argmax(1)
    assert len(held_out) == record.held_out_images
    assert record.held_out_majority_share == pytest.approx(int(labels.bincount().max()) / len(labels))
    # Two images: another machine's convolutions may round a near tie the other way.
    accuracy = (predicted == labels).double().mean().item()
    assert accuracy == pytest.approx(record.held_out_accuracy, abs=2.5 / len(labels))
    assert record.held_out_accuracy > record.held_out_majority_share + 0.1


def test_features(some_images: torch.Tensor) -> None:
    """Oracle: shape and type of the contract; features are what the classifier reads; the file's sha256."""
    detector = load_detector("openmoji")
    features = detector.features(some_images)
    assert (features.shape, features.dtype) == ((len(some_images), detector.feature_size), torch.float32)
    model = openmoji.load()
    torch.testing.assert_close(model.classifier(features), model(some_images))
    assert detector.sha256 == hashlib.sha256(openmoji.WEIGHTS.read_bytes()).hexdigest()
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_an_images_features_do_not_depend_on_its_batch(some_images: torch.Tensor) -> None:
    """Oracle: each image alone."""
    detector = load_detector("openmoji")
    alone = torch.cat([detector.features(image[None]) for image in some_images])
    torch.testing.assert_close(detector.features(some_images), alone, rtol=1e-5, atol=1e-5)


def test_larger_images_are_averaged(some_images: torch.Tensor) -> None:
    """Oracle: pixels repeated three times, averaged by hand; and a mean over blocks of a random image."""
    detector = load_detector("openmoji")
    larger = some_images.repeat_interleave(3, dim=2).repeat_interleave(3, dim=3)
    torch.testing.assert_close(detector.features(larger), detector.features(some_images), rtol=1e-4, atol=1e-4)
    random = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(detector.features(random), detector.features(F.avg_pool2d(random, 2)))
    for shape in ((1, 3, 16, 16), (1, 1, 32, 32), (1, 3, 32, 64)):
        with pytest.raises(ValueError, match="must be"):
            detector.features(torch.zeros(shape))


def test_refuses_changed_weights(tmp_path: Path) -> None:
    """Oracle: one byte changed, and no file at all."""
    weights = tmp_path / "openmoji.safetensors"
    content = bytearray(openmoji.WEIGHTS.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(DetectorError, match="sha256"):
        openmoji.load(weights)
    with pytest.raises(DetectorError, match="cannot be read"):
        openmoji.load(tmp_path / "none")
    (tmp_path / "record.json").write_text(json.dumps({"weights_sha256": "x"}))
    with pytest.raises(DetectorError, match=r"record\.json"):
        openmoji.load(record=tmp_path / "record.json")


def test_refuses_an_unknown_detector() -> None:
    """Oracle: the error names what there is."""
    with pytest.raises(FieldError, match="openmoji"):
        load_detector("resnet")


def test_needs_no_data_packages() -> None:
    """Oracle: the modules a fresh process has loaded after importing the detector."""
    code = "import sys, pforce.metrics.detectors.openmoji; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    loaded = set(modules.stdout.split())
    assert not loaded & {"webdataset", "ray", "mlflow", "pydantic", "pforce.data"}
