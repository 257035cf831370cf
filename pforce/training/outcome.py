"""Early ends of a training, and the answers that a callback may give it."""

from __future__ import annotations

from enum import IntEnum


class Diverged(RuntimeError):
    """The loss, its gradient, or a weight is not finite. The last checkpoint is from before that.

    Args:
        step: optimiser steps done.
        what: the finding, such as `the loss is nan`.
    """

    def __init__(self, step: int, what: str) -> None:
        self.step, self.what = step, what
        super().__init__(f"the training diverged: at step {step} {what}")

    def __reduce__(self) -> tuple[type[Diverged], tuple[int, str]]:
        return Diverged, (self.step, self.what)


class Answer(IntEnum):
    """The answer to a report of work in progress."""

    GO_ON = 0
    CHECKPOINT = 1
    """Write a checkpoint now and continue."""
    CHECKPOINT_AND_STOP = 2


class Stopped(RuntimeError):
    """The work was asked to stop. A training has a checkpoint at its last step; a measurement keeps everything that is
    done."""
