"""Training by several workers. Real gloo processes; oracle: the same training by one worker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pforce.parallel import start
from pforce.storage import Storage
from pforce.training import Answer, Callback, Checkpoints, OnRecord, Record, TrainState, train
from pforce.training.checkpoint import CheckpointError, load, saved
from pforce.trial.failures import failure_of
from pforce.trial.run import run_trial
from pforce.trial.train import training_state
from pforce.trial.where import Paths, Where
from tests.training.conftest import DATA, tiny
from tests.training.helpers import CPU, InterruptAt, Interrupted, Told, run

pytestmark = [pytest.mark.timeout(600), pytest.mark.process]
STEPS = 50


def _rank(rank: int, workers: int, folder: str, sharding: str, how: dict) -> None:
    """One worker: trains in `folder`, leaves its curve; stops after `stop` steps as a kill would."""
    stop, fields = how["stop"], how["fields"]
    torch.set_num_threads(1)
    group = start(rank, workers, f"file://{folder}/meeting{stop}", device=CPU, timeout=60)
    experiment = tiny(STEPS, **fields)
    state = training_state(experiment, DATA, "id", CPU, workers=group, sharding=sharding)
    records: list[Record] = []
    callbacks: list[Callback] = [Checkpoints(Path(folder)), OnRecord(records.append)]
    if stop:
        answered = Told(stop, Answer.CHECKPOINT_AND_STOP) if rank == 0 else Callback()
        callbacks.append(answered if how["answered"] else InterruptAt(stop))
    try:
        train(state, flip=True, callbacks=callbacks)
    finally:
        Path(folder, f"curve{rank}-{stop}.json").write_text(json.dumps([record.loss for record in records]))
        dist.destroy_process_group()


def distributed(
    folder: Path, workers: int, sharding: str = "none", stop: int = 0, *, answered: bool = False, **fields
) -> list[float]:  # fmt: skip
    """The curve of `workers` processes."""
    folder.mkdir(exist_ok=True)
    arguments = (workers, str(folder), sharding, {"stop": stop, "fields": fields, "answered": answered})
    if stop:
        with pytest.raises(mp.ProcessRaisedException, match="Stopped" if answered else "Interrupted"):
            mp.start_processes(_rank, arguments, nprocs=workers, start_method="forkserver")
    else:
        mp.start_processes(_rank, arguments, nprocs=workers, start_method="forkserver")
    curves = [json.loads((folder / f"curve{rank}-{stop}.json").read_text()) for rank in range(workers)]
    assert all(curve == curves[0] for curve in curves), "workers disagree about the loss"
    return curves[0]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[TrainState, list[float]]:
    """One worker's 50 steps."""
    torch.set_num_threads(1)
    state, records = run(tiny(STEPS), tmp_path_factory.mktemp("alone"))
    return state, [record.loss for record in records]


@pytest.mark.parametrize(("workers", "sharding", "accumulation"), [(2, "none", 1), (4, "none", 2), (2, "fsdp", 2)])
def test_several_workers_give_the_curve_of_one(tmp_path, alone, workers, sharding, accumulation):
    """1e-4 over 50 steps, gradients averaged once a step, and what one worker can go on with: whole tensors, every
    stream's position."""
    state, expected = alone
    curve = distributed(tmp_path / "run", workers, sharding, accumulation=accumulation)
    assert curve == pytest.approx(expected, abs=1e-4)
    assert curve != curve[:1] * STEPS
    tensors, meta = load(saved(tmp_path / "run")[-1])
    assert meta["step"] == STEPS
    assert meta["stream"]["positions"] == state.stream.state_dict()["positions"]
    for name, value in state.ema.model.state_dict().items():
        assert torch.allclose(tensors[f"ema/{name}"], value, atol=1e-4), name


def test_all_workers_stop_at_one_step_where_the_first_is_told(tmp_path, alone):
    """Told at step 22, they end at 23, with a checkpoint between two others and no point of the curve more; one worker
    goes on from there, to the numbers of an undisturbed training."""
    folder = tmp_path / "run"
    first = distributed(folder, 2, stop=22, answered=True, log_every=10)
    assert len(first) == 2, "points at 10 and 20"
    assert saved(folder)[-1].name == "step_00000023"
    state, rest = run(tiny(STEPS, log_every=10), folder)
    assert [record.step for record in rest] == [30, 40, 50]
    for name, value in alone[0].ema.model.state_dict().items():
        assert torch.allclose(state.ema.model.state_dict()[name], value, atol=1e-4), name


def test_a_resume_may_change_the_number_of_workers(tmp_path, alone):
    """Two workers that split the model (FSDP2) up to step 23, one from the checkpoint of 20, two whole ones: the same
    curve and no step left out."""
    folder = tmp_path / "run"
    first = distributed(folder, 2, "fsdp", stop=23)
    assert len(first) == 23
    assert saved(folder)[-1].name == "step_00000020"
    records: list[Record] = []
    state = training_state(tiny(STEPS), DATA, "id", CPU)
    with pytest.raises(Interrupted):
        train(state, flip=True, callbacks=[Checkpoints(folder), OnRecord(records.append), InterruptAt(33)])
    assert [record.step for record in records] == list(range(21, 34))
    last = distributed(folder, 2)
    assert len(last) == 20
    curve = [*first[:20], *(record.loss for record in records[:10]), *last]
    assert curve == pytest.approx(alone[1], abs=1e-4)


def _foreign(rank: int, workers: int, folder: str) -> None:
    group = start(rank, workers, f"file://{folder}/meeting", device=CPU, timeout=60)
    state = training_state(tiny(STEPS), DATA, "other", CPU, workers=group)
    try:
        train(state, callbacks=[Checkpoints(Path(folder))])
    except CheckpointError as error:
        Path(folder, f"error{rank}").write_text(str(error))
    dist.destroy_process_group()


def test_a_checkpoint_of_another_experiment_is_refused_by_every_worker(tmp_path):
    """Only the first reads; none of the others is left waiting for it."""
    run(tiny(5), tmp_path, identity="this one")
    mp.spawn(_foreign, (2, str(tmp_path)), nprocs=2)
    for rank in range(2):
        assert "belongs to experiment this one, not to other" in (tmp_path / f"error{rank}").read_text()


def _trial(rank: int, workers: int, folder: str, sharding: str) -> None:
    torch.set_num_threads(1)
    group = start(rank, workers, f"file://{folder}/meeting", device=CPU, timeout=60)
    where = Where(CPU, workers=group, sharding=sharding, devices=workers)
    row = run_trial(tiny(10), Paths(DATA, Storage.open(Path(folder) / "trial")), where)
    assert (row is not None) == group.first
    if row is not None:
        Path(folder, "row.json").write_text(json.dumps(row.metrics))
    dist.destroy_process_group()


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_workers_share_the_evaluation(tmp_path, sharding):
    """Two workers draw one worker's images: every number of the trial is that of one worker to rounding."""
    mp.spawn(_trial, (2, str(tmp_path), sharding), nprocs=2)
    row = run_trial(tiny(10), Paths(DATA, Storage.open(tmp_path / "one")), Where(CPU))
    assert row is not None
    one, two = row.metrics, json.loads((tmp_path / "row.json").read_text())
    assert set(one) == set(two)
    for name, value in one.items():
        if not name.startswith(("cost/", "throughput/")):
            assert two[name] == pytest.approx(value, rel=2e-3, abs=2e-4, nan_ok=True), name
    assert two["cost/device_hours"] > 1.9 * two["cost/seconds"] / 3600


def _straggler(rank: int, workers: int, folder: str) -> None:
    import time

    group = start(rank, workers, f"file://{folder}/meeting", device=CPU, timeout=5)
    state = training_state(tiny(STEPS), DATA, "id", CPU, workers=group)

    def wait(record: Record) -> None:
        if rank == 1 and record.step == 5:
            time.sleep(100)

    started = time.monotonic()
    try:
        train(state, callbacks=[OnRecord(wait)])
    except RuntimeError as error:
        failure = failure_of(error)
        Path(folder, "error").write_text(f"{time.monotonic() - started} {failure.reason}: {failure.message}")
    raise SystemExit(3)


def test_a_worker_that_hangs_is_noticed_after_the_time_limit(tmp_path):
    """5 s for a collective operation: the other worker gives up soon after, with a message."""
    with pytest.raises(mp.ProcessExitedException):
        mp.spawn(_straggler, (2, str(tmp_path)), nprocs=2)
    seconds, _, message = (tmp_path / "error").read_text().partition(" ")
    assert float(seconds) < 40
    assert message.startswith("collective timeout: a worker did not answer within the time limit")
