"""`pforce submit`: run a command as a job of a Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pforce.base.console import DONE, make_console
from pforce.base.errors import ConfigError
from pforce.commands.command_line import parse

USAGE = "pforce submit [--address http://HEAD:8265] [--no-wait] -- python sweeps/ltg_grid.py --storage /shared/runs"


@dataclass(frozen=True)
class Arguments:
    """Run a command as a job of a Ray cluster, in a copy of this directory, and print its output.

    `pforce submit [OPTIONS] -- COMMAND`. The job's id is made from the command: submitted twice, it runs once, and the
    second call shows the output of the first; submitted again after its end, it resumes. The exit code is the command's
    own: 0 done, 2 wrong input, 3 some trials failed, 4 stopped. Ctrl-C ends only the watching, not the job.

    Outputs must lie outside the copy: give the command an absolute --storage, or set PFORCE_STORAGE on the cluster.
    """

    address: str | None = None
    """Job server of the cluster, http://HEAD:8265. Default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, else this machine."""
    working_dir: Path = Path()
    """Folder to copy to the cluster (.gitignore and .rayignore are honoured)."""
    wait: bool = True
    """Print the job's output and end with its exit code; --no-wait returns at once."""
    id: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Only print the command's submission id, for `ray job submit --submission-id`."""


def submit(words: list[str]) -> int:
    """Run a command once as a job of a Ray cluster, and return its exit code."""
    end = words.index("--") if "--" in words else len(words)
    own, command = words[:end], words[end + 1 :]
    if not command and not {"-h", "--help"} & set(own):
        raise ConfigError(f"pforce submit: the command to run is missing, after two dashes: {USAGE}")
    arguments = parse(Arguments, "pforce submit", own)
    from pforce.executors.support import jobs

    if arguments.id:
        print(jobs.submission_id(command))
        return DONE
    if not arguments.working_dir.is_dir():
        raise ConfigError(f"--working-dir {arguments.working_dir}: is not a folder")
    console = make_console()
    client = jobs.connect(arguments.address)
    name = jobs.submit(client, command, arguments.working_dir.absolute(), console)
    if not arguments.wait:
        return DONE
    try:
        return jobs.follow(client, name, make_console(soft_wrap=True))
    except KeyboardInterrupt:
        console.print(f"{name} keeps running; the same command watches it again, `ray job stop {name}` stops it.")
        return DONE
