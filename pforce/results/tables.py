"""The table of a sweep: a row a cell, means and spread over seeds, never the best of them.

A distance has two error bars. Over seeds: what another training would give, the spread of the table. Over images: what
other images of the same model would give, shown where one seed leaves no spread. The CSV has both.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from rich.table import Table
from rich.text import Text

from pforce.metrics.distances import few_images, interval_names, metric_name
from pforce.results.frames import (
    COUNTS,
    DISTANCES,
    UNDER_WAY,
    Row,
    cells,
    detectors,
    distance_of,
    distances_in,
    finished,
    row_names,
)
from pforce.results.statistics import mean_interval

SPREAD = " sd"
"""Suffix of the columns that hold a standard deviation over seeds (n − 1)."""
OVER_SEEDS = (" seeds low", " seeds high")
"""Suffixes of the bounds of the mean's 95 % interval over seeds."""
OVER_IMAGES = (" images low", " images high")
"""Suffixes of the bounds of 95 % intervals over images, means over seeds."""
PLANNED = " planned"
"""Suffix of the number of seeds that there are to be."""
HIDDEN = (SPREAD, *OVER_SEEDS, *OVER_IMAGES, PLANNED)
"""Suffixes of columns that texts show beside another one, or not at all."""
MOST_LISTED = 6
"""Rows or values that a note names; of more it tells the number."""


class Column(NamedTuple):
    """A metric as a column."""

    metric: str
    header: str
    decimals: int
    with_spread: bool
    unit: float = 1.0
    """What the column shows one of."""
    of_detector: bool = False
    """A column for each detector that the runs were measured with; `metric` is a short name such as `fd`, or
    `images`, their number."""


DISTANCE_DECIMALS = {"kd": 4, "precision": 3, "recall": 3}
"""All others have two."""
DISTANCE_COLUMNS = tuple(
    Column(short, short, DISTANCE_DECIMALS.get(short, 2), True, of_detector=True) for short in DISTANCES
)
QUALITY_COLUMNS = (
    Column("val/loss", "val loss", 4, True),
    *DISTANCE_COLUMNS,
    Column("difficulty/pearson_t0.20", "R(0.2)", 3, True),
    Column("difficulty/pearson_t0.60", "R(0.6)", 3, True),
)
CALIBRATION_COLUMNS = (
    Column("calibration/error_t0.20", "calib(0.2)", 3, True),
    Column("calibration/error_t0.60", "calib(0.6)", 3, True),
)
"""For sweeps that ask for them: root mean square log ratio of observed to expected squared error, 0 is perfect."""
COST_COLUMNS = (
    Column("cost/images_seen", "images seen", 0, False),
    Column("images", "images", 0, False, of_detector=True),
    Column("cost/nfe", "NFE", 0, False),
    Column("cost/forward_passes", "passes", 0, False),
    Column("cost/flops_per_image", "GFLOPs/image", 2, False, 1e9),
    Column("cost/sampling_seconds_per_image", "s/image", 4, False),
    Column("cost/seconds", "seconds", 0, False),
    Column("cost/device_hours", "device-hours", 4, False),
)
COLUMNS = (*QUALITY_COLUMNS, *COST_COLUMNS)
"""What every sweep's table shows."""


def _named(column: Column, values: pd.DataFrame) -> list[Column]:
    """A column under the names that the runs of a table have it by."""
    if not column.of_detector:
        return [column]
    found, several = distances_in(values), len(detectors(values)) > 1
    if column.metric in DISTANCES:
        names = (metric_name(column.metric, detector) for detector in detectors(values))
        return [column._replace(metric=name, header=name, of_detector=False) for name in names if name in found]
    named = []
    for detector in detectors(values):
        of_it = (metric_name(short, detector) for short in DISTANCES)
        name = next((name for name in of_it if name in found and f"{name}_images" in values), None)
        if name:  # one evaluation measures all of its distances on the same images
            header = f"{name if several else name.split('/')[0]} images"
            named.append(column._replace(metric=f"{name}_images", header=header, of_detector=False))
    return named


def cell_table(frame: pd.DataFrame, rows: Sequence[Row], columns: Sequence[Column] = COLUMNS) -> pd.DataFrame:
    """Means over the finished seeds of each row, what belongs to them, and the number of seeds n.

    Beside a mean: ` sd`, ` seeds low` and ` seeds high` (95 %), and of distances ` images low` and ` images high`.
    Beside n: `n planned`, and where a row has any, `failed` (stopped ones, too) and `running`.

    Args:
        frame: of `pforce.results.runs`. Runs with one fingerprint are one result: see `pforce.results.cells`.
        columns: what is shown, in order; a metric that no run has is left out.
    """
    there = finished(frame, rows)
    shown = [named for column in columns for named in _named(column, there) if named.metric in frame.columns]
    states = {run["fingerprint"]: run["status"] for run in cells(frame).to_dict("records")}
    records = []
    for row in rows:
        of_row = [states[fingerprint] for fingerprint in row.fingerprints if fingerprint in states]
        running = sum(state in UNDER_WAY for state in of_row)
        values = finished(frame, row)
        record: dict[str, object] = {**row.labels, "n": len(values), f"n{PLANNED}": len(row.fingerprints)}
        record |= {"failed": len(of_row) - running - len(values), "running": running}
        for column in shown:
            record |= _summary(column, values)
        records.append(record)
    table = pd.DataFrame(records)
    nowhere = [name for name in ("failed", "running") if name in table and not table[name].any()]
    return table.drop(columns=nowhere)


def _summary(column: Column, values: pd.DataFrame) -> dict[str, float]:
    """What a table has of a metric: its mean over the seeds, and the error bars."""
    series = values[column.metric].astype(float).dropna() / column.unit if len(values) else pd.Series(dtype=float)
    summary = {column.header: float(series.mean())}
    if not column.with_spread:
        return summary
    summary[column.header + SPREAD] = float(series.std(ddof=1))
    known = len(series) > 0 and bool(np.isfinite(series).all())
    bounds = mean_interval(series.tolist())[1:3] if known else (float("nan"),) * 2
    summary |= {column.header + end: bound for end, bound in zip(OVER_SEEDS, bounds, strict=True)}
    for name, end in zip(interval_names(column.metric), OVER_IMAGES, strict=True):
        if name in values and values[name].notna().any():
            summary[column.header + end] = float(values[name].astype(float).mean() / column.unit)
    return summary


# --- what a reader of the table should know -------------------------------------------------------------------

KINDS = {"FINISHED": "finished", "FAILED": "failed", "none": "no run", **dict.fromkeys(UNDER_WAY, "running")}
"""Of a cell, by the status of its run; any other status is `stopped`."""
CURES = {
    "failed": "the same command tries again",
    "stopped": "the same command goes on",
    "running": "not in the means; where nothing runs any more, the same command goes on",
    "no run": "the same command runs what is missing",
}


def table_notes(frame: pd.DataFrame, rows: Sequence[Row]) -> list[str]:
    """Sentences below a table: too few images, what differs between cells, what is missing, failed or running.

    Args:
        frame, rows: as of `cell_table`.
    """
    if frame.empty:
        return _states(frame, rows)
    values = finished(frame, rows)
    return [*_few_images(values), *_differences(values), *_unmeasured(frame, rows, values), *_states(frame, rows)]


def _few_images(values: pd.DataFrame) -> list[str]:
    smallest: dict[str, float] = {}
    for name in distances_in(values):
        counts = {f"{name}_features", f"{name}_images"} & set(values.columns)
        smallest |= {count: float(values[count].min()) for count in sorted(counts)}
    return few_images(smallest)


def _differences(values: pd.DataFrame) -> list[str]:
    """What all cells should have in common. NFE are equal within 2 % or one evaluation."""
    told: dict[tuple[str, str], list[str]] = {}
    for end, what in zip(COUNTS, ("generated", "reference"), strict=True):
        for name in distances_in(values):
            if name + end in values and values[name + end].nunique() > 1:
                told.setdefault((what, _numbers(values[name + end])), []).append(name)
    notes = [
        f"{', '.join(names)}: cells differ in their number of {what} images ({numbers}): their distances do not compare"
        for (what, numbers), names in told.items()
    ]
    for metric, what, share, step in (("cost/nfe", "NFE", 0.02, 1), ("cost/images_seen", "images seen", 0.0, 0)):
        if metric in values and values[metric].max() - values[metric].min() > max(step, share * values[metric].max()):
            notes.append(f"cells differ in {what} ({_numbers(values[metric])}): not the same compute")
    return notes


def _unmeasured(frame: pd.DataFrame, rows: Sequence[Row], values: pd.DataFrame) -> list[str]:
    """Finished cells of an earlier version, which a distance's mean leaves out."""
    notes = []
    for name in distances_in(values):
        counts = [(row_name, finished(frame, row)[name].notna()) for row_name, row in _by_name(rows)]
        few = [f"{has.sum()} of {len(has)} of {row_name}" for row_name, has in counts if not has.all()]
        if few:
            notes.append(f"{name}: not measured in all finished cells, but in {_listed(few)}")
    return notes


def _states(frame: pd.DataFrame, rows: Sequence[Row]) -> list[str]:
    """Cells that are not finished, by what became of them."""
    known = {run["fingerprint"]: run for run in cells(frame).to_dict("records")}
    told: dict[str, list[str]] = {kind: [] for kind in CURES}
    for name, row in _by_name(rows):
        reasons: dict[str, list[str]] = {}
        for fingerprint in row.fingerprints:
            run = known.get(fingerprint, {"status": "none"})
            kind = KINDS.get(run["status"], "stopped")
            reason = run.get("reason")
            reasons.setdefault(kind, []).append(reason if isinstance(reason, str) and kind != "running" else "")
        reasons.pop("finished", None)
        for kind, given in reasons.items():
            why = ", ".join(dict.fromkeys(filter(None, given)))
            count = f"{len(given)} of {len(row.fingerprints)} of {name}"
            told[kind].append(f"{count} ({why})" if why else count)
    return [f"{kind}: {_listed(names)}; {CURES[kind]}" for kind, names in told.items() if names]


def _by_name(rows: Sequence[Row]) -> Iterable[tuple[str, Row]]:
    return zip(row_names(rows), rows, strict=True)


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - MOST_LISTED
    return "; ".join(names) if rest <= 0 else f"{'; '.join(names[:MOST_LISTED])}; and {rest} more rows"


def _numbers(series: pd.Series) -> str:
    values = [f"{value:,.0f}" for value in sorted(series.dropna().unique())]
    if len(values) > MOST_LISTED:
        return f"{values[0]} to {values[-1]}"
    return " and ".join(filter(None, [", ".join(values[:-1]), values[-1]]))


# --- as text --------------------------------------------------------------------------------------------------


def _bounds(table: pd.DataFrame, name: str, index: int, ends: Sequence[str]) -> list[float]:
    return [table[name + end].iloc[index] if name + end in table else float("nan") for end in ends]


def _decimals(name: str) -> int | None:
    """Of a column's numbers; None of what is shown as it is."""
    fixed = {column.header: column.decimals for column in (*COLUMNS, *CALIBRATION_COLUMNS) if not column.of_detector}
    distance = distance_of(name)
    if distance is not None:
        return DISTANCE_DECIMALS.get(distance[0], 2)
    return 0 if name.endswith(" images") else fixed.get(name)


def _display(table: pd.DataFrame) -> pd.DataFrame:
    """The table as text.

    `mean ± sd` where n > 1, `mean [low, high]` of a distance where n = 1, a dash where nothing was measured, and
    `2 of 3` where seeds are missing.
    """
    shown = pd.DataFrame()
    for name in table.columns:
        if any(name.endswith(end) and name.removesuffix(end) in table for end in HIDDEN):
            continue
        places = _decimals(name)
        if name == "n" and f"n{PLANNED}" in table:
            pairs = zip(table["n"], table[f"n{PLANNED}"], strict=True)
            shown[name] = [f"{n} of {planned}" if n < planned else str(n) for n, planned in pairs]
        elif places is None:
            shown[name] = table[name].astype(str)
        else:
            shown[name] = [_number(table, name, index, places) for index in range(len(table))]
    return shown


def _number(table: pd.DataFrame, name: str, index: int, places: int) -> str:
    mean, (spread,) = table[name].iloc[index], _bounds(table, name, index, [SPREAD])
    low, high = _bounds(table, name, index, OVER_IMAGES)
    if pd.isna(mean):
        return "–"
    text = f"{mean:,.{places}f}"
    if not pd.isna(spread):
        return f"{text} ± {spread:.{places}f}"
    return text if pd.isna(low) else f"{text} [{low:,.{places}f}, {high:,.{places}f}]"


def legend(table: pd.DataFrame) -> str:
    """What ± and brackets are in the table's text, of those that it has; empty without any."""
    text = _display(table).to_string()
    parts = {
        "Mean ± standard deviation over seeds": r"\d ± \d",
        "[ ]: 95 % interval over images": r"\d \[-?\d",
    }
    found = [part for part, mark in parts.items() if re.search(mark, text)]
    return f"{'; '.join(found)}." if found else ""


def to_csv(table: pd.DataFrame) -> str:
    """All numbers, unrounded: means, standard deviations, intervals over seeds and over images, n."""
    return str(table.to_csv(index=False))


def to_markdown(table: pd.DataFrame, notes: Sequence[str] = (), claims: Sequence[str] = ()) -> str:
    """A Markdown table, numbers as in the terminal; below it the legend, notes and claims."""
    parts = [_display(table).to_markdown(index=False, disable_numparse=True, stralign="right"), legend(table)]
    parts.append("\n".join(f"- {note}" for note in notes))
    if claims:
        parts += ["Claims:", "\n".join(f"- {claim}" for claim in claims)]
    return "\n\n".join(filter(None, parts))


def to_terminal(table: pd.DataFrame, title: str) -> Table:
    """A rich table, the legend as its caption."""
    shown = _display(table)
    result = Table(title=title, title_justify="left", caption=legend(table) or None, caption_justify="left")
    for name in shown.columns:
        result.add_column(Text(str(name)), justify="right", overflow="fold")
    for _, row in shown.iterrows():
        # As Text: brackets are not markup.
        result.add_row(*(Text(str(value)) for value in row))
    return result


LATEX: dict[str, str | int | None] = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "[": "{[}",  # after the \\ of the row above it would begin an option
    "±": r"$\pm$", "–": "--", "−": "$-$", "…": r"\dots{}", "×": r"$\times$", "<": "$<$", ">": "$>$", "≥": r"$\geq$",
    "λ": r"$\lambda$", "σ": r"$\sigma$",
}  # fmt: skip


def _latex(text: object) -> str:
    return re.sub(r"(?<!\w)-(?=\d)", "−", str(text)).translate(str.maketrans(LATEX))


def to_latex(table: pd.DataFrame, caption: str = "", notes: Sequence[str] = (), claims: Sequence[str] = ()) -> str:
    """A LaTeX table for the package booktabs; legend, notes and claims below it."""
    shown = _display(table).map(_latex).rename(columns=_latex)
    body = shown.to_latex(index=False, escape=False, column_format="r" * len(shown.columns)).strip()
    below = [line for line in (legend(table), *notes, *claims) if line]
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "\\centering",
        *([f"\\caption{{{_latex(caption)}}}"] if caption else []),
        body,
        *(f"\\par\\footnotesize {_latex(line)}" for line in below),
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


STYLE = (
    ".pforce{font:14px/1.45 system-ui,sans-serif}"
    ".pforce div{overflow-x:auto}"
    ".pforce table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:.4em 0}"
    ".pforce caption{text-align:left;font-weight:600;padding-bottom:.4em}"
    ".pforce th,.pforce td{text-align:right;white-space:nowrap;padding:.25em .5em;"
    "border-bottom:1px solid rgba(128,128,128,.35)}"
    ".pforce thead th{border-bottom:2px solid rgba(128,128,128,.7)}"
    ".pforce p,.pforce ul{max-width:60em;margin:.4em 0}"
)
"""Text and background are those of the page around it, so that it reads in light and in dark."""


def to_html(table: pd.DataFrame, title: str = "", notes: Sequence[str] = (), claims: Sequence[str] = ()) -> str:
    """A fragment of HTML in ASCII, with its own small style: the table, legend, notes, and claims.

    It takes text colour and background from the page that it is put into; `html_page` makes a page of it.
    """
    shown = _display(table)

    def listed(lines: Sequence[str]) -> list[str]:
        return ["<ul>", *(f"<li>{html.escape(line)}</li>" for line in lines), "</ul>"] if lines else []

    def cells_of(values: Iterable[object], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(str(value))}</{tag}>' for value in values)}</tr>"

    told = legend(table)
    lines = [
        '<section class="pforce">',
        f"<style>{STYLE}</style>",
        "<div><table>",
        *([f"<caption>{html.escape(title)}</caption>"] if title else []),
        f"<thead>{cells_of(shown.columns, 'th')}</thead>",
        "<tbody>",
        *(cells_of(row, "td") for row in shown.itertuples(index=False)),
        "</tbody>",
        "</table></div>",
        *([f"<p>{html.escape(told)}</p>"] if told else []),
        *listed(notes),
        *(["<p><strong>Claims</strong></p>", *listed(claims)] if claims else []),
        "</section>",
    ]
    # As references, so that no page's encoding can spoil ± and λ.
    return "\n".join(lines).encode("ascii", "xmlcharrefreplace").decode() + "\n"


def html_page(fragment: str, title: str) -> str:
    """A fragment as a page that follows the reader's choice of light or dark."""
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<meta name="color-scheme" content="light dark">\n'
        f"<title>{html.escape(title)}</title>\n{fragment}</html>\n"
    )
