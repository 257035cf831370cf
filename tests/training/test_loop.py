"""The training loop. Oracles: the uninterrupted run, recorded losses, and steps written out by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pforce import flow
from pforce.base.errors import FieldError
from pforce.config import with_fields
from pforce.images import from_uint8
from pforce.models.interpolation import TOLERANCE
from pforce.timesteps import ParallelUniform
from pforce.training import (
    Answer,
    Callback,
    Checkpoints,
    Diverged,
    OptimizerConfig,
    Stopped,
    TrainingConfig,
    strategy,
    train,
)  # fmt: skip
from pforce.training.checkpoint import CHECKSUM, META, CheckpointError, checksum, load_newest, saved
from pforce.training.loop import draw, use_bfloat16
from pforce.trial.where import precision_note
from tests.training.conftest import tiny
from tests.training.helpers import CPU, InterruptAt, Interrupted, Told, run, same, start

GOLDEN = Path(__file__).with_name("golden_losses.json")


def test_golden_loss_curve():
    """50 steps on committed drawings give the recorded losses; a refactor must reproduce them.

    The tolerance is for other processors' rounding, which 50 steps of training amplify.
    """
    _, records = run(tiny(50))
    found = [[r.loss, r.mse, r.nll, r.gradient_norm] for r in records]
    recorded = json.loads(GOLDEN.read_text())
    np.testing.assert_allclose(found[:10], recorded[:10], rtol=1e-4)
    np.testing.assert_allclose(found, recorded, rtol=2e-2)
    assert found[-1][0] < 0.8 * found[0][0]


@pytest.mark.parametrize("killed_at", [7, 10])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, killed_at):
    """k steps, a kill, and the rest: weights, EMA, moments, data position and the curve equal n steps exactly.

    Killed at 7 the last checkpoint is step 5: two steps are repeated. 64 images at batch 16 cross epochs.
    """
    whole, curve = run(tiny(12))
    with pytest.raises(Interrupted):
        run(tiny(12), tmp_path, InterruptAt(killed_at))
    resumed, rest = run(tiny(12), tmp_path)
    assert rest[0].step == killed_at // 5 * 5 + 1
    assert same(whole, resumed)
    assert [(r.loss, r.gradient_norm) for r in rest] == [(r.loss, r.gradient_norm) for r in curve[rest[0].step - 1 :]]


@pytest.mark.parametrize("answer", [Answer.CHECKPOINT, Answer.CHECKPOINT_AND_STOP])
def test_an_answered_training_leaves_a_checkpoint_and_equals_an_undisturbed_one(tmp_path, answer):
    """At step 7, between checkpoints of 5 and 10: one is there. Told to stop it stops, and goes on from there; told to
    go on it goes on. Bit for bit, and no point of the curve more."""
    experiment = tiny(12, log_every=3)
    whole, curve = run(experiment)
    told = Told(7, answer)
    if answer is Answer.CHECKPOINT:
        state, records = run(experiment, tmp_path, told)
        assert [record.step for record in records] == [3, 6, 9, 12]
        assert [path.name for path in saved(tmp_path)] == ["step_00000010", "192"], "the newest two stay"
    else:
        with pytest.raises(Stopped, match="stopped at 112 images seen"):
            run(experiment, tmp_path, told)
        assert saved(tmp_path)[-1].name == "step_00000007"
        state, records = run(experiment, tmp_path)
        assert [record.step for record in records] == [9, 12]
    assert same(state, whole)
    assert [record.loss for record in records] == [record.loss for record in curve[-len(records) :]]


def test_a_finished_training_is_not_repeated(tmp_path):
    first, _ = run(tiny(6), tmp_path)
    again, records = run(tiny(6), tmp_path)
    assert records == []
    assert same(first, again)


def test_one_step_by_hand():
    """Oracle: the step written out with plain torch: draws, loss, clipped gradient, AdamW, EMA."""
    experiment = tiny(1, ema_decay=0.9)
    state, hand = start(experiment), start(experiment)
    train(state, flip=True)
    spec = hand.spec
    batch, draws = hand.stream.next_batch(), draw(spec, hand.model, 0, CPU)
    x1 = from_uint8(batch.images)
    for i in range(16):
        if draws.flip[i]:
            x1[i] = torch.flip(x1[i], dims=[-1])
    y = batch.labels.clone()
    y[draws.drop] = 11
    before = {name: p.detach().clone() for name, p in hand.model.named_parameters()}
    flow.loss(hand.model, x1, y, draws.t, draws.x0, difficulty_weight=0.01).total.backward()
    torch.nn.utils.clip_grad_norm_(hand.model.parameters(), 1.0)
    optimizer = torch.optim.AdamW(hand.model.parameters(), lr=3e-3 / 5, weight_decay=0.0)
    optimizer.step()
    for (name, ours), theirs in zip(state.model.named_parameters(), hand.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=0)
        average = dict(state.ema.model.named_parameters())[name]
        torch.testing.assert_close(average, 0.9 * before[name] + 0.1 * theirs, atol=1e-7, rtol=0)


def test_accumulation_changes_memory_not_the_result():
    one, _ = run(tiny(4))
    four, _ = run(tiny(4, accumulation=4))
    for a, b in zip(one.model.parameters(), four.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)


def test_draws_are_keyed_by_seed_and_step():
    state = start(tiny(3))
    a, b = draw(state.spec, state.model, 1, CPU), draw(state.spec, state.model, 1, CPU)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(a.x0, draw(state.spec, state.model, 2, CPU).x0)
    assert not torch.equal(a.x0, draw(replace(state.spec, seed=1), state.model, 1, CPU).x0)


def test_label_dropout_has_its_share():
    """Closed form: 10 % of 200 batches of 16, within four standard deviations."""
    state = start(tiny(3))
    dropped = sum(int(draw(state.spec, state.model, step, CPU).drop.sum()) for step in range(200))
    assert abs(dropped - 320) < 4 * math.sqrt(3200 * 0.1 * 0.9)


def test_training_leaves_the_average_in_evaluation_mode():
    """`.train()` on the whole module once flipped the EMA copy."""
    state, _ = run(tiny(2))
    assert state.model.training
    assert not state.ema.model.training
    assert not any(p.requires_grad for p in state.ema.model.parameters())


def test_a_divergence_stops_at_its_step_and_keeps_the_last_good_checkpoint(tmp_path):
    """A learning rate of 1e20 makes the loss overflow: a real divergence, a few steps after the checkpoint at 5."""
    experiment = tiny(30, log_every=5)
    with pytest.raises(Interrupted):
        run(experiment, tmp_path, InterruptAt(5))
    wild = replace(experiment, optimizer=OptimizerConfig(learning_rate=1e20, warmup_steps=0))
    with pytest.raises(Diverged, match=r"at step (\d+)") as error:
        run(wild, tmp_path)
    assert 5 < error.value.step <= 10
    found = load_newest(tmp_path, identity="id")
    assert found is not None
    assert found[1]["step"] == 5
    assert all(tensor.isfinite().all() for tensor in found[0].values())


def test_sit_trains_with_one_timestep_a_sample():
    experiment = with_fields(tiny(30), {"timesteps": "parallel_uniform", "model.difficulty_head": False})
    _, records = run(experiment)
    assert records[-1].nll == 0
    assert records[-1].loss < records[0].loss


@pytest.mark.parametrize("warmup", [False, True])
def test_ema_by_its_formula(tmp_path, warmup):
    """Oracle: the average recomputed from the weights of every step; a resume keeps the counter."""
    weights = []

    class Watch(Checkpoints):
        def on_step(self, state):
            weights.append(state.model.final_layer.linear.bias.detach().clone())
            super().on_step(state)

    experiment = tiny(9, ema_warmup=warmup)
    initial = start(experiment).model.final_layer.linear.bias.detach().clone()
    with pytest.raises(Interrupted):
        run(experiment, None, Watch(tmp_path), InterruptAt(5))
    state, _ = run(experiment, None, Watch(tmp_path))
    assert len(weights) == 9
    average = initial
    for k, weight in enumerate(weights):
        decay = min(0.9, (1 + k) / (10 + k)) if warmup else 0.9
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(state.ema.model.final_layer.linear.bias, average, atol=1e-6, rtol=0)


@pytest.mark.process  # of a compiler
def test_compiled_training_gives_the_same_losses():
    """torch.compile by config, against eager; the checkpoint's names carry no `_orig_mod.`."""
    _, eager = run(tiny(3))
    state, compiled = run(tiny(3, compile=True))
    np.testing.assert_allclose([r.loss for r in compiled], [r.loss for r in eager], rtol=1e-4)
    assert not any("_orig_mod" in name for name in state.model.state_dict())


def test_a_gpu_without_bfloat16(monkeypatch):
    """Its `auto` is float32, and a bfloat16 that is asked for is said to be slow."""
    gpu, asked = torch.device("cuda"), []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    for native in (False, True):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda native=native, **options: asked.append(options) or native
        )
        assert use_bfloat16("auto", gpu) == native
        assert ("Tesla V100 only emulates it" in precision_note("bfloat16", gpu)) == (not native)
        assert precision_note("float32", gpu) == precision_note("bfloat16", CPU) == ""
    assert {"including_emulation": False} in asked


def test_precision():
    assert not use_bfloat16("auto", CPU)
    assert not use_bfloat16("float32", CPU)
    assert use_bfloat16("bfloat16", CPU)
    _, records = run(tiny(3, precision="bfloat16"))
    _, exact = run(tiny(3))
    np.testing.assert_allclose([r.loss for r in records], [r.loss for r in exact], rtol=0.02)
    assert [r.loss for r in records] != [r.loss for r in exact]


def test_learning_rate_warms_up_and_stays():
    rates = [OptimizerConfig(learning_rate=1.0, warmup_steps=4).learning_rate_at(step) for step in range(6)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert OptimizerConfig(learning_rate=1.0, warmup_steps=0).learning_rate_at(0) == 1.0


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: TrainingConfig(batch=0), "batch"),
        (lambda: TrainingConfig(images=100, batch=16), "images"),
        (lambda: TrainingConfig(images=64, batch=16, accumulation=3), "accumulation"),
        (lambda: TrainingConfig(ema_decay=1.0), "ema_decay"),
        (lambda: TrainingConfig(checkpoint_every=0), "checkpoint_every"),
        (lambda: OptimizerConfig(learning_rate=0), "learning_rate"),
        (lambda: OptimizerConfig(gradient_norm=-1), "gradient_norm"),
        (lambda: OptimizerConfig(betas=(0.9, 1.0)), "betas"),
    ],
)
def test_values_out_of_range_are_refused(make, field):
    with pytest.raises(FieldError) as error:
        make()
    assert error.value.field == field


def test_a_checkpoint_of_another_experiment_is_refused(tmp_path):
    run(tiny(5), tmp_path, identity="first")
    with pytest.raises(CheckpointError, match="belongs to experiment first"):
        run(tiny(5), tmp_path, identity="second")


def test_only_the_newest_two_are_kept(tmp_path):
    run(tiny(22), tmp_path)
    assert [path.name for path in saved(tmp_path)] == ["step_00000020", str(22 * 16)]


class Loud(Callback):
    """Multiplies the time embedding after a step."""

    def __init__(self, step: int, factor: float) -> None:
        self.step, self.factor = step, factor

    def on_step(self, state) -> None:
        if state.step == self.step:
            with torch.no_grad():
                for model in (state.model, state.ema.model):
                    for value in model.t_embedder.mlp[2].parameters():
                        value.mul_(self.factor)


def test_nodes_grow_where_they_must_and_resume_with_the_checkpoint(tmp_path):
    """Checked before steps 0, 1, 2, 4, 8: after a step 3 that makes the embedding loud, 4 is the first that notices.

    Oracle of the resume: the uninterrupted training, bit for bit; killed at 7, it begins again at 5 with its nodes.
    """
    whole, curve = run(tiny(12), None, Loud(3, 5_000.0))
    nodes = [record.modulation_nodes for record in curve]
    assert nodes[:4] == [8] * 4
    assert nodes[4] > 8
    assert nodes == sorted(nodes)
    assert all(0 <= record.modulation_error <= TOLERANCE for record in curve)
    assert curve[4].modulation_error > 0
    with pytest.raises(Interrupted):
        run(tiny(12), tmp_path, Loud(3, 5_000.0), InterruptAt(7))
    resumed, rest = run(tiny(12), tmp_path)
    assert [record.modulation_nodes for record in rest] == nodes[5:]
    assert same(whole, resumed)
    assert [record.modulation_error for record in rest] == [record.modulation_error for record in curve[5:]]


def test_modulation_is_exact_where_it_is_asked_for_and_close_otherwise():
    """Losses of ten steps, to 1e-5; a SiT's timesteps need no nodes."""
    exact, interpolated = (
        run(with_fields(tiny(10), {"model.modulation": name}))[1] for name in ("exact", "interpolated")
    )
    assert {record.modulation_nodes for record in exact} == {0}
    assert {record.modulation_nodes for record in interpolated} == {8}
    np.testing.assert_allclose([r.loss for r in interpolated], [r.loss for r in exact], rtol=1e-5)
    parallel = run(with_fields(tiny(2), {"timesteps": ParallelUniform()}))[1]
    assert {record.modulation_nodes for record in parallel} == {0}


def test_the_number_of_threads_changes_no_bit():
    """Trials of a sweep may have other numbers than the process that repeats them."""
    states = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        states.append(run(tiny(6))[0])
    assert same(*states)


def test_a_checkpoint_of_before_there_were_nodes_is_resumed(tmp_path):
    """It says nothing of modulation: nodes are found at once."""
    run(tiny(5), tmp_path)
    for path in saved(tmp_path):
        meta = json.loads((path / META).read_text())
        del meta["modulation"]
        meta.pop(CHECKSUM)
        (path / META).write_text(json.dumps({**meta, CHECKSUM: checksum(meta)}))
    state, _ = run(tiny(7), tmp_path)
    assert state.model.modulation_nodes == 8


def test_without_a_compiler_the_model_is_not_compiled_and_that_is_said(monkeypatch):
    monkeypatch.setattr(strategy, "compiler_problem", lambda device: "InvalidCxxCompiler: No working C++ compiler")
    with pytest.warns(UserWarning, match="the model is not compiled, which changes only the speed: InvalidCxxCompiler"):
        compiled = run(tiny(2, compile=True))[1]
    assert [record.loss for record in compiled] == [record.loss for record in run(tiny(2))[1]]
