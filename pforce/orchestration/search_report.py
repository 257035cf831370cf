"""The table of a search: its trials from the best down, or those of the front first, and what is decided."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
from rich.console import Console

from pforce import results
from pforce.base.words import counted
from pforce.orchestration.objectives import Objective
from pforce.orchestration.plan import Plan, this_command
from pforce.orchestration.rungs import in_words, stopped_note
from pforce.orchestration.search import Search
from pforce.orchestration.sweep_report import caveat, publish, sweep_frame, table_rows, title_of
from pforce.records.sweeps import MOST_IMAGES
from pforce.results import Report, Row
from pforce.results.page import Section, png
from pforce.results.pareto import on_front
from pforce.results.search_figures import search_figure
from pforce.results.statistics import mean_interval, values_by_seed
from pforce.results.sweep_run import Summary
from pforce.results.tables import COLUMNS, Column

VERDICT = "verdict"
BEST, UNDECIDED, FRONT, BEYOND, STOPPED = "best", "undecided", "front", "beyond a limit", "stopped at {:,}"
MOST_SHOWN = 20
"""Most trials that the terminal shows; the files have all."""


class Standing(NamedTuple):
    """A row of the table as the search sees it."""

    values: list[float]
    """Means of the objectives; NaN where a seed is missing."""
    low: float
    high: float
    """Bounds of the 95 % interval over seeds of the first objective; NaN with a single seed."""
    kept: bool
    """Whether the requirements are kept."""
    first: int
    """Number of the trial."""
    rung: int = 0
    """Images seen at the rung at which it was stopped, or that it has reached; 0 for a whole one."""
    at_rung: float = math.nan
    """Value there."""


def standings(search: Search, frame: pd.DataFrame, rows: Sequence[Row]) -> list[Standing]:
    """The rows of a search's table, in their order."""
    found = []
    for row in rows:

        def mean(metric: str, row: Row = row) -> list[float]:
            by_seed = values_by_seed(frame, row, metric)
            return list(by_seed.values()) if len(by_seed) == len(search.plan.sweep.seeds) else []

        first = min(int(number) for number in row.labels["trial"].split(", "))
        rung, value = _rung_of(search, first)
        seeds = [[] if rung else mean(each.metric) for each in search.objectives]
        interval = mean_interval(seeds[0]) if len(seeds[0]) > 1 else None
        limits = [(each, mean(each.metric)) for each in search.requirements]
        found.append(Standing(
            [sum(each) / len(each) if each else math.nan for each in seeds],
            interval.low if interval else math.nan, interval.high if interval else math.nan,
            all(values and each.violation(sum(values) / len(values)) <= 0 for each, values in limits),
            first, rung, value,
        ))  # fmt: skip
    return found


def _rung_of(search: Search, number: int) -> tuple[int, float]:
    """Images seen and value of the last rung of a trial that is not whole; 0 and NaN for a whole one."""
    ladder = search.ladder
    if ladder is None or number not in ladder.works or ladder.at[number] == len(ladder.rungs):
        return 0, math.nan
    values = ladder.values(number)
    return ladder.rungs[ladder.at[number]], values[-1] if values else math.nan


def _signed(values: Sequence[float], objectives: Sequence[Objective]) -> list[float]:
    """Values of objectives so that smaller is better."""
    return [-value if each.maximize else value for each, value in zip(objectives, values, strict=True)]


def verdicts(search: Search, standing: Sequence[Standing]) -> list[str]:
    """A word for each row: the best and what is not decided against it, or the front; and what is beyond a limit."""
    words = ["" if each.kept or any(map(math.isnan, each.values)) else BEYOND for each in standing]
    if search.ladder is not None:
        stopped = search.ladder.stopped
        words = [STOPPED.format(stopped[each.first]) if each.first in stopped else word
                 for each, word in zip(standing, words, strict=True)]  # fmt: skip
    allowed = [n for n, each in enumerate(standing) if each.kept and not any(map(math.isnan, each.values))]
    if not allowed:
        return words
    signed = {n: _signed(standing[n].values, search.objectives) for n in allowed}
    if len(search.objectives) > 1:
        names = [str(k) for k in range(len(search.objectives))]
        front = on_front(pd.DataFrame(list(signed.values()), columns=names), names)
        for n, flagged in zip(allowed, front, strict=True):
            words[n] = FRONT if flagged else ""
        return words
    best = min(allowed, key=lambda n: signed[n])
    words[best] = BEST
    low, high = standing[best].low, standing[best].high
    for n in allowed:
        each = standing[n]
        if n != best and not math.isnan(low) and each.low <= high and low <= each.high:
            words[n] = UNDECIDED
    return words


def _columns(search: Search) -> tuple[Column, ...]:
    """The usual columns, and those of objectives and requirements that are not among them."""
    usual = {column.metric for column in COLUMNS}
    metrics = dict.fromkeys([each.metric for each in search.objectives] + [each.metric for each in search.requirements])
    more = [
        Column(metric, metric, 4, with_spread=True)
        for metric in metrics if metric not in usual and not results.frames.distance_of(metric)
    ]  # fmt: skip
    return (*more, *COLUMNS)


def search_report(planned: Plan, console: Console, *, search: Search) -> None:
    """Print the table of a search, write it and its figure to files, and say how to open the study."""
    search.update()
    frame = sweep_frame(planned)
    if not table_rows(planned):
        console.print("Nothing was tried yet.")
        return
    found = search_summary(planned, frame, search=search)
    few, report = found.report.table.head(MOST_SHOWN), found.report
    more = len(report.table) - len(few)
    notes = [*report.notes, *([f"{more} more trials are in the files"] if more else [])]
    Report(few, report.title, notes).print(console)
    publish(planned, found, console)
    _say_study(search, console)


def search_summary(planned: Plan, frame: pd.DataFrame, final: bool = True, *, search: Search) -> Summary:
    """The table of a search: its trials from the best down, with what is decided, and a figure.

    Args:
        frame: see `sweep_frame`.
        final: whether the search has ended; its table makes no claims, so it is the same before.
    """
    rows = table_rows(planned)
    standing = standings(search, frame, rows)
    words = verdicts(search, standing)
    rank = {word: n for n, word in enumerate((BEST, FRONT, UNDECIDED, "", BEYOND))}

    worst = search.ladder is not None and search.ladder.maximize

    def place(n: int) -> tuple[bool, int, list[float]]:
        each = standing[n]
        if any(map(math.isnan, each.values)):  # those that have gone furthest first
            at_rung = [] if math.isnan(each.at_rung) else [-each.at_rung if worst else each.at_rung]
            return True, -(each.rung or MOST_IMAGES), at_rung
        beyond = rank[BEYOND] if words[n] == BEYOND else rank[words[n]] if words[n] == FRONT else 2
        return False, beyond, _signed(each.values, search.objectives)

    order = sorted(range(len(rows)), key=place)
    table = results.cell_table(frame, [rows[n] for n in order], _columns(search))
    table.insert(len(planned.sweep.headers), VERDICT, [words[n] or "–" for n in order])
    whole = [row for row, each in zip(rows, standing, strict=True) if not each.rung] or rows
    title, notes = title_of(planned.sweep), _notes(search, words) + results.table_notes(frame, whole)
    points = pd.DataFrame(
        [
            {"trial": each.first, "verdict": words[n], **{str(k): value for k, value in enumerate(each.values)}}
            for n, each in enumerate(standing)
        ]
    )  # fmt: skip
    drawn = search_figure(points, [each.metric for each in search.objectives],
                          [each.maximize for each in search.objectives])  # fmt: skip
    figures = [] if drawn is None else [(png(drawn), "The trials in their order, or the front")]
    section = Section(title, report=Report(table, title, notes), figures=figures, commands=[this_command()])
    names = results.row_names(rows)
    return Summary(section, frame, [(names[n], rows[n]) for n in order])


def _notes(search: Search, words: Sequence[str]) -> list[str]:
    goals = " and ".join(f"{'largest' if each.maximize else 'smallest'} {each.metric}" for each in search.objectives)
    limits = f", with {' and '.join(map(str, search.requirements))}" if search.requirements else ""
    own = len(search.study.own)
    told = len(search.study.trials) - own
    text = f"{search.settings.method} search (seed {search.settings.seed}) for the {goals}{limits}: "
    text += counted(own, "trial")
    text += f", and {counted(told, 'point')} known from the records before." if told else "."
    notes = [caveat(search.plan), text]
    if search.ladder is not None:
        notes.append(f"{in_words(search.ladder.settings, search.ladder.rungs)}.")
        if search.ladder.stopped:
            notes.append(f"{stopped_note(search.ladder.stopped)}; their numbers are of there.")
    if len(search.plan.sweep.seeds) == 1:
        notes.append("One seed per trial: the best of many owes part of its value to chance; --seeds 3 has intervals.")
    elif undecided := words.count(UNDECIDED):
        notes.append(f"{counted(undecided, 'trial')} not decided against the best: 95 % intervals over seeds overlap.")
    return notes


def _say_study(search: Search, console: Console) -> None:
    words = ["optuna-dashboard", search.study.where]
    if search.study.artifacts.exists():
        words += ["--artifact-dir", str(search.study.artifacts)]
    console.print(f"Open the study: {shlex.join(words)}", soft_wrap=True, highlight=False, markup=False)
