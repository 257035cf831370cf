"""`pforce evaluate`: distances of images or of a model's images, and the value of a model's difficulty head."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch
from rich.console import Console

from pforce.base.console import DONE, SOME_FAILED, STOPPED, make_console, stop_on_signals
from pforce.base.errors import require
from pforce.commands.evaluation_plan import Arguments, is_model, plan_images, plan_model
from pforce.metrics.distances import few_images, memorised, metric_name, thresholds
from pforce.metrics.names import (
    BOUNDS,
    CALIBRATION,
    COSTS,
    COUNTS,
    DIFFICULTY,
    PER_CLASS,
    VALIDATION_LOSS,
    MetricName,
    read_names,
)
from pforce.metrics.reference import save_statistics
from pforce.orchestration.drive import WorkFailed
from pforce.orchestration.evaluation import RESULT, Evaluation, Outcome, forget, known, run, show
from pforce.orchestration.options import check_folder
from pforce.orchestration.sweep_report import print_mlflow
from pforce.records.ledger import Ledger
from pforce.results import Report
from pforce.results.tables import OVER_IMAGES
from pforce.storage import Storage
from pforce.trial.drawn_images import beyond_kept

SHOWN_TIMESTEPS = (0.2, 0.6)


def _is_shown(name: MetricName) -> bool:
    """Whether a metric has its own row in the table."""
    if name.beside is not None or name.kind in (*COSTS, *PER_CLASS) or name.decile is not None:
        return False
    if name.kind == VALIDATION_LOSS:
        return name.t is None
    return name.kind not in (*DIFFICULTY, *CALIBRATION) or name.t in SHOWN_TIMESTEPS


def results_table(metrics: Mapping[str, float]) -> pd.DataFrame:
    """Table of distances, loss, and R(t) at the two timesteps of `SHOWN_TIMESTEPS`, with intervals over images."""
    names = read_names(metrics)
    beside = {(name.value, name.beside): metrics[text] for text, name in names.items()}
    rows = []
    for text, value in metrics.items():
        name = names.get(text)
        if name is not None and not _is_shown(name):
            continue
        low, high, *counts = (beside.get((name, each)) if name else None for each in (*BOUNDS, *COUNTS))
        rows.append((text, value, low, high, *counts))
    columns = ["metric", "value", *(f"value{end}" for end in OVER_IMAGES), "images", "reference images"]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[1:], float))


def report_of(a: Arguments, e: Evaluation, outcome: Outcome) -> Report:
    """Report of an evaluation: its table and notes."""
    metrics = outcome.metrics
    notes = [*outcome.notes, *few_images(metrics), *thresholds(metrics), *memorised(metrics)]
    if e.detector.name != "inception" and metric_name("fd", e.detector.name) in outcome.metrics:
        notes.append(f"distances in features of {e.detector.name} are not FID")
    return Report(results_table(outcome.metrics), f"Evaluation of {a.target}", notes, question=_about(a, e))


def _about(a: Arguments, e: Evaluation) -> str:
    """One line that describes what is measured, and with what."""
    parts = [f"{a.target}: {len(e.images):,} images" if e.images is not None else ""]
    if e.source is not None:
        parts = [f"{e.source.path} ({e.source.weights} weights)"]
    if e.model is not None and e.model.request.images:
        sampler = e.model.sampler
        guidance = f", guidance {sampler.guidance.scale:g}" if sampler.guidance.scale != 1 else ""
        nfe = sampler.schedule().num_function_evaluations
        parts.append(f"{e.model.request.images:,} images, {sampler.name}, {nfe} NFE{guidance}")
    return "; ".join([*parts, f"detector {e.detector.name}, reference {a.reference}"])


def evaluate(a: Arguments) -> int:
    """Measure a model, a folder of images or an npz file, and record the results."""
    console = make_console()
    a.check()
    storage = a.place
    if a.save_reference is not None:
        require(a.save_reference.suffix == ".npz", "save_reference", a.save_reference, "a file that ends in .npz")
        check_folder(a.save_reference.parent, "--save-reference")
    try:
        with stop_on_signals():
            return _evaluate(a, storage, console)
    except (KeyboardInterrupt, SystemExit) as stopped:
        kept = "; the same command resumes with the missing images" if is_model(a.target) else ""
        console.print(f"Stopped by {stopped}{kept}.")
        return STOPPED
    except WorkFailed as error:
        console.print(f"FAILED: {error}", soft_wrap=True)
        return SOME_FAILED


def _evaluate(a: Arguments, storage: Storage, console: Console) -> int:
    e = plan_model(a, console) if is_model(a.target) else plan_images(a, console)
    relative = f"evaluations/{e.identity}"
    folder = check_folder(a.out or storage.root / relative, "--out" if a.out else "--storage")
    tracker = a.tracker
    console.print(_about(a, e), soft_wrap=True)
    beyond = beyond_kept(e.model.request.images, e.detector) if e.model else None
    if beyond:
        console.print(f"note: {beyond}", soft_wrap=True)
    ledger = Ledger(storage, lambda line: console.print(f"warning: {line}", soft_wrap=True))
    if a.again:
        forget(e, ledger, "measured again (--again)")
    elif known(e, ledger):
        console.print(f"measured before (evaluation {e.identity[:12]}); --again measures it again")
    outcome = run(e, ledger, folder, console, a.workforce)
    report = report_of(a, e, outcome)
    written = report.write(folder / "evaluation")
    if a.out is None:
        storage.push(relative, last=RESULT)
    show(tracker, e, outcome, ledger, lambda line: console.print(line, soft_wrap=True))
    if a.save_reference is not None:
        on = e.detector.to(torch.device("cpu"))
        save_statistics(a.save_reference, e.reference.statistics(on, None, device=torch.device("cpu")))
        console.print(f"{a.save_reference}: statistics of the reference", soft_wrap=True)
    report.print(console)
    names = ", ".join(path.name for path in (*written, *outcome.files))
    console.print(f"{folder}: {names}", soft_wrap=True)
    print_mlflow(tracker.uri, console)
    return DONE
