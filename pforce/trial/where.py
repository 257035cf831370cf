"""The paths of a training, and the processes and devices that run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from pforce import data
from pforce.base.errors import ConfigError
from pforce.config import Experiment
from pforce.metrics.detectors import Detector
from pforce.models.attention import attention_used
from pforce.parallel import ALONE, Workers
from pforce.records.parts import BFLOAT16, FLOAT32, CellParts, Inputs
from pforce.records.provenance import made_on
from pforce.storage import Storage
from pforce.training import (
    Callback,
    Sharding,
)
from pforce.training.loop import use_bfloat16
from pforce.trial.folder import (
    EXPERIMENT,
    training_folder,
)
from pforce.trial.mirror import TrialMirror
from pforce.trial.reference import REFERENCES
from pforce.trial.watch import UNSEEN, Watch


@dataclass(frozen=True)
class Paths:
    """The folder of the data and the storage for results."""

    data: Path
    """Folder of the data set."""
    storage: Storage
    """Storage for the training's folder, drawings and records."""

    def folder(self, cell: CellParts) -> Path:
        """Folder of the cell's training."""
        return self.storage.root / training_folder(cell.training.digest)

    def mirror(self, cell: CellParts) -> TrialMirror | None:
        """The copy of the training's folder in a bucket; None for a local storage."""
        if not self.storage.remote:
            return None
        return TrialMirror(self.storage, training_folder(cell.training.digest), EXPERIMENT)

    @property
    def references(self) -> Path:
        """Folder of the features of reference images."""
        return self.storage.root / REFERENCES


@dataclass(frozen=True)
class Where:
    """The workers, the device and the callbacks of a training. Nothing here changes results beyond rounding."""

    device: torch.device
    workers: Workers = ALONE
    """The workers that share the training; all of them must call its functions."""
    sharding: Sharding = "none"
    """Sharding of the training; see `pforce.training.strategy`."""
    devices: float = 1.0
    """Devices (on a CPU: cores) that the training occupies, over all workers, for device-hours."""
    callbacks: Sequence[Callback] = ()
    """Called by the first worker only."""
    watch: Watch = UNSEEN
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Provenance that the driver knows, where this process cannot see the code."""

    def record(self, experiment: Experiment) -> dict[str, str]:
        """Provenance of results made here."""
        precision = "bfloat16" if use_bfloat16(experiment.training.precision, self.device) else "float32"
        return {
            **made_on(self.device, precision=precision), **self.provenance,
            "attention": attention_used(experiment.model.attention),
            "workers": str(self.workers.count),
            **({"sharding": self.sharding} if self.sharding != "none" else {}),
        }  # fmt: skip


def check_data(experiment: Experiment, folder: Path, manifest: data.Manifest, detector: Detector) -> None:
    """Raise ConfigError where the data set does not fit the experiment, DataError where it cannot be read."""
    expected = {
        "model.classes": (experiment.model.classes, len(manifest.classes)),
        "model.channels": (experiment.model.channels, manifest.channels),
        "data.resolution": (experiment.data.resolution, manifest.resolution),
    }
    for path, (configured, found) in expected.items():
        if configured != found:
            raise ConfigError(f"{path} = {configured}: must be {found}, as the data set in {folder} has")
    if manifest.channels != 3 or manifest.resolution < detector.minimum_size:
        raise ConfigError(
            f"data.resolution = {manifest.resolution} with {manifest.channels} channels: the detector {detector.name} "
            f"takes images of 3 channels and at least {detector.minimum_size}²"
        )
    if manifest.validation.samples < 2:
        raise ConfigError(f"{folder} has {manifest.validation.samples} validation images: a distance needs 2")
    data.check_streams(folder, manifest, experiment.data, batch=experiment.training.batch)


def choose_device() -> torch.device:
    """The first GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def auto_precision_on(device: torch.device) -> str:
    """The precision that `training.precision = auto` stands for on a device."""
    return BFLOAT16 if use_bfloat16("auto", device) else FLOAT32


def precision_note(precision: str, device: torch.device) -> str:
    """Note on a GPU that computes bfloat16 by emulation; empty elsewhere."""
    if precision != BFLOAT16 or device.type != "cuda" or use_bfloat16("auto", device):
        return ""
    name = torch.cuda.get_device_name(device)
    return f"training.precision = bfloat16: {name} only emulates it, slower than float32; auto is what it supports"


def with_precision(experiment: Experiment, inputs: Inputs) -> Experiment:
    """The experiment with the precision `auto` resolved, as in its identity."""
    if experiment.training.precision != "auto":
        return experiment
    precision: Literal["bfloat16", "float32"] = "bfloat16" if inputs.auto == "bfloat16" else "float32"
    return replace(experiment, training=replace(experiment.training, precision=precision))
