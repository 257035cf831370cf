"""Variants that several experiments share."""

from __future__ import annotations

from dataclasses import replace

from pforce.config import Experiment
from pforce.timesteps import ParallelUniform


def as_sit(experiment: Experiment, name: str) -> Experiment:
    """The SiT baseline of a PFT: one uniform timestep per sample, no difficulty head, all else equal."""
    return replace(
        experiment, name=name, model=replace(experiment.model, difficulty_head=False), timesteps=ParallelUniform()
    )
