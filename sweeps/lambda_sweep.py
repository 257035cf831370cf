"""The λ sweep. Its code is `pforce_experiments/sweeps/lambda_sweep.py`, which also runs without a clone."""

from pforce.base.console import exit_on_errors, imports_kept

with imports_kept():
    from pforce_experiments.sweeps.lambda_sweep import main

if __name__ == "__main__":
    exit_on_errors(main)
