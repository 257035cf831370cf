"""A table as text: terminal, Markdown, LaTeX, CSV and HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

import pandas as pd
from rich.table import Table
from rich.text import Text

from pforce.results.frames import (
    distance_of,
)
from pforce.results.tables import CALIBRATION_COLUMNS, COLUMNS, DISTANCE_DECIMALS, HIDDEN, OVER_IMAGES, PLANNED, SPREAD


def _bounds(table: pd.DataFrame, name: str, index: int, ends: Sequence[str]) -> list[float]:
    return [table[name + end].iloc[index] if name + end in table else float("nan") for end in ends]


def _decimals(name: str) -> int | None:
    """Decimals of a column's numbers; None for what is shown as it is."""
    fixed = {column.header: column.decimals for column in (*COLUMNS, *CALIBRATION_COLUMNS) if not column.of_detector}
    distance = distance_of(name)
    if distance is not None:
        return DISTANCE_DECIMALS.get(distance[0], 2)
    if name.startswith("paper "):
        return 2
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
        if places is None and table[name].dtype == float:  # a metric that only one table shows
            places = 4
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
