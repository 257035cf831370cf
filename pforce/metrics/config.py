"""What is measured on a trained model, and on how many images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pforce.base.errors import require
from pforce.metrics.detectors import Detector, check_name, load_detector
from pforce.metrics.distances import IMAGE_METRICS, ImageMetric

LabelRule = Literal["validation", "classes"]
MOST_VALIDATION = 1000
"""Held-out images of a reference that is not given a number."""


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, on how many images."""

    images: int = 1000
    """Generated images for the distances: the n that is stated beside them."""
    labels: LabelRule = "validation"
    """Classes of the generated images: those of the data set's held-out images in turn, or all classes in turn."""
    label_images: int = 1000
    """Held-out images, spread evenly, whose classes are taken where labels = validation; all where there are fewer."""
    held_out_images: int = 1000
    """Held-out images for loss, difficulty and context, spread evenly; all where there are fewer."""
    detector: str = "openmoji"
    """Feature detector of the distances: openmoji, fashion-mnist, inception, dinov2, or package.module:function."""
    detector_weights: str | None = None
    """File with the weights of inception or dinov2. Results are named by its hash, not by its place."""
    metrics: tuple[ImageMetric, ...] = ("frechet",)
    """What is measured on generated images: frechet (with sFID where the detector has spatial features), kernel,
    precision_recall, inception_score."""
    reference: str = "validation"
    """What generated images are compared with: the data set's validation or train images, or a file of stored
    statistics (npz as ADM's evaluator uses). A file is known by its hash."""
    reference_images: int | None = None
    """Images of the reference, spread evenly. None: all of train, and up to 1,000 of validation."""
    extrapolate: bool = False
    """Also report the Fréchet distance extrapolated to endless images (FID∞)."""
    difficulty_timesteps: tuple[float, ...] = (0.2, 0.6)
    """Timesteps of the difficulty correlation R(t) and of the calibration of σ, in (0, 1), of at most two decimals."""
    context_timesteps: tuple[float, ...] = ()
    """Timesteps of the context ablations, in (0, 1); the paper's are 0.1, 0.2, 0.3. None by default: each costs 16
    forward passes of every held-out image."""
    seed: int = 0
    """Seed of the evaluation's noise: the same for all cells and training seeds, so that they share it."""
    batch: int = 64
    """Images per forward pass. Rounding apart, it changes no number."""

    def __post_init__(self) -> None:
        require(self.images >= 2, "images", self.images, "≥ 2")
        require(self.held_out_images >= 2, "held_out_images", self.held_out_images, "≥ 2")
        require(self.label_images >= 1, "label_images", self.label_images, "≥ 1")
        require(self.labels in ("validation", "classes"), "labels", self.labels, "validation or classes")
        few = self.reference_images
        require(few is None or few >= 2, "reference_images", few, "≥ 2, or None")
        for name in ("difficulty_timesteps", "context_timesteps"):
            timesteps = getattr(self, name)
            require(all(0 < t < 1 for t in timesteps), name, timesteps, "between 0 and 1")
            short = all(abs(round(t, 2) - t) < 1e-9 for t in timesteps)
            require(short, name, timesteps, "of at most two decimals, as metrics are named by them")
        require(self.seed >= 0, "seed", self.seed, "≥ 0")
        require(self.batch > 0, "batch", self.batch, "> 0")
        check_name(self.detector)
        require(
            self.reference in ("validation", "train") or self.reference.endswith(".npz"),
            "reference",
            self.reference,
            "validation, train, or an .npz file of statistics",
        )
        stored = self.reference.endswith(".npz")
        require(few is None or not stored, "reference_images", few, "None, as a file has the images that it has")
        require(len(set(self.metrics)) == len(self.metrics) > 0, "metrics", self.metrics, f"some of {IMAGE_METRICS}")

    @property
    def detector_name(self) -> str:
        """What metrics are called by: the detector's name; of package.module:function that of the function."""
        return self.detector.rsplit(":", 1)[-1]

    def reference_count(self, samples: int) -> int:
        """Images of the reference, of a split of so many samples."""
        most = self.reference_images or (samples if self.reference == "train" else MOST_VALIDATION)
        return min(most, samples)

    def load_detector(self) -> Detector:
        """The detector, as `load_detector`."""
        return load_detector(self.detector, self.detector_weights)
