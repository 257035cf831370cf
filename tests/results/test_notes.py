"""Notes below a table. Oracle: the frame that each was written for."""

from __future__ import annotations

import pandas as pd

from pforce.results import Row, table_notes
from tests.results.test_tables import ROWS, THREE, measured


def notes_of(frame: pd.DataFrame, rows=None) -> list[str]:
    every = [Row({"m": name}, [name]) for name in frame["fingerprint"]]
    return table_notes(frame, every if rows is None else rows)


def test_too_few_images_are_one_sentence_a_table():
    """256 and 300 of them where 64 features need 640."""
    frame = measured("x", n=2, **{"fd/x": 5.0}).assign(**{"fd/x_features": 64.0, "fd/x_images": [300.0, 256.0]})
    few = [note for note in notes_of(frame) if "fewer than" in note]
    assert len(few) == 1
    assert few[0].startswith("fd/x: 256 images are fewer than 10 × 64 features")
    assert notes_of(frame.assign(**{"fd/x_images": 640.0})) == []
    assert notes_of(frame.drop(columns="fd/x_features").assign(**{"fd/x_images": 9.0})) == []  # of an earlier version


def test_cells_that_were_not_made_alike_are_said_with_their_numbers():
    frame = measured("x", n=3, **{"fd/x": 5.0}).assign(
        device=["cpu", "cpu", "NVIDIA H100"], torch="2.11", commit=["a" * 40, "a" * 40, "b" * 40], user="ada"
    )
    assert notes_of(frame) == [
        f"cells were not all made alike: on cpu (2), NVIDIA H100 (1); commit {'a' * 12} (2), {'b' * 12} (1)"
    ]
    alike = frame.assign(device="cpu", commit="a" * 40)
    assert notes_of(alike) == []
    assert notes_of(alike.assign(changes=["c" * 16, None, "d" * 16])) == [
        "code with uncommitted changes made 2 of 3 cells"
    ]


def test_what_differs_between_cells_is_said_with_its_values():
    frame = measured("x", n=3, **{"fd/x": 5.0, "kd/x": 1.0})
    assert notes_of(frame) == []
    counts = {"fd/x_images": [500.0, 1000.0, 2000.0], "kd/x_images": [500.0, 1000.0, 2000.0],
              "fd/x_reference_images": [447.0, 447.0, 100.0], "cost/nfe": [12.0, 24.0, 12.0],
              "cost/images_seen": [6400.0, 96000.0, 6400.0]}  # fmt: skip
    assert notes_of(frame.assign(**counts)) == [
        "fd/x, kd/x: cells differ in their number of generated images (500, 1,000 and 2,000): their distances do not "
        "compare",
        "fd/x: cells differ in their number of reference images (100 and 447): their distances do not compare",
        "cells differ in NFE (12 and 24): not the same compute",
        "cells differ in images seen (6,400 and 96,000): not the same compute",
    ]
    assert notes_of(frame.assign(**counts), [Row({}, ["a0"])]) == []  # other rows are no matter of this table
    for equal in ([24.0, 25.0, 24.0], [100.0, 102.0, 100.0]):  # within one evaluation, within 2 %
        assert notes_of(frame.assign(**{"cost/nfe": equal})) == []


def test_cells_without_a_result_are_named_with_their_reasons(frame):
    runs = frame.assign(reason=[None, None, None, None, "diverged"])
    more = frame.iloc[:3].assign(fingerprint=["b2", "b3", "c1"], status=["FAILED", "KILLED", "RUNNING"],
                                 reason=["worker died", "time limit", "old"])  # fmt: skip
    rows = [ROWS[0], Row({"m": "0.7"}, ["b0", "b1", "b2", "b3", "b4"]), Row({"m": "1"}, ["c0", "c1"])]
    assert table_notes(pd.concat([runs, more]), rows) == [
        "diverged: 1 of 5 of m 0.7; --again diverged retries them",
        "failed: 1 of 5 of m 0.7 (worker died); the same command retries them",
        "stopped: 1 of 5 of m 0.7 (time limit); the same command resumes them",
        "running: 1 of 2 of m 1; not in the means; where nothing runs any more, the same command resumes them",
        "no run: 1 of 5 of m 0.7; 1 of 2 of m 1; the same command runs what is missing",
    ]
    many = [Row({"m": str(k)}, [str(k)]) for k in range(9)]
    (note,) = table_notes(pd.DataFrame(), many)
    assert note.startswith("no run: 1 of 1 of m 0; ")
    assert "m 5; and 3 more rows;" in note


def test_a_distance_that_some_cells_lack_is_said():
    frame = measured("x", n=3, **{"fd/x": 5.0})
    frame.loc[1, "fd/x"] = None
    assert notes_of(frame, THREE) == ["fd/x: not measured in all finished cells, but in 2 of 3 of m 0"]
