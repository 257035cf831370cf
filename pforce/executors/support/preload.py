"""Imported by the server that forks worker processes, and by nothing else: what a worker needs is imported once, so
that each begins at once and shares the memory of it."""

from __future__ import annotations

import gc
import importlib
import signal

gc.disable()
for _name in (
    "pforce.executors.processes",
    "pforce.trial.run",
    "pforce.metrics.detectors",
    "PIL.Image",
    "matplotlib.figure",
):
    importlib.import_module(_name)
gc.enable()
gc.freeze()  # else the first collection of each worker copies the pages that are shared
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm sends it to all processes of a step: the driver says when to stop
