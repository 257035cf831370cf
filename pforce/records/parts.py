"""Parts, which are measured at once and kept under one name, and requests for parts of a model.

- A *training*: everything that determines the weights as a function of images seen.
- *Weights*: which tensors a training has at some images seen. Measurements are named by the tensors' own hash.
- A *drawing*: a model's images under one sampler, keyed by (seed, index). Their number is not part of its name.
- An *image metric*: of the first n images of a drawing, in a detector, against a reference.
- A *held-out measurement*: loss, difficulty or context of a model on held-out images. No sampler.
- A part that *diverged*: a training that cannot be measured from some images seen on, while its earlier states stay
  valid; or a held-out measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, wraps
from typing import Any, Literal, TypeVar

from pforce.base.errors import ConfigError
from pforce.base.files import digest
from pforce.config import Experiment
from pforce.metrics.config import EvaluationConfig
from pforce.metrics.distances import NEAREST, ImageMetric, of_further
from pforce.records.contents import image_set, label_cycle, training_reference
from pforce.records.identity import canonical, canonical_sampler, canonical_timesteps, time_key, versions_of
from pforce.sampling import Sampler

Kind = Literal["training", "weights", "drawing", "image_metric", "held_out", "diverged", "tombstone"]
Average = Literal["ema", "raw", "unknown"]
Analysis = Literal["loss", "difficulty", "context"]
BFLOAT16, FLOAT32 = "bfloat16", "float32"


@dataclass(frozen=True)
class Part:
    """A part, given by everything that determines it."""

    kind: Kind
    canonical: Mapping[str, Any]
    versions: Mapping[str, int] = field(default_factory=dict)
    parents: tuple[str, ...] = ()
    """Digests of the parts that it is made from."""

    @property
    def identity(self) -> dict[str, Any]:
        """Plain data whose hash is the digest."""
        return {"canonical": dict(self.canonical), "versions": dict(self.versions), "parents": list(self.parents)}

    @cached_property
    def digest(self) -> str:
        """The part's name, 32 hexadecimal digits."""
        return digest(self.kind, self.identity)


@dataclass(frozen=True)
class Inputs:
    """Hashes and counts of everything that experiments read: all of a name that is not in the experiment itself."""

    data: str
    """Hash of the data set's manifest."""
    train: int
    """Number of training samples."""
    validation: int
    """Number of held-out samples."""
    detector: str
    """Name of the detector."""
    detector_sha256: str
    """Hash of the detector's weights."""
    preprocessing: str
    """The detector's preprocessing of an image, in words."""
    reference: str | None = None
    """Hash of a file of reference statistics; None where the reference consists of images of the data set."""
    auto: str = FLOAT32
    """The precision that `training.precision = auto` stands for where this runs."""
    further: tuple[tuple[str, str, str], ...] = ()
    """Name, hash and preprocessing of each further detector."""

    def tags(self) -> dict[str, str]:
        """Hashes as tags of a run."""
        found = {"data": self.data, "detector": self.detector_sha256}
        return {**found, "reference": self.reference} if self.reference else found


def training_part(experiment: Experiment, inputs: Inputs) -> Part:
    """The training of an experiment, without its decay."""
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
    """A branch of a training (its digest): from `start` images seen on, the learning rate decays over `images`
    images."""
    return Part("training", {"decay": {"start": int(start), "images": int(images)}}, parents=(trunk,))


def decay_of(training: Part) -> tuple[str, int] | None:
    """The digest of the training that this one branches off from, and the images seen there; None for a trunk."""
    if not training.parents:
        return None
    return training.parents[0], int(training.canonical["decay"]["start"])


def weights_part(training: str, images_seen: int, average: Average = "ema") -> Part:
    """The weights of a training (its digest) at some images seen."""
    return Part("weights", {"images_seen": int(images_seen), "average": average}, parents=(training,))


def diverged_part(of: str) -> Part:
    """The divergence of a part (its digest): a training, or a held-out measurement of weights, that did not stay
    finite."""
    return Part("diverged", {}, parents=(of,))


def labels_of(evaluation: EvaluationConfig, inputs: Inputs | None, classes: int) -> Mapping[str, Any]:
    """The rule for the classes of drawn images, by content. Without a data set, `validation` takes classes in turn."""
    if evaluation.labels == "random":
        return {"random": int(classes), "seed": int(evaluation.seed)}
    if evaluation.labels == "validation" and inputs is not None:
        return image_set(inputs.data, "validation", min(evaluation.label_images, inputs.validation))
    return label_cycle(range(classes))


Found = TypeVar("Found")


def _once(method: Callable[[Any, str], Found]) -> Callable[[Any, str], Found]:
    """Decorator of a frozen value's method that is called often with the same argument: its last result is kept."""
    name = f"_{method.__name__}"

    @wraps(method)
    def asked(self: Any, weights: str) -> Found:
        kept: tuple[str, Found] | None = self.__dict__.get(name)
        if kept is None or kept[0] != weights:
            kept = self.__dict__[name] = (weights, method(self, weights))
        return kept[1]

    return asked


def metric_key(metric: str, further: str | None) -> str:
    """Name of a part among those of one request.

    Args:
        further: name of the further detector; None for the first one.
    """
    return metric if further is None else f"{metric}/{further}"


def metric_parts(
    images: Mapping[str, Any], detectors: Sequence[Mapping[str, str]], metrics: Sequence[str], *, reference: str,
    held_out: Mapping[str, Any], parents: tuple[str, ...] = (),
) -> dict[str, Part]:  # fmt: skip
    """Parts of image metrics, by name: `frechet`, and of a further detector `frechet/inception`.

    Args:
        images: what names the images, beside the parents.
        detectors: the detector and the further ones: name, sha256, preprocessing.
        reference: reference that the images are compared with, by content.
        held_out: held-out images, as `image_set` states them, for memorisation.
    """
    return {
        metric_key(metric, None if place == 0 else detector["name"]): Part(
            "image_metric",
            {
                "metric": metric, **images, "detector": dict(detector),
                "reference": training_reference(held_out) if metric == NEAREST else reference,
            },
            versions_of(f"metric.{metric}", f"detector.{detector['name']}"),
            parents,
        )
        for place, detector in enumerate(detectors)
        for metric in (metrics if place == 0 else of_further(metrics))
    }  # fmt: skip


@dataclass(frozen=True)
class Request:
    """The measurements that are requested of a model, as plain data: with the model's hash it names parts."""

    images: int = 0
    """Number of images that are drawn and measured; 0 draws none."""
    seed: int = 0
    """Seed of the noise of drawn images and of held-out ones."""
    sampler: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, Any] = field(default_factory=dict)
    """Rule for the classes of drawn images."""
    decoder: str | None = None
    """Hash of the autoencoder that decodes latents to pixels."""
    detector: Mapping[str, str] = field(default_factory=dict)
    """Detector: name, sha256, preprocessing."""
    further: tuple[Mapping[str, str], ...] = ()
    """Further detectors, whose metrics are measured on the same images against the same reference."""
    reference: str = ""
    """Reference that the images are compared with, by content."""
    metrics: tuple[str, ...] = ()
    held_out: Mapping[str, Any] = field(default_factory=dict)
    """Held-out images, by content."""
    loss: bool = False
    difficulty: tuple[str, ...] = ()
    """Timesteps of difficulty, with two decimals."""
    context: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """The request as plain data; without further detectors, as they were before these existed."""
        plain = asdict(self)
        return plain if self.further else {name: value for name, value in plain.items() if name != "further"}

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Request:
        """The inverse of `plain`. TypeError for other fields."""
        lists = {name: tuple(data.get(name, ())) for name in ("metrics", "difficulty", "context", "further")}
        return cls(**{**data, **lists})

    @_once
    def drawing(self, weights: str) -> Part:
        """The drawing without its number of images; its digest names the folder of its features."""
        determines = {"sampler": dict(self.sampler), "labels": dict(self.labels), "seed": self.seed}
        if self.decoder is not None:
            determines["decoder"] = self.decoder
        return Part(
            "drawing", {"weights": weights, **determines}, versions_of(f"sampler.{self.sampler.get('name', 'euler')}")
        )

    @_once
    def drawn(self, weights: str) -> Part:
        """The part for the first `images` images of the drawing, whose record holds their cost."""
        drawing = self.drawing(weights)
        return Part("drawing", {"images": self.images}, parents=(drawing.digest,))

    @property
    def needs_pixels(self) -> bool:
        """Whether any metric compares pixels, which are then kept beside the features."""
        return NEAREST in self.metrics

    @cached_property
    def each(self) -> tuple[Request, ...]:
        """The request with each of its detectors alone; they share the drawing."""
        further = of_further(self.metrics)
        others = (replace(self, detector=other, metrics=further, further=()) for other in self.further)
        return (replace(self, further=()), *others)

    @_once
    def image_parts(self, weights: str) -> dict[str, Part]:
        """Parts of image metrics, by name: `frechet`, and of a further detector `frechet/inception`."""
        if not self.images:
            return {}
        return metric_parts(
            {"images": self.images}, (self.detector, *self.further), self.metrics, reference=self.reference,
            held_out=self.held_out, parents=(self.drawing(weights).digest,),
        )  # fmt: skip

    @_once
    def held_out_parts(self, weights: str) -> dict[tuple[Analysis, str], Part]:
        """Parts of held-out measurements, by analysis and timestep."""
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
        """All parts that are measured."""
        yield from self.image_parts(weights).values()
        yield from self.held_out_parts(weights).values()


@dataclass(frozen=True)
class CellParts:
    """A cell before its weights are known: a training at some images seen, and the request for it."""

    training: Part
    images_seen: int
    request: Request
    trunk: Part | None = None
    """The training that this one branches off from, where there is one."""

    @cached_property
    def weights(self) -> Part:
        """The part of the training's weights there."""
        return weights_part(self.training.digest, self.images_seen)

    @cached_property
    def diverged(self) -> Part:
        """The part of the training's divergence."""
        return diverged_part(self.training.digest)

    @cached_property
    def digest(self) -> str:
        """The cell's name: equal for cells that give the same row."""
        return digest("cell", [self.weights.digest, sorted(part.digest for part in self.request.parts(""))])


def reference_of(evaluation: EvaluationConfig, inputs: Inputs) -> str:
    """The reference that generated images are compared with, by content."""
    if inputs.reference is not None:
        return f"file:{inputs.reference}"
    if evaluation.reference not in ("validation", "train"):
        raise ConfigError(f"reference = {evaluation.reference!r}: must be validation, train or an .npz file")
    samples = inputs.train if evaluation.reference == "train" else inputs.validation
    return digest("images", image_set(inputs.data, evaluation.reference, evaluation.reference_count(samples)))


def metrics_of(metrics: Sequence[ImageMetric], *, extrapolate: bool) -> tuple[str, ...]:
    """Names of the image metrics, each once, sorted."""
    return tuple(sorted({*metrics, *(["frechet_infinity"] if extrapolate else [])}))


def request_of(
    evaluation: EvaluationConfig, sampler: Sampler, inputs: Inputs, *, classes: int, difficulty_head: bool
) -> Request:
    """The request of an experiment's evaluation."""
    times = (evaluation.difficulty_timesteps, evaluation.context_timesteps) if difficulty_head else ((), ())
    return Request(
        images=int(evaluation.images),
        seed=int(evaluation.seed),
        sampler=canonical_sampler(sampler),
        labels=labels_of(evaluation, inputs, classes),
        detector={
            "name": inputs.detector, "sha256": inputs.detector_sha256, "preprocessing": inputs.preprocessing
        },
        further=tuple(
            {"name": name, "sha256": sha256, "preprocessing": told} for name, sha256, told in inputs.further
        ),
        reference=reference_of(evaluation, inputs),
        metrics=metrics_of(evaluation.metrics, extrapolate=evaluation.extrapolate),
        held_out=image_set(inputs.data, "validation", min(evaluation.held_out_images, inputs.validation)),
        loss=True,
        difficulty=tuple(sorted({time_key(time) for time in times[0]})),
        context=tuple(sorted({time_key(time) for time in times[1]})),
    )  # fmt: skip


def request_for(
    evaluation: EvaluationConfig, inputs: Inputs | None, measured: Collection[str], *, classes: int
) -> Request:
    """The request to any model, without sampler, detector and reference.

    Args:
        inputs: inputs of the data set; None where there is none, and nothing is held out.
        measured: some of images, loss, difficulty and context.
    """
    held_out: Mapping[str, Any] = {}
    if inputs is not None:
        held_out = image_set(inputs.data, "validation", min(evaluation.held_out_images, inputs.validation))
    difficulty = evaluation.difficulty_timesteps if "difficulty" in measured else ()
    context = evaluation.context_timesteps if "context" in measured else ()
    return Request(
        images=evaluation.images if "images" in measured else 0,
        seed=evaluation.seed,
        labels=labels_of(evaluation, inputs, classes),
        metrics=metrics_of(evaluation.metrics, extrapolate=evaluation.extrapolate),
        held_out=held_out,
        loss="loss" in measured,
        difficulty=tuple(sorted({time_key(t) for t in difficulty})),
        context=tuple(sorted({time_key(t) for t in context})),
    )


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
