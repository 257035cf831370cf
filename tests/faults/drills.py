"""What the drills share: moments, a killer, and what must hold afterwards."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pforce import results
from pforce.orchestration.plan import Plan, trial_folder
from pforce.tracking import Tracker
from pforce.training.checkpoint import CheckpointError, read_meta, saved
from tests.orchestration.processes import processes, raylets

SEED = int(os.environ.get("PFORCE_DRILL_SEED", "0"))
"""Another one tries other moments."""


def moments(drill: str, first: int, last: int, count: int = 2) -> list[int]:
    """Random training steps at which something is killed, each in a part of its own of the range: so there is progress
    between two kills."""
    chosen, width = random.Random(f"{drill}-{SEED}"), (last - first) // count
    return [first + number * width + chosen.randrange(width // 2) for number in range(count)]


def drill_main(doc: str | None, moments: int, run: Callable[[int, Path, int], tuple[Any, str]]) -> None:
    """Run a drill from a command line, and write what it found as JSON and Markdown.

    Args:
        moments: how many there are by default.
        run: runs it, by the number of moments, a scratch folder, and the seed; gives both.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=moments, help="random moments of each kind")
    parser.add_argument("--out", type=Path, required=True, help="path of the .json and .md to write, without ending")
    parser.add_argument("--seed", type=int, default=SEED, help="of the moments")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found, text = run(given.moments, Path(folder), given.seed)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    given.out.with_suffix(".md").write_text(text)
    print(text)


def newest_step(folder: Path) -> int:
    """Step of the newest checkpoint of a training's folder; -1 where there is none."""
    steps = [-1]
    for path in saved(folder):
        with suppress(CheckpointError):  # removed since it was listed
            steps.append(int(read_meta(path)["step"]))
    return max(steps)


def trial_processes(title: bytes) -> list[int]:
    """Processes of trials that this process's cluster runs."""
    return [
        process
        for process, command, parent in processes()
        if command.startswith(b"ray::" + title) and parent in raylets()
    ]


class Killer(threading.Thread):
    """Kills a process at each of some steps, when the newest checkpoint of a plan's first trial has reached it."""

    def __init__(self, plan: Plan, find: Callable[[], list[int]], steps: list[int]) -> None:
        super().__init__(daemon=True)
        self.folder = trial_folder(plan.options, plan.work[0])
        self.find, self.steps = find, steps
        self.killed: list[int] = []
        self.over = threading.Event()

    def run(self) -> None:
        seen: set[int] = set()
        for number, step in enumerate(self.steps):
            chosen = random.Random(f"{SEED}-{number}")
            while not self.over.wait(0.1):
                # Those of an attempt before may still be ending.
                found = [each for each in self.find() if each not in seen] if newest_step(self.folder) >= step else []
                if found:
                    time.sleep(chosen.random())  # not always just after a checkpoint
                    self.killed.append(chosen.choice(found))
                    seen |= set(found)
                    with suppress(ProcessLookupError):
                        os.kill(self.killed[-1], signal.SIGKILL)
                    break


def one_run(plan: Plan) -> tuple[dict[str, object], dict[str, str], list[int]]:
    """The only run of a plan: its row, its tags, and the steps of its curve in the order in which they were logged."""
    (row,) = results.runs(plan.options.uri).to_dict("records")
    client = Tracker(plan.options.uri, artifacts=plan.options.root).client
    points = sorted(client.get_metric_history(row["run_id"], "train/loss"), key=lambda point: point.timestamp)
    batch = plan.work[0].experiment.training.batch
    return row, dict(client.get_run(row["run_id"]).data.tags), [point.step // batch for point in points]
