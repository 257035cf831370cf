"""What the README and the guides tell a newcomer to do is done here, word for word."""

from __future__ import annotations

import math
import re
import shlex
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pforce import catalog, cli, timesteps
from pforce.config import EXPERIMENTS, check_path, from_dict, to_dict, with_fields
from pforce.flow import Prediction
from pforce.records.parts import Inputs, training_part
from pforce_experiments.openmoji32 import openmoji32_micro

ROOT = Path(__file__).resolve().parents[1]
TEXT = "\n".join(path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))))


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def test_the_sampler_of_the_readme_works_as_it_stands(monkeypatch):
    """One class and one entry in SAMPLERS: drawn, configured, validated, hashed, and read back from a record."""
    (source,) = [block for block in blocks("python") if "TimestepSampler" in block]
    namespace = dict(vars(timesteps))
    exec(source, namespace)
    sampler = namespace["PowerUniform"]
    monkeypatch.setitem(timesteps.SAMPLERS, sampler.name, sampler)
    t = sampler(3.0)(200, 64, generator=torch.Generator().manual_seed(0))
    assert abs(t.mean().item() - 0.25) < 0.01  # E[u³]
    experiment = with_fields(openmoji32_micro(), {"timesteps": "power_uniform", "timesteps.power": 3})
    assert experiment.timesteps == sampler(3.0)
    assert from_dict(to_dict(experiment)) == experiment
    inputs = Inputs("d", 10, 5, "openmoji", "e", "none")
    of_two = training_part(with_fields(experiment, {"timesteps.power": 2}), inputs)
    assert training_part(experiment, inputs).digest != of_two.digest


def test_the_solver_of_the_readme_is_a_sampler(module_of_experiments):
    """Its block is a whole module, which is found where experiments are. Second order: a quarter of the error."""
    (source,) = [block for block in blocks("python") if "(Sampler)" in block]
    module_of_experiments("midpoint", source)
    experiment = with_fields(openmoji32_micro(), {"sampler": "midpoint", "sampler.fraction": 0.7})
    assert experiment.sampler.fraction == 0.7
    assert from_dict(to_dict(experiment)) == experiment

    class Grows:
        """The velocity is the image: x(1) is e times x(0)."""

        config = experiment.model

        def __call__(self, x, t, y):
            return Prediction(x, None)

    def error(nfe: int) -> float:
        sampler = replace(experiment.sampler, num_function_evaluations=nfe, fraction=0.5)
        x1 = sampler.sample(Grows(), torch.ones(1, 3, 32, 32), torch.zeros(1, dtype=torch.long), seed=0, first=0)
        return abs(x1.mean().item() - math.e)

    assert error(32) / error(16) == pytest.approx(1 / 4, rel=0.1)


def test_the_experiment_and_the_package_of_the_guide_are_found(tmp_path):
    (source,) = [block for block in blocks("python") if "def my_experiment" in block]
    (tmp_path / "mine.py").write_text(source)
    assert catalog.experiment(f"{tmp_path / 'mine.py'}:my_experiment").model.width == 256
    (project,) = map(tomllib.loads, blocks("toml"))
    assert list(project["project"]["entry-points"]) == [EXPERIMENTS]


def test_links_lead_somewhere():
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
            assert target.startswith("http") or (path.parent / target).exists(), f"{path.name}: {target}"


def test_commands_name_things_that_are_there():
    """Scripts, experiments and fields of every command in the README exist."""
    commands = [shlex.split(line, comments=True) for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) > 8
    known = catalog.experiments()
    for command in filter(None, commands):
        if command[0] == "pforce":
            assert any(tuple(command[1 : 1 + len(words)]) == words for words in cli.COMMANDS), command
        for word in command:
            if word.endswith(".py"):
                assert (ROOT / word).exists(), word
            if word.startswith(("openmoji32", "imagenet256")):
                assert word in known
            if "=" in word and "." in word.split("=")[0]:
                check_path(openmoji32_micro(), word.split("=")[0])
