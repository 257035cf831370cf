"""Sets of images to evaluate: a folder of files, an npz in ADM's format, or a tensor.

All give uint8 batches (B, 3, H, W) of one image size, in a fixed order, without holding all images in memory.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pforce.base.arrays import open_arrays
from pforce.base.errors import InputError
from pforce.base.files import sha256_of
from pforce.base.foreign import ForeignError, expect, quoted
from pforce.base.machine import usable_cores
from pforce.base.words import counted
from pforce.images import MOST_PIXELS, open_picture, to_rgb

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
LOSSY = (".jpg", ".jpeg", ".webp")
CHANNELS = 3
MOST_SHOWN = 4
"""Most subfolders that a note names."""
BATCH_BYTES = 2**28
"""Most bytes of a batch's images; a batch of larger ones has fewer."""
WORTH_THREADS = 128
"""Height or width from which images are decoded on threads. Below it, threads spend their time on Python's lock (10,000
images of 64² took 1.2 s on one thread and 2.2 s on two)."""


class ImageSetError(InputError, ValueError):
    """Images cannot be read. The message gives the file, the reason and the remedy."""


class ImageSet(Protocol):
    """Images in a fixed order."""

    size: tuple[int, int]
    """Height and width of every image, in pixels."""
    notes: tuple[str, ...]
    """Notes for readers of the numbers."""

    def __len__(self) -> int: ...

    def batches(self, size: int) -> Iterator[Tensor]:
        """Batches uint8 (B, 3, H, W) with B = size, except the last."""
        ...

    def content_hash(self) -> str:
        """Hash that identifies the images."""
        ...


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image file. ImageSetError where it cannot be decoded."""
    try:
        with open_picture(path) as image:
            yield image
    except ForeignError as error:
        raise ImageSetError(f"{path}: {error}. Remove it or write it again") from error


class ImageFolder:
    """The image files of a folder and its subfolders, sorted by path; decoded on threads while the detector works.

    Grey and palette images become RGB and transparency is dropped, as in torch-fidelity. ImageSetError where there are
    fewer than two images, one is broken, or sizes differ: by the files' headers at once, by their content when it is
    read.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        # os.walk passes over a subfolder that vanishes meanwhile, such as another process's temporary one.
        found = (Path(place, name) for place, _, names in os.walk(self.folder) for name in names)
        self.paths = sorted(path for path in found if path.suffix.lower() in SUFFIXES)
        if len(self.paths) < 2:
            count = counted(len(self.paths), "image file")
            raise ImageSetError(f"{self.folder}: holds {count} ({', '.join(SUFFIXES)}); a distance needs 2")
        self.size, mode = self._header(self.paths[0])
        for path in self.paths[1:]:
            self._check_size(path, self._header(path)[0])
        self.notes: tuple[str, ...] = () if mode == "RGB" else (f"images of mode {mode} read as RGB",)
        if any(path.suffix.lower() in LOSSY for path in self.paths):
            self.notes += ("lossy image files: a distance depends on their compression",)
        inner = Counter(str(path.parent.relative_to(self.folder)) for path in self.paths if path.parent != self.folder)
        if inner:
            shown = ", ".join([*list(inner)[:MOST_SHOWN], *(["…"] if len(inner) > MOST_SHOWN else [])])
            where = f"{counted(len(inner), 'subfolder')} ({shown})"
            self.notes += (f"{inner.total():,} of its {counted(len(self.paths), 'image')} are in {where}",)

    def _header(self, path: Path) -> tuple[tuple[int, int], str]:
        """(height, width) and mode of an image, from the beginning of its file."""
        with _opened(path) as image:
            return (image.height, image.width), image.mode

    def _check_size(self, path: Path, size: tuple[int, int]) -> None:
        if size != self.size:
            height, width = self.size
            raise ImageSetError(
                f"{path}: {size[1]}×{size[0]} pixels, but {self.paths[0].name} has {width}×{height}: all images must "
                "be of one size. Resize them, or move those of another size away"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def _decode(self, path: Path) -> NDArray[np.uint8]:
        with _opened(path) as image:
            return to_rgb(image)

    def _fill(self, pixels: NDArray[np.uint8], paths: Sequence[Path]) -> None:
        for row, path in enumerate(paths):
            image = self._decode(path)
            self._check_size(path, (image.shape[0], image.shape[1]))  # files may have changed since
            pixels[row] = image

    def batches(self, size: int) -> Iterator[Tensor]:
        """Batches uint8 (B, 3, H, W). Large images are decoded on threads; with many cores, the next batches are
        decoded ahead."""
        size = min(size, _most_of(self.size))
        parts = [self.paths[first : first + size] for first in range(0, len(self.paths), size)]
        if max(self.size) < WORTH_THREADS:
            for part in parts:
                pixels = np.empty((len(part), *self.size, CHANNELS), np.uint8)
                self._fill(pixels, part)
                yield torch.from_numpy(pixels).permute(0, 3, 1, 2)
            return
        workers = usable_cores()
        with ThreadPoolExecutor(workers) as pool:

            def begin(paths: Sequence[Path]) -> tuple[NDArray[np.uint8], list[Future[None]]]:
                pixels = np.empty((len(paths), *self.size, CHANNELS), np.uint8)
                shares = np.array_split(np.arange(len(paths)), workers)
                rows = [slice(share[0], share[-1] + 1) for share in shares if len(share)]
                return pixels, [pool.submit(self._fill, pixels[row], paths[row]) for row in rows]

            ahead = max(0, workers // 2 - 1)
            under_way = deque(begin(part) for part in parts[:ahead])
            for number in range(len(parts)):
                if number + ahead < len(parts):
                    under_way.append(begin(parts[number + ahead]))
                pixels, shares = under_way.popleft()
                for share in shares:
                    share.result()
                yield torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def content_hash(self) -> str:
        """Hash of the names below the folder and the files' contents."""
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(os.fsencode(path.relative_to(self.folder)) + f"\x1f{sha256_of(path)}\n".encode())
        return digest.hexdigest()


def _most_of(size: tuple[int, int]) -> int:
    """Most images of a size in one batch."""
    return max(1, BATCH_BYTES // (size[0] * size[1] * CHANNELS))


class ImageArray:
    """The images of an npz in the format of ADM's evaluator: `arr_0`, uint8 (N, H, W, 3). It is read batch by batch:
    50,000 images of 256² are 10 GB.

    (N, H, W) and (N, H, W, 1) are grey images. ImageSetError for another order of axes (N, 3, H, W), type or shape.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with open_arrays(self.path) as arrays:
                names = arrays.names
                self.entry = "arr_0" if "arr_0" in names else names[0] if len(names) == 1 else None
                listed = quoted(", ".join(names))
                expect(self.entry is not None, f"it holds {listed}; images are in arr_0 of an npz")
                with arrays.open(str(self.entry)) as (_, shape, dtype, fortran):
                    expect(not fortran, "it is written in Fortran order: write np.ascontiguousarray(images)")
        except (OSError, ForeignError) as error:
            raise ImageSetError(f"{self.path}: is no npz file of images: {error}") from error
        self._check(shape, dtype)
        self.shape = shape
        self.size = (shape[1], shape[2])
        grey = len(shape) == 3 or shape[3] == 1
        self.notes: tuple[str, ...] = ("grey images read as RGB",) if grey else ()

    def _check(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        told = f"{self.path}: {self.entry} is {shape} of {dtype}"
        if len(shape) == 4 and shape[1] in (1, CHANNELS) and shape[3] not in (1, CHANNELS):
            raise ImageSetError(f"{told}, channels first; write it as (N, H, W, 3): np.transpose(a, (0, 2, 3, 1))")
        if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, CHANNELS)):
            raise ImageSetError(f"{told}; images are (N, H, W, 3)")
        if dtype != np.uint8:
            raise ImageSetError(
                f"{told}; images are uint8 from 0 to 255 (pforce.images.to_uint8 makes them of [−1, 1])"
            )
        if shape[0] < 2 or not 0 < shape[1] * shape[2] <= MOST_PIXELS:
            raise ImageSetError(f"{told}; a distance needs at least 2 images of at most {MOST_PIXELS:,} pixels")

    def __len__(self) -> int:
        return self.shape[0]

    def batches(self, size: int) -> Iterator[Tensor]:
        """uint8 (B, 3, H, W)."""
        image = int(np.prod(self.shape[1:]))
        size = min(size, _most_of(self.size))
        try:
            with open_arrays(self.path) as arrays, arrays.open(str(self.entry)) as (file, *_):
                for first in range(0, len(self), size):
                    count = min(size, len(self) - first)
                    content = file.read(count * image)
                    expect(len(content) == count * image, f"it ends before its {len(self)} images")
                    pixels = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(count, *self.size, -1)
                    yield pixels.permute(0, 3, 1, 2).expand(-1, CHANNELS, -1, -1)
        except (OSError, ForeignError) as error:
            raise ImageSetError(f"{self.path}: damaged: {error}. Copy it again") from error

    def content_hash(self) -> str:
        """SHA-256 of the file."""
        return sha256_of(self.path)


class ImageTensor:
    """Images uint8 (N, 3, H, W) in memory. ImageSetError for another type or shape."""

    notes: tuple[str, ...] = ()

    def __init__(self, images: Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != CHANNELS or len(images) < 2:
            raise ImageSetError(
                f"images {tuple(images.shape)} of {images.dtype}: must be (N, 3, H, W) uint8 with N ≥ 2 "
                "(pforce.images.to_uint8)"
            )
        self.images = images
        self.size = (images.shape[2], images.shape[3])

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, size: int) -> Iterator[Tensor]:
        """uint8 (B, 3, H, W)."""
        yield from self.images.split(size)

    def content_hash(self) -> str:
        """Hash of the pixels and their shape."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        digest.update(self.images.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def open_images(path: str | Path) -> ImageFolder | ImageArray:
    """Open the images of a folder or an npz. ImageSetError as the two classes raise it, and where there is neither."""
    path = Path(path)
    if path.is_dir():
        return ImageFolder(path)
    if not path.exists():
        raise ImageSetError(f"{path}: does not exist; give a folder of images, or an .npz file")
    if path.suffix == ".npz":
        return ImageArray(path)
    raise ImageSetError(f"{path}: is neither a folder nor an .npz file")
