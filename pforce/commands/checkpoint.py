"""`pforce checkpoint`: import, export and verify checkpoints and model files."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.table import Table

from pforce.base.console import DONE, make_console
from pforce.base.errors import ConfigError
from pforce.commands.stores import Store
from pforce.models import TimestepLevels, save_model, save_published
from pforce.orchestration.find import find_model
from pforce.trial.source import PUBLISHED_SUFFIXES, Source, SourceError, content_hash, load_source, write_source

Model = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
Published = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
Destination = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DESTINATION")]


def _refuse_overwriting(destination: Path, suffixes: tuple[str, ...]) -> None:
    if destination.suffix not in suffixes:
        raise ConfigError(f"{destination}: the file's name must end in {' or '.join(suffixes)}")
    if destination.exists():
        raise ConfigError(f"{destination}: is there already; remove it, or choose another name")


def _check_same(source: Source, destination: Path) -> None:
    """Raise SourceError where the written file does not hold the weights that were read, bit for bit."""
    # Label dropout is not part of the published format: it is left out of the comparison on both sides.
    written = load_source(destination).model.state_dict()
    for name, tensor in source.model.state_dict().items():
        if not torch.equal(tensor, written[name]):
            raise SourceError(f"{destination}: {name} differs from what was read: the file system may be at fault")


def import_checkpoint(source: Published, destination: Destination, heads: int | None = None) -> int:
    """Read a published checkpoint (PFT, SiT, or the original SiT) and write it as a pforce model file.

    Args:
        source: a .ckpt or .pt file; it is read safely, without running any code in it.
        destination: a .safetensors file.
        heads: number of attention heads, for an original SiT of unusual size.
    """
    _refuse_overwriting(destination, (".safetensors",))
    if source.suffix not in PUBLISHED_SUFFIXES:
        raise ConfigError(f"{source}: a published checkpoint is a {', '.join(PUBLISHED_SUFFIXES)} file")
    found = load_source(source, heads=heads)
    save_model(found.model, destination, about={"imported_from": source.name, "weights": found.weights})
    _check_same(found, destination)
    make_console().print(f"{destination}: {_said(found)}", soft_wrap=True)
    return DONE


def export_checkpoint(
    source: Model,
    destination: Destination,
    *,
    weights: Literal["ema", "raw"] = "ema",
    store: Store,
) -> int:
    """Write a model in the format of the published code (.ckpt), or as one pforce file (.safetensors).

    Args:
        source: a trial's folder, a checkpoint or model file, an MLflow run id, an experiment, or best:SWEEP.
        destination: a .ckpt or .safetensors file.
        weights: averaged (ema) or raw weights, for a checkpoint of pforce.
    """
    _refuse_overwriting(destination, (".ckpt", ".safetensors"))
    found = find_model(source, storage=store.storage, tracking_uri=store.tracking_uri, weights=weights)
    if destination.suffix == ".ckpt":
        save_published(found.model, destination)
    else:
        write_source(found, destination)
    _check_same(found, destination)
    make_console().print(f"{destination}: {_said(found)}", soft_wrap=True)
    return DONE


def _said(source: Source) -> str:
    config = source.model.config
    parameters = sum(parameter.numel() for parameter in source.model.parameters())
    kind = "PFT" if config.difficulty_head else "SiT"
    height, width = config.image_size
    return (
        f"{kind}, {parameters / 1e6:.3f} M parameters, depth {config.depth}, width {config.width}, "
        f"{config.heads} heads, patch {config.patch} on {height}×{width}×{config.channels}, {config.classes} classes"
    )


@torch.no_grad()
def verify_checkpoint(
    source: Model,
    *,
    weights: Literal["ema", "raw"] = "ema",
    heads: int | None = None,
    store: Store,
) -> int:
    """Check that a checkpoint or model file can be sampled: weights, shapes, and one forward pass of each kind.

    Args:
        source: a file, a folder, an MLflow run id, an experiment, or best:SWEEP.
        weights: averaged (ema) or raw weights, for a checkpoint of pforce.
        heads: number of attention heads, for an original SiT of unusual size.
    """
    found = find_model(source, storage=store.storage, tracking_uri=store.tracking_uri, weights=weights, heads=heads)
    model, config = found.model, found.model.config
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, config.channels, *config.image_size, generator=generator)
    y = torch.zeros(1, dtype=torch.long)
    one = model(x, torch.full((1,), 0.5), y)
    outputs = [one.velocity]
    rows = [("model", _said(found)), ("kind", found.kind), ("weights", found.weights)]
    if found.images_seen is not None:
        rows.append(("images seen", f"{found.images_seen:,}"))
    rows += [("sha256", content_hash(model)), ("velocity at t = 0.5", f"root mean square {_rms(one.velocity):.4f}")]
    if one.log_variance is not None:
        index = (torch.arange(config.patches) % 2)[None]
        two = model(x, TimestepLevels(torch.tensor([[0.3, 0.7]]), index), y)
        outputs += [one.log_variance, two.velocity]
        rows.append(("σ at t = 0.5", f"mean {(one.log_variance / 2).exp().mean():.4f}"))
    for output in outputs:
        if not output.isfinite().all():
            raise SourceError(f"{found.path}: its prediction is not finite: the weights are unusable")
    table = Table(title=str(found.path), title_justify="left", show_header=False)
    for name, value in rows:
        table.add_row(name, value)
    console = make_console(width=max(100, make_console().width))
    console.print(table)
    console.print(f"It can be sampled: pforce sample {shlex.quote(str(source))}", soft_wrap=True)
    return DONE


def _rms(values: torch.Tensor) -> float:
    return values.square().mean().sqrt().item()
