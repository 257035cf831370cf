"""The `pforce` command."""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from pforce.base.console import DONE, USAGE_ERROR, exit_on_errors, imports_kept, make_console


class Command(NamedTuple):
    """Location of a command, imported only when called: the list of commands must not wait for torch or MLflow."""

    function: str
    """Module below pforce.commands, a dot, and the function's name."""
    summary: str
    """First line of its docstring."""
    arguments: str | None = None
    """Name of the dataclass, in the same module, that holds its options; without one they are the function's own."""
    own: bool = False
    """Whether the function parses its command line itself."""


COMMANDS: dict[tuple[str, ...], Command] = {
    ("data", "build"): Command(
        "data.build_data",
        "Write a data set as webdataset shards with a manifest. Does nothing if they exist already.",
    ),
    ("experiments",): Command("data.experiments", "List the named experiments."),
    ("train",): Command(
        "train.train",
        "Train and measure one experiment, and record it in MLflow: in this process, or with --workers on Ray.",
        own=True,
    ),
    ("sweep",): Command(
        "sweep.sweep",
        "Train and measure cells over any fields of an experiment, as a grid or a search; write a table and MLflow "
        "runs.",
        own=True,
    ),
    ("worker",): Command(
        "worker.worker",
        "Train and measure, in this process, what a sweep still lacks, beside other processes that do the same.",
        own=True,
    ),
    ("submit",): Command(
        "submit.submit", "Run a command once as a job of a Ray cluster, and return its exit code.", own=True
    ),
    ("sample",): Command(
        "sample.sample",
        "Draw images of a trained model: grids, files for evaluators, maps and animations.",
        "Arguments",
    ),
    ("evaluate",): Command(
        "evaluate.evaluate", "Measure a model, a folder of images or an npz file, and record the results.", "Arguments"
    ),
    ("reproduce",): Command(
        "reproduce.reproduce_tables",
        "Run tables of the paper at a scale that fits this machine, and report which of the paper's findings hold.",
        "Arguments",
    ),
    ("report",): Command(
        "report.report",
        "Write one self-contained HTML page about sweeps: tables, findings, figures, samples, cost, commands.",
    ),
    ("diff",): Command(
        "diff.diff",
        "Show what differs between two cells, experiments or sweeps: fields, numbers with intervals, pictures.",
    ),
    ("records", "list"): Command(
        "records.list_records",
        "List the finished parts in a storage: trainings, weights, drawings, image metrics, held-out measurements.",
    ),
    ("records", "show"): Command(
        "records.show_record",
        "Print a whole record as JSON: values, inputs, machine and software, and cost.",
    ),
    ("records", "forget"): Command(
        "records.forget_records",
        "Write a tombstone for records: they no longer count, and what needs them is measured again.",
    ),
    ("records", "export"): Command(
        "records.export_records",
        "Write sweeps and their records as JSON lines, for another storage or a repository.",
    ),
    ("records", "import"): Command(
        "records.import_records",
        "Import records into a storage: from files of `pforce records export`, or from another storage's folder.",
    ),
    ("records", "migrate"): Command(
        "records.migrate_records",
        "Carry over results of commit 0641df2: files of its records, and its trainings in the storage's folder.",
    ),
    ("records", "pack"): Command(
        "records.pack_records",
        "Write records into a few large files, for buckets and file systems where the number of files is limited.",
    ),
    ("doctor",): Command(
        "doctor.doctor", "Check this machine, its stores and a cluster, and report what is wrong and how to fix it."
    ),
    ("runs",): Command(
        "runs.runs",
        "Show the progress of sweeps: trials done and open, cost, time left, best distance. SWEEP: its trials.",
    ),
    ("logs",): Command(
        "logs.logs",
        "Print the log of an attempt at a cell: points, warnings, output and traceback. Default: the newest attempt.",
    ),
    ("cost",): Command(
        "cost.cost",
        "Show what the runs of a store cost: device-hours of finished, failed and killed trials, images, seconds, "
        "share.",
    ),
    ("mirror",): Command(
        "mirror.mirror",
        "Show in MLflow what the storage holds: sweeps, searches and evaluations, their numbers, curves and pictures.",
    ),
    ("checkpoint", "import"): Command(
        "checkpoint.import_checkpoint",
        "Read a published checkpoint (PFT, SiT, or the original SiT) and write it as a pforce model file.",
    ),
    ("checkpoint", "export"): Command(
        "checkpoint.export_checkpoint",
        "Write a model in the format of the published code (.ckpt), or as one pforce file (.safetensors).",
    ),
    ("checkpoint", "verify"): Command(
        "checkpoint.verify_checkpoint",
        "Check that a checkpoint or model file can be sampled: weights, shapes, and one forward pass of each kind.",
    ),
}


def _run(arguments: list[str]) -> int:
    for words, command in COMMANDS.items():
        if tuple(arguments[: len(words)]) == words:
            return _call(command, f"pforce {' '.join(words)}", arguments[len(words) :])
    return _list(arguments)


def _list(arguments: list[str]) -> int:
    """List the commands, or those of the group that the first word names; with an error unless that was asked for."""
    group = arguments[0] if arguments and any(words[0] == arguments[0] for words in COMMANDS) else None
    rest = arguments[1:] if group else arguments
    asked = not arguments or (bool(rest) and rest[0] in ("-h", "--help"))
    shown = {" ".join(words): command for words, command in COMMANDS.items() if group in (None, words[0])}
    console = make_console(stderr=not asked)
    if not asked:
        near = difflib.get_close_matches(" ".join(arguments[:2]), shown, n=1)
        hint = f" Did you mean `pforce {near[0]}`?" if near else ""
        unknown = f"pforce {' '.join(arguments[: 2 if group else 1])}: unknown command.{hint}"
        error = unknown if rest else f"pforce {group}: its subcommand is missing"
        console.print(Text.assemble(("error: ", "bold red"), error), soft_wrap=True)
    title = f"pforce {group or 'COMMAND'}{' SUBCOMMAND' if group else ''} [--help]"
    table = Table(title=title, title_justify="left", show_header=False, box=None)
    for words, command in shown.items():
        table.add_row(words, command.summary)
    console.print(table)
    return DONE if asked else USAGE_ERROR


def _call(command: Command, name: str, words: list[str]) -> int:
    module_name, function_name = command.function.split(".")
    with imports_kept():
        module = importlib.import_module(f"pforce.commands.{module_name}")
    function = getattr(module, function_name)
    code: int
    if command.own:
        code = function(words)
        return code
    from pforce.commands.command_line import parse

    if command.arguments:
        code = function(parse(getattr(module, command.arguments), name, words))
    else:
        code = parse(function, name, words)
    return code


def main() -> None:
    """Entry point."""
    exit_on_errors(lambda: _run(sys.argv[1:]))
