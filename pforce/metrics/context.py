"""The paper's two context ablations, on held-out images: whether context helps, and whether it lowers uncertainty.

At timestep t the patches of an image are split by the uncertainty that the model predicts there, as samplers split
them. The confident patches are then shown further denoised, at a context time t' ≥ t on the line from the same noise,
and the uncertain ones, still at t, are predicted again. `context_helps` measures whether their error is smaller,
`context_uncertainty` whether their predicted uncertainty is lower. The split is made once, at t, so that the same
patches are compared at every t'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pforce import flow, grid
from pforce.base.errors import require
from pforce.flow import Prediction
from pforce.metrics.intervals import Estimate, bootstrap
from pforce.metrics.names import CONTEXT_DECIMALS, MetricName
from pforce.models.transformer import TimestepLevels
from pforce.sampling.confidence import confident_patches, uncertainty

CONTEXT_TIMESTEPS = (0.1, 0.2, 0.3)
"""Timesteps of the paper's context ablations."""
CONFIDENT_SHARE = 0.4
"""Share of confident patches in the paper."""
CONTEXT_TIMES = 13
"""Number of context times, evenly spaced from t to 1."""
SAME_TIME = 1e-9
"""Times that differ by less count as equal."""
QUANTILES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Quantiles of predicted log-σ that a record keeps of its distribution."""

Floats = NDArray[np.float64]
Progress = Callable[[float], None]
"""Callback that gets the share of the forward passes that is done, in [0, 1]."""


class ContextModel(Protocol):
    """The interface of a model for the context ablations."""

    @property
    def patch(self) -> int: ...

    def __call__(self, x: Tensor, t: Tensor | TimestepLevels, y: Tensor, /) -> Prediction: ...


class ContextHelps(NamedTuple):
    """Loss on the uncertain patches at t, by the context time of the confident ones; arrays (K,) float64.

    A loss is the mean squared velocity error over an image's uncertain patches, then over images; intervals are 95 %
    bootstrap intervals over images, with the same resamples at every context time.
    """

    t: float
    context_times: Floats
    """Context times, rising; the first is t itself, which is no context."""
    loss: Floats
    low: Floats
    high: Floats
    change: Floats
    """Loss minus the loss at t. Its interval is paired over the same images, and so narrower than those of the
    losses."""
    change_low: Floats
    change_high: Floats
    images: int
    uncertain_patches: int
    """Number of uncertain patches over all images."""


class ContextUncertainty(NamedTuple):
    """Predicted log-σ = ℓ/2 on the uncertain patches, without and with context: patch means, (M·U,) float64."""

    t: float
    context_time: float
    alone: Floats
    with_context: Floats
    """Log-σ on the same patches, in the same order."""
    difference: Estimate
    """Mean of with_context − alone over an image's uncertain patches, then over images; 95 % bootstrap interval over
    images."""
    images: int


class _Split(NamedTuple):
    """A batch, its prediction with all patches at t, and the patches that are confident there."""

    x1: Tensor
    x0: Tensor
    y: Tensor
    t: float
    patch: int
    alone: Prediction
    confident: Tensor
    """Mask of the confident patches, (B, N) bool."""

    def with_context(self, model: ContextModel, context_time: float) -> Prediction:
        """The prediction when the confident patches are at the context time, along the same noise."""
        if context_time == self.t:
            return self.alone  # no context to show
        both = torch.tensor([self.t, context_time], dtype=torch.float32, device=self.x1.device)
        index = self.confident.long()
        shown = flow.interpolate(self.x0, self.x1, both[index], self.patch)
        # Two timesteps per image: modulations are computed twice, not N times.
        return model(shown, TimestepLevels(both.expand(len(index), 2), index), self.y)

    def squared_error(self, prediction: Prediction) -> Tensor:
        """Mean of (v* − v)² over each patch, (B, N) float64."""
        error = flow.velocity_target(self.x0, self.x1) - prediction.velocity.float()
        return grid.pool(error.square(), self.patch).double()

    def log_sigma(self, prediction: Prediction) -> Tensor:
        """Mean of ℓ/2 over each patch, (B, N) float64."""
        assert prediction.log_variance is not None  # the first prediction had one
        return grid.pool(prediction.log_variance.float() / 2, self.patch).double()

    def image_means(self, values: Tensor) -> Tensor:
        """Mean of values (B, N) over each image's uncertain patches, (B,). There is at least one, because confident
        patches lie strictly below the quantile."""
        uncertain = ~self.confident
        return (values * uncertain).sum(dim=1) / uncertain.sum(dim=1)


def _splits(
    model: ContextModel, x1: Tensor, y: Tensor, x0: Tensor, *, t: float, share: float, batch: int
) -> Iterator[_Split]:
    """Run the model with all patches at t, batch by batch, and split them as the adaptive samplers do."""
    for first in range(0, len(x1), batch):
        rows = slice(first, first + batch)
        data, noise = x1[rows], x0[rows]
        times = torch.full((len(data),), t, device=data.device)
        alone = model(flow.interpolate(noise, data, times, model.patch), times, y[rows])
        if alone.log_variance is None:
            raise ValueError(
                "a model without a difficulty head predicts no uncertainty: no patch is confident, and there is no "
                "context to give. Use a PFT."
            )
        u = uncertainty(alone, model.patch, "mean")
        confident = confident_patches(u, model.patch, quantile=share, threshold=None)
        yield _Split(data, noise, y[rows], t, model.patch, alone, confident)


def _require(x1: Tensor, t: float, share: float, batch: int) -> None:
    require(len(x1) >= 2, "x1", f"{len(x1)} images", "at least 2 images, for an interval over images")
    require(0 < t < 1, "t", t, "between 0 and 1, both excluded")
    require(0 < share < 1, "confident_share", share, "between 0 and 1, both excluded")
    require(batch > 0, "batch", batch, "> 0")


def _context_times(t: float, given: Sequence[float] | None) -> list[float]:
    """Context times: t, then the later ones in rising order, each once."""
    if given is None:
        given = [*np.linspace(t, 1, CONTEXT_TIMES).tolist(), *([2 * t] if 2 * t <= 1 else [])]
    for time in given:
        require(t - SAME_TIME <= time <= 1, "context_times", time, f"in [t, 1] = [{t:g}, 1]")
    times = [t]
    for time in sorted(given):
        if time - times[-1] > SAME_TIME:
            times.append(time)
    return times


@torch.no_grad()
def context_helps(
    model: ContextModel,
    x1: Tensor,
    y: Tensor,
    x0: Tensor,
    *,
    t: float,
    context_times: Sequence[float] | None = None,
    confident_share: float = CONFIDENT_SHARE,
    batch: int = 64,
    progress: Progress = lambda share: None,
) -> ContextHelps:
    """The paper's "context helps": the loss on uncertain patches by the context time of the confident ones.

    It takes one forward pass of every image per context time.

    Args:
        x1: held-out images (M, C, H, W), with labels y (M,) and noise x0 like x1.
        t: timestep of the uncertain patches, in (0, 1).
        context_times: times of the confident patches, in [t, 1]; t itself is put first where it is missing. Default: 13
            evenly spaced from t to 1, and 2t, near which the paper finds the minimum.
        confident_share: patches whose uncertainty lies strictly below this quantile of their image are confident.
        batch: images per forward pass.

    Raises:
        FieldError: fewer than 2 images; t, a context time or the share out of range.
        ValueError: a model without a difficulty head.
    """
    _require(x1, t, confident_share, batch)
    times = _context_times(t, context_times)
    losses: list[Tensor] = []  # (B, K) per batch
    uncertain, done, passes = 0, 0, len(times) * -(-len(x1) // batch)
    for split in _splits(model, x1, y, x0, t=t, share=confident_share, batch=batch):
        uncertain += int((~split.confident).sum())
        columns = []
        for context_time in times:
            columns.append(split.image_means(split.squared_error(split.with_context(model, context_time))))
            done += 1
            progress(done / passes)
        losses.append(torch.stack(columns, dim=1))
    by_image: Floats = torch.cat(losses).cpu().numpy()
    m, k = by_image.shape
    by_image = np.concatenate([by_image, by_image - by_image[:, :1]], axis=1)  # (M, 2K): losses, changes
    estimates = bootstrap(by_image.mean(axis=0), lambda counts: counts @ by_image / m, m)
    loss, low, high = np.array([estimate[:3] for estimate in estimates[:k]]).T
    change, change_low, change_high = np.array([estimate[:3] for estimate in estimates[k:]]).T
    return ContextHelps(t, np.array(times), loss, low, high, change, change_low, change_high, m, uncertain)


@torch.no_grad()
def context_uncertainty(
    model: ContextModel,
    x1: Tensor,
    y: Tensor,
    x0: Tensor,
    *,
    t: float,
    context_time: float | None = None,
    confident_share: float = CONFIDENT_SHARE,
    batch: int = 64,
    progress: Progress = lambda share: None,
) -> ContextUncertainty:
    """The paper's "context lowers uncertainty": predicted log-σ on uncertain patches with and without context.

    Args:
        x1, y, x0, t, confident_share, batch: as in `context_helps`.
        context_time: time of the confident patches, in [t, 1]; min(1, 2t) by default.

    Raises:
        FieldError, ValueError: as `context_helps`.
    """
    _require(x1, t, confident_share, batch)
    time = min(1.0, 2 * t) if context_time is None else context_time
    require(t - SAME_TIME <= time <= 1, "context_time", time, f"in [t, 1] = [{t:g}, 1]")
    alone, shown, differences = [], [], []
    batches = -(-len(x1) // batch)
    for done, split in enumerate(_splits(model, x1, y, x0, t=t, share=confident_share, batch=batch)):
        before = split.log_sigma(split.alone)
        progress((done + 0.5) / batches)
        after = split.log_sigma(split.with_context(model, time))
        progress((done + 1) / batches)
        alone.append(before[~split.confident])
        shown.append(after[~split.confident])
        differences.append(split.image_means(after - before))
    by_image: Floats = torch.cat(differences).cpu().numpy()
    m = len(by_image)
    (difference,) = bootstrap(by_image.mean(keepdims=True), lambda counts: (counts @ by_image / m)[:, None], m)
    return ContextUncertainty(t, time, torch.cat(alone).cpu().numpy(), torch.cat(shown).cpu().numpy(), difference, m)


def context_metrics(helps: ContextHelps, uncertainty: ContextUncertainty) -> dict[str, float]:
    """Metrics of both ablations at one t, under their fixed names.

    `context/loss_t0.10` (no context) and `context/change_at_2t_t0.10`, with intervals; `context/loss_t0.10_at0.400`,
    the curve; `context/log_sigma_change_t0.10` with its interval; `context/log_sigma_t0.10_alone_q50` and
    `…_context_q50`, the distributions of log-σ by their quantiles in percent.
    """
    t = helps.t
    metrics: dict[str, float] = {}

    def put(kind: str, value: float, low: float, high: float) -> None:
        name = MetricName(kind, t=t)
        metrics.update(zip(map(str, (name, *name.bounds)), map(float, (value, low, high)), strict=True))

    put("context/loss", helps.loss[0], helps.low[0], helps.high[0])
    # The change at a time that is fixed in advance: the change at the minimum is never positive, whatever the model.
    twice = int(np.abs(helps.context_times - 2 * t).argmin())
    put("context/change_at_2t", helps.change[twice], helps.change_low[twice], helps.change_high[twice])
    best = int(helps.loss.argmin())
    metrics[str(MetricName("context/minimum", t=t))] = float(helps.context_times[best])
    metrics[str(MetricName("context/change_at_minimum", t=t))] = float(helps.change[best])
    for time, loss in zip(helps.context_times.tolist(), helps.loss, strict=True):
        # Evenly spaced times may have many decimals; names round them to three.
        name = MetricName("context/loss", t=t, context_time=round(time, CONTEXT_DECIMALS))
        metrics[str(name)] = float(loss)
    put("context/log_sigma_change", *uncertainty.difference[:3])
    shown: Literal["alone", "context"]
    for shown, values in (("alone", uncertainty.alone), ("context", uncertainty.with_context)):
        name = MetricName("context/log_sigma", t=t, shown=shown, statistic="mean")
        metrics[str(name)] = float(values.mean())
        for q, value in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True):
            metrics[str(replace(name, statistic=round(100 * q)))] = float(value)
    return metrics
