"""A trial: train a model, measure it, leave records. The same in every executor."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pforce import data, seeding
from pforce.config import Experiment, to_dict
from pforce.files import write_whole
from pforce.metrics.detectors import Detector
from pforce.metrics.held_out import MAP_IMAGES, shown_timesteps
from pforce.metrics.names import DAMAGED_SAMPLES
from pforce.models import PatchForcingTransformer, build
from pforce.parallel import ALONE, Workers
from pforce.records.lease import LOOK_SECONDS, Holder, LeaseLost
from pforce.records.ledger import Ledger
from pforce.records.parts import BFLOAT16, FLOAT32, CellParts, Inputs, cell_parts, decay_of, weights_part
from pforce.records.provenance import made_on
from pforce.records.record import Record
from pforce.records.row import DIVERGED_AT, TENSORS, WHY, Row, divergence_of, row_of, tensors_of
from pforce.storage import Storage, StorageError
from pforce.training import (
    Callback,
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
from pforce.training.callbacks import restore
from pforce.training.checkpoint import CheckpointError, snapshot_path
from pforce.training.curve import write_segment
from pforce.training.loop import Record as Point
from pforce.training.loop import use_bfloat16
from pforce.training.strategy import put
from pforce.trial.draw import save_samples
from pforce.trial.folder import (
    EVALUATIONS,
    EXPERIMENT,
    MAPS,
    SAMPLES,
    TRAINING,
    answered,
    ask,
    asked,
    evaluation_folder,
    held,
    training_folder,
    write_experiment,
)
from pforce.trial.measure import Subject, arrays_of, cycle_of, measure
from pforce.trial.mirror import TrialMirror
from pforce.trial.reference import REFERENCES, HeldOut, check_detector, inputs_of, reference_for
from pforce.trial.source import tensors_hash
from pforce.trial.watch import UNSEEN, Watch
from pforce.validation import ConfigError


@dataclass(frozen=True)
class Paths:
    """Where a trial finds its data and leaves its files."""

    data: Path
    """Folder of the data set."""
    storage: Storage
    """Where its folder, its drawings and its records go."""

    def folder(self, cell: CellParts) -> Path:
        """Folder of the training."""
        return self.storage.root / training_folder(cell.training.digest)

    def mirror(self, cell: CellParts) -> TrialMirror | None:
        """The folder in a bucket; None where the folder is the storage itself."""
        if not self.storage.remote:
            return None
        return TrialMirror(self.storage, training_folder(cell.training.digest), EXPERIMENT)

    @property
    def references(self) -> Path:
        """Where features of reference images are kept."""
        return self.storage.root / REFERENCES


@dataclass(frozen=True)
class Where:
    """Who runs a trial, and on what. Nothing here changes results beyond rounding."""

    device: torch.device
    workers: Workers = ALONE
    """The workers that share the trial; called by all of them."""
    sharding: Sharding = "none"
    """How the training is shared; see `pforce.training.strategy`."""
    devices: float = 1.0
    """Devices that the trial occupies, over all workers, for device-hours (on a CPU: cores)."""
    callbacks: Sequence[Callback] = ()
    """Called by the first worker only."""
    watch: Watch = UNSEEN
    provenance: Mapping[str, str] = field(default_factory=dict)
    """What the driver knows of the code, where this process cannot see it."""

    def record(self, experiment: Experiment) -> dict[str, str]:
        """Provenance of what is made here."""
        precision = "bfloat16" if use_bfloat16(experiment.training.precision, self.device) else "float32"
        return {
            **made_on(self.device, precision=precision), **self.provenance, "attention": experiment.model.attention,
            "workers": str(self.workers.count),
            **({"sharding": self.sharding} if self.sharding != "none" else {}),
        }  # fmt: skip


def check_data(experiment: Experiment, folder: Path, manifest: data.Manifest, detector: Detector) -> None:
    """ConfigError where the data set does not fit the experiment, DataError where it cannot be read."""
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
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def auto_precision_on(device: torch.device) -> str:
    """What `training.precision = auto` is on a device."""
    return BFLOAT16 if use_bfloat16("auto", device) else FLOAT32


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
    """A training at step 0: seeded weights, the data stream at its start.

    Args:
        identity: digest of the training; its checkpoints carry it.
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
    """The averaged weights as a whole model on every worker. To be called by all of them."""
    if state.workers.count == 1:
        return state.ema.model
    weights = {name: whole(tensor) for name, tensor in state.ema.model.state_dict().items()}
    model = build(experiment.model).to(state.device).eval().requires_grad_(False)
    model.load_state_dict(weights)
    return model


@dataclass
class Trained:
    """A training at some images seen."""

    model: PatchForcingTransformer
    """Averaged weights, on the device, on every worker."""
    weights: str
    """Hash of its tensors; empty on all workers but the first."""
    record: Record | None
    """Record of the weights, on the first worker."""


def published(
    experiment: Experiment, cell: CellParts, folder: Path, ledger: Ledger, made: Mapping[str, str]
) -> tuple[Record, dict[str, Tensor]] | None:
    """The record of a cell's weights and its snapshot's averaged weights by name; None where the snapshot is missing,
    damaged, or of other weights than the record says, of which the latter is warned of.

    Where only the record is missing, as whoever took the snapshot was killed in between, it is made.
    """
    path = snapshot_path(folder, cell.images_seen)
    if not path.exists():
        return None
    try:
        tensors, meta = checkpoint.load(path)
    except CheckpointError as error:
        if isinstance(error.__cause__, PermissionError):
            raise
        warnings.warn(f"damaged snapshot passed over: {error}", stacklevel=2)
        return None
    averaged, known = averaged_of(tensors), tensors_of(cell, ledger)
    found = tensors_hash(experiment.model, averaged)
    own = meta["identity"] == cell.training.digest and meta["images_seen"] == cell.images_seen
    if not own or (known is not None and found != known[0]):
        says = known[0][:12] if known else "none"
        warnings.warn(
            f"snapshot passed over: {path} holds other weights ({found[:12]}) than its record says ({says})",
            stacklevel=2,
        )
        return None
    if known is not None:
        return known[1], averaged
    write_segment(folder, [Point(**point) for point in meta["curve"]])  # as this comes before the record, too
    return _record_weights(cell, ledger, meta, found, made), averaged


def averaged_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The averaged weights of a snapshot, by their names in the model."""
    return {name.removeprefix("ema/"): value for name, value in tensors.items() if name.startswith("ema/")}


def _from_snapshot(
    experiment: Experiment, cell: CellParts, folder: Path, where: Where, ledger: Ledger
) -> Trained | None:
    """A training that is there, on all workers. To be called by all of them."""
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
    """A training at the cell's images seen: found there, continued, or begun; which tensors it has is recorded.
    Diverged, DataError, CheckpointError pass.

    Waits while another process is at the same training, and asks it for this snapshot.

    Args:
        resumable: what a training goes on from has to be there, too.
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
                there = find()  # whoever was at it may have left it
                if there is None:
                    there = _train(experiment, paths, cell, where, ledger, guard=guard)
        except LeaseLost as error:  # both are raised by all workers at once
            warnings.warn(str(error), stacklevel=2)
        except _TakenMeanwhile:  # a running training has left what was asked for, and goes on
            time.sleep(LOOK_SECONDS)
            workers.first_does(ledger.refresh)
            there = find()
            if there is not None and workers.first:
                answered(paths.storage, cell.training.digest, cell.images_seen)
    return there


class _TakenMeanwhile(Exception):
    """The snapshot that is waited for is there."""


def _train(
    experiment: Experiment, paths: Paths, cell: CellParts, where: Where, ledger: Ledger, *, guard: Callable[[], None]
) -> Trained:
    """Train to the cell's images seen, from the nearest earlier checkpoint. LeaseLost where another has taken over."""
    workers, folder, mirror, started = where.workers, paths.folder(cell), paths.mirror(cell), time.time()
    trunk, dropped = experiment.trunk, set[int]()
    origin = CellParts(cell.trunk, trunk.training.images, cell.request) if trunk and cell.trunk else None
    if workers.first:
        write_experiment(folder, experiment)
    refuse_diverged(experiment, cell, workers, ledger)
    state = training_state(
        experiment, paths.data, cell.training.digest, where.device, workers=workers, sharding=where.sharding,
        devices=where.devices,
    )  # fmt: skip

    def admit(state: TrainState, tensors: Mapping[str, Tensor]) -> bool:
        """Whoever finds another's snapshot there drops his own: something may have been measured of it."""
        own = replace(cell, images_seen=state.images_seen)
        if not snapshot_path(folder, own.images_seen).exists():
            return True
        ledger.look_again([own.weights])
        there = published(experiment, own, folder, ledger, where.record(experiment))
        if there is None or there[0].values[TENSORS] == tensors_hash(experiment.model, averaged_of(tensors)):
            return True
        warnings.warn(
            f"another process has left other weights of training {cell.training.digest[:12]} at {own.images_seen:,} "
            "images: those count, and are measured",
            stacklevel=2,
        )
        dropped.add(own.images_seen)
        return False

    def publish(state: TrainState, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        made, own = where.record(experiment), replace(cell, images_seen=state.images_seen)
        try:
            _record_training(experiment, cell, ledger, made, started)
            _record_weights(own, ledger, meta, tensors_hash(experiment.model, averaged_of(tensors)), made)
        except StorageError as error:
            if own.images_seen == cell.images_seen:
                raise
            warnings.warn(f"the snapshot at {own.images_seen:,} images is not recorded: {error}", stacklevel=2)

    def branch_off(state: TrainState) -> None:
        if trunk is None or origin is None:
            return
        while state.images_seen != origin.images_seen:  # others train the trunk on, and keep its newest moments only
            train_trial(trunk, paths, origin, replace(where, callbacks=()), ledger, resumable=True)
            restore(state, paths.folder(origin), at_most=origin.images_seen, identity=origin.training.digest)

    checkpoints = Checkpoints(
        folder, until=cell.images_seen, snapshots=experiment.training.snapshots,
        resumable=experiment.training.resumable, published=publish, admit=admit, mirror=mirror, guard=guard,
        begin=branch_off, wanted=lambda: asked(paths.storage, cell.training.digest),
        answered=lambda images: answered(paths.storage, cell.training.digest, images),
    )  # fmt: skip
    callbacks = (checkpoints, *(where.callbacks if workers.first else ()))
    try:
        train(state, until=cell.images_seen, flip=experiment.data.flip, callbacks=callbacks)
    except Diverged as error:  # raised by all workers at once
        if workers.first:
            made = where.record(experiment)
            _record_training(experiment, cell, ledger, made, started)
            _record_divergence(cell, ledger, state, error, made=made, started=started)
        raise
    if mirror is not None and workers.first:
        mirror.finish(cell.images_seen)
    if workers.first_does(lambda: cell.images_seen in dropped):
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
    """Diverged where that is recorded: of several cells of a training one tries. To be called by all workers."""

    def look() -> Record | None:
        ledger.refresh()
        return divergence_of(cell, ledger) if tensors_of(cell, ledger) is None else None

    record = workers.first_does(look)
    if record is not None:
        raise Diverged(int(record.number(DIVERGED_AT)) // experiment.training.batch, str(record.values.get(WHY)))


def _record_weights(
    cell: CellParts, ledger: Ledger, meta: Mapping[str, Any], tensors: str, made: Mapping[str, str]
) -> Record:
    """Record which tensors a training has, by the meta of their snapshot."""
    there = ledger.get(cell.weights)
    if there is not None and there.values.get(TENSORS) == tensors:
        return there
    if there is not None:
        # Its tensors are not here any more, so nothing can be measured of them; a row never mixes two runs.
        reason = "its tensors are gone, and the same recipe has given others"
        ledger.forget(there.digest, reason, who=dict(made))
        warnings.warn(
            f"training {cell.training.digest[:12]} at {cell.images_seen:,} images gave other weights here than those "
            f"that are recorded ({there.origin or there.provenance.get('host', 'another machine')}): what was measured "
            "of those does not count for it any more",
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


def subject_of(
    experiment: Experiment,
    paths: Paths,
    inputs: Inputs,
    trained: Trained,
    where: Where,
    *,
    images: HeldOut,
    detector: Detector,
) -> Subject:
    """A trained model with what its experiment's evaluation measures it with."""
    config = experiment.evaluation
    return Subject(
        model=trained.model,
        weights=trained.weights,
        device=where.device,
        sampler=experiment.sampler,
        labels=lambda: cycle_of(config, images, experiment.model.classes),
        detector=lambda: detector,
        reference=lambda: reference_for(
            config, paths.data, detector, inputs, cache=paths.references, device=where.device
        ),
        held_out=lambda: images(config.held_out_images),
        batch=config.batch,
        devices=where.devices,
        provenance=where.record(experiment),
    )


def run_trial(
    experiment: Experiment, paths: Paths, where: Where, *, inputs: Inputs | None = None
) -> Row | None:  # fmt: skip
    """Train, and measure what is missing; what another process is at is waited for. Errors as `train_trial`.

    Returns the row, on the first worker; the others get None. What is noted of a measurement is warned of.

    Args:
        inputs: what the experiment reads, by content; by default it is looked up.
    """
    workers = where.workers
    manifest = data.Manifest.load(paths.data)
    # What the evaluation reads is read first: a missing file is found before hours of training, not after.
    detector = experiment.evaluation.load_detector().to(where.device)
    inputs = inputs or inputs_of(experiment.evaluation, manifest, detector)
    experiment = with_precision(experiment, inputs)
    cell = cell_parts(experiment, inputs)
    check_detector(detector, cell.request.detector)
    held_out = HeldOut(paths.data)
    held_out(experiment.evaluation.held_out_images)
    ledger = Ledger(paths.storage, lambda line: warnings.warn(line, stacklevel=2))
    if workers.first:
        write_experiment(evaluation_folder(paths.folder(cell), cell.digest), experiment)
    trained = train_trial(experiment, paths, cell, where, ledger)
    trained.weights = workers.first_does(lambda: trained.weights)
    subject = subject_of(experiment, paths, inputs, trained, where, images=held_out, detector=detector)
    measure(cell.request, subject, ledger, workers=workers, watch=where.watch)
    return finish_trial(experiment, paths, cell, ledger, held_out) if workers.first else None


def finish_trial(
    experiment: Experiment, paths: Paths, cell: CellParts, ledger: Ledger, held_out: HeldOut, *, said: bool = True
) -> Row:
    """The row of a cell whose parts are all there, and the pictures of its folder.

    Args:
        said: warn of what is noted of the measurements.
    """
    row = row_of(cell, ledger)
    assert row is not None  # all of it was just measured
    for note in row.notes if said else ():
        warnings.warn(note, stacklevel=2)
    folder = evaluation_folder(paths.folder(cell), cell.digest)
    leave_pictures(experiment, folder, cell, ledger, weights=str(row.weights.values[TENSORS]), held_out=held_out)
    mirror = paths.mirror(cell)
    if mirror is not None:
        mirror.finish(cell.images_seen, f"{EVALUATIONS}/{folder.name}")
    return row


def leave_pictures(
    experiment: Experiment, folder: Path, cell: CellParts, ledger: Ledger, *, weights: str, held_out: HeldOut
) -> None:
    """Samples and maps of uncertainty in an evaluation's folder, of what the storage keeps."""
    drawing = cell.request.drawing(weights).digest
    save_samples(ledger.storage, drawing, cell.request.images, folder / SAMPLES)
    maps, times = [], []
    shown = {f"{time:.2f}" for time in shown_timesteps(experiment.evaluation.difficulty_timesteps)}
    for (analysis, time_key), part in cell.request.held_out_parts(weights).items():
        record = ledger.get(part) if analysis == "difficulty" and time_key in shown else None
        arrays = arrays_of(ledger, record) if record else None
        if arrays is not None:
            maps.append(arrays["maps"])
            times.append(float(time_key))
    if maps:
        images = held_out(experiment.evaluation.held_out_images).images[:MAP_IMAGES]
        named = {"images": images.numpy(), "timesteps": np.array(times), "sigma": np.stack(maps)}

        def write(scratch: Path) -> None:
            with scratch.open("wb") as file:
                np.savez(file, **named)  # type: ignore[arg-type]  # the stubs know no names

        write_whole(folder / MAPS, write)


def with_precision(experiment: Experiment, inputs: Inputs) -> Experiment:
    """The experiment with `auto` resolved, as its name has it."""
    if experiment.training.precision != "auto":
        return experiment
    precision: Literal["bfloat16", "float32"] = "bfloat16" if inputs.auto == "bfloat16" else "float32"
    return replace(experiment, training=replace(experiment.training, precision=precision))
