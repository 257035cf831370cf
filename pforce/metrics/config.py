"""Settings of the evaluation of a trained model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from pforce.base.errors import require
from pforce.metrics.detectors import Detector, check_name, load_detector
from pforce.metrics.distances import IMAGE_METRICS, NEAREST, ImageMetric, of_further

LabelRule = Literal["validation", "classes", "random"]
MOST_VALIDATION = 1000
"""Most validation images of a reference where their number is not given."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings of the evaluation: metrics, images, reference and detector."""

    images: int = 1000
    """Number of generated images for the distances, stated beside them as n."""
    labels: LabelRule = "validation"
    """Classes of the generated images. validation: those of the data set's held-out images in turn; classes: all
    classes in turn, so each equally often; random: drawn at random, each class equally likely, by the seed."""
    label_images: int = 1000
    """Number of held-out images, spread evenly, whose classes are taken where labels = validation; all where there are
    fewer."""
    held_out_images: int = 1000
    """Number of held-out images, spread evenly, for loss, difficulty and context; all where there are fewer."""
    detector: str = "openmoji"
    """Feature detector of the distances: openmoji, fashion-mnist, inception, dinov2, or package.module:function."""
    detector_weights: str | None = None
    """File with the weights of inception or dinov2. Results depend on its hash, not on its path."""
    further_detectors: tuple[str, ...] = ()
    """Further detectors whose metrics, all but memorisation, are measured on the same images: NAME, or NAME=FILE with
    the file of its weights."""
    metrics: tuple[ImageMetric, ...] = ("frechet",)
    """Metrics of generated images: frechet (with sFID where the detector has spatial features), kernel,
    precision_recall, inception_score; precision_recall_adm and inception_score_adm by the rules of ADM's evaluator;
    density_coverage; sliced (Wasserstein distance, for few images);
    class_accuracy (of the data's own classifier); class_kernel (kernel distance of each class); memorisation (nearest
    training images)."""
    reference: str = "validation"
    """Reference images that generated images are compared with: the data set's validation or train images, or a file of
    stored statistics (npz in the format of ADM's evaluator). Results depend on a file's hash."""
    reference_images: int | None = None
    """Number of reference images, spread evenly. None: all of train, up to 1,000 of validation."""
    extrapolate: bool = False
    """Also report the Fréchet distance extrapolated to infinitely many images (FID∞)."""
    difficulty_timesteps: tuple[float, ...] = (0.2, 0.6)
    """Timesteps of the difficulty correlation R(t) and of the calibration of σ, in (0, 1), with at most two
    decimals."""
    context_timesteps: tuple[float, ...] = ()
    """Timesteps of the context ablations, in (0, 1); the paper's are 0.1, 0.2, 0.3. Each costs 16 forward passes of
    every held-out image."""
    seed: int = 0
    """Seed of the evaluation's noise, which all cells and training seeds share."""
    batch: int = 64
    """Images per forward pass. It changes no result except by rounding."""

    def __post_init__(self) -> None:
        require(self.images >= 2, "images", self.images, "≥ 2")
        require(self.held_out_images >= 2, "held_out_images", self.held_out_images, "≥ 2")
        require(self.label_images >= 1, "label_images", self.label_images, "≥ 1")
        require(self.labels in get_args(LabelRule), "labels", self.labels, "validation, classes or random")
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
        self._check_further()
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
        """The detector's name in metrics; for package.module:function, the function's name."""
        return self.detector.rsplit(":", 1)[-1]

    def _check_further(self) -> None:
        names = [self.detector_name]
        for name, _ in self.further:
            check_name(name, "further_detectors")
            short = name.rsplit(":", 1)[-1]
            require(
                short not in names, "further_detectors", name, "another than the others, as metrics are named by it"
            )
            names.append(short)
        stored = self.reference.endswith(".npz") and len(names) > 1
        require(
            not stored, "further_detectors", ", ".join(self.further_detectors),
            "none with a reference of stored statistics, which are of one detector; give validation, train or images",
        )  # fmt: skip
        require(
            len(names) == 1 or bool(of_further(self.metrics)), "further_detectors", ", ".join(self.further_detectors),
            f"none where {NEAREST} is the only metric, as the first detector alone measures it; add another metric",
        )  # fmt: skip

    @property
    def further(self) -> tuple[tuple[str, str | None], ...]:
        """Names of the further detectors, and the files of their weights; None for detectors that bring their own."""
        parts = (each.partition("=") for each in self.further_detectors)
        return tuple((name, weights or None) for name, _, weights in parts)

    def reference_count(self, samples: int) -> int:
        """Number of reference images, for a split of `samples` images."""
        most = self.reference_images or (samples if self.reference == "train" else MOST_VALIDATION)
        return min(most, samples)

    def load_detector(self) -> Detector:
        """The detector, loaded as by `load_detector`."""
        return load_detector(self.detector, self.detector_weights)

    def load_further(self) -> tuple[Detector, ...]:
        """The further detectors, loaded as by `load_detector`."""
        return tuple(load_detector(*each) for each in self.further)
