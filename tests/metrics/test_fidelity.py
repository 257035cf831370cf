"""Our image metrics against torch-fidelity's, on the same images and Inception weights, and against closed forms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pforce.base.files import sha256_of
from pforce.metrics.detectors import DetectorError, load_detector
from pforce.metrics.detectors.inception import spatial_features
from pforce.metrics.distances import distances, few_images
from pforce.metrics.features import FeatureSet, read_features
from pforce.metrics.fidelity import inception_score, kernel_distance, precision_recall
from pforce.metrics.frechet import FeatureError
from pforce.metrics.reference import of_features

IMAGES = 24


class _Images(torch.utils.data.Dataset[Tensor]):
    """What torch-fidelity takes."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Random Inception weights, in torch-fidelity's file format."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    folder = tmp_path_factory.mktemp("inception")
    torch.save({}, folder / "none.pth")

    class Untrained(FeatureExtractorInceptionV3):
        def load_state_dict(self, *arguments: object, **options: object) -> None:
            """Keeps the initial weights."""

    torch.manual_seed(0)
    network = Untrained("untrained", ["2048"], feature_extractor_weights_path=str(folder / "none.pth"))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):  # keeps activations from dying out over forty layers
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    torch.save(network.state_dict(), folder / "weights.pth")
    yield folder / "weights.pth"
    (folder / "weights.pth").unlink()


def pictures(seed: int, shift: int) -> Tensor:
    """Smooth random images (24, 3, 16, 16) uint8: two sets of them overlap."""
    source = torch.Generator().manual_seed(seed)
    coarse = torch.rand(IMAGES, 3, 4, 4, generator=source)
    return (nn.functional.interpolate(coarse, size=16, mode="bilinear") * 200 + shift).to(torch.uint8)


@pytest.fixture(scope="module")
def both(weights: Path) -> tuple[Tensor, Tensor, FeatureSet, FeatureSet]:
    """Generated and reference images, and their Inception features."""
    detector = load_detector("inception", weights, sha256_of(weights))
    a, b = pictures(1, 20), pictures(2, 30)
    return a, b, *(read_features(detector, images.split(12), size=12) for images in (a, b))


@pytest.mark.process
@pytest.mark.timeout(600)
def test_the_numbers_are_torch_fidelitys(weights: Path, both: tuple[Tensor, Tensor, FeatureSet, FeatureSet]) -> None:
    """Oracle: torch-fidelity's own metrics, from images to numbers, 1e-6 relative."""
    import torch_fidelity

    a, b, fa, fb = both
    expected = torch_fidelity.calculate_metrics(
        input1=_Images(a), input2=_Images(b), cuda=False, cache=False, verbose=False, batch_size=12,
        fid=True, kid=True, isc=True, prc=True, kid_subset_size=20, isc_splits=10,
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(weights),
    )  # fmt: skip
    from pforce.metrics import frechet_distance

    assert frechet_distance(fa.features, fb.features) == pytest.approx(expected["frechet_inception_distance"], rel=1e-6)
    kid = kernel_distance(fa.features, fb.features, subset_size=20)
    assert kid.value == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-6)
    assert fa.logits is not None
    assert inception_score(fa.logits).value == pytest.approx(expected["inception_score_mean"], rel=1e-6)
    near = precision_recall(fa.features, fb.features)
    assert near.precision.value == pytest.approx(expected["precision"], rel=1e-6)
    assert near.recall.value == pytest.approx(expected["recall"], rel=1e-6)
    assert 0 < near.precision.value < 1 or 0 < near.recall.value < 1, "the test's images must overlap in part"


def test_names_and_counts_of_all_metrics(both: tuple[Tensor, Tensor, FeatureSet, FeatureSet]) -> None:
    """Oracle: DESIGN's names. Every distance has its interval and both numbers of images."""
    _, _, fa, fb = both
    reference = of_features(fb, "these", "these")
    found = distances(fa, reference, ("frechet", "kernel", "precision_recall", "inception_score"))
    for name in ("fid", "sfid", "kid", "precision", "recall", "is"):
        assert found.metrics[f"{name}_low"] <= found.metrics[name] <= found.metrics[f"{name}_high"], name
        assert found.metrics[f"{name}_images"] == IMAGES
        assert name == "is" or found.metrics[f"{name}_reference_images"] == IMAGES
    assert found.metrics["fid_features"] == 2048
    assert any("fewer than 10 × 2,048" in note for note in few_images(found.metrics))
    assert few_images({"fid": 1.0, "fid_images": 20_480.0, "fid_features": 2048.0}) == []
    assert not any("/" in name for name in found.metrics)


def test_spatial_features_are_the_first_seven_channels_channel_fastest() -> None:
    """Oracle: an activation that says where it is, listed by loops in NHWC order."""
    height, width, channels = 17, 17, 768
    c, y, x = torch.meshgrid(torch.arange(channels), torch.arange(height), torch.arange(width), indexing="ij")
    activation = (c * 10_000 + y * 100 + x).float()[None]
    expected = [c * 10_000 + y * 100 + x for y in range(height) for x in range(width) for c in range(7)]
    found = spatial_features(activation)
    assert found.shape == (1, 2023)
    assert found[0].tolist() == expected


def test_sfid_reads_mixed_6d(weights: Path, both: tuple[Tensor, Tensor, FeatureSet, FeatureSet]) -> None:
    """Oracle: the layer's output by a hook of the test's own, on torch-fidelity's network; and its first branch,
    TensorFlow's `mixed_6/conv`, which ADM's evaluator reads."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    a, _, fa, _ = both
    network = FeatureExtractorInceptionV3("own", ["2048"], feature_extractor_weights_path=str(weights))
    outputs: list[Tensor] = []
    network.Mixed_6d.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    branch: list[Tensor] = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: branch.append(output))
    network(a[:2])
    assert outputs[0].shape == (2, 768, 17, 17)
    assert torch.equal(outputs[0][:, :192], branch[0])
    assert float(branch[0].min()) == 0, "after its ReLU"
    expected = outputs[0][:, :7].permute(0, 2, 3, 1).reshape(2, -1)
    assert fa.spatial is not None
    torch.testing.assert_close(fa.spatial[:2], expected, rtol=1e-4, atol=1e-5)


def test_the_weights_file_is_checked(weights: Path, tmp_path: Path) -> None:
    """A hash that is not the official one's is refused unless it is stated; so are other files, and none."""
    with pytest.raises(DetectorError, match=r"expected 6726825d.*--detector-sha256"):
        load_detector("inception", weights)
    with pytest.raises(DetectorError, match="expected 01234567"):
        load_detector("inception", weights, "01234567")
    with pytest.raises(ValueError, match="at least 8 digits"):
        load_detector("inception", weights, "6")
    with pytest.raises(DetectorError, match=r"--evaluation\.detector-weights"):
        load_detector("inception")
    with pytest.raises(DetectorError, match="cannot be read"):
        load_detector("inception", tmp_path / "absent.pth")
    torch.save({"conv": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(DetectorError, match="not Inception's"):
        load_detector("inception", tmp_path / "other.pth", sha256_of(tmp_path / "other.pth"))


class _Ran:
    """Pickled as a call that leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (self.path,))  # type: ignore[return-value]


def test_a_weights_file_runs_no_code(tmp_path: Path) -> None:
    """Oracle: the file that the pickled call would leave."""
    torch.save({"conv": _Ran(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(DetectorError, match="not Inception's"):
        load_detector("inception", tmp_path / "evil.pth", sha256_of(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


# --- closed forms -----------------------------------------------------------------------------------------------


def test_inception_score_of_uniform_and_of_one_hot_logits() -> None:
    """Oracle: no information is 1; every class once in each split, without doubt, is the number of classes."""
    assert inception_score(torch.zeros(40, 5)).value == pytest.approx(1, abs=1e-12)
    one_hot = torch.eye(4).repeat_interleave(10, dim=0) * 1000
    assert inception_score(one_hot, splits=1).value == pytest.approx(4, abs=1e-9)


def _cloud(n: int, seed: int, centre: float = 0.0) -> Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)) + centre


def test_precision_and_recall_of_identical_disjoint_and_half_overlapping_sets() -> None:
    """Oracle: the definition. Identical 1 and 1; far apart 0 and 0; half of each shared: 0.5 and 0.5."""
    a, far = _cloud(60, 0), _cloud(60, 1, centre=1000)
    same = precision_recall(a, a)
    assert (same.precision.value, same.recall.value) == (1, 1)
    apart = precision_recall(a, far)
    assert (apart.precision.value, apart.recall.value) == (0, 0)
    half = precision_recall(torch.cat([a[:30], far[:30]]), torch.cat([a[:30], far[30:] - 2000]))
    assert half.precision.value == pytest.approx(0.5)
    assert half.recall.value == pytest.approx(0.5)
    assert half.precision.low < 0.5 < half.precision.high
    with pytest.raises(ValueError, match="k = 3"):
        precision_recall(a[:3], a)


def test_kernel_distance_of_all_images_against_two_loops() -> None:
    """Oracle: the unbiased estimator summed pair by pair; subsets of all images are the whole sets."""
    a, b = _cloud(9, 3).double(), _cloud(9, 4, centre=0.5).double()

    def kernel(p: Tensor, q: Tensor) -> float:
        return float((p @ q / 6 + 1) ** 3)

    n = 9
    same = sum(kernel(x[i], x[j]) for x in (a, b) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    across = sum(kernel(a[i], b[j]) for i in range(n) for j in range(n)) / n**2
    assert kernel_distance(a, b).value == pytest.approx(same - 2 * across, rel=1e-9)


def test_the_kernel_distances_interval_covers_it() -> None:
    """Oracle: the distance of very many images lies in about 95 % of intervals; 85 % of 60 leaves room for chance."""
    reference = _cloud(400, 99)
    truth = kernel_distance(_cloud(4000, 98, centre=0.3), reference, subset_size=400, interval=False).value
    covered = 0
    for seed in range(60):
        found = kernel_distance(_cloud(200, seed, centre=0.3), reference, subset_size=200)
        covered += found.low <= truth <= found.high
    assert covered >= 51


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(1, 3), torch.zeros(5, 3), "N ≥ 2"),
        (torch.full((5, 3), float("nan")), torch.zeros(5, 3), "NaN"),
        (torch.zeros(5, 3), torch.zeros(5, 4), "different detectors"),
    ],
)
def test_bad_features_are_refused(a: Tensor, b: Tensor, message: str) -> None:
    for metric in (kernel_distance, precision_recall):
        with pytest.raises(ValueError, match=message):
            metric(a, b)


@pytest.mark.parametrize(("metric", "size"), [("kernel", 1e19), ("frechet", 1e160)])
def test_features_that_overflow_are_an_error_not_a_number(metric: str, size: float) -> None:
    """The cube of 1e19² is beyond float32 and float64 sums of 1e160² are, too."""
    values = torch.randn(60, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * size
    features = FeatureSet("toy", "0", values if metric == "frechet" else values.float())
    with pytest.raises(FeatureError, match="not finite: they are too large"):
        distances(features, of_features(features, "toys", "0"), [metric])


def test_a_collapsed_model_is_measured_and_told() -> None:
    """Constant features: the distance is that of a Gaussian without spread; the note says what it means."""
    real = _cloud(200, 5)
    constant = FeatureSet("toy", "0", torch.ones(30, 6))
    found = distances(constant, of_features(FeatureSet("toy", "0", real), "toys", "0"), ("frechet", "kernel"))
    values = real.double().numpy()
    expected = np.square(1 - values.mean(0)).sum() + np.trace(np.cov(values, rowvar=False))
    assert found.metrics["fd/toy"] == pytest.approx(expected, rel=1e-6)
    assert any("look the same" in note for note in found.notes)


def test_a_reference_of_another_detector_is_refused() -> None:
    generated, other = FeatureSet("toy", "0", _cloud(9, 0)), FeatureSet("toy", "1", _cloud(9, 0))
    with pytest.raises(ValueError, match="cannot be compared"):
        distances(generated, of_features(other, "others", "0"))
