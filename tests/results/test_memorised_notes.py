"""Notes on images that are distinguishable from held-out ones. Oracle: intervals by hand."""

from __future__ import annotations

import pandas as pd
import pytest

from pforce.results import Row, cell_table, table_notes
from pforce.results.tables import HIDDEN

ROWS = [Row({"m": "0"}, ["a0", "a1"]), Row({"m": "0.7"}, ["b0", "b1"])]


def test_notes_name_rows_whose_images_are_distinguishable_from_held_out_ones():
    """Oracle: intervals by hand. Of a's two seeds one is nearer, b's interval holds 0.5; in pixels all are farther."""
    cells = pd.DataFrame({
        "fingerprint": ["a1", "a0", "b0", "b1"], "status": ["FINISHED", "FINISHED", "FINISHED", "FAILED"],
        "start_time": pd.to_datetime([1, 1, 1, 1], unit="s"), "fd/openmoji": [20.0, 12.0, 30.0, 99.0],
    })  # fmt: skip
    nearest, copies, pixels = "memorisation/auc/openmoji", "memorisation/copies/openmoji", "memorisation/pixel_auc"
    made = cells.assign(**{
        nearest: [0.56, 0.51, 0.5, 0.9], f"{nearest}_low": [0.53, 0.48, 0.47, 0.8],
        f"{nearest}_high": [0.59, 0.54, 0.53, 1.0], copies: [0.021, 0.01, 0.01, 0.9],
        f"{copies}_low": [0.014, 0.0, 0.0, 0.8], f"{copies}_high": [0.032, 0.1, 0.1, 1.0],
        pixels: 0.4, f"{pixels}_low": 0.38, f"{pixels}_high": 0.42,
    })  # fmt: skip
    notes = [note for note in table_notes(made, ROWS) if note.startswith("memorisation")]
    assert notes[0] == (
        "memorisation/auc/openmoji: generated images are nearer to the training images than held-out ones are: look "
        "for copies, in 1 of 2 of m 0 (0.560, 0.530 … 0.590; copies 2.1%, 1.4% … 3.2%)"
    )
    assert notes[1].startswith(
        "memorisation/pixel_auc: on the whole, generated images are farther from the training images"
    )
    assert "in 2 of 2 of m 0 (0.400, 0.380 … 0.420); 1 of 1 of m 0.7 (0.400" in notes[1]
    assert len(notes) == 2
    table = cell_table(made, ROWS)
    assert [name for name in table.columns if name.startswith("memorisation") and not name.endswith(HIDDEN)] == [
        nearest,
        copies,
        pixels,
    ]
    assert table[nearest].tolist()[:2] == pytest.approx([0.535, 0.5])
    assert table[f"{nearest} images low"].tolist()[:2] == pytest.approx([0.505, 0.47])
    assert not any("memorisation" in note for note in table_notes(cells, ROWS))
