"""Images as tensors and as bytes: the project's only uint8 conversion, image files from anybody, and PNG grids of
samples."""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from pforce.base.files import write_whole
from pforce.base.foreign import ForeignError, expect, open_regular, quoted

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""Formats that are read, whatever a file is called. Pillow knows forty more; it starts Ghostscript for one of them."""
MOST_PIXELS = 2**25
"""Most pixels of an image that is read: 8192 × 4096, which are 100 MB."""
_DECODING_ERRORS = (OSError, ValueError, SyntaxError, EOFError, IndexError, OverflowError, struct.error, zlib.error,
                    Image.DecompressionBombError)  # fmt: skip
"""Errors that Pillow raises for broken files (a bad PNG chunk is a SyntaxError)."""


@contextmanager
def open_picture(source: Path | bytes) -> Iterator[Image.Image]:
    """An image, open but not decoded: of a file, or of the bytes of one.

    ForeignError, also where decoding in the block fails: it is not a file, is none of FORMATS, is damaged, or has more
    than MOST_PIXELS.
    """
    try:
        with (
            io.BytesIO(source) if isinstance(source, bytes) else open_regular(source) as file,
            Image.open(file, formats=FORMATS) as image,
        ):
            pixels = f"{image.width:,} × {image.height:,} pixels"
            expect(image.width * image.height <= MOST_PIXELS, f"it has {pixels}, more than {MOST_PIXELS:,} in all")
            yield image
    except ForeignError:
        raise
    except UnidentifiedImageError:
        raise ForeignError(f"it is none of {', '.join(FORMATS)}, or damaged") from None
    except _DECODING_ERRORS as error:
        raise ForeignError(
            f"it cannot be decoded: {quoted(str(error)) if str(error) else type(error).__name__}"
        ) from error


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels (H, W, 3) of an image of any mode. 16 bits are scaled to 8, where Pillow would clip them to white.
    ForeignError for floating-point pixels, whose range is not known."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        expect(values.min() >= 0 and values.max() < 65536, f"its pixels are of mode {image.mode}, beyond 16 bits")
        return np.repeat(((values + 128) // 257).astype(np.uint8)[:, :, None], 3, axis=2)
    expect(image.mode != "F", "its pixels are floating-point numbers (mode F): write it with 8 bits")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def to_uint8(images: Tensor) -> Tensor:
    """Convert values in [−1, 1] to uint8 0…255, rounded to the nearest: round(127.5·x + 127.5).

    Values outside are clipped. `to_uint8(from_uint8(u)) == u` for every u. ValueError for a value that is not finite:
    it would become black or white and be measured as if it were an image.
    """
    if not bool(torch.isfinite(images).all()):
        bad = sum(not bool(torch.isfinite(image).all()) for image in images)
        raise ValueError(f"{bad} of {len(images)} images hold NaN or infinity: the model or its sampler has diverged")
    return (images.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """Convert uint8 0…255 to float32 in [−1, 1]."""
    return images.to(torch.float32) / 127.5 - 1.0


def save_grid(images: Tensor, path: Path, *, columns: int | None = None, scale: int = 1, gap: int = 2) -> None:
    """Write (B, 3, H, W) images in [−1, 1] as one PNG, row-major, each enlarged `scale` times.

    `columns` defaults to the square root of B, rounded up. The gaps are white.
    """
    pixels = to_uint8(images).cpu().permute(0, 2, 3, 1)  # (B, H, W, 3)
    count, height, width, _ = pixels.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    canvas = Image.new("RGB", (columns * (width * scale + gap) + gap, rows * (height * scale + gap) + gap), "white")
    for index, image in enumerate(pixels.numpy()):
        tile = Image.fromarray(image).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        row, column = divmod(index, columns)
        canvas.paste(tile, (gap + column * (width * scale + gap), gap + row * (height * scale + gap)))
    write_whole(path, lambda scratch: canvas.save(scratch, format="PNG"))
