"""The paper's tables and figures as data: `pforce reproduce TABLE --scale smoke|cpu|gpu|paper`.

A row is one line: a name and the fields in which it differs from the scale's base experiment. Statements are the
paper's claims about the rows, at most six per table.

Cost: smoke about a minute per table; cpu hours on 2 cores (tables share their trainings); gpu about an hour per table
on one GPU; paper (ImageNet 256² on 8 GPUs or more) days, which `--dry-run` estimates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pforce.metrics.names import MetricName
from pforce.models.config import SIZES
from pforce.reproduction import PaperColumn, Scale, Shown, Statement, Table, TableRow, Value
from pforce.timesteps import (
    LTG,
    SRM,
    IndependentUniform,
    ParallelUniform,
    TruncatedGaussian,
)
from pforce_experiments.imagenet256 import imagenet256_pft_b
from pforce_experiments.openmoji32 import openmoji32_micro, openmoji64_s

TIMESTEPS = tuple(k / 20 for k in range(1, 20))
"""Timesteps at which R(t) is measured: 0.05, 0.1, …, 0.95."""
CONTEXT = (0.1, 0.2, 0.3)
"""Context timesteps of the context ablations."""
EVERYTHING = {"evaluation.difficulty_timesteps": TIMESTEPS, "evaluation.context_timesteps": CONTEXT}
"""Settings of tables that compare trainings: each training is measured fully, so that tables share their cells."""
NOTHING_ELSE = {"evaluation.difficulty_timesteps": (), "evaluation.context_timesteps": ()}
"""Settings of tables that compare samplers: the other tables measure the model's difficulty and context."""
SIT = {"model.difficulty_head": False, "timesteps": ParallelUniform()}


def _size(name: str, **more: int) -> dict[str, int]:
    return {f"model.{field}": value for field, value in {**SIZES[name]._asdict(), **more}.items()}


SCALES = {
    "smoke": Scale(
        "smoke",
        openmoji32_micro,
        seeds=(0, 1),
        settings={
            "model.depth": 2, "model.width": 32, "model.heads": 2, "training.images": 640, "data.streams": 4,
            "training.precision": "float32", "training.checkpoint_every": 1_000, "evaluation.images": 64,
            "evaluation.held_out_images": 32, "evaluation.label_images": 32, "evaluation.reference_images": 32,
            "sampler.num_function_evaluations": 4,
        },
        sizes={"narrow": {}, "wide": {"model.width": 64}},
        nfe=(4, 8),
        grid={"m": (0.0, 0.7), "s": (1.0,), "sigma": (0.2, 0.6), "lambda": (0.01, 0.1)},
        about="seconds of training, two seeds: shows the whole path and decides nothing",
    ),
    "cpu": Scale(
        "cpu",
        openmoji32_micro,
        seeds=(0, 1, 2),
        settings={"training.precision": "float32"},
        sizes={"half": {"model.depth": 4, "model.width": 64, "model.heads": 2}, "micro": {}},
        nfe=(12, 24, 48, 96),
        grid={"m": (0.0, 0.7), "s": (1.0,), "sigma": (0.1, 0.3, 0.6), "lambda": (0.001, 0.01, 0.1)},
        about="the micro model on OpenMoji 32², 96,000 images per cell, 3 seeds",
    ),
    "gpu-micro": Scale(
        "gpu-micro",
        openmoji32_micro,
        seeds=tuple(range(10)),
        # Averages over 5,000 steps: at 96,000 images 0.995 was better, at 192,000 0.9995.
        settings={
            "training.images": 1_536_000, "training.ema_decay": 0.9998, "training.precision": "bfloat16",
            "training.checkpoint_every": 1_000, "training.log_every": 100, "evaluation.images": 2_000,
        },
        sizes={"half": {"model.depth": 4, "model.width": 64, "model.heads": 2}, "micro": {}},
        nfe=(24, 48, 96),
        guidance=(1.0, 2.5),
        images=(96_000, 192_000, 384_000, 768_000),
        grid={"m": (0.0, 0.7), "s": (0.5, 1.0), "sigma": (0.1, 0.3, 0.6), "lambda": (0.001, 0.01, 0.1)},
        about="the micro model on OpenMoji 32², 1,536,000 images per cell, 10 seeds, bfloat16: many at once on one GPU",
    ),
    "gpu": Scale(
        "gpu",
        openmoji64_s,
        seeds=(0, 1, 2),
        sizes={"S/4": {}, "B/4": _size("B")},
        nfe=(12, 24, 48, 96),
        grid={"m": (0.0, 0.7), "s": (0.5, 1.0), "sigma": (0.1, 0.3, 0.6), "lambda": (0.001, 0.01, 0.1)},
        about="PFT-S/4 on OpenMoji 64², 128,000 images per cell, 3 seeds, bfloat16, compiled",
    ),
    "paper": Scale(
        "paper",
        imagenet256_pft_b,
        seeds=(0, 1, 2),
        settings={"evaluation.detector": "inception", "evaluation.images": 10_000, "data.path": "imagenet256-latents"},
        sizes={"B/2": _size("B"), "L/2": _size("L"), "XL/2": _size("XL")},
        nfe=(25, 50, 100),
        grid={"m": (0.0, 0.7), "s": (0.5, 1.0), "sigma": (0.1, 0.3, 0.6), "lambda": (0.001, 0.01, 0.1)},
        about="ImageNet 256² in SD-VAE latents, 400,000 steps of 256, FID-10k (FID-50k in main and guidance)",
    ),
}  # fmt: skip

# --- how timesteps are drawn in training ---------------------------------------------------------------------------

SCHEDULES = (
    TableRow("SiT", SIT, paper="SiT-B/2 (parallel)"),
    TableRow("independent uniform", {"timesteps": IndependentUniform()}),
    TableRow("SRM(1)", {"timesteps": SRM(1.0)}, paper="srm(sharpness=1)"),
    TableRow("SRM(4)", {"timesteps": SRM(4.0)}, paper="srm(sharpness=4)"),
    TableRow("SRM(10)", {"timesteps": SRM(10.0)}, paper="srm(sharpness=10)"),
    TableRow("truncated Gaussian", {"timesteps": TruncatedGaussian(0.6)}, paper="truncated_gaussian"),
    TableRow("LTG", {"timesteps": LTG(0.7, 1.0, 0.6)}, paper="ltg"),
)
"""Rows of `TIMESTEP_SCHEDULES`. To add a row, add a line."""


def _fd(row: str) -> Value:
    return Value(row, "fd", row)


def _below(low: str, high: str) -> Statement:
    return Statement(f"{low} below {high}", _fd(low), _fd(high))


TIMESTEP_SCHEDULES = Table(
    name="timestep_schedules",
    title="How patch timesteps are drawn in training",
    question="Does controlling the largest timestep of an image (LTG) give better images than other ways to draw them?",
    rows=lambda scale: SCHEDULES,
    statements=lambda scale: (
        _below("LTG", "truncated Gaussian"),
        _below("LTG", "SiT"),
        _below("LTG", "independent uniform"),
        _below("truncated Gaussian", "SiT"),
        _below("truncated Gaussian", "SRM(1)"),
        _below("SRM(10)", "SRM(1)"),
    ),
    paper=PaperColumn("timestep_schedules", "schedule", "fid10k", "paper FID-10k"),
    settings=EVERYTHING,
)

# --- how a trained model is sampled --------------------------------------------------------------------------------

SAMPLERS = ("random_order", "euler", "dual_loop", "look_ahead")


def _denoising_rows(scale: Scale) -> list[TableRow]:
    guidance = scale.guidance or (None,)
    last = (scale.nfe[-1], guidance[-1])  # the paper has a single NFE
    # Shorter trainings first: the longer ones resume from them.
    rows = [row for images in scale.images for row in _sampler_rows(scale.nfe[0], guidance[-1], images)]
    return rows + [row for nfe in scale.nfe for w in guidance for row in _sampler_rows(nfe, w, paper=(nfe, w) == last)]


def _sampler_rows(nfe: int, guidance: float | None, images: int | None = None, paper: bool = False) -> list[TableRow]:
    """A row of each sampler, and one of the SiT."""
    at, fields = f" @{nfe}" + _with(guidance), dict[str, Any]({"sampler.num_function_evaluations": nfe})
    if guidance is not None:
        fields["sampler.guidance.scale"] = guidance
    if images is not None:
        at, fields["training.images"] = f"{at}, {images:,} images", images
    rows: list[tuple[str, str, Mapping[str, Any]]]
    rows = [("SiT euler", "SiT-B euler", SIT), *((name, f"PFT-B {name}", {"sampler": name}) for name in SAMPLERS)]
    return [TableRow(f"{name}{at}", {**own, **fields}, theirs if paper else None) for name, theirs, own in rows]


def _with(guidance: float | None) -> str:
    """The guidance in a row's name."""
    return "" if guidance is None else f" w={guidance:g}"


def _denoising_statements(scale: Scale) -> list[Statement]:
    at = f" @{scale.nfe[-1]}" + _with(scale.guidance[-1] if scale.guidance else None)
    pairs = (
        ("euler", "SiT euler"), ("euler", "random_order"), ("dual_loop", "euler"), ("look_ahead", "dual_loop"),
        ("look_ahead", "euler"), ("dual_loop", "random_order"),
    )  # fmt: skip
    return [_below(low + at, high + at) for low, high in pairs]


DENOISING_SCHEDULES = Table(
    name="denoising_schedules",
    title="How a trained model spends its evaluations",
    question="At equal NFE, do samplers that let confident patches run ahead give better images?",
    rows=_denoising_rows,
    statements=_denoising_statements,
    paper=PaperColumn("denoising_schedules", "sampler", "fid10k", "paper FID-10k"),
    settings=NOTHING_ELSE,
    scale_settings={"cpu": {"evaluation.images": 500}},
    figure="curves",
)

PAPER_SIZES = ("B/2", "L/2", "XL/2")


def _main_rows(scale: Scale) -> list[TableRow]:
    rows = []
    for (size, fields), theirs in zip(scale.sizes.items(), PAPER_SIZES, strict=False):
        rows.append(TableRow(f"SiT-{size} euler", {**fields, **SIT}, paper=f"SiT-{theirs} euler"))
        for sampler in ("euler", "dual_loop", "look_ahead"):
            changes = {**fields, "sampler": sampler}
            rows.append(TableRow(f"PFT-{size} {sampler}", changes, paper=f"PFT-{theirs} {sampler}"))
    return rows


def _main_statements(scale: Scale) -> list[Statement]:
    statements = []
    for size in scale.sizes:
        statements.append(_below(f"PFT-{size} euler", f"SiT-{size} euler"))
        statements.append(_below(f"PFT-{size} look_ahead", f"PFT-{size} euler"))
    return statements


MAIN = Table(
    name="main",
    title="SiT against PFT with each sampler, over model sizes",
    question="Does Patch Forcing improve on SiT at equal architecture, images seen and NFE, at every size?",
    rows=_main_rows,
    statements=_main_statements,
    paper=PaperColumn("main", ("model", "sampler"), "fid50k", "paper FID-50k"),
    settings=NOTHING_ELSE,
    scale_settings={
        "cpu": {"sampler.num_function_evaluations": 48},
        "gpu": {"sampler.num_function_evaluations": 48},
        "paper": {"evaluation.images": 50_000},
    },
)


def _guidance_rows(scale: Scale) -> list[TableRow]:
    sampler = {"sampler.guidance.scale": 1.5}
    return [
        TableRow("SiT euler", {**SIT, **sampler}, paper="SiT-XL/2"),
        TableRow("PFT euler", sampler),
        TableRow("PFT look_ahead", {**sampler, "sampler": "look_ahead"}, paper="PFT-XL/2 + REPA + look-ahead"),
    ]


GUIDANCE = Table(
    name="guidance",
    title="With classifier-free guidance",
    question="Does the gain hold with guidance, in FID, sFID, Inception Score, precision and recall? "
    "(The paper's PFT here has REPA, which ours has not, and 200 epochs, its SiT 1,400: compare orders only.)",
    rows=_guidance_rows,
    statements=lambda scale: (
        _below("PFT look_ahead", "SiT euler"),
        _below("PFT look_ahead", "PFT euler"),
        Statement(
            "the recall of PFT look_ahead above SiT's",
            Value("SiT euler", "recall", "recall of SiT"),
            Value("PFT look_ahead", "recall", "recall of PFT look_ahead"),
        ),
    ),
    paper=PaperColumn("guidance", "model", "fid", "paper FID-50k"),
    settings={**NOTHING_ELSE, "evaluation.metrics": ("frechet", "precision_recall")},
    scale_settings={
        "paper": {
            **_size("XL"),
            "evaluation.images": 50_000,
            "evaluation.metrics": ("frechet", "precision_recall", "inception_score"),
        }
    },
)

# --- ablations without rows in the paper ---------------------------------------------------------------------------


def _ltg_name(m: float, s: float, sigma: float) -> str:
    return f"m={m:g} s={s:g} σ={sigma:g}"


def _ltg_rows(scale: Scale) -> list[TableRow]:
    g = scale.grid
    return [
        TableRow(_ltg_name(m, s, sigma), {"timesteps": LTG(m, s, sigma)})
        for m in g["m"] for s in g["s"] for sigma in g["sigma"]
    ]  # fmt: skip


def _ltg_statements(scale: Scale) -> list[Statement]:
    published, g = _ltg_name(0.7, 1.0, 0.6), scale.grid
    others = [_ltg_name(0.0, 1.0, 0.6), *(_ltg_name(0.7, 1.0, sigma) for sigma in g["sigma"] if sigma != 0.6)]
    return [_below(published, other) for other in others]


LTG_GRID = Table(
    name="ltg_grid",
    title="LTG over m, s and σ",
    question="Is the published setting (m = 0.7, s = 1, σ = 0.6, in effect 0.5) better than its neighbours?",
    rows=_ltg_rows,
    statements=_ltg_statements,
    settings=EVERYTHING,
)


def _r(row: str, t: float) -> Value:
    return Value(row, str(MetricName("difficulty/pearson", t=t)), f"R({t:g})" if row == "PFT" else f"R({t:g}) of {row}")


def _lambda_statements(scale: Scale) -> list[Statement]:
    first, *_, last = (f"λ={value:g}" for value in scale.grid["lambda"])
    return [
        Statement(f"R(0.6) rises from {first} to {last}", _r(first, 0.6), _r(last, 0.6)),
        Statement(
            f"σ is better calibrated at {last} than at {first}",
            Value(last, "calibration/error_t0.60", f"calib(0.6) of {last}"),
            Value(first, "calibration/error_t0.60", f"calib(0.6) of {first}"),
        ),
    ]


LAMBDA = Table(
    name="lambda",
    title="The weight λ of the difficulty head's likelihood",
    question="Is the predicted σ worth more with a larger λ, and does it cost image quality?",
    rows=lambda scale: [TableRow(f"λ={value:g}", {"flow.difficulty_weight": value}) for value in scale.grid["lambda"]],
    statements=_lambda_statements,
    shown=(Shown("calibration/error_t0.60", "calib(0.6)"),),
    settings=EVERYTHING,
)

# --- why it works: one model, many questions -----------------------------------------------------------------------


def _one_model(scale: Scale) -> tuple[TableRow, ...]:
    """The published training: the row LTG of `timestep_schedules`, by fingerprint the same cell."""
    return (TableRow("PFT", {"timesteps": LTG(0.7, 1.0, 0.6)}),)


DIFFICULTY = Table(
    name="difficulty",
    title="Does the difficulty head see what is difficult? R(t)",
    question="Does the correlation R of predicted σ with the squared error rise with t?",
    rows=_one_model,
    statements=lambda scale: (
        Statement("R rises from t = 0.2 to 0.6", _r("PFT", 0.2), _r("PFT", 0.6)),
        Statement("R rises from t = 0.05 to 0.2", _r("PFT", 0.05), _r("PFT", 0.2)),
    ),
    metric="difficulty/pearson_t0.60",
    settings=EVERYTHING,
    figure="difficulty",
)


def _context_loss(t: float, time: float) -> Value:
    return Value("PFT", str(MetricName("context/loss", t=t, context_time=time)), f"loss at t′ = {time:g}")


def _context_statements(scale: Scale) -> list[Statement]:
    statements = []
    for t in CONTEXT:
        twice, alone, end = _context_loss(t, 2 * t), _context_loss(t, t), _context_loss(t, 1.0)
        statements.append(Statement(f"t = {t:g}: the loss falls from t′ = {t:g} to {2 * t:g}", twice, alone))
        statements.append(Statement(f"t = {t:g}: it rises again from t′ = {2 * t:g} to 1", twice, end))
    return statements


CONTEXT_HELPS = Table(
    name="context_helps",
    title="Does context help? Loss on uncertain patches",
    question="Does the loss on uncertain patches fall when they see confident ones further denoised, and rise again "
    "with too much of it?",
    rows=_one_model,
    statements=_context_statements,
    metric="context/change_at_2t_t0.20",
    shown=tuple(Shown(str(MetricName("context/change_at_2t", t=t)), f"change at 2t, t={t:g}", 4) for t in CONTEXT),
    settings=EVERYTHING,
    figure="context_helps",
)


def _log_sigma(t: float, shown: Literal["alone", "context"]) -> Value:
    with_or_without = "with" if shown == "context" else "without"
    name = MetricName("context/log_sigma", t=t, shown=shown, statistic="mean")
    return Value("PFT", str(name), f"log σ {with_or_without} context")


CONTEXT_UNCERTAINTY = Table(
    name="context_uncertainty",
    title="Does context lower uncertainty? log σ on uncertain patches",
    question="Is the model surer of uncertain patches when it sees the confident ones further denoised?",
    rows=_one_model,
    statements=lambda scale: [
        Statement(f"t = {t:g}: context lowers log σ", _log_sigma(t, "context"), _log_sigma(t, "alone")) for t in CONTEXT
    ],
    metric="context/log_sigma_change_t0.20",
    shown=tuple(Shown(str(MetricName("context/log_sigma_change", t=t)), f"change of log σ, t={t:g}") for t in CONTEXT),
    settings=EVERYTHING,
    figure="context_uncertainty",
)

TABLES: Sequence[Table] = (
    TIMESTEP_SCHEDULES, DENOISING_SCHEDULES, MAIN, LTG_GRID, LAMBDA, DIFFICULTY, CONTEXT_HELPS, CONTEXT_UNCERTAINTY,
    GUIDANCE,
)  # fmt: skip
