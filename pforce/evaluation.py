"""Evaluations that are not part of a training: features of a model's images that survive a kill.

A model's images are drawn in batches keyed by their number (see `pforce.generation`), and of each batch its features
are kept instead of its images. So an evaluation on any number of workers reads the same bytes in the same order, and
one that was stopped goes on.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pforce.generation import Drawer, Drawn, Job, drawn_batches
from pforce.metrics.detectors import Detector, DetectorError, Reading, load_detector
from pforce.metrics.evaluate import GRID_IMAGES
from pforce.metrics.features import FeatureSet, collect, read_padded

VERSION = 1
"""Raised when a change of the code changes what an evaluation gives."""
READING = Reading._fields


@dataclass(frozen=True)
class FeatureJob(Job):
    """Images that are drawn for their features."""

    detector: str = "openmoji"
    detector_weights: str | None = None
    detector_sha256: str = ""

    def record(self) -> dict[str, Any]:
        """As of a job, with the detector's identity."""
        return {**super().record(), "detector": self.detector, "detector_sha256": self.detector_sha256}


class FeatureDrawer:
    """Draws batches of a job and keeps their features, and the images of the first ones. Errors as `Drawer`."""

    def __init__(self, job: FeatureJob, device: torch.device) -> None:
        self.job = job
        self.draw = Drawer(job, device)
        self.detector = load_detector(job.detector, job.detector_weights, job.detector_sha256).to(device)
        if self.detector.sha256 != job.detector_sha256:
            raise DetectorError(f"detector {job.detector}: its weights here are not those of the job")
        self.device = device

    def __call__(self, number: int) -> Drawn:
        started = time.perf_counter()
        drawn = self.draw(number)
        images = torch.from_numpy(drawn.arrays["images"])  # (B, H, W, 3)
        seen = read_padded(self.detector, images.permute(0, 3, 1, 2).to(self.device), self.job.batch)
        arrays = {name: part.numpy() for name, part in zip(READING, seen, strict=True) if part is not None}
        if number * self.job.batch < GRID_IMAGES:
            arrays["images"] = drawn.arrays["images"]
        return drawn._replace(arrays=arrays, seconds=time.perf_counter() - started)


def features_of(folder: Path, job: FeatureJob, detector: Detector) -> FeatureSet:
    """The features of all batches, in order."""
    readings = (
        Reading(*(torch.from_numpy(batch[name]) if name in batch else None for name in READING))  # type: ignore[arg-type]
        for batch in drawn_batches(folder, job, READING)
    )
    return collect(detector, readings)


def samples_of(folder: Path, job: FeatureJob) -> Tensor:
    """The first images, (≤ 64, 3, H, W) uint8."""
    found: list[Tensor] = []
    for batch in drawn_batches(folder, job, ("images",)):
        if "images" not in batch:
            break
        found.append(torch.from_numpy(batch["images"]))
    return torch.cat(found)[:GRID_IMAGES].permute(0, 3, 1, 2)


def identity_of(record: dict[str, Any]) -> str:
    """Fingerprint of an evaluation: hash of what determines its result."""
    text = json.dumps({"version": VERSION, **record}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
