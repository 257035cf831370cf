"""Names of metrics as values. Oracle: the names in committed results, and that printing and reading are inverse."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pforce.base.errors import FieldError
from pforce.config import with_fields
from pforce.metrics.names import (
    BESIDE,
    COSTS,
    DISTANCES,
    KINDS,
    CostName,
    MetricName,
    interval_names,
    read_names,
)
from pforce.records.row import Row
from pforce.results.tables import CALIBRATION_COLUMNS, COLUMNS
from pforce.storage import Storage
from pforce.trial.run import run_trial
from pforce.trial.where import Paths, Where
from tests.training.conftest import DATA, tiny

RESULTS = Path(__file__).parents[2] / "analysis" / "results"
HUNDREDTHS = st.integers(0, 100).map(lambda percent: percent / 100)
WORDS = st.text(st.characters(exclude_categories=["Cs", "Z", "Cc"]), min_size=1, max_size=20)
DETECTORS = st.one_of(
    st.sampled_from(["inception", "openmoji", "fashion-mnist", "my_net", "a/b", "a:b", "fid", "images", "_low"]),
    WORDS,
    st.tuples(WORDS, st.sampled_from(BESIDE)).map("_".join),
).filter(lambda name: name.split() == [name])
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "detector": DETECTORS,
    "label": st.integers(0, 2000),
    "t": HUNDREDTHS,
    "context_time": st.integers(0, 1000).map(lambda thousandths: thousandths / 1000),
    "decile": st.integers(1, 10),
    "shown": st.sampled_from(["alone", "context"]),
    "statistic": st.one_of(st.just("mean"), st.integers(0, 100)),
}


@st.composite
def metric_names(draw: st.DrawFn) -> MetricName:
    name = draw(st.sampled_from(sorted(KINDS)))
    kind = KINDS[name]
    fields = {field: draw(VALUES[field]) for field in kind.keys}
    fields |= {field: draw(VALUES[field]) for field in kind.optional if draw(st.booleans())}
    return MetricName(name, **fields, beside=draw(st.sampled_from([None, *kind.beside])))


def committed() -> Iterator[tuple[str, set[str]]]:
    """Each committed file of results, and the metrics in it."""
    for path in sorted(RESULTS.rglob("*.jsonl")):
        lines = [json.loads(line) for line in path.open()]
        # A whole result of an earlier commit has metrics, a record has values (numbers, a hash of tensors, or an
        # experiment), and a sweep's line has neither.
        values = (line.get("metrics") or line.get("values") or {} for line in lines)
        yield path.name, {name for several in values for name, value in several.items() if isinstance(value, float)}
    numbers = json.loads((RESULTS / "same_numbers_0641df2.json").read_text())["numbers"]
    yield (
        "same_numbers",
        {name for row in numbers.values() for name, value in row.items() if "/" in name and not isinstance(value, str)},
    )


@pytest.mark.parametrize(("file", "names"), committed())
def test_every_committed_name_is_read_and_printed_again(file: str, names: set[str]) -> None:
    assert len(names) >= 15, file
    for name in names:
        assert str(MetricName.parse(name)) == name
    assert {text: str(name) for text, name in read_names(names).items()} == {name: name for name in names}


def test_as_many_names_are_committed_as_a_reproduction_measures() -> None:
    assert len(dict(committed())["cpu.jsonl"]) == 388


def test_headers_of_tables_are_no_names_but_those_that_are() -> None:
    """Oracle: the committed tables, in which only distances are called by their metric."""
    headers = {header for path in RESULTS.rglob("*.csv") for header in next(csv.reader(path.open()))}
    assert {"val loss", "fd/openmoji sd", "fd images", "R(0.2)", "NFE", "n"} < headers
    assert {header for header in headers if MetricName.parse(header)} == {"fd/openmoji"}


@pytest.mark.timeout(600)
def test_every_name_of_a_fresh_cell_is_read_and_printed_again(tmp_path: Path) -> None:
    changes = {
        "evaluation.metrics": ("frechet", "kernel", "precision_recall"), "evaluation.extrapolate": True,
        "evaluation.difficulty_timesteps": (0.05, 0.2), "evaluation.context_timesteps": (0.1, 0.3),
        "evaluation.images": 16,  # as many as the extrapolated distance needs
    }  # fmt: skip
    row = run_trial(with_fields(tiny(2), changes), Paths(DATA, Storage.open(tmp_path)), Where(torch.device("cpu")))
    assert isinstance(row, Row)
    stored = {name for record in row.parts for name in record.values}
    for name in {*row.metrics, *stored}:
        assert str(MetricName.parse(name)) == name
    kinds = {name.kind for name in read_names(row.metrics).values()}
    assert {
        "fd",
        "fd_infinity",
        "kd",
        "val/loss",
        "difficulty/pearson",
        "calibration/expected",
        "context/log_sigma",
    } < kinds
    assert {cost for cost in COSTS if "trunk" not in cost} < kinds


def test_columns_of_tables_are_names_of_metrics() -> None:
    columns = [column.metric for column in (*COLUMNS, *CALIBRATION_COLUMNS) if not column.of_detector]
    assert [str(MetricName.parse(metric)) for metric in columns] == columns


@given(metric_names())
def test_reading_is_the_inverse_of_printing(name: MetricName) -> None:
    text = str(name)
    around = {str(name.value), text}
    if name.beside is None and name.detector is not None:
        around.add(str(name.with_beside("images")))
    assert read_names(around)[text] == name
    if MetricName.parse(text) != name:  # only what a detector's name ends with can be taken for something else
        assert name.detector is not None
        assert name.detector.endswith(BESIDE)


@given(st.text(max_size=40))
def test_whatever_is_read_prints_as_it_was(text: str) -> None:
    for each in (text, f"fd/{text}", f"difficulty/pearson_t{text}", f"context/loss_t0.10_at{text}"):
        name = MetricName.parse(each)
        assert name is None or str(name) == each


@pytest.mark.parametrize("kind", sorted(KINDS))
@given(st.data())
def test_all_that_a_name_is_made_of_is_in_it(kind: str, data: st.DataObject) -> None:
    """Two names that differ are two texts, whatever differs; the detector and its ending apart."""
    plain = {**{field: data.draw(VALUES[field]) for field in KINDS[kind].keys}}
    name = MetricName(kind, **plain)
    for field in plain:
        other = data.draw(VALUES[field])
        changed = dataclasses.replace(name, **{field: other})
        assert (str(changed) == str(name)) == (changed == name)


BAD = [
    "", "m", "loss", "isotope", "val", "val/", "val/loss_", "val/loss_t", "val/loss_t0.06", "val/loss_t0.062500",
    "val/loss_low", "fd", "kd", "fd/", "fd/a b", "fd images", "fd/openmoji images", "fd/openmoji\n", "fd/inception",
    "FID", "fid/openmoji", "fid_lowest", "difficulty/pearson", "difficulty/pearson_t0.6",
    "difficulty/pearson_t0.600", "difficulty/pearson_t1.20", "difficulty/pearson_t-0.20", "difficulty/pearson_tnan",
    "difficulty/pearson_t0.20_t0.20", "difficulty/pearson_t0.20_images", "difficulty/pearson_t٠.٢٠",
    "difficulty/pearson_t2e-1", "difficulty/kendall_t0.20", "calibration/expected_t0.20", "calibration/error_t0.20_d1",
    "calibration/expected_t0.20_d0", "calibration/expected_t0.20_d01", "calibration/expected_t0.20_d11",
    "calibration/expected_d1_t0.20", "context/loss_at0.400", "context/loss_t0.10_at0.40", "context/loss_t0.10_at1.400",
    "context/log_sigma_t0.10", "context/log_sigma_t0.10_alone", "context/log_sigma_t0.10_q50",
    "context/log_sigma_t0.10_alone_q5", "context/log_sigma_t0.10_alone_q101", "context/log_sigma_t0.10_both_mean",
    "context/log_sigma_t0.10_alone_median", "cost/nfe_low", "cost/money", "cost/nfe ", "train/accuracy",
    "per_class/kd", "per_class/kd/openmoji", "per_class/kd/openmoji_c", "per_class/kd/openmoji_c03",
    "per_class/kd/openmoji_c-1", "per_class/kd/_c3", "per_class/kd/inception_c3", "per_class/fd/openmoji_c3",
]  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_name_is_read_as_none(text: str) -> None:
    assert MetricName.parse(text) is None
    assert read_names([text]) == {}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"kind": "val/lost"}, "kind = 'val/lost': must be a metric's kind: did you mean val/loss?"),
        ({"kind": "fd"}, "detector = None: must be given in a name of fd"),
        ({"kind": "fd", "detector": "my net"}, "detector = 'my net': must be a name without blanks"),
        ({"kind": "fd", "detector": ""}, "detector = '': must be a name without blanks"),
        ({"kind": "fd", "detector": "x", "t": 0.2}, "t = 0.2: does not apply to a name of fd"),
        ({"kind": "fd", "detector": "x", "beside": "middle"}, "beside = 'middle': must be one of low, high, images"),
        ({"kind": "cost/nfe", "beside": "low"}, "beside = 'low': must be one of none in a name of cost/nfe"),
        ({"kind": "difficulty/pearson", "t": 0.625}, "t = 0.625: must be in [0, 1], of at most 2 decimals"),
        ({"kind": "difficulty/pearson", "t": 1.2}, "t = 1.2: must be in [0, 1]"),
        ({"kind": "difficulty/pearson", "t": float("nan")}, "t = nan: must be in [0, 1]"),
        ({"kind": "context/loss", "t": 0.2, "context_time": 4 / 15}, "must be in [0, 1], of at most 3 decimals"),
        ({"kind": "calibration/observed", "t": 0.2, "decile": 0}, "decile = 0: must be 1 to 10"),
        ({"kind": "context/log_sigma", "t": 0.2, "shown": "both", "statistic": 5}, "shown = 'both'"),
        ({"kind": "context/log_sigma", "t": 0.2, "shown": "alone", "statistic": 101}, "statistic = 101"),
    ],
)  # fmt: skip
def test_a_name_that_would_round_or_say_nothing_is_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(FieldError) as refused:
        MetricName(**fields)
    assert sentence in str(refused.value)


def test_one_timestep_is_one_name_however_it_was_computed() -> None:
    name = MetricName("difficulty/pearson", t=3 * 0.1)
    assert name == MetricName("difficulty/pearson", t=0.3) == MetricName.parse("difficulty/pearson_t0.30")
    assert str(MetricName("val/loss", t=0.0625)) == "val/loss_t0.0625"
    assert str(MetricName("difficulty/pearson", t=-0.0)) == "difficulty/pearson_t0.00"


@pytest.mark.parametrize(
    ("around", "chosen"),
    [
        (["fd/a", "fd/a_low"], MetricName("fd", "a", beside="low")),
        (["fd/a_low"], MetricName("fd", "a_low")),
        (["fd/a", "fd/a_images", "fd/a_low", "fd/a_low_images"], MetricName("fd", "a_low")),
        (["fd/a_reference", "fd/a_low"], MetricName("fd", "a_low")),
        (["kd/a", "fd/a_low"], MetricName("fd", "a_low")),
    ],
)
def test_an_ending_is_a_detectors_own_where_no_value_stands_beside_it(around: list[str], chosen: MetricName) -> None:
    assert read_names(around)["fd/a_low"] == chosen
    assert MetricName.parse("fd/a_low") == MetricName("fd", "a", beside="low")


def test_the_counts_of_a_detector_that_is_called_reference() -> None:
    found = read_names(["fd/a_reference", "fd/a_reference_images"])
    assert found["fd/a_reference_images"] == MetricName("fd", "a_reference", beside="images")


def test_names_of_inception_are_short() -> None:
    printed = [str(MetricName(kind, "inception")) for kind in DISTANCES]
    assert printed[:7] == ["fid", "fid_infinity", "sfid", "kid", "precision", "recall", "is"]
    assert printed[7:] == list(DISTANCES[7:]), "only the oldest are renamed"
    assert [MetricName.parse(text) for text in printed] == [MetricName(kind, "inception") for kind in DISTANCES]
    assert MetricName("sfd", "inception").short == "sfid"
    assert MetricName("sfd", "openmoji").short == "sfd"
    assert [str(bound) for bound in MetricName("kd", "inception").bounds] == list(interval_names("kid"))


def test_costs_are_declared_once() -> None:
    assert len(COSTS) == len(set(COSTS)) == 12
    assert CostName.NFE in COSTS
    assert all(cost.startswith("cost/") for cost in COSTS)
