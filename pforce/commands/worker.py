"""`pforce worker`: one process among many that share a storage and nothing else."""

from __future__ import annotations

import importlib
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

from pforce import catalog
from pforce.base import slurm
from pforce.base.console import DONE
from pforce.base.errors import ConfigError, did_you_mean, require
from pforce.commands import reproduce, sweep
from pforce.commands.command_line import parse
from pforce.orchestration.options import WORKER

USAGE = "pforce worker SWEEP [--minutes M] --storage /shared/runs [OPTIONS OF THE SWEEP]"
END_SECONDS = 180.0
"""Seconds before a Slurm job's end at which trainings begin to write their checkpoints."""


@dataclass(frozen=True)
class Arguments:
    """Train and measure, in this process, what a sweep still lacks, beside other processes that do the same: the jobs
    of a Slurm array, or several shells. They share the storage and nothing else, neither Ray nor a database.

    `pforce worker SWEEP [OPTIONS]`. SWEEP is a script (sweeps/ltg_grid.py), a sweep (ltg_grid), a table of the paper,
    or an experiment whose fields --axis varies; OPTIONS are its own, and all workers get the same ones.

    Each takes a cell that nobody works on, and waits at the end for those of others, which it takes over where they do
    not go on. Workers may come and go at any time, be killed, or run twice: the last one writes the table. The exit
    code is 0 where all cells are finished, 3 where some failed, 4 where the time is over and the same command goes on.
    `pforce mirror --storage DIR` shows the results in MLflow.
    """

    minutes: float | None = None
    """Minutes after which it writes a checkpoint and ends. Default: three minutes before the end of the Slurm job that
    it belongs to; elsewhere no limit."""

    def __post_init__(self) -> None:
        require(self.minutes is None or self.minutes > 0, "minutes", self.minutes, "> 0")


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """(options of the worker, all others)."""
    own: list[str] = []
    rest = list(words)
    for at, word in enumerate(words):
        if word == "--minutes" or word.startswith("--minutes="):
            end = at + (1 if "=" in word else 2)
            own, rest = words[at:end], [*words[:at], *words[end:]]
    return own, rest


def _limit(arguments: Arguments) -> list[str]:
    """The option of the sweep that sets its time limit."""
    minutes = arguments.minutes
    if minutes is None:
        left = slurm.seconds_left()
        if left is None:
            return []
        minutes = max(left / 2, left - END_SECONDS) / 60
    return ["--max-hours", str(minutes / 60)]


def worker(words: list[str]) -> int:
    """Train and measure, in this process, what a sweep still lacks, beside other processes that do the same."""
    own, rest = _split(words)
    asks = {"-h", "--help"}
    if not rest or rest[0].startswith("-"):
        if rest and rest[0] in asks:
            own = [*own, "--help"]
        elif not rest or "--help" not in rest:
            raise ConfigError(f"pforce worker: its first word is what it works on: {USAGE}")
    arguments = parse(Arguments, "pforce worker", own)
    name, *options = rest
    given = any(word == "--max-hours" or word.startswith("--max-hours=") for word in options)
    limit = [] if given or asks & set(options) else _limit(arguments)
    return _run(name, [*options, "--executor", WORKER, *limit])


def _run(name: str, options: list[str]) -> int:
    """Run a sweep of that name. ConfigError where there is none."""
    modules = catalog.sweeps()
    sys.argv = [name, *options]
    if name in modules:
        code: int = importlib.import_module(modules[name]).main()
        return code
    if name.endswith(".py") and Path(name).is_file():
        runpy.run_path(name, run_name="__main__")  # which exits
        return DONE
    if name in catalog.tables():
        return reproduce.reproduce_tables(parse(reproduce.Arguments, f"pforce worker {name}", [name, *options]))
    if name in catalog.experiments() or catalog.is_file(name):
        return sweep.sweep([name, *options])
    known = sorted({*modules, *catalog.tables(), *catalog.experiments()})
    raise ConfigError(f"pforce worker {name}: no script, sweep, table or experiment; {did_you_mean(name, known)}")
