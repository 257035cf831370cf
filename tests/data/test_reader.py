"""The reader on real shards of real drawings.

Oracles: the drawings themselves (every training image is different, so an image names its sample), an
uninterrupted reader, a reader of one worker, and the damage a test did.
"""

from __future__ import annotations

import collections
import dataclasses
import gzip
import hashlib
import itertools
import json
import logging
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pforce import data
from pforce.base.errors import FieldError
from pforce.base.files import sha256_of
from pforce.data import Batch, DataConfig, DataError, TrainingStream, merge_states, openmoji, read_split
from pforce.data.emoji import CLASSES
from pforce.data.manifest import Manifest, Shard, Split
from pforce.data.shards import DecodedShard, ShardCache
from pforce.data.writer import Sample
from tests.data.helpers import RESOLUTION, sample, samples, shards, write_samples

CONFIG = DataConfig(name="shards", path="unused", resolution=RESOLUTION, streams=4)


def fingerprints(batch: Batch) -> list[bytes]:
    return [image.numpy().tobytes() for image in batch.images]


def assert_equal(one: Batch, other: Batch) -> None:
    torch.testing.assert_close(one.images, other.images, rtol=0, atol=0)
    assert one.labels.tolist() == other.labels.tolist()
    assert (one.captions, one.damaged) == (other.captions, other.damaged)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight uneven training shards of 60 drawings in all: streams of 15 samples, two shards each."""
    folder = tmp_path_factory.mktemp("shards")
    write_samples(folder, shards([10, 9, 8, 7, 5, 6, 7, 8]))
    return folder


def test_reads_pixels_labels_and_captions(folder: Path) -> None:
    """Oracle: the drawing, drawn again here, its group and its name."""
    drawn = {drawing.hexcode: drawing for drawing in openmoji.catalogue()}
    parts = shards([10, 9, 8, 7, 5, 6, 7, 8])
    batch = read_split(folder, "train")
    for i, made in enumerate(one for part in parts for one in part):
        pixels = torch.from_numpy(np.array(openmoji.draw(made.key, RESOLUTION))).permute(2, 0, 1)
        assert torch.equal(batch.images[i], pixels)
        assert (int(batch.labels[i]), batch.captions[i]) == (drawn[made.key].label, drawn[made.key].caption)
    assert (batch.images.dtype, batch.labels.dtype, batch.damaged) == (torch.uint8, torch.int64, 0)


def test_an_epoch_sees_every_sample_once(folder: Path) -> None:
    """Oracle: the split read in order; and another epoch, seed or stream has another order."""
    everything = collections.Counter(fingerprints(read_split(folder, "train")))
    stream = TrainingStream(folder, CONFIG, batch=4, seed=0)
    epochs = [[one for _ in range(15) for one in fingerprints(stream.next_batch())] for _ in range(3)]
    for epoch in epochs:
        assert collections.Counter(epoch) == everything
    other = TrainingStream(folder, CONFIG, batch=4, seed=1)
    orders = [*epochs, [one for _ in range(15) for one in fingerprints(other.next_batch())]]
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 7, 8, 23])
def test_resume_equals_uninterrupted(folder: Path, steps: int) -> None:
    """Oracle: a reader that was never stopped, past two epoch boundaries."""
    uninterrupted = TrainingStream(folder, CONFIG, batch=8, seed=3)
    for _ in range(steps):
        uninterrupted.next_batch()
    resumed = TrainingStream(folder, CONFIG, batch=8, seed=3)
    resumed.load_state_dict(uninterrupted.state_dict())
    for _ in range(12):
        assert_equal(resumed.next_batch(), uninterrupted.next_batch())
    assert resumed.state_dict() == uninterrupted.state_dict()


def test_resume_reads_only_the_shards_it_needs(folder: Path, tmp_path: Path) -> None:
    """Oracle: shards that lie before the position are unreadable, and nobody notices."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    stream = TrainingStream(tmp_path, CONFIG, batch=4, seed=0)
    for _ in range(10):  # every stream is in its second shard: the first holds at most 10 samples
        stream.next_batch()
    state, following = stream.state_dict(), stream.next_batch()
    for name in {f"train-{i:05d}.tar" for i in range(8)} - {
        stream.manifest.train.shards[s._current[1]].name for s in stream._streams.values() if s._current
    }:
        (tmp_path / name).write_bytes(b"")
    resumed = TrainingStream(tmp_path, CONFIG, batch=4, seed=0)
    resumed.load_state_dict(state)
    assert_equal(resumed.next_batch(), following)


@pytest.mark.parametrize("world_size", [2, 4])
def test_workers_together_see_one_workers_batch(folder: Path, world_size: int) -> None:
    """Oracle: the global batch of a single worker, put together by `rows`."""
    single = TrainingStream(folder, CONFIG, batch=8, seed=0)
    ranks = [
        TrainingStream(folder, CONFIG, batch=8, seed=0, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    assert torch.cat([rank.rows for rank in ranks]).sort().values.tolist() == list(range(8))
    assert single.rows.tolist() == list(range(8))
    for _ in range(10):
        whole = single.next_batch()
        for rank in ranks:
            part = rank.next_batch()
            assert torch.equal(part.images, whole.images[rank.rows])
            assert torch.equal(part.labels, whole.labels[rank.rows])
            assert part.captions == [whole.captions[row] for row in rank.rows.tolist()]


def test_resume_on_another_number_of_workers(folder: Path) -> None:
    """Oracle: the single worker that went on; two workers' merged state is its state."""
    single = TrainingStream(folder, CONFIG, batch=8, seed=0)
    ranks = [TrainingStream(folder, CONFIG, batch=8, seed=0, rank=rank, world_size=2) for rank in range(2)]
    for _ in range(5):
        for reader in (single, *ranks):
            reader.next_batch()
    merged = merge_states([rank.state_dict() for rank in ranks])
    assert merged == single.state_dict() | {"positions": merged["positions"]}
    assert dict(sorted(merged["positions"].items())) == single.state_dict()["positions"]
    whole = single.next_batch()
    for rank in range(4):
        resumed = TrainingStream(folder, CONFIG, batch=8, seed=0, rank=rank, world_size=4)
        resumed.load_state_dict(merged)
        assert torch.equal(resumed.next_batch().images, whole.images[resumed.rows])
    with pytest.raises(DataError, match="lacks the streams 1, 3"):
        single.load_state_dict(ranks[0].state_dict())
    with pytest.raises(DataError, match="seed 0, this run has 1"):
        TrainingStream(folder, CONFIG, batch=8, seed=1).load_state_dict(merged)


def test_a_small_cache_changes_nothing(folder: Path) -> None:
    """Oracle: the same reader with everything in memory."""
    large, none = (TrainingStream(folder, CONFIG, batch=8, seed=0, cache=ShardCache(size)) for size in (2**30, 0))
    for _ in range(12):
        assert_equal(large.next_batch(), none.next_batch())


def test_a_process_decodes_a_shard_once_while_its_file_is_the_same(folder: Path, tmp_path: Path, monkeypatch) -> None:
    """Two streams and a split of the same data; then the file is changed, which is noticed, and put back."""
    there = tmp_path / "data"
    shutil.copytree(folder, there)
    decoded: list[str] = []
    decode = data.shards.decode_shard

    def counted(there: Path, shard: Shard, *rest: Any) -> DecodedShard:
        decoded.append(shard.name)
        return decode(there, shard, *rest)

    monkeypatch.setattr(data.shards, "decode_shard", counted)
    for _ in range(2):
        stream = TrainingStream(there, CONFIG, batch=8, seed=0)
        for _ in range(12):
            stream.next_batch()
        read_split(there, "train")
    assert len(decoded) == len(set(decoded)) == len(stream.manifest.train.shards)
    path = there / decoded[0]
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    with pytest.raises(DataError, match="was changed"):
        read_split(there, "train")
    path.write_bytes(content)
    assert len(read_split(there, "train").images)


@pytest.fixture(scope="module")
def hundreds() -> list[list[Sample]]:
    """Four shards of 101 samples: up to four damaged ones are within 1 %."""
    return shards([101] * 4)


def with_damage(good: list[list[Sample]], *damage: Sample) -> list[list[Sample]]:
    """The damaged samples replace the first ones of shard 1."""
    return [good[0], [*damage, *good[1][len(damage) :]], *good[2:]]


def test_damaged_samples_are_skipped_and_counted(
    hundreds: list[list[Sample]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Oracle: four samples damaged in four ways; an epoch sees the 400 others once, and so does a resumed one."""
    first = hundreds[1][:4]
    big = sample(next(d for d in openmoji.catalogue() if d.hexcode == first[3].key), resolution=2 * RESOLUTION)
    damage = (
        dataclasses.replace(first[0], image=first[0].image[:60]),
        dataclasses.replace(first[1], image=b"this is not an image"),
        dataclasses.replace(first[2], label=len(CLASSES)),
        big,
    )
    write_samples(tmp_path, with_damage(hundreds, *damage), hundreds[0])
    caplog.set_level(logging.WARNING)
    stream = TrainingStream(tmp_path, CONFIG, batch=4, seed=0)
    batches = [stream.next_batch() for _ in range(97)]
    assert stream.damaged == {"train-00001.tar": 4}
    assert sum(batch.damaged for batch in batches) == 4
    seen = [one for batch in batches for one in fingerprints(batch)]
    assert len(set(seen)) == len(seen) == 4 * 97
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert "train-00001.tar" in warnings[0]
    assert "4 of 101" in warnings[0]
    resumed = TrainingStream(tmp_path, CONFIG, batch=4, seed=0)
    resumed.load_state_dict(stream.state_dict())
    for _ in range(10):
        assert_equal(resumed.next_batch(), stream.next_batch())
    assert read_split(tmp_path, "train").images.shape[0] == 400


def test_too_much_damage_fails(hundreds: list[list[Sample]], tmp_path: Path) -> None:
    """Oracle: five damaged samples of 404 are more than 1 %."""
    damage = [dataclasses.replace(one, image=b"") for one in hundreds[1][:5]]
    write_samples(tmp_path, with_damage(hundreds, *damage), hundreds[0])
    with pytest.raises(DataError, match=r"5 of 404 .* more than 1%: train-00001\.tar \(5\)"):
        TrainingStream(tmp_path, CONFIG, batch=4, seed=0).next_batch()
    with pytest.raises(DataError, match=r"train-00001\.tar \(5\)"):
        read_split(tmp_path, "train")


def tar_end(path: Path) -> int:
    """Length of a tar file without its padding of zeros."""
    return len(path.read_bytes().rstrip(b"\0"))


@pytest.mark.parametrize("harm", ["cut in the last sample", "half", "one bit", "longer", "zeroed"])
def test_a_shard_that_is_not_what_its_manifest_says(hundreds: list[list[Sample]], tmp_path: Path, harm: str) -> None:
    """Oracle: the manifest's sha256; other pictures under the same name would be other data."""
    write_samples(tmp_path, hundreds, hundreds[0])
    path = tmp_path / "train-00002.tar"
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes({
        "cut in the last sample": content[: tar_end(path) - 1500],
        "half": content[:middle],
        "one bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "longer": content + bytes(512),
        "zeroed": bytes(len(content)),
    }[harm])  # fmt: skip
    with pytest.raises(DataError, match=r"train-00002\.tar is damaged or was changed"):
        read_split(tmp_path, "train")
    stream = TrainingStream(tmp_path, CONFIG, batch=4, seed=0)
    with pytest.raises(DataError, match=r"train-00002\.tar"):
        list(itertools.islice(iter(stream.next_batch, None), 200))


def test_a_sample_that_was_damaged_before_the_manifest_is_skipped(hundreds: list[list[Sample]], tmp_path: Path) -> None:
    """Oracle: the sample that was cut; its shard is what the manifest says."""
    write_samples(tmp_path, hundreds, hundreds[0])
    path = tmp_path / "train-00002.tar"
    path.write_bytes(path.read_bytes()[: tar_end(path) - 1500])
    manifest = Manifest.load(tmp_path)
    cut = dataclasses.replace(
        manifest.train.shards[2], sha256=hashlib.sha256(path.read_bytes()).hexdigest(), bytes=path.stat().st_size
    )
    shards = (*manifest.train.shards[:2], cut, *manifest.train.shards[3:])
    dataclasses.replace(manifest, train=Split(shards)).save(tmp_path)
    batch = read_split(tmp_path, "train")
    assert 1 <= batch.damaged <= 2
    assert len(batch.images) == 404 - batch.damaged


def test_a_missing_shard_fails_before_training(folder: Path, tmp_path: Path) -> None:
    """Oracle: a deleted shard; and one deleted after the start."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    stream = TrainingStream(tmp_path, CONFIG, batch=4, seed=0)
    (tmp_path / "train-00003.tar").unlink()
    with pytest.raises(DataError, match=r"train-00003\.tar"):
        TrainingStream(tmp_path, CONFIG, batch=4, seed=0)
    with pytest.raises(DataError, match=r"train-00003\.tar cannot be read"):
        collections.deque((stream.next_batch() for _ in range(15)), maxlen=0)


def test_jpeg_shards_without_captions(tmp_path: Path) -> None:
    """Oracle: the drawing, to JPEG's error; captions come out empty."""
    drawings = [drawing for drawing in openmoji.catalogue() if drawing.label == 3][:8]
    made = [
        dataclasses.replace(sample(d, extension="jpg" if i % 2 else "jpeg"), caption="") for i, d in enumerate(drawings)
    ]
    write_samples(tmp_path, [made[i::4] for i in range(4)], made)
    batch = read_split(tmp_path, "validation")
    drawn = torch.stack(
        [torch.from_numpy(np.array(openmoji.draw(d.hexcode, RESOLUTION))).permute(2, 0, 1) for d in drawings]
    )
    assert (batch.images.double() - drawn.double()).abs().mean() < 12
    assert batch.captions == [""] * 8
    assert batch.damaged == 0
    assert TrainingStream(tmp_path, CONFIG, batch=4, seed=0).next_batch().images.shape == (4, 3, RESOLUTION, RESOLUTION)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"batch": 6}, "batch"),
        ({"batch": 0}, "batch"),
        ({"world_size": 3}, "streams"),
        ({"rank": 2, "world_size": 2}, "rank"),
        ({"config": dataclasses.replace(CONFIG, resolution=64)}, "resolution"),
    ],
)
def test_refuses_sizes_that_do_not_fit(folder: Path, changes: dict[str, object], field: str) -> None:
    """Oracle: the error names the field."""
    arguments: dict[str, object] = {"config": CONFIG, "batch": 8, "seed": 0} | changes
    with pytest.raises(FieldError) as raised:
        TrainingStream(folder, **arguments)  # type: ignore[arg-type]
    assert raised.value.field == field


def test_refuses_more_streams_than_shards(tmp_path: Path) -> None:
    """Oracle: three shards for four streams."""
    write_samples(tmp_path, shards([2, 2, 2]))
    with pytest.raises(DataError, match="3 training shards for 4 streams"):
        TrainingStream(tmp_path, CONFIG, batch=4, seed=0)


@pytest.mark.parametrize("limit", [1, 7, 60])
def test_limit_is_evenly_spread(folder: Path, limit: int) -> None:
    """Oracle: distances between chosen places in the full split differ by at most one."""
    order = fingerprints(read_split(folder, "train"))
    places = [order.index(one) for one in fingerprints(read_split(folder, "train", limit=limit))]
    assert len(places) == limit
    gaps = [b - a for a, b in itertools.pairwise(places)]
    assert not gaps or max(gaps) - min(gaps) <= 1
    with pytest.raises(FieldError, match="limit"):
        read_split(folder, "train", limit=61)


def _packed(path: Path) -> None:
    path.write_bytes(gzip.compress(path.read_bytes()))


def _sparse(path: Path) -> None:
    """A member of 0 bytes that claims a hole of a terabyte, as GNU tar writes it."""
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("a.png")
        member.type = tarfile.GNUTYPE_SPARSE
        tar.addfile(member)
    content = bytearray(path.read_bytes())
    content[386:410] = b"%011o\0%011o\0" % (0, 0)
    content[483:495] = b"%011o\0" % (2**32)
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    path.write_bytes(content)


def _link(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("a.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)


def _backwards(path: Path) -> None:
    """A member whose size leads back to its own header: a reader that believes it reads it for ever."""
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("__x__"))
    content = bytearray(path.read_bytes())
    content[124:136] = b"\xff" * 10 + b"\xfe\x00"  # −512, in base 256
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    path.write_bytes(content)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("harm", [_packed, _sparse, _link, _backwards])
def test_a_strangers_shard_unpacks_to_no_more_than_it_is(tmp_path: Path, harm) -> None:  # type: ignore[no-untyped-def]
    """Its manifest states its hash and size, so that only its form is wrong. Oracle: all its samples are missing."""
    write_samples(tmp_path, [samples(4)])
    path = tmp_path / "train-00000.tar"
    harm(path)
    manifest = tmp_path / "manifest.json"
    told = json.loads(manifest.read_text())
    about = told["splits"]["train"]["shards"][0]
    path.write_bytes(path.read_bytes().ljust(4096, b"\0"))
    about |= {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    told["hash"] = Manifest._parse(told, tmp_path).hash
    manifest.write_text(json.dumps(told))
    with pytest.raises(DataError, match="4 of 4 samples"):
        read_split(tmp_path, "train")
