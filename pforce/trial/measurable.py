"""A model and its measurement by names and paths, as sent to workers, and its loading there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch

from pforce.metrics.config import EvaluationConfig
from pforce.metrics.detectors import Detector, load_detector
from pforce.metrics.memorisation import Training
from pforce.metrics.reference import ReferenceStatistics
from pforce.records.parts import Request
from pforce.records.provenance import made_on
from pforce.sampling import Sampler
from pforce.storage import Storage
from pforce.training.checkpoint import SNAPSHOTS
from pforce.trial.folder import EXPERIMENT
from pforce.trial.jobs import decoder_for
from pforce.trial.mirror import TrialMirror
from pforce.trial.reference import REFERENCES, HeldOut, ReferenceImages, check_detector, training_images
from pforce.trial.source import Source, SourceError, Weights, load_source
from pforce.trial.subject import Subject, cycle_of


@dataclass(frozen=True)
class Measurable:
    """A model and everything to measure it with, by names and paths."""

    source: str
    """Path of the model, as `load_source` reads it."""
    sha256: str
    """Hash of its configuration and weights, which must be unchanged when the source is read again."""
    request: Request
    evaluation: EvaluationConfig
    sampler: Sampler
    storage: str
    """URI of the storage that keeps drawings and records."""
    reference: ReferenceImages
    data: str | None = None
    """Folder of the data set with the held-out images."""
    weights: Weights = "ema"
    heads: int | None = None
    """Attention heads of an original SiT of unusual size."""
    decoder: str | None = None
    """Folder of an autoencoder that decodes the model's latents to pixels."""
    detector: str = "openmoji"
    detector_weights: str | None = None
    training: str | None = None
    """Folder below the storage's root of the training that the model is from, pulled from a bucket; None for other
    models."""
    provenance: Mapping[str, str] = field(default_factory=dict)

    def load(self) -> Source:
        """Load the model on this machine. SourceError where it is no longer the planned one."""
        path = self.source
        storage = Storage.open(self.storage)
        if storage.remote and self.training is not None:
            snapshot = Path(self.source)
            images = int(snapshot.name) if snapshot.parent.name == SNAPSHOTS else None
            TrialMirror(storage, self.training, EXPERIMENT).fetch(images)
            path = str(storage.root / self.training / snapshot.parent.name / snapshot.name)
        source = load_source(path, weights=self.weights, heads=self.heads)
        if source.sha256 != self.sha256:
            raise SourceError(
                f"{path} now holds other weights ({source.sha256[:12]}) than when this was planned "
                f"({self.sha256[:12]}): give the checkpoint's own folder (step_…)"
            )
        return source

    def subject(self, device: torch.device, *, devices: float | None = None, source: Source | None = None) -> Subject:
        """The model on a device, ready to be measured. DetectorError, AutoencoderError and SourceError are passed on.

        Args:
            devices: devices that this process counts for; by default its GPU, or the cores of its threads.
            source: the model, where it is in memory already.
        """
        if devices is None:
            devices = 1.0 if device.type == "cuda" else float(torch.get_num_threads())
        source = source or self.load()
        storage = Storage.open(self.storage)
        held_out = HeldOut(Path(self.data)) if self.data is not None else None

        def labels() -> torch.Tensor:
            return cycle_of(self.evaluation, held_out, source.model.config.classes)

        def measured_with(
            name: str, weights: str | None, planned: Mapping[str, str]
        ) -> tuple[Callable[[], Detector], Callable[[], ReferenceStatistics]]:
            @cache
            def detector() -> Detector:
                found = load_detector(name, weights, planned.get("sha256")).to(device)
                check_detector(found, planned)
                return found

            return detector, lambda: self.reference.statistics(detector(), storage.root / REFERENCES, device=device)

        detector, reference = measured_with(self.detector, self.detector_weights, self.request.detector)

        def training() -> Training:
            assert self.data is not None  # memorisation is refused where no data set is known
            images, cache = self.evaluation.held_out_images, storage.root / REFERENCES
            return training_images(Path(self.data), images, detector(), cache, device=device)

        return Subject(
            model=source.model.to(device),
            weights=self.sha256,
            device=device,
            sampler=self.sampler,
            labels=labels,
            detector=detector,
            reference=reference,
            further=[
                measured_with(name, weights, planned)
                for (name, weights), planned in zip(self.evaluation.further, self.request.further, strict=True)
            ],
            training=training,
            held_out=None if held_out is None else lambda: held_out(self.evaluation.held_out_images),
            batch=self.evaluation.batch,
            decode=None if self.decoder is None else decoder_for(source, self.decoder, device),
            devices=devices,
            provenance={**made_on(device), **self.provenance},
        )
