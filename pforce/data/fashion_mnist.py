"""Fashion-MNIST as a dataset: 70,000 photographs of clothes in ten classes, from its four IDX files.

The 28² grey images are padded with black to 32² and copied into three equal channels, because every model, reader and
detector of the project takes three. The 60,000 training images are `train`, the 10,000 test images `validation`;
captions are the names of the classes. Nothing is downloaded: the files come from Debian's package
`dataset-fashion-mnist` or from a folder. The images are MIT licensed, © 2017 Zalando SE.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pforce.base.errors import require
from pforce.base.files import read_whole
from pforce.data.manifest import FILE_NAME, DataError, Manifest, Split
from pforce.data.writer import Sample, appearing_whole, write_shard

NAME = "fashion-mnist"
RESOLUTION = 32
IDX_SIZE = 28
"""Height and width of the images in the IDX files, in pixels."""
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
ATTRIBUTION = "Fashion-MNIST, © 2017 Zalando SE (https://github.com/zalandoresearch/fashion-mnist)"
PACKAGES = ("pillow",)
"""Packages that the samples' bytes depend on; the manifest records their versions."""

SOURCE_VARIABLE = "PFORCE_FASHION_MNIST"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Folder into which the package `dataset-fashion-mnist` puts the files."""
FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))

_MAGIC = {1: 0x00000801, 3: 0x00000803}
"""Number of dimensions → magic number of an IDX file: two zero bytes, 8 for unsigned bytes, the number of
dimensions."""
_CURE = (
    f"Run `apt install dataset-fashion-mnist`, which puts the four IDX files into {DEBIAN_FOLDER}, or set "
    f"{SOURCE_VARIABLE} to a folder with them"
)
_BROKEN_CURE = "Replace it by the published file"


@dataclass(frozen=True)
class Images:
    """One of the two published sets, as its files hold it."""

    pixels: NDArray[np.uint8]
    """Pixels (n, 28, 28); 0 is the black background."""
    labels: NDArray[np.uint8]
    """Labels (n,), indices into CLASSES."""


def find_source(source: Path | None = None) -> Path:
    """The folder with the four IDX files: `source`, else `$PFORCE_FASHION_MNIST`, else Debian's.

    Raises:
        DataError: a file is missing there. The next folder is not tried in place of a named one.
    """
    folder = source or Path(os.environ.get(SOURCE_VARIABLE) or DEBIAN_FOLDER)
    missing = [name for name in FILES if not any(path.is_file() for path in _places(folder, name))]
    if missing:
        raise DataError(f"Fashion-MNIST: {folder} lacks {', '.join(missing)} (or .gz). {_CURE}")
    return folder


def read_images(folder: Path, part: str) -> Images:
    """The images and labels of `part`, train or t10k.

    Raises:
        DataError: a file is missing or unreadable, or does not match its header, its partner or the classes.
    """
    pixels_path, pixels = _read_idx(folder, f"{part}-images-idx3-ubyte", dimensions=3)
    labels_path, labels = _read_idx(folder, f"{part}-labels-idx1-ubyte", dimensions=1)
    if pixels.shape[1:] != (IDX_SIZE, IDX_SIZE):
        raise DataError(f"{pixels_path} holds images of {pixels.shape[1:]}, not {IDX_SIZE}². {_BROKEN_CURE}")
    if len(pixels) != len(labels):
        raise DataError(
            f"{pixels_path} holds {len(pixels)} images, {labels_path.name} {len(labels)} labels: they do not belong "
            "together. Replace both by the published files"
        )
    if len(labels) and labels.max() >= len(CLASSES):
        place = int((labels >= len(CLASSES)).argmax())
        raise DataError(
            f"{labels_path} has label {labels[place]} for image {place}: must be 0 to {len(CLASSES) - 1}. "
            f"{_BROKEN_CURE}"
        )
    return Images(pixels, labels)


def _places(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / name, folder / f"{name}.gz"


def _read_idx(folder: Path, name: str, *, dimensions: int) -> tuple[Path, NDArray[np.uint8]]:
    """The path and content of an IDX file of unsigned bytes, compressed or not."""
    path = next((path for path in _places(folder, name) if path.is_file()), folder / name)
    try:
        content = read_whole(path)
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing, and so is {path.name}.gz. {_CURE}") from error
    except (OSError, EOFError, zlib.error) as error:  # a truncated gzip file raises EOFError
        raise DataError(f"{path} cannot be read ({error}). {_BROKEN_CURE}") from error
    header = struct.Struct(f">{1 + dimensions}I")
    if len(content) < header.size:
        raise DataError(f"{path} ends after {len(content)} bytes, inside its header. {_BROKEN_CURE}")
    magic, *shape = header.unpack_from(content)
    if magic != _MAGIC[dimensions]:
        raise DataError(
            f"{path} starts with {magic:#010x}: must be {_MAGIC[dimensions]:#010x}, IDX of unsigned bytes in "
            f"{dimensions} dimensions. {_BROKEN_CURE}"
        )
    expected, found = math.prod(shape), len(content) - header.size
    if found != expected:
        raise DataError(
            f"{path} holds {found} bytes after its header, which says {' × '.join(map(str, shape))} = {expected}. "
            f"{_BROKEN_CURE}"
        )
    return path, np.frombuffer(content, dtype=np.uint8, offset=header.size).reshape(shape)


def build(
    destination: Path,
    resolution: int = RESOLUTION,
    *,
    source: Path | None = None,
    shards_train: int = 32,
    shards_validation: int = 4,
    progress: bool = True,
) -> Manifest:
    """Write both sets as shards under `destination`. Does nothing if they are there, with or without IDX files.

    Samples are dealt to the shards in the order of a hash of their index, so that every shard is a fair sample of its
    split. The same files and package versions give the same bytes.

    Args:
        source: folder of the IDX files; by default `find_source` looks for it.

    Raises:
        FieldError: a resolution or shard count that is not allowed.
        DataError: the IDX files are missing or damaged, or the destination holds something else.
        OSError: the destination cannot be written.
    """
    require(resolution == RESOLUTION, "resolution", resolution, f"{RESOLUTION}, as {NAME} has no other")
    require(shards_train > 0 and shards_train % 16 == 0, "shards_train", shards_train, "a positive multiple of 16")
    require(shards_validation > 0, "shards_validation", shards_validation, "> 0")
    if not destination.exists():
        _build(destination, find_source(source), shards_train, shards_validation, progress)
    if not (destination / FILE_NAME).exists():
        raise DataError(f"{destination} exists and is not a dataset. Remove it, or choose another folder")
    manifest = Manifest.load(destination)
    if (manifest.name, manifest.resolution) != (NAME, resolution):
        raise DataError(
            f"{destination} holds {manifest.name} at {manifest.resolution}², not {NAME} at {resolution}². "
            "Remove it, or choose another folder"
        )
    manifest.check(destination)
    return manifest


def _build(destination: Path, source: Path, shards_train: int, shards_validation: int, progress: bool) -> None:
    train, validation = read_images(source, "train"), read_images(source, "t10k")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with appearing_whole(destination) as folder, Progress(*columns, disable=not progress) as bar:
        task = bar.add_task("Fashion-MNIST", total=len(train.labels) + len(validation.labels))

        def samples(images: Images, chosen: Sequence[int]) -> Iterator[Sample]:
            for index in chosen:
                label = int(images.labels[index])
                yield Sample(f"{index:05d}", _png(images.pixels[index]), label, CLASSES[label])
                bar.advance(task)

        def split(name: str, images: Images, count: int) -> Split:
            order = sorted(range(len(images.labels)), key=lambda index: hashlib.blake2b(str(index).encode()).digest())
            return Split(
                tuple(
                    write_shard(folder / f"{name}-{i:05d}.tar", samples(images, order[i::count])) for i in range(count)
                )
            )

        Manifest(
            name=NAME,
            resolution=RESOLUTION,
            channels=3,
            classes=CLASSES,
            train=split("train", train, shards_train),
            validation=split("validation", validation, shards_validation),
            licence="MIT",
            attribution=ATTRIBUTION,
            versions={name: version(name) for name in PACKAGES},
        ).save(folder)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """Grey pixels (28, 28) as a PNG of 32² with three equal channels."""
    padded = np.pad(pixels, (RESOLUTION - IDX_SIZE) // 2)  # black all around
    file = io.BytesIO()
    Image.fromarray(padded).convert("RGB").save(file, format="PNG")
    return file.getvalue()
