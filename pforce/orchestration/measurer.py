"""What a worker of a sampler sweep does: one model, loaded once, measured with one sampler after the other."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from pforce.data import Manifest, read_split
from pforce.metrics.evaluate import EvaluationConfig, classes_of, measure_sampler
from pforce.orchestration.failures import failure_of
from pforce.references import reference_for
from pforce.sampling import SamplerConfig
from pforce.sources import SourceError, Weights, load_source

VERSION = 2
"""Raised when a change of the code changes what a measurement gives."""


@dataclass(frozen=True)
class Subject:
    """What is measured, and on what: the same for all samplers of a sweep, noise and reference included."""

    source: str
    """Path of the model."""
    sha256: str
    """Of the model's configuration and weights."""
    weights: Weights
    data: str
    """Folder of the data set; its held-out images are the reference."""
    inputs: tuple[tuple[str, str], ...]
    """Content hashes of data set and detector."""
    evaluation: EvaluationConfig
    cache: str
    """Folder of reference features."""

    def fingerprint(self, sampler: SamplerConfig, seed: int) -> str:
        """Hash of what determines a measurement."""
        record = {
            "version": VERSION,
            "model": self.sha256,
            "inputs": dict(self.inputs),
            "sampler": sampler.canonical(),
            "images": self.evaluation.images,
            "reference_images": self.evaluation.validation_images,
            "detector": self.evaluation.detector,
            "metrics": sorted(self.evaluation.metrics),
            "extrapolate": self.evaluation.extrapolate,
            "reference": self.evaluation.reference,
            "seed": seed,
        }
        return hashlib.blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=16).hexdigest()


class Measurement(NamedTuple):
    """A task: a sampler, and the seed of the noise that all samplers start from."""

    sampler: SamplerConfig
    seed: int


class Failed(NamedTuple):
    """A measurement that could not be made."""

    reason: str
    error: str


class Measurer:
    """Measures samplers on one model. SourceError where the source no longer holds the subject's weights."""

    def __init__(self, subject: Subject, device: torch.device) -> None:
        source = load_source(subject.source, weights=subject.weights)
        if source.sha256 != subject.sha256:
            raise SourceError(f"{subject.source} now holds other weights than when the sweep was planned")
        config = subject.evaluation
        folder = Path(subject.data)
        wanted = min(config.validation_images, Manifest.load(folder).validation.samples)
        held_out = read_split(folder, "validation", limit=wanted)
        self.config, self.device = config, device
        self.model = source.model.to(device)
        self.detector = config.load_detector().to(device)
        self.classes = classes_of(held_out.labels, config.images)
        self.reference = reference_for(
            config, folder, self.detector, held_out=held_out, cache=Path(subject.cache), device=device
        )

    def __call__(self, task: Measurement) -> dict[str, float] | Failed:
        """Metrics under their fixed names, and `cost/evaluation_seconds`, the worker's time."""
        started = time.perf_counter()
        try:
            measured = measure_sampler(
                self.model,
                task.sampler,
                self.classes,
                self.reference,
                self.detector,
                config=self.config,
                seed=task.seed,
                device=self.device,
            )
        except Exception as error:  # told with its reason; the sweep goes on with the other samplers
            return Failed(*failure_of(error))
        return {**measured.metrics, "cost/evaluation_seconds": time.perf_counter() - started}
