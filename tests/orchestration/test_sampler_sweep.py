"""Sampler sweeps end to end: a real model, a real MLflow database, real Optuna. Oracles: single measurements, and the
ledger: what was measured is not measured again."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from pforce import results
from pforce.base.console import DONE, SOME_FAILED, STOPPED, make_console
from pforce.base.errors import ConfigError, FieldError
from pforce.executors.executor import Workforce
from pforce.models import save_model
from pforce.orchestration.axes import Axis
from pforce.orchestration.find import find_source
from pforce.orchestration.plan import trial_folder
from pforce.orchestration.sampler_report import front_summary, make_subject, report
from pforce.orchestration.sampler_search import Measurement, SearchSpace, check_space
from pforce.orchestration.sampler_sweep import SamplerSweep, run
from pforce.orchestration.sweep import Sweep
from pforce.sampling import Euler, Guidance
from pforce.storage import Storage
from pforce.tracking import Tracker, default_uri
from pforce.training.checkpoint import snapshot_path
from pforce.trial.measurable import Measurable
from pforce.trial.source import SourceError, load_source
from tests.results.conftest import planned_with
from tests.support.performing import measured
from tests.support.studies import searching
from tests.training.conftest import tiny

pytestmark = [pytest.mark.timeout(600), pytest.mark.process]
CONSOLE = make_console(width=200)
HERE = Workforce()
SPACE = SearchSpace(nfe=(4, 10), ranges={"inner_steps": (2, 3)})


@pytest.fixture(scope="module")
def source(trained):
    return load_source(trained)


@pytest.fixture
def subject(source, tmp_path) -> Measurable:
    return make_subject(source, Storage.open(tmp_path), data=None, images=8, reference=16, seed=0)


def sweep(subject: Measurable, trials: int = 8, **fields) -> SamplerSweep:
    return SamplerSweep("thresholds", subject, SPACE, trials, **fields)


def tracker(folder) -> Tracker:
    return Tracker(default_uri(folder), artifacts=folder / "artifacts")


def test_a_sweep_ends_in_a_front_and_measures_nothing_twice(subject, trained, tmp_path):
    summarize = partial(front_summary, sweep(subject), load_source(trained))
    first = run(sweep(subject), tracker(tmp_path), Storage.open(tmp_path), CONSOLE, HERE, summarize=summarize)
    assert first.code == DONE
    frame = first.frame
    assert len(frame) == 8
    assert frame["front"].any()
    assert frame[frame["front"]]["again"].notna().all()
    assert frame[~frame["front"]]["again"].isna().all()
    assert (frame["passes"] == frame["NFE"]).all()
    assert frame["NFE"].between(3, 10).all(), "dual loop spends 3 of 4"
    assert {"euler", "dual_loop", "look_ahead"} <= set(frame["sampler"])
    # A measurement is what the worker gives for that sampler on its own.
    row = frame[(frame["sampler"] == "euler") & (frame["NFE"] == 10)].iloc[0]
    elsewhere = dataclasses.replace(subject, storage=str(tmp_path / "elsewhere"))
    sampler = Euler(10)
    request = sweep(elsewhere).request(Measurement(sampler, 0))
    alone = measured(dataclasses.replace(elsewhere, sampler=sampler, request=request))
    assert row["fd/openmoji"] == pytest.approx(alone["fd/openmoji"], rel=1e-6)
    assert row["GFLOPs/image"] == pytest.approx(alone["cost/flops_per_image"] / 1e9)

    stored = results.runs(default_uri(tmp_path), "thresholds")
    assert set(stored["status"]) == {"FINISHED"}
    assert len(stored) == first.measured == 8 + frame["front"].sum()
    client = tracker(tmp_path).client
    own = client.get_run(stored["parent"].iloc[0])
    assert {file.path for file in client.list_artifacts(own.info.run_id)} == {"sweep.html", "table.json", "figure.png"}
    shown = json.loads(Path(client.download_artifacts(own.info.run_id, "table.json", str(tmp_path))).read_text())
    assert len(shown["data"]) == frame["front"].sum()
    assert own.data.metrics["cells/finished"] == first.measured
    assert "other noise" in own.data.tags["mlflow.note.content"]
    again = run(sweep(subject), tracker(tmp_path), Storage.open(tmp_path), CONSOLE, HERE)
    assert again.measured == 0
    assert again.frame.equals(frame)
    longer = run(sweep(subject, trials=10), tracker(tmp_path), Storage.open(tmp_path), CONSOLE, HERE)
    assert len(longer.frame) == 10
    assert results.runs(default_uri(tmp_path), "thresholds")["parent"].nunique() == 1

    report(sweep(subject, trials=10), load_source(trained), longer, tmp_path, CONSOLE)
    for suffix in ("csv", "md", "png"):
        assert (tmp_path / f"thresholds.{suffix}").stat().st_size > 100
    text = (tmp_path / "thresholds.md").read_text()
    assert "320 images seen" in text
    for column in ("NFE", "passes", "GFLOPs/image", "s/image", "other noise"):
        assert column in text


def test_a_finished_measurement_belongs_to_all_sweeps(subject, tmp_path):
    """Another search seed is another sweep: it takes what is finished as it is, and takes nothing away."""
    store = tracker(tmp_path)
    first = run(sweep(subject, confirm=False), store, Storage.open(tmp_path), CONSOLE, HERE)
    before = results.runs(default_uri(tmp_path)).set_index("run_id")[["status", "parent", "fingerprint"]]
    other = run(sweep(subject, seed=1, confirm=False), store, Storage.open(tmp_path), CONSOLE, HERE)
    assert len(other.frame) == 8
    assert other.measured <= 4  # the baselines, at least, were there
    after = results.runs(default_uri(tmp_path)).set_index("run_id")[["status", "parent", "fingerprint"]]
    assert after.loc[before.index].equals(before)
    assert after["fingerprint"].is_unique
    for again, whole in ((sweep(subject, confirm=False), first), (sweep(subject, seed=1, confirm=False), other)):
        repeated = run(again, store, Storage.open(tmp_path), CONSOLE, HERE)
        assert repeated.measured == 0
        assert set(repeated.frame["fd/openmoji"]) == set(whole.frame["fd/openmoji"])


def test_a_sampler_that_fails_is_told_and_the_others_go_on(subject, tmp_path):
    """Weights that give NaN at some inputs are hard to have; an absurd guidance scale overflows in float32."""
    wild = sweep(subject, trials=4, guidance=Guidance(1e38), confirm=False)
    outcome = run(wild, tracker(tmp_path), Storage.open(tmp_path), CONSOLE, HERE)
    assert outcome.code == SOME_FAILED
    assert len(outcome.failed) == 4
    frame = results.runs(default_uri(tmp_path), "thresholds")
    assert set(frame["status"]) == {"FAILED"}
    assert frame["reason"].notna().all()


def test_several_workers_give_the_same_numbers(subject, tmp_path):
    """The order of suggestions may differ; a sampler that both measured has one distance."""
    frames = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        own, place = dataclasses.replace(subject, storage=str(folder)), Storage.open(folder)
        call = run(sweep(own, confirm=False), tracker(folder), place, CONSOLE, Workforce("processes", workers))
        frames.append(call.frame)
    alone, both = frames
    keys = ["sampler", "NFE", "quantile", "inner_steps", "context_ratio", "start_after"]
    joined = alone.fillna(-1).merge(both.fillna(-1), on=keys)
    assert len(joined) >= 5  # the baselines at least
    assert joined["fd/openmoji_x"].to_numpy() == pytest.approx(joined["fd/openmoji_y"].to_numpy(), rel=1e-5)


def test_a_stopped_sweep_goes_on(subject, tmp_path):
    """SIGTERM in the middle: exit code 4, no run left RUNNING; the same call measures the rest."""
    store = tracker(tmp_path)

    def stop() -> None:
        deadline = time.monotonic() + 300  # of a crowded machine
        while time.monotonic() < deadline:
            if (
                len(frame := results.runs(default_uri(tmp_path), "thresholds"))
                and (frame["status"] == "FINISHED").sum() >= 2
            ):
                os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(0.05)

    slow = dataclasses.replace(subject, request=dataclasses.replace(subject.request, images=128))
    thread = threading.Thread(target=stop)
    thread.start()
    stopped = run(sweep(slow, confirm=False), store, Storage.open(tmp_path), CONSOLE, HERE)
    thread.join()
    assert stopped.code == STOPPED
    assert 2 <= len(stopped.frame) < 8
    assert "RUNNING" not in set(results.runs(default_uri(tmp_path), "thresholds")["status"])
    finished = run(sweep(slow, confirm=False), store, Storage.open(tmp_path), CONSOLE, HERE)
    assert finished.measured == 8 - len(stopped.frame)
    assert len(results.runs(default_uri(tmp_path), "thresholds")) == 8


@pytest.mark.parametrize("method", ["tpe", "nsga2"])
def test_a_search_that_is_opened_again_before_each_step_suggests_the_same(method, tmp_path):
    """Its process may be killed before a sampler is measured, or right after."""

    def distance(config) -> float:
        return 3.0 / config.num_function_evaluations + abs(config.settings.get("quantile", 0.5) - 0.4)

    def searched(name: str, *, reopen: bool) -> list[str]:
        search, found = searching(tmp_path, SPACE, method, name), []
        for _ in range(24):
            if reopen:
                searching(tmp_path, SPACE, method, name).ask()
                search = searching(tmp_path, SPACE, method, name)
            config = search.ask()
            found.append(search.key(config))
            search.tell(config, distance(config), config.num_function_evaluations)
        return found

    once = searched("once", reopen=False)
    assert once == searched("again", reopen=True)
    assert len(set(once)) == 24


def test_suggestions_are_never_repeated_and_known_ones_count(tmp_path):
    """Oracle: canonical forms. A space of one sampler and three NFE has three samplers, then no more."""
    search = searching(tmp_path, SearchSpace(samplers=("euler",), nfe=(4, 6)))
    seen = []
    while (config := search.ask()) is not None:
        seen.append(config.num_function_evaluations)
        search.tell(config, 1.0, config.num_function_evaluations)
    assert sorted(seen) == [4, 5, 6]
    resumed = searching(tmp_path, SearchSpace(), name="other")
    for config in resumed.baselines():
        resumed.tell(config, 5.0, config.num_function_evaluations)
    asked = resumed.ask()
    assert asked is not None
    assert resumed.key(asked) not in {resumed.key(c) for c in resumed.baselines()}
    assert len(resumed.study.trials) >= len(resumed.baselines())


def test_spaces_and_models_that_do_not_fit_are_refused(trained, tmp_path):
    with pytest.raises(FieldError, match="quantile"):
        SearchSpace(ranges={"quantile": (0.0, 0.5)})
    with pytest.raises(FieldError, match="inner_steps"):
        SearchSpace(nfe=(4, 24))
    config = load_source(trained).model.config
    with pytest.raises(FieldError, match="no difficulty head"):
        check_space(SearchSpace(), Guidance(), dataclasses.replace(config, difficulty_head=False))
    with pytest.raises(FieldError, match="without label dropout"):
        check_space(SearchSpace(), Guidance(2.0), dataclasses.replace(config, class_dropout=0.0))
    source, storage = load_source(trained), Storage.open(tmp_path / "runs")
    with pytest.raises(FieldError, match="name = 'a/b'"):
        SamplerSweep("a/b", make_subject(source, storage, data=None, images=8, reference=8, seed=0), SPACE, 1)
    save_model(source.model, tmp_path / "m.safetensors")
    foreign = load_source(tmp_path / "m.safetensors")
    with pytest.raises(ConfigError, match="name an experiment with --data"):
        make_subject(foreign, storage, data=None, images=8, reference=8, seed=0)


def test_models_are_found_by_what_users_call_them(trained, tmp_path):
    """Sweeps whose numbers are chosen here, as records; the trainings' snapshots are empty."""
    assert find_source(str(trained), storage=tmp_path) == trained
    with pytest.raises(SourceError, match="holds no sweeps"):
        find_source("best:ltg_grid", storage=tmp_path)
    distances, images = {0.2: 6.0, 0.3: 5.0}, {0.2: 8.0, 0.3: 8.0}

    def numbers(item) -> dict[str, float]:
        sigma = item.experiment.timesteps.sigma
        return {"val/loss": 1.0, "fd/openmoji": distances[sigma], "fd/openmoji_images": images[sigma], "cost/nfe": 3.0}

    sweep = Sweep("ltg_grid", tiny(6), (Axis("timesteps.sigma", (0.2, 0.3)),))
    planned = planned_with(sweep, tmp_path, numbers)
    with pytest.raises(SourceError, match=r"has no sweep ltg_gird; did you mean ltg_grid\?"):
        find_source("best:ltg_gird", storage=tmp_path)
    folders = {}
    for item in planned.work:
        folders[item.fingerprint] = snapshot_path(trial_folder(planned.options, item), item.parts.images_seen)
        folders[item.fingerprint].mkdir(parents=True)
    worse, better = (item.fingerprint for item in planned.work)
    assert find_source("best:ltg_grid", storage=tmp_path) == folders[better]
    assert find_source(worse, storage=tmp_path) == folders[worse]
    run_id = results.runs(default_uri(tmp_path)).set_index("fingerprint").loc[worse, "run_id"]
    assert find_source(run_id, storage=tmp_path) == folders[worse]
    folders[better].rmdir()
    with pytest.raises(SourceError, match="give the --storage"):
        find_source("best:ltg_grid", storage=tmp_path)
    images[0.3] = 16.0
    other = planned_with(Sweep("mixed", tiny(12), sweep.axes), tmp_path, numbers)
    with pytest.raises(SourceError, match="differ in fd/openmoji_images"):
        find_source("best:mixed", storage=tmp_path)
    assert other.done
    with pytest.raises(SourceError, match="no run of"):
        find_source("c" * 32, storage=tmp_path)
    with pytest.raises(SourceError, match="no such file, experiment or run"):
        find_source("openmoji32_mico", storage=tmp_path)
    with pytest.raises(SourceError, match="Train it: pforce train openmoji32_micro"):
        find_source("openmoji32_micro", storage=tmp_path)


def test_a_search_trains_nothing_that_could_be_found(subject, tmp_path):
    run(sweep(subject, trials=3, confirm=False), tracker(tmp_path), Storage.open(tmp_path), CONSOLE, HERE)
    with pytest.raises(SourceError, match="trained nothing"):
        find_source("best:thresholds", storage=tmp_path)
    stored, tracked = results.runs(tmp_path, "thresholds"), results.runs(default_uri(tmp_path), "thresholds")
    assert sorted(stored["fd/openmoji"]) == sorted(tracked["fd/openmoji"])
