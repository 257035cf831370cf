"""A small output of each component, kept beside its version: what changes it without a new version is seen.

Results are named by versions, so a result of before would be taken for one of now. Where a change of the code is meant
to change a component's output, raise its version in `pforce.records.identity.VERSIONS`, then

    python -m tests.records.test_versions

writes the outputs anew. They are compared to 1e-3, as other processors and versions of torch round differently.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from pforce import timesteps
from pforce.metrics.detectors import load_detector
from pforce.metrics.distances import NEAREST, distances
from pforce.metrics.features import FeatureSet
from pforce.metrics.held_out import HeldOutData, held_out_data, measure_context, measure_difficulty, measure_loss
from pforce.metrics.memorisation import Training
from pforce.metrics.reference import of_features
from pforce.models import ModelConfig, PatchForcingTransformer, build
from pforce.parallel import ALONE
from pforce.records.identity import VERSIONS
from pforce.sampling import SAMPLERS
from pforce.training import train
from pforce.trial.draw import read_block
from pforce.trial.train import training_state
from tests.training.conftest import DATA, tiny

OUTPUTS = Path(__file__).with_name("outputs.json")
ELSEWHERE = {
    "detector.inception": "tests/metrics/test_fidelity.py",
    "detector.dinov2": "tests/metrics/test_fidelity.py",
}
"""Components whose weights are nobody's to pass on, and what holds them instead."""
CPU = torch.device("cpu")


@cache
def model() -> PatchForcingTransformer:
    """A tiny transformer whose weights are sines: no generator of random numbers is asked."""
    found = build(ModelConfig(depth=2, width=16, heads=2, patch=4, image_size=(16, 16), channels=3, classes=4)).eval()
    with torch.no_grad():
        for number, parameter in enumerate(found.parameters()):
            angles = torch.arange(parameter.numel(), dtype=torch.float64) * 0.7 + number
            parameter.copy_((0.15 * torch.sin(angles)).reshape(parameter.shape))
    return found


def images(count: int, size: int) -> torch.Tensor:
    """(N, 3, H, W) uint8: slanted waves."""
    n, c, y, x = torch.meshgrid(*(torch.arange(k) for k in (count, 3, size, size)), indexing="ij")
    return (127.5 + 127.5 * torch.sin(0.3 * (n + 1) * x + 0.2 * (c + 1) * y)).round().to(torch.uint8)


def features(shift: float) -> FeatureSet:
    angles = torch.arange(60 * 4, dtype=torch.float64).reshape(60, 4)
    values = (torch.sin(1.7 * angles * angles + shift) + 0.1 * shift).float()
    labels = torch.arange(60) % 4
    return FeatureSet("openmoji", "0" * 64, values, logits=3 * values, labels=labels, predicted=values.argmax(dim=1))


@cache
def held_out() -> HeldOutData:
    return held_out_data(images(6, 16), torch.arange(6) % 4, seed=0, batch=4, device=CPU)


def _timesteps(name: str) -> list[float]:
    generator = torch.Generator().manual_seed(0)
    drawn = timesteps.SAMPLERS[name]()(4, 6, generator=generator, dtype=torch.float64)
    return drawn.flatten().tolist()


def _sampler(name: str) -> list[float]:
    torch.manual_seed(0)
    x0 = torch.sin(torch.arange(2 * 3 * 16 * 16, dtype=torch.float32)).reshape(2, 3, 16, 16)
    x1 = SAMPLERS[name](num_function_evaluations=8).sample(model(), x0, torch.tensor([1, 3]), seed=0, first=0)
    return [float(x1.mean()), float(x1.std()), *x1.flatten()[::191].tolist()]


def _metric(name: str) -> list[float]:
    drawn, train, held_out = (
        dataclasses.replace(features(shift), pixels=images(60, 8).roll(shift, 2)) for shift in (1, 0, 2)
    )
    measured = distances(
        features(0.5) if name != NEAREST else drawn, of_features(features(0.0), "waves", "waves"), [name],
        training=Training(held_out, 60, lambda: iter([train])),
    )  # fmt: skip
    return [float(value) for _, value in sorted(measured.metrics.items())]


def _held_out(name: str) -> list[float]:
    data, tiny_model = held_out(), model()
    if name == "loss":
        found = measure_loss(tiny_model, data)
    elif name == "difficulty":
        found = measure_difficulty(tiny_model, data, 0.4)
    else:
        found = measure_context(tiny_model, data, 0.2, lambda share: None)
    return [float(value) for _, value in sorted(found.values.items())]


def _detector(name: str) -> list[float]:
    return read_block(load_detector(name), images(3, 32)).features.double().flatten()[::7].tolist()


def _training(_: str) -> list[float]:
    experiment = tiny(3)
    state = training_state(experiment, DATA, "0" * 32, CPU, workers=ALONE)
    train(state, flip=True, callbacks=())
    weights = torch.cat([p.detach().flatten().double() for p in state.ema.model.parameters()])
    return [float(weights.norm()), float(weights.abs().mean()), *weights[::2111].tolist()]


MAKERS: dict[str, Callable[[str], list[float]]] = {
    "timesteps": _timesteps, "sampler": _sampler, "metric": _metric, "held_out": _held_out, "detector": _detector,
    "training": _training,
}  # fmt: skip


def output(component: str) -> list[float]:
    kind, _, name = component.partition(".")
    return MAKERS[kind](name)


def components() -> Iterator[str]:
    yield from (component for component in VERSIONS if component not in ELSEWHERE)


@pytest.mark.parametrize("component", components())
def test_an_output_changes_with_its_version_only(component):
    kept = json.loads(OUTPUTS.read_text()).get(component)
    assert kept is not None, "a new component: write the outputs anew"
    assert kept["version"] == VERSIONS[component], "its version was raised: write the outputs anew"
    found = output(component)
    assert found
    assert all(math.isfinite(value) for value in found)
    assert np.allclose(found, kept["output"], rtol=1e-3, atol=1e-5), (
        f"{component} gives other numbers than results that are recorded under version {VERSIONS[component]}: "
        "raise it in pforce/records/identity.py, then write the outputs anew"
    )


def test_the_outputs_say_something():
    """No two components give the same, and none gives nothing: the comparison is no comparison of zeros."""
    kept = {name: entry["output"] for name, entry in json.loads(OUTPUTS.read_text()).items()}
    assert len({tuple(values) for values in kept.values()}) == len(kept)
    for component, values in kept.items():
        assert max(abs(value) for value in values) > 1e-3, component


def main() -> None:
    """Write the outputs of all components."""
    torch.set_num_threads(1)
    found = {
        component: {"version": VERSIONS[component], "output": [float(f"{value:.8g}") for value in output(component)]}
        for component in components()
    }
    OUTPUTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
