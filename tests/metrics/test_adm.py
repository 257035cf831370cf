"""The rules of ADM's evaluator. Oracles: closed forms, and the published definitions written out here in numpy, on
features and on npz files with ADM's keys.

ADM's own weights are on no package registry, so its published numbers are not compared; the network is held by
`test_fidelity.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import linalg
from torch import Tensor, nn

from pforce.base.console import DONE
from pforce.base.errors import ConfigError
from pforce.commands.evaluate import evaluate
from pforce.metrics import adm, fidelity
from pforce.metrics.detectors import Detector, ModuleDetector
from pforce.metrics.detectors.base import Reading
from pforce.metrics.detectors.inception import InceptionDetector
from pforce.metrics.distances import distances
from pforce.metrics.features import FeatureSet
from pforce.metrics.image_sets import ImageSetError
from pforce.metrics.reference import StatisticsError, load_statistics, of_features
from tests.support.asked import asked

Array = NDArray[np.float64]
ADM = ("frechet", "inception_score_adm", "precision_recall_adm")


# --- the published definitions, in numpy --------------------------------------------------------------------------


def score_of(logits: Array, size: int = 5000) -> float:
    """Mean over consecutive parts of exp(mean KL(p(y|x) ‖ p(y)))."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    scores = []
    for first in range(0, len(p), size):
        part = p[first : first + size]
        scores.append(np.exp((part * (np.log(part) - np.log(part.mean(axis=0)))).sum(axis=1).mean()))
    return float(np.mean(scores))


def half_distance(u: Array, v: Array) -> float:
    """|u|² − 2·u·v + |v|² in half precision; infinite where it overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        u16, v16 = u.astype(np.float16), v.astype(np.float16)
        of_u, of_v = (np.float16(np.square(x).astype(np.float32).sum()) for x in (u16, v16))
        product = np.float16((u16.astype(np.float32) * v16.astype(np.float32)).sum())
        found = np.float16(np.float16(of_u - np.float16(2 * product)) + of_v)
    return max(float(found), 0.0) if np.isfinite(found) else np.inf


def exact_distance(u: Array, v: Array) -> float:
    return float(np.square(u - v).sum())


def near_of(generated: Array, reference: Array, of=half_distance) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """Precision and recall by loops: within the distance of the third neighbour among the others."""
    radii = [
        [sorted(of(u, v) for j, v in enumerate(side) if j != i)[2] for i, u in enumerate(side)]
        for side in (generated, reference)
    ]
    precision = np.mean([any(of(u, v) <= r for v, r in zip(reference, radii[1], strict=True)) for u in generated])
    recall = np.mean([any(of(u, v) <= r for u, r in zip(generated, radii[0], strict=True)) for v in reference])
    return float(precision), float(recall)


def frechet_of(mean_a: Array, sigma_a: Array, mean_b: Array, sigma_b: Array) -> float:
    """|μa − μb|² + tr(Σa + Σb − 2·(Σa·Σb)^½)."""
    root = linalg.sqrtm(sigma_a @ sigma_b)
    return float(np.square(mean_a - mean_b).sum() + np.trace(sigma_a + sigma_b) - 2 * np.trace(np.real(root)))


# --- Inception Score ----------------------------------------------------------------------------------------------


def test_the_score_is_of_consecutive_parts_of_five_thousand() -> None:
    """Oracle: the definition. 12,001 images have two whole parts and one of 2,001 that counts as much, with a note."""
    logits = torch.randn(12_001, 7, generator=torch.Generator().manual_seed(0)) * 2
    found = adm.inception_score(logits)
    assert found.value == pytest.approx(score_of(logits.double().numpy()), rel=1e-9)
    assert found.low < found.value < found.high
    assert found.value != pytest.approx(fidelity.inception_score(logits).value, rel=1e-6)
    features = FeatureSet("toy", "0", torch.rand(12_001, 2), logits)
    measured = distances(features, of_features(features, "toys", "0"), ["inception_score_adm"])
    assert measured.metrics["is_adm/toy"] == found.value
    assert any("last of its 3 parts has 2,001 images" in note for note in measured.notes)
    assert adm.uneven_split(10_000) is adm.uneven_split(300) is None


def test_images_sorted_by_class_score_less() -> None:
    """Oracle: closed forms. Parts of one class each score 1, where shuffled images of two classes score 2."""
    logits = torch.eye(2).repeat_interleave(5000, dim=0) * 1000
    assert adm.inception_score(logits).value == pytest.approx(1, abs=1e-12)
    assert fidelity.inception_score(logits).value == pytest.approx(2, abs=1e-2)
    mixed = torch.eye(4).repeat(2500, 1) * 1000
    assert adm.inception_score(mixed).value == pytest.approx(4, abs=1e-9)
    assert adm.inception_score(torch.zeros(10, 5)).value == pytest.approx(1, abs=1e-12)


def test_the_scores_interval_is_the_jackknife_of_the_definition() -> None:
    """Oracle: the definition on what is left without each of 23 groups; the last part has one image, of one group."""
    logits = torch.randn(121, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    size, parts = 40, np.arange(121) // 40
    without = []
    for group in range(23):
        kept = np.arange(121) % 23 != group
        scores = [
            score_of(logits.numpy()[kept & (parts == part)]) for part in range(4) if (kept & (parts == part)).any()
        ]
        without.append(np.mean(scores))
    error = np.sqrt(22 / 23 * np.square(np.array(without) - np.mean(without)).sum())
    found = adm.inception_score(logits, split_size=size)
    assert (found.high - found.low) / 2 == pytest.approx(2.0738730679 * error, rel=1e-6)  # Student's t, 22 degrees


# --- precision and recall -----------------------------------------------------------------------------------------


def whole_numbers(n: int, seed: int, shift: int = 0) -> Array:
    """Features (n, 16) of whole numbers: their sums are exact in float32, whatever the order."""
    return np.random.default_rng(seed).integers(-9, 10, (n, 16)).astype(float) + shift


@pytest.mark.parametrize("block", [10_000, 17])
def test_precision_and_recall_are_in_half_precision(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the definition by loops over pairs, in half precision, where numbers near 8,000 differ by 4."""
    monkeypatch.setattr(adm, "BLOCK", block)
    a, b = whole_numbers(60, 0, shift=20), whole_numbers(50, 1, shift=24)
    found = adm.precision_recall(torch.from_numpy(a), torch.from_numpy(b))
    assert (found.precision.value, found.recall.value) == near_of(a, b)
    assert 0 < found.precision.value < 1
    assert 0 < found.recall.value < 1
    assert near_of(a, b) != near_of(a, b, exact_distance), "half precision must matter here"


def test_what_overflows_is_in_single_precision() -> None:
    """Oracle: the definition with exact distances; squares of 100 × 9 are beyond 65,504."""
    a, b = 100 * whole_numbers(60, 0), 100 * whole_numbers(50, 1, shift=4)
    assert half_distance(a[0], b[0]) == np.inf
    found = adm.precision_recall(torch.from_numpy(a), torch.from_numpy(b))
    assert (found.precision.value, found.recall.value) == near_of(a, b, exact_distance)


def test_precision_and_recall_of_constructed_sets() -> None:
    """Identical 1 and 1, far apart 0 and 0; too few are refused."""
    cloud = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    same, apart = adm.precision_recall(cloud, cloud), adm.precision_recall(cloud, cloud + 1000)
    assert (same.precision.value, same.recall.value) == (1, 1)
    assert (apart.precision.value, apart.recall.value) == (0, 0)
    with pytest.raises(ValueError, match="k = 3"):
        adm.precision_recall(cloud[:3], cloud)


def test_without_rounding_they_are_torch_fidelitys() -> None:
    """Oracle: torch-fidelity, on random features, with single precision in place of half."""
    source = torch.Generator().manual_seed(3)
    a, b = torch.randn(200, 8, generator=source), torch.randn(150, 8, generator=source) * 0.8 + 0.3
    single = adm.precision_recall(a, b, squared=lambda u, v: torch.cdist(u.double(), v.double()).square().float())
    expected = fidelity.precision_recall(a, b)
    assert single.precision.value == pytest.approx(expected.precision.value, abs=1e-7)
    assert single.recall.value == pytest.approx(expected.recall.value, abs=1e-7)


# --- files, from npz to numbers -----------------------------------------------------------------------------------


class Small(ModuleDetector):
    """A detector with all that Inception gives: 12 features, 6 logits, 21 spatial features."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.AvgPool2d(8), nn.Flatten()), "inception", size=16)
        source = torch.Generator().manual_seed(0)
        self.heads = [torch.randn(12, size, generator=source) for size in (6, 21)]

    def read(self, images: Tensor) -> Reading:
        features = super().read(images).features
        heads = getattr(self, "heads", None)
        return Reading(features, *(features @ head + torch.sin(9 * features @ head) for head in heads or ()))


def inception() -> Detector:
    """What `--evaluation.detector tests.metrics.test_adm:inception` makes."""
    return Small()


def pictures(count: int, seed: int, shift: int = 0) -> NDArray[np.uint8]:
    """Images (N, 16, 16, 3) uint8 with coarse colours, so that two sets of them overlap."""
    coarse = np.random.default_rng(seed).integers(0, 200, (count, 2, 2, 3))
    return (coarse + shift).astype(np.uint8).repeat(8, axis=1).repeat(8, axis=2)


def read(images: NDArray[np.uint8]) -> tuple[Array, Array, Array]:
    reading = Small().read(torch.from_numpy(images).permute(0, 3, 1, 2))
    return tuple(part.double().numpy() for part in reading[:3])  # type: ignore[return-value,union-attr]


def adm_file(path: Path, images: NDArray[np.uint8], stored: NDArray[np.uint8], **changes: object) -> Path:
    """A reference as ADM publishes it: statistics of all images, and some of the images."""
    features, _, spatial = read(images)
    held = {
        "arr_0": stored, "mu": features.mean(0), "sigma": np.cov(features, rowvar=False), "mu_s": spatial.mean(0),
        "sigma_s": np.cov(spatial, rowvar=False),
    }  # fmt: skip
    np.savez(path, **{name: value for name, value in {**held, **changes}.items() if value is not None})
    return path


def measured(target: Path, reference: Path, out: Path, metrics: tuple[str, ...] = ADM) -> dict[str, float]:
    options = {"reference": str(reference), "detector": "tests.metrics.test_adm:inception", "metrics": metrics}
    assert evaluate(asked(target, out / "runs", out=out / "out", **options)) == DONE
    return json.loads((out / "out" / "evaluation.json").read_text())  # type: ignore[no-any-return]


def test_two_npz_files_give_the_evaluators_five_numbers(tmp_path: Path) -> None:
    """Oracle: the definitions above, from the same files: statistics of 90 images, neighbours among 40 of them."""
    generated, reference = pictures(70, 1, shift=20), pictures(90, 2)
    np.savez(tmp_path / "samples.npz", generated, np.arange(70))  # arr_0 and arr_1, the labels
    stored = adm_file(tmp_path / "reference.npz", reference, reference[:40])
    metrics = measured(tmp_path / "samples.npz", stored, tmp_path)["metrics"]
    features, logits, spatial = read(generated)
    with np.load(stored) as arrays:
        fid = frechet_of(features.mean(0), np.cov(features.T), arrays["mu"], arrays["sigma"])
        sfid = frechet_of(spatial.mean(0), np.cov(spatial.T), arrays["mu_s"], arrays["sigma_s"])
    precision, recall = near_of(features, read(reference[:40])[0])
    expected = {"fid": fid, "sfid": sfid, "is_adm": score_of(logits), "precision_adm": precision, "recall_adm": recall}
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-5)  # type: ignore[index]
    assert 0 < precision < 1
    assert 0 < recall < 1
    assert metrics["recall_adm_reference_images"] == 40  # type: ignore[index]


def test_a_reference_of_images_alone_is_read_like_its_statistics(tmp_path: Path) -> None:
    """Oracle: the file with statistics of the same images; ADM's evaluator computes them where a file has none."""
    generated, reference = pictures(70, 1, shift=20), pictures(90, 2)
    np.savez(tmp_path / "samples.npz", generated)
    np.savez(tmp_path / "images.npz", reference)
    with_statistics = adm_file(tmp_path / "reference.npz", reference, reference)
    one = measured(tmp_path / "samples.npz", tmp_path / "images.npz", tmp_path / "a")["metrics"]
    other = measured(tmp_path / "samples.npz", with_statistics, tmp_path / "b")["metrics"]
    names = ("fid", "sfid", "is_adm", "precision_adm", "recall_adm")
    assert {name: one[name] for name in names} == pytest.approx({name: other[name] for name in names}, rel=1e-6)  # type: ignore[index]


def test_a_reference_without_spatial_statistics_says_so(tmp_path: Path) -> None:
    np.savez(tmp_path / "samples.npz", pictures(20, 1))
    stored = adm_file(tmp_path / "reference.npz", pictures(30, 2), pictures(30, 2), mu_s=None, sigma_s=None)
    found = measured(tmp_path / "samples.npz", stored, tmp_path, ("frechet",))
    assert "sfid" not in found["metrics"]  # type: ignore[operator]
    assert any("sfid: left out, as reference.npz has no mu_s" in note for note in found["notes"])  # type: ignore[attr-defined]


def test_features_of_a_files_images_are_kept(tmp_path: Path) -> None:
    """Oracle: the images that the detector reads a second time, which are none."""
    stored, counted = adm_file(tmp_path / "reference.npz", pictures(30, 2), pictures(30, 2)), []
    first = load_statistics(stored, Small(), cache=tmp_path, progress=counted.append)
    assert counted
    counted.clear()
    again = load_statistics(stored, Small(), cache=tmp_path, progress=counted.append)
    assert counted == []
    assert first.features is not None
    assert again.features is not None
    assert torch.equal(first.features, again.features)


@pytest.mark.parametrize(
    ("changes", "complaint", "kind"),
    [
        ({"sigma_s": None}, "has mu_s alone; sFID needs mu_s and sigma_s: give a file with both", StatisticsError),
        ({"mu_s": None}, "has sigma_s alone", StatisticsError),
        ({"mu_s": np.zeros(20)}, r"sigma_s has the shape \(21, 21\), where \(20, 20\) is expected", StatisticsError),
        ({"sigma_s": -np.eye(21)}, "sigma_s has the eigenvalue -1", StatisticsError),
        ({"sigma": None}, "has no `sigma`; an ADM file has mu and sigma", StatisticsError),
        ({"mu": np.zeros(2048)}, "2048 features.*Give --evaluation.detector", StatisticsError),
        ({"arr_0": pictures(4, 0) / 255}, "images are uint8 from 0 to 255", ImageSetError),
        ({"arr_0": pictures(4, 0).transpose(0, 3, 1, 2).copy()}, "channels first; write it as", ImageSetError),
        ({"arr_0": pictures(4, 0)[:, :8, :8].copy()}, "the reference has 8×8", ConfigError),
    ],
)
def test_malformed_references_are_refused_with_their_cure(
    tmp_path: Path, changes: dict[str, object], complaint: str, kind: type[Exception]
) -> None:
    """Before anything is read through the detector: no record and no cached feature is left."""
    np.savez(tmp_path / "samples.npz", pictures(20, 1))
    harmed = adm_file(tmp_path / "harmed.npz", pictures(30, 2), pictures(30, 2), **changes)
    with pytest.raises(kind, match=complaint):
        measured(tmp_path / "samples.npz", harmed, tmp_path)
    assert not list(tmp_path.glob("runs/re*/**/*.*"))


def test_spatial_statistics_of_another_layer_are_refused(tmp_path: Path) -> None:
    """Oracle: the refusal; Inception's first 7 channels on 17² places are 2,023 numbers."""
    assert InceptionDetector.spatial_size == 2023
    detector = Small()
    detector.spatial_size = 2023  # type: ignore[assignment]
    stored = adm_file(tmp_path / "reference.npz", pictures(30, 2), pictures(30, 2))
    with pytest.raises(StatisticsError, match=r"mu_s has 21 numbers, where inception has 2,023.*--save-reference"):
        load_statistics(stored, detector)
