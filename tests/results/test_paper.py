"""The paper's tables. Oracle: the files that were handed over with the design, byte for byte."""

from __future__ import annotations

import pytest

from pforce.base.errors import FieldError
from pforce.results.paper import FOLDER, paper_names, paper_table
from tests.conftest import shared_file


def test_the_files_are_the_shared_ones():
    theirs = {path.name: path.read_bytes() for path in shared_file("paper").glob("*.csv")}
    assert {path.name: path.read_bytes() for path in FOLDER.glob("*.csv")} == theirs


def test_columns_and_numbers():
    difficulty = paper_table("difficulty")
    assert dict(zip(difficulty["t"], difficulty["pearson_r"], strict=True)) == {0.2: 0.11, 0.6: 0.52}
    helps = paper_table("context_helps")
    assert sorted(helps["t"].unique()) == [0.1, 0.2, 0.3]
    assert (helps.groupby("t")["context_t"].min() == [0.1, 0.2, 0.3]).all()
    main = paper_table("main")
    assert (main["guidance"] == "none").all()  # a word, not a missing value
    assert main.set_index(["model", "sampler"])["fid50k"]["PFT-XL/2", "look_ahead"] == 9.8
    assert main["sampler"].isna().sum() == 1


def test_every_table_reads_and_another_is_refused():
    assert all(len(paper_table(name)) for name in paper_names())
    assert len(paper_names()) == 6
    with pytest.raises(FieldError, match=r"name = 'mian': must be one of context_helps, .*main, timestep_schedules"):
        paper_table("mian")
