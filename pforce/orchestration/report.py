"""What a report says of sweeps: tables of the paper with their findings, any other sweep with its own table."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from experiments.paper import SCALES
from pforce import results
from pforce.orchestration.plan import provenance
from pforce.orchestration.reproduce import Reproduction, known_tables, read
from pforce.orchestration.sweep import flat_params
from pforce.results import Row
from pforce.results.costs import run_costs
from pforce.results.page import Section, png
from pforce.results.reproduction_figures import bars_figure
from pforce.terminal import duration
from pforce.tracking import Tracker, runs_frame, sweeps_frame
from pforce.trial import SAMPLES
from pforce.validation import ConfigError, did_you_mean

MAPS_PICTURE = "uncertainty_maps.png"
MOST_PICTURES = 12
NOT_AXES = ("seed", "name")


def section_of(name: str, tracker: Tracker) -> Section:
    """A sweep's part of the report. ConfigError where the store has no finished trial of it."""
    command = _commands(tracker, name)
    if name in known_tables():
        table, scale = known_tables()[name]
        found = read(table, scale, tracker.uri)
        if not found.measured["n"].any():
            raise ConfigError(
                f"{name}: nothing of it is measured; run `pforce reproduce {table.name} --scale {scale.name}`"
            )
        return _of_table(found, tracker, command)
    frame = runs_frame(tracker)
    if frame.empty or name not in set(frame["sweep"]):
        names = sorted(set(frame["sweep"])) if len(frame) else []
        raise ConfigError(f"{name}: no such sweep in {tracker.shown}; {did_you_mean(name, names, 'it has')}")
    return _of_sweep(name, frame, tracker, command)


def _commands(tracker: Tracker, name: str) -> list[str]:
    sweeps = sweeps_frame(tracker, name)
    told = [] if sweeps.empty else [text for text in sweeps["command"] if isinstance(text, str) and text]
    return list(dict.fromkeys(told))


def _of_table(found: Reproduction, tracker: Tracker, commands: list[str]) -> Section:
    table, scale = found.table, found.scale
    figure = found.figure()
    rows = list(found.rows.values())
    order = [found.agreement.sentence] if found.agreement else []
    again = f"pforce reproduce {table.name} --scale {scale.name}"
    return Section(
        title=table.title,
        about=f"{table.question} Scale {scale.name}: {scale.about}.",
        table=results.to_html(found.measured, "", found.notes),
        summary=[found.lines[0], *order],
        findings=[
            (f.statement.text, f.word, f.sentence.removeprefix(f"{f.statement.text}: ").removeprefix(f.word).strip())
            for f in found.findings
        ],
        figures=[(png(figure), f"{table.title}, {scale.name}")] if figure is not None else [],
        pictures=_pictures(found.frame, list(found.rows.items()), tracker),
        facts=_facts(results.finished(found.frame, rows)),
        commands=list(dict.fromkeys([again, *commands])),
    )


def rows_of(frame: pd.DataFrame) -> list[Row]:
    """The rows of a sweep that is known by its runs only: the parameters that differ between them, seeds together."""
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
    """Columns that are parameters of an experiment, in its own order."""
    some = SCALES["smoke"].base()
    known = list(flat_params(some))
    own = [name for name in frame.columns if name.startswith("timesteps.") and name not in known]
    return [name for name in (*known, *own) if name in frame and name not in NOT_AXES]


def _of_sweep(name: str, frame: pd.DataFrame, tracker: Tracker, commands: list[str]) -> Section:
    own = frame[frame["sweep"] == name]
    rows = rows_of(own)
    table = results.cell_table(own, rows)
    metric = results.primary_metric(own, rows)
    names = results.row_names(rows)
    claims = [] if metric is None or len(rows) == 1 else results.sentences(results.row_claims(own, rows, metric))
    drawn = []
    if metric is not None and metric in table:
        shown = table.assign(row=names)
        drawn.append((png(bars_figure(shown, metric)), f"{metric}, bars of one standard deviation over seeds"))
    return Section(
        title=name,
        about=f"{len(own)} runs, {int((own['status'] == 'FINISHED').sum())} finished.",
        table=results.to_html(table, "", results.table_notes(own, rows), claims),
        figures=drawn,
        pictures=_pictures(own, list(zip(names, rows, strict=True)), tracker),
        facts=_facts(results.finished(own, rows)),
        commands=commands,
    )


def _pictures(frame: pd.DataFrame, rows: Sequence[tuple[str, Row]], tracker: Tracker) -> list[tuple[bytes, str]]:
    """Samples of the first seed of each row that has any, and the uncertainty maps of the last one."""
    pictures: list[tuple[bytes, str]] = []
    maps: tuple[bytes, str] | None = None
    for name, row in rows:
        for run in results.finished(frame, row).sort_values("seed").to_dict("records"):
            data = tracker.read_artifact(run["run_id"], SAMPLES)
            if data is None:
                continue
            if len(pictures) < MOST_PICTURES:
                pictures.append((data, f"{name}, seed {int(run['seed'])}: the first 64 images"))
            of_run = tracker.read_artifact(run["run_id"], MAPS_PICTURE)
            maps = (of_run, f"{name}: held-out images and predicted σ") if of_run else maps
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
