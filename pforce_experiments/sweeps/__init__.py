"""Sweeps: axes, budget and report. Run as `python -m pforce_experiments.sweeps.NAME`, in a clone `sweeps/NAME.py`."""
