"""The manifest: what it refuses, and that its hash follows the data. Oracle: hashlib over the files themselves."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from pforce.data import DataError, Manifest
from tests.data.helpers import samples, shards, write_samples


def test_records_what_is_on_disk(tmp_path: Path) -> None:
    """Oracle: sha256 and size of the shard files, read back."""
    write_samples(tmp_path, shards([3, 2]))
    manifest = Manifest.load(tmp_path)
    assert [shard.samples for shard in manifest.train.shards] == [3, 2]
    assert manifest.train.samples == 5
    for shard in (*manifest.train.shards, *manifest.validation.shards):
        content = (tmp_path / shard.name).read_bytes()
        assert (shard.bytes, shard.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_hash_depends_on_the_data_only(tmp_path: Path) -> None:
    """Oracle: equal samples in two folders, then one sample, one class, and the resolution changed."""
    parts = shards([3, 2])
    here, there = write_samples(tmp_path / "a", parts), write_samples(tmp_path / "b" / "c", parts)
    assert here.hash == there.hash == Manifest.load(tmp_path / "a").hash
    assert dataclasses.replace(here, name="other", versions={"pillow": "1"}).hash == here.hash
    relabelled = dataclasses.replace(parts[0][0], label=parts[0][0].label + 1)
    changed = [
        write_samples(tmp_path / "d", [[relabelled, *parts[0][1:]], parts[1]]),
        dataclasses.replace(here, classes=here.classes[::-1]),
        dataclasses.replace(here, resolution=64),
        dataclasses.replace(here, train=here.validation),
    ]
    assert len({here.hash, *(manifest.hash for manifest in changed)}) == 5


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda content: content | {"format": 99}, "format 99"),
        (lambda content: {k: v for k, v in content.items() if k != "classes"}, "classes"),
        (lambda content: content | {"resolution": 64}, "changed by hand"),
        (lambda content: [content], "list, not an object"),
    ],
)
def test_refuses_another_manifest(tmp_path: Path, edit, complaint: str) -> None:  # type: ignore[no-untyped-def]
    """Oracle: a valid manifest with one thing changed; the error names the file and the cure."""
    write_samples(tmp_path, [samples(2)])
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    with pytest.raises(DataError, match=complaint) as raised:
        Manifest.load(tmp_path)
    assert str(path) in str(raised.value)
    assert "again" in str(raised.value)


def test_refuses_a_missing_or_cut_manifest(tmp_path: Path) -> None:
    """Oracle: no file, and a file cut in half."""
    with pytest.raises(DataError, match=r"manifest\.json is missing"):
        Manifest.load(tmp_path)
    write_samples(tmp_path, [samples(2)])
    path = tmp_path / "manifest.json"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"manifest\.json cannot be read"):
        Manifest.load(tmp_path)


def test_check_names_a_missing_shard(tmp_path: Path) -> None:
    """Oracle: a shard that was deleted."""
    manifest = write_samples(tmp_path, shards([1, 1]))
    manifest.check(tmp_path)
    (tmp_path / "train-00001.tar").unlink()
    with pytest.raises(DataError, match=r"1 of 3 shards are missing.*train-00001\.tar"):
        manifest.check(tmp_path)


def _shard(**changes: object) -> object:
    """An edit of the first training shard's entry."""

    def edit(content: dict) -> dict:  # type: ignore[type-arg]
        content["splits"]["train"]["shards"][0] |= changes
        return content

    return edit


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (_shard(name="../secret.tar"), "no name of a file below"),
        (_shard(name="/etc/passwd"), "no name of a file below"),
        (_shard(name="\x1b[2J.tar"), r"no name of a file below"),
        (_shard(samples=10**6), "samples in .* bytes, which hold fewer"),
        (_shard(samples=-1), "samples = -1: must be from 1"),
        (_shard(samples=2**62), "samples = .*: must be from 1"),
        (_shard(samples=2**70), "beyond 64 bits"),
        (_shard(samples="4"), "samples = '4': must be of type int"),
        (lambda content: content | {"resolution": 10**6}, "resolution = 1000000: must be from 1 to 4,096"),
        (lambda content: content | {"classes": [1, 2]}, "classes holds something that is not of type str"),
        (lambda content: content | {"name": "x" * 10**6, "channels": None}, "channels = None"),
    ],
)
def test_a_strangers_manifest_names_no_path_and_no_size(tmp_path: Path, edit, complaint: str) -> None:  # type: ignore[no-untyped-def]
    """Oracle: the refusal, in one short line, before a shard is opened or anything is allocated."""
    write_samples(tmp_path, [samples(2)])
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    with pytest.raises(DataError, match=complaint) as raised:
        Manifest.load(tmp_path)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 2000
