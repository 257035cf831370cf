"""What the README tells a newcomer to do is done here, word for word."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import torch

from experiments.openmoji32 import openmoji32_micro
from pforce import catalog, cli, timesteps
from pforce.config import field_paths, from_dict, to_dict, with_fields
from pforce.records.parts import Inputs, training_part

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


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


def test_commands_name_things_that_are_there():
    """Scripts, experiments and fields of every command in the README exist."""
    root = Path(__file__).resolve().parents[1]
    commands = [shlex.split(line, comments=True) for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) > 8
    known = catalog.experiments()
    for command in filter(None, commands):
        if command[0] == "pforce":
            assert any(tuple(command[1 : 1 + len(words)]) == words for words in cli.COMMANDS), command
        for word in command:
            if word.endswith(".py"):
                assert (root / word).exists(), word
            if word.startswith(("openmoji32", "imagenet256")):
                assert word in known
            if "=" in word and "." in word.split("=")[0]:
                assert word.split("=")[0] in field_paths(openmoji32_micro()), word
