"""The LTG grid. Its code is `pforce_experiments/sweeps/ltg_grid.py`, which also runs without a clone."""

from pforce.base.console import exit_on_errors, imports_kept

with imports_kept():
    from pforce_experiments.sweeps.ltg_grid import main

if __name__ == "__main__":
    exit_on_errors(main)
