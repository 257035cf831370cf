"""One tiny trial as a process, for tests that kill it: STORAGE TRACKING_URI STEPS SECONDS_A_STEP."""

from __future__ import annotations

import sys
import time

from pforce.base.console import exit_on_errors
from pforce.orchestration.options import Options
from pforce.orchestration.script import run_sweep
from pforce.storage import place
from pforce.training.loop import Callback, TrainState
from pforce.training.window import Record
from tests.orchestration.conftest import small_sweep


class Slowly(Callback):
    """A step takes this long, so that a kill comes between two checkpoints."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_record(self, state: TrainState, record: Record) -> None:
        print(f"step {state.step}", flush=True)
        time.sleep(self.seconds)


def main() -> int:
    storage, tracking_uri, steps, seconds = sys.argv[1:]
    place.PAUSES_SECONDS = (0.1,)  # without a server each file waits as long
    slowly = Slowly(float(seconds))
    options = Options(storage=storage, tracking_uri=tracking_uri, retries=0)  # a try takes long without a server
    return run_sweep(small_sweep(steps=int(steps)), options, executor="local", callbacks=[slowly])


if __name__ == "__main__":
    exit_on_errors(main)
