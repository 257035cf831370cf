"""A training-time sampler that does something to its own process when a file says so: real deaths at chosen steps, in
whatever process an executor runs it.

A trap is a file `NAME.trap` in the folder: "STEP ACTION [TIMES]". The process that reaches the step (as it counts since
it began) does it, so many times in all, once by default.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from pforce.config import Experiment, with_fields
from pforce.timesteps import SAMPLERS, TimestepSampler
from tests.training.conftest import tiny

HUGE = 10 << 20
_calls: Counter[str] = Counter()


@dataclass(frozen=True)
class Trap(TimestepSampler):
    """U(0, 1) per patch, and what the traps in a folder say."""

    name: ClassVar[str] = "trap"
    folder: str = ""

    def __call__(self, batch, patches, *, generator=None, device="cpu", dtype=torch.float32):
        _calls[self.folder] += 1
        for path in sorted(Path(self.folder).glob("*.trap")):
            with contextlib.suppress(FileNotFoundError, ValueError):
                self._spring(path)
        return torch.rand(batch, patches, generator=generator, device=device, dtype=dtype)

    def _spring(self, path: Path) -> None:
        step, action, *times = path.read_text().split()
        if _calls[self.folder] < int(step):
            return
        left = int(times[0]) if times else 1
        if left > 1:
            path.write_text(f"{step} {action} {left - 1}")
        else:
            path.unlink()  # of two processes at it one gets an error, and goes on
        act(action)


def act(action: str) -> None:
    """Do it to this process."""
    match action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(7)
        case "memory":
            raise MemoryError("there is no more")
        case "huge":
            raise RuntimeError("x" * HUGE)
        case "print":
            print("said on stdout")
            print("said on stderr", file=sys.stderr)
            os.write(1, b"said below Python\n")
        case "hang":
            time.sleep(10_000)
        case "wait":
            time.sleep(1)


SAMPLERS[Trap.name] = Trap


def set_trap(folder: Path, name: str, step: int, action: str, times: int = 1) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.trap").write_text(f"{step} {action} {times}")


def trapped(steps: int, folder: Path, **training) -> Experiment:
    """The tiny experiment with traps of a folder."""
    return with_fields(tiny(steps, **training), {"timesteps": Trap(str(folder))})
