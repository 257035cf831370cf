"""Small datasets of real drawings, and real damage."""

from __future__ import annotations

import io
from pathlib import Path

from pforce.data import Manifest, Split, openmoji
from pforce.data.emoji import CLASSES
from pforce.data.writer import Sample, write_shard

RESOLUTION = 16


def sample(drawing: openmoji.Drawing, resolution: int = RESOLUTION, extension: str = "png") -> Sample:
    file = io.BytesIO()
    openmoji.draw(drawing.hexcode, resolution).save(
        file, format={"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG"}[extension]
    )
    return Sample(drawing.hexcode, file.getvalue(), drawing.label, drawing.caption, extension)


def write_samples(folder: Path, train: list[list[Sample]], validation: list[Sample] | None = None) -> Manifest:
    """A dataset with one training shard for each list, and one validation shard."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(
        name="small",
        resolution=RESOLUTION,
        channels=3,
        classes=CLASSES,
        train=Split(tuple(write_shard(folder / f"train-{i:05d}.tar", shard) for i, shard in enumerate(train))),
        validation=Split((write_shard(folder / "validation-00000.tar", validation or train[0]),)),
        licence="CC BY-SA 4.0",
        attribution="OpenMoji",
        versions={},
    )
    manifest.save(folder)
    return manifest


def samples(count: int) -> list[Sample]:
    """`count` drawings spread over the catalogue, so of many classes. No two are alike: an image names its sample
    (some men and persons are drawn the same)."""
    drawings = openmoji.catalogue()
    different: dict[bytes, Sample] = {}
    for i in range(count + count // 4):
        made = sample(drawings[i * len(drawings) // (count + count // 4)])
        different.setdefault(made.image, made)
    assert len(different) >= count
    return list(different.values())[:count]


def shards(sizes: list[int]) -> list[list[Sample]]:
    """Different drawings in shards of the given sizes."""
    drawn = iter(samples(sum(sizes)))
    return [[next(drawn) for _ in range(size)] for size in sizes]
