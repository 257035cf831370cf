"""Drill: a small sweep gets a signal at random moments of its training, and the same command is called again.

    python -m tests.faults.noticed --moments 5 --out analysis/results/noticed

SIGTERM, SIGHUP and SIGINT stop it at a checkpoint; SIGUSR1, a notice, makes one and goes on. Each signal comes once, or
twice within a second, to a training of one process and of two. Afterwards the table must be the undisturbed one's, and
no step of a training may have been done twice: each is a line of an attempt's log.
"""

from __future__ import annotations

import json
import os
import platform
import random
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from pforce.base.console import DONE, STOPPED
from tests.faults.drills import SEED, drill_main
from tests.faults.driver_killed import BATCH, COMMAND, OPTIONS, STEPS, table
from tests.support.clock import PATIENCE
from tests.support.starts import Start

SIGMA = ["--sigma", "0.1", "--set", "training.log_every=1", "--set", "training.checkpoint_every=1000"]
SIGNALS = ("SIGTERM", "SIGHUP", "SIGINT", "SIGUSR1")
EXECUTORS = ("local", "groups")
"""Training in one process, and by two ranks."""
TWICE_SECONDS = 0.3
LINE = re.compile(r"([\d,]+) images seen, loss")


class Heard(NamedTuple):
    """The end of a round."""

    signal: str
    executor: str
    times: int
    at: int
    """Step of the last point that was logged when the signal was sent."""
    stopped: int
    """Steps that were done when the first command ended."""
    seconds: float
    """Seconds from the signal to the end of the command, or of a notice to the checkpoint."""
    again: int
    """Steps that were done more than once."""
    missing: int
    """Steps that were never done."""
    checkpoint: int
    """Step of the newest checkpoint after a notice; that at which the command ended for other signals."""
    same: bool
    """Whether the table is the undisturbed one's, bit for bit."""

    @property
    def is_good(self) -> bool:
        """Whether nothing was done twice, nothing is missing, and the numbers are the same."""
        return self.same and not self.again and not self.missing and self.checkpoint >= self.at


def command(storage: Path, executor: str) -> list[str]:
    """The sweep of one cell."""
    return [*COMMAND, *SIGMA, "--storage", str(storage), "--executor", executor, *OPTIONS.get(executor, [])]


def steps_in(storage: Path) -> list[int]:
    """Steps of all attempts, as their logs say, in order."""
    logs = sorted(storage.glob("trainings/*/attempts/*.log"))
    found = (match for log in logs for match in LINE.finditer(log.read_text()))
    return [int(match[1].replace(",", "")) // BATCH for match in found]


def checkpoint_in(storage: Path) -> int:
    """Step of the newest checkpoint; 0 where there is none."""
    names = storage.glob("trainings/*/checkpoints/step_*/meta.json")
    return max((int(path.parent.name.removeprefix("step_")) for path in names), default=0)


def round_of(
    storage: Path, name: str, executor: str, *, step: int, times: int, expected: pd.DataFrame
) -> Heard:  # fmt: skip
    """Send a signal once a step is logged, call the command again, and compare."""
    number, log = signal.Signals[name], storage.with_suffix(".log")
    call = Start(command(storage, executor), log=log)
    while call.poll() is None and max(steps_in(storage), default=0) < step:
        time.sleep(0.02)
    at, sent = max(steps_in(storage), default=0), time.monotonic()
    for _ in range(times):
        call.send_signal(number)
        time.sleep(TWICE_SECONDS if times > 1 else 0)
    if number == signal.SIGUSR1:
        while call.poll() is None and checkpoint_in(storage) < at:
            time.sleep(0.02)
    else:
        code = call.wait(60 * PATIENCE)
        if code != STOPPED:
            raise RuntimeError(f"exit code {code}\n{log.read_text()}")
    seconds, stopped = time.monotonic() - sent, max(steps_in(storage), default=0)
    reached = checkpoint_in(storage)
    again = call if number == signal.SIGUSR1 else Start(command(storage, executor), log=log)
    code = again.wait(300 * PATIENCE)
    if code != DONE:
        raise RuntimeError(f"exit code {code}\n{log.read_text()}")
    done = Counter(steps_in(storage))
    twice = sum(count > 1 for count in done.values())
    missing = len(set(range(1, STEPS + 1)) - done.keys())
    same = table(storage).equals(expected)
    return Heard(name, executor, times, at, stopped, round(seconds, 2), twice, missing, reached, same)


def undisturbed(folder: Path, executor: str) -> pd.DataFrame:
    """The table of the same sweep that gets no signal."""
    call = Start(command(folder / f"undisturbed-{executor}", executor), log=folder / "undisturbed.log")
    if call.wait(300 * PATIENCE) != DONE:
        raise RuntimeError((folder / "undisturbed.log").read_text())
    return table(folder / f"undisturbed-{executor}")


def drill(moments: int, folder: Path, *, seed: int = SEED) -> list[Heard]:
    """All rounds: each signal, once and twice, in each executor, at random steps."""
    found = []
    for executor in EXECUTORS:
        expected = undisturbed(folder, executor)
        for name in SIGNALS:
            chosen = random.Random(f"{name}-{executor}-{seed}")
            for number in range(moments):
                storage = folder / f"{executor}-{name}-{number}"
                step = chosen.randrange(1, STEPS - 10)
                found.append(round_of(storage, name, executor, step=step, times=1 + number % 2, expected=expected))
                print(json.dumps(found[-1]._asdict()), flush=True)
                shutil.rmtree(storage, ignore_errors=True)
    return found


def markdown(rounds: Sequence[Heard], moments: int) -> str:
    """The rounds as a table."""
    frame = pd.DataFrame([each._asdict() for each in rounds])
    good = sum(each.is_good for each in rounds)
    by = frame.groupby(["executor", "signal"]).agg(
        rounds=("at", "size"), done_again=("again", "sum"), missing=("missing", "sum"), same=("same", "sum"),
        median_s=("seconds", "median"), most_s=("seconds", "max"),
    )  # fmt: skip
    names = {"done_again": "steps done again", "same": "same table", "median_s": "median s", "most_s": "most s"}
    return "\n".join([
        "# Drill: signals at random moments of a training",
        "",
        f"`python -m tests.faults.noticed --moments {moments}`; {os.cpu_count()} cores, {platform.machine()}, Python "
        f"{platform.python_version()}. One cell of {STEPS} steps of {BATCH} images, no checkpoints but those that a "
        "signal asks for; every second signal is sent twice, 0.3 s apart. `local`: one process; `groups`: two ranks on "
        "Ray Train.",
        "",
        f"**{good} of {len(rounds)} rounds**: no step of the training done twice, none missing, the table equal to "
        "the undisturbed one's bit for bit, and a checkpoint at or after the signal's step. s: from the "
        "signal to the end of the command, its page in MLflow closed; for a notice, to its checkpoint.",
        "",
        by.reset_index().rename(columns=names).to_markdown(index=False),
        "",
    ])  # fmt: skip


def main() -> None:
    def run(moments: int, folder: Path, seed: int) -> tuple[list[dict[str, Any]], str]:
        rounds = drill(moments, folder, seed=seed)
        return [each._asdict() for each in rounds], markdown(rounds, moments)

    drill_main(__doc__, 5, run)


if __name__ == "__main__":
    main()
