"""Distributions of patch timesteps in training. t = 0 is noise, t = 1 is data.

A sampler is a frozen, callable value: `sampler(batch, patches, generator=…, device=…, dtype=…)` returns (batch,
patches) timesteps in [0, 1], drawn on the device from the generator alone.

To add one: write a frozen dataclass here with the name that configurations use, and list it in `SAMPLERS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pforce.base.errors import FieldError, require

Truncation = Literal["reference", "exact"]
TRUNCATIONS: tuple[Truncation, ...] = ("reference", "exact")


LIMITS = {"m": (-30.0, 30.0), "s": (1e-6, 1e3), "sigma": (1e-6, 1e6), "sharpness": (1e-2, 1e6)}
"""Setting → smallest and largest value for which draws follow their distribution in float arithmetic. Beyond them they
do not, without a word: a logistic of 30 is 1, and both gamma draws of a sharpness below 0.01 are 0."""


def require_within_limits(name: str, value: float) -> None:
    """Raise FieldError where a setting is not within its LIMITS."""
    low, high = LIMITS[name]
    positive = "> 0, " if low > 0 else "finite, "
    require(low <= value <= high, name, value, f"{positive}from {low:g} to {high:g}")


def require_timesteps(t: Tensor, name: str) -> None:
    """Raise FieldError where drawn timesteps are not finite and in [0, 1].

    Args:
        name: of their sampler.
    """
    fits = (t >= 0) & (t <= 1)  # NaN is neither
    if not bool(fits.all()):
        wrong = t[~fits].flatten()[0].item()
        raise FieldError("timesteps", name, f"a sampler of timesteps in [0, 1]; it drew {wrong:g}")


@dataclass(frozen=True)
class TimestepSampler(ABC):
    """A distribution of per-patch training timesteps."""

    name: ClassVar[str]
    """Name of the sampler in configurations, tables and records."""
    per_sample: ClassVar[bool] = False
    """Whether all patches of a sample share one timestep, so that a model computes its modulation once per sample."""

    @abstractmethod
    def __call__(
        self,
        batch: int,
        patches: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Draw (batch, patches) timesteps in [0, 1]."""

    def canonical(self) -> TimestepSampler:
        """The simplest sampler with the same distribution; identities of results hash it."""
        return self


@dataclass(frozen=True)
class ParallelUniform(TimestepSampler):
    """One U(0, 1) per sample, the same for all of its patches: flow matching as in SiT (Ma et al. 2024)."""

    name: ClassVar[str] = "parallel_uniform"
    per_sample: ClassVar[bool] = True

    def __call__(self, batch, patches, *, generator=None, device="cpu", dtype=torch.float32):
        t = torch.rand(batch, 1, generator=generator, device=device, dtype=dtype)
        return t.expand(batch, patches).contiguous()


@dataclass(frozen=True)
class ParallelLogitNormal(TimestepSampler):
    """One sigmoid(m + s·z) per sample, z ~ N(0, 1) (Esser et al. 2024)."""

    name: ClassVar[str] = "parallel_logit_normal"
    per_sample: ClassVar[bool] = True
    m: float = 0.0
    """Mean of the logit: above 0 favours data, below 0 noise."""
    s: float = 1.0
    """Standard deviation of the logit, > 0."""

    def __post_init__(self) -> None:
        require_within_limits("m", self.m)
        require_within_limits("s", self.s)

    def __call__(self, batch, patches, *, generator=None, device="cpu", dtype=torch.float32):
        z = torch.randn(batch, 1, generator=generator, device=device, dtype=dtype)
        return torch.sigmoid(self.m + self.s * z).expand(batch, patches).contiguous()


@dataclass(frozen=True)
class IndependentUniform(TimestepSampler):
    """An independent U(0, 1) per patch (Diffusion Forcing, Chen et al. 2024)."""

    name: ClassVar[str] = "independent_uniform"

    def __call__(self, batch, patches, *, generator=None, device="cpu", dtype=torch.float32):
        return torch.rand(batch, patches, generator=generator, device=device, dtype=dtype)


@dataclass(frozen=True)
class SRM(TimestepSampler):
    """A *mean* timestep per sample, U(0, 1), that recursive splitting shares out to the patches (Wewer et al. 2025).

    A vector of d entries with sum ℓ is split into halves of ⌊d/2⌋ and d − ⌊d/2⌋ entries; the first half's sum is lo +
    (hi − lo)·b, lo = max(0, ℓ − d2), hi = min(ℓ, d1), b ~ Beta(a, a), a = (d − 1 − d mod 2)^1.05 · sharpness. At the
    end the entries are permuted within each sample.
    """

    name: ClassVar[str] = "srm"
    sharpness: float = 1.0
    """Concentration of the splits, > 0: larger values keep a sample's timesteps closer to their mean."""

    def __post_init__(self) -> None:
        require_within_limits("sharpness", self.sharpness)

    def __call__(self, batch, patches, *, generator=None, device="cpu", dtype=torch.float32):
        # Level by level: all splits of one level take two gamma draws, instead of two per node of the recursion.
        sizes = [patches]
        sums = torch.rand(batch, 1, generator=generator, device=device, dtype=dtype) * patches
        while max(sizes) > 1:
            sizes, sums = self._split(sizes, sums, generator)
        # A random order per sample: sorting random keys permutes without a loop over samples.
        order = torch.rand(batch, patches, generator=generator, device=device).argsort(dim=1)
        return sums.gather(1, order).clamp_(0, 1)

    def _split(self, sizes: list[int], sums: Tensor, generator: torch.Generator | None) -> tuple[list[int], Tensor]:
        """Split every part of two or more entries in two, one level of the recursion: sums (B, parts) → (B, more
        parts)."""
        first = [d // 2 if d > 1 else d for d in sizes]
        second = [d - d // 2 if d > 1 else 0 for d in sizes]
        concentration = [(d - 1 - d % 2) ** 1.05 * self.sharpness if d > 1 else 1.0 for d in sizes]
        d1, d2, a = (torch.tensor(v, device=sums.device, dtype=sums.dtype) for v in (first, second, concentration))
        # torch's Beta takes no generator; a Beta(a, a) draw is g1/(g1 + g2) of two Gamma(a) draws. In float64,
        # because for a small a both gammas can underflow float32.
        shape = a.to(torch.float64).expand(2, *sums.shape).contiguous()
        g1, g2 = torch._standard_gamma(shape, generator=generator)
        beta = (g1 / (g1 + g2)).to(sums.dtype)
        low = (sums - d2).clamp_min(0)
        high = torch.minimum(sums, d1)
        left = low + (high - low) * beta
        parts = torch.stack([left, sums - left], dim=2)  # (B, parts, 2)
        kept = [
            index for index, d in enumerate(sizes) for index in ((2 * index, 2 * index + 1) if d > 1 else (2 * index,))
        ]
        new_sizes = [part for pair in zip(first, second, strict=True) for part in pair if part > 0]
        return new_sizes, parts.flatten(1)[:, kept]


def _below_maximum(
    t_max: Tensor, patches: int, sigma: float, truncation: Truncation, generator: torch.Generator | None
) -> Tensor:
    """(B, patches) timesteps in [0, t_max], concentrated below t_max (B, 1) with spread sigma."""
    batch = t_max.shape[0]
    shape, device, dtype = (batch, patches), t_max.device, t_max.dtype
    if truncation == "exact":
        # Inverse CDF of N(t_max, sigma²) on [0, t_max]. The upper limit is the mean, whose CDF is ½. In float64: with
        # a large sigma all of it lies just below ½.
        top = t_max.double()
        low = torch.special.ndtr(-top / sigma)
        u = torch.rand(shape, generator=generator, device=device, dtype=dtype).double()
        t = top + sigma * torch.special.ndtri(low + (0.5 - low) * u)
        return torch.minimum(t.clamp_min_(0).to(dtype), t_max)
    w = (t_max / 2).clamp_max(sigma)
    z = torch.randn(shape, generator=generator, device=device, dtype=dtype).abs_()
    t = torch.addcmul(t_max, w, z, value=-1)
    redrawn = torch.rand(shape, generator=generator, device=device, dtype=dtype).mul_(t_max)
    return torch.where(t < 0, redrawn, t)


# The reference truncation's spread is min(sigma, t_max/2) with t_max < 1: from here on nothing changes.
REFERENCE_SIGMA_CEILING = 0.5


def _effective_sigma(sigma: float, truncation: Truncation) -> float:
    """The smallest sigma with the same distribution."""
    return min(sigma, REFERENCE_SIGMA_CEILING) if truncation == "reference" else sigma


@dataclass(frozen=True)
class TruncatedGaussian(TimestepSampler):
    """A *largest* timestep per sample, t_max ~ U(0, 1); all patches lie below it."""

    name: ClassVar[str] = "truncated_gaussian"
    sigma: float = 0.6
    """Spread below t_max, > 0. With the reference truncation every sigma ≥ 0.5 is the same distribution."""
    truncation: Truncation = "reference"
    """reference: the published rule. exact: N(t_max, sigma²) truncated to [0, t_max]."""

    def __post_init__(self) -> None:
        require_within_limits("sigma", self.sigma)
        require(self.truncation in TRUNCATIONS, "truncation", self.truncation, "reference or exact")

    def __call__(self, batch, patches, *, generator=None, device="cpu", dtype=torch.float32):
        t_max = torch.rand(batch, 1, generator=generator, device=device, dtype=dtype)
        return _below_maximum(t_max, patches, self.sigma, self.truncation, generator)

    def canonical(self) -> TruncatedGaussian:
        return replace(self, sigma=_effective_sigma(self.sigma, self.truncation))


@dataclass(frozen=True)
class LTG(TimestepSampler):
    """Logit-normal truncated Gaussian, the paper's sampler: t_max = sigmoid(m + s·z) per sample; all patches lie below
    it.

    With the reference truncation w = min(sigma, t_max/2) and t_i = t_max − w·|z_i|; an entry that falls below 0 is
    redrawn from U(0, t_max). As t_max/2 < 0.5, every sigma ≥ 0.5 gives the same distribution, bit for bit at equal
    seed; the published default 0.6 is such a sigma.
    """

    name: ClassVar[str] = "ltg"
    m: float = 0.7
    """Mean of the logit of t_max: larger values give cleaner patches."""
    s: float = 1.0
    """Standard deviation of the logit of t_max, > 0."""
    sigma: float = 0.6
    """Spread of the patches below t_max, > 0. With the reference truncation every sigma ≥ 0.5 is the same."""
    truncation: Truncation = "reference"
    """reference: the published rule. exact: N(t_max, sigma²) truncated to [0, t_max]."""

    def __post_init__(self) -> None:
        require_within_limits("m", self.m)
        require_within_limits("s", self.s)
        require_within_limits("sigma", self.sigma)
        require(self.truncation in TRUNCATIONS, "truncation", self.truncation, "reference or exact")

    def __call__(self, batch, patches, *, generator=None, device="cpu", dtype=torch.float32):
        z = torch.randn(batch, 1, generator=generator, device=device, dtype=dtype)
        t_max = torch.sigmoid(self.m + self.s * z)
        return _below_maximum(t_max, patches, self.sigma, self.truncation, generator)

    def canonical(self) -> LTG:
        return replace(self, sigma=_effective_sigma(self.sigma, self.truncation))


SAMPLERS: dict[str, type[TimestepSampler]] = {
    sampler.name: sampler
    for sampler in (ParallelUniform, ParallelLogitNormal, IndependentUniform, SRM, TruncatedGaussian, LTG)
}
"""Every sampler by the name that configurations use."""
