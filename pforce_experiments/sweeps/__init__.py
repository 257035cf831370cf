"""Sweeps: axes, budget, objective. `python -m pforce_experiments.sweeps.NAME`, in a clone `python sweeps/NAME.py`."""
