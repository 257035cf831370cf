"""Oracle: the published adaptive samplers on 64 patches and 22 steps, with every pooling; agreement 1e-4."""

from __future__ import annotations

import re

import pytest

from pforce.sampling import Guidance, dual_loop, look_ahead
from tests.parity.conftest import load_arrays, load_model
from tests.parity.test_small import close

NAMES = [
    f"{solver}_{pooling}_p{own}_cfg{scale}"
    for scale in ("1.0", "2.0")
    for pooling in ("mean", "max", "min")
    for solver, own in (
        ("dual", "0.4_inner3"), ("look", "0.4_ratio1.4"), ("dual", "0.7_inner2"), ("look", "0.7_ratio2.0"),
    )
]  # fmt: skip


@pytest.fixture(scope="module")
def wide():
    return load_model("parity_wide_pft"), load_arrays("parity_wide")


def test_every_recorded_output_is_compared(wide):
    assert {*NAMES, "x0", "y", "timesteps"} == set(wide[1])


@pytest.mark.parametrize("name", NAMES)
def test_wide(wide, name):
    model, arrays = wide
    found = re.fullmatch(r"(dual|look)_(mean|max|min)_p([\d.]+)_(?:inner|ratio)([\d.]+)_cfg([\d.]+)", name)
    assert found is not None
    solver, pooling, quantile, own, scale = found.groups()
    more = {"inner_steps": int(own)} if solver == "dual" else {"context_ratio": float(own)}
    x1 = (dual_loop if solver == "dual" else look_ahead)(
        model, arrays["x0"], arrays["timesteps"], y=arrays["y"], guidance=Guidance(float(scale)),
        quantile=float(quantile), pooling=pooling, **more,
    )  # fmt: skip
    close(x1, arrays[name])
