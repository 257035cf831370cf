"""Sections of a report on sweeps: tables of the paper with their findings, other sweeps with their own tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from pforce import catalog, results
from pforce.base.console import duration
from pforce.base.errors import ConfigError, did_you_mean
from pforce.base.files import read_whole
from pforce.base.words import counted
from pforce.config import flat_params
from pforce.orchestration.looks import looks_with, plan_notes
from pforce.orchestration.plan import provenance
from pforce.orchestration.reproduce import Reproduction, known_tables, read
from pforce.records.ledger import Ledger
from pforce.records.sweeps import CellEntry, read_sweeps
from pforce.results import Report, Row
from pforce.results.costs import run_costs
from pforce.results.page import Section, png
from pforce.results.reproduction_figures import bars_figure
from pforce.results.shown import MAPS_PICTURE, pictures_of
from pforce.results.stored import storage_frame
from pforce.storage import Storage

MOST_PICTURES = 12
NOT_AXES = ("seed", "name")


class Source:
    """A storage, read once for all sections."""

    def __init__(self, storage: Storage, say: Callable[[str], None]) -> None:
        self.storage, self.ledger, self.say = storage, Ledger(storage, say), say
        self.sweeps = list(read_sweeps(storage, say))
        self.cells: dict[str, CellEntry] = {cell.cell: cell for entry in self.sweeps for cell in entry.cells}
        self.frame = storage_frame(storage, ledger=self.ledger, say=say)

    def seeds(self, name: str) -> int:
        """Number of seeds that a sweep's commands asked for."""
        return len({cell.seed for entry in self.sweeps if entry.name == name for cell in entry.cells})

    def commands(self, name: str) -> list[str]:
        """Commands that ran a sweep, each once."""
        return list(dict.fromkeys(entry.command for entry in self.sweeps if entry.name == name and entry.command))


def section_of(name: str, source: Source) -> Section:
    """A sweep's section of the report. ConfigError where the storage has no finished cell of it."""
    commands = source.commands(name)
    if name in known_tables():
        table, scale = known_tables()[name]
        found = read(table, scale, source.storage, say=source.say)
        if not found.measured["n"].any():
            raise ConfigError(
                f"{name}: nothing of it is measured; run `pforce reproduce {table.name} --scale {scale.name}`"
            )
        return _of_table(found.looked_at(source.storage, source.say), source, commands)
    frame = source.frame
    if frame.empty or name not in set(frame["sweep"]):
        names = sorted(set(frame["sweep"])) if len(frame) else []
        raise ConfigError(f"{name}: no such sweep in {source.storage}; {did_you_mean(name, names, 'it has')}")
    return _of_sweep(name, frame, source, commands)


def _of_table(found: Reproduction, source: Source, commands: list[str]) -> Section:
    table, scale = found.table, found.scale
    figure = found.figure()
    rows = list(found.rows.values())
    order = [found.agreement.sentence] if found.agreement else []
    again = f"pforce reproduce {table.name} --scale {scale.name}"
    return Section(
        title=table.title,
        about=f"{table.question} Scale {scale.name}: {scale.about}.",
        report=Report(found.measured, "", found.notes),
        summary=[found.lines[0], *order],
        findings=[
            (f.statement.text, f.word, f.sentence.removeprefix(f"{f.statement.text}: ").removeprefix(f.word).strip())
            for f in found.findings
        ],
        figures=[(png(figure), f"{table.title}, {scale.name}")] if figure is not None else [],
        pictures=_pictures(found.frame, list(found.rows.items()), source),
        facts=_facts(results.finished(found.frame, rows)),
        commands=list(dict.fromkeys([again, *commands])),
    )


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


def _of_sweep(name: str, frame: pd.DataFrame, source: Source, commands: list[str]) -> Section:
    own = frame[frame["sweep"] == name]
    rows = rows_of(own)
    table = results.cell_table(own, rows)
    metric = results.primary_metric(own, rows)
    names = results.row_names(rows)
    claims = [] if metric is None or len(rows) == 1 else results.row_claims(own, rows, metric)
    looks = looks_with(source.storage, name, claims, max(1, source.seeds(name)), source.say, shown=True)
    drawn = []
    if metric is not None and metric in table:
        shown = table.assign(row=names)
        drawn.append((png(bars_figure(shown, metric)), f"{metric}, bars of one standard deviation over seeds"))
    return Section(
        title=name,
        about=f"{counted(len(results.finished(own, rows)), 'finished cell')}.",
        report=Report(
            table, "", [*plan_notes(claims, looks), *results.table_notes(own, rows)], results.sentences(claims, looks)
        ),
        figures=drawn,
        pictures=_pictures(own, list(zip(names, rows, strict=True)), source),
        facts=_facts(results.finished(own, rows)),
        commands=commands,
    )


def _pictures(frame: pd.DataFrame, rows: Sequence[tuple[str, Row]], source: Source) -> list[tuple[bytes, str]]:
    """Samples of the first seed of each row that has any, and the uncertainty maps of the last one."""
    pictures: list[tuple[bytes, str]] = []
    maps: tuple[bytes, str] | None = None
    for name, row in rows:
        for cell in results.finished(frame, row).sort_values("seed").to_dict("records"):
            entry = source.cells.get(cell["fingerprint"])
            found = pictures_of(source.storage, source.ledger, entry) if entry else []
            samples = [path for path in found if path.name != MAPS_PICTURE]
            if not samples:
                continue
            if len(pictures) < MOST_PICTURES:
                pictures.append((read_whole(samples[0]), f"{name}, seed {int(cell['seed'])}: the first 64 images"))
            of_maps = [path for path in found if path.name == MAPS_PICTURE]
            maps = (read_whole(of_maps[0]), f"{name}: held-out images and predicted σ") if of_maps else maps
            break
    return [*pictures, *([maps] if maps else [])]


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
