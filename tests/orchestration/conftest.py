"""Sweeps small enough for a test, and their parts."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from pforce.base.console import make_console
from pforce.orchestration.axes import Axis
from pforce.orchestration.options import Options
from pforce.orchestration.plan import Plan, plan
from pforce.orchestration.sweep import Sweep
from tests.training.conftest import tiny


def small_sweep(*axes: Axis, steps: int = 6, seeds: tuple[int, ...] = (0,), name: str = "small") -> Sweep:
    return Sweep(name, tiny(steps), axes, seeds)


@pytest.fixture
def console() -> Console:
    return make_console(width=200)


def make_plan(sweep: Sweep, storage: Path, **options) -> Plan:
    return plan(sweep, Options(storage=str(storage), **options), make_console(width=200))
