"""What a sweep of 1,000 cells costs on its page in MLflow: its table, its own run, its cells' runs, its saved view.

The cells have records without trainings or pictures. In turn: seconds to make the sweep's table, to show it all in a
new sqlite database, to find that it is there already, and the same through a server; sizes of what MLflow's page loads.

    python -m tests.benchmarks.page [--cells 1000]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from pforce.orchestration.launch import show_finished
from pforce.orchestration.options import tracker_of
from pforce.orchestration.plan import sweep_entry
from pforce.orchestration.sweep_report import sweep_frame, sweep_summary
from pforce.results.shown import views_of
from pforce.tracking import Mirror
from pforce.tracking.charts import TAG
from tests.benchmarks.records import fill, planned, timed
from tests.tracking.servers import MlflowServer


def main() -> None:
    """Print seconds and sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=1_000)
    cells = parser.parse_args().cells
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "runs"
        fill(root, cells)
        plan = planned(root, cells)
        assert plan.tracker is not None
        frame = sweep_frame(plan)
        timed("table, notes and figure", lambda: f"{len(sweep_summary(plan, frame).report.table)} rows")
        for what in ("shown in a new sqlite database", "there already"):
            timed(what, lambda: show_finished(plan, lambda line: None))
        (page,) = plan.tracker.client.search_experiments(filter_string="name = 'many'")
        state = next(text for tag, text in page.tags.items() if tag.startswith(TAG))
        files = sorted((root / "artifacts").glob("*/*/artifacts/sweep.html"), key=lambda path: path.stat().st_size)
        print(f"saved view: {len(state):,} characters; sweep.html: {files[-1].stat().st_size / 1e6:.2f} MB")
        server = MlflowServer(Path(name) / "server", backend=plan.tracker.uri)
        server.start()
        try:
            other = Mirror(tracker_of(plan.options.place, server.uri), plan.options.place).page("many")
            views = views_of(sweep_entry(plan).cells, plan.options.place, plan.ledger)
            keyed = {other.key(cell): view for cell, view in views.items()}
            timed("there already, as a server says", lambda: other.show(keyed))
        finally:
            server.kill()


if __name__ == "__main__":
    main()
