"""Sweeps in a bucket: real trainings, a real S3 server (moto, over HTTP), real kills.

Oracle: the server's objects as boto3 lists them, MLflow's record, and the same training in a folder.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from pforce import cli, results
from pforce.base.console import DONE, SOME_FAILED, make_console
from pforce.base.errors import ConfigError
from pforce.orchestration.find import find_source
from pforce.orchestration.launch import execute
from pforce.orchestration.options import Options
from pforce.orchestration.plan import Plan, plan
from pforce.orchestration.script import run_sweep
from pforce.storage import StorageError
from pforce.trial.source import load_source
from tests.orchestration.conftest import make_plan, small_sweep
from tests.support.buckets import KEYS, Server, s3_server
from tests.support.starts import Start, completed, pforce

FILES = ("meta.json", "moments.safetensors", "state.safetensors")
"""Files of a checkpoint that a training can go on from."""

pytestmark = [pytest.mark.timeout(600), pytest.mark.process]


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PFORCE_CACHE", str(tmp_path / "machine"))


def another_machine(tmp_path: Path) -> None:
    """Mirrors are gone."""
    shutil.rmtree(tmp_path / "machine")


def remote(server: Server, tmp_path: Path, name: str, **options) -> Options:
    uri = f"sqlite:///{tmp_path}/tracking/mlflow.db"
    return Options(storage=server.uri(f"bucket/{name}"), tracking_uri=uri, **options)


def planned(options: Options, **sweep) -> Plan:
    return plan(small_sweep(**sweep), options, make_console(width=200))


def test_a_sweep_leaves_everything_in_the_bucket(server, tmp_path, capsys):
    """Then another machine: the finished trial is not run again, and the best run of the sweep can be sampled."""
    options = remote(server, tmp_path, "whole")
    first = planned(options)
    assert run_sweep(small_sweep(), options, executor="local") == DONE
    (item,) = first.work
    trial = f"whole/trainings/{item.training}"
    evaluation = f"{trial}/evaluations/{item.fingerprint}"
    keys = server.keys("bucket", "whole/")
    assert {
        f"{trial}/experiment.json",
        *(f"whole/small.{ending}" for ending in ("csv", "md", "tex", "html", "png")),
    } < keys
    kept = {f"{trial}/{path}/{file}" for path in ("checkpoints/step_00000005", "snapshots/96") for file in FILES}
    assert {key for key in keys if "/checkpoints/" in key or "/snapshots/" in key} == kept
    assert any(key.startswith(f"{trial}/curve/16-") for key in keys)
    assert {f"{evaluation}/{name}" for name in ("experiment.json", "samples.png")} < keys
    assert len([key for key in keys if key.startswith("whole/records/")]) == 7, "all parts, in the bucket"
    assert not any(Path(key).name.startswith(".") for key in keys), "locks and scratch files stay here"
    (run,) = results.runs(options.uri).to_dict("records")
    (stored,) = results.runs(options.storage).to_dict("records")
    assert stored["val/loss"] == run["val/loss"]
    assert list((tmp_path / "tracking" / "artifacts").rglob("samples.png")), "artifacts are beside the database"
    assert "secret" not in capsys.readouterr().out

    folder = make_plan(small_sweep(), tmp_path / "folder", cpus_per_trial=first.options.cpus_per_trial)
    assert execute(folder, make_console(quiet=True), "local") == DONE
    (there,) = results.runs(folder.options.uri).to_dict("records")
    assert there["val/loss"] == run["val/loss"], "where files lie changes nothing"
    assert there["fingerprint"] == run["fingerprint"]

    another_machine(tmp_path)
    assert planned(options).missing == []
    before = server.keys("bucket", "whole/trainings/")
    assert run_sweep(small_sweep(), options) == DONE
    assert server.keys("bucket", "whole/trainings/") == before
    for name in ("best:small", run["run_id"]):
        another_machine(tmp_path)
        source = load_source(find_source(name, storage=options.storage, tracking_uri=options.uri))
        assert source.images_seen == 16 * 6
        assert source.path.is_relative_to(options.root)
        assert [path.name for path in source.path.parent.iterdir() if path.is_dir() and path.name != ".lock"] == ["96"]


def test_commands_find_models_in_the_bucket_and_leave_their_files_there(server, tmp_path):
    """`pforce sample` and `pforce evaluate` as users type them; each on a machine that has nothing."""
    options = remote(server, tmp_path, "commands")
    assert run_sweep(small_sweep(), options, executor="local") == DONE
    where = ("--storage", options.storage, "--tracking-uri", options.uri)
    another_machine(tmp_path)
    drawn = pforce("sample", "best:small", "--count", "4", "--nfe", "2", *where, cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    assert "commands/samples/grid.png" in server.keys("bucket", "commands/samples/")
    assert not any("/batches/" in key for key in server.keys("bucket", "commands/samples/"))
    another_machine(tmp_path)
    command = ("evaluate", "best:small", "--evaluation.images", "4", "--nfe", "2", "--measure", "images", *where)
    measured = pforce(*command, cwd=tmp_path)
    assert measured.returncode == 0, measured.stderr
    assert [key for key in server.keys("bucket", "commands/evaluations/") if key.endswith("evaluation.json")]
    another_machine(tmp_path)
    again = pforce(*command, cwd=tmp_path)
    assert "measured before" in again.stdout, again.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.drill
def test_killed_and_continued_on_another_machine(server, tmp_path):
    """SIGKILL after the first checkpoint is in the bucket. The other machine's first step is the one after it, and
    its result is that of an undisturbed training, bit for bit."""
    options = remote(server, tmp_path, "killed")
    (item,) = planned(options, steps=12).work
    command = ["-m", "tests.orchestration.remote_sweep", options.storage, options.uri, "12"]
    process = Start([*command, "1.0"])
    meta = f"killed/trainings/{item.training}/checkpoints/step_00000005/meta.json"
    while meta not in server.keys("bucket", "killed/"):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert not [key for key in server.keys("bucket", "killed/") if "step_00000010" in key]

    another_machine(tmp_path)
    again = completed(*command, "0")
    assert again.returncode == DONE, again.stdout + again.stderr
    steps = [int(line.split()[1]) for line in again.stdout.splitlines() if line.startswith("step ")]
    assert steps == list(range(6, 13))
    (run,) = results.runs(options.uri).to_dict("records")
    assert run["status"] == "FINISHED"

    undisturbed = make_plan(small_sweep(steps=12), tmp_path / "folder")
    assert execute(undisturbed, make_console(quiet=True), "local") == DONE
    (reference,) = results.runs(undisturbed.options.uri).to_dict("records")
    assert run["val/loss"] == reference["val/loss"]


@pytest.mark.parametrize("evaluation_workers", [None, 1])
def test_workers_have_mirrors_of_their_own(server, tmp_path, ray_cluster, evaluation_workers):
    """Ray's processes have another PFORCE_CACHE than this one, as on another machine: what they train and evaluate
    comes to the driver, and a checkpoint to those who evaluate apart, through the bucket."""
    name = f"ray-{evaluation_workers}"
    options = remote(server, tmp_path, name, evaluation_workers=evaluation_workers, cpus_per_trial=1)
    assert run_sweep(small_sweep(), options) == DONE
    (item,) = planned(options).work
    theirs = Path(os.environ["HOME"]) / "cache" / "storage" / options.root.name / "trainings" / item.training
    mine = options.root / "trainings" / item.training
    assert (theirs / "checkpoints" / "step_00000005").exists()
    assert not (mine / "checkpoints" / "step_00000005").exists()
    evaluation = f"{name}/trainings/{item.training}/evaluations/{item.fingerprint}"
    keys = server.keys("bucket", f"{name}/")
    assert f"{evaluation}/samples.png" in keys
    assert not any(key.startswith(f"{name}/ray") for key in keys)
    (run,) = results.runs(options.uri).to_dict("records")
    (artifacts,) = (tmp_path / "tracking" / "artifacts").glob(f"*/{run['run_id']}/artifacts")
    assert {"samples.png", "uncertainty_maps.png"} <= {path.name for path in artifacts.iterdir()}


@pytest.mark.drill
def test_a_bucket_that_goes_away_loses_nothing(tmp_path):
    """The server ends in the middle of a training: the training goes on, and the trial, whose files are on one machine
    only, is not called done. With the server back the same command trains nothing again."""
    lines = []
    with s3_server() as server:
        server.client().create_bucket(Bucket="bucket")
        options = remote(server, tmp_path, "gone")
        planned(options)  # the database is made here, in less time
        command = ["-m", "tests.orchestration.remote_sweep", options.storage, options.uri, "12"]
        process = Start([*command, "0.5"])
        for line in process.stdout:
            lines.append(line)
            if line.startswith("step 7"):
                break
    lines += process.stdout
    assert process.wait() == SOME_FAILED, "".join(lines)
    assert "step 12\n" in lines
    assert any("checkpoints/step_00000010 is on this machine only" in line for line in lines)
    (run,) = results.runs(options.uri).to_dict("records")
    assert (run["status"], run["reason"]) == ("FAILED", "storage")
    with s3_server(port=server.port) as server:
        server.client().create_bucket(Bucket="bucket")
        again = completed(*command, "0")
        assert again.returncode == DONE, again.stdout + again.stderr
        assert "step " not in again.stdout.replace("step_", "")
        keys = {"/".join(key.split("/")[-2:]) for key in server.keys("bucket", "gone/trainings/")}
    assert {f"192/{name}" for name in FILES} <= keys
    (run,) = results.runs(options.uri).to_dict("records")
    assert run["status"] == "FINISHED"


def test_a_bucket_needs_a_tracking_store(server):
    """Said before the bucket is asked, and before anything is trained."""
    with pytest.raises(ConfigError, match=r"tracking_uri = None: .*set --tracking-uri to a server"):
        planned(Options(storage=server.uri("bucket/x")))


def test_a_storage_that_cannot_be_used_is_said_before_anything_starts(server, tmp_path):
    with pytest.raises(StorageError, match="the bucket none does not exist"):
        planned(Options(storage=server.uri("none/x"), tracking_uri=f"sqlite:///{tmp_path}/mlflow.db"))
    assert not (tmp_path / "mlflow.db").exists()
    result = pforce(
        "train", "openmoji32_micro", "--storage", "s3://bucket/x?endpoint_override=127.0.0.1:1&scheme=http",
        "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 2
    assert "does not answer" in result.stderr
    assert not (tmp_path / "mlflow.db").exists()


def test_outputs_of_a_ray_job_are_absolute(tmp_path, monkeypatch, capsys):
    """What Ray sets for a job's entry point makes relative outputs an error with its cure."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.delenv("PFORCE_STORAGE", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pforce", "train", "openmoji32_micro"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert "--storage runs: is relative, and this is a Ray job" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == []
