"""What is chosen from a frame, and what its metrics are called. Oracle: small frames, names as they are written."""

from __future__ import annotations

import pandas as pd
import pytest

from pforce import results
from pforce.base.errors import InputError
from pforce.metrics.distances import metric_name
from pforce.metrics.names import DISTANCES
from pforce.results import Row
from pforce.results.frames import distance_of, distances_in


def frame(*runs: tuple[str, str, int], **metrics: list[float]) -> pd.DataFrame:
    """(fingerprint, status, start in seconds), in any order."""
    fingerprints, statuses, starts = zip(*runs, strict=True)
    made = pd.DataFrame(
        {"fingerprint": fingerprints, "status": statuses, "start_time": pd.to_datetime(starts, unit="s")}
    )
    return made.assign(**metrics)


def test_one_row_a_fingerprint():
    """A newer failure does not hide a result, nor an older attempt the run under way."""
    made = frame(
        ("a", "FAILED", 9), ("a", "FINISHED", 1), ("a", "FINISHED", 5), ("a", "RUNNING", 7),
        ("b", "FAILED", 8), ("b", "RUNNING", 2), ("b", "SCHEDULED", 3),
        ("c", "KILLED", 4), ("c", "FAILED", 6), ("c", "KILLED", 5),
        (None, "FINISHED", 1),
    )  # fmt: skip
    chosen = results.cells(made)
    assert list(chosen.index) == [2, 6, 8]  # in the order of the frame
    assert chosen.set_index("fingerprint")["status"].to_dict() == {"a": "FINISHED", "b": "SCHEDULED", "c": "FAILED"}
    assert list(chosen.columns) == list(made.columns)
    assert results.cells(pd.DataFrame()).empty
    assert list(results.finished(made, Row({}, ["a", "c", "x"])).index) == [2]
    assert list(results.finished(made, [Row({}, ["c"]), Row({}, ["a"])]).index) == [2]


@pytest.mark.parametrize("detector", ["inception", "openmoji", "fashion-mnist", "dinov2", "my_net"])
def test_names_are_read_as_they_are_written(detector):
    for short in DISTANCES:
        assert distance_of(metric_name(short, detector)) == (short, detector)


def test_other_metrics_are_no_distances():
    for name in ("val/loss", "cost/nfe", "fd", "kd", "fd/", "fd images", "fd/openmoji images", "isotope", "m"):
        assert distance_of(name) is None


def test_detectors_of_a_frame():
    """Detectors of most rows first; what stands beside a distance is not one."""
    beside = {f"fd/openmoji{end}": [1.0, 1.0, 1.0] for end in ("_low", "_images", "_reference_images", "_features")}
    one = ("a", "FINISHED", 1), ("b", "FINISHED", 1), ("c", "FINISHED", 1)
    made = frame(*one, **{"fd/openmoji": [1.0, 2.0, 3.0], **beside, "fid": [None, 1.0, None], "fid_images": [9.0] * 3,
                          "precision": [None, 1.0, 1.0], "kd/none": [None] * 3})  # fmt: skip
    assert results.detectors(made) == ["openmoji", "inception"]
    assert distances_in(made) == ["fd/openmoji", "fid", "precision"]
    twins = frame(
        *one, **{"fd/a": [1.0] * 3, "fd/a_images": [8.0] * 3, "fd/a_low": [1.0] * 3, "fd/a_low_images": [8.0] * 3}
    )
    assert results.detectors(twins) == ["a", "a_low"]  # a detector of yours may be called anything


def test_rows_are_compared_by_the_distance_of_their_detector():
    made = frame(("a", "FINISHED", 1), ("b", "FINISHED", 1), ("c", "FAILED", 1),
                 **{"fid": [1.0, None, None], "kd/mine": [None, 2.0, 1.0], "val/loss": [1.0, 1.0, 1.0]})  # fmt: skip
    metrics = [results.primary_metric(made, [Row({}, [name])]) for name in "abc"]
    assert metrics == ["fid", "kd/mine", None]
    assert results.primary_metric(made.drop(columns=["fid", "kd/mine"]), [Row({}, ["a"])]) == "val/loss"
    assert results.primary_metric(pd.DataFrame(), [Row({}, ["a"])]) is None


def test_which_way_is_better():
    larger = ["difficulty/pearson_t0.20", "difficulty/spearman_t0.60", "precision", "recall/openmoji", "is", "is/x",
              "throughput/images_per_second"]  # fmt: skip
    smaller = ["fid", "fd/openmoji", "sfid", "kid", "kd/x", "fd_infinity/x", "val/loss", "train/nll", "cost/nfe",
               "calibration/error_t0.20"]  # fmt: skip
    assert not any(results.smaller_is_better(name) for name in larger)
    assert all(results.smaller_is_better(name) for name in smaller)


def test_rows_are_called_by_what_differs():
    rows = [Row({"m": m, "s": "1", "sigma": sigma}, []) for m, sigma in (("0", "0.2"), ("0.7", "0.5, 0.6"))]
    assert results.row_names(rows) == ["m 0, sigma 0.2", "m 0.7, sigma 0.5 or 0.6"]
    assert results.row_names(rows[:1]) == ["m 0, s 1, sigma 0.2"]
    assert results.row_names([Row({}, [])]) == ["the only cell"]
    assert results.row_names([]) == []


def test_the_paper_s_tables_are_at_hand():
    assert len(results.paper_table("main"))


@pytest.mark.parametrize("what", ["runs", "sqlite:///{}/runs/mlflow.db"])
def test_reading_makes_nothing(tmp_path, monkeypatch, what):
    """A notebook that is started in another folder: the path that it looked at is said, and stays as it is."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no such folder|is not there"):
        results.runs(what.format(tmp_path))
    assert list(tmp_path.iterdir()) == []
