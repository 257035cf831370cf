"""Tables. Oracles: means and spreads by hand, intervals by scipy, texts read back by a parser of their format."""

from __future__ import annotations

import io
import math
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pforce.base.console import make_console
from pforce.results import (
    Report,
    Row,
    by_what_is_known,
    calibration_curves,
    cell_table,
    legend,
    to_csv,
    to_html,
    to_latex,
    to_markdown,
    to_terminal,
)
from pforce.results.figures import calibration_figure, cell_figure, panels_of
from pforce.results.formats import display
from pforce.results.tables import CALIBRATION_COLUMNS, COLUMNS, COST_COLUMNS, HIDDEN, QUALITY_COLUMNS

ROWS = [Row({"m": "0"}, ["a0", "a1"]), Row({"m": "0.7"}, ["b0", "b1"]), Row({"m": "1"}, ["c0"])]


def shown(table: pd.DataFrame) -> list[str]:
    return [name for name in table.columns if not name.endswith(HIDDEN)]


def test_mean_and_spread_over_finished_seeds(frame):
    """The newest of two runs with one fingerprint counts; a failed one does not; one seed has no spread."""
    table = cell_table(frame, ROWS)
    assert list(table["n"]) == [2, 1, 0]
    assert table["val loss"][0] == pytest.approx((1.5 + 3.0) / 2)
    assert table["val loss sd"][0] == pytest.approx(1.5 / math.sqrt(2))
    assert table["fd/openmoji"][1] == 30.0
    assert math.isnan(table["val loss sd"][1])
    assert math.isnan(table["val loss"][2])


def test_what_became_of_the_cells_is_counted(frame):
    """b1 failed, c0 has no run; the columns are there only where a row has one."""
    table = cell_table(frame, ROWS)
    assert list(table["n planned"]) == [2, 2, 1]
    assert list(table["failed"]) == [0, 1, 0]
    assert "running" not in table
    assert "failed" not in cell_table(frame, ROWS[:1])
    text = to_markdown(table)
    assert "1 of 2" in text
    assert "0 of 1" in text
    busy = pd.concat([frame, frame.assign(status="RUNNING", fingerprint=["c0", "b1", "a0", "x", "x"])])
    assert list(cell_table(busy, ROWS)["running"]) == [0, 1, 1]  # the retry of b1 counts, not its failure
    assert "failed" not in cell_table(busy, ROWS)


def test_rows_of_a_running_sweep_are_ordered_by_what_is_known_of_them(frame):
    """The measured ones by their distance, then by images seen, then by loss; the ended sweep's table is as it was."""
    begun = [("c0", 6400.0, 0.9), ("d0", 9600.0, 1.1), ("d1", 3200.0, 0.1), ("e0", 6400.0, 0.8)]
    running = pd.DataFrame(begun, columns=["fingerprint", "images_trained", "train/loss"]).assign(status="RUNNING")
    both = pd.concat([frame, running], ignore_index=True)
    rows = [Row({"m": name}, [f"{name}0", f"{name}1"]) for name in ("f", "b", "c", "d", "a", "e")]
    ordered = by_what_is_known(both, rows)
    assert [row.labels["m"] for row in ordered] == ["a", "b", "d", "e", "c", "f"]
    table = display(cell_table(both, ordered, under_way=True))
    assert list(table["images so far"]) == ["–", "–", "12,800", "6,400", "6,400", "–"]
    assert list(table["last loss"]) == ["–", "–", "1.1000", "0.8000", "0.9000", "–"]
    assert "images so far" not in cell_table(both, rows)
    assert "images so far" not in cell_table(frame, rows, under_way=True), "nothing is known of unfinished cells"


def test_intervals_over_seeds(frame):
    table = cell_table(frame, ROWS)
    low, high = stats.t.interval(0.95, 1, 2.25, stats.sem([1.5, 3.0]))
    assert [table[f"val loss seeds {end}"][0] for end in ("low", "high")] == pytest.approx([low, high])
    assert table[["val loss seeds low", "val loss seeds high"]].iloc[1:].isna().all(axis=None)
    assert "images seen sd" not in table


def test_text_shows_spread_only_where_there_is_one(frame):
    text = to_markdown(cell_table(frame, ROWS))
    assert "2.2500 ± 1.0607" in text
    assert "7.0000 |" in text
    assert "–" in text
    assert "96,000" in text
    (whole,) = to_terminal(cell_table(frame, ROWS), "title", 200)
    console = make_console(width=200, record=True)
    console.print(whole)
    assert "2.2500 ± 1.0607" in console.export_text()


def test_an_empty_store_gives_an_empty_table():
    table = cell_table(pd.DataFrame(), ROWS)
    assert list(table["n"]) == [0, 0, 0]


def test_the_figure_has_a_point_per_row_and_there_is_none_of_nothing(frame):
    table = cell_table(frame, ROWS)
    drawn = cell_figure(table, ["m"])
    assert drawn is not None
    assert [axis.get_title(loc="left") for axis in drawn.axes] == panels_of(table)
    assert all(len(axis.get_xticks()) == len(table) for axis in drawn.axes)
    assert cell_figure(cell_table(pd.DataFrame(), ROWS), ["m"]) is None


def test_a_figure_of_a_thousand_rows_is_no_wider_than_a_page(frame):
    rows = [Row({"m": str(number)}, ["a0" if number % 2 else "b0"]) for number in range(1000)]
    drawn = cell_figure(cell_table(frame, rows), ["m"])
    assert drawn is not None
    assert drawn.get_size_inches()[0] == 12
    assert [len(line.get_xdata()) for line in drawn.axes[0].lines[:1]] == [1000]


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
    assert not any("calib" in name for name in cell_table(calibrated, ROWS).columns)
    assert "calib(0.2)" not in [c.header for c in COLUMNS]
    table = cell_table(calibrated, ROWS, (*QUALITY_COLUMNS, *CALIBRATION_COLUMNS, *COST_COLUMNS))
    assert shown(table) == ["m", "n", "failed", "val loss", "fd/openmoji", "calib(0.2)", "images seen"]
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


@pytest.mark.parametrize("width", [24, 60, 80])
def test_a_narrow_terminal_cuts_no_number_and_no_name(frame, width):
    """Parts below each other, each with the settings; row by row where even a part would be too wide."""
    table = cell_table(frame, ROWS)
    console = make_console(width=width, record=True)
    parts = to_terminal(table, "title", width)
    for part in parts:
        console.print(part)
    text = console.export_text()
    assert len(parts) == {24: len(table), 60: 2, 80: 1}[width]
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    shown = display(table)
    for name in shown.columns:
        assert all(str(value) in text for value in shown[name]), name
        assert width == 24 or all(word in text for word in str(name).split(" "))
    assert text.count("standard deviation") <= 1


def measured(detector: str, *, n: int = 1, **metrics: float) -> pd.DataFrame:
    """Finished runs a0, a1, … of one detector; of name=value the value and its neighbours, seeds apart by 0.1."""
    one = {"val/loss": 0.2, "evaluation.detector": detector, "cost/nfe": 24.0, "difficulty/pearson_t0.20": 0.5}
    runs = []
    for seed in range(n):
        run = {"fingerprint": f"a{seed}", "seed": seed, "status": "FINISHED", "start_time": pd.Timestamp(0), **one}
        for name, value in metrics.items():
            v = value + 0.1 * seed
            run |= {name: v, f"{name}_low": v - 0.2, f"{name}_high": v + 0.25, f"{name}_images": 1000.0,
                    f"{name}_reference_images": 447.0}  # fmt: skip
        runs.append(run)
    return pd.DataFrame(runs)


ONE, THREE = [Row({"m": "0"}, ["a0"])], [Row({"m": "0"}, ["a0", "a1", "a2"])]
OF_DETECTORS = [
    ({"fd/openmoji": 5.52}, ["val loss", "fd/openmoji", "R(0.2)", "fd images", "NFE"]),
    ({"fd/fashion-mnist": 5.52}, ["val loss", "fd/fashion-mnist", "R(0.2)", "fd images", "NFE"]),
    ({"recall/mine": 0.5, "sfd/mine": 9.0, "kd/mine": 0.1, "fd/mine": 5.52},
     ["val loss", "fd/mine", "sfd/mine", "kd/mine", "recall/mine", "R(0.2)", "fd images", "NFE"]),
    ({"fid": 9.0, "fid_infinity": 8.0, "sfid": 7.0, "kid": 0.1, "precision": 0.6, "recall": 0.5, "is": 9.0},
     ["val loss", "fid", "fid_infinity", "sfid", "kid", "precision", "recall", "is", "R(0.2)", "fid images", "NFE"]),
    ({"fid": 9.0, "fd/dinov2": 80.0},
     ["val loss", "fd/dinov2", "fid", "R(0.2)", "fd/dinov2 images", "fid images", "NFE"]),
    ({"precision/mine": 0.7}, ["val loss", "precision/mine", "R(0.2)", "precision images", "NFE"]),
]  # fmt: skip


@pytest.mark.parametrize(("metrics", "columns"), OF_DETECTORS)
def test_a_table_has_the_distances_that_its_runs_were_measured_by(metrics, columns):
    table = cell_table(measured("x", **metrics), ONE)
    assert shown(table) == ["m", "n", *columns]
    figures = panels_of(table)
    assert figures[0] in metrics
    assert figures[-2:] == ["val loss", "R(0.2)"]
    assert set(figures) == {*metrics, "val loss", "R(0.2)"}
    assert "1,000" in to_markdown(table)


def test_distances_of_other_sweeps_in_the_same_store_do_not_show():
    both = pd.concat([measured("openmoji", **{"fd/openmoji": 5.0}),
                      measured("inception", fid=9.0).assign(fingerprint="b0")])  # fmt: skip
    assert "fid" not in cell_table(both, ONE)
    assert "fd/openmoji" not in cell_table(both, [Row({}, ["b0"])])


def test_one_seed_shows_the_interval_over_images_and_several_their_spread():
    one = cell_table(measured("x", **{"fd/x": 5.52}), ONE)
    assert "| 5.52 [5.32, 5.77] |" in to_markdown(one)
    assert legend(one) == "[ ]: 95 % interval over images."
    three = cell_table(measured("x", n=3, **{"fd/x": 5.52}), THREE)
    assert "| 5.62 ± 0.10 |" in to_markdown(three)
    assert legend(three) == "Mean ± standard deviation over seeds."
    # Of the three means 5.52, 5.62, 5.72 the bounds over images are 0.2 below and 0.25 above.
    assert [three[f"fd/x images {end}"][0] for end in ("low", "high")] == pytest.approx([5.42, 5.87])
    older = measured("x", **{"fd/x": 5.52}).drop(columns=["fd/x_low", "fd/x_high"])
    assert "  5.52 |" in to_markdown(cell_table(older, ONE))
    assert legend(cell_table(older, ONE)) == ""
    console = make_console(width=200, record=True)
    console.print(*to_terminal(one, "title", 200))
    text = console.export_text()
    assert "5.52 [5.32, 5.77]" in text
    assert "[ ]: 95 % interval over images." in text


def test_csv_has_all_numbers_unrounded():
    table = cell_table(measured("x", n=3, **{"fd/x": 5.52}), THREE)
    back = pd.read_csv(io.StringIO(to_csv(table)))
    values = np.array([5.52, 5.62, 5.72])
    low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    row = back.iloc[0]
    assert (row["n"], row["n planned"]) == (3, 3)
    assert [row[f"fd/x{end}"] for end in ("", *HIDDEN[:5])] == pytest.approx(
        [5.62, values.std(ddof=1), low, high, 5.42, 5.87]
    )


# --- other texts --------------------------------------------------------------------------------------------

AWKWARD = "50 % of <b> & c_d"


def test_latex_is_escaped_and_has_one_cell_a_column():
    frame = measured("x", n=3, **{"fd/x": 5.52}).assign(**{"val/loss": -0.25})
    rows = [Row({"a_b": "[0.9, 0.99]", "λ": "50 %"}, ["a0", "a1", "a2"]), Row({"a_b": "^~\\", "λ": "{x}$&#"}, ["a0"])]
    text = to_latex(cell_table(frame, rows), AWKWARD, ["a note: −0.1 … 2"], ["a claim: ±"])
    lines = text.splitlines()
    (header,) = [line for line in lines if line.startswith("a\\_b & $\\lambda$ & n &")]
    body = lines[lines.index("\\midrule") + 1 : lines.index("\\bottomrule")]
    assert body[0].startswith("{[}0.9, 0.99] & 50 \\% & 3 & $-$0.2500 $\\pm$ 0.0000 & 5.62 $\\pm$ 0.10 &")
    assert body[1].startswith("\\textasciicircum{}\\textasciitilde{}\\textbackslash{} & \\{x\\}\\$\\&\\# & 1 &")
    cells = [line.replace("\\&", "").count("&") for line in (header, *body)]
    columns = next(line for line in lines if line.startswith("\\begin{tabular}"))
    assert cells == [columns.count("r", len("\\begin{tabular}")) - 1] * 3
    assert "\\caption{50 \\% of $<$b$>$ \\& c\\_d}" in text
    assert "\\par\\footnotesize a note: $-$0.1 \\dots{} 2" in text
    assert "\\par\\footnotesize a claim: $\\pm$" in text
    assert "\\toprule" in text
    assert text.isascii()


class Reader(HTMLParser):
    """Texts by the innermost tag that they stand in."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: dict[str, list[str]] = {}
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.found.setdefault(self.open[-1], []).append(data)


def test_html_reads_back_as_the_table():
    table = cell_table(measured("x", n=3, **{"fd/x": 5.52}), [Row({"λ": AWKWARD}, ["a0", "a1", "a2"])])
    found = Reader(to_html(Report(table, AWKWARD, ["first <note>"], ["a claim"]))).found
    assert found["caption"] == [AWKWARD]
    assert found["th"] == ["λ", "n", "val loss", "fd/x", "R(0.2)", "fd images", "NFE"]
    assert found["td"] == [AWKWARD, "3", "0.2000 ± 0.0000", "5.62 ± 0.10", "0.500 ± 0.000", "1,000", "24"]
    assert found["p"] == ["Mean ± standard deviation over seeds."]
    assert found["li"] == ["first <note>", "a claim"]


def test_html_is_a_fragment_with_lists_and_no_colours_of_its_own():
    table = cell_table(measured("x", **{"fd/x": 5.52}), [Row({"m": AWKWARD}, ["a0"])])
    report = Report(table, AWKWARD, ["first <note>"], ["a claim"])
    text = to_html(report)
    assert text.isascii()
    assert text.startswith('<section class="pforce">')
    assert text.index("Claims") < text.index("<li>a claim</li>")
    assert "<b>" not in text
    coloured = [rule for rule in text.split("}") if "color:" in rule or "background:" in rule]
    assert all(rule.split("{")[-2].strip().startswith(".page") for rule in coloured), "colours are those around it"
    assert "Claims" not in to_html(Report(table))


def test_markdown_ends_in_notes_and_claims(frame):
    table = cell_table(frame, ROWS)
    text = to_markdown(table, ["one", "two"], ["three"])
    assert text.endswith("Mean ± standard deviation over seeds.\n\n- one\n- two\n\nClaims:\n\n- three")
    assert "Claims" not in to_markdown(table, ["one"])


def test_a_setting_with_the_name_of_a_number_is_shown_as_it_is():
    """A sweep over `training.images` has an axis `images`, as evaluations have a column."""
    table = pd.DataFrame({"images": ["640", "1280"], "n": [1, 1]})
    assert display(table)["images"].tolist() == ["640", "1280"]
    assert display(table.assign(images=[640, 1280]))["images"].tolist() == ["640", "1,280"]
