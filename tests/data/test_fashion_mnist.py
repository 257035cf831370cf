"""Fashion-MNIST from IDX files. Oracles: files packed here with struct, pixels padded by hand, published numbers."""

from __future__ import annotations

import dataclasses
import gzip
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pforce.base.errors import FieldError
from pforce.commands.data import build_data
from pforce.data import DataConfig, DataError, Manifest, ensure, fashion_mnist, read_split
from pforce.records.parts import Inputs
from pforce.trial.perform import find_data
from pforce.trial.task import Train
from pforce_experiments.fashion32 import fashion32_micro, fashion32_sit_micro

TRAIN, TEST = 70, 24
"""Images of the small sets: two or three in a training shard, six in a validation shard."""


def idx(values: np.ndarray, magic: int | None = None) -> bytes:
    """An IDX file of bytes, as its format is published: magic number and sizes big-endian, then the values."""
    magic = 0x800 + values.ndim if magic is None else magic
    return struct.pack(f">{1 + values.ndim}I", magic, *values.shape) + values.tobytes()


def images_and_labels(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(10), random.integers(0, 10, count - 10)]).astype(np.uint8)
    return random.integers(0, 256, (count, 28, 28), dtype=np.uint8), labels


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with small IDX files, half of them compressed."""
    folder = tmp_path / "idx"
    folder.mkdir()
    for part, count, seed in (("train", TRAIN, 1), ("t10k", TEST, 2)):
        pixels, labels = images_and_labels(count, seed)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return folder


def keys(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return [name.removesuffix(".png") for name in tar.getnames() if name.endswith(".png")]


def real_source() -> Path:
    """The published files; the test is skipped, saying so, where they are not."""
    try:
        return fashion_mnist.find_source()
    except DataError as error:
        pytest.skip(f"the published files are needed: {error}")


@pytest.mark.parametrize(("split", "count", "seed"), [("train", TRAIN, 1), ("validation", TEST, 2)])
def test_pixels_labels_and_captions(source: Path, tmp_path: Path, split: str, count: int, seed: int) -> None:
    """Oracle: the arrays that went in, padded by hand; each key is its image's place in the IDX file."""
    folder = tmp_path / "built"
    fashion_mnist.build(folder, source=source, progress=False)
    batch = read_split(folder, split)
    order = [int(key) for path in sorted(folder.glob(f"{split}-*.tar")) for key in keys(path)]
    assert sorted(order) == list(range(count))
    pixels, labels = images_and_labels(count, seed)
    expected = np.zeros((count, 3, 32, 32), dtype=np.uint8)
    for channel in range(3):
        expected[:, channel, 2:30, 2:30] = pixels
    assert (batch.images.numpy() == expected[order]).all()
    assert batch.labels.tolist() == labels[order].tolist()
    names = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
    assert batch.captions == [names[label] for label in batch.labels]


def test_manifest_and_shards(source: Path, tmp_path: Path) -> None:
    """Oracle: counts put in by hand. Shards are of one size, and none holds a run of the file's order."""
    manifest = fashion_mnist.build(tmp_path / "built", source=source, progress=False)
    assert (manifest.train.samples, manifest.validation.samples) == (TRAIN, TEST)
    assert (len(manifest.train.shards), len(manifest.validation.shards)) == (32, 4)
    assert {shard.samples for shard in manifest.train.shards} == {2, 3}
    assert {shard.samples for shard in manifest.validation.shards} == {6}
    for shard in manifest.validation.shards:
        order = [int(key) for key in keys(tmp_path / "built" / shard.name)]
        assert order != sorted(order)
    assert (manifest.name, manifest.resolution, manifest.channels) == ("fashion-mnist", 32, 3)
    assert len(manifest.classes) == 10
    assert manifest.licence == "MIT"
    assert "Zalando" in manifest.attribution


def test_same_bytes_each_time(source: Path, tmp_path: Path) -> None:
    """Oracle: two builds, byte for byte, the second from files that are compressed the other way round."""
    fashion_mnist.build(tmp_path / "first", source=source, progress=False)
    for path in list(source.iterdir()):
        content = path.read_bytes()
        path.unlink()
        if path.suffix == ".gz":
            path.with_suffix("").write_bytes(gzip.decompress(content))
        else:
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
    fashion_mnist.build(tmp_path / "second", source=source, progress=False)
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / f).iterdir()} for f in ("first", "second"))
    assert len(first) == 32 + 4 + 1
    assert first == second


LABELS, IMAGES = "t10k-labels-idx1-ubyte", "t10k-images-idx3-ubyte"
PIXELS, CLASSES = images_and_labels(TEST, 2)
BAD_FILES = {
    "images under the labels' name": (LABELS, idx(PIXELS), r"starts with 0x00000803: must be 0x00000801"),
    "labels under the images' name": (IMAGES, idx(CLASSES), r"starts with 0x00000801: must be 0x00000803"),
    "signed bytes": (IMAGES, idx(PIXELS, 0x903), r"starts with 0x00000903: must be 0x00000803"),
    "cut": (IMAGES, idx(PIXELS)[:-5], r"holds 18811 bytes after its header, which says 24 × 28 × 28 = 18816"),
    "too long": (LABELS, idx(CLASSES) + b"\0", r"holds 25 bytes after its header, which says 24 = 24"),
    "cut in the header": (IMAGES, idx(PIXELS)[:10], r"ends after 10 bytes, inside its header"),
    "empty": (LABELS, b"", r"ends after 0 bytes"),
    "images of another size": (IMAGES, idx(np.zeros((TEST, 32, 32), np.uint8)), r"images of \(32, 32\), not 28²"),
    "a label too few": (LABELS, idx(CLASSES[:-1]), r"24 images, t10k-labels-idx1-ubyte 23 labels"),
    "no such class": (LABELS, idx(np.where(CLASSES == 9, 10, CLASSES).astype(np.uint8)), r"label 10 for image 9: must"),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_refuses_a_bad_file(source: Path, tmp_path: Path, name: str, content: bytes, message: str) -> None:
    """Oracle: files damaged by hand; the error names file, finding and cure, and nothing is written."""
    (source / f"{name}.gz").unlink(missing_ok=True)
    (source / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        fashion_mnist.build(tmp_path / "built", source=source, progress=False)
    assert str(source / "t10k-") in str(raised.value)
    assert "Replace" in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["idx"]


@pytest.mark.parametrize("damage", [lambda content: content[:-20], lambda content: b"PK" + content[2:]])
def test_refuses_a_damaged_gzip_file(source: Path, tmp_path: Path, damage) -> None:
    """Oracle: a compressed file cut short, and one that is not gzip."""
    path = source / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz cannot be read .* Replace it"):
        fashion_mnist.build(tmp_path / "built", source=source, progress=False)
    assert not (tmp_path / "built").exists()


def test_missing_files_name_both_places(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: an empty folder, an empty default, one file of four gone: what is missing, and two ways to get it."""
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.delenv("PFORCE_FASHION_MNIST", raising=False)
    cure = "`apt install dataset-fashion-mnist`.*/usr/share/datasets/fashion-mnist.*set PFORCE_FASHION_MNIST to a"
    with pytest.raises(DataError, match=rf"debian lacks train-images-idx3-ubyte, .*{cure}"):
        fashion_mnist.build(tmp_path / "built", progress=False)
    monkeypatch.setenv("PFORCE_FASHION_MNIST", str(source))
    assert fashion_mnist.find_source() == source
    assert fashion_mnist.find_source(tmp_path / "idx") == source
    (source / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=rf"idx lacks t10k-labels-idx1-ubyte \(or \.gz\)\. .*{cure}"):
        fashion_mnist.build(tmp_path / "built", progress=False)


def test_built_once_and_without_the_files_after(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: file times; the second call finds the cached folder where no IDX files are left."""
    monkeypatch.setenv("PFORCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PFORCE_FASHION_MNIST", str(source))
    config = DataConfig(name="fashion-mnist")
    folder = ensure(config, progress=False)
    assert folder == tmp_path / "cache" / "fashion-mnist-32-f1"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.setenv("PFORCE_FASHION_MNIST", str(tmp_path / "gone"))
    assert ensure(config, progress=False) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_worker_builds_what_was_planned(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the hash of a build elsewhere; another set of images is refused."""
    planned = fashion_mnist.build(tmp_path / "driver", source=source, progress=False)
    monkeypatch.setenv("PFORCE_CACHE", str(tmp_path / "worker"))
    monkeypatch.setenv("PFORCE_FASHION_MNIST", str(source))
    inputs = Inputs(planned.hash, TRAIN, TEST, "", "", "")
    task = Train("", "", fashion32_micro(), inputs, str(tmp_path / "not_here"), str(tmp_path), "")
    assert find_data(task) == tmp_path / "worker" / "fashion-mnist-32-f1"
    with pytest.raises(DataError, match="holds other data"):
        find_data(dataclasses.replace(task, inputs=dataclasses.replace(inputs, data="0" * 64)))


def test_command(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: exit code and counts of `pforce data build fashion-mnist --source …`."""
    assert build_data("fashion-mnist", destination=tmp_path / "built", source=source) == 0
    assert "70 training and 24 validation images, 10 classes" in capsys.readouterr().out
    assert Manifest.load(tmp_path / "built").train.samples == TRAIN
    with pytest.raises(FieldError, match=r"source = .*: does not apply to openmoji"):
        build_data("openmoji", destination=tmp_path / "emoji", source=source)


def test_refuses_another_resolution_and_what_is_not_its_own(source: Path, tmp_path: Path) -> None:
    """Oracle: the error names the field; a folder with somebody's file in it, and another dataset, stay."""
    for resolution in (28, 64, 0):
        with pytest.raises(FieldError, match=f"resolution = {resolution}: must be 32"):
            fashion_mnist.build(tmp_path / "built", resolution, source=source, progress=False)
    assert not (tmp_path / "built").exists()
    with pytest.raises(DataError, match="not a dataset"):
        fashion_mnist.build(source, source=source, progress=False)


def test_refuses_another_dataset(openmoji_folder: Path) -> None:
    """Oracle: the folder of the built OpenMoji."""
    with pytest.raises(DataError, match="holds openmoji at 32², not fashion-mnist"):
        fashion_mnist.build(openmoji_folder, progress=False)


def test_experiments() -> None:
    """Oracle: classes and data of this data set, detector of the same name; the baseline has no difficulty head."""
    pft, sit = fashion32_micro(), fashion32_sit_micro()
    assert (pft.model.classes, pft.data.name, pft.evaluation.detector) == (10, "fashion-mnist", "fashion-mnist")
    assert not sit.model.difficulty_head
    assert (sit.data, sit.training, sit.evaluation) == (pft.data, pft.training, pft.evaluation)


@pytest.mark.parametrize(("part", "count"), [("train", 60_000), ("t10k", 10_000)])
def test_published_counts(part: str, count: int) -> None:
    """Oracle: the data set's own description: 60,000 and 10,000 images, ten balanced classes; for the training
    images the mean 0.2860 and standard deviation 0.3530 that tutorials normalise with."""
    images = fashion_mnist.read_images(real_source(), part)
    assert images.pixels.shape == (count, 28, 28)
    assert np.bincount(images.labels).tolist() == [count // 10] * 10
    if part == "train":
        values = images.pixels / 255
        assert (round(values.mean(), 4), round(values.std(), 4)) == (0.2860, 0.3530)
