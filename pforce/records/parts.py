"""The parts that are measured at once and kept under one name, and what is asked of a model.

- A *training*: everything that determines the weights as a function of images seen.
- *Weights*: which tensors a training has at some images seen. What is measured is named by the tensors' own hash.
- A *drawing*: a model's images under one sampler, keyed by (seed, index). Its count is no part of its name.
- An *image metric*: of the first n images of a drawing, in a detector, against a reference.
- A *held-out measurement*: loss, difficulty or context of a model on held-out images. No sampler.
- A part that *diverged*: a training, of which from some images seen on nothing can be measured, while what it was
  before stays valid; or a held-out measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, wraps
from typing import Any, Literal, TypeVar

from pforce.base.errors import ConfigError
from pforce.base.files import digest
from pforce.config import Experiment
from pforce.metrics.config import EvaluationConfig
from pforce.metrics.distances import ImageMetric
from pforce.records.identity import canonical, canonical_sampler, canonical_timesteps, time_key, versions_of
from pforce.sampling import Sampler

Kind = Literal["training", "weights", "drawing", "image_metric", "held_out", "diverged", "tombstone"]
Average = Literal["ema", "raw", "unknown"]
Analysis = Literal["loss", "difficulty", "context"]
BFLOAT16, FLOAT32 = "bfloat16", "float32"


@dataclass(frozen=True)
class Part:
    """A part by what determines it."""

    kind: Kind
    canonical: Mapping[str, Any]
    versions: Mapping[str, int] = field(default_factory=dict)
    parents: tuple[str, ...] = ()
    """Digests of the parts that it was made from."""

    @property
    def identity(self) -> dict[str, Any]:
        """Plain data that the digest is of."""
        return {"canonical": dict(self.canonical), "versions": dict(self.versions), "parents": list(self.parents)}

    @cached_property
    def digest(self) -> str:
        """The part's name."""
        return digest(self.kind, self.identity)


@dataclass(frozen=True)
class Inputs:
    """What experiments read, by content: all of a name that is not in the experiment itself."""

    data: str
    """Hash of the data set's manifest."""
    train: int
    """Training samples."""
    validation: int
    """Held-out samples."""
    detector: str
    """Name of the detector."""
    detector_sha256: str
    """Hash of its weights."""
    preprocessing: str
    """What it does to an image, in words."""
    reference: str | None = None
    """Hash of a file of reference statistics; None where the reference are images of the data set."""
    auto: str = FLOAT32
    """What `training.precision = auto` is where this runs."""

    def tags(self) -> dict[str, str]:
        """Hashes as a run shows them."""
        found = {"data": self.data, "detector": self.detector_sha256}
        return {**found, "reference": self.reference} if self.reference else found


def training_part(experiment: Experiment, inputs: Inputs) -> Part:
    """The training of an experiment, before any decay."""
    precision = experiment.training.precision
    found = canonical(experiment.training)
    found.pop("precision", None)
    parts = {
        "model": canonical(experiment.model),
        "timesteps": canonical_timesteps(experiment.timesteps),
        "flow": canonical(experiment.flow),
        "data": {"manifest": inputs.data, **canonical(experiment.data)},
        "optimizer": canonical(experiment.optimizer),
        "training": found,
        "precision": inputs.auto if precision == "auto" else precision,
        "seed": int(experiment.seed),
    }
    versions = versions_of("training", f"timesteps.{experiment.timesteps.name}")
    return Part("training", {key: value for key, value in parts.items() if value != {}}, versions)


def branch_part(trunk: str, *, start: int, images: int) -> Part:
    """A training (its digest) whose learning rate falls from some images seen on, over so many images."""
    return Part("training", {"decay": {"start": int(start), "images": int(images)}}, parents=(trunk,))


def decay_of(training: Part) -> tuple[str, int] | None:
    """The digest of the training that this one branches off from, and the images seen there; None of a trunk."""
    if not training.parents:
        return None
    return training.parents[0], int(training.canonical["decay"]["start"])


def weights_part(training: str, images_seen: int, average: Average = "ema") -> Part:
    """Which tensors a training (its digest) has at some images seen."""
    return Part("weights", {"images_seen": int(images_seen), "average": average}, parents=(training,))


def diverged_part(of: str) -> Part:
    """That a part (its digest) did not stay finite: a training, or a held-out measurement of weights."""
    return Part("diverged", {}, parents=(of,))


def image_set(data: str, split: str, images: int) -> dict[str, Any]:
    """Images of a data set's split, spread evenly over it, by the manifest's hash."""
    return {"data": data, "split": split, "images": int(images)}


def label_cycle(labels: Sequence[int]) -> dict[str, Any]:
    """Classes in turn, by the hash of the list."""
    return {"cycle": digest("labels", [int(label) for label in labels])}


Found = TypeVar("Found")


def _once(method: Callable[[Any, str], Found]) -> Callable[[Any, str], Found]:
    """A method of a frozen value that is asked the same many times: its answer is kept beside the fields."""
    name = f"_{method.__name__}"

    @wraps(method)
    def asked(self: Any, weights: str) -> Found:
        kept: tuple[str, Found] | None = self.__dict__.get(name)
        if kept is None or kept[0] != weights:
            kept = self.__dict__[name] = (weights, method(self, weights))
        return kept[1]

    return asked


@dataclass(frozen=True)
class Request:
    """What is asked of a model, as plain data: with the model's hash it names parts."""

    images: int = 0
    """Images that are drawn and measured; 0 draws none."""
    seed: int = 0
    """Seed of the noise of drawn images and of held-out ones."""
    sampler: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, Any] = field(default_factory=dict)
    """Rule of the drawn images' classes."""
    decoder: str | None = None
    """Hash of the autoencoder that makes pixels of latents."""
    detector: Mapping[str, str] = field(default_factory=dict)
    """name, sha256, preprocessing."""
    reference: str = ""
    """What the images are compared with, by content."""
    metrics: tuple[str, ...] = ()
    held_out: Mapping[str, Any] = field(default_factory=dict)
    """Held-out images by content."""
    loss: bool = False
    difficulty: tuple[str, ...] = ()
    """Timesteps, with two decimals."""
    context: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Request:
        """The inverse of `plain`. TypeError for other fields."""
        lists = {name: tuple(data.get(name, ())) for name in ("metrics", "difficulty", "context")}
        return cls(**{**data, **lists})

    @_once
    def drawing(self, weights: str) -> Part:
        """The drawing, without its count: names the folder of its features."""
        determines = {"sampler": dict(self.sampler), "labels": dict(self.labels), "seed": self.seed}
        if self.decoder is not None:
            determines["decoder"] = self.decoder
        return Part(
            "drawing", {"weights": weights, **determines}, versions_of(f"sampler.{self.sampler.get('name', 'euler')}")
        )

    @_once
    def drawn(self, weights: str) -> Part:
        """The first `images` images of the drawing: what they cost."""
        drawing = self.drawing(weights)
        return Part("drawing", {"images": self.images}, parents=(drawing.digest,))

    @_once
    def image_parts(self, weights: str) -> dict[str, Part]:
        """Image metrics by name."""
        if not self.images:
            return {}
        drawing = self.drawing(weights).digest
        return {
            metric: Part(
                "image_metric",
                {"metric": metric, "images": self.images, "detector": dict(self.detector), "reference": self.reference},
                versions_of(f"metric.{metric}", f"detector.{self.detector['name']}"),
                (drawing,),
            )
            for metric in self.metrics
        }

    @_once
    def held_out_parts(self, weights: str) -> dict[tuple[Analysis, str], Part]:
        """Held-out measurements by what they are and their timestep."""
        wanted: list[tuple[Analysis, str]] = [("loss", "")] if self.loss else []
        wanted += [("difficulty", time) for time in self.difficulty]
        wanted += [("context", time) for time in self.context]
        found = {}
        for analysis, time in wanted:
            of = {"analysis": analysis, "held_out": dict(self.held_out), "seed": self.seed, "weights": weights}
            if time:
                of["t"] = time
            found[analysis, time] = Part("held_out", of, versions_of(f"held_out.{analysis}"))
        return found

    def parts(self, weights: str) -> Iterator[Part]:
        """All that is measured."""
        yield from self.image_parts(weights).values()
        yield from self.held_out_parts(weights).values()


@dataclass(frozen=True)
class CellParts:
    """A cell before its weights are known: a training at some images seen, and what is asked of it."""

    training: Part
    images_seen: int
    request: Request
    trunk: Part | None = None
    """The training that this one branches off from, where it is to be trained."""

    @cached_property
    def weights(self) -> Part:
        """Which tensors the training has there."""
        return weights_part(self.training.digest, self.images_seen)

    @cached_property
    def diverged(self) -> Part:
        """That the training did not stay finite."""
        return diverged_part(self.training.digest)

    @cached_property
    def digest(self) -> str:
        """The cell's name: equal for cells that give the same row."""
        return digest("cell", [self.weights.digest, sorted(part.digest for part in self.request.parts(""))])


def reference_of(evaluation: EvaluationConfig, inputs: Inputs) -> str:
    """What generated images are compared with, by content."""
    if inputs.reference is not None:
        return f"file:{inputs.reference}"
    if evaluation.reference not in ("validation", "train"):
        raise ConfigError(f"reference = {evaluation.reference!r}: must be validation, train or an .npz file")
    samples = inputs.train if evaluation.reference == "train" else inputs.validation
    return digest("images", image_set(inputs.data, evaluation.reference, evaluation.reference_count(samples)))


def metrics_of(metrics: Sequence[ImageMetric], *, extrapolate: bool) -> tuple[str, ...]:
    """Names of the image metrics, each once, in one order."""
    return tuple(sorted({*metrics, *(["frechet_infinity"] if extrapolate else [])}))


def request_of(
    evaluation: EvaluationConfig, sampler: Sampler, inputs: Inputs, *, classes: int, difficulty_head: bool
) -> Request:
    """What an experiment's evaluation asks of its model."""
    if evaluation.labels == "validation":
        count = min(evaluation.label_images, inputs.validation)
        labels: Mapping[str, Any] = image_set(inputs.data, "validation", count)
    else:
        labels = label_cycle(range(classes))
    times = (evaluation.difficulty_timesteps, evaluation.context_timesteps) if difficulty_head else ((), ())
    return Request(
        images=int(evaluation.images),
        seed=int(evaluation.seed),
        sampler=canonical_sampler(sampler),
        labels=labels,
        detector={
            "name": inputs.detector, "sha256": inputs.detector_sha256, "preprocessing": inputs.preprocessing
        },
        reference=reference_of(evaluation, inputs),
        metrics=metrics_of(evaluation.metrics, extrapolate=evaluation.extrapolate),
        held_out=image_set(inputs.data, "validation", min(evaluation.held_out_images, inputs.validation)),
        loss=True,
        difficulty=tuple(sorted({time_key(time) for time in times[0]})),
        context=tuple(sorted({time_key(time) for time in times[1]})),
    )  # fmt: skip


def cell_parts(experiment: Experiment, inputs: Inputs) -> CellParts:
    """An experiment as the parts that make its row."""
    request = request_of(
        experiment.evaluation,
        experiment.sampler,
        inputs,
        classes=experiment.model.classes,
        difficulty_head=experiment.model.difficulty_head,
    )
    trunk, images, decay = (
        training_part(experiment, inputs),
        experiment.training.images,
        experiment.optimizer.decay_images,
    )
    if not decay:
        return CellParts(trunk, int(images), request)
    return CellParts(branch_part(trunk.digest, start=images - decay, images=decay), int(images), request, trunk)
