"""Imported by the server that forks the tests' drivers and workers, and by nothing else: see `tests.support.starts`.

Not Ray: as it is imported it reads from the environment whether there are tokens, and clusters of tests differ in that.
"""

from __future__ import annotations

import importlib

import pforce.executors.support.preload  # noqa: F401
from pforce.base.console import imports_kept

NEEDED = (
    "mlflow.store.tracking.sqlalchemy_store",
    "pforce.cli",
    "pforce.commands.evaluate",
    "pforce.commands.mirror",
    "pforce.commands.records",
    "pforce.commands.report",
    "pforce.commands.reproduce",
    "pforce.commands.runs",
    "pforce.commands.sample",
    "pforce.commands.train",
    "pforce_experiments.sweeps.lambda_sweep",
    "pforce_experiments.sweeps.ltg_grid",
)
with imports_kept():
    for _name in NEEDED:
        importlib.import_module(_name)
