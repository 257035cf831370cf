"""Tables. Oracle: means and spreads by hand."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from rich.console import Console

from pforce.results import Row, cell_table, to_markdown, to_terminal
from pforce.results.figures import cell_figure


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
