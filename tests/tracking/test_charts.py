"""The saved view of a sweep's page, and its description, as texts. Oracles: MLflow's format, and Markdown's rules."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

from pforce.results.formats import safe_markdown
from pforce.tracking.charts import CELLS_ONLY, MOST_BYTES, Charts


def state_of(text: str) -> dict[str, Any]:
    """A saved view as MLflow's page reads it."""
    head, _, packed = text.partition(";")
    assert head == "deflate"
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def test_a_saved_view_has_columns_and_charts_of_what_varies():
    charts = Charts(["timesteps.m", "timesteps.sigma"], ["fd/openmoji"], ["val/loss"], ["train/loss"], ["samples"],
                    "smaller is better", step=96)  # fmt: skip
    state = state_of(charts.state())
    assert state["selectedColumns"] == [
        "params.`timesteps.m`", "params.`timesteps.sigma`", "params.`seed`", "metrics.`fd/openmoji`",
        "metrics.`val/loss`",
    ]  # fmt: skip
    assert (state["searchFilter"], state["orderByKey"]) == (CELLS_ONLY, "metrics.`fd/openmoji`")
    kinds = [(chart["type"], chart["metricSectionId"]) for chart in state["compareRunCharts"]]
    assert kinds == [("BAR", "Quality"), *[("SCATTER", "Quality")] * 2, ("PARALLEL", "Quality"), ("LINE", "Curves"),
                     ("IMAGE", "Pictures")]  # fmt: skip
    assert [section["uuid"] for section in state["compareRunSections"]] == ["Quality", "Curves", "Pictures"]
    assert state["compareRunSections"][0]["name"] == "Smaller is better"
    assert state["compareRunCharts"][-1]["step"] == 96


def test_a_view_of_many_axes_fits_a_tag():
    """Oracle: the 5,000 characters of MLflow's column."""
    axes = [f"group{number * 7919 % 1000}.a_long_name_of_a_field_{number * 104729}" for number in range(400)]
    assert len(Charts(axes, ["fd/openmoji"], [], [], []).state()) <= MOST_BYTES


def test_a_label_in_a_note_is_no_markup():
    """Oracle: Markdown's rule that a backslash before punctuation makes it a character."""
    assert safe_markdown("<img src=x> [a](b) `c`\n# d") == r"\<img src=x\> \[a\](b) \`c\` \# d"
