"""The GPU queue at its small size, on this machine. Oracles: the list of jobs, its own file of results, real kills."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from analysis import gpu_queue
from analysis.gpu import measure
from analysis.gpu.cells import CELLS
from analysis.gpu.jobs import JOBS, TINY
from tests.faults.drills import moments
from tests.support.starts import ROOT, Start

QUEUE = ROOT / "analysis" / "gpu_queue.py"
NEEDS_A_GPU = {"flash attention"}
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the queue itself is run")


def call(path: Path, *words: str) -> int:
    return gpu_queue.main(["--small", "--results", str(path), *words])


def measured(path: Path) -> Counter[str]:
    return Counter(entry["job"] for entry in gpu_queue.read_results(path)[0] if "error" not in entry)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of results, after one call."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("queue") / "new" / "results.jsonl"
    assert call(path) == 3, "one job needs a GPU"
    return path


def test_every_job_is_measured_with_device_versions_and_ceilings(results):
    entries, damaged = gpu_queue.read_results(results)
    assert damaged == 0
    assert [entry["job"] for entry in entries] == [job.name for job in JOBS]
    for entry in entries:
        assert ("error" in entry) == (entry["job"] in NEEDS_A_GPU), entry
        assert entry["torch"] == torch.__version__
        assert entry["ceilings"]["matmul_bfloat16_tflops"] > 0
        assert entry["device"].startswith("cpu")
    by_name = {entry["job"]: entry.get("result") for entry in entries}
    assert by_name["training PFT-XL/2 interpolated compiled"]["modulation_nodes"] == 8
    assert by_name["training PFT-XL/2 exact compiled"]["modulation_nodes"] == 0
    assert max(by_name["agreement"][name] for name in by_name["agreement"] if name.startswith("float32")) < 1e-4
    assert set(by_name["solvers, compiled with CUDA graphs"].values()) == {0.0}


def test_what_is_there_is_not_measured_again(results, capsys):
    before = results.read_bytes()
    assert call(results, "--dry-run") == 0
    assert "measured before" in capsys.readouterr().out
    assert results.read_bytes() == before
    assert call(results) == 3
    assert results.read_bytes().startswith(before)
    assert set(measured(results).values()) == {1}, "only the failed job is tried again"


def test_damaged_lines_count_as_not_measured(results, tmp_path, capsys):
    """A line cut in its middle by the end of a machine, one that is no JSON, one that is no result."""
    path = tmp_path / "results.jsonl"
    lines = results.read_text().splitlines()
    path.write_text("\n".join(["[1, 2]", "\x00junk", *lines[1:-2], lines[0][: len(lines[0]) // 2]]))
    assert call(path, "--only", "agreement", "exact eager") == 0
    assert "3 damaged line(s)" in capsys.readouterr().out
    assert measured(path)["agreement"] == 1
    assert json.loads(path.read_text().splitlines()[-1])["job"] == "agreement"
    assert set(measured(path).values()) == {1}


def test_only_what_fits_into_the_time_is_begun(tmp_path, capsys):
    path = tmp_path / "results.jsonl"
    assert call(path, "--minutes", "0.2") == 0
    assert "not enough is left" in capsys.readouterr().out
    assert all(job.seconds < 12 for job in JOBS if job.name in measured(path))


def test_the_largest_batch_that_fits_is_measured(monkeypatch):
    """A device with room for 8 images."""
    real, tried = measure.throughput, []

    def with_less_memory(config, batch, device, **options):
        tried.append(batch)
        if batch > 8:
            raise torch.OutOfMemoryError
        return real(config, batch, device, **options)

    monkeypatch.setattr(measure, "throughput", with_less_memory)
    found = measure.largest_batch(TINY, 64, torch.device("cpu"), compiled=False, steps=1)
    assert (found["batch"], tried) == (8, [64, 32, 16, 8])


@pytest.mark.drill
def test_cut_at_any_moment_it_loses_nothing_and_does_nothing_twice(tmp_path):
    """Ten kills at random moments, and a last call to its end."""
    path, log = tmp_path / "results.jsonl", tmp_path / "log"
    words = [QUEUE, "--small", "--results", path, "--only", "training", "agreement", "waiting"]
    before: list[str] = []
    for milliseconds in moments("queue", 100, 2000, count=10):
        queue = Start(words, log=log)
        time.sleep(milliseconds / 1000)
        queue.kill()
        queue.wait(60)
        lines = path.read_text().splitlines() if path.exists() else []
        assert lines[: len(before)] == before, "what was written stays"
        before = lines
    assert Start(words, log=log).wait(300) == 0, log.read_text()
    wanted = [job.name for job in JOBS if any(text in job.name for text in words[5:])]
    assert measured(path) == Counter(wanted)


@pytest.mark.drill
@pytest.mark.timeout(600)
def test_jobs_of_cells_are_done_once_and_leave_their_records(openmoji_folder, tmp_path):
    """Each job of cells with one row of its table. Oracle: the lines of records beside the results."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "openmoji-32").symlink_to(openmoji_folder)
    path = tmp_path / "results.jsonl"
    words = (
        "--only",
        "cells of",
        "--data",
        str(tmp_path / "data"),
        "--storage",
        str(tmp_path / "runs"),
        "--processes",
        "1",
    )
    assert call(path, *words) == 0
    assert measured(path) == Counter(job.name for job in CELLS)
    for entry in gpu_queue.read_results(path)[0]:
        assert entry["result"]["finished"] == entry["result"]["cells"] <= 1
    kept = {path.stem for path in tmp_path.glob("*.jsonl")}
    assert "gpu_micro_denoising_schedules" in kept, "the others may have the same first row, which is there by then"
    before = path.read_bytes()
    assert call(path, *words) == 0
    assert path.read_bytes() == before
