"""A table of the paper run as a sweep, the paper's numbers beside the measured ones, and verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console

from pforce import catalog, results
from pforce.base.console import DONE
from pforce.base.errors import ConfigError, did_you_mean
from pforce.base.files import write_bytes, write_json
from pforce.data import Manifest, ensure
from pforce.orchestration.looks import LATER, Say, looks_with, plan_notes, require_planned, warn
from pforce.orchestration.options import Options
from pforce.orchestration.outlook import missing_data, print_outlook
from pforce.orchestration.plan import Plan
from pforce.orchestration.reproduction import sweep_name, sweep_of
from pforce.orchestration.script import run_sweep
from pforce.orchestration.sweep import Sweep, Work
from pforce.orchestration.sweep_report import print_mlflow, push_files, sweep_frame
from pforce.records.looks import Look
from pforce.records.parts import Inputs
from pforce.reproduction import Scale, Table, metric_of
from pforce.results import Report, Row, curves
from pforce.results import reproduction_figures as figures
from pforce.results.findings import Agreement, Finding, agreement, claims_of, findings, paper_values, summary
from pforce.results.page import Section, png
from pforce.results.paper import paper_table
from pforce.results.statistics import Claim
from pforce.results.stored import storage_frame
from pforce.results.sweep_run import Summary
from pforce.results.tables import COST_COLUMNS, QUALITY_COLUMNS, Column
from pforce.storage import Storage
from pforce.tracking import Tracker, is_installed
from pforce.trial.reference import inputs_of

FOLDER = "reproduction"
"""Folder below the storage's root for tables, figures and verdicts."""
COSTS = tuple(column for column in COST_COLUMNS if column.header in ("images seen", "NFE", "seconds", "device-hours"))


@dataclass(frozen=True)
class Reproduction:
    """A table of the paper, as far as it is measured."""

    table: Table
    scale: Scale
    sweep: Sweep
    work: Sequence[Work]
    frame: pd.DataFrame
    """Frame of `pforce.results.runs` with all sweeps, as other sweeps may have measured cells."""
    planned_seeds: int | None = None
    """Number of planned seeds that a user states; None for the seeds of the sweep."""
    looks: Sequence[Look] = ()
    """Looks at the findings, the present one among them; without any they count as looked at once, as planned."""

    @cached_property
    def rows(self) -> dict[str, Row]:
        """The rows by name. Rows with the same distribution have the same cells."""
        found: dict[str, list[str]] = {row.name: [] for row in self.sweep.rows}
        for item in self.work:
            for cell in item.cells:
                found[str(cell.values[0][1])].append(item.fingerprint)
        return {name: Row({"row": name}, fingerprints) for name, fingerprints in found.items()}

    @property
    def detector(self) -> str:
        """The detector that the distances were computed with."""
        return self.sweep.base.evaluation.detector_name

    @property
    def metric(self) -> str:
        """The metric by which rows are ordered."""
        return metric_of(self.table.metric, self.detector)

    @cached_property
    def measured(self) -> pd.DataFrame:
        """One table row per row of the paper: means and spread over seeds, the paper's numbers, cost."""
        shown = [Column(each.metric, each.header, each.decimals, True) for each in self.table.shown]
        table = results.cell_table(self.frame, list(self.rows.values()), (*QUALITY_COLUMNS, *shown, *COSTS))
        theirs = self.paper
        if theirs is not None and self.table.paper is not None:
            last = max((i for i, name in enumerate(table.columns) if name.startswith("n")), default=0)
            table.insert(last + 1, self.table.paper.header, theirs)
        return table

    @property
    def paper(self) -> list[float] | None:
        """The paper's number for each row, NaN where it has none; None where the paper has no such table."""
        if self.table.paper is None:
            return None
        known = paper_values(self.table.paper)
        return [known.get(row.paper or "", float("nan")) for row in self.table.rows(self.scale)]

    @cached_property
    def findings(self) -> list[Finding]:
        """The paper's statements with their decisions."""
        return findings(self.frame, self.rows, self.table.statements(self.scale), self.detector, self.looks)

    @cached_property
    def claims(self) -> list[Claim]:
        """The paper's statements as claims on the finished cells."""
        return claims_of(self.frame, self.rows, self.table.statements(self.scale), self.detector)

    def looked_at(self, storage: Storage, say: Say = warn, *, shown: bool = True) -> Reproduction:
        """The table with all looks at its findings, as a storage knows them.

        Args:
            say: function that reports what is wrong with a look's file.
            shown: whether the findings are about to be shown to a reader, so that this look is recorded.
        """
        planned = max(self.planned_seeds or 0, len(self.sweep.seeds))
        looks = looks_with(storage, self.sweep.name, self.claims, planned, say, shown=shown)
        return replace(self, looks=looks)

    @cached_property
    def agreement(self) -> Agreement | None:
        """Agreement of the measured order with the paper's."""
        header = next((name for name in (self.metric, *self.measured.columns) if name in self.measured), None)
        if self.paper is None or header != self.metric:
            return None
        return agreement(self.measured[self.metric].tolist(), self.paper)

    @property
    def lines(self) -> list[str]:
        """Conclusions from the table, in sentences; the first gives how many statements hold."""
        order = [self.agreement.sentence] if self.agreement else []
        return [summary(self.findings), *order, *(finding.sentence for finding in self.findings)]

    @property
    def notes(self) -> list[str]:
        """Notes for readers of the numbers."""
        return [*plan_notes(self.claims, self.looks), *self.table_notes]

    @property
    def table_notes(self) -> list[str]:
        """Notes on the numbers alone, without those on its plan."""
        notes = results.table_notes(self.frame, list(self.rows.values()))
        if self.table.figure == "curves":  # its rows differ in NFE on purpose
            notes = [note for note in notes if not note.startswith("cells differ in NFE")]
        return notes

    @property
    def report(self) -> Report:
        """The table with notes and conclusions."""
        title = f"{self.table.title} · {self.scale.name}"
        return Report(self.measured, title, self.notes, self.lines, self.table.question)

    def figure(self) -> Figure | None:
        """The figure in the paper's layout; None where nothing is measured yet."""
        if not self.measured["n"].any():
            return None
        frame, row = self.frame, next(iter(self.rows.values()))
        drawn: Figure | None = None
        match self.table.figure:
            case "difficulty":
                drawn = figures.difficulty_seeds_figure(curves.difficulty_curve(frame, row), paper_table("difficulty"))
            case "context_helps":
                drawn = figures.context_seeds_figure(curves.context_curve(frame, row), paper_table("context_helps"))
            case "context_uncertainty":
                drawn = figures.log_sigma_figure(curves.log_sigma_quantiles(frame, row))
            case "curves":
                drawn = figures.nfe_figure(curves.nfe_curves(frame, self.rows, self.metric), self.metric)
            case "bars" if self.metric in self.measured:
                paper = self.table.paper.header if self.table.paper else None
                drawn = figures.bars_figure(self.measured, self.metric, paper)
        return drawn

    def summary(
        self, commands: Sequence[str] = (), facts: Sequence[tuple[str, str]] = (), *, final: bool = True
    ) -> Summary:  # fmt: skip
        """The table with findings and figure, for a page.

        Args:
            commands: commands that ran its sweep.
            facts: (name, value) of cost and environment.
            final: whether findings are shown, which is a look at them.
        """
        table, scale, drawn = self.table, self.scale, self.figure()
        again = f"pforce reproduce {table.name} --scale {scale.name}"
        section = Section(
            title=table.title,
            about=f"{table.question} Scale {scale.name}: {scale.about}.",
            report=Report(self.measured, "", self.notes if final else self.table_notes),
            summary=self.lines[: 1 if self.agreement is None else 2] if final else [LATER],
            findings=[
                (f.statement.text, f.word,
                 f.sentence.removeprefix(f"{f.statement.text}: ").removeprefix(f.word).strip())
                for f in (self.findings if final else ())
            ],
            figures=[(png(drawn), f"{table.title}, {scale.name}")] if drawn is not None else [],
            facts=facts,
            commands=list(dict.fromkeys([again, *commands])),
        )  # fmt: skip
        return Summary(section, self.frame, list(self.rows.items()))

    def record(self) -> dict[str, Any]:
        """Verdicts as plain data."""
        return {
            "table": self.table.name,
            "scale": self.scale.name,
            "question": self.table.question,
            "summary": summary(self.findings),
            "plan": plan_notes(self.claims, self.looks),
            "agreement": self.agreement._asdict() if self.agreement else None,
            "findings": [
                {
                    "statement": f.statement.text, "verdict": f.word, "sentence": f.sentence,
                    "difference": f.verdict.difference._asdict(), "p": f.verdict.p, "p_holm": f.verdict.p_holm,
                    "more_seeds": f.more_seeds,
                }
                for f in self.findings
            ],
        }  # fmt: skip


def inputs_for(sweep: Sweep) -> Inputs:
    """Inputs of a table's cells, by content; the data are built where possible."""
    evaluation = sweep.base.evaluation
    manifest = Manifest.load(ensure(sweep.base.data, progress=False))
    return inputs_of(evaluation, manifest, evaluation.load_detector())


def read(
    table: Table, scale: Scale, storage: Storage, *, seeds: Sequence[int] | None = None,
    inputs: Inputs | None = None, planned_seeds: int | None = None, say: Say = warn,
) -> Reproduction:  # fmt: skip
    """Read a table as far as a storage has it. Runs nothing, and records no look.

    Args:
        seeds: training seeds; by default the scale's, and all others for which every row is finished.
        inputs: hashes of data and detector; by default those of the data here.
        planned_seeds: number of planned seeds, at least as many as the table has; by default so many.
        say: function that reports what is wrong with a look's file.
    """
    frame = storage_frame(storage)
    inputs = inputs or inputs_for(sweep_of(table, scale))
    chosen = list(seeds) if seeds else whole_seeds(table, scale, frame, inputs)
    sweep = sweep_of(table, scale, chosen)
    found = Reproduction(table, scale, sweep, sweep.work(inputs), frame, planned_seeds)
    return found.looked_at(storage, say, shown=False)


def known_tables() -> dict[str, tuple[Table, Scale]]:
    """Tables of the paper at all scales, by the names of their sweeps: `timestep_schedules-cpu`."""
    return {
        sweep_name(table, scale): (table, scale)
        for table in catalog.tables().values()
        for scale in catalog.scales().values()
    }


def read_sweep(name: str, storage: Storage) -> Reproduction:
    """Read a table by its sweep's name. ConfigError, with the nearest name, for an unknown one."""
    known = known_tables()
    if name not in known:
        raise ConfigError(f"{name}: no table at a scale (TABLE-SCALE); {did_you_mean(name, known)}")
    return read(*known[name], storage)


def whole_seeds(table: Table, scale: Scale, frame: pd.DataFrame, inputs: Inputs) -> list[int]:
    """The scale's seeds, and all others for which every row of the table is finished."""
    done = set(frame.loc[frame["status"] == "FINISHED", "fingerprint"]) if len(frame) else set()
    others = sorted(set(frame["seed"].dropna().astype(int)) - set(scale.seeds)) if "seed" in frame else []
    if not others:
        return list(scale.seeds)
    sweep = sweep_of(table, scale, others)
    missing = [item for item in sweep.work(inputs) if item.fingerprint not in done]
    lacking = {cell.experiment.seed for item in missing for cell in item.cells}
    return sorted({*scale.seeds, *(seed for seed in others if seed not in lacking)})


def reproduce(
    table: Table, scale: Scale, options: Options, console: Console, *, seeds: Sequence[int] | None = None,
    dry_run: bool = False, tflops: float, gpus: int, planned_seeds: int | None = None,
) -> int:  # fmt: skip
    """Run the missing cells of a table, print it beside the paper's numbers, and write its files. Returns the exit
    code."""
    sweep = sweep_of(table, scale, seeds)
    require_planned(planned_seeds, len(sweep.seeds))
    console.print(table.title, style="bold")
    console.print(f"{table.question}\n{scale.name}: {scale.about}")
    if dry_run:
        print_outlook(sweep, console, tflops=tflops, gpus=gpus)
        missing = missing_data(sweep)
        if missing is not None:
            console.print(
                f"The data are not here, so nothing could be run: {missing}",
                soft_wrap=True,
            )  # fmt: skip
            return DONE
    return run_sweep(
        sweep,
        options,
        dry_run=dry_run,
        report=partial(report, table=table, scale=scale, planned_seeds=planned_seeds),
        summarize=partial(summarize, table=table, scale=scale, planned_seeds=planned_seeds),
    )


def _found(
    planned: Plan, frame: pd.DataFrame, table: Table, scale: Scale, planned_seeds: int | None
) -> Reproduction:  # fmt: skip
    """A planned table as far as it is measured."""
    return Reproduction(table, scale, planned.sweep, planned.work, frame, planned_seeds)


def summarize(
    planned: Plan, frame: pd.DataFrame, final: bool, *, table: Table, scale: Scale, planned_seeds: int | None = None
) -> Summary:
    """What a table's sweep has come to, for MLflow.

    Args:
        final: whether findings are shown, which is a look at them.
    """
    found = _found(planned, frame, table, scale, planned_seeds)
    if not final:
        return found.summary(final=False)
    return found.looked_at(planned.options.place, planned.ledger.say).summary()


def report(
    planned: Plan, console: Console, *, table: Table, scale: Scale, planned_seeds: int | None = None
) -> None:  # fmt: skip
    """Print the table and its verdicts, and write them and the figure to files."""
    found = _found(planned, sweep_frame(planned), table, scale, planned_seeds)
    _tell(found.looked_at(planned.options.place, planned.ledger.say), planned.options, console, planned.tracker)


def show(
    table: Table, scale: Scale, options: Options, console: Console, *, seeds: Sequence[int] | None = None,
    planned_seeds: int | None = None,
) -> int:  # fmt: skip
    """Report a table from the storage as it is, for example after an import of records. Runs nothing."""

    def say(line: str) -> None:
        console.print(f"warning: {line}", soft_wrap=True)

    require_planned(planned_seeds)
    found = read(table, scale, options.place, seeds=seeds, planned_seeds=planned_seeds, say=say)
    done, wanted = int(found.measured["n"].sum()), len(found.sweep.seeds) * len(found.rows)
    console.print(f"{sweep_name(table, scale)}: {done} of {wanted} cells are measured")
    if done:
        _tell(found.looked_at(options.place, say), options, console)
    return DONE


def _tell(found: Reproduction, options: Options, console: Console, tracker: Tracker | None = None) -> None:
    found.report.print(console)
    written = write_files(found, options.root / FOLDER)
    push_files(options.place, [f"{FOLDER}/{path.name}" for path in written], console)
    endings = ",".join(path.suffix[1:] for path in written)
    stem = options.root / FOLDER / sweep_name(found.table, found.scale)
    console.print(f"Table, verdicts, figure: {stem}.{{{endings}}}", soft_wrap=True)
    if is_installed():
        identity = found.sweep.identity(list(found.work))
        print_mlflow(options.uri, console, tracker=tracker, storage=options.place, name=found.sweep.name,
                     identity=identity)  # fmt: skip


def write_files(found: Reproduction, folder: Path) -> list[Path]:
    """Write table, verdicts and figure of a reproduction into a folder; returns the files."""
    stem = sweep_name(found.table, found.scale)
    written = found.report.write(folder / stem)
    written.append(folder / f"{stem}.json")
    write_json(written[-1], found.record())
    figure = found.figure()
    if figure is not None:
        written.append(folder / f"{stem}.png")
        write_bytes(written[-1], png(figure))
    return written
