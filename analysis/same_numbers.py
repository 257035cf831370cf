"""Check whether the numbers of this checkout equal those of another commit, to the last bit, on this machine.

    python analysis/same_numbers.py measure --commit 0641df2 --out before.json    # builds it in a worktree and a venv
    python analysis/same_numbers.py measure --out now.json                        # this checkout, this environment
    python analysis/same_numbers.py compare before.json now.json

Every entry point ("door") is used once, by the usual commands: the main job, a separate evaluation of its cells, a
search of samplers, a table of the paper, `pforce train`, `pforce evaluate` and `pforce sample`. Times are left out.
Compare numbers of the same machine only: another processor rounds differently.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODEL = "best:ltg_grid"
DOORS: dict[str, list[str]] = {
    "main": ["python", "sweeps/ltg_grid.py"],
    "apart": [
        "python", "sweeps/ltg_grid.py", "--name", "apart", "--m", "0.7", "--sigma", "0.2", "--evaluation-workers", "1",
        "--set", "training.images=1280", "--set", "evaluation.images=128",
        "--set", "evaluation.difficulty_timesteps=0.4,0.5",
    ],
    "train": [
        "pforce", "train", "openmoji32_micro", "--training.images", "1280", "--evaluation.images", "128",
        "--evaluation.difficulty-timesteps", "0.2", "0.5", "--evaluation.context-timesteps", "0.2",
        "--sampler", "dual_loop", "--sampler.num-function-evaluations", "8",
    ],
    "search": ["python", "sweeps/sampler_thresholds.py", MODEL, "--trials", "4", "--images", "128", "--nfe", "6", "8"],
    "table": ["pforce", "reproduce", "difficulty", "--scale", "smoke", "--executor", "local"],
    "evaluate": [  # called --images where settings had no prefix, see `_words`
        "pforce", "evaluate", MODEL, "--evaluation.images", "192",
        "--measure", "images", "loss", "difficulty", "context",
    ],
    "sample": ["pforce", "sample", MODEL, "--count", "64", "--save", "npz", "--sampler", "look_ahead", "--nfe", "8"],
}  # fmt: skip
READ = """
import json, math, sys
from pforce import results
frame = results.runs(sys.argv[1])
rows = {}
for row in frame.to_dict("records"):
    if row["sweep"] == "evaluations":
        continue
    values = {k: v for k, v in row.items() if "/" in k and isinstance(v, float) and not math.isnan(v)}
    rows[f"{row['sweep']}: {row['run_name']}"] = values
print(json.dumps(rows))
"""
TIMES = ("seconds", "device_hours", "images_per_second")


def call(words: list[str], where: Path, environment: dict[str, str]) -> None:
    """Run a command. RuntimeError with the end of its output where it fails."""
    done = subprocess.run(words, cwd=where, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")


def _words(door: str, checkout: Path) -> list[str]:
    """Command of a door, with the options of that checkout."""
    old = door == "evaluate" and not (checkout / "pforce" / "commands" / "options.py").exists()
    return [word.replace("--evaluation.", "--") if old else word for word in DOORS[door]]


def measure(commit: str | None, doors: list[str]) -> dict[str, Any]:
    """Numbers of all doors, for this checkout, or for a commit that is built in a worktree and environment of its
    own."""
    with tempfile.TemporaryDirectory(prefix="same-numbers-") as name:
        box = Path(name)
        checkout, binaries = ROOT, Path(sys.executable).parent
        if commit is not None:
            checkout, binaries = box / "tree", box / "venv" / "bin"
            call(["git", "worktree", "add", "--detach", str(checkout), commit], ROOT, dict(os.environ))
            call([sys.executable, "-m", "venv", str(box / "venv")], ROOT, dict(os.environ))
            call([str(binaries / "pip"), "install", "-q", "-e", "."], checkout, dict(os.environ))
        try:
            return _measured(checkout, binaries, box, doors)
        finally:
            if commit is not None:
                shutil.rmtree(checkout, ignore_errors=True)
                subprocess.run(["git", "worktree", "prune"], cwd=ROOT, check=False)


def _measured(checkout: Path, binaries: Path, box: Path, doors: list[str]) -> dict[str, Any]:
    (box / "home").mkdir()
    storage = box / "storage"
    environment = {
        **os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "HOME": str(box / "home"),
        "PFORCE_CACHE": str(box / "cache"), "PFORCE_STORAGE": str(storage), "PYTHONPATH": str(checkout),
    }  # fmt: skip
    seconds = {}
    for door in doors:
        started = time.perf_counter()
        call(_words(door, checkout), checkout, environment)
        seconds[door] = round(time.perf_counter() - started, 1)
        print(f"{door}: {seconds[door]} s", flush=True)
    uri = f"sqlite:///{storage / 'mlflow.db'}"
    found = subprocess.run(
        [str(binaries / "python"), "-c", READ, uri], cwd=checkout, env=environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    rows = json.loads(found.stdout.splitlines()[-1])
    for path in storage.glob("evaluations/*/evaluation.json"):
        rows["pforce evaluate"] = {k: v for k, v in json.loads(path.read_text())["metrics"].items() if v is not None}
    for path in (storage / "samples").glob("samples.npz"):
        import numpy as np

        with np.load(path) as arrays:
            digest = hashlib.sha256(arrays["arr_0"].tobytes()).hexdigest()
        rows["pforce sample"] = {"samples/sha256": digest}
    version = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True)
    torch = subprocess.run(
        [str(binaries / "python"), "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return {
        "commit": version.stdout.strip(), "machine": platform.platform(), "cores": os.cpu_count(),
        "processor": _processor(), "torch": torch.stdout.strip(), "seconds": seconds,
        "numbers": {name: _timeless(values) for name, values in sorted(rows.items())},
    }  # fmt: skip


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")


def _timeless(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sorted(values.items()) if not any(word in name for word in TIMES)}


def compare(before: dict[str, Any], now: dict[str, Any]) -> int:
    """Print what differs. Return 0 where every number of `before` is the same now, to the last bit, else 3."""
    equal = different = 0
    worst = 0.0
    for row, values in before["numbers"].items():
        there = now["numbers"].get(row)
        if there is None:
            print(f"{row}: is missing")
            different += len(values)
            continue
        for name, value in values.items():
            if there.get(name) == value:
                equal += 1
                continue
            different += 1
            told = ""
            if isinstance(value, float) and isinstance(there.get(name), float):
                share = abs(there[name] - value) / max(abs(value), 1e-12)
                worst, told = max(worst, share), f" ({share:.1e} of it)"
            print(f"{row}: {name}: {value!r}, now {there.get(name)!r}{told}")
    print(f"{equal} numbers are equal to the last bit, {different} differ, by {worst:.1e} of themselves at most")
    return 3 if different else 0


def main() -> int:
    """Measure, or compare; exit code 3 where a number differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measured = commands.add_parser("measure", help="use every entry point once, and write the numbers")
    measured.add_argument("--commit", help="a commit, built in a worktree; default: this checkout as it is")
    measured.add_argument("--out", type=Path, required=True)
    measured.add_argument("--doors", nargs="+", choices=list(DOORS), default=list(DOORS))
    compared = commands.add_parser("compare", help="print which numbers differ")
    compared.add_argument("before", type=Path)
    compared.add_argument("now", type=Path)
    a = parser.parse_args()
    if a.command == "compare":
        return compare(json.loads(a.before.read_text()), json.loads(a.now.read_text()))
    numbers = measure(a.commit, a.doors)
    a.out.write_text(json.dumps(numbers, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
