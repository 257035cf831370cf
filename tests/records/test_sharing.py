"""Processes that want the same share the work. Oracles: forwards and steps counted; the numbers of one alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pforce.config import Experiment, to_dict, with_fields
from pforce.records.ledger import Ledger
from pforce.records.row import Row
from pforce.storage import Storage
from pforce.trial.run import run_trial
from pforce.trial.where import Paths, Where
from tests.support.starts import Start
from tests.training.conftest import DATA, tiny

FIELDS = {
    "evaluation.images": 768, "evaluation.held_out_images": 64, "evaluation.context_timesteps": [0.2, 0.4],
    "sampler.num_function_evaluations": 24, "evaluation.difficulty_timesteps": [0.2, 0.4, 0.6],
}  # fmt: skip
CODE = """
import json, sys, time
from pathlib import Path
import torch
from pforce.config import from_dict
from pforce.models import PatchForcingTransformer
from pforce.storage import Storage
from pforce.training import Callback
from pforce.trial.where import Paths, Where
from pforce.trial.run import run_trial
torch.set_num_threads(1)
root, data, out = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
experiment = from_dict(json.loads(sys.argv[4]))
forward, drawn, steps = PatchForcingTransformer.forward, [0], [0]
def counting(self, x, t, y):
    if not torch.is_grad_enabled() or not self.training:
        drawn[0] += len(x)
    return forward(self, x, t, y)
PatchForcingTransformer.forward = counting
class Steps(Callback):
    def on_step(self, state):
        steps[0] += 1
print("ready", flush=True)
while not out.with_suffix(".go").exists():
    time.sleep(0.001)
row = run_trial(experiment, Paths(data, Storage.open(root)), Where(torch.device("cpu"), callbacks=[Steps()]))
out.write_text(json.dumps({"forwards": drawn[0], "steps": steps[0], "metrics": row.metrics}))
"""


def numbers(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith(("cost/", "throughput/"))}


def at_once(root: Path, experiment: Experiment, count: int) -> list[dict]:
    """So many processes that begin the same at the same moment."""
    given = json.dumps(to_dict(experiment))
    outs = [root.parent / f"{root.name}-{number}.json" for number in range(count)]
    several = [Start(["-c", CODE, str(root), str(DATA), str(out), given]) for out in outs]
    for each in several:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    for out in outs:
        out.with_suffix(".go").touch()
    for each in several:
        assert each.wait(timeout=200) == 0
    return [json.loads(out.read_text()) for out in outs]


@pytest.mark.process
@pytest.mark.timeout(400)
def test_several_at_once_do_everything_once(tmp_path):
    """Three processes with one cell: the steps, and the forwards of drawing and measuring, of one alone."""
    experiment = with_fields(tiny(30), FIELDS)
    (alone,) = at_once(tmp_path / "alone", experiment, 1)
    several = at_once(tmp_path / "shared", experiment, 3)
    assert sum(each["steps"] for each in several) == alone["steps"] == 30
    assert sum(each["forwards"] for each in several) == alone["forwards"]
    assert sum(each["forwards"] > 0 for each in several) >= 2, "they shared nothing"
    assert all(numbers(each["metrics"]) == numbers(alone["metrics"]) for each in several)
    assert not (tmp_path / "shared" / "leases").exists()
    said: list[str] = []
    ledger = Ledger(Storage.open(tmp_path / "shared"), said.append)
    drawn = [record for record in ledger.all("drawing") for record in ledger.several(record.digest)]
    assert sum(record.cost["images"] for record in drawn) == 768
    row = run_trial(experiment, Paths(DATA, Storage.open(tmp_path / "shared")), Where(torch.device("cpu")))
    assert isinstance(row, Row)
    assert row.drawn is not None
    assert row.drawn.cost["images"] == 768
    assert said == []
