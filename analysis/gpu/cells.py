"""Cells of tables as jobs of the GPU queue: they take the time that is left, and the next call goes on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import partial
from typing import Any

from analysis.gpu.jobs import Bench, Job
from pforce_experiments.paper import SCALES, TABLES

FEWEST_SECONDS = 90.0
"""Seconds below which no cell is begun."""


class CellsLeft(RuntimeError):
    """Cells are left for the next call."""


def cells(scale: str, table: str, resolution: int, bench: Bench) -> dict[str, Any]:
    """Run missing cells of a table until the time ends. CellsLeft where some are left, so that the job is not done.

    Their records are in `RESULTS/SCALE_TABLE.jsonl`, which the next call reads first.
    """
    assert bench.data is not None
    small: list[str] = []
    if bench.small:  # one row of the table at the scale `smoke`
        resolution, of = 32, next(each for each in TABLES if each.name == table)
        small = ["--rows", of.rows(SCALES["smoke"])[0].name, "--seeds", "0"]
    out = bench.results / f"{scale.replace('-', '_')}_{table}"
    words = [
        sys.executable, "-m", "pforce_experiments.gpu_suite", "--scale", "smoke" if bench.small else scale,
        "--tables", table, "--data", str(bench.data / f"openmoji-{resolution}"), "--out", str(out), "--storage",
        str(bench.storage), "--processes", str(bench.processes), "--minutes",
        str(max(0.1, (bench.deadline - time.monotonic()) / 60)), *small,
    ]  # fmt: skip
    done = subprocess.run(words, check=False)
    summary: dict[str, Any] = json.loads(out.with_suffix(".json").read_text()) if done.returncode in (0, 3, 4) else {}
    if done.returncode:
        raise CellsLeft(f"exit code {done.returncode}: {summary.get('left')} left, {summary.get('failed')} failed")
    return {name: summary[name] for name in ("cells", "finished", "processes", "seconds")}


CELLS = [
    Job(f"cells of {table}, {scale}", FEWEST_SECONDS, partial(cells, scale, table, resolution), needs_data=True)
    for scale, table, resolution in (
        ("gpu-micro", "denoising_schedules", 32),
        ("gpu", "timestep_schedules", 64),
        ("gpu", "denoising_schedules", 64),
        ("gpu", "main", 64),
        ("gpu", "ltg_grid", 64),
    )
]
