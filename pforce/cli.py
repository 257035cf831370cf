"""The `pforce` command."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from pforce import catalog
from pforce.commands.checkpoint import export_checkpoint, import_checkpoint, verify_checkpoint
from pforce.commands.evaluate import evaluate
from pforce.commands.evaluation_plan import Arguments as EvaluateArguments
from pforce.commands.sample import Arguments as SampleArguments
from pforce.commands.sample import sample
from pforce.config import ConfigError, Experiment, with_fields
from pforce.data import DataConfig, Manifest, ensure
from pforce.orchestration import local
from pforce.orchestration.plan import DONE, Options
from pforce.orchestration.script import USAGE_ERROR, exit_on_errors, run_sweep
from pforce.orchestration.sweep import Sweep
from pforce.timesteps import SAMPLERS


def _summary(function: object) -> str:
    return (getattr(function, "__doc__", None) or "").strip().split("\n")[0]


def experiments() -> int:
    """List the named experiments."""
    table = Table()
    table.add_column("experiment", no_wrap=True)
    table.add_column("module", no_wrap=True)
    table.add_column("what it is")
    for name, function in sorted(catalog.experiments().items()):
        table.add_row(name, function.__module__, _summary(function))
    Console().print(table)
    return DONE


def build_data(
    name: Annotated[Literal["openmoji", "fashion-mnist"], tyro.conf.Positional],
    resolution: int = 32,
    destination: Path | None = None,
    source: Path | None = None,
) -> int:
    """Write a data set as webdataset shards with a manifest. Does nothing where it is already there.

    Args:
        name: the data set; openmoji is drawn from the installed package, fashion-mnist made from its IDX files.
            Nothing is downloaded.
        resolution: height and width of the images, in pixels; fashion-mnist has 32 only.
        destination: folder to write; by default the cache folder ($PFORCE_CACHE or ~/.cache/pforce).
        source: fashion-mnist only: folder of its four IDX files; by default $PFORCE_FASHION_MNIST, else where
            Debian's package dataset-fashion-mnist puts them.
    """
    config = DataConfig(name=name, resolution=resolution, path=str(destination) if destination else None)
    folder = ensure(config, source=source)
    manifest = Manifest.load(folder)
    sizes = f"{manifest.train.samples:,} training and {manifest.validation.samples:,} validation"
    Console().print(f"{folder}: {sizes} images, {len(manifest.classes)} classes", highlight=False, soft_wrap=True)
    return DONE


@dataclass(frozen=True)
class _Train:
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    options: Annotated[Options, tyro.conf.arg(name="")] = field(default_factory=Options)


def train(arguments: list[str]) -> int:
    """Train and measure one experiment in this process, without Ray, and record it in MLflow.

    `pforce train NAME [--timesteps SAMPLER] [--FIELD VALUE …]`: the experiment's fields are typed options.
    """
    first = argparse.ArgumentParser(prog="pforce train", add_help=False, allow_abbrev=False)
    first.add_argument("name", nargs="?")
    first.add_argument("--timesteps", choices=sorted(SAMPLERS))
    if not arguments or arguments[0].startswith("-"):
        Console().print(
            "usage: pforce train EXPERIMENT [--timesteps SAMPLER] [--FIELD VALUE …]\n\n"
            "Trains one experiment in this process, without Ray, and records it in MLflow. Every field of the\n"
            "experiment is an option: `pforce train EXPERIMENT --help` lists them with their types and defaults.\n"
            f"--timesteps switches the timestep sampler: {', '.join(SAMPLERS)}.\n",
            markup=False,
            highlight=False,
        )
        return experiments()
    known, rest = first.parse_known_args(arguments)
    function = catalog.find(known.name)
    experiment = function()
    if known.timesteps:
        experiment = with_fields(experiment, {"timesteps": known.timesteps})
    parsed = tyro.cli(
        _Train,
        prog=f"pforce train {known.name}",
        description=f"{_summary(function)} Every field of the experiment is an option.",
        default=_Train(experiment),
        args=rest,
    )
    if parsed.options.max_hours is not None or parsed.options.ray_address is not None:
        raise ConfigError("--max-hours and --ray-address: pforce train runs in this process, without Ray")
    sweep = Sweep("train", parsed.experiment, axes=(), seeds=(parsed.experiment.seed,))
    return run_sweep(sweep, parsed.options, launcher=local.launch)


COMMANDS: dict[tuple[str, ...], Callable[..., int]] = {
    ("data", "build"): build_data,
    ("experiments",): experiments,
    ("train",): train,
    ("sample",): sample,
    ("evaluate",): evaluate,
    ("checkpoint", "import"): import_checkpoint,
    ("checkpoint", "export"): export_checkpoint,
    ("checkpoint", "verify"): verify_checkpoint,
}


def _run(arguments: list[str]) -> int:
    for words, command in COMMANDS.items():
        if tuple(arguments[: len(words)]) == words:
            rest = arguments[len(words) :]
            if command is train:
                return train(rest)
            if command is sample:
                return sample(tyro.cli(SampleArguments, prog="pforce sample", args=rest))
            if command is evaluate:
                return evaluate(tyro.cli(EvaluateArguments, prog="pforce evaluate", args=rest))
            return tyro.cli(command, prog=f"pforce {' '.join(words)}", args=rest)
    asked = not arguments or arguments[0] in ("-h", "--help")
    console = Console(stderr=not asked)
    if not asked:
        near = difflib.get_close_matches(" ".join(arguments[:2]), [" ".join(words) for words in COMMANDS], n=1)
        hint = f" Did you mean `pforce {near[0]}`?" if near else ""
        console.print(f"[bold red]error:[/] pforce {arguments[0]}: unknown command.{hint}")
    table = Table(title="pforce COMMAND [--help]", title_justify="left", show_header=False, box=None)
    for words, command in COMMANDS.items():
        table.add_row(" ".join(words), _summary(command))
    console.print(table)
    return DONE if asked else USAGE_ERROR


def main() -> None:
    """Entry point."""
    exit_on_errors(lambda: _run(sys.argv[1:]))
