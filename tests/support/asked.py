"""`pforce evaluate`, asked for by its settings' own names."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

from pforce.commands.evaluation_plan import Arguments
from pforce.metrics.config import EvaluationConfig

OPTIONS = {each.name for each in dataclasses.fields(Arguments)}
EVALUATION = {each.name for each in dataclasses.fields(EvaluationConfig)}


def asked(target: object, storage: object, held_out: int | None = None, **options: Any) -> Arguments:
    """The command's options: settings of the evaluation and of the sampler are told apart by their names.

    Args:
        held_out: held-out images for losses and for classes.
    """
    if held_out is not None:
        options |= {"held_out_images": held_out, "label_images": held_out}
    if "nfe" in options:
        options["num_function_evaluations"] = options.pop("nfe")
    direct = {name: value for name, value in options.items() if name in OPTIONS}
    evaluation = {name: value for name, value in options.items() if name in EVALUATION}
    settings = {name: value for name, value in options.items() if name not in OPTIONS | EVALUATION}
    return Arguments(
        target=str(target), storage=str(storage), evaluation=SimpleNamespace(**evaluation),
        settings=SimpleNamespace(**settings), **direct,
    )  # fmt: skip
