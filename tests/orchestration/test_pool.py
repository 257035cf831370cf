"""Pools of workers. Oracle: the results of plain calls; a killed worker's task is done again and no other."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from pforce.orchestration.pool import LocalPool, drain, make_pool
from pforce.orchestration.ray_pool import RayPool, WorkerLostError
from pforce.orchestration.sample import run_job
from pforce.sampling import LookAhead
from pforce.trial.jobs import Job, drawn_batches
from pforce.trial.source import load_source
from pforce.validation import ConfigError
from tests.orchestration.processes import processes, raylets

pytestmark = pytest.mark.timeout(600)


class Squares:
    """Notes each task that it begins in a file."""

    def __init__(self, log: str, device: torch.device) -> None:
        self.log = Path(log)
        assert device.type in ("cpu", "cuda")

    def __call__(self, number: int) -> int:
        with self.log.open("a") as file:
            file.write(f"{number}\n")
        if number == 13:
            raise ValueError("13 is refused")
        time.sleep(0.15)
        return number**2


class Fatal:
    """Ends its process."""

    def __init__(self, device: torch.device) -> None:
        pass

    def __call__(self, number: int) -> int:
        os._exit(1)


class Unmakeable:
    """Cannot be made."""

    def __init__(self, device: torch.device) -> None:
        raise ValueError("no such model")

    def __call__(self, number: int) -> int:
        return number


def results_of(pool, tasks, *, after=lambda done: None):
    results, waiting = {}, iter(tasks)
    for task, result in drain(pool, lambda: next(waiting, None)):
        results[task] = result
        after(len(results))
    return results


def test_local_and_ray_give_the_same(ray_cluster, tmp_path):
    for workers, kind in ((1, LocalPool), (2, RayPool)):
        with make_pool(workers, None, Squares, str(tmp_path / f"log{workers}")) as pool:
            assert isinstance(pool, kind)
            assert results_of(pool, range(5)) == {n: n**2 for n in range(5)}


def test_a_killed_worker_loses_one_task(ray_cluster, tmp_path):
    log = tmp_path / "log"
    with RayPool(2, None, Squares, str(log)) as pool:
        victim = pool.process_ids()[0]

        def kill(done: int) -> None:
            if done == 4:
                os.kill(victim, signal.SIGKILL)

        assert results_of(pool, range(20, 32), after=kill) == {n: n**2 for n in range(20, 32)}
        assert victim not in pool.process_ids()
    begun = log.read_text().split()
    assert set(begun) == {str(n) for n in range(20, 32)}
    assert len(begun) <= 13  # the task at hand was begun twice, no other


def test_an_error_of_the_work_is_its_own(ray_cluster, tmp_path):
    with RayPool(1, None, Squares, str(tmp_path / "log")) as pool:
        pool.submit(13)
        with pytest.raises(ValueError, match="13 is refused"):
            pool.next()


@pytest.mark.parametrize("workers", [1, 2])
def test_what_making_the_work_raises_is_told_as_itself(ray_cluster, workers):
    with pytest.raises(ValueError, match="no such model"), make_pool(workers, None, Unmakeable):
        pass


def test_without_a_number_there_is_a_worker_a_core(ray_cluster, tmp_path):
    with make_pool(None, None, Squares, str(tmp_path / "log")) as pool:
        assert pool.workers == sum(node.cpus for node in ray_cluster)


def test_a_search_tells_before_it_asks(tmp_path):
    """Each result is told before the next task is asked for, and dealt with after it was begun."""
    events, waiting = [], iter([3, 4])
    pool = LocalPool(Squares, str(tmp_path / "log"))
    asked = drain(
        pool, lambda: next(waiting, None), tell=lambda task, result: events.append(f"told {task}"),
        begin=lambda task: events.append(f"begun {task}"),
    )  # fmt: skip
    for task, _ in asked:
        events.append(f"dealt {task}")
    assert events == ["begun 3", "told 3", "begun 4", "dealt 3", "told 4", "dealt 4"]


def test_a_task_that_kills_its_worker_each_time_ends_the_job(ray_cluster):
    with RayPool(1, None, Fatal) as pool:
        pool.submit(0)
        with pytest.raises(WorkerLostError, match="ended 4 times"):
            pool.next()


def test_too_many_workers_are_refused(ray_cluster):
    with pytest.raises(ConfigError, match="workers at once"):
        RayPool(10_000, None, Fatal)


def test_a_job_with_a_killed_worker_is_the_undisturbed_one(ray_cluster, trained, tmp_path):
    """Two workers, one killed by SIGKILL in the middle; also equal to one worker in this process, bit for bit."""
    source = load_source(trained)
    sampler = LookAhead(num_function_evaluations=24)
    job = Job(
        str(source.path), source.sha256, sampler, classes=(0, 1), count=200, storage=str(tmp_path / "killed"), batch=4
    )
    console = Console(width=160)
    killed = []

    def kill() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if list((tmp_path / "killed").glob("drawings/*/images/*.npz")):
                ours = raylets()
                workers = [pid for pid, command, parent in processes()
                           if command.startswith(b"ray::_Worker") and parent in ours]  # fmt: skip
                killed.append(workers[0])
                os.kill(workers[0], signal.SIGKILL)
                return
            time.sleep(0.02)

    thread = threading.Thread(target=kill)
    thread.start()
    run_job(job, console, workers=2)
    thread.join()
    assert killed
    alone = dataclasses.replace(job, storage=str(tmp_path / "alone"))
    run_job(alone, console)
    for disturbed, plain in zip(drawn_batches(job), drawn_batches(alone), strict=True):
        assert np.array_equal(disturbed["images"], plain["images"])
