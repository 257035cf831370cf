"""Results: tidy frames through tracking, statistics over seeds, tables and figures, the paper's own numbers."""

from pforce.results.formats import html_page, legend, to_csv, to_html, to_latex, to_markdown, to_terminal
from pforce.results.frames import (
    Row,
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
from pforce.results.notes import table_notes
from pforce.results.paper import paper_table
from pforce.results.statistics import Claim, Verdict, judge, row_claims, sentences
from pforce.results.tables import cell_table

__all__ = [
    "Claim",
    "Row",
    "Verdict",
    "calibration_curves",
    "cell_table",
    "cells",
    "detectors",
    "finished",
    "html_page",
    "judge",
    "legend",
    "paper_table",
    "primary_metric",
    "row_claims",
    "row_names",
    "runs",
    "sentences",
    "smaller_is_better",
    "table_notes",
    "to_csv",
    "to_html",
    "to_latex",
    "to_markdown",
    "to_terminal",
    "with_states",
]
