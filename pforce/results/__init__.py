"""Results: tidy frames through tracking, tables with spread over seeds, figures."""

from pforce.results.frames import runs
from pforce.results.tables import Row, calibration_curves, cell_table, to_markdown, to_terminal

__all__ = ["Row", "calibration_curves", "cell_table", "runs", "to_markdown", "to_terminal"]
