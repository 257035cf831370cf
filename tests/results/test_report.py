"""What a sweep prints and writes at its end. Oracle: real runs in a real database, whose numbers are chosen here."""

from __future__ import annotations

import html
import re

import pandas as pd
import pytest
from scipy import stats

from pforce.base.console import exit_on_errors, make_console
from pforce.base.errors import ConfigError, FieldError
from pforce.orchestration.axes import Axis
from pforce.orchestration.options import Options
from pforce.orchestration.script import run_sweep
from pforce.orchestration.sweep import Sweep
from pforce.orchestration.sweep_report import Comparison, print_report
from pforce_experiments.sweeps import lambda_sweep, ltg_grid
from tests.results.conftest import planned_with
from tests.training.conftest import DATA, tiny

SIGMAS = Axis("timesteps.sigma", (0.2, 0.4, 0.6))
DISTANCES = {0.2: (5.0, 5.2, 5.4), 0.4: (6.0, 6.3, 6.3), 0.6: (5.1, 5.1, 5.5)}
"""sigma → fd/openmoji by seed."""


def result(distance: float, images: int = 8) -> dict[str, float]:
    return {"val/loss": 0.2, "fd/openmoji": distance, "fd/openmoji_low": distance - 0.2,
            "fd/openmoji_high": distance + 0.2, "fd/openmoji_images": images, "fd/openmoji_reference_images": 16,
            "fd/openmoji_features": 64, "cost/nfe": 3, "cost/images_seen": 96}  # fmt: skip


def measured(item) -> dict[str, float]:
    experiment = item.experiment
    return result(DISTANCES[experiment.timesteps.sigma][experiment.seed])


def reported(planned, capsys, **options) -> str:
    capsys.readouterr()
    print_report(planned, make_console(), **options)
    return capsys.readouterr().out


@pytest.mark.usefixtures("wide")
def test_the_report_has_the_table_notes_and_claims_in_all_its_files(tmp_path, capsys):
    """sigma 0.6 is the experiment's own: the baseline. 8 images are few for 64 features."""
    sweep = Sweep("v1.0", tiny(6), (SIGMAS,), (0, 1, 2))
    printed = reported(planned_with(sweep, tmp_path, measured), capsys)
    assert f"Table and figure: {tmp_path}/v1.0.{{csv,md,tex,html,png}}" in printed
    assert "5.20 ± 0.20" in printed
    p = [stats.ttest_rel(DISTANCES[sigma], DISTANCES[0.6]).pvalue for sigma in (0.2, 0.4)]
    assert p[1] < p[0]
    adjusted = 2 * p[1]
    claims = [line.strip() for line in printed.splitlines() if line.startswith("  fd/openmoji")]
    assert claims[0].startswith("fd/openmoji: sigma 0.2 and sigma 0.6 are not distinguishable (difference −0.03, 95 %")
    assert claims[1].startswith("fd/openmoji: sigma 0.4 is worse than sigma 0.6 by 0.97 (95 %")
    assert f"n = 3 seeds, p = {adjusted:.2g} after Holm over 2 claims" in claims[1]
    few = "fd/openmoji: 8 images are fewer than 10 × 64 features"
    assert f"note: {few}" in printed
    for ending in ("md", "html", "tex"):
        text = (tmp_path / f"v1.0.{ending}").read_text(encoding="utf-8")
        plain = html.unescape(text)
        for escaped, character in (("$-$", "−"), (r"$\times$", "×"), (r"\%", "%")):
            plain = plain.replace(escaped, character)
        assert few in plain
        assert "96 images seen per cell, 3 seeds" in plain
        assert claims[0][:80] in plain
    table = pd.read_csv(tmp_path / "v1.0.csv")
    assert list(table["n"]) == [3, 3, 3]
    assert table["fd/openmoji"].tolist() == pytest.approx([sum(values) / 3 for values in DISTANCES.values()])
    assert (tmp_path / "v1.0.png").stat().st_size > 2000


@pytest.mark.usefixtures("wide")
def test_one_seed_is_one_line_and_shows_intervals_over_images(tmp_path, capsys):
    printed = reported(planned_with(Sweep("one", tiny(6), (SIGMAS,)), tmp_path, measured), capsys)
    assert re.findall(r"^  (fd.*)$", printed, re.MULTILINE) == [
        "fd/openmoji: nothing is compared: that needs 2 seeds that both rows finished"
    ]
    assert "5.00 [4.80, 5.20]" in printed
    assert "[ ]: 95 % interval over images." in printed
    assert "at least 96,000 images per cell and 3 seeds." in printed  # no option that this sweep does not have


@pytest.mark.usefixtures("wide")
def test_cells_that_are_not_finished_are_counted_and_said(tmp_path, capsys):
    outcomes = {(0.2, 0): "FAILED diverged", (0.2, 1): "KILLED time limit", (0.4, 0): None, (0.4, 1): "RUNNING"}
    sweep = Sweep("some", tiny(6), (SIGMAS,), (0, 1, 2))
    planned = planned_with(sweep, tmp_path, lambda item: outcomes.get(
        (item.experiment.timesteps.sigma, item.experiment.seed), measured(item)))  # fmt: skip
    printed = reported(planned, capsys)
    table = pd.read_csv(tmp_path / "some.csv")
    assert table[["n", "n planned", "failed", "running"]].to_numpy().tolist() == [
        [1, 3, 2, 0], [1, 3, 0, 1], [3, 3, 0, 0],
    ]  # fmt: skip
    assert "1 of 3" in printed
    for note in ("diverged: 1 of 3 of sigma 0.2; --again diverged retries them",
                 "stopped: 1 of 3 of sigma 0.2 (time limit)", "running: 1 of 3 of sigma 0.4",
                 "no run: 1 of 3 of sigma 0.4"):  # fmt: skip
        assert f"note: {note}" in printed
    again = planned_with(sweep, tmp_path, measured)  # all tried again: nothing of it is left
    assert "note: diverged" not in reported(again, capsys)
    assert list(pd.read_csv(tmp_path / "some.csv")["n"]) == [3, 3, 3]


@pytest.mark.usefixtures("wide")
def test_the_baseline_and_the_rows_are_chosen(tmp_path, capsys):
    planned = planned_with(Sweep("s", tiny(6), (SIGMAS,), (0, 1, 2)), tmp_path, measured)

    def pairs(**chosen) -> list[tuple[str, ...]]:
        printed = reported(planned, capsys, comparison=Comparison(**chosen))
        return re.findall(
            r"^  fd/openmoji: sigma (\S+) (?:and|is better than|is worse than) sigma (\S+)", printed, re.M
        )

    assert pairs() == [("0.2", "0.6"), ("0.4", "0.6")]
    assert pairs(baseline="sigma=0.20") == pairs(baseline="1") == [("0.4", "0.2"), ("0.6", "0.2")]
    assert pairs(baseline="timesteps.sigma=0.4", compare=("3",)) == [("0.6", "0.4")]
    assert pairs(baseline="sigma=0.4", compare=("sigma=0.6", "1", "3")) == [("0.6", "0.4"), ("0.2", "0.4")]


def test_values_of_one_distribution_are_one_row_that_either_names(tmp_path, capsys):
    axis = Axis("timesteps.sigma", (0.2, 0.5, 0.6))
    planned = planned_with(
        Sweep("s", tiny(6), (axis,), (0, 1)), tmp_path, lambda item: result(5.0 + item.experiment.seed)
    )
    for text in ("sigma=0.5", "sigma=0.6", "2"):
        words = " ".join(reported(planned, capsys, comparison=Comparison(baseline=text)).split())
        assert "sigma 0.2 and sigma 0.5 or 0.6 are not distinguishable" in words


@pytest.mark.usefixtures("wide")
def test_more_rows_than_claims_ask_for_a_choice(tmp_path, capsys):
    axis = Axis("timesteps.m", tuple(k / 10 for k in range(8)))

    def measured(item):
        m, seed = item.experiment.timesteps.m, item.experiment.seed
        return result(5.0 + m + seed * (1 + m / 100))

    planned = planned_with(Sweep("m", tiny(6), (axis,), (0, 1)), tmp_path, measured)
    printed = reported(planned, capsys)
    assert "  none, as 8 rows are too many to correct for; choose at most 6 with --compare" in printed
    printed = reported(planned, capsys, comparison=Comparison(compare=("m=0", "m=0.3")))
    assert re.findall(r"^  fd/openmoji: (m \S+) is \w+ than (m \S+) by", printed, re.MULTILINE) == [
        ("m 0", "m 0.7"), ("m 0.3", "m 0.7"),
    ]  # fmt: skip


REFUSED = [
    ({"baseline": "sigma=3"}, r"--baseline sigma=3: names no row; the rows are 1: m=0,sigma=0.2; 2: m=0,sigma=0.4; 3:"),
    ({"baseline": "sgima=0.2"}, "--baseline sgima=0.2: names no row"),
    ({"baseline": "5"}, "--baseline 5: names no row"),
    ({"baseline": "0"}, "--baseline 0: names no row"),
    ({"baseline": "m=0"}, r"--baseline m=0: names 2 rows; name one of 1: m=0,sigma=0.2; 2: m=0,sigma=0.4$"),
    ({"compare": ("1", "word")}, "--compare word: names no row"),
    ({"compare": ("1",), "baseline": "m=0,sigma=0.2"}, "--compare: m 0, sigma 0.2 is the baseline itself"),
]  # fmt: skip


@pytest.mark.parametrize(("chosen", "message"), REFUSED)
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_row_that_is_not_there_is_refused_before_anything_starts(chosen, message, dry_run, tmp_path):
    sweep = Sweep("s", tiny(6), (Axis("timesteps.m", (0.0, 0.7)), Axis("timesteps.sigma", (0.2, 0.4))))
    options = Options(storage=str(tmp_path), executor="local")
    with pytest.raises(ConfigError, match=message):
        run_sweep(sweep, options, dry_run=dry_run, comparison=Comparison(**chosen))
    assert not (tmp_path / "trainings").exists(), "nothing was started"


def test_more_than_six_rows_cannot_be_chosen():
    with pytest.raises(FieldError, match=r"compare = .*at most 6 rows"):
        Comparison(compare=tuple("1234567"))


@pytest.mark.parametrize(
    ("script", "first"), [(ltg_grid, "m=0,s=1,sigma=0.2"), (lambda_sweep, "difficulty_weight=0.001")]
)
def test_the_options_of_the_scripts(script, first, tmp_path, monkeypatch, capsys):
    """Without a trial: a dry run that a wrong row ends, with exit code 2."""
    monkeypatch.chdir(tmp_path)
    here = [f"--set={field}" for field in ("data.name=shards", f"data.path={DATA}", "data.streams=4")]
    rows = ["--baseline", first, "--compare", "2", "nine"]
    monkeypatch.setattr("sys.argv", ["sweep.py", "--dry-run", *here, *rows])
    with pytest.raises(SystemExit) as stopped:
        exit_on_errors(script.main)
    assert stopped.value.code == 2
    told = " ".join(capsys.readouterr().err.split())
    assert f"--compare nine: names no row; the rows are 1: {first}; 2:" in told


@pytest.mark.usefixtures("wide")
def test_the_lambda_sweep_passes_its_comparison_on(tmp_path, capsys):
    axis = Axis("flow.difficulty_weight", (0.01, 0.1))
    planned = planned_with(
        Sweep("l", tiny(6), (axis,), (0, 1)), tmp_path, lambda item: result(5.0 + item.experiment.seed)
    )
    lambda_sweep.report(planned, make_console(), Comparison(baseline="2"))
    assert "difficulty_weight 0.01 and difficulty_weight 0.1 are not" in capsys.readouterr().out
    lambda_sweep.report(planned, make_console())
    assert "difficulty_weight 0.1 and difficulty_weight 0.01 are not" in capsys.readouterr().out
