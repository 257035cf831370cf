"""Experiments and tables by name and by file. Oracles: what the files hold; one line with its cure for each mistake."""

from __future__ import annotations

import pytest

from pforce import catalog
from pforce.base.errors import ConfigError
from pforce.commands.reproduce import tables_named
from pforce_experiments.openmoji32 import openmoji32_micro

MINE = """
from dataclasses import replace
from pforce_experiments.openmoji32 import openmoji32_micro
from pforce.config import Experiment

def openmoji32_micro_twice() -> Experiment:
    \"\"\"Twice the seed.\"\"\"
    return replace(openmoji32_micro(), seed=2)
"""
TWO = (
    MINE
    + """

def other() -> Experiment:
    return openmoji32_micro()

def helper(x: int) -> int:
    return x
"""
)
LATER = "from __future__ import annotations\n"
PLAIN = MINE.replace(" -> Experiment", "")
LIAR = MINE.replace("return replace(openmoji32_micro(), seed=2)", "return {}")
BROKEN = MINE.replace("return replace(openmoji32_micro(), seed=2)", "raise KeyError('no')")
SAMPLER = """
from dataclasses import dataclass, replace
from typing import ClassVar
import torch
from pforce_experiments.openmoji32 import openmoji32_micro
from pforce.config import Experiment
from pforce.timesteps import TimestepSampler

@dataclass(frozen=True)
class Own(TimestepSampler):
    name: ClassVar[str] = "own"

    def __call__(self, batch, patches, *, generator=None, device="cpu", dtype=torch.float32):
        return torch.rand(batch, patches)

def mine() -> Experiment:
    return replace(openmoji32_micro(), timesteps=Own())
"""
TABLE = """
from dataclasses import replace
from pforce_experiments import paper
MY_TABLE = replace(paper.TIMESTEP_SCHEDULES, name="mine")
"""


@pytest.fixture
def file(tmp_path):
    def write(text: str, name: str = "mine.py") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_an_experiment_of_a_file(file):
    """The only one need not be named; where one has another's name, the file's is meant."""
    path = file(MINE)
    assert catalog.experiment(path) == catalog.experiment(f"{path}:openmoji32_micro_twice")
    assert catalog.experiment(path).seed == 2
    same_name = file(MINE.replace("openmoji32_micro_twice", "openmoji64_s"), "other.py")
    assert catalog.experiment(f"{same_name}:openmoji64_s").seed == 2
    assert catalog.experiment("openmoji32_micro") == openmoji32_micro()
    assert "openmoji32_micro_twice" not in catalog.experiments()
    plain = file(PLAIN, "plain.py")
    assert catalog.experiment(f"{plain}:openmoji32_micro_twice").seed == 2, "one that is named needs no annotation"


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("def f(:", "", r"mine\.py:1: SyntaxError: "),
        ("import nowhere_to_be_found", "", r"mine\.py: ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("x = 1", "", r"mine\.py: has no function `def NAME\(\) -> Experiment`"),
        (TWO, "", r"has several: openmoji32_micro_twice, other; say which as .*mine\.py:NAME"),
        (TWO, ":othr", r"mine\.py:othr: not in the file, .*did you mean other\?"),
        (TWO, ":helper", r"mine\.py:helper: needs x: an experiment's function takes no arguments"),
        (PLAIN, "", r"mine\.py: has no function annotated `-> Experiment`; annotate one, or name it"),
        ("raise SystemExit(3)", "", r"mine\.py: SystemExit: 3"),
        (LATER + "def f() -> Nothing: ...", "", r"mine\.py: f: its annotations cannot be read: NameError"),
        (LIAR, "", r"returned dict: must return an Experiment"),
        (BROKEN, "", r"KeyError: 'no'"),
        (MINE.replace("seed=2", "seed=-2"), "", r"mine\.py: seed = -2"),
        (SAMPLER, "", r"timesteps is a Own of the file itself, .* put the class into a module"),
    ],
)
def test_mistakes_in_a_file_are_one_line(file, text, name, message):
    with pytest.raises(ConfigError, match=message) as caught:
        catalog.experiment(file(text) + name)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.py: no such file"):
        catalog.experiment(f"{tmp_path}/none.py:f")


def test_a_table_of_a_file(file):
    path = file(TABLE)
    for name in ("", ":MY_TABLE", ":mine"):
        assert [table.name for table in tables_named((path + name,))] == ["mine"]
    with pytest.raises(ConfigError, match=r"mine\.py:other: not in the file"):
        tables_named((f"{path}:other",))
    with pytest.raises(ConfigError, match=r"timestep_schedule: unknown table; did you mean timestep_schedules\?"):
        tables_named(("timestep_schedule",))


def test_an_entry_point_that_does_not_load_is_said_and_hides_no_other(monkeypatch):
    from importlib.metadata import EntryPoint

    from pforce import config

    whole = config.entry_points(group=config.EXPERIMENTS)
    broken = EntryPoint("theirs", "not_there_at_all", config.EXPERIMENTS)
    monkeypatch.setattr(config, "entry_points", lambda group: [broken, *whole])
    with pytest.warns(UserWarning, match=r"not_there_at_all \(entry point theirs .*cannot be imported"):
        assert "openmoji32_micro" in catalog.experiments()
