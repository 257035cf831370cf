"""What a GPU is asked, in order of worth: results that are committed already are not measured again.

    python analysis/gpu_queue.py --minutes 12                     everything that fits into 12 minutes
    python analysis/gpu_queue.py --minutes 12 --dry-run           what that would be, and how long each takes
    python analysis/gpu_queue.py --small --results /tmp/x.jsonl   every job at a tiny size, also on a CPU

Each result is one line of `analysis/results/gpu_queue.jsonl`, written as soon as its job has ended: job, device,
versions, and the ceilings (matrix products, bandwidth) measured in the same call. So the queue can be cut at any
moment: what is written stays, and the next call goes on. A job that failed is tried again by the next call.

Needs the core (torch, safetensors, scipy, pillow, rich), for the cells of tables webdataset and the built data sets
too (`--data`); neither Ray nor MLflow nor pydantic. Images are random, except in cells: jobs measure speed and
agreement, cells measure quality.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from pforce.base.console import make_console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout that is not installed

from analysis.gpu.cells import CELLS
from analysis.gpu.jobs import JOBS, Bench, Job
from analysis.gpu.measure import ceilings

RESULTS = Path(__file__).with_name("results") / "gpu_queue.jsonl"
SPARE_SECONDS = 5.0
"""Seconds between the last job's expected end and the end of the time."""


def read_results(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of a results file, and the number of damaged ones."""
    found, damaged = [], 0
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
            found.append({**entry, "job": str(entry["job"]), "device": str(entry["device"])})
        except (ValueError, TypeError, KeyError):
            damaged += bool(line.strip())
    return found, damaged


def append(path: Path, entry: dict[str, Any]) -> None:
    """Append a line, whole even where the file's last line is cut, and on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        start = b""
        if file.tell():
            file.seek(-1, os.SEEK_END)
            start = b"" if file.read(1) == b"\n" else b"\n"
        file.write(start + json.dumps(entry, sort_keys=True).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def is_done(job: Job, device: str, small: bool, results: Sequence[dict[str, Any]]) -> bool:
    """Whether a result of this version of the job was measured on such a device."""
    wanted = (job.name, job.version, device, small)
    return any(
        (entry["job"], entry.get("version"), entry["device"], entry.get("small")) == wanted and "error" not in entry
        for entry in results
    )


def device_name(device: torch.device) -> str:
    """Name of the device, as results have it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu {platform.machine()}"


def show_plan(jobs: Sequence[Job], done: set[str], seconds: float, console: Console) -> None:
    """Print what a call would do."""
    table = Table(title=f"What {seconds / 60:.1f} minutes are spent on", title_justify="left")
    for name in ("job", "seconds", "state"):
        table.add_column(name, justify="right" if name == "seconds" else "left")
    left = seconds - SPARE_SECONDS
    for job in jobs:
        state = "measured before"
        if job.name not in done:
            state = "is run" if job.seconds <= left else "does not fit"
            left -= job.seconds if job.seconds <= left else 0
        table.add_row(job.name, f"{job.seconds:.0f}", state)
    console.print(table)


def run_jobs(bench: Bench, jobs: Sequence[Job], deadline: float, path: Path) -> int:
    """Run the jobs that fit and return how many failed."""
    limits: dict[str, float] | None = None
    failed = 0
    facts = {
        "device": device_name(bench.device), "small": bench.small, "torch": torch.__version__,
        "cuda": torch.version.cuda, "python": platform.python_version(),
    }  # fmt: skip
    for number, job in enumerate(jobs):
        if job.seconds > deadline - time.monotonic():
            print(f"[{number + 1}/{len(jobs)}] {job.name}: needs {job.seconds:.0f} s, not enough is left", flush=True)
            continue
        if limits is None:
            limits = ceilings(bench.device, 256 if bench.small else 8192)
        started = time.monotonic()
        entry = {"job": job.name, "version": job.version, **facts, "ceilings": limits}
        bench.deadline = deadline
        try:
            entry["result"] = job.run(bench)
        except Exception as error:  # the others are still worth their time
            entry["error"] = f"{type(error).__name__}: {error}"[:500]
            failed += 1
        entry |= {"seconds": round(time.monotonic() - started, 1), "time": round(time.time())}
        append(path, entry)
        shown = json.dumps(entry.get("result", entry.get("error")))
        print(f"[{number + 1}/{len(jobs)}] {job.name}: {entry['seconds']} s: {shown[:300]}", flush=True)
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    return failed


def main(words: Sequence[str] | None = None) -> int:
    """Work through the queue. Exit code 0, or 3 where jobs failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=12.0, help="wall-clock limit")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of results, which is read and appended to")
    parser.add_argument("--dry-run", action="store_true", help="print what would be run, and how long it takes")
    parser.add_argument("--small", action="store_true", help="all jobs at tiny sizes, nothing compiled, for a CPU")
    parser.add_argument("--only", nargs="+", default=[], help="only jobs whose name contains one of these texts")
    parser.add_argument("--data", type=Path, help="folder of the built data sets openmoji-32 and openmoji-64")
    parser.add_argument("--storage", type=Path, default=Path("runs"), help="storage of cells")
    parser.add_argument("--processes", type=int, default=10, help="cells at a time: as many as fill the GPU")
    arguments = parser.parse_args(words)
    deadline = time.monotonic() + 60 * arguments.minutes - SPARE_SECONDS
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bench = Bench(
        device, arguments.small, arguments.results.parent, arguments.data, arguments.storage, arguments.processes
    )
    results, damaged = read_results(arguments.results)
    if damaged:
        print(f"warning: {arguments.results}: {damaged} damaged line(s): their jobs count as not measured", flush=True)
    jobs = [job for job in (*JOBS, *CELLS) if not arguments.only or any(text in job.name for text in arguments.only)]
    if not arguments.data:
        jobs = [job for job in jobs if not job.needs_data]
    done = {job.name for job in jobs if is_done(job, device_name(device), arguments.small, results)}
    if arguments.dry_run:
        show_plan(jobs, done, 60 * arguments.minutes, make_console())
        return 0
    missing = [job for job in jobs if job.name not in done]
    print(f"{len(missing)} of {len(jobs)} jobs to run on {device_name(device)}", flush=True)
    return 3 if run_jobs(bench, missing, deadline, arguments.results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
