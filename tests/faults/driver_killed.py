"""Drill (c): the driver of a small sweep is killed (SIGKILL) at random moments, and the same command continued.

    python -m tests.faults.driver_killed --moments 20 --out analysis/results/driver_killed

Each round has a storage of its own. Afterwards the table must be the undisturbed sweep's, every cell must have one
run, and nothing may be done again but the work since the last checkpoint. Writes JSON and a Markdown table.
"""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import signal
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from pforce import results
from pforce.tracking import Tracker, default_uri
from tests.faults.drills import SEED, drill_main, newest_step
from tests.support.starts import Start

ROOT = Path(__file__).resolve().parents[2]
BATCH, STEPS, EVERY, SIGMAS = 64, 80, 5, ("0.1", "0.2")
SIGMAS_OF = {"groups": ("0.1",)}
"""Executor → cells, where they are not SIGMAS: a group takes seconds to start."""
ARGUMENTS = [
    "--m", "0.7",
    "--set", "model.depth=2", "--set", "model.width=32", "--set", "model.heads=2",
    "--set", f"training.images={STEPS * BATCH}", "--set", f"training.checkpoint_every={EVERY}",
    "--set", f"training.log_every={EVERY}", "--set", "evaluation.images=64",
    "--set", "evaluation.held_out_images=64", "--set", "evaluation.label_images=64",
    "--set", "evaluation.reference_images=64", "--set", "sampler.num_function_evaluations=4",
]  # fmt: skip
COMMAND = [str(ROOT / "sweeps" / "ltg_grid.py"), *ARGUMENTS, "--cpus-per-trial", "1"]
OPTIONS = {"groups": ["--workers", "2"]}
"""Further options of an executor."""
RESULTS = ["m", "s", "sigma", "n", "val loss", "fd/openmoji", "R(0.2)", "R(0.6)", "images seen", "fd images", "NFE"]
"""Columns of the table that are results, not times."""


def processes_with(mark: str) -> list[int]:
    """Processes that were started, by whomever, below a call with this mark."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state = (process / "stat").read_text().rsplit(")", 1)[1].split()[0]
            if state != "Z" and mark.encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue  # it ended while we looked
    return found


def command_of(process: int) -> bytes:
    """The command line of a process; empty where it has ended."""
    try:
        return (Path("/proc") / str(process) / "cmdline").read_bytes()
    except OSError:
        return b""


class Call:
    """The sweep's command as a process."""

    waits_for_agents = True
    """Ray's agents may take a minute to end by themselves."""

    def __init__(self, storage: Path, log: Path, executor: str = "tune") -> None:
        self.mark, self.log = str(uuid.uuid4()), log
        self.left: list[str] = []
        """Processes that had to be ended."""
        self.started, self.clock = time.time(), time.monotonic()
        self.process = Start(
            [
                *COMMAND, "--storage", str(storage), "--executor", executor, *OPTIONS.get(executor, []),
                "--sigma", *SIGMAS_OF.get(executor, SIGMAS),
            ],
            log=log, env={**os.environ, "PFORCE_DRILL": self.mark},
        )  # fmt: skip

    def wait(self) -> float:
        """Seconds until it ended well."""
        code = self.process.wait(timeout=400)
        if code != 0:
            raise RuntimeError(f"exit code {code}\n{self.log.read_text()}")
        return time.monotonic() - self.clock

    def kill(self, patience: float) -> float:
        """SIGKILL to the driver alone. Seconds until all that it had started is gone too; after `patience` seconds it
        is ended."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        killed = time.monotonic()
        while (left := processes_with(self.mark)) and time.monotonic() - killed < patience:
            if not self.waits_for_agents and all(b"agent" in command_of(each).lower() for each in left):
                break
            time.sleep(0.1)
        seconds = time.monotonic() - killed
        for process in left:
            with suppress(OSError):
                self.left.append(command_of(process).split(b"\0")[0].decode())
                os.kill(process, signal.SIGKILL)
        return seconds


def table(storage: Path) -> pd.DataFrame:
    """The results of a sweep's table, without times."""
    frame = pd.read_csv(storage / "ltg_grid.csv")
    return frame[[column for column in RESULTS if column in frame]]


def same(found: pd.DataFrame, expected: pd.DataFrame, executor: str) -> bool:
    """Whether two tables agree: bit for bit; within 1e-3 for a group, whose sums are rounded elsewhere."""
    expected = expected[expected["sigma"].isin(map(float, SIGMAS_OF.get(executor, SIGMAS)))].reset_index(drop=True)
    if executor != "groups":
        return found.equals(expected)
    with suppress(AssertionError):
        pd.testing.assert_frame_equal(found, expected, check_exact=False, rtol=1e-3)
        return True
    return False


def curves(storage: Path) -> dict[str, list[tuple[int, float]]]:
    """Each cell's (by its training's fingerprint) points as (step, time in seconds), as they were logged."""
    uri = default_uri(storage)
    if not (storage / "mlflow.db").exists():
        return {}
    client = Tracker(uri, artifacts=storage).client
    found = {}
    for run in results.runs(uri).to_dict("records"):
        points = client.get_metric_history(run["run_id"], "train/loss")
        found[run["training"]] = sorted(((p.step // BATCH, p.timestamp / 1000) for p in points), key=lambda p: p[1])
    return found


def steps_reached(storage: Path) -> dict[str, int]:
    """training → step of its newest checkpoint."""
    return {folder.name: newest_step(folder) for folder in storage.glob("trainings/*")}


def round_of(
    storage: Path, moments: list[float], expected: pd.DataFrame, *, of_steps: bool = False, patience: float = 60.0,
    executor: str = "tune",
) -> dict[str, Any]:  # fmt: skip
    """Kill the driver, continue, kill that one, …, continue, and compare.

    Args:
        moments: seconds after its start at which each driver is killed; with `of_steps`, the steps of all cells
            together that have been reached then.
        expected: the undisturbed table.
        patience: seconds after which what a killed driver had started, and is not gone, is ended.
    """
    lost, gone, left, seconds = 0, 0.0, [], []
    for moment in moments:
        call = Call(storage, storage.with_suffix(".log"), executor)
        if not of_steps:
            time.sleep(moment)
        while of_steps and call.process.poll() is None and sum(steps_reached(storage).values()) < moment:
            time.sleep(0.1)
        if call.process.poll() is None:
            seconds.append(time.monotonic() - call.clock)
            gone = max(gone, call.kill(patience))
        left += call.left
        reached = steps_reached(storage)
        known = {training: points[-1][0] for training, points in curves(storage).items() if points}
        lost += sum(max(0, step - max(0, reached.get(training, 0))) for training, step in known.items())
    done = len(list(storage.glob("trainings/*/evaluations/*/samples.png")))
    again = Call(storage, storage.with_suffix(".log"), executor)
    duration = again.wait()
    uri = default_uri(storage)
    frame = results.runs(uri)
    client = Tracker(uri, artifacts=storage).client
    (experiment,) = [e for e in client.search_experiments() if e.name == "ltg_grid"]
    of_sweep = client.search_runs([experiment.experiment_id])
    wrong, first_point = [], []
    for training, points in curves(storage).items():
        steps = [step for step, _ in points]
        if steps != list(range(EVERY, STEPS + 1, EVERY)):
            wrong.append(f"{training[:8]}: {steps}")
        first_point += [at for step, at in points if at > again.started and step > reached.get(training, -1)]
    return {
        "cells": len(SIGMAS_OF.get(executor, SIGMAS)),
        "killed after s": [round(moment, 2) for moment in seconds],
        "cells done": done,
        "checkpoints reached": sorted(reached.values()),
        "processes gone after s": round(gone, 2),
        "left behind": left,
        "first new point after s": round(min(first_point) - again.started, 2) if first_point else None,
        "continued in s": round(duration, 1),
        "same table": same(table(storage), expected, executor),
        "trial runs": len(frame),
        "all runs": len(of_sweep),
        "statuses": sorted(set(frame["status"])) + sorted({run.info.status for run in of_sweep}),
        "steps done again": lost,
        "curves that are not every point once": wrong,
    }


def is_good(found: dict[str, Any]) -> bool:
    """One run a cell and one parent, all finished, the same table, and no work lost but since a checkpoint."""
    return bool(
        found["same table"]
        and found["trial runs"] == found["cells"]
        and found["all runs"] == found["cells"] + 1
        and set(found["statuses"]) == {"FINISHED"}
        and found["curves that are not every point once"] == []
        and found["steps done again"] <= len(found["killed after s"]) * found["cells"] * EVERY
    )


def drill(moments: int, folder: Path, *, seed: int = SEED) -> dict[str, Any]:
    """The undisturbed sweep, and as many rounds as moments; these are spread over its whole duration at random."""
    reference = folder / "undisturbed"
    undisturbed = Call(reference, folder / "undisturbed.log").wait()
    expected = table(reference)
    chosen = random.Random(f"driver-{seed}")
    width = undisturbed / moments
    rounds = []
    for number in range(moments):
        storage = folder / f"round{number}"
        found = round_of(storage, [chosen.uniform(number * width, (number + 1) * width)], expected)
        rounds.append(found)
        print(json.dumps(found), flush=True)
        shutil.rmtree(storage, ignore_errors=True)
    return {
        "undisturbed s": round(undisturbed, 1),
        "cells": len(SIGMAS),
        "steps a cell": STEPS,
        "steps between checkpoints": EVERY,
        "seed": seed,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "good": sum(is_good(found) for found in rounds),
        "rounds": rounds,
    }


def markdown(report: dict[str, Any]) -> str:
    """The rounds as a table, and what holds over all of them."""
    rounds = pd.DataFrame(report["rounds"])

    def spread(name: str) -> str:
        values = rounds[name].dropna()
        return f"{values.median():.1f} s ({values.min():.1f} … {values.max():.1f}, n = {len(values)})"

    left = ", ".join(sorted({name for names in rounds["left behind"] for name in names})) or "none"
    shown = rounds[[
        "killed after s", "cells done", "checkpoints reached", "processes gone after s", "first new point after s",
        "continued in s", "same table", "trial runs", "steps done again",
    ]].copy()  # fmt: skip
    shown["killed after s"] = [", ".join(map(str, each)) for each in shown["killed after s"]]
    shown["checkpoints reached"] = [", ".join(map(str, steps)) for steps in shown["checkpoints reached"]]
    return "\n".join([
        "# Drill (c): the driver killed at random moments",
        "",
        f"`python -m tests.faults.driver_killed --moments {len(rounds)}`; {report['machine']}; a sweep of "
        f"{report['cells']} cells of {report['steps a cell']} steps, a checkpoint every "
        f"{report['steps between checkpoints']}; undisturbed it takes {report['undisturbed s']} s. The driver gets "
        "SIGKILL, then the same command is called again.",
        "",
        f"**{report['good']} of {len(rounds)} continued sweeps** ended with the table of the undisturbed one, one "
        "FINISHED run a cell and one of the sweep, every point of every curve once, and did nothing again but the work "
        "since the last checkpoint.",
        "",
        f"- All processes of the killed sweep were gone after {spread('processes gone after s')}; where that is 60 s, "
        f"they were ended by hand: {left}.",
        f"- First new point of a curve after the second call: {spread('first new point after s')}; this includes the "
        "start of Ray and of the trial's process; Python and its imports are there.",
        f"- Steps done again in a sweep: median {rounds['steps done again'].median():.0f}, most "
        f"{rounds['steps done again'].max()} of {report['cells'] * report['steps a cell']}.",
        "",
        shown.to_markdown(index=False),
        "",
    ])  # fmt: skip


def main() -> None:
    def run(moments: int, folder: Path, seed: int) -> tuple[dict[str, Any], str]:
        report = drill(moments, folder, seed=seed)
        return report, markdown(report)

    drill_main(__doc__, 20, run)


if __name__ == "__main__":
    main()
