"""Tables. Oracle: means and spreads by hand."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from rich.console import Console

from pforce.results import Row, calibration_curves, cell_table, to_markdown, to_terminal
from pforce.results.figures import calibration_figure, cell_figure
from pforce.results.tables import CALIBRATION_COLUMNS, COLUMNS, COST_COLUMNS, QUALITY_COLUMNS


@pytest.fixture
def frame() -> pd.DataFrame:
    rows = [
        ("a0", "FINISHED", 1.0, 10.0, 1), ("a1", "FINISHED", 3.0, 20.0, 1), ("a0", "FINISHED", 1.5, 12.0, 2),
        ("b0", "FINISHED", 7.0, 30.0, 1), ("b1", "FAILED", 99.0, 99.0, 1),
    ]  # fmt: skip
    return pd.DataFrame(
        {
            "fingerprint": [r[0] for r in rows],
            "status": [r[1] for r in rows],
            "val/loss": [r[2] for r in rows],
            "fd/openmoji": [r[3] for r in rows],
            "cost/images_seen": 96_000.0,
            "start_time": pd.to_datetime([r[4] for r in rows], unit="s"),
        }
    )


ROWS = [Row({"m": "0"}, ["a0", "a1"]), Row({"m": "0.7"}, ["b0", "b1"]), Row({"m": "1"}, ["c0"])]


def test_mean_and_spread_over_finished_seeds(frame):
    """Of two runs with one fingerprint the newest counts; a failed one does not; one seed has no spread."""
    table = cell_table(frame, ROWS)
    assert list(table["n"]) == [2, 1, 0]
    assert table["val loss"][0] == pytest.approx((1.5 + 3.0) / 2)
    assert table["val loss sd"][0] == pytest.approx(1.5 / math.sqrt(2))
    assert table["fd/openmoji"][1] == 30.0
    assert math.isnan(table["val loss sd"][1])
    assert math.isnan(table["val loss"][2])


def test_text_shows_spread_only_where_there_is_one(frame):
    text = to_markdown(cell_table(frame, ROWS))
    assert "2.2500 ± 1.0607" in text
    assert "7.0000 |" in text
    assert "–" in text
    assert "96,000" in text
    console = Console(width=200, record=True)
    console.print(to_terminal(cell_table(frame, ROWS), "title"))
    assert "2.2500 ± 1.0607" in console.export_text()


def test_an_empty_store_gives_an_empty_table():
    table = cell_table(pd.DataFrame(), ROWS)
    assert list(table["n"]) == [0, 0, 0]


def test_the_figure_is_written(frame, tmp_path):
    cell_figure(cell_table(frame, ROWS), ["m"], tmp_path / "f.png")
    assert (tmp_path / "f.png").stat().st_size > 2000
    cell_figure(cell_table(pd.DataFrame(), ROWS), ["m"], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


@pytest.fixture
def calibrated(frame) -> pd.DataFrame:
    """Deciles 2 and 10 at one timestep; the run of b0 is from before calibration was measured."""
    metrics = {
        "calibration/error_t0.20": [0.2, 0.4, 0.3, None, 9.0],
        "calibration/expected_t0.20_d10": [8.0, 6.0, 4.0, None, 99.0],
        "calibration/observed_t0.20_d10": [1.0, 3.0, 2.0, None, 99.0],
        "calibration/expected_t0.20_d2": [0.5, 0.2, 0.4, None, 99.0],
        "calibration/observed_t0.20_d2": [0.5, 0.3, 0.1, None, 99.0],
    }
    return frame.assign(**metrics)


def test_calibration_is_shown_only_where_it_is_asked_for(calibrated):
    """The table of every other sweep is what it was, whatever was measured."""
    plain = [c.header for c in COLUMNS]
    assert not any("calib" in name for name in [*plain, *cell_table(calibrated, ROWS).columns])
    assert plain[:5] == ["val loss", "fd/openmoji", "R(0.2)", "R(0.6)", "images seen"]
    table = cell_table(calibrated, ROWS, (*QUALITY_COLUMNS, *CALIBRATION_COLUMNS, *COST_COLUMNS))
    assert [name for name in table.columns if not name.endswith(" sd")] == [
        "m", "n", "val loss", "fd/openmoji", "calib(0.2)", "images seen",
    ]  # fmt: skip
    assert table["calib(0.2)"][0] == pytest.approx((0.3 + 0.4) / 2)
    assert table["calib(0.2) sd"][0] == pytest.approx(0.1 / math.sqrt(2))
    assert "0.350 ± 0.071" in to_markdown(table)


def test_curves_are_means_over_finished_seeds_that_have_them(calibrated):
    """Decile 10 after decile 2; of two runs with one fingerprint the newest; a row without calibration is left out."""
    curves = calibration_curves(calibrated, ROWS)
    assert list(curves.columns) == ["row", "m", "t", "decile", "expected", "observed", "n"]
    assert curves.drop(columns=["expected", "observed"]).to_numpy().tolist() == [
        [0, "0", 0.2, 2, 2],
        [0, "0", 0.2, 10, 2],
    ]
    assert list(curves["expected"]) == pytest.approx([0.3, 5.0])
    assert list(curves["observed"]) == pytest.approx([0.2, 2.5])
    assert calibration_curves(pd.DataFrame(), ROWS).empty


def test_the_calibration_figure_is_written(calibrated, tmp_path):
    rows = [Row({"λ": value, "m": "0"}, ["a0", "a1"]) for value in ("0", "0.01", "0.1")]
    calibration_figure(calibration_curves(calibrated, rows), ["λ", "m"], tmp_path / "f.png", symbol="λ")
    assert (tmp_path / "f.png").stat().st_size > 2000
    calibration_figure(pd.DataFrame(), ["λ"], tmp_path / "none.png", symbol="λ")
    assert not (tmp_path / "none.png").exists()


def test_a_narrow_terminal_cuts_no_number_and_no_name(frame):
    console = Console(width=60, record=True)
    console.print(to_terminal(cell_table(frame, ROWS), "title"))
    assert "…" not in console.export_text()
