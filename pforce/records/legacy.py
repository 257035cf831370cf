"""The formats of commit 0641df2: its names of results and its lines of JSON. For `pforce records migrate` only.

Every old fingerprint is computed again from the parameters beside it, so that no result is migrated under another
result's name.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pforce.base.errors import ConfigError, FieldError
from pforce.base.foreign import ForeignError, open_regular, parse_json, quoted
from pforce.config import Experiment, from_dict, sampler_from_dict, to_dict
from pforce.metrics.config import MOST_VALIDATION
from pforce.records.record import RecordError
from pforce.timesteps import SAMPLERS

FORMAT = 1
RESULT_VERSION, TRAINING_VERSION = 2, 1
NOT_IN_FINGERPRINT = (
    "name", "model.attention", "data.path", "training.accumulation", "training.compile", "training.checkpoint_every",
    "training.log_every", "evaluation.batch", "evaluation.detector_weights",
)  # fmt: skip
NEEDED = ("sweep", "name", "fingerprint", "params", "metrics", "tags", "started", "ended", "files")
MOST_LINE = 4 << 20


def _digest(record: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=16).hexdigest()


def canonical(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that determined a result, from an experiment as plain data in the old format."""
    data: dict[str, Any] = copy.deepcopy(dict(plain))
    fields = dict(data["timesteps"])
    data["timesteps"] = to_dict(SAMPLERS[fields.pop("name")](**fields).canonical())
    attention = data["model"]["attention"]
    data["model"].pop("modulation", None)  # did not exist, and does not change results beyond rounding
    data["training"].pop("checkpoint_minutes", None)  # likewise
    for path in NOT_IN_FINGERPRINT:
        *parents, leaf = path.split(".")
        target = data
        for parent in parents:
            target = target[parent]
        del target[leaf]
    data["sampler"] = _sampler(data["sampler"])
    evaluation = data["evaluation"]
    if evaluation["reference"].endswith(".npz"):
        evaluation["reference"] = "file"
    evaluation["metrics"] = sorted(evaluation["metrics"])
    if not evaluation.get("context_timesteps"):
        evaluation.pop("context_timesteps", None)
    if attention != "sdpa":
        data["model"]["attention"] = attention
    return data


def _sampler(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that determined the images: numbers as they were written, and a shift where one was given."""
    found = sampler_from_dict(plain).canonical()
    given = {name: plain[name] for name in (*found, "shift") if plain.get(name) is not None}
    return {**found, **given, "num_function_evaluations": found["num_function_evaluations"]}


def fingerprint(plain: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """The old name of a cell's result."""
    return _digest({"version": RESULT_VERSION, "inputs": dict(inputs), "experiment": canonical(plain)})


def training_fingerprint(plain: Mapping[str, Any], data: str) -> str:
    """The old name of a training."""
    trained = {name: value for name, value in canonical(plain).items() if name not in ("sampler", "evaluation")}
    return _digest({"version": TRAINING_VERSION, "data": data, "training": trained})


def plain_of(params: Mapping[str, str]) -> dict[str, Any]:
    """An experiment as plain data, from a run's flat parameters."""
    data: dict[str, Any] = {}
    for path, text in params.items():
        *parents, leaf = ("timesteps.name" if path == "timesteps" else path).split(".")
        target = data
        for parent in parents:
            target = target.setdefault(parent, {})
        target[leaf] = _value(text)
    return data


def _value(text: str) -> Any:
    try:
        value = ast.literal_eval(text)  # numbers, lists, True, None; it runs nothing
    except (ValueError, SyntaxError):
        return text
    return list(value) if isinstance(value, tuple) else value


def experiment_of(plain: Mapping[str, Any]) -> Experiment:
    """The present experiment for plain data in the old format, where one number decided held-out images, classes and
    reference."""
    data: dict[str, Any] = copy.deepcopy(dict(plain))
    evaluation = data["evaluation"]
    held_out = evaluation.pop("validation_images", MOST_VALIDATION)
    evaluation |= {"held_out_images": held_out, "label_images": held_out}
    if evaluation.get("reference", "validation") == "validation":
        evaluation["reference_images"] = held_out
    return from_dict(data)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of records in the old format. Damaged lines are skipped with a warning.

    RecordError where the file cannot be read, or is not such a file.
    """
    found: list[dict[str, Any]] = []
    try:
        with open_regular(path) as file:
            lines = list(iter(lambda: file.readline(MOST_LINE + 1), b""))
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: cannot be read as records: {error}") from error
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        try:
            record = parse_json(line)
        except ForeignError:
            warnings.warn(f"{where}: skipped, as it is not a whole record", stacklevel=2)
            continue
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            kind = record.get("format") if isinstance(record, dict) else type(record).__name__
            raise RecordError(f"{where}: format {quoted(kind)}, where lines of format {FORMAT} are migrated")
        if lacking := [name for name in NEEDED if name not in record]:
            raise RecordError(f"{where}: lacks {', '.join(lacking)}")
        try:
            checked(record)
        except (TypeError, ValueError) as error:
            raise RecordError(f"{where}: {error}") from error
        found.append(record)
    return found


def checked(record: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError where a line holds a value that does not belong there."""
    for name in ("params", "tags"):
        if not isinstance(record[name], dict) or not all(isinstance(value, str) for value in record[name].values()):
            raise TypeError(f"{name} is not a table of texts")
    if not isinstance(record["metrics"], dict):
        raise TypeError("metrics is not a table")
    for name, value in record["metrics"].items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise TypeError(f"metrics.{quoted(name)} = {quoted(value)}: is not a finite number")
    for name in ("started", "ended"):
        if isinstance(record[name], bool) or not isinstance(record[name], int | float):
            raise TypeError(f"{name} is not a time")
    for name in ("sweep", "name", "fingerprint"):
        if not isinstance(record[name], str):
            raise TypeError(f"{name} is not a text")
    if not isinstance(record["files"], list) or not all(isinstance(each, str) for each in record["files"]):
        raise TypeError("files is not a list of names")


NOT_WELL_FORMED = (ConfigError, FieldError, KeyError, TypeError, ValueError, AttributeError)
"""Errors that parameters raise that are not an experiment."""
