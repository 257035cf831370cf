"""A table as text: terminal, Markdown, LaTeX and CSV."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd
from rich.table import Table
from rich.text import Text

from pforce.results.frames import distance_of
from pforce.results.tables import CALIBRATION_COLUMNS, COLUMNS, DISTANCE_DECIMALS, HIDDEN, OVER_IMAGES, PLANNED, SPREAD


def _bounds(table: pd.DataFrame, name: str, index: int, ends: Sequence[str]) -> list[float]:
    return [table[name + end].iloc[index] if name + end in table else float("nan") for end in ends]


def _decimals(name: str) -> int | None:
    """Decimals of a column's numbers; None for a column that is shown as it is."""
    fixed = {column.header: column.decimals for column in (*COLUMNS, *CALIBRATION_COLUMNS) if not column.of_detector}
    distance = distance_of(name.partition(",")[0])  # `fd/openmoji, other noise`
    if distance is not None:
        return DISTANCE_DECIMALS.get(distance[0], 2)
    if name.startswith("paper "):
        return 2
    return 0 if name == "images" or name.endswith(" images") else fixed.get(name)


def display(table: pd.DataFrame) -> pd.DataFrame:
    """The table as text.

    `mean ± sd` where n > 1, `mean [low, high]` for a distance where n = 1, a dash where nothing was measured or a
    setting does not apply, and `2 of 3` where seeds are missing.
    """
    shown = pd.DataFrame()
    for name in table.columns:
        if any(name.endswith(end) and name.removesuffix(end) in table for end in HIDDEN):
            continue
        places = _decimals(name)
        if places is None and any(name + end in table for end in HIDDEN):  # a metric that only one table shows
            places = 4
        if name == "n" and f"n{PLANNED}" in table:
            pairs = zip(table["n"], table[f"n{PLANNED}"], strict=True)
            shown[name] = [f"{n} of {planned}" if n < planned else str(n) for n, planned in pairs]
        elif places is None:
            setting = "{:.4g}".format if table[name].dtype == float else str
            shown[name] = ["–" if pd.isna(value) else setting(value) for value in table[name]]
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
    """Explanation of ± and brackets, as far as the table's text has them; empty where it has neither."""
    text = display(table).to_string()
    parts = {
        "Mean ± standard deviation over seeds": r"\d ± \d",
        "[ ]: 95 % interval over images": r"\d \[-?\d",
    }
    found = [part for part, mark in parts.items() if re.search(mark, text)]
    return f"{'; '.join(found)}." if found else ""


def to_csv(table: pd.DataFrame) -> str:
    """The table as CSV with all numbers, unrounded: means, standard deviations, intervals over seeds and over images,
    n."""
    return str(table.to_csv(index=False))


def to_markdown(table: pd.DataFrame, notes: Sequence[str] = (), claims: Sequence[str] = ()) -> str:
    """The table in Markdown, with numbers as in the terminal; below it the legend, notes and claims."""
    parts = [display(table).to_markdown(index=False, disable_numparse=True, stralign="right"), legend(table)]
    parts.append("\n".join(f"- {note}" for note in notes))
    if claims:
        parts += ["Claims:", "\n".join(f"- {claim}" for claim in claims)]
    return "\n\n".join(filter(None, parts))


def to_terminal(table: pd.DataFrame, title: str) -> Table:
    """The table for rich, with the legend as its caption."""
    shown = display(table)
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
    """The table in LaTeX for the package booktabs, with legend, notes and claims below it."""
    shown = display(table).map(_latex).rename(columns=_latex)
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
