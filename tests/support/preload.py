"""Imported by the server that forks the tests' drivers and workers, and by nothing else: see `tests.support.starts`.

Not Ray: as it is imported it reads from the environment whether there are tokens, and clusters of tests differ in that.
"""

from __future__ import annotations

import gc
import importlib

import pforce.executors.support.preload  # noqa: F401

gc.disable()
for _name in (
    "mlflow.store.tracking.sqlalchemy_store",
    "pforce.cli",
    *(
        f"pforce.commands.{name}"
        for name in ("evaluate", "mirror", "records", "reproduce", "report", "runs", "sample", "train")
    ),
    "pforce_experiments.sweeps.lambda_sweep",
    "pforce_experiments.sweeps.ltg_grid",
):
    importlib.import_module(_name)
gc.enable()
gc.freeze()
