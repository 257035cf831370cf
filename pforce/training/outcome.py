"""How a training ends before its end, and what a callback may answer it."""

from __future__ import annotations

from enum import IntEnum


class Diverged(RuntimeError):
    """The loss, its gradient, or a weight is not finite. The last checkpoint is from before.

    Args:
        step: optimiser steps done.
        what: what was found: `the loss is nan`.
    """

    def __init__(self, step: int, what: str) -> None:
        self.step, self.what = step, what
        super().__init__(f"the training diverged: at step {step} {what}")

    def __reduce__(self) -> tuple[type[Diverged], tuple[int, str]]:
        return Diverged, (self.step, self.what)


class Answer(IntEnum):
    """The reply to a report of work under way."""

    GO_ON = 0
    CHECKPOINT = 1
    """Write a checkpoint now, and go on."""
    CHECKPOINT_AND_STOP = 2


class Stopped(RuntimeError):
    """The work was told to stop. A training stands at a checkpoint of the step that it had done; of a measurement all
    that is done is kept."""
