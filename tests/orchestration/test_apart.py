"""Evaluations apart from trainings. Oracle: the same sweep evaluated within its trials, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pforce import results
from pforce.base.console import DONE, SOME_FAILED, STOPPED
from pforce.config import with_fields
from pforce.orchestration import apart
from pforce.orchestration.axes import Axis
from pforce.orchestration.options import Options
from pforce.orchestration.script import run_sweep
from pforce.orchestration.shared import Shared
from pforce.orchestration.sweep import Sweep
from pforce.tracking import default_uri
from tests.orchestration.conftest import small_sweep
from tests.training.conftest import tiny

pytestmark = [pytest.mark.timeout(600), pytest.mark.process]
ONE_CELLS = ("cost/", "throughput/", "train/", "system/")
"""Times, and the curve of a shared training, which is with the cell that ran it."""


def sweep() -> Sweep:
    """Two trainings, of which one is evaluated with two samplers: 24 images in batches of 8."""
    base = with_fields(tiny(6), {"evaluation.images": 24, "evaluation.batch": 8})
    return Sweep("s", base, (Axis("timesteps.sigma", (0.1, 0.3)), Axis("sampler.num_function_evaluations", (2, 3))))


def quality(storage: Path) -> dict[str, dict[str, float]]:
    """fingerprint → metrics but for times."""
    assert set(results.runs(default_uri(storage))["status"]) == {"FINISHED"}
    frame = results.runs(storage).set_index("fingerprint")
    names = [name for name in frame.columns if "/" in name and not name.startswith(ONE_CELLS)]
    return frame[names].to_dict("index")


def assert_same(found: dict[str, dict[str, float]], expected: dict[str, dict[str, float]]) -> None:
    """All numbers, bit for bit."""
    assert found.keys() == expected.keys()
    for fingerprint, metrics in found.items():
        assert metrics == pytest.approx(expected[fingerprint], rel=0, abs=0, nan_ok=True)


@pytest.fixture(scope="module")
def within(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """The oracle."""
    storage = tmp_path_factory.mktemp("within")
    assert run_sweep(sweep(), Options(storage=str(storage), executor="local")) == DONE
    return quality(storage)


def test_all_cells_on_two_workers_of_their_own(within, tmp_path) -> None:
    """Two trials at a time on two cores, then two workers on the same cores: nothing waits for what another holds."""
    assert run_sweep(sweep(), Options(storage=str(tmp_path), evaluation_workers=2, executor="processes")) == DONE
    assert_same(quality(tmp_path), within)
    assert len(results.runs(default_uri(tmp_path))) == 4
    frame = results.runs(tmp_path)
    assert len(frame) == 4
    assert len(list((tmp_path / "trainings").iterdir())) == 2
    for name in ("cost/nfe", "cost/forward_passes", "cost/device_hours", "cost/seconds", "fd/openmoji_low"):
        assert frame[name].notna().all(), name
    assert len(list(tmp_path.glob("trainings/*/evaluations/*/samples.png"))) == 4


def test_a_stopped_evaluation_goes_on(within, tmp_path, monkeypatch) -> None:
    """Stopped after five tasks: what they drew and measured is kept; the same call does the rest and trains nothing."""
    taken = []

    class Stopping(Shared):
        def take(self, task, done):
            if len(taken) == 5:
                raise KeyboardInterrupt("SIGTERM")
            taken.append(task)
            return super().take(task, done)

    options = Options(storage=str(tmp_path), evaluation_workers=1, executor="processes")
    monkeypatch.setattr(apart, "Shared", Stopping)
    assert run_sweep(sweep(), options) == STOPPED
    kept = {path: path.stat().st_mtime_ns for name in ("drawings/*/openmoji-*/*.npz", "records/*/*.json")
            for path in tmp_path.glob(name)}  # fmt: skip
    assert len(kept) > 5
    steps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("trainings/*/*/*/state.safetensors")}
    assert len(steps) == 4
    monkeypatch.setattr(apart, "Shared", Shared)
    assert run_sweep(sweep(), options) == DONE
    assert all(path.stat().st_mtime_ns == time for path, time in {**kept, **steps}.items())
    assert_same(quality(tmp_path), within)


def test_a_cell_that_cannot_be_evaluated_fails_alone(tmp_path, monkeypatch) -> None:
    """A detector that is not that of the plan: FAILED with the reason, and the sweep ends."""
    measurable = apart.measurable

    def spoiled(plan, item):
        model = measurable(plan, item)
        return replace(model, request=replace(model.request, detector={**model.request.detector, "sha256": "0" * 64}))

    monkeypatch.setattr(apart, "measurable", spoiled)
    options = Options(storage=str(tmp_path), evaluation_workers=1, executor="processes")
    assert run_sweep(small_sweep(), options) == SOME_FAILED
    (run,) = results.runs(default_uri(tmp_path)).to_dict("records")
    assert (run["status"], run["reason"]) == ("FAILED", "wrong input")
