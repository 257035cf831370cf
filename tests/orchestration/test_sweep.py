"""Sweeps as data. Oracle: written-out grids, and the messages a user must get."""

from __future__ import annotations

import pytest

from pforce.base.console import duration
from pforce.base.errors import ConfigError, FieldError
from pforce.base.words import counted
from pforce.config import flat_params, with_fields
from pforce.executors.support.placement import Node, place
from pforce.orchestration.axes import Axis, format_value
from pforce.orchestration.calibration import estimate
from pforce.orchestration.grammar import parse_axis
from pforce.orchestration.script import parse_settings
from pforce.orchestration.sweep import Sweep, same_distribution_notes, unspent_notes
from pforce.records.parts import Inputs
from pforce.timesteps import LTG, SRM
from pforce_experiments.openmoji32 import openmoji32_micro
from tests.training.conftest import DATA, tiny

INPUTS = Inputs("d", 10, 5, "openmoji", "e", "none")


def grid(*axes, seeds=(0,)):
    return Sweep("s", openmoji32_micro(), axes, seeds)


def test_cells_are_the_product_with_seeds_outermost():
    cells = grid(Axis("timesteps.m", (0.0, 0.7)), Axis("timesteps.sigma", (0.2, 0.4)), seeds=(3, 5)).cells()
    assert [cell.label for cell in cells] == [
        f"m={m} sigma={s} seed={seed}" for seed in (3, 5) for m in ("0", "0.7") for s in ("0.2", "0.4")
    ]
    assert cells[5].experiment.timesteps == LTG(m=0.0, sigma=0.4)
    assert cells[5].experiment.seed == 5


def test_samplers_can_be_an_axis():
    cells = grid(Axis("timesteps", (LTG(), SRM(4.0), "independent_uniform"))).cells()
    assert [cell.experiment.timesteps.name for cell in cells] == ["ltg", "srm", "independent_uniform"]
    assert cells[1].label == "timesteps=srm seed=0"


@pytest.mark.parametrize(
    ("axes", "seeds", "message"),
    [
        ([Axis("timesteps.sigm", (1.0,))], (0,), "did you mean timesteps.sigma"),
        ([Axis("timesteps.sigma", (0.2, -1.0))], (0,), "timesteps.sigma = -1.0: must be > 0"),
        ([Axis("timesteps.m", ())], (0,), "at least one value"),
        ([Axis("timesteps.m", (1.0,)), Axis("timesteps.m", (2.0,))], (0,), "an axis twice"),
        ([Axis("seed", (1,))], (0,), "axis of every sweep"),
        ([], (0, 0), "each once"),
        ([], (), "at least one seed"),
        (
            [Axis("timesteps.sharpness", (1.0,))],
            (0,),
            "timesteps.sharpness = 1.0: does not apply to ltg: it is a setting of srm",
        ),
    ],
)
def test_what_is_wrong_is_said_when_the_sweep_is_defined(axes, seeds, message):
    with pytest.raises(ConfigError) as error:
        grid(*axes, seeds=seeds)
    assert message in str(error.value)


def test_a_name_that_is_no_file_name_is_refused():
    with pytest.raises(FieldError, match="name = 'ltg/v2'"):
        Sweep("ltg/v2", openmoji32_micro(), ())
    for name in (".", "..", "x" * 260, "", "a b"):
        with pytest.raises(FieldError, match="1 to 200 letters") as error:
            Sweep(name, openmoji32_micro(), ())
        assert len(str(error.value)) < 500
    with pytest.raises(ConfigError, match="set with --seeds"):
        parse_settings(("seed=3",))


def test_values_of_one_distribution_are_one_piece_of_work():
    sweep = grid(Axis("timesteps.sigma", (0.2, 0.5, 0.6)))
    work = sweep.work(INPUTS)
    assert [len(item.cells) for item in work] == [1, 2]
    (note,) = same_distribution_notes(work)
    assert "sigma=0.5 seed=0 and sigma=0.6 seed=0: the same distribution" in note
    assert sweep.identity(work) == grid(Axis("timesteps.sigma", (0.6, 0.2))).identity(
        grid(Axis("timesteps.sigma", (0.6, 0.2))).work(INPUTS)
    )


def test_axes_and_settings_from_the_command_line():
    assert parse_axis("timesteps.m=0,0.7") == Axis("timesteps.m", (0, 0.7))
    assert parse_axis("training.compile=true,False") == Axis("training.compile", (True, False))
    assert parse_axis("timesteps=srm,ltg").values == ("srm", "ltg")
    assert parse_settings(("training.images=640", "model.image_size=32,32", "data.path=none")) == {
        "training.images": 640,
        "model.image_size": (32, 32),
        "data.path": None,
    }
    with pytest.raises(ConfigError, match="FIELD=VALUE"):
        parse_axis("timesteps.m")


def test_parameters_are_flat():
    params = flat_params(openmoji32_micro())
    assert params["timesteps"] == "ltg"
    assert params["timesteps.m"] == 0.7
    assert params["sampler.guidance.scale"] == 1.0
    assert len(params) < 100  # MLflow's limit for a call


LAPTOP, BOX, NODE = Node(2, 0), Node(16, 4), Node(8, 2)


@pytest.mark.parametrize(
    ("cells", "nodes", "wanted", "expected"),
    [
        (4, [LAPTOP], {}, (2, 1, 0)),  # a laptop: two at a time
        (1, [LAPTOP], {}, (1, 2, 0)),  # one trial takes all cores
        (8, [BOX], {}, (4, 4, 1)),  # one GPU each
        (8, [Node(16, 1)], {"gpus": 0.25}, (4, 4, 0.25)),
        (
            9,
            [Node(16, 2)],
            {"gpus": 0.4},
            (4, 4, 0.4),
        ),  # two shares on each GPU
        (8, [Node(3, 4)], {"cpus": 2}, (1, 2, 1)),  # cores run out before GPUs
        (8, [Node(5, 0)], {"cpus": 2}, (2, 2, 0)),
        (1, [NODE, NODE], {}, (1, 8, 1)),  # a trial lies on one node, never on two
        (3, [Node(8, 0), Node(8, 0)], {}, (3, 4, 0)),
        (8, [Node(1, 0), NODE], {}, (2, 4, 1)),  # a head without GPUs takes no trial
        (8, [BOX], {"gpus": 0.0}, (8, 2, 0)),
    ],
)
def test_placement_never_asks_for_more_than_there_is(cells, nodes, wanted, expected):
    p = place(cells, nodes=nodes, cpus=wanted.get("cpus"), gpus=wanted.get("gpus"))
    assert (p.concurrent, p.cpus, p.gpus) == expected
    assert p.concurrent * p.cpus <= sum(node.cpus for node in nodes)
    assert p.concurrent * p.gpus <= sum(node.gpus for node in nodes)


def test_a_trial_that_can_never_be_placed_is_refused():
    with pytest.raises(ConfigError, match="--gpus-per-trial 1: must be 0, as no node here has a GPU"):
        place(1, nodes=[LAPTOP], cpus=None, gpus=1.0)
    with pytest.raises(ConfigError, match="--gpus-per-trial 3: must be between 0 and 2, what the largest node has"):
        place(1, nodes=[NODE], cpus=None, gpus=3.0)
    with pytest.raises(ConfigError, match="--cpus-per-trial 9: must be between 1 and 8"):
        place(1, nodes=[NODE, NODE], cpus=9, gpus=None)
    with pytest.raises(ConfigError, match="no node has 8 cores and 1 GPU together"):
        place(1, nodes=[Node(8, 0), Node(2, 1)], cpus=8, gpus=1.0)


def test_a_sampler_that_cannot_spend_its_nfe_is_noted_once():
    """Four evaluations per step: 20 of 23, and all of 24. Two cells with one sampler are one note."""
    wanted = (Axis("sampler.num_function_evaluations", (23, 24)), Axis("timesteps.m", (0.0, 0.7)))
    base = with_fields(openmoji32_micro(), {"sampler": "dual_loop"})
    assert unspent_notes(Sweep("s", base, wanted).work(INPUTS)) == [
        "dual_loop cannot spend 23 NFE exactly: it takes 20"
    ]


@pytest.mark.filterwarnings("error")
def test_time_is_estimated_whatever_the_sampler_costs():
    """A step of dual_loop alone costs more evaluations than are timed."""
    changes = {"sampler": "dual_loop", "sampler.num_function_evaluations": 8}
    found = estimate(with_fields(tiny(6), changes), DATA, 1, cpus=1, gpus=0)
    assert found.seconds > found.evaluation_seconds > 0


def test_axes_that_end_alike_keep_their_whole_name():
    """Two axes named `images` must not become one column: different trainings would be averaged as seeds."""
    sweep = grid(
        Axis("training.images", (6400, 12800)), Axis("evaluation.images", (100, 200)), Axis("timesteps.m", (0.5,))
    )
    assert sweep.headers == ["training.images", "evaluation.images", "m"]
    assert len({cell.label for cell in sweep.cells()}) == 4


def test_values_that_differ_never_look_alike():
    assert format_value(0.1) == "0.1"
    assert format_value(1e-4) == "0.0001"
    assert format_value(1000000.5) != format_value(1000000.25)


def test_counts_have_their_noun():
    found = (counted(1, "cell"), counted(2, "cell"), counted(1024, "process", "processes"), counted(0.25, "GPU"))
    assert found == ("1 cell", "2 cells", "1,024 processes", "0.25 GPUs")
    assert counted(1.0, "GPU") == "1 GPU"


def test_durations():
    assert [duration(s) for s in (12.4, 250, 4980)] == ["12 s", "4 min 10 s", "1 h 23 min"]
