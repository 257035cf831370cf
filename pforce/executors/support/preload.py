"""Imported by the server that forks worker processes, and by nothing else: what a worker needs is imported once, so
that each begins at once and shares the memory of it."""

from __future__ import annotations

from pforce.base.console import imports_kept, leave_signals_to_driver

with imports_kept():
    import matplotlib.figure  # noqa: F401
    import PIL.Image  # noqa: F401

    import pforce.executors.support.placement
    import pforce.executors.support.setup
    import pforce.metrics.detectors
    import pforce.trial.perform
    import pforce.trial.run  # noqa: F401

leave_signals_to_driver()  # Slurm sends SIGTERM to all processes of a step; without the server no end is known
