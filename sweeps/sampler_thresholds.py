"""The search of `pforce_experiments/sweeps/sampler_thresholds.py`, which also runs without a clone."""

from pforce.base.console import exit_on_errors, imports_kept

with imports_kept():
    from pforce_experiments.sweeps.sampler_thresholds import main

if __name__ == "__main__":
    exit_on_errors(main)
