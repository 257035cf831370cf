"""Checkpoints of the published implementation, read safely and written, and of the original SiT, read safely.

A published file is `{state_dict, config: {target, params}}`; the original SiT is a bare state dict. Both are pickles,
which can carry code. No code of a file is ever run: torch's weights-only reader makes tensors and plain containers,
OmegaConf's objects become inert stand-ins that only keep their state, and everything else is refused.
"""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pforce.base.errors import FieldError, InputError, require
from pforce.base.files import write_whole
from pforce.base.foreign import ForeignError, quoted
from pforce.base.tensors import Allowed, read_pickle
from pforce.models.config import SIZES, ModelConfig
from pforce.models.transformer import PatchForcingTransformer
from pforce.models.weights import WeightsError, filled, float_weights, listed, named_tensors

PFT = "patch_flow.models.pf_transformer.PatchForcingDiT"
SIT = "patch_flow.models.dit.DiT"
REPA = "patch_flow.models.pf_transformer_repa.REPAPatchForcingDiT"
TEXT = "patch_flow.models.pf_transformer_t2i.PatchForcingTransformerT2I"

SIZE_PARAMS = ("in_channels", "input_size", "depth", "hidden_size", "patch_size", "num_heads", "num_classes")
REPA_PARAMS = ("z_dim", "encoder_depth", "projector_dim")
HEAD = "final_layer.linear.weight"
SIT_SHAPES = {
    "x_embedder.proj.weight": 4,
    "y_embedder.embedding_table.weight": 2,
    "pos_embed": 3,
    "blocks.0.mlp.fc1.weight": 2,
    HEAD: 2,
}
"""Tensors from which a SiT's configuration is inferred → their numbers of dimensions."""


class PublishedError(InputError, ValueError):
    """A checkpoint cannot be read as a published model, or a model cannot be written as one. The message gives the
    file, the reason and the remedy."""


class _StandIn:
    """A stand-in for a foreign class: accepts any arguments, does nothing, keeps its state."""

    state: dict[str, Any]

    def __new__(cls, *_arguments: object) -> _StandIn:
        made = super().__new__(cls)
        made.state = {}
        return made

    def __setstate__(self, state: object) -> None:
        self.state = state if isinstance(state, dict) else {}


class _Container(_StandIn):
    """OmegaConf's containers, and the node of a union: the content is `_content`."""


class _Node(_StandIn):
    """OmegaConf's leaves: the value is `_val`."""


def _empty_dict(*_arguments: object) -> dict[Any, Any]:
    """An empty dict in place of a `collections.defaultdict`, which the weights-only reader cannot fill."""
    return {}


_CONTAINERS = ("dictconfig.DictConfig", "listconfig.ListConfig", "tupleconfig.TupleConfig", "base.UnionNode")
_NODES = ("Any", "String", "Integer", "Float", "Boolean", "Bytes", "Path", "Enum", "None", "Literal")
# Types that OmegaConf's metadata name, and the arguments beside the weights in SiT's training checkpoints.
_KEPT_UNREAD = (
    "omegaconf.base.Metadata",
    "omegaconf.base.ContainerMetadata",
    *(f"typing.{name}" for name in ("Any", "Dict", "List", "Tuple", "Union", "Optional", "Literal")),
    *(f"builtins.{name}" for name in ("dict", "list", "tuple", "int", "float", "bool", "str", "bytes", "Ellipsis")),
    "_operator.getitem",  # List[int] and the like
    "argparse.Namespace",
)
_ALLOWED: Allowed = [
    *((_Container, f"omegaconf.{name}") for name in _CONTAINERS),
    *((_Node, f"omegaconf.nodes.{name}Node") for name in _NODES),
    *((_StandIn, name) for name in _KEPT_UNREAD),
    (_empty_dict, "collections.defaultdict"),
]


def _read(path: Path) -> object:
    """The content of a file, read by torch's weights-only reader. PublishedError where it cannot be read or is
    refused."""
    if path.suffix == ".safetensors":
        raise PublishedError(f"{path}: a safetensors file, not a published checkpoint: load_model reads pforce's own")
    try:
        return read_pickle(path, _ALLOWED)
    except OSError as error:
        raise PublishedError(f"{path}: cannot be opened ({error.strerror}): check the path") from error
    except ForeignError as error:
        raise PublishedError(f"{path}: {error}") from error


def _plain(key: str, value: object) -> Any:
    """A configuration's value, taken out of its OmegaConf stand-in. WeightsError names the key of an interpolation."""
    if isinstance(value, _Container):
        value = value.state.get("_content")
    if isinstance(value, _Node):
        value = value.state.get("_val")
    if isinstance(value, str) and "${" in value:
        raise WeightsError(f"{key} = {quoted(value)} refers to another configuration: save the resolved one")
    return value


def _params(target: str, params: Mapping[str, object]) -> dict[str, Any]:
    """The checked parameters. WeightsError names those that are unknown, missing or of a wrong type."""
    required = SIZE_PARAMS if target == SIT else (*SIZE_PARAMS, "predict_uncertainty")
    known = (*required, "compile", *(REPA_PARAMS if target == REPA else ()))
    unknown, missing = [str(key) for key in params if key not in known], [key for key in required if key not in params]
    problems = [f"unknown {listed(unknown)}"] * bool(unknown) + [f"missing {listed(missing)}"] * bool(missing)
    if problems:
        raise WeightsError(f"config.params: {'; '.join(problems)} (it takes {', '.join(known)})")
    for key in SIZE_PARAMS:
        if type(params[key]) is not int:
            raise WeightsError(f"config.params.{key} = {quoted(params[key])}: must be an integer")
    if target != SIT and params["predict_uncertainty"] is not True:
        raise WeightsError(
            f"config.params.predict_uncertainty = {quoted(params['predict_uncertainty'])}: must be true; "
            "a PFT without its difficulty head is not supported"
        )
    return dict(params)


def _from_published(
    state: object, config: object, heads: int | None
) -> tuple[ModelConfig, dict[str, Tensor], list[str]]:
    """The configuration of a published file, its weights, and the names of the dropped weights."""
    config = _plain("config", config)
    if not isinstance(config, dict) or not {"target", "params"} <= config.keys():
        raise WeightsError("config is not {target, params}: without it the architecture of state_dict is unknown")
    target, params = _plain("config.target", config["target"]), _plain("config.params", config["params"])
    if target == TEXT:
        raise WeightsError(f"config.target = {quoted(target)}: text-conditioned models are not supported yet")
    if target not in (PFT, SIT, REPA):
        raise WeightsError(f"config.target = {quoted(target)}: must be one of {', '.join((PFT, SIT, REPA))}")
    if not isinstance(params, dict) or not isinstance(state, dict):
        raise WeightsError("state_dict and config.params must be dicts")
    p = _params(target, {key: _plain(f"config.params.{key}", value) for key, value in params.items()})
    if heads not in (None, p["num_heads"]):
        raise WeightsError(f"heads = {heads}, but config.params.num_heads = {quoted(p['num_heads'])}: leave heads out")
    model_config = ModelConfig(
        depth=p["depth"],
        width=p["hidden_size"],
        heads=p["num_heads"],
        patch=p["patch_size"],
        image_size=(p["input_size"], p["input_size"]),
        channels=p["in_channels"],
        classes=p["num_classes"],
        difficulty_head=target != SIT,
    )
    tensors = named_tensors(state)
    dropped = [name for name in tensors if target == REPA and name.startswith("projector.")]
    return model_config, {name: tensor for name, tensor in tensors.items() if name not in dropped}, dropped


def _sit_config(tensors: Mapping[str, Tensor], heads: int | None) -> ModelConfig:
    """The configuration of an original SiT, from the shapes of its weights."""
    wrong = [
        name
        for name, dimensions in SIT_SHAPES.items()
        if name not in tensors or tensors[name].ndim != dimensions or 0 in tensors[name].shape
    ]
    if wrong:
        raise WeightsError(
            f"neither a published file {{state_dict, config}} nor an original SiT: {listed(wrong)} missing or of "
            "another number of dimensions"
        )
    embedder, table, positions, fc1, head = (tensors[name].shape for name in SIT_SHAPES)
    width, channels, patch, across = embedder
    side = math.isqrt(positions[1])
    if patch != across or side**2 != positions[1]:
        raise WeightsError(
            f"patches of {patch}×{across} pixels and {positions[1]} positions: only square patches and images are read"
        )
    outputs = patch**2 * channels
    if head[0] not in (outputs, 2 * outputs):
        raise WeightsError(
            f"{HEAD} has {head[0]} rows, where a SiT of {channels} channels and patch {patch} has {outputs} or "
            f"{2 * outputs}; a PFT needs its config beside its state_dict"
        )
    # Distinct block numbers are counted, so the file cannot claim more blocks than it has.
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    if heads is None:
        heads = next((size.heads for size in SIZES.values() if (size.depth, size.width) == (depth, width)), None)
    if heads is None:
        raise WeightsError(
            f"depth {depth} and width {width} are none of the named sizes, so the number of attention heads is "
            "unknown: pass heads="
        )
    return ModelConfig(
        depth=depth,
        width=width,
        heads=heads,
        patch=patch,
        image_size=(side * patch, side * patch),
        channels=channels,
        classes=table[0] - 1,
        difficulty_head=False,
        mlp_ratio=fc1[0] / width,
    )


def _without_variance(config: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop the second half of the 2C outputs per pixel, which the original SiT has and does not use.

    The rows of the final layer are ordered (row in patch, column in patch, channel), channel fastest. A layer of C
    outputs stays as it is.
    """
    pixels, channels = config.patch**2, config.channels
    kept = dict(tensors)
    for name in (HEAD, "final_layer.linear.bias"):
        values = tensors.get(name)
        if values is not None and values.shape[:1] == (pixels * 2 * channels,):
            kept[name] = values.unflatten(0, (pixels, 2 * channels))[:, :channels].flatten(0, 1)
    return kept


def load_published(path: str | Path, *, heads: int | None = None) -> PatchForcingTransformer:
    """The model of a published checkpoint: a PFT or SiT, float32 on the CPU in eval mode.

    Read are the published `{state_dict, config: {target, params}}`, the configuration plain or OmegaConf's, of a PFT, a
    SiT, or a PFT trained with REPA (whose projector is used in training only and is dropped with a warning); and the
    original SiT (Ma et al. 2024), a flat state dict or a training checkpoint that has one as `ema`, whose second C
    outputs per pixel are dropped. `pos_embed` is the file's. `class_dropout` is in none of the files and gets its
    default, 0.1; `compile` is ignored.

    Args:
        heads: attention heads of an original SiT that is none of the named sizes; no shape in the file reveals their
            number.

    Raises:
        PublishedError: the file is missing or damaged, needs code to be read, is of another architecture, or holds
            weights that do not fit or are not finite. The message says which.
    """
    path = Path(path)
    checkpoint = _read(path)
    dropped: list[str] = []
    try:
        if not isinstance(checkpoint, dict):
            raise WeightsError(f"holds a {type(checkpoint).__name__}, not a state dict")  # noqa: TRY301
        if "state_dict" in checkpoint:
            config, tensors, dropped = _from_published(checkpoint["state_dict"], checkpoint.get("config"), heads)
        else:
            flat = checkpoint.get("ema")
            tensors = named_tensors(flat if isinstance(flat, dict) else checkpoint)
            config = _sit_config(tensors, heads)
        if not config.difficulty_head:
            tensors = _without_variance(config, tensors)
        model = filled(config, tensors)
    except (WeightsError, FieldError) as error:
        raise PublishedError(f"{path}: {error}") from error
    if dropped:
        warnings.warn(
            f"{path}: the projector ({len(dropped)} tensors) serves training only and is dropped", stacklevel=2
        )
    return model


def save_published(model: PatchForcingTransformer, path: str | Path) -> None:
    """Write a model in the format that the published implementation reads, float32, whole or not at all.

    `class_dropout` and `attention` are not part of the format: a model loaded from the file has their defaults. For a
    model that was trained without label dropout there is a warning: the file cannot say that the model must not be
    guided.

    Raises:
        FieldError: the format cannot express the model: a non-square `image_size`, or an `mlp_ratio` other than 4.
        PublishedError: the weights are not finite.
    """
    config = model.config
    side = config.image_size[0]
    require(config.image_size[1] == side, "image_size", config.image_size, "square for the published format")
    require(config.mlp_ratio == 4, "mlp_ratio", config.mlp_ratio, "4 for the published format, which has no field")
    params: dict[str, int | bool] = {
        "in_channels": config.channels,
        "input_size": side,
        "depth": config.depth,
        "hidden_size": config.width,
        "patch_size": config.patch,
        "num_heads": config.heads,
        "num_classes": config.classes,
        "compile": False,
    }
    if config.difficulty_head:
        params["predict_uncertainty"] = True
    if config.class_dropout == 0:
        warnings.warn(
            f"{path}: the model never learned the null class (class_dropout = 0), which the format cannot say: "
            "do not guide it",
            stacklevel=2,
        )
    try:
        state = OrderedDict(float_weights(model))
    except WeightsError as error:
        raise PublishedError(f"{path}: not written: {error}") from error
    checkpoint = {"state_dict": state, "config": {"target": PFT if config.difficulty_head else SIT, "params": params}}
    write_whole(Path(path), lambda scratch: torch.save(checkpoint, scratch))
