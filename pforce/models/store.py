"""pforce's model file: one safetensors file with the weights, the configuration, and their source.

Its metadata are three strings: `format`, `config` (JSON of the `ModelConfig`'s fields) and `about` (JSON of a flat
dict). It holds no code, so a file from any source can be opened.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from pforce.base.errors import FieldError, InputError, require
from pforce.base.files import write_whole
from pforce.base.foreign import ForeignError, parse_object, quoted
from pforce.base.tensors import read_safetensors
from pforce.models.config import Attention, ModelConfig
from pforce.models.transformer import PatchForcingTransformer
from pforce.models.weights import WeightsError, filled, float_weights, listed, named_tensors

FORMAT = "pforce-model-1"
SINCE: Mapping[str, object] = {"modulation": "interpolated"}
"""Fields that older files lack → their value. They change nothing but rounding."""


class ModelFileError(InputError, ValueError):
    """A file is not a model file of ours, is damaged, or its weights do not fit its configuration."""


def save_model(model: PatchForcingTransformer, path: str | Path, *, about: Mapping[str, object] = {}) -> None:
    """Write a model to one file, float32, whole or not at all.

    Args:
        about: facts about the weights (source, images seen), stored as they are.

    Raises:
        FieldError: a value of `about` is not a string, a finite number, a boolean or None.
        ModelFileError: the weights are not finite.
    """
    for key, value in about.items():
        require(isinstance(key, str), "about", key, "a dict with strings for keys")
        plain = value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
        require(plain, f"about.{key}", value, "a string, a finite number, true, false or None")
    try:
        weights = float_weights(model)
    except WeightsError as error:
        raise ModelFileError(f"{path}: not written: {error}") from error
    metadata = {
        "format": FORMAT,
        "config": json.dumps(dataclasses.asdict(model.config)),
        "about": json.dumps(dict(about)),
    }
    write_whole(Path(path), lambda scratch: save_file(weights, scratch, metadata))


def _fields(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    """One of the metadata's JSON objects. WeightsError where it is not one."""
    try:
        return parse_object(metadata.get(name, "null"))
    except ForeignError as error:
        raise WeightsError(f"{name}: {error}") from error


def _config(record: dict[str, Any]) -> ModelConfig:
    """The configuration in a file's metadata. WeightsError names fields that are unknown, missing or of a wrong
    type."""
    defaults = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
    unknown = sorted(record.keys() - defaults.keys())
    missing = sorted(defaults.keys() - record.keys() - SINCE.keys())
    if unknown:
        raise WeightsError(f"config has fields that this version does not know: {listed(unknown)}")
    if missing:  # a default in its place could be another model than the one that was saved
        raise WeightsError(f"config lacks {', '.join(missing)}")
    values = {**SINCE, **record}
    if isinstance(values["image_size"], list):
        values["image_size"] = tuple(values["image_size"])
    for name, default in defaults.items():
        kinds = (int, float) if isinstance(default, float) else (type(default),)
        if type(values[name]) not in kinds:
            raise WeightsError(f"config.{name} = {quoted(values[name])}: must be of type {type(default).__name__}")
    sides = values["image_size"]
    if len(sides) != 2 or any(type(side) is not int for side in sides):
        raise WeightsError(f"config.image_size = {quoted(list(sides))}: must be two integers, height and width")
    return ModelConfig(**values)


def load_model(
    path: str | Path, *, attention: Attention | None = None
) -> tuple[PatchForcingTransformer, dict[str, object]]:
    """The model of a file, float32 on the CPU in eval mode, and the `about` that was saved with it.

    Args:
        attention: backend instead of the file's, for example where flash-attn is not installed.

    Raises:
        ModelFileError: the file is missing, damaged or foreign, or its weights do not fit its configuration.
    """
    path = Path(path)
    try:
        tensors, metadata = read_safetensors(path)
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: no such file: check the path") from error
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror}): check its permissions") from error
    except ForeignError as error:
        raise ModelFileError(f"{path}: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ModelFileError(
            f"{path}: its format is {quoted(metadata.get('format'))}, this version reads {FORMAT!r}: write it with "
            "save_model"
        )
    try:
        config = _config(_fields(metadata, "config"))
        about = _fields(metadata, "about")
        if attention is not None:
            config = dataclasses.replace(config, attention=attention)
        return filled(config, named_tensors(tensors)), about
    except (WeightsError, FieldError) as error:
        raise ModelFileError(f"{path}: {error}") from error
