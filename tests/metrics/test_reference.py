"""Reference statistics: ADM's files, ours, and the cache. Oracles: numpy, and the detector called by the test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pforce.metrics.detectors import DetectorError, ModuleDetector, load_detector
from pforce.metrics.features import read_features, read_padded
from pforce.metrics.frechet import moments
from pforce.metrics.image_sets import ImageTensor
from pforce.metrics.reference import StatisticsError, cached_reference, load_statistics, save_statistics


def images(count: int = 9, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


class Counted(ModuleDetector):
    """A linear detector that counts the images it has read."""

    def __init__(self, seed: int = 0) -> None:
        self.read_images = 0
        module = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 5))
        for parameter in module.parameters():
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(seed))
        super().__init__(module, "linear", size=32)
        self.read_images = 0

    def read(self, batch: Tensor):  # type: ignore[no-untyped-def]
        self.read_images += len(batch)
        return super().read(batch)


def test_a_stored_file_is_read_back(tmp_path: Path) -> None:
    detector = Counted()
    made = cached_reference(ImageTensor(images()), detector, None, source="nine images")
    save_statistics(tmp_path / "stats.npz", made, images().permute(0, 2, 3, 1).numpy())
    found = load_statistics(tmp_path / "stats.npz", detector)
    np.testing.assert_array_equal(found.moments.mean, made.moments.mean)
    np.testing.assert_array_equal(found.moments.covariance, made.moments.covariance)
    assert (found.moments.n, found.source, found.detector) == (9, "nine images", "linear")
    assert made.features is not None
    assert found.features is not None
    torch.testing.assert_close(found.features, made.features)


def test_an_adm_file_that_says_nothing_of_itself(tmp_path: Path) -> None:
    """As ADM publishes them: mu, sigma, mu_s, sigma_s and images; features come from the images."""

    class Named(Counted):
        def __init__(self) -> None:
            super().__init__()
            self.name = "inception"

    detector, rng = Named(), np.random.default_rng(0)
    stored = images(6).permute(0, 2, 3, 1).numpy()
    spatial = rng.normal(size=(20, 7))
    np.savez(
        tmp_path / "adm.npz", arr_0=stored, mu=np.arange(5.0), sigma=np.eye(5), mu_s=spatial.mean(0),
        sigma_s=np.cov(spatial.T),
    )  # fmt: skip
    found = load_statistics(tmp_path / "adm.npz", detector)
    assert found.moments.n is None
    assert found.spatial is not None
    np.testing.assert_array_equal(found.spatial.covariance, np.cov(spatial.T))
    assert found.features is not None
    torch.testing.assert_close(found.features, detector.read(images(6)).features)
    assert load_statistics(tmp_path / "adm.npz", detector, images=False).features is None
    with pytest.raises(StatisticsError, match=r"of detector inception .* not of linear"):
        load_statistics(tmp_path / "adm.npz", Counted())


def test_statistics_of_another_detector_are_refused(tmp_path: Path) -> None:
    """Another name, other weights under one name, another size; and files that are none."""
    made = cached_reference(ImageTensor(images()), Counted(), None, source="nine")
    save_statistics(tmp_path / "stats.npz", made)
    with pytest.raises(StatisticsError, match=r"of detector linear .* not of openmoji"):
        load_statistics(tmp_path / "stats.npz", load_detector("openmoji"))
    with pytest.raises(StatisticsError, match="not of linear"):
        load_statistics(tmp_path / "stats.npz", Counted(seed=1))
    np.savez(tmp_path / "other.npz", mean=np.zeros(5))
    with pytest.raises(StatisticsError, match="has no `mu`"):
        load_statistics(tmp_path / "other.npz", Counted())
    with pytest.raises(StatisticsError, match=r"evaluation\.reference = .*absent\.npz: does not exist; give"):
        load_statistics(tmp_path / "absent.npz", Counted())
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(StatisticsError, match="cannot be read"):
        load_statistics(tmp_path / "text.npz", Counted())


def test_the_cache_is_named_by_images_and_detector(tmp_path: Path) -> None:
    """Oracle: the images that the detector has read."""
    detector = Counted()
    first = cached_reference(ImageTensor(images()), detector, tmp_path, source="a")
    read = detector.read_images
    again = cached_reference(ImageTensor(images()), detector, tmp_path, source="a")
    assert detector.read_images == read
    np.testing.assert_array_equal(first.moments.covariance, again.moments.covariance)
    cached_reference(ImageTensor(images(seed=1)), detector, tmp_path, source="b")
    assert detector.read_images > read
    other = Counted(seed=1)
    assert not np.allclose(
        cached_reference(ImageTensor(images()), other, tmp_path, source="a").moments.mean, first.moments.mean
    )
    assert other.read_images > 0
    for path in tmp_path.glob("*.npz"):  # damaged: made again
        path.write_bytes(path.read_bytes()[:-200])
    repaired = cached_reference(ImageTensor(images()), detector, tmp_path, source="a")
    np.testing.assert_array_equal(first.moments.covariance, repaired.moments.covariance)


def test_features_do_not_depend_on_how_many_images_there_are() -> None:
    """Bit for bit: batches have one size, the last one is padded."""
    detector = load_detector("openmoji")
    all_images = images(70)
    whole = read_features(detector, all_images.split(16), size=16).features
    few = read_features(detector, all_images[:37].split(16), size=16).features
    assert torch.equal(whole[:37], few)
    alone = read_padded(detector, all_images[32:37], 16).features
    assert torch.equal(whole[32:37], alone)


def test_any_torch_module_is_a_detector() -> None:
    """Oracle: resizing and normalising done by hand at the detector's own size."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    detector = ModuleDetector(module, "mine", size=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0))
    assert (detector.feature_size, detector.name) == (4, "mine")
    scaled = (images().double() / 255 - 0.5) / torch.tensor([0.25, 0.5, 1.0]).view(3, 1, 1)
    torch.testing.assert_close(detector.read(images()).features, module(scaled.float()), rtol=1e-4, atol=1e-4)
    same = ModuleDetector(module, "mine", size=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0))
    assert same.sha256 == detector.sha256
    assert ModuleDetector(module, "mine", size=32).sha256 != detector.sha256  # another normalisation
    pooled = [
        ModuleDetector(nn.Sequential(layer, nn.Flatten()), "p", size=32) for layer in (nn.AvgPool2d(8), nn.MaxPool2d(8))
    ]
    assert pooled[0].sha256 != pooled[1].sha256  # no weights, and not the same
    with torch.no_grad():
        module[1].weight[0, 0] += 1  # type: ignore[index,union-attr]
    assert ModuleDetector(module, "mine", size=32).sha256 != detector.sha256
    with pytest.raises(ValueError, match="uint8"):
        detector.read(images().float())
    larger = torch.rand(2, 3, 64, 64).mul(255).to(torch.uint8)
    assert detector.read(larger).features.shape == (2, 4)


def linear() -> ModuleDetector:
    """What --evaluation.detector tests.metrics.test_reference:linear makes."""
    return Counted()


def misnamed() -> ModuleDetector:
    """Its name is not the function's."""
    return Counted()


def test_a_detector_by_its_functions_path() -> None:
    assert load_detector("tests.metrics.test_reference:linear").name == "linear"
    with pytest.raises(DetectorError, match="give it its function's name"):
        load_detector("tests.metrics.test_reference:misnamed")
    with pytest.raises(DetectorError, match="cannot be imported"):
        load_detector("tests.metrics.test_reference:absent")
    with pytest.raises(DetectorError, match="ModuleDetector"):
        load_detector("builtins:dict")
    with pytest.raises(ValueError, match="brings its own"):
        load_detector("openmoji", "some/file")


@pytest.mark.timeout(300)
def test_dinov2_from_a_weights_file(tmp_path: Path) -> None:
    """Random weights of timm's model, at its own resolution and at the detector's. Oracle: timm's forward pass."""
    timm = pytest.importorskip("timm", reason="timm (extra dino) is not installed")
    import safetensors.torch

    from pforce.metrics.detectors.module import load_dinov2

    name = "vit_small_patch14_dinov2"
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, num_classes=0, img_size=224).eval()
    safetensors.torch.save_file(network.state_dict(), tmp_path / "dino.safetensors")
    detector = load_dinov2(tmp_path / "dino.safetensors", model=name)
    batch = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.inference_mode():
        expected = network((batch / 255 - mean) / std)
        torch.testing.assert_close(detector.read(batch).features, expected, rtol=1e-3, atol=1e-3)
    larger = timm.create_model(name, pretrained=False, num_classes=0)  # 518², as it was published
    torch.save(larger.state_dict(), tmp_path / "dino.pth")
    assert load_dinov2(tmp_path / "dino.pth", model=name).feature_size == 384
    with pytest.raises(DetectorError, match=r"expected 0123"):
        load_dinov2(tmp_path / "dino.pth", "0123", model=name)
    with pytest.raises(DetectorError, match="not timm's"):
        load_dinov2(tmp_path / "dino.pth", model="vit_base_patch14_dinov2")
    with pytest.raises(DetectorError, match=r"--evaluation\.detector-weights"):
        load_detector("dinov2")


def test_moments_of_a_reference_are_numpys() -> None:
    detector = Counted()
    made = cached_reference(ImageTensor(images(40)), detector, None, source="forty")
    features = detector.read(images(40)).features.double().numpy()
    np.testing.assert_allclose(made.moments.covariance, np.cov(features.T), rtol=1e-6)
    np.testing.assert_allclose(made.moments.mean, moments(features).mean, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sigma": -np.eye(5)}, "has the eigenvalue -1"),
        ({"sigma": np.triu(np.ones((5, 5)))}, "not symmetric"),
        ({"sigma": np.full((5, 5), np.nan)}, "NaN or infinity"),
        ({"mu": np.full(5, np.inf)}, "NaN or infinity"),
        ({"sigma": np.eye(4)}, "has the shape"),
        ({"sigma": np.eye(5, dtype=complex)}, "not numbers"),
        ({"n": 0}, "n = 0: must be the number of images"),
        ({"n": -3}, "n = -3"),
        ({"n": 2.5}, r"n = 2\.5"),
        ({"n": np.array([9])}, r"n = \[9\]"),
        ({"features": np.zeros((3, 4))}, "features has the shape"),
        ({"detector": np.array("x\x1b[2J")}, r"of detector x\\x1b"),
    ],
)
def test_statistics_that_no_images_have_are_refused(tmp_path: Path, changes: dict[str, object], complaint: str) -> None:
    """With a covariance of −Σ a distance was 0.0000. Oracle: the refusal, and the same file without the change."""
    features = np.random.default_rng(0).normal(size=(9, 5))
    held = {"mu": features.mean(0), "sigma": np.cov(features.T), "n": 9, "detector": "linear"}
    np.savez(tmp_path / "whole.npz", **held)  # type: ignore[arg-type]
    assert load_statistics(tmp_path / "whole.npz", Counted()).moments.n == 9
    np.savez(tmp_path / "harmed.npz", **held | changes)  # type: ignore[arg-type]
    with pytest.raises(StatisticsError, match=complaint):
        load_statistics(tmp_path / "harmed.npz", Counted())


def test_a_covariance_of_fewer_images_than_features_is_one(tmp_path: Path) -> None:
    """Its smallest eigenvalues are rounded to below zero, more so in float32."""
    features = np.random.default_rng(0).normal(size=(3, 5)) * 1000
    np.savez(tmp_path / "few.npz", mu=features.mean(0), sigma=np.cov(features.T).astype("f4"), detector="linear")
    assert load_statistics(tmp_path / "few.npz", Counted()).moments.n is None
