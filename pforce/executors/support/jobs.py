"""Jobs on a Ray cluster: the same command is the same job, and the job's exit code is the script's."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from aiohttp import ClientError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from rich.console import Console

from pforce.base.console import STOPPED
from pforce.base.errors import ConfigError
from pforce.trial.failures import ClusterError

PREFIX = "pforce-"
FAILED_TO_START = 1
AGENT_SECONDS = 60.0
NO_AGENT = "No available agent"  # from a head that was started seconds ago: its job agent registers last
NO_AGENT_CURE = (
    " (the job agent of a node has not started. Where a host has several clusters, give each `ray start` a "
    "--dashboard-agent-listen-port of its own)"
)
ATTACHED = "attached to the job that is already there: the same command is not run twice"


RECONNECTIONS = 5
STOP_PATIENCE = {"RAY_JOB_STOP_WAIT_TIME_S": "60"}
"""Variable that sets how long Ray waits after SIGTERM before it kills a job. Its default of 3 s is too short for a
training's checkpoint."""


def submission_id(command: Sequence[str]) -> str:
    """A command's submission id, which depends on the command alone."""
    text = "\0".join(command)
    return PREFIX + hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def connect(address: str | None) -> JobSubmissionClient:
    """A client of the cluster's job server. ClusterError where it does not answer or refuses the token."""
    variables = (os.environ.get(name) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"))
    where = address or next(filter(None, variables), "http://127.0.0.1:8265")
    if not where.startswith(("http://", "https://")):
        given = "--address" if address else "RAY_API_SERVER_ADDRESS or RAY_ADDRESS"
        raise ConfigError(
            f"{given} {where}: must be the job server's, such as http://HEAD:8265 (ray start --head prints it as the "
            "dashboard's)"
        )
    os.environ["RAY_API_SERVER_ADDRESS"] = where  # Ray's client prefers the variable to an argument
    try:
        client = JobSubmissionClient(where)
        client.list_jobs()
    except AuthenticationError as error:
        raise ClusterError(
            f"the cluster at {where} needs another token ({_first_line(error)}): export RAY_AUTH_MODE=token, and put "
            "the head's token into RAY_AUTH_TOKEN, or into ~/.ray/auth_token"
        ) from None
    except (ConnectionError, RuntimeError, OSError) as error:
        raise ClusterError(
            f"no job server answers at {where} ({_first_line(error)}): start a cluster with `ray start --head` (of "
            "ray[default]), or give --address or RAY_API_SERVER_ADDRESS"
        ) from None
    return client


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _found(client: JobSubmissionClient, name: str) -> JobDetails | None:
    return next((job for job in client.list_jobs() if job.submission_id == name), None)


def submit(client: JobSubmissionClient, command: Sequence[str], working_dir: Path, console: Console) -> str:
    """Submit a command, or attach to it where it is running. Returns its submission id.

    A job of this command that has ended is removed from the cluster's list, so that the same command can resume its
    work.
    """
    name = submission_id(command)
    there = _found(client, name)
    if there is not None and not there.status.is_terminal():
        console.print(f"{name}: {ATTACHED}.", soft_wrap=True)
        return name
    if there is not None:
        console.print(f"{name}: ended before ({there.status.value}); submitted again.")
        client.delete_job(name)
    until = time.monotonic() + AGENT_SECONDS
    while True:
        try:
            client.submit_job(
                entrypoint=shlex.join(command),
                submission_id=name,
                runtime_env={"working_dir": str(working_dir), "env_vars": STOP_PATIENCE},
            )
            break
        except (RuntimeError, ValueError) as error:
            if _found(client, name) is not None:  # another call was faster
                console.print(f"{name}: {ATTACHED}.", soft_wrap=True)
                return name
            if NO_AGENT not in str(error) or time.monotonic() > until:
                cure = NO_AGENT_CURE if NO_AGENT in str(error) else ""
                raise ClusterError(f"the cluster does not take the job: {_first_line(error)}{cure}") from None
            time.sleep(1.0)
    console.print(f"{name}: submitted. `ray job stop {name}` stops it; the same command then resumes it.")
    return name


def follow(client: JobSubmissionClient, name: str, console: Console) -> int:
    """Print a job's output until it ends. Returns its script's exit code, or STOPPED where it was stopped."""

    shown = 0

    async def tail() -> None:
        nonlocal shown
        seen = 0  # a new connection begins with the first line
        async for text in client.tail_job_logs(name):
            new = text[max(0, shown - seen) :]
            seen += len(text)
            shown = max(shown, seen)
            console.out(new, end="")

    lost = 0
    while True:
        try:
            asyncio.run(tail())
            job = client.get_job_info(name)
            if job.status.is_terminal():
                break
        except (RuntimeError, OSError, ClientError) as error:
            lost += 1
            if lost > RECONNECTIONS:
                raise ClusterError(
                    f"{name}: the connection to the cluster is lost ({_first_line(error)}). The job continues; the "
                    "same command watches it again"
                ) from None
        time.sleep(1.0)
    if job.status == JobStatus.SUCCEEDED:
        return 0
    if job.driver_exit_code is None and job.message:
        console.print(job.message, soft_wrap=True)
    if job.status == JobStatus.STOPPED:
        return STOPPED
    return FAILED_TO_START if job.driver_exit_code is None else int(job.driver_exit_code)
