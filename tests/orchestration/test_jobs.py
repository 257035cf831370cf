"""Jobs on a real cluster with token authentication: `ray start --head`, `ray job submit`, `pforce submit`, each from a
clean shell. Oracle: exit codes, MLflow, and what the shell prints."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pforce import results
from pforce.base.console import DONE, SOME_FAILED, STOPPED, USAGE_ERROR
from pforce.base.errors import ConfigError
from pforce.commands.submit import submit
from pforce.executors.support.jobs import submission_id
from pforce.tracking import default_uri
from tests.support.ports import free_port
from tests.support.starts import completed

pytestmark = [pytest.mark.timeout(600), pytest.mark.process]
ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
SMALL = [
    "--set", "model.depth=1", "--set", "model.width=16", "--set", "model.heads=2", "--set", "evaluation.images=8",
    "--set", "evaluation.held_out_images=16", "--set", "evaluation.label_images=16", "--set",
    "evaluation.reference_images=16", "--set", "sampler.num_function_evaluations=2", "--m", "0.7", "--sigma",
    "0.2", "--set", "training.images=1280",
]  # fmt: skip


class Head:
    """A cluster started as the README says, and shells that know its token."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.dashboard = folder, free_port(), free_port()
        self.clean = {
            "HOME": str(folder), "PATH": f"{BIN}:/usr/bin:/bin", "PFORCE_CACHE": os.environ["PFORCE_CACHE"],
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self.dashboard}", "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        self.env = {**self.clean, "RAY_AUTH_MODE": "token"}
        self.shell("ray get-auth-token --generate")
        self.shell(
            f"ray start --head --num-cpus 2 --port {self.port} --dashboard-port {self.dashboard} "
            # Its default is one port for all clusters of a host; an agent that does not get it takes no jobs.
            f"--dashboard-agent-listen-port {free_port()} --temp-dir {folder / 'ray'} --include-dashboard true"
        )

    def shell(self, command: str, *, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, shell=True, env={**self.env, **env}, cwd=ROOT, capture_output=True, text=True, timeout=400,
            check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def call(self, words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """A Python command in such a shell: `pforce …` or `python SCRIPT …`."""
        return completed(*shlex.split(words.removeprefix("python ")), env={**self.env, **env}, alone=True)

    def stop(self) -> None:
        """End this head's own processes: `ray stop` would end those of every cluster of the machine."""
        for process in Path("/proc").glob("[0-9]*"):
            try:
                mine = f"HOME={self.folder}".encode() in (process / "environ").read_bytes().split(b"\0")
                if mine and int(process.name) != os.getpid():
                    os.kill(int(process.name), 9)
            except OSError:
                continue
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def head(openmoji_folder) -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="h"))  # Ray's sockets are below it: their paths must be short
    found = Head(folder)
    try:
        yield found
    finally:
        found.stop()


def sweep(storage: Path, *options: str) -> str:
    return " ".join(["python", "sweeps/ltg_grid.py", *SMALL, "--storage", str(storage), *options])


def test_jobs_from_a_clean_shell(head, tmp_path):
    """The table is in the job's output, the runs are below the absolute storage, the exit code is the script's own: 3,
    as one of two cells diverges. The same command again finds both; under its name Ray itself takes no second job."""
    storage = tmp_path / "runs"
    command = sweep(storage, "--axis", "optimizer.learning_rate=0.002,1e20")
    done = head.call(f"pforce submit -- {command}")
    assert done.returncode == SOME_FAILED, done.stdout + done.stderr
    assert "fd/openmoji" in done.stdout
    before = results.runs(default_uri(storage))
    assert sorted(before["status"]) == ["FAILED", "FINISHED"]
    through = head.call(f"pforce submit -- {command}")
    assert through.returncode == SOME_FAILED
    assert "ended before (FAILED); submitted again" in " ".join(through.stdout.split())
    assert "1 finished before" in through.stdout
    assert results.runs(default_uri(storage))["run_id"].tolist() == before["run_id"].tolist()
    name = head.call(f"pforce submit --id -- {command}").stdout.strip()
    refused = head.shell(f"ray job submit --working-dir . --submission-id {name} -- {command}", check=False)
    assert refused.returncode != 0
    assert f"{name} already exists" in refused.stdout + refused.stderr


def test_submitted_twice_it_runs_once_and_can_be_stopped(head, tmp_path):
    """The second call shows the first one's output; `ray job stop` ends both with 4; the same command goes on."""
    storage = tmp_path / "runs"
    command = sweep(storage, "--executor", "local", "--set", "training.images=6400000")
    first = head.call(f"pforce submit --no-wait -- {command}")
    assert first.returncode == DONE
    while not list(storage.glob("trainings/*/checkpoints/step_*")) and not list(storage.glob("trainings/*/.lock")):
        time.sleep(0.2)
    watching = subprocess.Popen(
        f"pforce submit -- {command}", shell=True, env=head.env, cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert watching.stdout is not None
    assert "the same command is not run twice" in watching.stdout.readline()
    name = submission_id(shlex.split(command))
    head.shell(f"ray job stop {name}")
    watching.communicate(timeout=250)
    assert watching.returncode == STOPPED
    (run,) = results.runs(default_uri(storage)).to_dict("records")
    assert (run["status"], run["reason"]) == ("KILLED", "stopped")


def test_tokens_that_are_missing_or_wrong(head, tmp_path):
    """Said before anything is submitted, with the cure."""
    command = sweep(tmp_path / "runs")
    for env in ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "w" * 64}, {"RAY_AUTH_MODE": "disabled"}):
        done = head.call(f"pforce submit -- {command}", **env)
        assert done.returncode == USAGE_ERROR, done.stdout + done.stderr
        assert "RAY_AUTH_MODE=token" in " ".join(done.stderr.split())
    gone = f"http://127.0.0.1:{free_port()}"
    done = head.call(f"pforce submit -- {command}", RAY_API_SERVER_ADDRESS=gone)
    assert done.returncode == USAGE_ERROR
    assert f"no job server answers at {gone}" in " ".join(done.stderr.split())
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "the command to run is missing"),
        ("python x.py", "the command to run is missing"),
        ("--address 127.0.0.1:6379 -- python x.py", "must be the job server's"),
        ("--working-dir /no/such -- python x.py", "--working-dir /no/such: is not a folder"),
    ],
)
def test_what_is_wrong_with_the_call_is_said(words, message):
    with pytest.raises(ConfigError, match=message):
        submit(words.split())


def test_a_sweep_that_cannot_reach_its_cluster_says_so_before_it_starts(head, tmp_path):
    """Nothing listens; no token to show; a wrong one: each with its cure, exit code 2, and nothing was recorded."""
    command = sweep(tmp_path / "runs")
    gone = head.call(f"{command} --ray-address 127.0.0.1:{free_port()}")
    assert gone.returncode == USAGE_ERROR
    assert "nothing answers at 127.0.0.1" in " ".join(gone.stderr.split())
    address = f"--ray-address 127.0.0.1:{head.port}"
    (tmp_path / "home").mkdir()
    missing = head.call(f"{command} {address}", HOME=str(tmp_path / "home"))
    assert missing.returncode == USAGE_ERROR
    assert "there is no token" in " ".join(missing.stderr.split())
    wrong = head.call(f"{command} {address}", RAY_AUTH_TOKEN="w" * 64)
    assert wrong.returncode == USAGE_ERROR, wrong.stdout + wrong.stderr
    assert "does not take this driver" in " ".join(wrong.stderr.split())
    assert results.runs(default_uri(tmp_path / "runs")).empty
