"""A table as text: terminal, Markdown, LaTeX and CSV."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Mapping, Sequence

import pandas as pd
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from pforce.base.foreign import printable
from pforce.results.frames import distance_of
from pforce.results.tables import (
    CALIBRATION_COLUMNS,
    COLUMNS,
    DISTANCE_DECIMALS,
    HIDDEN,
    OVER_IMAGES,
    PLANNED,
    SO_FAR_COLUMNS,
    SPREAD,
)


def _bounds(table: pd.DataFrame, name: str, index: int, ends: Sequence[str]) -> list[float]:
    return [table[name + end].iloc[index] if name + end in table else float("nan") for end in ends]


def _decimals(name: str) -> int | None:
    """Decimals of a column's numbers; None for a column that is shown as it is."""
    fixed = {
        column.header: column.decimals
        for column in (*COLUMNS, *CALIBRATION_COLUMNS, *SO_FAR_COLUMNS)
        if not column.of_detector
    }
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
        elif places is None or table[name].map(lambda value: isinstance(value, str)).any():  # a setting may be `images`
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


def safe_markdown(text: str) -> str:
    """A text whose characters mean nothing in Markdown or HTML, such as a label that somebody has chosen."""
    return re.sub(r"([\\`*\[\]<>|!#])", r"\\\1", " ".join(printable(text).split()))


def to_markdown(table: pd.DataFrame, notes: Sequence[str] = (), claims: Sequence[str] = ()) -> str:
    """The table in Markdown, with numbers as in the terminal; below it the legend, notes and claims."""
    parts = [display(table).to_markdown(index=False, disable_numparse=True, stralign="right"), legend(table)]
    parts.append("\n".join(f"- {note}" for note in notes))
    if claims:
        parts += ["Claims:", "\n".join(f"- {claim}" for claim in claims)]
    return "\n\n".join(filter(None, parts))


def to_terminal(table: pd.DataFrame, title: str, width: int) -> list[Table]:
    """The table for rich, with the legend as its caption; in parts below each other, each with the settings, where it
    is wider than `width` characters, and row by row where even a part would be."""
    shown = display(table).rename(columns=str)
    needed = {name: _width(name, shown[name]) for name in map(str, shown.columns)}
    settings = [*itertools.takewhile(lambda name: _is_setting(table, name), shown.columns)]
    numbers = [name for name in shown.columns if name not in settings]
    room = width - 1 - sum(needed[name] for name in settings)
    if len(shown) and room < max((needed[name] for name in numbers), default=0):
        parts = [_facts(row) for _, row in shown.iterrows()]
    else:
        parts = [_part(shown[[*settings, *group]]) for group in _filled(numbers, needed, room)]
    parts[0].title, parts[0].title_justify = title, "left"
    parts[-1].caption, parts[-1].caption_justify = legend(table) or None, "left"
    return parts


def _is_setting(table: pd.DataFrame, name: str) -> bool:
    return name != "n" and _decimals(name) is None and not any(f"{name}{end}" in table for end in HIDDEN)


def _width(name: str, column: pd.Series) -> int:
    """Characters of a column with its border and margins; its name may break between words, its values may not."""
    return 3 + max(map(cell_len, [*name.split(" "), *map(str, column)]))


def _filled(names: Sequence[str], needed: Mapping[str, int], room: int) -> list[list[str]]:
    """Groups of columns, each as many as there is room for."""
    groups: list[list[str]] = [[]]
    for name in names:
        if groups[-1] and sum(needed[each] for each in groups[-1]) + needed[name] > room:
            groups.append([])
        groups[-1].append(name)
    return groups


def _part(shown: pd.DataFrame) -> Table:
    result = Table()
    for name in shown.columns:
        # Broken here: rich would rather break numbers than names.
        lines = textwrap.wrap(name, _width(name, shown[name]) - 3, break_long_words=False, break_on_hyphens=False)
        result.add_column(Text("\n".join(lines)), justify="right", no_wrap=True)
    for _, row in shown.iterrows():
        # As Text: brackets are not markup.
        result.add_row(*(Text(str(value)) for value in row))
    return result


def _facts(row: pd.Series) -> Table:
    result = Table(show_header=False)
    result.add_column(overflow="fold")
    result.add_column(justify="right", no_wrap=True)
    for name, value in row.items():
        result.add_row(Text(str(name)), Text(str(value)))
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
