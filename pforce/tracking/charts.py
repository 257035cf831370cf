"""A page's saved view in MLflow: the columns of its table of runs, and its charts.

MLflow's own page keeps a shared view as a tag of the experiment, `mlflow.sharedViewState.KEY`: JSON, or
`deflate;` and its zlib stream in base64. The address with `viewStateShareKey=KEY` opens it. The format is that of
MLflow 3's page; a test opens one in a browser.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pforce.base.files import digest
from pforce.tracking.view import Tags

if TYPE_CHECKING:
    from pforce.tracking.store import Tracker

LOCAL = "http://127.0.0.1:5000"
"""Address of `mlflow ui`."""
TAG = "mlflow.sharedViewState."
PAGE = "sweep.html"
"""File of a sweep's own run with its whole report."""
KEY_LENGTH = 16
MOST_BYTES = 5000
"""Most characters of an experiment's tag."""
QUALITY = "Quality"
"""Section of the charts of distances."""
MOST_AXES = 4
"""Most axes with a chart of their own."""
RUNS_COMPARED = 100
COLUMN_PIXELS, LETTER_PIXELS = 10, 7
"""Width of a column without its name, and of a letter of that."""
CELLS_ONLY = f"tags.`{Tags.KIND}` = 'trial'"
"""Filter that leaves out the runs of sweeps, below which MLflow's page would fold all others."""


def key_of_page(page: str) -> str:
    """The key of the saved view of a page with this key."""
    return digest("saved view", page)[:KEY_LENGTH]


def addresses(tracker: Tracker, page: str, own: str | None = None, *, host: str | None = None) -> dict[str, str]:
    """Addresses of what a page shows, by what they open: its charts, and the table of the sweep's own run. Empty where
    the store has no such page or does not answer.

    Args:
        page: key of the page.
        own: key of the sweep's own run.
        host: address of the MLflow server; by default, of `mlflow ui` on this machine.
    """
    client, found = tracker.client, {}
    try:
        for experiment in client.search_experiments(filter_string=f"tags.`{Tags.KEY}` = '{page}'", max_results=1):
            runs = f"{(host or LOCAL).rstrip('/')}/#/experiments/{experiment.experiment_id}/runs"
            found["charts"] = f"{runs}?viewStateShareKey={key_of_page(page)}&compareRunsMode=CHART"
            condition = f"tags.`{Tags.KEY}` = '{own}'"
            for run in client.search_runs([experiment.experiment_id], condition, max_results=1) if own else ():
                found["table"] = f"{runs}/{run.info.run_id}/artifacts/{PAGE}"
    except Exception:  # every kind of store raises its own; what is printed without the addresses is right, too
        return {}
    return found


@dataclass(frozen=True)
class Charts:
    """What a page shows at first: axes, metrics and pictures of its cells."""

    axes: Sequence[str] = ()
    """Parameters that differ between the cells."""
    distances: Sequence[str] = ()
    """Metrics that cells are compared by, the most important first."""
    metrics: Sequence[str] = ()
    """Further metrics that are columns."""
    curves: Sequence[str] = ()
    """Metrics that are curves over images seen."""
    images: Sequence[str] = ()
    """Keys of pictures."""
    caveat: str = ""
    """Words above the distances: which values are better, and whether they can be ranked."""
    sizes: Sequence[str] = ()
    """Metrics that the cells differ in as in an axis, such as the images seen by snapshots of a training."""
    step: int = 0
    """Images seen whose pictures are shown at first."""

    def state(self) -> str:
        """The view as a tag's value: with fewer axes and metrics where it would be too long, else empty."""
        charts = self._charts()
        names = dict.fromkeys(chart["metricSectionId"] for chart in charts)
        shown = [
            *(_column("params", name) for name in (*self.axes, "seed")),
            *(_column("metrics", name) for name in dict.fromkeys((*self.sizes, *self.distances, *self.metrics))),
        ]
        first = self.distances[0] if self.distances else None
        state: dict[str, Any] = {
            "searchFilter": CELLS_ONLY,
            "orderByKey": _column("metrics", first) if first else "attributes.start_time",
            "orderByAsc": True,
            "selectedColumns": shown,
            "columnOrder": shown,
            "columnWidths": {name: COLUMN_PIXELS + LETTER_PIXELS * len(name) for name in shown},
            "runsHiddenMode": "SHOW_ALL",
            "compareRunCharts": charts,
            "compareRunSections": [_section(name, self.caveat if name == QUALITY else "") for name in names],
            "isAccordionReordered": True,
            "hideEmptyCharts": True,
            "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        }
        packed = zlib.compress(json.dumps(state, separators=(",", ":")).encode(), 9)
        text = "deflate;" + base64.b64encode(packed).decode()
        if len(text) > MOST_BYTES and self.axes:  # a sweep over dozens of fields
            return replace(self, axes=self.axes[: len(self.axes) // 2]).state()
        if len(text) > MOST_BYTES and self.metrics:  # several detectors with many metrics
            return replace(self, metrics=self.metrics[: len(self.metrics) // 2]).state()
        return text if len(text) <= MOST_BYTES else ""

    def _charts(self) -> list[dict[str, Any]]:
        charts: list[dict[str, Any]] = []

        def add(section: str, kind: str, name: str, **fields: Any) -> None:
            charts.append({
                "type": kind, "uuid": f"pforce-{len(charts)}", "metricSectionId": section, "deleted": False,
                "isGenerated": False, "displayName": name, **fields,
            })  # fmt: skip

        for metric in self.distances[:1]:
            add(QUALITY, "BAR", metric, metricKey=metric, runsCountToCompare=RUNS_COMPARED)
            axes = [*((axis, "PARAM") for axis in self.axes[:MOST_AXES]), *((size, "METRIC") for size in self.sizes)]
            for axis, kind in axes:
                add(QUALITY, "SCATTER", f"{metric} against {axis}", runsCountToCompare=RUNS_COMPARED,
                    xaxis={"key": axis, "type": kind}, yaxis={"key": metric, "type": "METRIC"})  # fmt: skip
            add(QUALITY, "PARALLEL", "All axes", selectedParams=[*self.axes], selectedMetrics=[metric],
                showAllRuns=False, runsCountToCompare=RUNS_COMPARED)  # fmt: skip
        for name in self.curves:
            add("Curves", "LINE", name, metricKey=name, selectedMetricKeys=[name], xAxisKey="step", lineSmoothness=0,
                xAxisScaleType="linear", scaleType="log" if name.endswith("loss") else "linear",
                range={}, selectedXAxisMetricKey="", yAxisKey="metric", yAxisExpressions=[], ignoreOutliers=False,
                useGlobalXaxisKey=True, useGlobalLineSmoothing=True, runsCountToCompare=RUNS_COMPARED)  # fmt: skip
        for key in self.images:
            add("Pictures", "IMAGE", key, imageKeys=[key], step=self.step, showRunParams=False,
                runsCountToCompare=RUNS_COMPARED)  # fmt: skip
        return charts


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"


def _section(name: str, caveat: str) -> dict[str, Any]:
    # MLflow shows its own names of charts, not ours: what is to be known of them is in their section's name.
    shown = f"{caveat[0].upper()}{caveat[1:]}" if caveat else name
    return {"uuid": name, "name": shown, "display": True, "isReordered": True, "deleted": False, "isGenerated": False}
