"""Drill: eight workers share a sweep through its storage alone, and start at odd moments; some are killed, some stopped
and continued, some told to end, and others take their places.

    python -m tests.faults.workers --moments 5 --out analysis/results/workers

Each round has a storage of its own. Afterwards the table must be that of one undisturbed worker, every part must have
one record, and the steps that were done more than once are counted: each is a line of an attempt's log.
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
from pforce.records.ledger import Ledger
from pforce.storage import Storage
from tests.faults.drills import SEED, drill_main
from tests.faults.driver_killed import ARGUMENTS, BATCH, RESULTS
from tests.support.clock import PATIENCE
from tests.support.starts import PFORCE, Start

WORKERS, CELLS, STEPS, EVERY = 8, 6, 160, 20
SWEEP = [
    PFORCE, "worker", "ltg_grid", *ARGUMENTS, "--m", "0", "0.7", "--sigma", "0.1", "0.2", "0.6",
    "--set", f"training.images={STEPS * BATCH}", "--set", f"training.checkpoint_every={EVERY}",
    "--set", "training.log_every=1", "--cpus-per-trial", "1",
]  # fmt: skip
KINDS = ("killed", "told to end", "stopped for a while")
EACH = 2
"""Times that each kind of thing happens in a round."""
START_SECONDS, PAUSE_SECONDS, STOPPED_SECONDS = 4.0, 2.0, 3.0
LINE = re.compile(r"([\d,]+) images seen, loss")


class Round(NamedTuple):
    """The end of a round."""

    workers: int
    """Processes that were started, those in place of others included."""
    killed: int
    ended: int
    paused: int
    seconds: float
    steps: int
    """Steps of all trainings."""
    again: int
    """Steps that were done more than once."""
    parts: int
    """Records of parts."""
    twice: int
    """Parts with more than one record, but for drawings, of which each process records its share."""
    same: bool
    """Whether the table is that of an undisturbed worker, bit for bit."""

    @property
    def is_good(self) -> bool:
        """Whether the numbers are the same, no part was recorded twice, and at most what lay behind the last checkpoint
        of a killed worker was done again."""
        return self.same and not self.twice and self.again <= self.killed * EVERY


def steps_of(storage: Path) -> dict[str, Counter[int]]:
    """Training → how often each of its steps was done."""
    found: dict[str, Counter[int]] = {}
    for log in storage.glob("trainings/*/attempts/*.log"):
        steps = (int(match[1].replace(",", "")) // BATCH for match in LINE.finditer(log.read_text()))
        found.setdefault(log.parents[1].name, Counter()).update(steps)
    return found


def recorded_twice(storage: Path) -> list[str]:
    """Digests of parts that were recorded more than once. Of a drawing each process records its share of the cost."""
    ledger = Ledger(Storage.open(storage), print)
    found = {digest: ledger.all_of(digest) for digest in ledger.names()}
    return [digest for digest, records in found.items() if len(records) > 1 and records[0].kind != "drawing"]


def table_of(storage: Path) -> pd.DataFrame:
    """The columns of the table that are results."""
    return pd.read_csv(storage / "ltg_grid.csv")[RESULTS]


class Fleet:
    """The workers of a round."""

    def __init__(self, storage: Path) -> None:
        self.storage, self.running, self.started = storage, [], 0
        self.running: list[Start]

    def start(self) -> None:
        """Start a worker."""
        self.started += 1
        log = self.storage.with_suffix(f".{self.started}.log")
        self.running.append(Start([*SWEEP, "--storage", str(self.storage)], log=log))

    def texts(self) -> str:
        """All that the workers have printed."""
        return "\n".join(path.read_text() for path in sorted(self.storage.parent.glob(f"{self.storage.name}.*.log")))

    def strike(self, kind: str, chosen: Start) -> bool:
        """Do something to a worker. Returns whether it was still running."""
        if chosen.poll() is not None:
            return False
        if kind == "stopped for a while":
            chosen.send_signal(signal.SIGSTOP)
            time.sleep(STOPPED_SECONDS)
            chosen.send_signal(signal.SIGCONT)
            return True
        self.running.remove(chosen)
        chosen.send_signal(signal.SIGKILL if kind == "killed" else signal.SIGTERM)
        code = chosen.wait(60 * PATIENCE)
        if kind == "told to end" and code not in (STOPPED, DONE, -signal.SIGTERM):
            raise RuntimeError(f"exit code {code}\n{self.texts()}")
        self.start()
        return True

    def wait(self) -> None:
        """Wait for all. RuntimeError where one does not end well."""
        codes = [each.wait(300 * PATIENCE) for each in self.running]
        if set(codes) != {DONE}:
            raise RuntimeError(f"exit codes {codes}\n{self.texts()}")


def undisturbed(folder: Path) -> pd.DataFrame:
    """The table of one worker that nobody disturbs."""
    fleet = Fleet(folder / "undisturbed")
    fleet.start()
    fleet.wait()
    return table_of(fleet.storage)


def round_of(storage: Path, expected: pd.DataFrame, chosen: random.Random, *, each: int = EACH) -> Round:
    """Run a sweep with eight workers, disturb them, and compare."""
    fleet, begun = Fleet(storage), time.monotonic()
    for _ in range(WORKERS):
        fleet.start()
        time.sleep(chosen.uniform(0, START_SECONDS / WORKERS))
    done: Counter[str] = Counter()
    strikes = [kind for kind in KINDS for _ in range(each)]
    chosen.shuffle(strikes)
    for kind in strikes:
        time.sleep(chosen.uniform(0, PAUSE_SECONDS))
        done[kind] += fleet.strike(kind, chosen.choice(fleet.running))
    fleet.wait()
    seconds, counts = time.monotonic() - begun, steps_of(storage)
    names = Ledger(Storage.open(storage), print).names()
    return Round(
        fleet.started, done["killed"], done["told to end"], done["stopped for a while"], round(seconds, 1),
        sum(len(steps) for steps in counts.values()),
        sum(count - 1 for steps in counts.values() for count in steps.values()),
        len(names), len(recorded_twice(storage)), table_of(storage).equals(expected),
    )  # fmt: skip


def drill(moments: int, folder: Path, *, seed: int = SEED) -> list[Round]:
    """All rounds."""
    expected, found, chosen = undisturbed(folder), [], random.Random(f"workers-{seed}")
    for number in range(moments):
        found.append(round_of(folder / f"round{number}", expected, chosen))
        print(json.dumps(found[-1]._asdict()), flush=True)
        shutil.rmtree(folder / f"round{number}")
    return found


def markdown(rounds: Sequence[Round], moments: int) -> str:
    """The rounds as a table."""
    frame = pd.DataFrame([each._asdict() for each in rounds])
    good, steps, again = sum(each.is_good for each in rounds), frame["steps"].sum(), frame["again"].sum()
    return (
        f"# Eight workers on one storage\n\n"
        f"`python -m tests.faults.workers --moments {moments}`: {CELLS} cells of {STEPS} steps, a checkpoint every "
        f"{EVERY}, on {os.cpu_count()} cores ({platform.machine()}). {good} of {len(rounds)} rounds were good: the "
        f"table of an undisturbed worker bit for bit, one record per part. Of {steps:,} steps {again:,} were done "
        f"again ({again / steps:.1%}), after {frame['killed'].sum()} kills.\n\n{frame.to_markdown(index=False)}\n"
    )  # fmt: skip


def run(moments: int, folder: Path, seed: int) -> tuple[Any, str]:
    """The drill, for a command line."""
    rounds = drill(moments, folder, seed=seed)
    return [each._asdict() for each in rounds], markdown(rounds, moments)


if __name__ == "__main__":
    drill_main(__doc__, 5, run)
