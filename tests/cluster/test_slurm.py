"""The job scripts of `cluster/slurm` on a real Slurm: its daemons run two logical nodes on this machine. Jobs are
preempted and warned; oracle: the table of an undisturbed sweep, one record per part, no step done twice."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tests.faults.driver_killed import ARGUMENTS, BATCH, RESULTS
from tests.faults.workers import SWEEP, WORKERS, recorded_twice, steps_of, table_of, undisturbed
from tests.support.clock import PATIENCE
from tests.support.slurm import Slurm, missing, slurm
from tests.support.starts import completed

pytestmark = [pytest.mark.drill, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "cluster" / "slurm"
STEPS, EVERY = 400, 20


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Slurm with two nodes, which believes that each has four cores."""
    if why := missing():
        pytest.skip(why)
    # The path of a socket may have 107 characters.
    with slurm(tmp_path_factory.mktemp("slurm"), cpus=4) as found:
        yield found


def environment(folder: Path) -> dict[str, str]:
    """The environment of a job: a file as `env.sh.example`, filled in."""
    file = folder / "env.sh"
    file.write_text(f'export PFORCE_STORAGE="{folder}/runs"\nexport PYTHONPATH="{ROOT}"\n')
    return {"PFORCE_ENV": str(file)}


def until(condition: Callable[[], bool], cluster: Slurm, seconds: float = 120) -> None:
    """Wait for something."""
    end = time.monotonic() + seconds * PATIENCE
    while not condition():
        assert time.monotonic() < end, cluster.logs()
        time.sleep(0.2)


def logged(storage: Path) -> int:
    """Steps that all trainings have logged."""
    return sum(sum(counts.values()) for counts in steps_of(storage).values())


def again(storage: Path) -> int:
    """Steps that were done more than once."""
    return sum(times - 1 for counts in steps_of(storage).values() for times in counts.values())


def texts(folder: Path) -> str:
    """Output of the jobs."""
    return "\n".join(f"{path.name}: {path.read_text()}" for path in sorted(folder.glob("*.out")))


def test_an_array_of_eight_with_two_requeued_ends_in_the_table_of_one_worker(cluster, openmoji_folder, tmp_path):
    """Slurm tells the two to end, which leaves a checkpoint, and starts them again."""
    storage = tmp_path / "runs"
    job = cluster.submit(
        f"--array=1-{WORKERS}", "--gpus=0", "--cpus-per-task=1", "--mem=1G", f"--output={tmp_path}/%a.out",
        SCRIPTS / "array.sbatch", *SWEEP[2:], cwd=ROOT, env=environment(tmp_path),
    )  # fmt: skip
    for number, steps in ((1, 20), (2, 200)):
        until(lambda steps=steps: logged(storage) >= steps, cluster)
        cluster.call("scontrol", "requeue", f"{job}_{number}")
    states = cluster.wait(job, 120 * PATIENCE)
    assert states == ["COMPLETED"] * WORKERS, texts(tmp_path)
    assert "DUE TO JOB REQUEUE" in texts(tmp_path)
    pd.testing.assert_frame_equal(table_of(storage), undisturbed(tmp_path))
    assert not recorded_twice(storage)
    assert not again(storage)


def test_a_sweep_over_two_nodes_goes_on_after_a_warning_and_a_preemption(cluster, openmoji_folder, tmp_path):
    """One Ray cluster over both nodes. The warning before a time limit makes a checkpoint, ends the job a little later
    and puts it back into the queue. A preemption ends Ray together with the driver, so what lies behind the last
    regular checkpoint is done again. The same command goes on."""
    storage, sigmas = tmp_path / "runs", ("0.1", "0.2")
    words = [
        *ARGUMENTS, "--set", f"training.images={STEPS * BATCH}", "--set", f"training.checkpoint_every={EVERY}",
        "--set", "training.log_every=1", "--sigma", *sigmas, "--cpus-per-trial", "1",
    ]  # fmt: skip
    job = cluster.submit(
        "--nodes=2", "--gpus-per-node=0", "--cpus-per-task=1", f"--output={tmp_path}/job.out", SCRIPTS / "sweep.sbatch",
        "python", "sweeps/ltg_grid.py", *words, cwd=ROOT, env={**environment(tmp_path), "WARNED_SECONDS": "1"},
    )  # fmt: skip
    until(lambda: logged(storage) >= 30, cluster)
    cluster.call("scancel", "--batch", "--signal=USR1", job)
    until(lambda: "Stopped by SIGTERM" in texts(tmp_path), cluster)
    warned = steps_of(storage)
    until(lambda: logged(storage) >= sum(map(len, warned.values())) + 100, cluster)
    assert not again(storage), "what the warning asked for is kept"
    cluster.call("scontrol", "requeue", job)
    assert cluster.wait(job, 200 * PATIENCE) == ["COMPLETED"], texts(tmp_path)
    assert "Traceback" not in texts(tmp_path)
    alone = tmp_path / "alone"
    whole = completed(
        str(ROOT / "sweeps" / "ltg_grid.py"), *words, "--executor", "processes", "--storage", alone, timeout=400
    )
    assert whole.returncode == 0, whole.stdout + whole.stderr
    tables = [pd.read_csv(folder / "ltg_grid.csv")[RESULTS] for folder in (storage, alone)]
    pd.testing.assert_frame_equal(*tables)
    assert not recorded_twice(storage)
    steps = steps_of(storage)
    assert [len(counts) for counts in steps.values()] == [STEPS] * len(sigmas)
    assert again(storage) <= EVERY * len(sigmas)
    assert not list(storage.glob(".ray-token*"))
