"""Results: tidy frames, statistics over seeds, tables and figures, and the paper's own numbers."""

from pforce.results.formats import legend, to_csv, to_latex, to_markdown, to_terminal
from pforce.results.frames import (
    Row,
    by_what_is_known,
    calibration_curves,
    cells,
    detectors,
    finished,
    primary_metric,
    row_names,
    runs,
    smaller_is_better,
    with_states,
)
from pforce.results.notes import size_note, table_notes
from pforce.results.page import to_html
from pforce.results.paper import paper_table
from pforce.results.report import Report
from pforce.results.statistics import Claim, Verdict, judge, row_claims, sentences
from pforce.results.tables import cell_table

__all__ = [
    "Claim",
    "Report",
    "Row",
    "Verdict",
    "by_what_is_known",
    "calibration_curves",
    "cell_table",
    "cells",
    "detectors",
    "finished",
    "judge",
    "legend",
    "paper_table",
    "primary_metric",
    "row_claims",
    "row_names",
    "runs",
    "sentences",
    "size_note",
    "smaller_is_better",
    "table_notes",
    "to_csv",
    "to_html",
    "to_latex",
    "to_markdown",
    "to_terminal",
    "with_states",
]
