"""A training to some images seen: found in the storage, resumed, or begun. The same in every executor."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pforce import data, seeding
from pforce.config import Experiment, to_dict
from pforce.metrics.names import DAMAGED_SAMPLES
from pforce.models import PatchForcingTransformer, build
from pforce.parallel import ALONE, Workers
from pforce.records.lease import LOOK_SECONDS, Holder, LeaseLost
from pforce.records.ledger import Ledger
from pforce.records.parts import CellParts, decay_of, weights_part
from pforce.records.record import Record
from pforce.records.row import DIVERGED_AT, TENSORS, WHY, divergence_of, tensors_of
from pforce.storage import StorageError
from pforce.training import (
    Checkpoints,
    Diverged,
    Sharding,
    TrainingSpec,
    TrainState,
    checkpoint,
    new_state,
    train,
    whole,
)
from pforce.training.callbacks import StepsOnly, restore
from pforce.training.checkpoint import CheckpointError, snapshot_path
from pforce.training.curve import write_segment
from pforce.training.strategy import put
from pforce.training.window import Record as Point
from pforce.trial.folder import (
    TRAINING,
    answered,
    ask,
    asked,
    held,
    write_experiment,
)
from pforce.trial.source import tensors_hash
from pforce.trial.where import Paths, Where


def training_state(
    experiment: Experiment,
    data_folder: Path,
    identity: str,
    device: torch.device,
    *,
    workers: Workers = ALONE,
    sharding: Sharding = "none",
    devices: float = 1.0,
) -> TrainState:
    """The state of a training at step 0: seeded weights, and the data stream at its start.

    Args:
        identity: digest of the training, stored in its checkpoints.
    """
    spec = TrainingSpec(
        timesteps=experiment.timesteps,
        flow=experiment.flow,
        optimizer=experiment.optimizer,
        training=experiment.training,
        seed=experiment.seed,
        identity=identity,
    )
    model = build(experiment.model, generator=seeding.generator("weights", experiment.seed))
    stream = data.TrainingStream(
        data_folder,
        experiment.data,
        batch=experiment.training.batch,
        seed=experiment.seed,
        rank=workers.rank,
        world_size=workers.count,
    )
    return new_state(spec, model, stream, device, workers=workers, sharding=sharding, devices=devices)


def averaged_model(state: TrainState, experiment: Experiment) -> PatchForcingTransformer:
    """The averaged weights as a whole model on every worker. All workers must call it."""
    if state.workers.count == 1:
        return state.ema.model
    weights = {name: whole(tensor) for name, tensor in state.ema.model.state_dict().items()}
    model = build(experiment.model).to(state.device).eval().requires_grad_(False)
    model.load_state_dict(weights)
    return model


@dataclass
class Trained:
    """The result of a training at some images seen."""

    model: PatchForcingTransformer
    """Model with averaged weights, on the device, on every worker."""
    weights: str
    """Hash of the model's tensors; empty on all workers except the first."""
    record: Record | None
    """Record of the weights; None on all workers except the first."""


def published(
    experiment: Experiment, cell: CellParts, folder: Path, ledger: Ledger, made: Mapping[str, str]
) -> tuple[Record, dict[str, Tensor]] | None:
    """The record of a cell's weights and its snapshot's averaged weights by name; None where the snapshot is missing,
    or, with a warning, where it is damaged or holds other weights than the record names.

    Where only the record is missing, because the process that wrote the snapshot was killed before it, the record is
    made.
    """
    path = snapshot_path(folder, cell.images_seen)
    if not path.exists():
        return None
    try:
        tensors, meta = checkpoint.load(path)
    except CheckpointError as error:
        if isinstance(error.__cause__, PermissionError):
            raise
        warnings.warn(f"damaged snapshot skipped: {error}", stacklevel=2)
        return None
    averaged, known = averaged_of(tensors), tensors_of(cell, ledger)
    found = tensors_hash(experiment.model, averaged)
    own = meta["identity"] == cell.training.digest and meta["images_seen"] == cell.images_seen
    if not own or (known is not None and found != known[0]):
        says = known[0][:12] if known else "none"
        warnings.warn(
            f"snapshot skipped: {path} holds other weights ({found[:12]}) than its record names ({says})",
            stacklevel=2,
        )
        return None
    if known is not None:
        return known[1], averaged
    write_segment(folder, [Point(**point) for point in meta["curve"]])  # the curve comes before the record here, too
    return _record_weights(cell, ledger, meta, found, made), averaged


def averaged_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The averaged weights of a snapshot by their names in the model."""
    return {name.removeprefix("ema/"): value for name, value in tensors.items() if name.startswith("ema/")}


def _from_snapshot(
    experiment: Experiment, cell: CellParts, folder: Path, where: Where, ledger: Ledger
) -> Trained | None:
    """The training in a snapshot, on all workers; None where there is none. All workers must call it."""
    found: list[tuple[Record, dict[str, Tensor]]] = []

    def look() -> bool:
        there = published(experiment, cell, folder, ledger, where.record(experiment))
        found.extend([there] if there else [])
        return there is not None

    if not where.workers.first_does(look):
        return None
    model = build(experiment.model).to(where.device).eval().requires_grad_(False)
    for name, target in model.state_dict().items():
        put(target, found[0][1][name] if found else None, where.workers)
    if not found:
        return Trained(model, "", None)
    record = found[0][0]
    return Trained(model, str(record.values[TENSORS]), record)


def train_trial(
    experiment: Experiment, paths: Paths, cell: CellParts, where: Where, ledger: Ledger, *, resumable: bool = False
) -> Trained:
    """Train to the cell's images seen: the training is found there, resumed, or begun, and its weights are recorded.
    Diverged, DataError and CheckpointError are passed on.

    While another process runs the same training, wait, and ask it for this snapshot.

    Args:
        resumable: the moments that a training needs to resume must be there, too.
    """
    workers, folder = where.workers, paths.folder(cell)
    mirror, snapshot = paths.mirror(cell), snapshot_path(folder, cell.images_seen)

    def find() -> Trained | None:
        if mirror is not None:
            workers.first_does(lambda: mirror.fetch(cell.images_seen, resumable=resumable))
        if resumable and not workers.first_does(lambda: checkpoint.is_resumable(snapshot)):
            return None
        there = _from_snapshot(experiment, cell, folder, where, ledger)
        if there is not None and workers.first:
            _record_training(experiment, cell, ledger, where.record(experiment), time.time())
        return there

    def wait(holder: Holder | None) -> None:
        where.watch.waits(holder)
        if checkpoint.META in paths.storage.names(snapshot.relative_to(paths.storage.root).as_posix()):
            raise _TakenMeanwhile
        ask(paths.storage, cell.training.digest, cell.images_seen)

    there = find()
    while there is None:
        try:
            with held(workers, paths.storage, f"{TRAINING}/{cell.training.digest}", "training", wait=wait) as guard:
                where.watch.begins()
                workers.first_does(ledger.refresh)
                there = find()  # the process that ran it may have finished it
                if there is None:
                    there = _train(experiment, paths, cell, where, ledger, guard=guard)
        except LeaseLost as error:  # all workers raise both at once
            warnings.warn(str(error), stacklevel=2)
        except _TakenMeanwhile:  # a running training has written the requested snapshot, and continues
            time.sleep(LOOK_SECONDS)
            workers.first_does(ledger.refresh)
            there = find()
            if there is not None and workers.first:
                answered(paths.storage, cell.training.digest, cell.images_seen)
    return there


class _TakenMeanwhile(Exception):
    """The awaited snapshot is there."""


@dataclass
class _Sharing:
    """The exchange of a running training with other processes: its snapshots and records, and theirs."""

    experiment: Experiment
    paths: Paths
    cell: CellParts
    where: Where
    ledger: Ledger
    started: float = field(default_factory=time.time)
    dropped: set[int] = field(default_factory=set)
    """Images seen of own snapshots that were dropped in favour of another process's."""

    @property
    def made(self) -> dict[str, str]:
        """Provenance of the records."""
        return self.where.record(self.experiment)

    def admit(self, state: TrainState, tensors: Mapping[str, Tensor]) -> bool:
        """Whether a snapshot may be written: not where another process's snapshot is there, which may have been
        measured already."""
        own = replace(self.cell, images_seen=state.images_seen)
        folder = self.paths.folder(self.cell)
        if not snapshot_path(folder, own.images_seen).exists():
            return True
        self.ledger.look_again([own.weights])
        there = published(self.experiment, own, folder, self.ledger, self.made)
        if there is None or there[0].values[TENSORS] == tensors_hash(self.experiment.model, averaged_of(tensors)):
            return True
        warnings.warn(
            f"another process has left other weights of training {own.training.digest[:12]} at {own.images_seen:,} "
            "images: those count, and are measured",
            stacklevel=2,
        )
        self.dropped.add(own.images_seen)
        return False

    def publish(self, state: TrainState, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Record a snapshot that was just written."""
        made, own = self.made, replace(self.cell, images_seen=state.images_seen)
        try:
            _record_training(self.experiment, own, self.ledger, made, self.started)
            found = tensors_hash(self.experiment.model, averaged_of(tensors))
            _record_weights(own, self.ledger, meta, found, made)
            self.where.watch.snapshot(own.images_seen)
        except StorageError as error:
            if own.images_seen == self.cell.images_seen:
                raise
            warnings.warn(f"the snapshot at {own.images_seen:,} images is not recorded: {error}", stacklevel=2)

    def branch_off(self, state: TrainState) -> None:
        """Begin a branch at its trunk's state, which is trained where it is missing. All workers must call it."""
        trunk = self.experiment.trunk
        if trunk is None or self.cell.trunk is None:
            return
        origin = CellParts(self.cell.trunk, trunk.training.images, self.cell.request)
        where = replace(self.where, callbacks=[StepsOnly(self.where.callbacks)])
        while (
            state.images_seen != origin.images_seen
        ):  # other processes may train the trunk further and keep only its newest moments
            train_trial(trunk, self.paths, origin, where, self.ledger, resumable=True)
            folder = self.paths.folder(origin)
            restore(state, folder, at_most=origin.images_seen, identity=origin.training.digest)

    def diverged(self, state: TrainState, error: Diverged) -> None:
        """Record the divergence of the training."""
        made = self.made
        _record_training(self.experiment, self.cell, self.ledger, made, self.started)
        _record_divergence(self.cell, self.ledger, state, error, made=made, started=self.started)


def _train(
    experiment: Experiment, paths: Paths, cell: CellParts, where: Where, ledger: Ledger, *, guard: Callable[[], None]
) -> Trained:
    """Train to the cell's images seen from the nearest earlier checkpoint. LeaseLost where another process has taken
    over."""
    workers, folder, mirror = where.workers, paths.folder(cell), paths.mirror(cell)
    sharing = _Sharing(experiment, paths, cell, where, ledger)
    if workers.first:
        write_experiment(folder, experiment)
    refuse_diverged(experiment, cell, workers, ledger)
    state = training_state(
        experiment, paths.data, cell.training.digest, where.device, workers=workers, sharding=where.sharding,
        devices=where.devices,
    )  # fmt: skip
    checkpoints = Checkpoints(
        folder, until=cell.images_seen, snapshots=experiment.training.snapshots,
        resumable=experiment.training.resumable, published=sharing.publish, admit=sharing.admit, mirror=mirror,
        guard=guard, begin=sharing.branch_off, wanted=lambda: asked(paths.storage, cell.training.digest),
        answered=lambda images: answered(paths.storage, cell.training.digest, images),
    )  # fmt: skip
    callbacks = (checkpoints, *(where.callbacks if workers.first else ()))
    try:
        train(state, until=cell.images_seen, flip=experiment.data.flip, callbacks=callbacks)
    except Diverged as error:  # raised by all workers at once
        if workers.first:
            sharing.diverged(state, error)
        raise
    if mirror is not None and workers.first:
        mirror.finish(cell.images_seen)
    if workers.first_does(lambda: cell.images_seen in sharing.dropped):
        there = _from_snapshot(experiment, cell, folder, where, ledger)
        assert there is not None  # `admit` has just read it
        return there
    model = averaged_model(state, experiment)
    if not workers.first:
        return Trained(model, "", None)
    record = ledger.get(cell.weights)
    assert record is not None  # `publish` has put it
    return Trained(model, str(record.values[TENSORS]), record)


def _record_training(
    experiment: Experiment, cell: CellParts, ledger: Ledger, made: Mapping[str, str], started: float
) -> None:
    if ledger.get(cell.training) is None:
        values = {"experiment": to_dict(experiment)}
        ledger.put(Record.of(
            cell.training, values=values, started=started, finished=time.time(), provenance=dict(made)
        ))  # fmt: skip


def _record_divergence(
    cell: CellParts, ledger: Ledger, state: TrainState, error: Diverged, *, made: Mapping[str, str], started: float
) -> None:
    values = {DIVERGED_AT: error.step * state.spec.training.batch, WHY: error.what}
    cost = {"seconds": state.seconds, "device_seconds": state.device_seconds}
    ledger.put(Record.of(
        cell.diverged, values=values, started=started, finished=time.time(), cost=cost, provenance=dict(made)
    ))  # fmt: skip


def refuse_diverged(experiment: Experiment, cell: CellParts, workers: Workers, ledger: Ledger) -> None:
    """Raise Diverged where a divergence is recorded, so that only one of a training's cells tries. All workers must
    call it."""

    def look() -> Record | None:
        ledger.refresh()
        return divergence_of(cell, ledger) if tensors_of(cell, ledger) is None else None

    record = workers.first_does(look)
    if record is not None:
        raise Diverged(int(record.number(DIVERGED_AT)) // experiment.training.batch, str(record.values.get(WHY)))


def _record_weights(
    cell: CellParts, ledger: Ledger, meta: Mapping[str, Any], tensors: str, made: Mapping[str, str]
) -> Record:
    """Record the weights of a training, from the meta of their snapshot."""
    there = ledger.get(cell.weights)
    if there is not None and there.values.get(TENSORS) == tensors:
        return there
    if there is not None:
        # Its tensors are gone, so nothing more can be measured of them; a row never mixes two runs.
        reason = "its tensors are gone, and the same recipe has given others"
        ledger.forget(there.digest, reason, who=dict(made))
        warnings.warn(
            f"training {cell.training.digest[:12]} at {cell.images_seen:,} images gave other weights here than those "
            f"recorded ({there.origin or there.provenance.get('host', 'another machine')}): measurements of those no "
            "longer count for it",
            stacklevel=2,
        )
    now, damaged = time.time(), meta["stream"]["damaged"]
    values: dict[str, str | float] = {TENSORS: tensors, DAMAGED_SAMPLES: float(sum(damaged.values()))}
    cost = {name: float(meta[name]) for name in ("seconds", "device_seconds")}
    cost["images"] = float(cell.images_seen)
    branch = decay_of(cell.training)
    trunk = ledger.get(weights_part(*branch)) if branch and branch[1] else None
    if trunk is not None:
        cost |= {f"trunk_{name}": trunk.cost[name] for name in ("seconds", "device_seconds", "images")}
    return ledger.put(Record.of(
        cell.weights, values=values, started=now - cost["seconds"], finished=now, cost=cost, provenance=dict(made)
    ))  # fmt: skip
