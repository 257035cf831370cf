"""Names of metrics as values: written by measurements, read back by tables and figures.

`fd/openmoji_low` is the lower bound of the Fréchet distance in features of openmoji; `context/loss_t0.10_at0.400` is a
loss at timestep 0.1 with context at time 0.4. Names are keys of records, so they must stay valid for years: a new kind
is a line in `KINDS`, and an old name never changes. A name never rounds: a timestep with more decimals than its kind
shows is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

from pforce.base.errors import FieldError, did_you_mean, require, require_applies

Beside = Literal["low", "high", "images", "reference_images", "features", "held_out_images", "threshold"]
"""Endings of names of numbers that stand beside a value: bounds of its interval over images, counts of what it was
measured on, and the threshold that it counts below."""
BESIDE: tuple[Beside, ...] = get_args(Beside)
OF_DISTANCES = BESIDE[:5]
OF_MEMORISATION: tuple[Beside, ...] = tuple(beside for beside in BESIDE if beside != "features")
BOUNDS: tuple[Beside, Beside] = ("low", "high")
COUNTS: tuple[Beside, Beside] = ("images", "reference_images")


class Kind(NamedTuple):
    """The fields of the names of one kind."""

    keys: tuple[str, ...] = ()
    """Fields of `MetricName` that all of them have."""
    optional: tuple[str, ...] = ()
    """Fields that some of them have."""
    beside: tuple[Beside, ...] = ()
    decimals: int = 2
    """Decimals of the timestep in the name."""
    larger_is_better: bool = False


class CostName:
    """Names of the metrics of a cell's cost."""

    NFE = "cost/nfe"
    FORWARD_PASSES = "cost/forward_passes"
    """Forward passes of the model per image."""
    FLOPS = "cost/flops_per_image"
    SAMPLING_SECONDS = "cost/sampling_seconds_per_image"
    IMAGES_SEEN = "cost/images_seen"
    """Images that the training has seen."""
    TRAINING_SECONDS = "cost/training_seconds"
    EVALUATION_SECONDS = "cost/evaluation_seconds"
    SECONDS = "cost/seconds"
    """Seconds of training and evaluation together."""
    DEVICE_HOURS = "cost/device_hours"
    TRUNK_SECONDS = "cost/trunk_seconds"
    """Training seconds of the trunk that a branch starts from; counted once where both are added up."""
    TRUNK_IMAGES = "cost/trunk_images"
    TRUNK_DEVICE_HOURS = "cost/trunk_device_hours"


COSTS: tuple[str, ...] = tuple(value for name, value in vars(CostName).items() if name.isupper())
THROUGHPUT = "throughput/images_per_second"
DAMAGED_SAMPLES = "data/damaged_samples"
HELD_OUT_IMAGES = "data/held_out_images"
VALIDATION_LOSS = "val/loss"

DISTANCES = (
    "fd", "fd_infinity", "sfd", "kd", "precision", "recall", "is",
    "precision_adm", "recall_adm", "is_adm", "density", "coverage", "swd",
    "class_accuracy", "class_kd",
)  # fmt: skip
"""Kinds of metrics of generated images, in the order of tables."""
LARGER_IS_BETTER = (
    "precision",
    "recall",
    "is",
    "precision_adm",
    "recall_adm",
    "is_adm",
    "density",
    "coverage",
    "class_accuracy",
)
"""Kinds of `DISTANCES` whose larger values are better."""
PER_CLASS = ("per_class/kd",)
"""Kinds of metrics of the generated images of one class: `per_class/kd/openmoji_c3`. They are no headline metrics."""
MEMORISATION = ("memorisation/auc", "memorisation/copies")
"""Kinds of metrics of the distance to the nearest training image in a detector's features."""
PIXEL_MEMORISATION = ("memorisation/pixel_auc", "memorisation/pixel_copies")
"""Kinds of its metrics in pixels. They have no detector, so that none can be taken for them, whatever it is called."""
OF_INCEPTION = {"fd": "fid", "fd_infinity": "fid_infinity", "sfd": "sfid", "kd": "kid"}
"""Names of the distances in Inception's features. With other detectors the numbers are not FID, sFID or KID, and have
other names: `fd/openmoji`."""
DIFFICULTY = ("difficulty/pearson", "difficulty/spearman")
CALIBRATION = ("calibration/error", "calibration/expected", "calibration/observed")
CONTEXT = (
    "context/loss", "context/change_at_2t", "context/minimum", "context/change_at_minimum",
    "context/log_sigma_change", "context/log_sigma",
)  # fmt: skip
CURVE_POINT = (
    "train/loss", "train/mse", "train/nll", "train/gradient_norm", "train/learning_rate", "train/images_seen",
)  # fmt: skip
"""Metrics at the points of a training's curve."""

KINDS: dict[str, Kind] = {
    **{name: Kind(("detector",), beside=OF_DISTANCES, larger_is_better=name in LARGER_IS_BETTER) for name in DISTANCES},
    **{name: Kind(("detector", "label"), beside=OF_DISTANCES) for name in PER_CLASS},
    **{name: Kind(("detector",), beside=OF_MEMORISATION) for name in MEMORISATION},
    **{name: Kind(beside=OF_MEMORISATION) for name in PIXEL_MEMORISATION},
    VALIDATION_LOSS: Kind(optional=("t",), decimals=4),
    **{name: Kind(("t",), beside=BOUNDS, larger_is_better=True) for name in DIFFICULTY},
    "calibration/error": Kind(("t",)),
    "calibration/expected": Kind(("t", "decile")),
    "calibration/observed": Kind(("t", "decile")),
    "context/loss": Kind(("t",), optional=("context_time",), beside=BOUNDS),
    "context/change_at_2t": Kind(("t",), beside=BOUNDS),
    "context/minimum": Kind(("t",)),
    "context/change_at_minimum": Kind(("t",)),
    "context/log_sigma_change": Kind(("t",), beside=BOUNDS),
    "context/log_sigma": Kind(("t", "shown", "statistic")),
    **{name: Kind() for name in COSTS},
    THROUGHPUT: Kind(larger_is_better=True),
    DAMAGED_SAMPLES: Kind(),
    HELD_OUT_IMAGES: Kind(),
    **{name: Kind() for name in CURVE_POINT},
}
INCEPTION = "inception"
CLASS = "c"
"""Letter before the number of a class in names."""
CONTEXT_DECIMALS = 3
"""Decimals of a context time."""
FIELDS = ("detector", "label", "t", "context_time", "decile", "shown", "statistic")


def _time_text(field: str, time: float, decimals: int) -> str:
    """A time as text in names: `0.20`. FieldError for a time with more decimals, which a name would round."""
    text = f"{time:.{decimals}f}"
    exact = 0 <= time <= 1 and abs(float(text) - time) < 1e-9
    require(exact, field, time, f"in [0, 1], of at most {decimals} decimals, as metrics are named by it")
    return text


@dataclass(frozen=True)
class MetricName:
    """A metric's name. FieldError for fields that do not fit its kind."""

    kind: str
    """A key of `KINDS`."""
    detector: str | None = None
    """Feature detector of a distance, a name without blanks."""
    t: float | None = None
    context_time: float | None = None
    """Time of the patches that are shown as context, with at most three decimals."""
    decile: int | None = None
    """Decile of the patches by expected error, 1 to 10."""
    shown: Literal["alone", "context"] | None = None
    """Whether uncertain patches are predicted alone or with context."""
    statistic: int | Literal["mean"] | None = None
    """Statistic of a distribution: `mean`, or a quantile in percent."""
    beside: Beside | None = None
    """Relation to the value it stands beside; None for a value itself."""
    label: int | None = None
    """Class of the images: an index into the data set's classes."""

    def __post_init__(self) -> None:
        kind = KINDS.get(self.kind)
        if kind is None:
            raise FieldError("kind", self.kind, f"a metric's kind: {did_you_mean(self.kind, KINDS)}")
        for field in FIELDS:
            given = getattr(self, field) is not None
            require(given or field not in kind.keys, field, None, f"given in a name of {self.kind}")
            allowed = not given or field in (*kind.keys, *kind.optional)
            require_applies(allowed, field, getattr(self, field), f"to a name of {self.kind}")
        beside = self.beside is None or self.beside in kind.beside
        require(beside, "beside", self.beside, f"one of {', '.join(kind.beside) or 'none'} in a name of {self.kind}")
        if self.detector is not None:
            whole = self.detector.split() == [self.detector]
            require(whole, "detector", self.detector, "a name without blanks, as metrics are named by it")
        for field, decimals in (("t", kind.decimals), ("context_time", CONTEXT_DECIMALS)):
            time = getattr(self, field)
            if time is not None:  # 3 × 0.1 and 0.3 are one name, and so one value; −0.0 + 0.0 is 0.0
                object.__setattr__(self, field, float(_time_text(field, time, decimals)) + 0.0)
        require(self.label is None or self.label >= 0, "label", self.label, "≥ 0")
        require(self.decile is None or self.decile in range(1, 11), "decile", self.decile, "1 to 10")
        require(self.shown in (None, "alone", "context"), "shown", self.shown, "alone or context")
        percent = self.statistic in (None, "mean") or self.statistic in range(101)
        require(percent, "statistic", self.statistic, "mean, or a quantile in percent")

    def __str__(self) -> str:
        parts = [
            None if self.label is None else f"{CLASS}{self.label}",
            None if self.t is None else f"t{_time_text('t', self.t, KINDS[self.kind].decimals)}",
            None if self.context_time is None else f"at{self.context_time:.{CONTEXT_DECIMALS}f}",
            None if self.decile is None else f"d{self.decile}",
            self.shown,
            self.statistic if self.statistic in (None, "mean") else f"q{self.statistic:02d}",
            self.beside,
        ]
        head = self.short if self.detector in (None, INCEPTION) else f"{self.kind}/{self.detector}"
        return "_".join([head, *filter(None, parts)])

    @property
    def short(self) -> str:
        """Short name of a distance where its detector is known: `fid` with Inception, else `fd`."""
        return OF_INCEPTION.get(self.kind, self.kind) if self.detector == INCEPTION else self.kind

    @property
    def value(self) -> MetricName:
        """The name of the value that this number stands beside."""
        return self.with_beside(None)

    @property
    def bounds(self) -> tuple[MetricName, MetricName]:
        """Names of the bounds of the value's interval over images."""
        low, high = BOUNDS
        return self.with_beside(low), self.with_beside(high)

    @property
    def larger_is_better(self) -> bool:
        """Whether larger values are better: true of correlations, precision, recall, scores and throughput."""
        return KINDS[self.kind].larger_is_better

    def with_beside(self, beside: Beside | None) -> MetricName:
        """The name of a number beside the same value; None gives the value itself."""
        return dataclasses.replace(self, beside=beside)

    @classmethod
    def parse(cls, text: str) -> MetricName | None:
        """The name that prints as this text; None for a text that is no metric's name.

        An ending such as `_low` is read as `beside`. Where a detector may be called `mine_low`, only the other names
        tell which is meant: see `read_names`.
        """
        return next(iter(_readings(text)), None)


def read_names(texts: Iterable[str]) -> dict[str, MetricName]:
    """The metric names among texts that belong together, such as the keys of one row.

    `fd/mine_low` is a bound where `fd/mine` is there. Where it is not, or where `fd/mine_low_images` is there too, it
    is the distance of a detector `mine_low`.
    """
    there = dict.fromkeys(map(str, texts))
    found = {}
    for text in there:
        readings = _readings(text)
        if len(readings) > 1:
            own = f"{text}_{COUNTS[0]}" in there
            chosen = (name for name in readings if name.beside and str(name.value) in there and not own)
            found[text] = next(chosen, readings[-1])
        elif readings:
            found[text] = readings[0]
    return found


MOST_HEADLINE = 29
"""Most headline metrics of a cell: more hide each other on a page."""
HEADLINE_TIMES = (0.2, 0.6)
"""Timesteps of the difficulty correlations of a table."""
MOST_TIMES = 2


def headline(metrics: Iterable[str]) -> list[str]:
    """The headline metrics among the names of a row, in the order of tables, at most 29: losses, distances, two
    difficulty correlations, costs, throughput and the training's last point. Bounds, counts, deciles and curves over t
    are none."""
    names = {text: name for text, name in read_names(metrics).items() if name.beside is None}
    correlations = sorted(
        (text for text, name in names.items() if name.kind == DIFFICULTY[0]),
        key=lambda text: (names[text].t not in HEADLINE_TIMES, names[text].t),
    )[:MOST_TIMES]
    ranks = (VALIDATION_LOSS, *DISTANCES, MEMORISATION[0], PIXEL_MEMORISATION[0], *COSTS, THROUGHPUT, *CURVE_POINT,
             DAMAGED_SAMPLES)  # fmt: skip
    plain = {text: ranks.index(name.kind) for text, name in names.items()
             if name.kind in ranks and name.t is None}  # fmt: skip
    first = [text for text, rank in plain.items() if rank == 0]
    rest = sorted((text for text in plain if text not in first), key=plain.__getitem__)
    of_images = [text for text in rest if names[text].detector is not None]
    others = [text for text in rest if names[text].detector is None]
    room = MOST_HEADLINE - len(first) - len(correlations) - len(others)
    return [*first, *of_images[: max(0, room)], *correlations, *others]


def interval_names(metric: str) -> tuple[str, str]:
    """Names of the bounds of the interval over images, for any metric of a table."""
    low, high = BOUNDS
    return f"{metric}_{low}", f"{metric}_{high}"


@lru_cache(maxsize=1 << 14)
def _readings(text: str) -> tuple[MetricName, ...]:
    """All names that print as this text: those with the longest ending first, the one without an ending last."""
    found = []
    for ending in (*sorted(BESIDE, key=len, reverse=True), None):
        head = text if ending is None else text.removesuffix(f"_{ending}")
        if ending is not None and head == text:
            continue
        fields = _fields(head)
        name = None if fields is None else _checked({**fields, "beside": ending})
        if name is not None and str(name) == text:
            found.append(name)
    return tuple(found)


def _checked(fields: dict[str, Any]) -> MetricName | None:
    try:
        return MetricName(**fields)
    except FieldError:
        return None


def _fields(head: str) -> dict[str, Any] | None:
    """The fields of a name without its ending; None where the text begins no name."""
    for kind in (*DISTANCES, *MEMORISATION):
        if head == OF_INCEPTION.get(kind, kind):
            return {"kind": kind, "detector": INCEPTION}
        if head.startswith(f"{kind}/"):
            return {"kind": kind, "detector": head.removeprefix(f"{kind}/")}
    for kind in PER_CLASS:
        own, _, label = head.rpartition(f"_{CLASS}")
        if label.isdecimal() and (own == kind or own.startswith(f"{kind}/")):
            return {"kind": kind, "detector": own.removeprefix(kind)[1:] or INCEPTION, "label": int(label)}
    kinds = [kind for kind in KINDS if head == kind or head.startswith(f"{kind}_")]
    if not kinds:
        return None
    kind = max(kinds, key=len)
    try:
        return {"kind": kind, **dict(_keys(head.removeprefix(kind).split("_")[1:]))}
    except ValueError:
        return None


def _keys(words: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Field and value of each word of a name, such as t0.20, at0.400, d3, alone, mean, q50. ValueError for other
    words."""
    for word in words:
        if word in ("alone", "context"):
            yield "shown", word
        elif word == "mean":
            yield "statistic", word
        elif word.startswith("at"):
            yield "context_time", float(word.removeprefix("at"))
        elif word.startswith("t"):
            yield "t", float(word.removeprefix("t"))
        elif word.startswith("d"):
            yield "decile", int(word.removeprefix("d"))
        elif word.startswith("q"):
            yield "statistic", int(word.removeprefix("q"))
        else:
            raise ValueError(f"{word} is no word of a metric's name")
