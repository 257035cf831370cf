"""Tensors of files from anybody: torch's pickles without their code, and safetensors.

No code of a file is ever run. Before anything is unpacked, a file must hold the bytes that it speaks of.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pforce.base.foreign import ForeignError, expect, open_regular, printable, quoted

Allowed = Sequence[Callable[..., Any] | tuple[Callable[..., Any], str]]
"""Further classes and functions that a pickle may name; as a pair, in place of the one of that name."""
_REFUSED_GLOBAL = re.compile(r"GLOBAL (\S+) (?:was not an allowed|whose module)")
_MAKERS = re.compile(r"(\S*\s)?(bytearray|\w*Tensor|TypedStorage|UntypedStorage)")
"""Names that torch allows, and that make room for any number they are called with."""


def _check_archive(path: Path) -> None:
    """Raise ForeignError unless a file is a zip whose entries are stored as they are, within the file's size."""
    with open_regular(path) as file:
        size = file.seek(0, io.SEEK_END)
        try:
            with zipfile.ZipFile(file) as archive:
                infos = archive.infolist()
                stored = all(info.compress_type == zipfile.ZIP_STORED for info in infos)
                fits = sum(info.file_size for info in infos) <= size
                expect(stored and fits, "its entries are compressed, or larger than the file, as torch writes none")
                # torch finds it whatever its case.
                pickles = [info for info in infos if info.filename.casefold().endswith("data.pkl")]
                expect(len(pickles) == 1, f"it has {len(pickles)} entries data.pkl, where torch writes one")
                _check_pickle(archive.read(pickles[0]))
        except (zipfile.BadZipFile, RuntimeError, EOFError, UnicodeDecodeError) as error:
            raise ForeignError(
                "it is no checkpoint of torch 1.6 or later, or truncated or damaged: get it again, or save it anew "
                f"with its own torch ({printable(str(error))})"
            ) from error


def _check_pickle(content: bytes) -> None:
    """Raise ForeignError for a pickle that calls for something that allocates by a number."""
    try:
        for opcode, argument, _ in pickletools.genops(content):
            maker = opcode.name == "GLOBAL" and _MAKERS.fullmatch(str(argument)) is not None
            expect(not maker, f"it carries {quoted(argument)}, which no weights need, and was not loaded")
    except ForeignError:
        raise
    except Exception as error:  # pickletools raises many kinds
        raise ForeignError(f"it is damaged ({type(error).__name__}): get it again") from error


def read_pickle(path: Path, allowed: Allowed = ()) -> object:
    """The content of a file of `torch.save`, read by torch's weights-only reader.

    Raises:
        ForeignError: it is not such a file, is damaged, needs code to be read, or claims more than it holds.
        OSError: it is missing, or may not be read.
    """
    _check_archive(path)
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message recommends loading without protection; it is not passed on.
        if refused := _REFUSED_GLOBAL.search(str(error)):
            raise ForeignError(
                f"it carries code or unknown objects ({printable(refused[1])}) and was not loaded: "
                "save its weights and a plain configuration only"
            ) from None
        raise ForeignError("it is not a checkpoint of tensors and plain values, or damaged: get it again") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise ForeignError(
            f"it is truncated, damaged or not a checkpoint ({type(error).__name__}): get it again"
        ) from error


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, and the metadata, of a safetensors file. Its own reader checks that the header's sizes are those
    of the file.

    Raises:
        ForeignError: it is not such a file, or is damaged.
        OSError: it is missing, or may not be read.
    """
    open_regular(path).close()
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ForeignError(
            f"it is damaged or not a safetensors file ({printable(str(error))}): copy it again"
        ) from error


def has_its_values(tensor: Tensor) -> bool:
    """Whether a tensor's storage holds a value for each of its entries: a view may show one value a billion times."""
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
