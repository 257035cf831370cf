"""Fashion-MNIST at 32²: photographs of clothes on black, ten balanced classes, small enough for a CPU.

Question: do the findings on OpenMoji's drawings (`pforce_experiments/openmoji32.py`) hold on photographs?
Command: `pforce train fashion32_micro`, or a sweep over it: `python sweeps/ltg_grid.py fashion32_micro`. The IDX files
come from Debian's package `dataset-fashion-mnist`, or from a folder named by PFORCE_FASHION_MNIST.
Cost: not measured yet; the model and the images have the size of `openmoji32_micro`'s.
Expected: not measured yet.
"""

from __future__ import annotations

from dataclasses import replace

from pforce.config import Experiment
from pforce.data.config import DataConfig
from pforce_experiments.openmoji32 import openmoji32_micro
from pforce_experiments.variants import as_sit

CLASSES = 10
"""Number of kinds of clothes; the manifest of the built data set names them."""


def fashion32_micro() -> Experiment:
    """PFT-micro (1.3 M parameters, patch 4) as in `openmoji32_micro`, on Fashion-MNIST. 96,000 images."""
    base = openmoji32_micro()
    return replace(
        base,
        name="fashion32_micro",
        model=replace(base.model, classes=CLASSES),
        data=DataConfig(name="fashion-mnist", resolution=32),
        evaluation=replace(base.evaluation, detector="fashion-mnist"),
    )


def fashion32_sit_micro() -> Experiment:
    """The baseline of `fashion32_micro`: SiT, one uniform timestep per sample, no difficulty head."""
    return as_sit(fashion32_micro(), "fashion32_sit_micro")
