"""Sections of a report on sweeps: tables of the paper with their findings, other sweeps with their own tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pandas as pd

from pforce import catalog, results
from pforce.base.console import duration
from pforce.base.errors import ConfigError, did_you_mean
from pforce.base.words import counted
from pforce.config import flat_params
from pforce.metrics.names import CostName
from pforce.orchestration.looks import LATER, looks_with, plan_notes
from pforce.orchestration.plan import provenance
from pforce.orchestration.reproduce import known_tables, read
from pforce.orchestration.sweep_report import growth_figures
from pforce.records.ledger import Ledger
from pforce.records.sweeps import IMAGES, CellEntry, SweepEntry, read_sweeps
from pforce.results import Report, Row
from pforce.results.costs import run_costs
from pforce.results.figures import MOST_LABELLED, cell_figure
from pforce.results.page import Section, png
from pforce.results.reproduction_figures import bars_figure
from pforce.results.stored import storage_frame
from pforce.results.sweep_run import Summary, first_pictures
from pforce.storage import Storage

NOT_AXES = ("seed", "name")


class Source:
    """A storage, read once for all sections.

    Args:
        sweep: name of the only sweep that is read; by default all are.
    """

    def __init__(
        self, storage: Storage, say: Callable[[str], None], *, sweep: str | None = None, ledger: Ledger | None = None
    ) -> None:
        self.storage, self.ledger, self.say = storage, ledger or Ledger(storage, say), say
        self.sweeps = list(read_sweeps(storage, say, sweep))
        self.cells: dict[str, CellEntry] = {cell.cell: cell for entry in self.sweeps for cell in entry.cells}
        self.frame = storage_frame(storage, sweep, ledger=self.ledger, say=say)

    def seeds(self, name: str) -> int:
        """Number of seeds that a sweep's commands asked for."""
        return len({cell.seed for entry in self.sweeps if entry.name == name for cell in entry.cells})

    def commands(self, name: str) -> list[str]:
        """Commands that ran a sweep, each once."""
        return list(dict.fromkeys(entry.command for entry in self.sweeps if entry.name == name and entry.command))


def section_of(name: str, source: Source) -> Section:
    """A sweep's section of the report, with pictures. ConfigError where the storage has no finished cell of it."""
    found = summary_of(name, source)
    pictures, maps = first_pictures(found, source.cells, source.ledger)
    return replace(found.section, pictures=[*pictures, *([maps] if maps else [])])


def summary_of(name: str, source: Source, *, final: bool = True) -> Summary:
    """What a sweep has come to. ConfigError where the storage has no finished cell of it.

    Args:
        final: whether claims are made, which is a look at them.
    """
    commands = source.commands(name)
    if name in known_tables():
        table, scale = known_tables()[name]
        found = read(table, scale, source.storage, say=source.say)
        if not found.measured["n"].any():
            raise ConfigError(
                f"{name}: nothing of it is measured; run `pforce reproduce {table.name} --scale {scale.name}`"
            )
        facts = _facts(results.finished(found.frame, list(found.rows.values())))
        looked = found.looked_at(source.storage, source.say) if final else found
        return looked.summary(commands, facts, final=final)
    frame = source.frame
    if frame.empty or name not in set(frame["sweep"]):
        names = sorted(set(frame["sweep"])) if len(frame) else []
        raise ConfigError(f"{name}: no such sweep in {source.storage}; {did_you_mean(name, names, 'it has')}")
    return _of_sweep(name, frame, source, commands, final=final)


def entry_rows(entries: Sequence[SweepEntry]) -> list[Row]:
    """Rows of a sweep by the values of its axes as its files have them, with seeds together; empty where they have
    none."""
    rows: dict[tuple[tuple[str, ...], ...], Row] = {}
    of_rungs = any(cell.values and cell.values[-1][0] == IMAGES for entry in entries for cell in entry.cells)
    for cell in (cell for entry in entries for cell in entry.cells):
        if not cell.values:
            return []
        pairs = [(header, value) for header, value in cell.values]
        if of_rungs and pairs[-1][0] != IMAGES:
            pairs.append((IMAGES, str(cell.images_seen)))
        key = tuple(pairs)
        row = rows.setdefault(key, Row(dict(key), []))
        if cell.cell not in row.fingerprints:
            rows[key] = Row(row.labels, [*row.fingerprints, cell.cell])
    headers = {tuple(row.labels) for row in rows.values()}
    return list(rows.values()) if len(headers) == 1 else []


def rows_of(frame: pd.DataFrame) -> list[Row]:
    """Rows of a sweep that is known by its runs only: by the parameters that differ between them, with seeds
    together."""
    cells = results.cells(frame)
    varying = [name for name in _parameters(cells) if cells[name].astype(str).nunique() > 1]
    short = [name.rsplit(".", 1)[-1] for name in varying]
    headers = [last if short.count(last) == 1 else name for name, last in zip(varying, short, strict=True)]
    if not varying:
        return [Row({"sweep": str(frame["sweep"].iloc[0])}, list(cells["fingerprint"]))]
    rows = []
    for values, group in cells.groupby([cells[name].astype(str) for name in varying], sort=False):
        rows.append(Row(dict(zip(headers, map(str, values), strict=True)), list(group["fingerprint"])))
    return rows


def _parameters(frame: pd.DataFrame) -> list[str]:
    """Columns that are parameters of an experiment, in the experiment's order."""
    some = catalog.scales()["smoke"].base()
    known = list(flat_params(some))
    own = [name for name in frame.columns if name.startswith("timesteps.") and name not in known]
    return [name for name in (*known, *own) if name in frame and name not in NOT_AXES]


def _of_sweep(
    name: str, frame: pd.DataFrame, source: Source, commands: list[str], *, final: bool
) -> Summary:  # fmt: skip
    own = frame[frame["sweep"] == name]
    rows = entry_rows([entry for entry in source.sweeps if entry.name == name]) or rows_of(own)
    table = results.cell_table(own, rows)
    metric = results.primary_metric(own, rows)
    names = results.row_names(rows)
    claims = [] if metric is None or len(rows) == 1 or not final else results.row_claims(own, rows, metric)
    looks = looks_with(source.storage, name, claims, max(1, source.seeds(name)), source.say, shown=final)
    drawn = []
    if metric is not None and metric in table:
        figure = cell_figure(table, list(rows[0].labels))
        if len(rows) <= MOST_LABELLED or figure is None:
            figure = bars_figure(table.assign(row=names), metric)
        drawn.append((png(figure), f"{metric}, bars of one standard deviation over seeds"))
    drawn += growth_figures(own, rows)
    plan = plan_notes(claims, looks) if final else [LATER]
    notes = [*_size(results.finished(own, rows)), *plan, *results.table_notes(own, rows)]
    section = Section(
        title=name,
        about=f"{counted(len(results.finished(own, rows)), 'finished cell')}.",
        report=Report(table, "", notes, results.sentences(claims, looks)),
        figures=drawn,
        facts=_facts(results.finished(own, rows)),
        commands=commands,
    )
    return Summary(section, own, list(zip(names, rows, strict=True)))


def _size(values: pd.DataFrame) -> list[str]:
    """A note on the size of finished cells that were trained; none for a search of samplers."""
    columns = (CostName.IMAGES_SEEN, "evaluation.images", CostName.NFE, "seed")
    if values.empty or any(name not in values or values[name].isna().any() for name in columns):
        return []
    images, generated, nfe, seeds = (set(values[name].astype(int)) for name in columns)
    return [results.size_note(images, generated, nfe, seeds=len(seeds))]


def _facts(values: pd.DataFrame) -> list[tuple[str, str]]:
    """Cost and environment of finished runs."""
    if values.empty:
        return []
    costs = run_costs(values)
    facts = [("trials", f"{len(values)}, {values['training'].nunique()} trainings")]
    for kind, of_kind in costs.groupby("kind"):
        unit = {"gpu": "GPU-hours", "cpu": "core-hours"}.get(str(kind), "device-hours")
        facts.append((unit, f"{of_kind['device_hours'].sum():.2f}"))
    seconds = float(costs["seconds"].sum())
    facts.append(("time of all trials, one after the other", duration(seconds)))
    for label, column in (
        ("device", "device"), ("computed in", "computed_in"), ("torch", "torch"), ("commit of the trials", "commit")
    ):  # fmt: skip
        if column in values:
            counts = values[column].dropna().astype(str).value_counts()
            told = [f"{name} ({count})" if len(counts) > 1 else str(name) for name, count in counts.items()]
            facts += [(label, ", ".join(told))] if told else []
    here = provenance()
    facts.append(("report made with", f"pforce {here['version.pforce']}, commit "
                  f"{here.get('mlflow.source.git.commit', 'unknown')[:12]}"))  # fmt: skip
    return facts
