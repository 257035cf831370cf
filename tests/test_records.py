"""Records of finished trials: files that merge. Oracle: a real sqlite store on both sides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pforce import records, results
from pforce.cli import _run
from pforce.records import RecordError, TrialRecord
from pforce.terminal import DONE
from pforce.tracking import Tracker, default_uri
from pforce.tracking.exchange import exported, imported, store_of
from tests.orchestration.conftest import make_plan, small_sweep


def record(fingerprint: str, *, sweep: str = "s", ended: int = 2, **metrics: float) -> TrialRecord:
    return TrialRecord(
        format=1, sweep=sweep, name=f"row={fingerprint} seed=0", fingerprint=fingerprint, params={"seed": "0"},
        metrics={"val/loss": 1.5, **metrics}, tags={"device": "cpu", "pforce.training": "t"}, started=1, ended=ended,
        step=640, files=[],
    )  # fmt: skip


def test_a_file_is_read_back_line_by_line(tmp_path):
    path = tmp_path / "deep" / "r.jsonl"
    for fingerprint in ("a", "b"):
        records.append(path, record(fingerprint))
    assert records.read(path) == [record("a"), record("b")]


def test_a_line_that_a_killed_writer_left_spoils_neither_what_is_before_nor_after(tmp_path):
    path = tmp_path / "r.jsonl"
    records.append(path, record("a"))
    with path.open("a") as file:
        file.write(json.dumps(record("lost"))[:50])
    records.append(path, record("b"))
    with pytest.warns(UserWarning, match="line 2: passed over"):
        assert [each["fingerprint"] for each in records.read(path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 9}', "line 1: format 9, this version reads 1"),
        ("[1]", "format 'list'"),
        ('{"format": 1, "sweep": "s"}', "lacks ended, files, fingerprint, metrics"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path, text, message):
    path = tmp_path / "r.jsonl"
    path.write_text(text + "\n")
    with pytest.raises(RecordError, match=message):
        records.read(path)


def test_of_two_records_of_a_cell_the_first_to_end_counts():
    first, second = record("a", ended=5, fd=1.0), record("a", ended=9, fd=2.0)
    other = record("a", sweep="other", ended=7)
    assert records.merged([[second, other], [first]]) == [first, other]


def test_imported_once_and_exported_the_same(tmp_path):
    source = tmp_path / "r.jsonl"
    wanted = [record("a", ended=5), record("b", ended=6, fd=2.5)]
    for each in wanted:
        records.append(source, each)
    tracker = Tracker(default_uri(tmp_path), artifacts=tmp_path / "artifacts")
    assert imported(tracker, records.read(source), source) == (2, 0)
    assert imported(tracker, records.read(source), source) == (0, 2)
    back = exported(tracker, "s")
    assert [{**each, "tags": {}, "step": 0} for each in back] == [{**each, "tags": {}, "step": 0} for each in wanted]
    assert back[0]["tags"]["device"] == "cpu"
    frame = results.runs(tracker.uri)
    assert frame["status"].tolist() == ["FINISHED"] * 2
    assert sorted(frame["val/loss"]) == [1.5, 1.5]


def test_a_finished_cell_that_was_imported_is_done(tmp_path):
    """The ledger is told by fingerprint: another machine's cell is not run again."""
    sweep = small_sweep()
    planned = make_plan(sweep, tmp_path / "here")
    (item,) = planned.work
    path = tmp_path / "r.jsonl"
    records.append(path, {**record(item.fingerprint), "sweep": sweep.name})
    assert _run(["records", "import", str(path), "--storage", str(tmp_path / "here")]) == DONE
    assert make_plan(sweep, tmp_path / "here").missing == []


def test_the_commands_take_files_out_and_in(tmp_path, capsys):
    source, copy = tmp_path / "r.jsonl", tmp_path / "copy.jsonl"
    records.append(source, record("a"))
    uri = store_of([source], tmp_path / "store")
    for _ in range(2):
        assert _run(["records", "export", "s", "--out", str(copy), "--tracking-uri", uri]) == DONE
    assert [each["fingerprint"] for each in records.read(copy)] == ["a"]
    assert "0 records written, 1 were there" in capsys.readouterr().out


def test_the_committed_records_are_whole():
    folder = Path(__file__).resolve().parents[1] / "analysis" / "results" / "reproduction"
    for path in folder.glob("*.jsonl"):
        found = records.read(path)
        assert len({each["fingerprint"] for each in found}) == len(found) > 0
        for each in found:
            assert all((folder / file).exists() for file in each["files"])
            assert {"device", "pforce.seed", "pforce.training"} <= each["tags"].keys()
