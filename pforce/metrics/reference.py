"""Statistics of reference images, made once and kept in files, also in the format of ADM's evaluator.

An ADM file is an npz with `mu`, `sigma` (of Inception's pooled features), `mu_s`, `sigma_s` (of the spatial ones), and
`arr_0`, the images whose features precision and recall use. Our files also name the detector.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pforce.base.errors import InputError
from pforce.base.files import sha256_of, write_whole
from pforce.metrics.detectors.base import Detector
from pforce.metrics.features import FeatureSet, read_features
from pforce.metrics.frechet import Moments, moments
from pforce.metrics.image_sets import ImageArray, ImageSet

VERSION = 1
"""Version of reference features; increase it when a change of the code changes them."""
BATCH = 64
ADM_DETECTOR = "inception"
BROKEN = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error)
"""Errors that numpy raises for files that are damaged, truncated, or of another kind."""


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


def of_features(found: FeatureSet, source: str, identity: str) -> ReferenceStatistics:
    """Reference statistics of features."""
    spatial = None if found.spatial is None else moments(found.spatial)
    return ReferenceStatistics(
        found.detector, found.sha256, moments(found.features), spatial, found.features, source, identity
    )


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
    """Statistics of reference images, read from the cache where they were made before.

    Args:
        cache: folder of the cache; None always computes them. A cached file that cannot be read is made again.
        content: hash of the images, where it is already known.
    """
    key = reference_key(content or images.content_hash(), detector)
    path = None if cache is None else cache / f"{detector.name.replace(':', '_')}-{key[:32]}.npz"
    if path is not None and path.exists():
        try:
            found = _load_features(path, detector)
        except BROKEN:
            pass  # written by another version, or damaged: made again below
        else:
            return of_features(found, source, key)
    features = read_features(detector, images.batches(BATCH), size=BATCH, device=device, progress=progress)
    if path is not None:
        write_whole(path, lambda scratch: _save_features(scratch, features))
    return of_features(features, source, key)


def _arrays(found: FeatureSet) -> dict[str, NDArray[Any]]:
    parts = {"features": found.features, "logits": found.logits, "spatial": found.spatial}
    return {name: part.numpy() for name, part in parts.items() if part is not None}


def _save_features(path: Path, found: FeatureSet) -> None:
    with path.open("wb") as file:
        np.savez(file, **_arrays(found))  # type: ignore[arg-type]  # the stubs know no names


def _load_features(path: Path, detector: Detector) -> FeatureSet:
    with np.load(path) as arrays:
        parts = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
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


def _double(values: NDArray[Any]) -> NDArray[np.float64]:
    return values.astype(np.float64)


def is_statistics(path: Path) -> bool:
    """Whether an npz holds statistics, not just images."""
    try:
        with np.load(path) as arrays:
            return "mu" in arrays.files
    except BROKEN:
        return False


def load_statistics(
    path: Path,
    detector: Detector,
    *,
    images: bool = True,
    device: torch.device | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> ReferenceStatistics:
    """Read an ADM file: its stored moments, and features of its images (`arr_0`) from the detector.

    Args:
        images: compute features of the file's images where it holds no features.

    Raises:
        StatisticsError: it is not an ADM file, is damaged, or is of another detector.
    """
    try:
        with np.load(path) as arrays:
            found = {name: arrays[name] for name in arrays.files if name != "arr_0"}
            stored_images = "arr_0" in arrays.files
    except FileNotFoundError as error:
        raise StatisticsError(
            f"evaluation.reference = {path}: does not exist; give the file of statistics (.npz) that the reference's "
            "authors publish, or one that `pforce evaluate --save-reference` writes"
        ) from error
    except BROKEN as error:
        raise StatisticsError(f"reference statistics {path}: cannot be read ({error})") from error
    for name in ("mu", "sigma"):
        if name not in found:
            raise StatisticsError(f"reference statistics {path}: has no `{name}`; an ADM file has mu and sigma")
    made_by = str(found["detector"]) if "detector" in found else ADM_DETECTOR
    sha256 = str(found["detector_sha256"]) if "detector_sha256" in found else None
    mean, covariance = _double(found["mu"]), _double(found["sigma"])
    wrong = made_by != detector.name or (sha256 and sha256 != detector.sha256)
    if wrong or mean.shape != (detector.feature_size,) or covariance.shape != (detector.feature_size,) * 2:
        raise StatisticsError(
            f"reference statistics {path}: of detector {made_by} ({(sha256 or 'weights not stated')[:12]}, "
            f"{mean.shape[-1] if mean.ndim else 0} features), not of {detector.name} ({detector.sha256[:12]}, "
            f"{detector.feature_size} features): distances need one detector. Give --evaluation.detector {made_by}, or "
            "other statistics"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise StatisticsError(f"reference statistics {path}: mu or sigma hold NaN or infinity; make them again")
    spatial = None
    if "mu_s" in found and "sigma_s" in found:
        spatial = Moments(_double(found["mu_s"]), _double(found["sigma_s"]), None)
    n = int(found["n"]) if "n" in found else None
    features = torch.from_numpy(found["features"].astype(np.float32)) if "features" in found else None
    if features is None and stored_images and images:
        features = read_features(
            detector, ImageArray(path).batches(BATCH), size=BATCH, device=device, progress=progress
        ).features
    identity = sha256_of(path)
    source = str(found["source"]) if "source" in found else path.name
    return ReferenceStatistics(made_by, sha256, Moments(mean, covariance, n), spatial, features, source, identity)
