"""Errors of interpolated modulation along a training of the micro model, by number of nodes.

    python analysis/modulation_error.py --images 96000 --out analysis/results/modulation_error

At the start and at images seen = 64 × 2^k the interpolated modulations of all layers are compared with exact ones, on
random tokens, in float64: weights in training, averaged weights, and weights whose time embedding is multiplied by 4.
At the end outputs, loss and gradients are compared, too. An interrupted call resumes. Writes JSON and a Markdown table.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import torch

from pforce import flow, seeding
from pforce.config import with_fields
from pforce.data import ensure
from pforce.models import PatchForcingTransformer
from pforce.training import Callback, Checkpoints, TrainState, train
from pforce.trial.train import training_state
from pforce_experiments.openmoji32 import openmoji32_micro

NODES = (4, 6, 8, 12, 16)


def louder(model: PatchForcingTransformer, factor: float) -> PatchForcingTransformer:
    """A copy with a multiplied time embedding."""
    found = copy.deepcopy(model)
    with torch.no_grad():
        for value in found.t_embedder.mlp[2].parameters():
            value.mul_(factor)
    return found


def largest(model: PatchForcingTransformer) -> dict[str, float]:
    """The largest error over all layers for each number of nodes."""
    return {str(nodes): max(errors) for nodes, errors in zip(NODES, model.modulation_errors(NODES), strict=True)}


class Errors(Callback):
    """Measures errors, and writes them at once."""

    def __init__(self, path: Path, found: dict[str, Any]) -> None:
        self.path, self.found = path, found

    def on_start(self, state: TrainState) -> None:
        """Measure the start."""
        self.measure(state)

    def on_step(self, state: TrainState) -> None:
        """Measure after 1, 2, 4, 8, … steps and at the end."""
        if state.step & (state.step - 1) == 0 or state.step == state.spec.training.steps:
            self.measure(state)

    def measure(self, state: TrainState) -> None:
        """Measure these weights."""
        self.found[str(state.images_seen)] = {
            "weights": largest(state.model), "averages": largest(state.ema.model),
            "weights, embedding × 4": largest(louder(state.model, 4.0)), "nodes": state.model.modulation_nodes,
        }  # fmt: skip
        self.path.write_text(json.dumps(self.found, indent=1) + "\n")
        print(state.images_seen, self.found[str(state.images_seen)]["weights"], flush=True)


def differences(state: TrainState) -> dict[str, dict[str, float]]:
    """Largest differences from exact modulation for each number of nodes, on one batch: velocity, log-variance, loss,
    and gradients relative to each parameter's largest."""
    config, spec = state.model.config, state.spec
    generator = seeding.generator("modulation_error", 0)
    x1, x0 = torch.randn(2, 32, config.channels, *config.image_size, generator=generator)
    y = torch.randint(0, config.classes, (32,), generator=generator)
    t = spec.timesteps(32, config.patches, generator=generator)

    def measured(nodes: int) -> tuple[flow.Prediction, torch.Tensor, list[torch.Tensor]]:
        model = copy.deepcopy(state.model)
        model.modulation_nodes = nodes
        loss = flow.loss(model, x1, y, t, x0).total
        loss.backward()
        with torch.no_grad():
            return model(x1, t, y), loss.detach(), [p.grad for p in model.parameters() if p.grad is not None]

    (velocity, variance), loss, gradients = measured(0)
    assert variance is not None
    found = {}
    for nodes in NODES:
        (v, ell), other, others = measured(nodes)
        assert ell is not None
        pairs = zip(others, gradients, strict=True)
        found[str(nodes)] = {
            "velocity": (v - velocity).abs().max().item(), "log-variance": (ell - variance).abs().max().item(),
            "loss": (other - loss).abs().item(),
            "gradients": max(((b - a).abs().max() / a.abs().max().clamp(min=1e-12)).item() for b, a in pairs),
        }  # fmt: skip
    return found


def markdown(found: dict[str, Any], images: int) -> str:
    """The errors as tables."""
    lines = [
        "# Errors of interpolated modulation along a training of the micro model",
        "",
        f"`python analysis/modulation_error.py --images {images}`; torch {torch.__version__}, CPU. Largest "
        "relative error over all shifts, scales and gates of all layers, in float64; the differences below in float32.",
        "",
        "| images seen | nodes in use | " + " | ".join(f"K = {nodes}" for nodes in NODES) + " | averages, K = 8 "
        "| embedding × 4, K = 8 |",
        "|---" * (len(NODES) + 4) + "|",
    ]
    for seen in sorted((name for name in found if name.isdigit()), key=int):
        entry = found[seen]
        cells = [f"{entry['weights'][str(nodes)]:.1e}" for nodes in NODES]
        more = [f"{entry[kind]['8']:.1e}" for kind in ("averages", "weights, embedding × 4")]
        lines.append(f"| {int(seen):,} | {entry['nodes']} | " + " | ".join([*cells, *more]) + " |")
    lines += [
        "",
        "Differences from exact modulation at the end, one batch of 32 random images:",
        "",
        "| | " + " | ".join(f"K = {nodes}" for nodes in NODES) + " |",
        "|---" * (len(NODES) + 1) + "|",
    ]
    for name in ("velocity", "log-variance", "loss", "gradients"):
        cells = [f"{found['differences'][str(nodes)][name]:.1e}" for nodes in NODES]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=96_000, help="images seen at the end")
    parser.add_argument("--out", type=Path, required=True, help="path of the .json and .md to write, without suffix")
    parser.add_argument("--folder", type=Path, default=Path("runs/modulation_error"), help="folder of the checkpoints")
    a = parser.parse_args()
    torch.set_num_threads(1)
    experiment = with_fields(openmoji32_micro(), {"training.images": a.images})
    state = training_state(experiment, ensure(experiment.data), "modulation_error", torch.device("cpu"))
    path = a.out.with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    found = json.loads(path.read_text()) if path.exists() else {}
    train(state, flip=experiment.data.flip, callbacks=[Checkpoints(a.folder), Errors(path, found)])
    found["differences"] = differences(state)
    path.write_text(json.dumps(found, indent=1) + "\n")
    a.out.with_suffix(".md").write_text(markdown(found, a.images))
    print(markdown(found, a.images))


if __name__ == "__main__":
    main()
