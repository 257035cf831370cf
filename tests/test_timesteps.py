"""Timestep samplers. Oracles: recorded statistics of the published implementation (within 0.005 at 200,000
samples), closed forms of the distributions, and seeds."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pforce.base.errors import FieldError
from pforce.timesteps import (
    LIMITS,
    LTG,
    SAMPLERS,
    SRM,
    IndependentUniform,
    ParallelLogitNormal,
    ParallelUniform,
    TimestepSampler,
    TruncatedGaussian,
    require_timesteps,
)
from tests.conftest import shared_file

SAMPLES, PATCHES = 200_000, 64
RECORDED = [
    "parallel_uniform", "parallel_logit_normal(m=0,s=1)", "independent_uniform", "srm(sharpness=1.0)",
    "srm(sharpness=4.0)", "srm(sharpness=10.0)", "truncated_gaussian(0.6)", "truncated_gaussian(0.2)",
    "ltg(m=0.7,s=1.0,sigma=0.6)", "ltg(m=0.5,s=1.0,sigma=0.6)", "ltg(m=0.7,s=1.0,sigma=0.5)",
    "ltg(m=0.7,s=1.0,sigma=0.2)", "ltg(m=0.0,s=0.5,sigma=0.1)", "ltg(m=-0.5,s=1.5,sigma=0.3)",
]  # fmt: skip


def sampler_of(text: str) -> TimestepSampler:
    name, _, arguments = text.rstrip(")").partition("(")
    named = dict(re.findall(r"(\w+)=([-\d.]+)", arguments))
    positional = [] if named or not arguments else [float(arguments)]
    return SAMPLERS[name](*positional, **{k: float(v) for k, v in named.items()})


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("text", RECORDED)
def test_recorded_statistics(text):
    """Means, spreads and quantiles of all entries, of sample means, and of the largest drawn patch."""
    recorded = json.loads(shared_file("parity/timestep_statistics.json").read_text())[text]
    t = sampler_of(text)(SAMPLES, PATCHES, generator=seeded()).double().numpy()
    levels = [0.05, 0.25, 0.5, 0.75, 0.95]
    found = {
        "mean": t.mean(),
        "std": t.std(),
        "q": np.quantile(t, levels),
        "sample_mean_q": np.quantile(t.mean(axis=1), levels),
        "tmax_q": np.quantile(t.max(axis=1), levels),
        "tmax_mean": t.max(axis=1).mean(),
        "within_sample_std": t.std(axis=1, ddof=1).mean(),
    }
    for key, value in found.items():
        np.testing.assert_allclose(value, recorded[key], atol=0.005, rtol=0, err_msg=f"{text}: {key}")


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 5), patches=st.integers(1, 70), seed=st.integers(0, 2**31))
def test_shape_range_and_seed(name, batch, patches, seed):
    """Any grid gives (B, N) in [0, 1]; an equal seed gives equal draws; `per_sample` means what it says."""
    sampler = SAMPLERS[name]()
    t = sampler(batch, patches, generator=seeded(seed))
    assert t.shape == (batch, patches)
    assert t.dtype == torch.float32
    assert t.isfinite().all()
    assert ((t >= 0) & (t <= 1)).all()
    assert torch.equal(t, sampler(batch, patches, generator=seeded(seed)))
    if sampler.per_sample:
        assert torch.equal(t, t[:, :1].expand_as(t))


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_dtype(name):
    assert SAMPLERS[name]()(2, 9, generator=seeded(), dtype=torch.float64).dtype == torch.float64


def test_srm_mean_is_uniform():
    """Closed form: the sample mean is U(0, 1) exactly (Kolmogorov-Smirnov), for even, odd and prime N."""
    for patches in (2, 3, 7, 16, 64):
        means = SRM(2.0)(20_000, patches, generator=seeded(3)).double().mean(dim=1).numpy()
        assert stats.kstest(means, "uniform").pvalue > 0.001, patches


def test_srm_positions_are_exchangeable():
    """The permutation makes every position's mean the same, though the recursion's halves differ in size."""
    t = SRM(1.0)(60_000, 5, generator=seeded(1))
    assert (t.mean(dim=0) - 0.5).abs().max() < 0.006


@pytest.mark.parametrize("sigma", [0.05, 0.3, 2.0])
def test_exact_truncation_is_the_truncated_normal(sigma):
    """Closed form: given t_max, entries follow scipy's truncnorm on [0, t_max] with mode t_max."""
    t_max = torch.full((40_000, 1), 0.6)
    from pforce.timesteps import _below_maximum

    t = _below_maximum(t_max, 1, sigma, "exact", seeded(2)).double().flatten().numpy()
    expected = stats.truncnorm(-0.6 / sigma, 0.0, loc=0.6, scale=sigma)
    assert stats.kstest(t, expected.cdf).pvalue > 0.001


def test_reference_truncation_given_the_maximum():
    """Closed form: |N| below t_max with w = min(sigma, t_max/2); the mass below zero is spread evenly."""
    from pforce.timesteps import _below_maximum

    top, sigma = 0.5, 0.4
    t = _below_maximum(torch.full((50_000, 1), top), 1, sigma, "reference", seeded(4)).double().flatten().numpy()
    half = stats.halfnorm(scale=min(sigma, top / 2))

    def cdf(x):
        return half.sf(top - x) - half.sf(top) + half.sf(top) * x / top

    assert stats.kstest(t, cdf).pvalue > 0.001


@pytest.mark.parametrize("cls", [LTG, TruncatedGaussian])
def test_reference_sigmas_from_half_on_are_one_distribution(cls):
    """The known trap, bit for bit at equal seed; the exact truncation tells them apart."""
    draws = [cls(sigma=sigma)(64, 64, generator=seeded(5)) for sigma in (0.5, 0.6, 3.0)]
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2])
    assert cls(sigma=0.6).canonical() == cls(sigma=0.5) == cls(sigma=3.0).canonical()
    assert cls(sigma=0.3).canonical() == cls(sigma=0.3)
    exact = [cls(sigma=sigma, truncation="exact") for sigma in (0.5, 0.6)]
    assert exact[0].canonical() != exact[1].canonical()
    assert not torch.equal(exact[0](64, 64, generator=seeded(5)), exact[1](64, 64, generator=seeded(5)))


def test_logit_normal_median():
    """Closed form: the median of sigmoid(m + s·z) is sigmoid(m)."""
    t = ParallelLogitNormal(m=0.7, s=1.3)(50_000, 1, generator=seeded())
    assert abs(t.median().item() - 1 / (1 + math.exp(-0.7))) < 0.005


def test_uniform_entries():
    assert stats.kstest(IndependentUniform()(500, 64, generator=seeded()).flatten().numpy(), "uniform").pvalue > 0.001
    assert stats.kstest(ParallelUniform()(20_000, 4, generator=seeded())[:, 0].numpy(), "uniform").pvalue > 0.001


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: LTG(sigma=0.0), "sigma"),
        (lambda: LTG(s=-1.0), "s"),
        (lambda: LTG(m=math.nan), "m"),
        (lambda: LTG(truncation="other"), "truncation"),
        (lambda: TruncatedGaussian(sigma=-0.1), "sigma"),
        (lambda: ParallelLogitNormal(s=0.0), "s"),
        (lambda: SRM(sharpness=0.0), "sharpness"),
    ],
)
def test_values_out_of_range_are_refused(make, field):
    with pytest.raises(FieldError) as error:
        make()
    assert error.value.field == field
    assert "must be" in str(error.value)


@pytest.mark.parametrize("sigma", [1e4, 1e6])
def test_exact_truncation_holds_to_its_largest_sigma(sigma):
    """Closed form: from a large sigma on it is uniform on [0, t_max]; in float32 it would be biased, or all t_max."""
    from pforce.timesteps import _below_maximum

    t = _below_maximum(torch.full((40_000, 1), 0.6), 1, sigma, "exact", seeded(2)).double().flatten().numpy()
    assert stats.kstest(t, stats.uniform(0, 0.6).cdf).pvalue > 0.001


@pytest.mark.parametrize("sharpness", [0.01, 1e6])
def test_srm_holds_to_its_limits(sharpness):
    """At its smallest sharpness a sample's timesteps are 0 or 1 but for one; at its largest all are its mean."""
    t = SRM(sharpness)(2000, 16, generator=seeded(5))
    spread = t.std(dim=1).mean()
    if sharpness < 1:
        assert (torch.minimum(t, 1 - t) < 1e-3).float().mean() > 0.8
    else:
        assert spread < 1e-3


@pytest.mark.parametrize(
    ("sampler", "settings", "field"),
    [
        (LTG, {"sigma": 1e7, "truncation": "exact"}, "sigma"), (LTG, {"m": 31.0}, "m"), (LTG, {"s": 2e3}, "s"),
        (LTG, {"m": float("nan")}, "m"), (SRM, {"sharpness": 1e-3}, "sharpness"),
        (SRM, {"sharpness": 1e7}, "sharpness"),
        (TruncatedGaussian, {"sigma": float("inf")}, "sigma"), (ParallelLogitNormal, {"s": 1e-7}, "s"),
    ],
)  # fmt: skip
def test_settings_beyond_float_arithmetic_are_refused(sampler, settings, field):
    low, high = LIMITS[field]
    with pytest.raises(FieldError, match=re.escape(f"from {low:g} to {high:g}")):
        sampler(**settings)


@pytest.mark.parametrize("wrong", [float("nan"), 1.5, -0.1])
def test_timesteps_that_are_none_are_an_error(wrong):
    t = torch.rand(2, 3)
    require_timesteps(t, "mine")
    t[1, 2] = wrong
    with pytest.raises(FieldError, match=r"timesteps = 'mine': must be a sampler of timesteps in .0, 1.; it drew"):
        require_timesteps(t, "mine")
