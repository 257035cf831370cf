"""Statistics of reference images, made once and kept in files, also in the format of ADM's evaluator.

An ADM file is an npz with `mu`, `sigma` (of Inception's pooled features), `mu_s`, `sigma_s` (of the spatial ones), and
`arr_0`, the images whose features precision and recall use. Our files also name the detector.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pforce.base.arrays import Arrays, open_arrays
from pforce.base.errors import InputError
from pforce.base.files import sha256_of, write_whole
from pforce.base.foreign import ForeignError, expect, printable, quoted
from pforce.metrics.detectors.base import Detector
from pforce.metrics.features import FeatureSet, read_features
from pforce.metrics.frechet import Moments, moments
from pforce.metrics.image_sets import ImageArray, ImageSet

VERSION = 1
"""Version of reference features; increase it when a change of the code changes them."""
BATCH = 64
ADM_DETECTOR = "inception"
MOST_SPATIAL = 4096
"""Most spatial features that a file may hold; Inception has 2,023."""
ROUNDING = 1e-5
"""Asymmetry of a covariance, and negative eigenvalues, that may be rounding: relative to its largest entry, and to its
largest eigenvalue. Files in float32 have 1e-6."""


class StatisticsError(InputError, ValueError):
    """Reference statistics cannot be used. The message gives the reason."""


@dataclass(frozen=True)
class ReferenceStatistics:
    """Statistics of reference images in a detector's features."""

    detector: str
    sha256: str | None
    """SHA-256 of the detector's weights; None for files that do not state it."""
    moments: Moments
    """Moments of the features (D,)."""
    spatial: Moments | None
    """Moments of the spatial features (S,); None where there are none."""
    features: Tensor | None
    """Features (M, D) of reference images, for kernel distance, precision and recall; possibly of fewer images than the
    moments."""
    source: str
    """Source of the images, in words."""
    identity: str
    """Hash of the images, the detector and its preprocessing, or of the file."""
    labels: Callable[[], Tensor] | None = None
    """Function that returns the classes (M,) of the images of `features`; None where nobody says them."""


def of_features(found: FeatureSet, source: str, identity: str) -> ReferenceStatistics:
    """Reference statistics of features."""
    spatial = None if found.spatial is None else moments(found.spatial)
    labels = found.labels
    return ReferenceStatistics(
        found.detector, found.sha256, moments(found.features), spatial, found.features, source, identity,
        None if labels is None else lambda: labels,
    )  # fmt: skip


def reference_key(content: str, detector: Detector) -> str:
    """Hash of everything that determines reference features: the images, the detector's weights, the preprocessing."""
    record = [VERSION, content, detector.name, detector.sha256, detector.preprocessing]
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def cached_reference(
    images: ImageSet,
    detector: Detector,
    cache: Path | None,
    *,
    source: str,
    content: str | None = None,
    device: torch.device | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> ReferenceStatistics:
    """Statistics of reference images, read from the cache where they were made before; `cached_features` says how."""
    found, key = cached_features(images, detector, cache, content=content, device=device, progress=progress)
    return of_features(found, source, key)


def cached_features(
    images: ImageSet,
    detector: Detector,
    cache: Path | None,
    *,
    content: str | None = None,
    device: torch.device | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[FeatureSet, str]:
    """Features of images, read from the cache where they were made before, and their key.

    Args:
        cache: folder of the cache; None always computes them. A cached file that cannot be read is made again.
        content: hash of the images, where it is already known.
    """
    key = reference_key(content or images.content_hash(), detector)
    path = None if cache is None else cache / f"{detector.name.replace(':', '_')}-{key[:32]}.npz"
    if path is not None and path.exists():
        try:
            return _load_features(path, detector), key
        except (OSError, ValueError, KeyError, TypeError):
            pass  # written by another version, or damaged: made again below
    features = read_features(detector, images.batches(BATCH), size=BATCH, device=device, progress=progress)
    if path is not None:
        write_whole(path, lambda scratch: _save_features(scratch, features))
    return features, key


def _arrays(found: FeatureSet) -> dict[str, NDArray[Any]]:
    parts = {"features": found.features, "logits": found.logits, "spatial": found.spatial, "pixels": found.pixels}
    return {name: part.numpy() for name, part in parts.items() if part is not None}


def _save_features(scratch: Path, found: FeatureSet) -> None:
    with scratch.open("wb") as file:
        np.savez(file, **_arrays(found))  # type: ignore[arg-type]  # the stubs know no names


def _load_features(path: Path, detector: Detector) -> FeatureSet:
    with open_arrays(path) as arrays:
        parts = {name: torch.from_numpy(of) for name, of in arrays.read_all(path.stat().st_size).items()}
    return FeatureSet(detector.name, detector.sha256, **parts)


def save_statistics(path: Path, of: ReferenceStatistics, images: NDArray[np.uint8] | None = None) -> None:
    """Write an ADM file, which ADM's evaluator can read where the detector is Inception; it appears whole.

    Args:
        images: reference images (M, H, W, 3) uint8, ADM's `arr_0`.
    """
    arrays: dict[str, Any] = {
        "mu": of.moments.mean,
        "sigma": of.moments.covariance,
        "detector": of.detector,
        "detector_sha256": of.sha256 or "",
        "source": of.source,
    }
    if of.moments.n is not None:
        arrays["n"] = of.moments.n
    if of.spatial is not None:
        arrays |= {"mu_s": of.spatial.mean, "sigma_s": of.spatial.covariance}
    if of.features is not None:
        arrays["features"] = of.features.numpy()
    if images is not None:
        arrays["arr_0"] = images

    def write(scratch: Path) -> None:
        with scratch.open("wb") as file:
            np.savez(file, **arrays)

    write_whole(path, write)


def is_statistics(path: Path) -> bool:
    """Whether an npz holds statistics, not just images."""
    try:
        with open_arrays(path) as arrays:
            return "mu" in arrays
    except (OSError, ForeignError):
        return False


def _numbers(arrays: Arrays, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """An array of finite numbers, as float64. ForeignError where it is another."""
    if arrays.shape(name) != shape:
        raise ForeignError(f"{name} has the shape {quoted(arrays.shape(name))}, where {shape} is expected")
    values = arrays.read(name, 16 * int(np.prod(shape)))
    if values.dtype.kind not in "fiu":
        raise ForeignError(f"{name} holds {values.dtype}, not numbers")
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ForeignError(f"{name} holds NaN or infinity; make the statistics again")
    return values


def _moments(arrays: Arrays, mean: str, covariance: str, size: int, n: int | None) -> Moments:
    """Moments from two arrays. ForeignError where they are those of no images."""
    found = Moments(_numbers(arrays, mean, (size,)), _numbers(arrays, covariance, (size, size)), n)
    values = found.covariance
    if np.abs(values - values.T).max() > ROUNDING * np.abs(values).max():
        raise ForeignError(f"{covariance} is not symmetric, so it is no covariance")
    eigenvalues = np.linalg.eigvalsh(values)
    if eigenvalues[0] < -ROUNDING * max(eigenvalues[-1], -eigenvalues[0]):
        raise ForeignError(
            f"{covariance} has the eigenvalue {eigenvalues[0]:.3g} beside its largest, {eigenvalues[-1]:.3g}: no "
            "images have such a covariance"
        )
    return found


def _count(arrays: Arrays) -> int | None:
    """The number of images that a file states. ForeignError where it is no number of images."""
    if "n" not in arrays:
        return None
    value = arrays.read("n", 8)
    if value.shape != () or value.dtype.kind not in "iu" or not 2 <= int(value) < 2**53:
        raise ForeignError(f"n = {quoted(value.tolist())}: must be the number of images, a whole number of at least 2")
    return int(value)


def _whose(arrays: Arrays, detector: Detector) -> tuple[str, str | None]:
    """Name and SHA-256 of the detector that a file states. ForeignError where it is another one."""
    for name in ("mu", "sigma"):
        expect(name in arrays, f"has no `{name}`; an ADM file has mu and sigma")
    made_by = arrays.text("detector") if "detector" in arrays else ADM_DETECTOR
    sha256 = arrays.text("detector_sha256") if "detector_sha256" in arrays else None
    size, mean = detector.feature_size, arrays.shape("mu")
    same = made_by == detector.name and sha256 in (None, "", detector.sha256) and mean == (size,)
    weights = printable((sha256 or "weights not stated")[:12])
    expect(
        same,
        f"of detector {printable(made_by)} ({weights}, {(0, *mean)[-1]} features), not of {detector.name} "
        f"({detector.sha256[:12]}, {size} features): distances need one detector. Give --evaluation.detector "
        f"{printable(made_by)}, or other statistics",
    )
    return made_by, sha256


def _spatial(arrays: Arrays, detector: Detector) -> Moments | None:
    """Moments of the spatial features; None where there are none. ForeignError where one of the two is missing, or they
    are of other features than the detector's."""
    there = [name for name in ("mu_s", "sigma_s") if name in arrays]
    if not there:
        return None
    expect(
        len(there) == 2, f"has {there[0]} alone; sFID needs mu_s and sigma_s: give a file with both, or with neither"
    )
    (width,) = arrays.shape("mu_s")[:1] or (0,)
    expect(0 < width <= MOST_SPATIAL, f"mu_s has {width:,} numbers, where Inception has 2,023 spatial features")
    own = getattr(detector, "spatial_size", width)
    expect(
        width == own,
        f"mu_s has {width:,} numbers, where {detector.name} has {own:,} spatial features: it is of another layer; give "
        "ADM's own file, or one that `pforce evaluate --save-reference` writes",
    )
    return _moments(arrays, "mu_s", "sigma_s", width, None)


def _features(arrays: Arrays, size: int, file_bytes: int) -> Tensor | None:
    """Features (M, size) of a file; None where there are none."""
    if "features" not in arrays:
        return None
    (rows,) = arrays.shape("features")[:1] or (0,)
    fits = rows * size <= 2 * file_bytes
    expect(fits, f"features are {rows:,} × {size:,} numbers, more than the file can hold")
    return torch.from_numpy(_numbers(arrays, "features", (rows, size)).astype(np.float32))


def load_statistics(
    path: Path,
    detector: Detector,
    *,
    images: bool = True,
    cache: Path | None = None,
    device: torch.device | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> ReferenceStatistics:
    """Read an ADM file: its stored moments, and features of its images (`arr_0`) from the detector.

    Args:
        images: compute features of the file's images where it holds no features.
        cache: folder of reference features made before; None always computes them.

    Raises:
        StatisticsError: it is not an ADM file, is damaged, is of another detector, or states what no images have: a
            covariance that is not symmetric and positive semi-definite, values that are not finite, no number of
            images.
    """
    try:
        with open_arrays(path) as arrays:
            made_by, sha256 = _whose(arrays, detector)
            found = _moments(arrays, "mu", "sigma", detector.feature_size, _count(arrays))
            spatial = _spatial(arrays, detector)
            features = _features(arrays, detector.feature_size, path.stat().st_size)
            source = arrays.text("source") if "source" in arrays else path.name
            stored_images = "arr_0" in arrays
    except FileNotFoundError as error:
        raise StatisticsError(
            f"evaluation.reference = {path}: does not exist; give the file of statistics (.npz) that the reference's "
            "authors publish, or one that `pforce evaluate --save-reference` writes"
        ) from error
    except (OSError, ForeignError) as error:
        raise StatisticsError(f"reference statistics {path}: {error}") from error
    identity = sha256_of(path)
    if features is None and stored_images and images:
        features = cached_reference(
            ImageArray(path), detector, cache, source=source, content=f"arr_0 of file:{identity}", device=device,
            progress=progress,
        ).features  # fmt: skip
    return ReferenceStatistics(made_by, sha256, found, spatial, features, printable(source), identity)


def image_size(path: Path) -> tuple[int, int] | None:
    """Height and width of the images that an ADM file holds; None where it holds none. ImageSetError where its `arr_0`
    is not images."""
    with open_arrays(path) as arrays:
        if "arr_0" not in arrays:
            return None
    return ImageArray(path).size
