"""Ways in which a wrong number was stored or shown, or work was lost, each found by an attack on the records.

Oracle: an undisturbed storage, or the refusal.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pforce.config import Experiment, flat_params, with_fields
from pforce.data import Manifest
from pforce.metrics.detectors import DetectorError, load_detector
from pforce.metrics.held_out import NotFinite
from pforce.metrics.reference import StatisticsError, cached_reference, save_statistics
from pforce.models import PatchForcingTransformer
from pforce.orchestration.find import find_model
from pforce.orchestration.sampler_report import make_subject
from pforce.orchestration.shared import Shared, Wanted
from pforce.records import exchange, identity
from pforce.records.identity import canonical_sampler
from pforce.records.ledger import Ledger
from pforce.records.parts import CellParts, Inputs, cell_parts
from pforce.records.record import Record, RecordError
from pforce.records.row import Row, divergence_of, row_of
from pforce.records.sweeps import CellEntry, SweepEntry, read_sweeps
from pforce.results.shown import views_of
from pforce.results.stored import storage_frame
from pforce.sampling import Euler, Guidance
from pforce.storage import Storage
from pforce.training import Diverged, loop
from pforce.trial import drawn_images, held_out, measure
from pforce.trial.draw import Blocks
from pforce.trial.reference import SplitImages, inputs_of
from pforce.trial.run import run_trial
from pforce.trial.source import SourceError, load_source
from pforce.trial.where import Paths, Where
from tests.support.buckets import KEYS
from tests.support.performing import done
from tests.training.conftest import DATA, tiny

CPU = Where(torch.device("cpu"))


def of(steps: int = 6, **changes: object) -> Experiment:
    return with_fields(tiny(steps, precision="float32"), {f"evaluation.{key}": value for key, value in changes.items()})


def trial(experiment: Experiment, place: Storage, inputs: Inputs | None = None) -> Row:
    row = run_trial(experiment, Paths(DATA, place), CPU, inputs=inputs)
    assert isinstance(row, Row)
    return row


def inputs_for(experiment: Experiment) -> Inputs:
    evaluation = experiment.evaluation
    return inputs_of(evaluation, Manifest.load(DATA), evaluation.load_detector())


def parts_of(experiment: Experiment) -> CellParts:
    return cell_parts(experiment, inputs_for(experiment))


def keep(place: Storage, *experiments: Experiment) -> list[CellParts]:
    """A sweep `mine` of these cells."""
    cells = [parts_of(experiment) for experiment in experiments]
    entries = [
        CellEntry.of(f"cell {number}", cell, flat_params(experiment), 0)
        for number, (cell, experiment) in enumerate(zip(cells, experiments, strict=True))
    ]
    SweepEntry("mine", "0" * 32, entries).write(place)
    return cells


@pytest.fixture
def place(tmp_path: Path) -> Storage:
    return Storage.open(tmp_path / "runs")


# --- what is measured with is what was planned -----------------------------------------------------------------------


def test_another_detector_than_the_planned_one_is_refused(place):
    planned = dataclasses.replace(inputs_for(of()), detector_sha256="0" * 64)
    with pytest.raises(DetectorError, match=r"detector openmoji: its sha256 here is .* was planned"):
        trial(of(), place, planned)


def test_statistics_that_were_replaced_since_the_plan_are_refused(place, tmp_path):
    detector, path = load_detector("openmoji"), tmp_path / "reference.npz"
    experiment = of(reference=str(path), reference_images=None)
    for split in ("validation", "train"):
        images = SplitImages(DATA, split)
        save_statistics(path, cached_reference(images, detector, None, source=split, content=split))
        if split == "validation":
            planned = inputs_for(experiment)
    with pytest.raises(StatisticsError, match="was replaced meanwhile"):
        trial(experiment, place, planned)


def test_a_raised_detector_version_reads_all_images_again(place, monkeypatch):
    first = trial(of(), place)
    detector = type(load_detector("openmoji"))
    read = detector.read
    monkeypatch.setattr(detector, "read", lambda self, images: read(self, images)._replace(
        features=2 * read(self, images).features))  # fmt: skip
    monkeypatch.setitem(identity.VERSIONS, "detector.openmoji", 2)
    again = trial(of(), place)
    assert again.metrics["fd/openmoji"] == pytest.approx(4 * first.metrics["fd/openmoji"], rel=1e-4)


def test_a_cell_whose_newest_checkpoint_is_damaged_is_not_another_model(place):
    """The older one, of fewer images, is not what its numbers are of."""
    trial(of(), place)
    (cell,) = keep(place, of())
    (newest,) = place.root.glob("trainings/*/snapshots/96/state.safetensors")
    content = newest.read_bytes()
    assert find_model("best:mine", storage=place.root).images_seen == 96
    newest.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for name in ("best:mine", cell.digest):
        with pytest.raises(SourceError, match=r"snapshots/96.*sha256"):
            find_model(name, storage=place.root)
    with pytest.warns(UserWarning, match="damaged checkpoint skipped"):
        assert load_source(newest.parents[2]).images_seen < 96


def test_a_cell_is_given_with_its_own_sampler(place):
    """Measured by `evaluate` alone: no trial has left a folder of its own."""
    other = with_fields(of(difficulty_timesteps=()), {"sampler.num_function_evaluations": 5})
    trial(of(difficulty_timesteps=()), place)
    trial(other, place)
    for cell in keep(place, of(difficulty_timesteps=()), other):
        (folder,) = place.root.glob(f"trainings/*/evaluations/{cell.digest}")
        for path in folder.iterdir():
            path.unlink()
        given = find_model(cell.digest, storage=place.root)
        assert given.experiment is not None
        assert given.experiment.sampler.num_function_evaluations == cell.request.sampler["nfe"]


def test_equal_samplers_have_one_name():
    shifted = Euler(8, spacing="shifted")
    assert canonical_sampler(shifted) == canonical_sampler(dataclasses.replace(shifted, shift=3.0))
    assert canonical_sampler(shifted) != canonical_sampler(dataclasses.replace(shifted, shift=2.0))
    guided = [Euler(8, guidance=Guidance(2.0, between)) for between in (None, (0.0, 1.0), (0.0, 0.9))]
    assert canonical_sampler(guided[0]) == canonical_sampler(guided[1]) != canonical_sampler(guided[2])


# --- divergences -----------------------------------------------------------------------------------------------------


@pytest.fixture
def breaking(monkeypatch):
    """The fifth update breaks the weights: its own loss is finite, the sixth is not."""
    step, taken = loop._step, []

    def bad(state, forward, flip):
        losses = step(state, forward, flip)
        taken.append(state.step)
        if state.step == 4:
            with torch.no_grad():
                next(state.model.parameters()).fill_(float("nan"))
        return losses

    monkeypatch.setattr(loop, "_step", bad)
    return taken


def test_the_fewest_images_of_a_divergence_count(place, breaking):
    """Where a longer training found it first, one step later. What diverged is not trained again, by whatever cell."""
    longer, shorter = of(8), of(5)
    longer, shorter = (with_fields(each, {"training.checkpoint_every": 100}) for each in (longer, shorter))
    for experiment in (longer, shorter):
        with pytest.raises(Diverged):
            trial(experiment, place)
    taken = len(breaking)
    for experiment in (longer, shorter, with_fields(longer, {"sampler.num_function_evaluations": 5})):
        assert divergence_of(parts_of(experiment), Ledger(place)) is not None
        with pytest.raises(Diverged, match=r"at step (5 weights|6 the loss is nan)"):
            trial(experiment, place)
    assert len(breaking) == taken
    assert divergence_of(parts_of(of(4)), Ledger(place)) is None, "what it was before stays valid"
    record = next(Ledger(place).all("diverged"))
    assert record.cost["seconds"] > 0


def test_a_divergence_elsewhere_does_not_hide_a_training_that_ended_well(place):
    trial(of(), place)
    cell = parts_of(of(metrics=("frechet", "kernel")))
    ledger = Ledger(place)
    ledger.put(Record.of(cell.diverged, values={"images_seen": 80, "why": "on other hardware"}))
    assert divergence_of(cell, ledger) is None
    assert "kd/openmoji" in trial(of(metrics=("frechet", "kernel")), place).metrics


def test_a_measurement_that_is_not_finite_is_of_these_weights_only(place, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(held_out, "measure_loss", lambda *rest: (_ for _ in ()).throw(NotFinite("losses are [inf]")))
        with pytest.raises(NotFinite):
            trial(of(3), place)
    ledger = Ledger(place)
    assert divergence_of(parts_of(of(3)), ledger) is not None
    for other in (of(6), of(3, seed=1)):
        assert divergence_of(parts_of(other), ledger) is None


# --- what is elsewhere -----------------------------------------------------------------------------------------------


def test_an_imported_number_names_its_origin_beside_measured_ones(place, tmp_path):
    both = of(metrics=("frechet", "kernel"))
    theirs = Storage.open(tmp_path / "theirs")
    trial(both, theirs)
    trial(of(), place)
    for storage in (theirs, place):
        keep(storage, both)
    exchange.export(theirs, [], tmp_path / "theirs.jsonl", print)
    exchange.import_lines(place, tmp_path / "theirs.jsonl", print)
    (row,) = storage_frame(place).to_dict("records")
    assert row["origin"] == "theirs.jsonl"
    for storage, origin in ((place, "theirs.jsonl"), (theirs, None)):
        (entry,) = read_sweeps(storage, print)
        assert [view.tags.get("origin") for view in views_of(entry.cells, storage, Ledger(storage)).values()] == [
            origin
        ]


def test_a_tombstone_is_not_imported(place, tmp_path):
    trial(of(), place)
    ledger = Ledger(place)
    record = next(ledger.all("image_metric"))
    ledger.forget(record.digest, "for its tombstone")
    stone = next(ledger.all("tombstone"))
    line = json.dumps(json.loads(stone.to_bytes()))
    (tmp_path / "stone.jsonl").write_text(f"{line}\n")
    with pytest.raises(RecordError, match=r"stone\.jsonl, line 1: is a tombstone"):
        exchange.import_lines(place, tmp_path / "stone.jsonl", print)


def test_storages_that_import_each_other_agree(tmp_path):
    """The first of two values counts, in both; and it is said."""
    places = [Storage.open(tmp_path / name) for name in "ab"]
    part = next(iter(parts_of(of()).request.image_parts("0" * 64).values()))
    for number, place in enumerate(places):
        Ledger(place).put(Record.of(part, values={"fd/x": float(number)}, finished=10.0 + number))
    said: list[str] = []
    for here, there in (places, places[::-1]):
        exchange.import_storage(here, there, said.append)
        record = Ledger(here, said.append).get(part)
        assert record is not None
        assert record.values == {"fd/x": 0.0}
    assert sum("is there 2 times, 1 with other values" in line for line in said) >= 2


def test_a_raised_version_takes_its_own_cells_only(place, monkeypatch):
    other = with_fields(of(), {"sampler": "look_ahead", "sampler.num_function_evaluations": 6})
    for experiment in (of(), other):
        trial(experiment, place)
    keep(place, of(), other)
    assert len(storage_frame(place)) == 2
    monkeypatch.setitem(identity.VERSIONS, "sampler.look_ahead", 2)
    said: list[str] = []
    assert list(storage_frame(place, say=said.append)["run_name"]) == ["cell 0"]
    assert any("1 of its 2 cells have names from an earlier version" in line for line in said)
    assert [len(entry.cells) for entry in read_sweeps(place, said.append)] == [1]


def test_cells_of_one_drawing_draw_it_once(place, monkeypatch):
    """And features beyond what is kept stay until the last of them has used them."""
    trial(of(), place)
    (folder,) = place.root.glob("trainings/*")
    subject = make_subject(load_source(folder), place, data=None, images=192, reference=16, seed=0)
    fewer = dataclasses.replace(subject.request, metrics=("kernel",), images=130)
    cells = (dataclasses.replace(subject, request=fewer), subject)
    shared = Shared([Wanted(name, name, cell) for name, cell in zip("ab", cells, strict=True)], Ledger(place))
    drawn, whole = 0, []
    for task in shared.tasks(held_out=True):
        found = done(task)
        drawn += found.spent.images
        whole += shared.take(task, found)
    assert (drawn, sorted(whole)) == (128, [0, 1])
    assert [shared.last(0, set()), shared.last(1, {0})] == [False, True]
    monkeypatch.setattr(drawn_images, "KEPT_BYTES", 64 * 64 * 4 + 1000)
    monkeypatch.setattr(PatchForcingTransformer, "forward", None)
    for cell, trim in zip(cells, (False, True), strict=True):
        model = cell.subject(torch.device("cpu"))
        assert measure.measure(cell.request, model, Ledger(place), trim=trim)
    (kept,) = place.root.glob("drawings/*/openmoji-*")
    assert len(list(kept.iterdir())) == 1


# --- a bucket and its mirrors ----------------------------------------------------------------------------------------


@pytest.fixture
def machines(server, monkeypatch, tmp_path):
    """Two machines' views of one bucket."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)

    def machine(name: str) -> Storage:
        monkeypatch.setenv("PFORCE_CACHE", str(tmp_path / name))
        return Storage.open(server.uri(f"bucket/{tmp_path.name}"))

    return machine("a"), machine("b")


def test_removed_blocks_do_not_come_back_from_a_mirror(machines):
    a, b = (Blocks(machine, "drawings/d/openmoji-x") for machine in machines)
    a.save(0, {"features": np.full((64, 2), 1.0)})
    assert b.load(64)[0]["features"][0, 0] == 1
    a.clear()
    assert b.load(64) == {}
    a.save(0, {"features": np.full((64, 2), 99.0)})
    assert b.load(64)[0]["features"][0, 0] == 99


def test_a_damaged_copy_in_a_mirror_is_fetched_again(machines):
    a, b = machines
    part = next(iter(parts_of(of()).request.image_parts("0" * 64).values()))
    record = Ledger(a).put(Record.of(part, values={"fd/x": 1.0}, finished=1.0))
    blocks = Blocks(a, "drawings/d/openmoji-x")
    blocks.save(0, {"features": np.ones((64, 2))})
    Ledger(a).put_file(b"arrays", (sha256 := "5b9e2a0f5c2f1b3e8d8f2e6a4b5d7c9e"))
    for path in (*a.root.glob("records/*/*.json"), *blocks.folder.glob("*.npz")):
        path.write_bytes(b"")
    assert Ledger(a).get(part) == record
    assert list(blocks.load(64)) == [0]
    assert b.has(f"files/{sha256[:2]}/{sha256}")


def test_a_file_whose_upload_failed_is_uploaded_by_the_next_call(machines):
    a, b = machines
    relative = "files/ab/ab"
    (a.root / "files/ab").mkdir(parents=True)
    (a.root / relative).write_bytes(b"arrays")  # as a call left it that was cut off from the bucket
    Ledger(a).put_file(b"arrays", "ab")
    assert b.has(relative)


def test_a_cell_needs_its_row(place):
    """What is above rests on it: no weights, no row."""
    assert row_of(parts_of(of()), Ledger(place)) is None
