"""What differs between two cells, sweeps and experiments. Oracle: two cells that differ in one field."""

from __future__ import annotations

from pathlib import Path

import pytest

from pforce import results
from pforce.base.console import DONE
from pforce.base.errors import ConfigError
from pforce.commands.diff import diff
from pforce.orchestration.axes import Axis
from pforce.orchestration.options import Options, StorageOptions
from pforce.orchestration.script import run_sweep
from tests.orchestration.conftest import small_sweep

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def storage(tmp_path_factory) -> Path:
    """Two finished cells, which differ in sigma."""
    folder = tmp_path_factory.mktemp("two")
    sweep = small_sweep(Axis("timesteps.sigma", (0.1, 0.3)), steps=4)
    assert run_sweep(sweep, Options(storage=str(folder), cpus_per_trial=1), executor="local") == DONE
    return folder


def cells_of(storage: Path) -> list[str]:
    return list(results.runs(storage, "small").sort_values("timesteps.sigma")["fingerprint"])


def call(storage: Path, a: str, b: str, capsys, **more) -> str:
    assert diff(a, b, store=StorageOptions(storage=str(storage)), **more) == DONE
    return capsys.readouterr().out


def test_two_cells_differ_in_one_field_and_their_numbers(storage, capsys, tmp_path):
    one, other = cells_of(storage)
    out = tmp_path / "diff.html"
    text = call(storage, one[:12], other, capsys, out=out)
    fields = text.partition("Numbers")[0]
    assert "timesteps.sigma" in fields
    assert fields.count("timesteps.") == 1, "nothing else differs"
    frame = results.runs(storage, "small").set_index("fingerprint")
    difference = frame["val/loss"][other] - frame["val/loss"][one]
    assert f"{difference:+.4g}" in text
    assert "fd/openmoji_low" not in text
    assert "has no interval" in text
    html = out.read_text()
    assert html.count("data:image/png;base64") >= 2, "pictures of both"
    assert "timesteps.sigma" in html


def test_a_cell_and_itself(storage, capsys):
    one, _ = cells_of(storage)
    assert "All fields are equal." in call(storage, one, one, capsys)


def test_a_sweep_and_an_experiment(storage, capsys):
    """The sweep's column has all its values."""
    text = call(storage, "small", "openmoji32_micro", capsys)
    row = next(line for line in text.splitlines() if "timesteps.sigma" in line)
    assert "0.1, 0.3" in row
    assert "2 cells" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("smal", "small"), "smal: is nothing in .* did you mean small"),
        (("small", "0123456"), "0123456: is nothing in"),
        (("openmoji32_micr", "small"), "did you mean openmoji32_micro"),
    ],
)
def test_what_is_not_there_is_said(storage, capsys, words, message):
    with pytest.raises(ConfigError, match=message):
        call(storage, *words, capsys)
