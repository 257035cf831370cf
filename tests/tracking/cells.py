"""Finished cells and the mirrors that show them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import pytest

from pforce.storage import Storage
from pforce.tracking import Mirror, Page, Point, Tags, Tracker, View, default_uri

CELLS = ("a" * 32, "b" * 32, "c" * 32)
AT = 1_700_000_000_000
"""Milliseconds since 1970."""


def view(cell: str, loss: float = 0.5, **changes: Any) -> View:
    """A finished cell, with a curve of three points."""
    points = [Point(64 * k, AT + k, {"train/loss": 1 / k, "train/mse": 2 / k}) for k in (1, 2, 3)]
    tags = {Tags.KIND: "trial", Tags.FINGERPRINT: cell, "device": "cpu", "mlflow.user": "ada"}
    given = {"status": "FINISHED", "started": AT, "ended": AT + 9, "points": lambda: points, **changes}
    numbers = {"val/loss": loss, "fd/openmoji": 7.0, "undefined": float("nan"), "infinite": float("inf")}
    return View(f"cell {cell[0]}", tags, {"timesteps.m": "0.5", "seed": "0"}, numbers, 192, **given)


def keyed(page: Page, *cells: str, **changes: Any) -> dict[str, View]:
    return {page.key(cell): view(cell, **changes) for cell in cells}


def sqlite_mirror(folder: Path, say: Any = print) -> Mirror:
    return Mirror(Tracker(default_uri(folder), artifacts=folder / "artifacts"), Storage.open(folder), say)


def name_of(request: pytest.FixtureRequest) -> str:
    return request.node.name.replace("[", "-").replace("]", "")


def curve(client: mlflow.MlflowClient, run_id: str, name: str = "train/loss") -> list[tuple[int, int, float]]:
    found = [(point.step, point.timestamp, point.value) for point in client.get_metric_history(run_id, name)]
    return sorted(found)


def tables(uri: str, fingerprint: str) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of a run, but ids and keys."""
    path = Path(uri.removeprefix("sqlite:///"))
    found = {}
    with closing(sqlite3.connect(path)) as connection:
        ((run_id,),) = connection.execute(
            "SELECT run_uuid FROM tags WHERE key = ? AND value = ?", (Tags.FINGERPRINT, fingerprint)
        ).fetchall()
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in sorted(names):
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            if "run_uuid" in columns:
                kept = [c for c in columns if c not in ("run_uuid", "experiment_id", "artifact_uri")]
                query = f"SELECT {', '.join(kept)} FROM {table} WHERE run_uuid = ?"
                rows = connection.execute(query, (run_id,)).fetchall()
                found[table] = sorted(str(row) for row in rows if row[0] not in (Tags.KEY, Tags.SHOWN))
    return found
