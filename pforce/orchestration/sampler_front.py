"""The samplers of a search as a frame: one row per sampler, with the front of distance and function evaluations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pandas as pd

from pforce.config import sampler_from_dict
from pforce.metrics.names import CostName
from pforce.records.cell import result_of
from pforce.records.ledger import Ledger
from pforce.records.sweeps import SweepEntry
from pforce.results.pareto import on_front
from pforce.sampling import Sampler

Metrics = Mapping[str, float]


def front_frame(
    measured: Iterable[tuple[Sampler, Metrics, Metrics | None]], settings: Sequence[str], distance: str, images: int
) -> pd.DataFrame:
    """One row per sampler: settings, NFE and other costs, the distance, `again`, n, and whether it is on the `front`.

    Args:
        measured: (sampler, metrics, metrics from other noise or None).
        settings: names of the settings that are searched.
        distance: name of the distance.
        images: number of generated images.
    """
    rows = []
    for sampler, metrics, other in measured:
        record = sampler.canonical()
        rows.append({
            "sampler": sampler.name,
            **{name: record.get(name) for name in settings},
            "NFE": int(metrics[CostName.NFE]),
            "passes": metrics.get(CostName.FORWARD_PASSES, float("nan")),
            "GFLOPs/image": metrics[CostName.FLOPS] / 1e9,
            "s/image": metrics.get(CostName.SAMPLING_SECONDS, float("nan")),
            distance: metrics[distance],
            "again": other[distance] if other else float("nan"),
            "n": images,
        })  # fmt: skip
    frame = pd.DataFrame(rows)
    frame["front"] = on_front(frame, [distance, "NFE"]) if len(frame) else []
    return frame


def recorded_samplers(
    entry: SweepEntry, ledger: Ledger, noise_seed: int
) -> Iterator[tuple[Sampler, Metrics, Metrics | None]]:  # fmt: skip
    """The samplers of a search's file that the storage has measured, as `front_frame` takes them."""
    found: dict[str, dict[int, Metrics]] = {}
    for cell in entry.cells:
        result = result_of(cell, ledger)
        if result is not None:
            found.setdefault(str(cell.params["sampler.json"]), {})[cell.seed] = result.metrics
    for text, by_seed in found.items():
        if noise_seed in by_seed:
            other = next((metrics for seed, metrics in by_seed.items() if seed != noise_seed), None)
            yield sampler_from_dict(json.loads(text)), by_seed[noise_seed], other
