"""After any door, another measures what is missing and nothing else. Oracle: the images that pass through the model.

Doors: a trial of a sweep (`reproduce` runs the same), `pforce evaluate`, the sampler search, and `pforce sample` where
it draws what is then measured. All in one storage, in this process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pforce.base.console import DONE
from pforce.commands.evaluate import evaluate
from pforce.commands.sample import Arguments as SampleArguments
from pforce.commands.sample import sample
from pforce.config import Experiment, with_fields
from pforce.metrics.detectors import load_detector
from pforce.models import PatchForcingTransformer
from pforce.orchestration.sampler_report import make_subject
from pforce.orchestration.sampler_search import Measurement
from pforce.orchestration.sampler_sweep import SamplerSweep
from pforce.orchestration.shared import Shared, Wanted
from pforce.records.contents import label_cycle
from pforce.records.ledger import Ledger
from pforce.records.row import Row
from pforce.sampling import Euler, Sampler
from pforce.storage import Storage
from pforce.trial.run import run_trial
from pforce.trial.source import load_source
from pforce.trial.where import Paths, Where
from tests.support.asked import asked
from tests.support.performing import done, measured
from tests.training.conftest import DATA, tiny

pytestmark = [pytest.mark.timeout(600), pytest.mark.process]
NFE = 3
"""Function evaluations of the tiny experiment's sampler; its flops are counted without a forward pass."""


class Counted:
    """Images that passed through the transformer since it was last asked."""

    def __init__(self) -> None:
        self.images = 0

    def taken(self) -> int:
        images, self.images = self.images, 0
        return images


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    found, forward = Counted(), PatchForcingTransformer.forward

    def counting(self: PatchForcingTransformer, x: torch.Tensor, *rest: object, **named: object) -> object:
        found.images += len(x)
        return forward(self, x, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(PatchForcingTransformer, "forward", counting)
    return found


@dataclasses.dataclass
class House:
    """One storage, one training, and its doors."""

    root: Path

    def trial(self, experiment: Experiment) -> dict[str, float]:
        row = run_trial(experiment, Paths(DATA, Storage.open(self.root)), Where(torch.device("cpu")))
        assert isinstance(row, Row)
        return row.metrics

    @property
    def model(self) -> str:
        (folder,) = self.root.glob("trainings/*")
        return str(folder)

    def evaluate(self, **options: object) -> None:
        common = {"held_out": 16, "reference_images": 16, "images": 8, "batch": 64}
        assert evaluate(asked(self.model, self.root, **{**common, **options})) == DONE

    def search(self, sampler: Sampler, images: int) -> dict[str, float]:
        subject = make_subject(
            load_source(self.model), Storage.open(self.root), data=None, images=images, reference=16, seed=0
        )
        request = SamplerSweep("search", subject, None, 1).request(Measurement(sampler, 0))  # type: ignore[arg-type]
        return measured(dataclasses.replace(subject, sampler=sampler, request=request))

    def sample(self, **options: object) -> None:
        arguments = SampleArguments(model=self.model, storage=str(self.root), **options)  # type: ignore[arg-type]
        assert sample(arguments) == DONE


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def of(**changes: object) -> Experiment:
    return with_fields(tiny(6), {f"evaluation.{name}": value for name, value in changes.items()})


def test_after_any_door_only_what_is_missing_is_measured(house, counted):
    """Images through the model: of a block 64 are drawn, whose features serve every count up to 64."""
    first = house.trial(of())
    trained = counted.taken()
    assert trained > 16 * 6 + 64 * NFE
    assert house.trial(of()) == first
    assert counted.taken() == 0

    # The search, of the experiment's own sampler: the distance is known. Of another one: its images are drawn.
    found = house.search(tiny(6).sampler, 8)
    assert found["fd/openmoji"] == first["fd/openmoji"]
    assert counted.taken() == 0
    searched = house.search(Euler(5), 8)
    assert counted.taken() == 64 * 5
    assert house.search(Euler(5), 8)["fd/openmoji"] == searched["fd/openmoji"]
    assert counted.taken() == 0

    # pforce evaluate: another metric reads the features that are kept; more images draw what is beyond.
    house.evaluate(measure=("images", "loss"), metrics=("frechet",))
    assert counted.taken() == 0
    house.evaluate(measure=("images",), metrics=("frechet", "kernel", "precision_recall"), extrapolate=True)
    assert counted.taken() == 0
    house.evaluate(measure=("images",), metrics=("frechet",), images=100)
    assert counted.taken() == 64 * NFE
    house.evaluate(measure=("images",), metrics=("kernel",), images=128)
    assert counted.taken() == 0
    house.evaluate(measure=("images",), metrics=("frechet",), images=130)
    assert counted.taken() == 64 * NFE
    house.evaluate(measure=("difficulty",), difficulty_timesteps=(0.2, 0.6, 0.35))
    assert counted.taken() == 16
    house.evaluate(measure=("images",), metrics=("frechet",), nfe=5, sampler="euler")
    assert counted.taken() == 0

    # The trial, of what evaluate and the search have measured: nothing is trained, drawn or measured.
    row = house.trial(of(images=100, difficulty_timesteps=(0.35, 0.6)))
    assert counted.taken() == 0
    assert row["difficulty/pearson_t0.60"] == first["difficulty/pearson_t0.60"]
    again = house.trial(with_fields(of(), {"sampler.num_function_evaluations": 5}))
    assert counted.taken() == 0
    assert again["fd/openmoji"] == searched["fd/openmoji"]
    house.trial(of(difficulty_timesteps=(0.8,)))
    assert counted.taken() == 16
    house.trial(of(held_out_images=8))
    assert counted.taken() > 0


def test_what_is_too_much_to_keep_is_said_and_drawn_again(house, counted, monkeypatch, capsys):
    """Room for the features of one block: those of the others are drawn again for another metric, and give the numbers
    that a storage with room gives."""
    house.trial(of())
    both = {"measure": ("images",), "images": 130}
    house.evaluate(metrics=("frechet", "kernel"), **both)
    ledger = Ledger(Storage.open(house.root))
    found = [record for record in ledger.all("image_metric") if record.identity["canonical"]["images"] == 130]
    assert len(found) == 2
    for record in found:
        ledger.forget(record.digest, "to be measured with less room")
    monkeypatch.setattr("pforce.trial.drawn_images.KEPT_BYTES", 64 * load_detector("openmoji").feature_size * 4 + 1000)
    counted.taken()
    capsys.readouterr()
    house.evaluate(metrics=("frechet",), **both)
    assert "the features of about 64 are kept" in capsys.readouterr().out
    assert counted.taken() == 0, "all of them were kept so far"
    house.evaluate(metrics=("kernel",), **both)
    said = " ".join(capsys.readouterr().out.split())
    assert "warning: 128 images were drawn before, but their features are no longer kept" in said
    assert counted.taken() == 128 * NFE
    again = Ledger(Storage.open(house.root))
    assert [again.get(record.digest).values for record in found] == [record.values for record in found]  # type: ignore[union-attr]


def test_workers_complete_a_block_that_sample_began(house, counted, tmp_path_factory):
    """Oracle: one worker in a storage of its own. The ten images that are there are not drawn again, nor misplaced."""
    house.trial(of())
    house.sample(count=10, batch=10)
    counted.taken()
    place = Storage.open(house.root)
    subject = make_subject(load_source(house.model), place, data=None, images=64, reference=16, seed=0)
    request = dataclasses.replace(subject.request, labels=label_cycle(range(11)))
    evaluation = dataclasses.replace(subject.evaluation, labels="classes")
    subject = dataclasses.replace(subject, request=request, evaluation=evaluation)
    for task in Shared([Wanted("", "", subject)], Ledger(place)).tasks(held_out=False):
        done(task)
    assert counted.taken() == 54 * NFE
    found = measured(subject)
    assert counted.taken() == 0
    alone = dataclasses.replace(subject, storage=str(tmp_path_factory.mktemp("alone")))
    assert found["fd/openmoji"] == pytest.approx(measured(alone)["fd/openmoji"], rel=1e-4)


def test_what_sample_draws_is_measured(house, counted):
    """Its classes in turn are a rule of evaluate, too; and what evaluate drew is written as it is."""
    house.trial(of())
    counted.taken()
    house.sample(count=70)
    assert counted.taken() == 128 * NFE
    house.evaluate(measure=("images",), metrics=("frechet",), images=128, labels="classes")
    assert counted.taken() == 0
    house.trial(of(labels="classes", images=100))
    assert counted.taken() == 0
    house.sample(count=128, save=("npz",))
    assert counted.taken() == 0
    house.sample(count=140, save=("npz",))
    assert counted.taken() == 64 * NFE
    house.evaluate(measure=("images",), metrics=("frechet",), images=192, labels="classes", seed=1)
    assert counted.taken() == 192 * NFE
    # A block that evaluate began and sample completed: features of eight, and images of all.
    house.evaluate(measure=("images",), metrics=("frechet",), images=8, batch=8, labels="classes", seed=2)
    assert counted.taken() == 8 * NFE
    house.sample(count=64, seed=2, out=house.root / "other")
    assert counted.taken() == 56 * NFE
    house.evaluate(measure=("images",), metrics=("frechet",), images=64, labels="classes", seed=2)
    assert counted.taken() == 0
