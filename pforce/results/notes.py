"""Notes for the readers of a table: sentences below it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import pandas as pd

from pforce.base.words import counted
from pforce.metrics.distances import few_images
from pforce.metrics.memorisation import distinct
from pforce.metrics.names import COUNTS, MEMORISATION, PIXEL_MEMORISATION, CostName, MetricName, read_names
from pforce.records.status import FAILED, FINISHED, UNDER_WAY
from pforce.results.frames import (
    Row,
    cells,
    distances_in,
    finished,
    finished_by_row,
    row_names,
)

HONEST_IMAGES = 96_000
HONEST_SEEDS = 3
TOO_SHORT = "too short to rank anything"
MADE = {"device": "on", "computed_in": "in", "attention": "attention", "tf32": "TF32", "torch": "torch",
        "commit": "commit", "user": "by"}  # fmt: skip
"""Column of the environment → its word in the note on cells that were not made alike."""
SHORT, COMMIT_DIGITS = 24, 12
"""Most characters of a device or user, and of a commit, in a note."""
MOST_LISTED = 6
"""Most rows or values that a note lists; beyond that it gives their number."""

KINDS = {FINISHED: "finished", FAILED: "failed", "none": "no run", **dict.fromkeys(UNDER_WAY, "running")}
"""Status of a run → kind of its cell; any other status is `stopped`. A failed cell that diverged is `diverged`."""
CURES = {
    "diverged": "--again diverged retries them",
    "failed": "the same command retries them",
    "stopped": "the same command resumes them",
    "running": "not in the means; where nothing runs any more, the same command resumes them",
    "no run": "the same command runs what is missing",
}


def size_note(
    images: Collection[int], generated: Collection[int], nfe: Collection[int], *, seeds: int, longer: str = ""
) -> str:
    """A sentence on the size of a sweep's cells, and whether they are large enough to rank anything.

    Args:
        images: images seen by the cells; `generated` and `nfe` likewise the generated images and function evaluations.
        seeds: number of training seeds.
        longer: option that makes the sweep longer.
    """

    def told(values: Collection[int]) -> str:
        return " or ".join(f"{value:,}" for value in sorted(values))

    text = (
        f"{told(images)} images seen per cell, {counted(seeds, 'seed')}; distances on {told(generated)} "
        f"generated images, {told(nfe)} NFE, averaged weights."
    )
    if min(images) < HONEST_IMAGES or seeds < HONEST_SEEDS:
        text += (
            f" This run is {TOO_SHORT}: a comparison needs at least {HONEST_IMAGES:,} images per cell "
            f"and {HONEST_SEEDS} seeds{f' ({longer})' if longer else ''}."
        )
    return text


def table_notes(frame: pd.DataFrame, rows: Sequence[Row]) -> list[str]:
    """Sentences below a table: on too few images, differences between cells, and missing, failed or running cells.

    Args:
        frame, rows: as for `cell_table`.
    """
    if frame.empty:
        return _states(frame, rows)
    values = finished(frame, rows)
    return [
        *_few_images(values), *_memorised(frame, rows), *_differences(values), *_mixtures(values),
        *_unmeasured(frame, rows, values), *_states(frame, rows),
    ]  # fmt: skip


def _distances(values: pd.DataFrame) -> list[MetricName]:
    names = read_names(values.columns)
    return [names[text] for text in distances_in(values)]


def _few_images(values: pd.DataFrame) -> list[str]:
    smallest: dict[str, float] = {}
    for name in _distances(values):
        counts = {str(name.with_beside("features")), str(name.with_beside("images"))} & set(values.columns)
        smallest |= {count: float(values[count].min()) for count in sorted(counts)}
    return few_images(smallest)


def _memorised(frame: pd.DataFrame, rows: Sequence[Row]) -> list[str]:
    """Notes on cells whose images are distinguishable from held-out ones by their distance to the training images. Per
    row: their number, and the numbers of the cell whose AUC is farthest from 0.5."""
    told: dict[tuple[str, str], list[str]] = {}
    kinds = (*MEMORISATION, *PIXEL_MEMORISATION)
    columns = [text for text, name in read_names(frame.columns).items() if name.kind in kinds]
    of_rows = finished_by_row(frame[["fingerprint", "status", "start_time", *columns]], rows) if columns else []
    for row_name, values in zip(row_names(rows), of_rows, strict=False):
        seeds = values.to_dict("records")
        found = [each for seed in seeds for each in distinct({str(name): value for name, value in seed.items()})]
        for name, says in dict.fromkeys((each.name, each.says) for each in found):
            same = [each for each in found if (each.name, each.says) == (name, says)]
            farthest = max(same, key=lambda each: abs(each.auc - 0.5))
            line = f"{len(same)} of {len(seeds)} of {row_name} ({farthest.numbers})"
            told.setdefault((name, says), []).append(line)
    return [f"{name}: {says}, in {_listed(lines)}" for (name, says), lines in told.items()]


def _differences(values: pd.DataFrame) -> list[str]:
    """Notes on differences between cells that should not differ. NFE count as equal within 2 % or one evaluation."""
    told: dict[tuple[str, str], list[str]] = {}
    for beside, what in zip(COUNTS, ("generated", "reference"), strict=True):
        for name in _distances(values):
            count = str(name.with_beside(beside))
            if count in values and values[count].nunique() > 1:
                told.setdefault((what, _numbers(values[count])), []).append(str(name))
    notes = [
        f"{', '.join(names)}: cells differ in their number of {what} images ({numbers}): their distances do not compare"
        for (what, numbers), names in told.items()
    ]
    for metric, what, share, step in (
        (CostName.NFE, "NFE", 0.02, 1), (CostName.IMAGES_SEEN, "images seen", 0.0, 0)
    ):  # fmt: skip
        if metric in values and values[metric].max() - values[metric].min() > max(step, share * values[metric].max()):
            notes.append(f"cells differ in {what} ({_numbers(values[metric])}): not the same compute")
    return notes


def _mixtures(values: pd.DataFrame) -> list[str]:
    """Notes on what differs between the processes that trained the cells, and on uncommitted changes of their code."""
    told = []
    for column, what in MADE.items():
        known = values[column].dropna().astype(str) if column in values else pd.Series(dtype=str)
        if known.nunique() > 1:
            short = COMMIT_DIGITS if column == "commit" else SHORT
            counts = [f"{str(name)[:short]} ({count})" for name, count in known.value_counts().items()]
            told.append(f"{what} {', '.join(counts[:MOST_LISTED])}")
    notes = [f"cells were not all made alike: {'; '.join(told)}"] if told else []
    changed = int(values["changes"].notna().sum()) if "changes" in values else 0
    if changed:
        notes.append(f"code with uncommitted changes made {changed} of {counted(len(values), 'cell')}")
    return notes


def _unmeasured(frame: pd.DataFrame, rows: Sequence[Row], values: pd.DataFrame) -> list[str]:
    """Notes on finished cells of an earlier version, which a distance's mean leaves out."""
    notes = []
    few_columns = frame[["fingerprint", "status", "start_time", *distances_in(values)]]
    of_rows = list(zip(row_names(rows), finished_by_row(few_columns, rows), strict=True))
    for name in distances_in(values):
        counts = [(row_name, of_row[name].notna()) for row_name, of_row in of_rows]
        few = [f"{has.sum()} of {len(has)} of {row_name}" for row_name, has in counts if not has.all()]
        if few:
            notes.append(f"{name}: not measured in all finished cells, but in {_listed(few)}")
    return notes


def _states(frame: pd.DataFrame, rows: Sequence[Row]) -> list[str]:
    """Notes on cells that are not finished, by their state."""
    known = {run["fingerprint"]: run for run in cells(frame).to_dict("records")}
    told: dict[str, list[str]] = {kind: [] for kind in CURES}
    for name, row in _by_name(rows):
        reasons: dict[str, list[str]] = {}
        for fingerprint in row.fingerprints:
            run = known.get(fingerprint, {"status": "none"})
            kind, given = KINDS.get(run["status"], "stopped"), run.get("reason")
            reason = given if isinstance(given, str) else ""
            if (kind, reason) == ("failed", "diverged"):
                kind = "diverged"
            reasons.setdefault(kind, []).append("" if kind in ("running", "diverged") else reason)
        reasons.pop("finished", None)
        for kind, several in reasons.items():
            why = ", ".join(dict.fromkeys(filter(None, several)))
            count = f"{len(several)} of {len(row.fingerprints)} of {name}"
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
