"""Sampler sweeps end to end: a real model, a real MLflow database, real Optuna. Oracles: single measurements, and the
ledger: what was measured is not measured again."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time

import pytest
import torch
from rich.console import Console

from pforce import results
from pforce.config import ConfigError
from pforce.metrics import EvaluationConfig
from pforce.models import save_model
from pforce.orchestration.find import find_source
from pforce.orchestration.measurer import Measurement, Measurer, Subject
from pforce.orchestration.plan import DONE, STOPPED
from pforce.orchestration.sampler_report import make_subject, report
from pforce.orchestration.sampler_search import Search, SearchSpace, check_samplers
from pforce.orchestration.sampler_sweep import SamplerSweep, run
from pforce.sampling import Guidance, SamplerConfig
from pforce.sources import SourceError, load_source
from pforce.tracking import Tracker, default_uri
from pforce.validation import FieldError

pytestmark = pytest.mark.timeout(240)
CONSOLE = Console(width=200)
SPACE = SearchSpace(nfe=(4, 10), inner_steps=(2, 3))


@pytest.fixture(scope="module")
def subject(trained) -> Subject:
    return make_subject(load_source(trained), data=None, images=8, reference_images=16, seed=0)


def sweep(subject: Subject, trials: int = 8, **fields) -> SamplerSweep:
    return SamplerSweep("thresholds", subject, SPACE, trials, **fields)


def tracker(folder) -> Tracker:
    return Tracker(default_uri(folder), artifacts=folder / "artifacts")


def test_a_sweep_ends_in_a_front_and_measures_nothing_twice(subject, trained, tmp_path):
    first = run(sweep(subject), tracker(tmp_path), CONSOLE, workers=1, address=None)
    assert first.code == DONE
    frame = first.frame
    assert len(frame) == 8
    assert frame["front"].any()
    assert frame[frame["front"]]["again"].notna().all()
    assert frame[~frame["front"]]["again"].isna().all()
    assert (frame["passes"] == frame["NFE"]).all()
    assert frame["NFE"].between(4, 10).all()
    assert {"euler", "dual_loop", "look_ahead"} <= set(frame["sampler"])
    # A measurement is what the worker gives for that sampler on its own.
    row = frame[(frame["sampler"] == "euler") & (frame["NFE"] == 10)].iloc[0]
    alone = Measurer(subject, torch.device("cpu"))(Measurement(SamplerConfig("euler", 10), 0))
    assert row["fd/openmoji"] == pytest.approx(alone["fd/openmoji"], rel=1e-6)
    assert row["GFLOPs/image"] == pytest.approx(alone["cost/flops_per_image"] / 1e9)

    stored = results.runs(default_uri(tmp_path), "thresholds")
    assert set(stored["status"]) == {"FINISHED"}
    assert len(stored) == first.measured == 8 + frame["front"].sum()
    again = run(sweep(subject), tracker(tmp_path), CONSOLE, workers=1, address=None)
    assert again.measured == 0
    assert again.frame.equals(frame)
    longer = run(sweep(subject, trials=10), tracker(tmp_path), CONSOLE, workers=1, address=None)
    assert len(longer.frame) == 10
    assert results.runs(default_uri(tmp_path), "thresholds")["parent"].nunique() == 1

    report(sweep(subject, trials=10), load_source(trained), longer, tmp_path, CONSOLE)
    for suffix in ("csv", "md", "png"):
        assert (tmp_path / f"thresholds.{suffix}").stat().st_size > 100
    text = (tmp_path / "thresholds.md").read_text()
    assert "320 images seen" in text
    for column in ("NFE", "passes", "GFLOPs/image", "s/image", "other noise"):
        assert column in text


def test_workers_on_ray_give_the_same_numbers(ray_cluster, subject, tmp_path):
    """The order of suggestions may differ; a sampler that both measured has one distance."""
    alone = run(sweep(subject, confirm=False), tracker(tmp_path / "1"), CONSOLE, workers=1, address=None).frame
    both = run(sweep(subject, confirm=False), tracker(tmp_path / "2"), CONSOLE, workers=2, address=None).frame
    keys = ["sampler", "NFE", "quantile", "inner_steps", "context_ratio", "start_after"]
    joined = alone.fillna(-1).merge(both.fillna(-1), on=keys)
    assert len(joined) >= 5  # the baselines at least
    assert joined["fd/openmoji_x"].to_numpy() == pytest.approx(joined["fd/openmoji_y"].to_numpy(), rel=1e-5)


def test_a_stopped_sweep_goes_on(subject, tmp_path):
    """SIGTERM in the middle: exit code 4, no run left RUNNING; the same call measures the rest."""
    store = tracker(tmp_path)

    def stop() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if (
                len(frame := results.runs(default_uri(tmp_path), "thresholds"))
                and (frame["status"] == "FINISHED").sum() >= 2
            ):
                os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(0.05)

    slow = dataclasses.replace(subject, evaluation=dataclasses.replace(subject.evaluation, images=200))
    thread = threading.Thread(target=stop)
    thread.start()
    stopped = run(sweep(slow, confirm=False), store, CONSOLE, workers=1, address=None)
    thread.join()
    assert stopped.code == STOPPED
    assert 2 <= len(stopped.frame) < 8
    assert "RUNNING" not in set(results.runs(default_uri(tmp_path), "thresholds")["status"])
    finished = run(sweep(slow, confirm=False), store, CONSOLE, workers=1, address=None)
    assert finished.measured == 8 - len(stopped.frame)
    assert len(results.runs(default_uri(tmp_path), "thresholds")) == 8


def test_suggestions_are_never_repeated_and_known_ones_count():
    """Oracle: canonical forms. A space of one sampler and three NFE has three samplers, then no more."""
    search = Search(SearchSpace(samplers=("euler",), nfe=(4, 6)), Guidance(), seed=0)
    seen = []
    while (config := search.ask()) is not None:
        seen.append(config.num_function_evaluations)
        search.tell(config, 1.0, config.num_function_evaluations)
    assert sorted(seen) == [4, 5, 6]
    resumed = Search(SearchSpace(), Guidance(), seed=0)
    for config in Search(SearchSpace(), Guidance(), seed=0).baselines():
        resumed.tell(config, 5.0, config.num_function_evaluations)
    asked = resumed.ask()
    assert asked is not None
    assert resumed.key(asked) not in {resumed.key(c) for c in resumed.baselines()}
    assert len(resumed.study.trials) >= len(resumed.baselines())


def test_spaces_and_models_that_do_not_fit_are_refused(trained, tmp_path):
    with pytest.raises(FieldError, match="quantile"):
        SearchSpace(quantile=(0.0, 0.5))
    with pytest.raises(FieldError, match="inner_steps"):
        SearchSpace(nfe=(4, 24))
    with pytest.raises(ConfigError, match="no difficulty head"):
        check_samplers(SearchSpace(), difficulty_head=False)
    source = load_source(trained)
    save_model(source.model, tmp_path / "m.safetensors")
    foreign = load_source(tmp_path / "m.safetensors")
    with pytest.raises(ConfigError, match="name an experiment with --data"):
        make_subject(foreign, data=None, images=8, reference_images=8, seed=0)


def test_models_are_found_by_what_users_call_them(subject, trained, tmp_path, monkeypatch):
    assert find_source(str(trained), storage=tmp_path) == trained
    with pytest.raises(SourceError, match="holds no runs"):
        find_source("best:ltg_grid", storage=tmp_path)
    store = tracker(tmp_path)
    with pytest.raises(SourceError, match="no finished run of a sweep ltg_grid"):
        find_source("best:ltg_grid", storage=tmp_path)
    parent = store.open_sweep("ltg_grid", "id", {})
    from pforce.tracking import RunSpec

    for name, distance in (("a" * 32, 6.0), ("b" * 32, 5.0)):
        run_id = store.open_trial(parent, RunSpec(name, name, {}, {}))
        store.log(run_id, {"fd/openmoji": distance, "cost/images_seen": 10})
        store.close(run_id, "FINISHED")
        (tmp_path / "trials" / name).mkdir(parents=True)
    assert find_source("best:ltg_grid", storage=tmp_path).name == "b" * 32
    assert find_source(run_id, storage=tmp_path).name == "b" * 32
    assert find_source("a" * 32, storage=tmp_path).name == "a" * 32
    (tmp_path / "trials" / ("b" * 32)).rmdir()
    with pytest.raises(SourceError, match="give the --storage"):
        find_source("best:ltg_grid", storage=tmp_path)
    with pytest.raises(SourceError, match="no run of"):
        find_source("c" * 32, storage=tmp_path)
    with pytest.raises(SourceError, match="no such file, experiment or run"):
        find_source("openmoji32_mico", storage=tmp_path)
    with pytest.raises(SourceError, match="Train it: pforce train openmoji32_micro"):
        find_source("openmoji32_micro", storage=tmp_path)
    assert isinstance(subject.evaluation, EvaluationConfig)
