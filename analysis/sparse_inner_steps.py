"""Are token-sparse inner steps worth it? Distance against FLOPs and time, dense against sparse, on a trained model.

`dual_loop` with `sparse = True` evaluates, in its inner steps, the uncertain patches only, with the keys and values
that the others had at the step's start. Each sampler is measured from the noise of several seeds (shared by all
samplers), in an order that changes from seed to seed; means with standard deviations over seeds, paired differences.

    python analysis/sparse_inner_steps.py MODEL --images 500 --seeds 0 1 2
"""

from __future__ import annotations

import dataclasses
import json
import platform
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import tyro
from rich.console import Console
from rich.progress import track

from pforce.orchestration.find import find_source
from pforce.orchestration.measurer import Failed, Measurement, Measurer
from pforce.orchestration.pool import drain, make_pool
from pforce.orchestration.sampler_report import make_subject
from pforce.orchestration.script import exit_on_errors
from pforce.results.pareto import on_front
from pforce.sampling import SamplerConfig
from pforce.sources import load_source


@dataclass(frozen=True)
class Arguments:
    """Dense against sparse inner steps on one model."""

    model: Annotated[str, tyro.conf.Positional]
    """A trial's folder, a checkpoint or model file, an MLflow run id, an experiment, or best:SWEEP."""
    images: int = 500
    """Generated images a measurement."""
    nfe: int = 24
    """Function evaluations of the dual loops."""
    euler: tuple[int, ...] = (6, 12, 18, 24)
    """NFE of Euler, for the front."""
    quantiles: tuple[float, ...] = (0.4, 0.7)
    """Shares of confident patches."""
    inner_steps: tuple[int, ...] = (2, 4)
    """K."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the noise."""
    workers: int | None = None
    """By default one a GPU, or one a core."""
    storage: Path = Path("runs")
    """Where sweeps leave their files."""
    out: Path = Path("analysis/results/sparse_inner_steps.json")
    """The figures."""


def samplers(a: Arguments) -> dict[str, SamplerConfig]:
    """By name; a dense dual loop and its sparse twin differ in `, sparse` only."""
    found = {f"euler, {nfe}": SamplerConfig("euler", nfe) for nfe in a.euler}
    for quantile in a.quantiles:
        for k in a.inner_steps:
            dense = SamplerConfig("dual_loop", a.nfe, quantile=quantile, inner_steps=k)
            name = f"dual_loop, {a.nfe}, quantile {quantile}, K {k}"
            found |= {name: dense, f"{name}, sparse": dataclasses.replace(dense, sparse=True)}
    return found


def main() -> int:
    """Measure, print, write."""
    a = tyro.cli(Arguments, description=__doc__)
    source = load_source(find_source(a.model, storage=a.storage))
    subject = make_subject(source, data=None, images=a.images, reference_images=1000, seed=0)
    configs = samplers(a)
    names = {config: name for name, config in configs.items()}
    tasks = []
    for seed in a.seeds:
        order = list(configs.values())
        random.Random(seed).shuffle(order)
        tasks += [Measurement(config, seed) for config in order]
    rows = []
    distance = f"fd/{subject.evaluation.detector}"
    waiting = iter(tasks)
    with make_pool(a.workers, None, Measurer, subject) as pool:
        workers = pool.workers
        results = drain(pool, lambda: next(waiting, None))
        for task, metrics in track(results, "measuring", total=len(tasks), console=Console(stderr=True)):
            if isinstance(metrics, Failed):
                raise RuntimeError(f"{names[task.sampler]}: {metrics.error}")  # noqa: TRY004
            rows.append({"name": names[task.sampler], "seed": task.seed, **metrics})
    frame = pd.DataFrame(rows)
    table = frame.groupby("name").agg(
        fd=(distance, "mean"), fd_sd=(distance, "std"), nfe=("cost/nfe", "first"),
        gflops=("cost/flops_per_image", lambda values: values.iloc[0] / 1e9),
        seconds=("cost/sampling_seconds_per_image", "median"), n=("seed", "count"),
    )  # fmt: skip
    table["front"] = on_front(table, ["fd", "gflops"])
    pairs = []
    by_name = frame.set_index(["name", "seed"])
    for name in [name for name in table.index if name.endswith(", sparse")]:
        dense = by_name.loc[name.removesuffix(", sparse")]
        sparse = by_name.loc[name]
        change = sparse[distance] - dense[distance]
        speed = dense["cost/sampling_seconds_per_image"] / sparse["cost/sampling_seconds_per_image"]
        pairs.append({
            "sampler": name, "fd_change": change.mean(), "fd_change_sd": change.std(), "n": len(change),
            "speed_up": speed.median(), "speed_up_range": [speed.min(), speed.max()],
            "flops_ratio": dense["cost/flops_per_image"].iloc[0] / sparse["cost/flops_per_image"].iloc[0],
        })  # fmt: skip
    console = Console(width=160)
    console.print(table.sort_values("gflops").round(4).to_string(), highlight=False)
    console.print(pd.DataFrame(pairs).round(3).to_string(), highlight=False)
    config = source.model.config
    record = {
        **{key: value for key, value in source.about().items() if key != "source"},
        "model": f"depth {config.depth}, width {config.width}, patch {config.patch}",
        "images": a.images, "seeds": list(a.seeds), "workers": workers,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "torch": torch.__version__, "python": platform.python_version(),
        "samplers": table.reset_index().to_dict("records"), "pairs": pairs,
    }  # fmt: skip
    a.out.parent.mkdir(parents=True, exist_ok=True)
    a.out.write_text(json.dumps(record, indent=1, default=float) + "\n")
    return 0


if __name__ == "__main__":
    exit_on_errors(main)
