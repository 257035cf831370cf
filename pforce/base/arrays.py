"""Arrays of an npz file, checked before anything is allocated.

An npz is a zip of `.npy` files. Numpy makes room for the shape that a header names before it has read a byte of it, and
unpacks whatever a zip holds. Here a header must agree with the size that the archive states, the archive with the
file's size, and a reader says how much it takes at most.
"""

from __future__ import annotations

import io
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pforce.base.errors import InputError
from pforce.base.foreign import ForeignError, open_regular, quoted

MOST_MEMBERS = 1000
READ_ERRORS = (
    OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, SyntaxError, MemoryError, tokenize.TokenError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""Errors that a damaged, truncated, encrypted or foreign npz raises."""


class Arrays:
    """The arrays of an open npz file."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        infos = archive.infolist()
        if len(infos) > MOST_MEMBERS:
            raise ForeignError(f"it has {len(infos):,} entries, where at most {MOST_MEMBERS} are read")
        self._archive = archive
        self._infos = {info.filename.removesuffix(".npy"): info for info in infos}
        if len(self._infos) < len(infos):
            raise ForeignError("two of its entries have one name")

    @property
    def names(self) -> list[str]:
        """Names of the arrays."""
        return list(self._infos)

    def __contains__(self, name: str) -> bool:
        return name in self._infos

    @contextmanager
    def open(self, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype[Any], bool]]:
        """A stream at the beginning of an array's values, its shape, its type, and whether it is in Fortran order.
        ForeignError where the header does not agree with the archive, or is not of plain numbers or texts."""
        info = self._infos[name]
        with self._archive.open(info) as file:
            shape, dtype, fortran = _header(file)
            size = math.prod(shape) * dtype.itemsize
            if file.tell() + size != info.file_size:
                raise ForeignError(
                    f"{quoted(name)} is {quoted(shape)} of {dtype}, {size:,} bytes, where the archive holds "
                    f"{info.file_size:,}"
                )
            yield file, shape, dtype, fortran

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array."""
        with self.open(name) as (_, shape, _, _):
            return shape

    def read(self, name: str, most_bytes: int) -> NDArray[Any]:
        """An array. ForeignError where it has more than `most_bytes`, or ends early."""
        with self.open(name) as (file, shape, dtype, fortran):
            size = math.prod(shape) * dtype.itemsize
            if size > most_bytes:
                raise ForeignError(f"{quoted(name)} has {size:,} bytes, where at most {most_bytes:,} are expected")
            content = file.read(size)
        if len(content) < size:
            raise ForeignError(f"{quoted(name)} ends after {len(content):,} of {size:,} bytes")
        return np.frombuffer(bytearray(content), dtype).reshape(shape, order="F" if fortran else "C")

    def read_all(self, size: int) -> dict[str, NDArray[Any]]:
        """All arrays by name. ForeignError where they unpack to more than 64 MB and twice the `size` of the file in
        bytes together."""
        left, found = 2**26 + 2 * size, {}
        for name in self.names:
            found[name] = self.read(name, left)
            left -= found[name].nbytes
        return found

    def text(self, name: str, most: int = 4096) -> str:
        """A text kept as an array without dimensions. ForeignError where it is something else."""
        value = self.read(name, 4 * most)
        if value.shape != () or value.dtype.kind != "U":
            raise ForeignError(f"{quoted(name)} is not a text")
        return str(value)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Shape, type and order of an .npy file, read up to the start of its values."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.kind not in "biufcUS":
        raise ForeignError(f"an array holds {quoted(str(dtype))}, not numbers or texts")
    if any(side < 0 for side in shape):
        raise ForeignError(f"an array has the shape {quoted(shape)}")
    return shape, dtype, fortran


@contextmanager
def open_arrays(source: Path | bytes) -> Iterator[Arrays]:
    """The arrays of an npz file, or of the bytes of one.

    Raises:
        FileNotFoundError: it is missing.
        ForeignError: it is not a file, not an npz, damaged, or claims what it does not hold; also where a reader in the
            block meets that.
    """
    try:
        with (
            io.BytesIO(source) if isinstance(source, bytes) else open_regular(source) as file,
            zipfile.ZipFile(file) as archive,
        ):
            yield Arrays(archive)
    except (ForeignError, InputError, FileNotFoundError):
        raise
    except READ_ERRORS as error:
        told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise ForeignError(f"it cannot be read as an npz file ({quoted(told)})") from error
