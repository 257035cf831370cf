"""The run of a sweep itself in MLflow: its table, figure, note, pictures side by side, sums, and the page's charts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import pandas as pd

from pforce.base.files import digest, read_whole
from pforce.base.words import counted
from pforce.images import open_picture
from pforce.metrics.names import DIFFICULTY, VALIDATION_LOSS, CostName
from pforce.records.ledger import Ledger
from pforce.records.status import FAILED, FINISHED, KILLED, RUNNING, Status
from pforce.records.sweeps import CellEntry, SweepEntry
from pforce.results.costs import run_costs
from pforce.results.figures import side_by_side
from pforce.results.formats import display, safe_markdown, to_markdown
from pforce.results.frames import Row, distances_in, finished, primary_metric, smaller_is_better
from pforce.results.notes import TOO_SHORT
from pforce.results.page import Section, page
from pforce.results.pictures import MAPS_KEY, MAPS_PICTURE, NEAREST_PAIRS, pictures_of, samples_key
from pforce.results.report import Report
from pforce.results.shown import plain_number, sweep_tags, views_of
from pforce.results.tables import HIDDEN, SPREAD
from pforce.tracking.charts import PAGE, Charts
from pforce.tracking.page import Page, Progress, Run, Shown
from pforce.tracking.view import NOTE, Tags, View

MOST_PICTURES = 12
MOST_WITHOUT = 24
"""Rows without pictures, one after the other, at which no further pictures are looked for."""
MOST_SCALES = 4
"""Most guidance scales whose samples have a chart."""
NO_AXES = ("seed", "name", "sampler.json", "evaluation.seed")
"""Parameters that are no axes, though they may differ between cells."""
MOST_NOTED = 20
"""Most rows of the table in a note."""
NOTE_LENGTH = 3900
"""Most characters of a note; a tag holds 4,000."""
CURVES = ("train/loss", "train/mse")
TABLE = "table.json"
FIGURE, PICTURES = "figure.png", "samples_side_by_side.png"


class Summary(NamedTuple):
    """What a sweep has come to."""

    section: Section
    """Its report and figures, as a part of a page; pictures are added by whoever shows it."""
    frame: pd.DataFrame
    """Frame of `pforce.results.runs` that the report was made from."""
    rows: Sequence[tuple[str, Row]] = ()
    """Rows by their names; none for a front, whose rows are settings of a sampler."""
    compared_by: str | None = None
    """The metric that its rows are compared by, where there are no rows with cells."""

    @property
    def report(self) -> Report:
        """Its table with notes and claims."""
        assert self.section.report is not None
        return self.section.report

    @property
    def metric(self) -> str | None:
        """The metric that its rows are compared by."""
        return primary_metric(self.frame, [row for _, row in self.rows]) if self.rows else self.compared_by

    @property
    def finished(self) -> pd.DataFrame:
        """The finished cells of its rows."""
        return finished(self.frame, [row for _, row in self.rows]) if self.rows else pd.DataFrame()


def first_pictures(
    summary: Summary, cells: Mapping[str, CellEntry], ledger: Ledger
) -> tuple[list[tuple[bytes, str]], tuple[bytes, str] | None]:
    """Samples of the first seed of each row that has any, at most twelve, and the uncertainty maps of the last one.

    Args:
        cells: cells by digest.
    """
    pictures: list[tuple[bytes, str]] = []
    maps: tuple[bytes, str] | None = None
    without = 0
    for name, row in summary.rows:
        there = finished(summary.frame, row)
        for cell in there.sort_values("seed").to_dict("records") if len(there) else ():
            entry = cells.get(cell["fingerprint"])
            found = pictures_of(ledger.storage, ledger, entry) if entry else []
            samples = [path for path in found if path.name not in (MAPS_PICTURE, NEAREST_PAIRS)]
            if not samples:
                continue
            drawn = _picture(samples[0], ledger)
            if drawn is None:
                continue
            pictures.append((drawn, f"{name}, seed {int(cell['seed'])}: the first 64 images"))
            of_maps = [_picture(path, ledger) for path in found if path.name == MAPS_PICTURE]
            maps = (of_maps[0], f"{name}: held-out images and predicted σ") if of_maps and of_maps[0] else maps
            without = -1
            break
        without += 1
        if len(pictures) == MOST_PICTURES or without == MOST_WITHOUT:
            break
    return pictures, maps


def _picture(path: Path, ledger: Ledger) -> bytes | None:
    """A picture's file; None, with a message, where it is damaged or gone."""
    try:
        content = read_whole(path)
        with open_picture(content) as opened:
            opened.load()
    except (OSError, ValueError) as error:
        ledger.say(f"{path}: left out: {error}")
        return None
    return content


def inputs_of_run(entry: SweepEntry, views: Mapping[str, View], *, final: bool) -> str:
    """Digest of all that a sweep's run is made from: its cells, and the content of those that have ended.

    Args:
        final: whether it shows claims.
    """
    return digest("sweep run", [sorted(cell.cell for cell in entry.cells),
                                sorted((cell, view.content) for cell, view in views.items()), final])  # fmt: skip


def run_view(
    entry: SweepEntry, views: Mapping[str, View], summary: Summary, ledger: Ledger, *, status: Status, final: bool
) -> View:  # fmt: skip
    """The view of a sweep's own run.

    Args:
        entry: the sweep's file.
        views: views of the cells that have ended, by digest.
        status: status of the run.
        final: whether the summary makes claims.
    """
    pictures, maps = first_pictures(summary, {cell.cell: cell for cell in entry.cells}, ledger)
    whole = replace(summary.section, title="", pictures=[*pictures, *([maps] if maps else [])])
    best, numbers = _best(summary), _sums(entry, views, summary)
    tags = {**sweep_tags(entry), NOTE: note(entry, summary, best[0])}
    if best[0]:
        tags[Tags.BEST] = best[0]
        numbers |= best[1]
    texts: dict[str, str | bytes] = {PAGE: page(summary.section.title or entry.name, "", [whole])}
    if whole.figures:
        texts[FIGURE] = whole.figures[0][0]
    if pictures:
        texts[PICTURES] = side_by_side(pictures)
    view = View(
        entry.name, tags, metrics=numbers, status=status, started=min(view.started for view in views.values()),
        ended=max(view.ended or 0 for view in views.values()), texts=texts,
        inputs=inputs_of_run(entry, views, final=final),
        charts=charts_of(entry, summary).state(),
    )  # fmt: skip
    shown = [name for name in map(str, summary.report.table.columns) if _is_shown(name)]
    rows = [[_plain(value) for value in row] for row in summary.report.table[shown].itertuples(index=False)]
    return view.with_table(TABLE, shown, rows)


def _is_shown(column: str) -> bool:
    return column.endswith(SPREAD) or not column.endswith(HIDDEN)


def _plain(value: object) -> object:
    """A table's value as JSON has it."""
    if isinstance(value, str) or value is None:
        return value
    number = float(value)  # type: ignore[arg-type]  # a number of numpy's or Python's
    if math.isfinite(number) and number == int(number):
        return int(number)
    return plain_number(number)


def _best(summary: Summary) -> tuple[str, dict[str, float]]:
    """The row with the best mean, in words, and its mean as metrics; empty where none is measured.

    It says how many seeds it is of and whether the claims decide it, since the best of many owes part of its number to
    chance.
    """
    metric, table = summary.metric, summary.report.table
    if not summary.rows:  # a front has no best
        return "", {}
    if metric is None or metric not in table or not table[metric].notna().any():
        return "", {}
    values = table[metric].reset_index(drop=True)
    place = int(values.argmin() if smaller_is_better(metric) else values.argmax())
    names = list(map(str, table.columns))
    labels = [name for name in names[: names.index("n")] if name != "verdict"] if "n" in names else []
    row = {name: str(value) for name, value in display(table).iloc[place].items()}
    name = ", ".join(f"{label} {row[label]}" for label in labels) or "the only cell"
    n = int(table["n"].iloc[place]) if "n" in table else 1
    return f"{name}: {metric} {row[metric]}, {counted(n, 'seed')}", {f"best/{metric}": float(values[place])}


def _sums(entry: SweepEntry, views: Mapping[str, View], summary: Summary) -> dict[str, float]:
    """Counts of cells, and the cost of all."""
    states = [view.status for view in views.values()]
    found = {
        "cells/planned": float(len({cell.cell for cell in entry.cells})),
        "cells/finished": float(states.count(FINISHED)),
        "cells/failed": float(states.count(FAILED)),
    }
    there = summary.finished
    if len(there):
        costs = run_costs(there)
        found[CostName.DEVICE_HOURS] = float(costs["device_hours"].sum())
        found[CostName.SECONDS] = float(costs["seconds"].sum())
    return found


def note(entry: SweepEntry, summary: Summary, best: str) -> str:
    """The note of a sweep's run in Markdown: the best row, claims, notes, table and command."""
    section, report = summary.section, summary.report
    claims = [*section.summary, *(f"{text}: {word} {numbers}" for text, word, numbers in section.findings)]
    table = to_markdown(display(report.table.head(MOST_NOTED)[_few(report.table)]).map(safe_markdown))
    rest = len(report.table) - MOST_NOTED
    first, *others = report.notes or ("",)
    lowest = "lowest" if summary.metric is None or smaller_is_better(summary.metric) else "highest"
    parts = [
        # MLflow shows the first lines only: why one should not believe the best row yet comes before it.
        f"**{safe_markdown(first)}**" if first else "",
        f"The {lowest} mean, which is no claim: {safe_markdown(best)}" if best else "",
        safe_markdown(section.about),
        f"Claims:\n\n{_listed(claims or report.claims)}" if claims or report.claims else "",
        table if rest <= 0 else f"{table}\n\n{rest} more rows are in `{PAGE}`.",
        _listed(others),
        "\n".join(f"    {line}" for line in entry.command.splitlines()),
        f"Everything: `{PAGE}`, `{TABLE}` and `{PICTURES}` among the artifacts.",
    ]
    text = ""
    for part in filter(None, parts):
        if len(text) + len(part) + 2 <= NOTE_LENGTH:
            text += f"{part}\n\n"
    return text.strip()


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"- {safe_markdown(line)}" for line in lines)


def _few(table: pd.DataFrame) -> list[str]:
    """Columns of a table in a note: all but costs other than device-hours, which the whole page has."""
    costs = ("images", "passes", "GFLOPs/image", "s/image", "seconds")
    return [name for name in table.columns if str(name) not in costs and not str(name).endswith(" images")]


def charts_of(entry: SweepEntry, summary: Summary) -> Charts:
    """The charts of a sweep's page: its distance against each axis, losses along the training, and pictures."""
    there, metric = summary.finished, summary.metric
    distances = [name for name in dict.fromkeys([metric, *distances_in(there)]) if name]
    others = [name for name in (VALIDATION_LOSS, *(f"{DIFFICULTY[0]}_t{t}" for t in ("0.20", "0.60")),
                                CostName.IMAGES_SEEN, CostName.NFE, CostName.DEVICE_HOURS)
              if name in there and there[name].notna().any()]  # fmt: skip
    if not summary.rows:
        others = [CostName.NFE, CostName.FLOPS]
    trained = any(cell.training is not None for cell in entry.cells)
    guidance = dict.fromkeys(cell.params.get("sampler.guidance.scale", 1.0) for cell in entry.cells)
    images = (*map(samples_key, list(guidance)[:MOST_SCALES]), MAPS_KEY) if trained else ()
    seen = {cell.images_seen for cell in entry.cells if cell.training is not None}
    sizes = [CostName.IMAGES_SEEN] if len(seen) > 1 else []
    along = distances[:1] if len(seen) > 1 else []
    curves = (*CURVES, *along) if trained else ()
    return Charts(varying(entry), distances, others, curves, images, _caveat(summary), sizes,
                  max(seen, default=0))  # fmt: skip


def _caveat(summary: Summary) -> str:
    """Words on the distance: whether values can be ranked at all, which comes first as MLflow cuts them, and which are
    better."""
    better = "smaller" if summary.metric is None or smaller_is_better(summary.metric) else "larger"
    short = any(TOO_SHORT in note for note in summary.report.notes)
    return f"{TOO_SHORT + '; ' if short else ''}{better} is better"


def varying(entry: SweepEntry) -> list[str]:
    """Parameters that differ between a sweep's cells: its axes, or those that are found to."""
    values: dict[str, set[Any]] = {}
    for cell in entry.cells:
        for name, value in cell.params.items():
            values.setdefault(name, set()).add(str(value))
    differ = [name for name, several in values.items() if len(several) > 1 and name not in NO_AXES]
    own = [name for name in entry.axes if name in differ]
    return own or differ


Summarize = Callable[[SweepEntry], Summary | None]
"""Function from a sweep's file to what the sweep has come to, or None where there is nothing to show. Claims are made
by it, or not, as `final` says where it is given."""


def show_sweep(
    page: Page, entry: SweepEntry, ledger: Ledger, *, summarize: Summarize = lambda entry: None, final: bool = False,
    files: Sequence[Path] | None = None, restore: bool = False, progress: Progress = lambda done: None,
) -> Shown:  # fmt: skip
    """Bring a sweep's page up to date with all its ended cells. The sweep's own run is made where it is missing; sweeps
    of one cell each, such as evaluations, share one.

    Args:
        summarize: function that gives the content of the sweep's own run; called where that has changed.
        final: whether it makes claims; a run that shows them keeps them while nothing else has changed.
        files: files of its only cell, where they are elsewhere.
    """
    views = views_of(entry.cells, ledger.storage, ledger)
    if not views or page.deleted:
        return Shown(deleted=len(views))
    if files is not None:
        views = {cell: view.with_files(files) for cell, view in views.items()}
    lone = entry.identity in views
    if lone:
        entry = replace(entry, identity=entry.name)
    key, view = page.key(entry.identity), _plain_view(entry, views)
    own = page.ensure({key: view}).get(key)
    if own is None:  # a person has just deleted the page
        return Shown(deleted=len(views))
    if own.deleted and restore:
        page.client.restore_run(own.run_id)
        own.deleted = False
    if not own.deleted:
        # A run that ended otherwise, or is still running, keeps its status while cells are missing.
        view = replace(view, status=cast(Status, own.status) if view.status == KILLED else view.status)
        if lone and view.status != own.status:
            page.bring(own, view)  # its driver was killed before it could report the end
        elif not lone:
            _bring(page, own, entry, views, plain=view, ledger=ledger, summarize=summarize, final=final)
    return page.show({page.key(cell): view for cell, view in views.items()}, own.run_id, restore=restore,
                     progress=progress)  # fmt: skip


def _bring(
    page: Page, own: Run, entry: SweepEntry, views: Mapping[str, View], *, plain: View, ledger: Ledger,
    summarize: Summarize, final: bool,
) -> None:  # fmt: skip
    """Bring a sweep's own run up to date, unless it shows the same cells already."""
    known = [replace(plain, inputs=inputs_of_run(entry, views, final=shown)).content for shown in {final, True}]
    if own.content in known and own.status == plain.status:
        return
    view, content = plain, ""
    try:
        summary = summarize(entry)
        if summary is not None:
            view = run_view(entry, views, summary, ledger, status=plain.status, final=final)
            content = view.content
    except Exception as error:  # data of a table may not be here, an experiment no longer be there
        ledger.say(f"{entry.name}: shown without its table: {type(error).__name__}: {error}")
    try:
        page.bring(own, view if view.status != RUNNING else replace(view, ended=None), content)
    except Exception as error:  # its cells are shown all the same
        page.refused(own, view, error)


def _plain_view(entry: SweepEntry, views: Mapping[str, View]) -> View:
    """The view of a sweep itself without its table."""
    whole = len(views) == len({cell.cell for cell in entry.cells})
    good = all(view.status == FINISHED for view in views.values())
    status: Status = (FINISHED if good else FAILED) if whole else KILLED
    started = min(view.started for view in views.values())
    ended = max(view.ended or 0 for view in views.values())
    return View(entry.name, sweep_tags(entry), status=status, started=started, ended=ended)
