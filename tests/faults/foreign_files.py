"""Readers of foreign files for `fuzz.py`: how each gets a valid file, how that is harmed, and how it is read."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import random
import shutil
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pforce.base.files import content_digest, sha256_of
from pforce.base.foreign import printable
from pforce.config import flat_params, to_dict
from pforce.data.manifest import FILE_NAME, Manifest
from pforce.data.shards import ShardCache, load_shard
from pforce.metrics.detectors import load_detector
from pforce.metrics.image_sets import open_images
from pforce.metrics.reference import load_statistics
from pforce.models import build, save_model, save_published
from pforce.records import exchange, packing
from pforce.records.ledger import Ledger
from pforce.records.parts import cell_parts
from pforce.records.sweeps import CellEntry, SweepEntry, read_sweeps
from pforce.results.stored import storage_frame
from pforce.storage import Storage
from pforce.training import checkpoint
from pforce.trial.reference import inputs_of
from pforce.trial.run import run_trial
from pforce.trial.source import load_source
from pforce.trial.where import Paths, Where
from tests.faults.mutations import json_text, mutated_bytes, mutated_plain, rewritten
from tests.training.conftest import DATA, tiny


class Wrong(Exception):
    """Something that no reader may do."""


def check_line(text: str) -> None:
    """Raise Wrong for a message that is more than one printable line."""
    if "\n" in text.strip() or printable(text) != text or not text.strip():
        raise Wrong(f"its message is not one printable line: {text!r}")


@dataclass(frozen=True)
class Reader:
    """A reader of foreign files: how to make a valid one, how to harm it, how to read it."""

    make: Callable[[Path], None]
    harm: Callable[[Path, random.Random], None]
    read: Callable[[Path], object]


def _of_bytes(*names: str) -> Callable[[Path, random.Random], None]:
    def harm(folder: Path, source: random.Random) -> None:
        path = folder / source.choice(names)
        rewritten(path, lambda content: mutated_bytes(content, source))

    return harm


def _model(seed: int = 0) -> Any:
    model = build(tiny(4).model)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    return model.eval()


def _make_safetensors(folder: Path) -> None:
    about = {"weights": "ema", "images_seen": 320, "experiment_json": json.dumps(to_dict(tiny(4)))}
    save_model(_model(), folder / "m.safetensors", about=about)


def _harm_safetensors(folder: Path, source: random.Random) -> None:
    path = folder / "m.safetensors"
    if source.random() < 0.5:
        rewritten(path, lambda content: mutated_bytes(content, source))
        return
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    if source.random() < 0.5:
        name = source.choice(("config", "about"))
        header["__metadata__"][name] = json_text(
            mutated_plain(json.loads(header["__metadata__"][name]), source), source
        )
    else:
        header = mutated_plain(header, source)
    text = json_text(header, source).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])


def _make_published(folder: Path) -> None:
    save_published(_model(), folder / "m.ckpt")


def _harm_published(folder: Path, source: random.Random) -> None:
    path = folder / "m.ckpt"
    if source.random() < 0.4:
        rewritten(path, lambda content: mutated_bytes(content, source))
        return
    held = torch.load(path, weights_only=True)
    match source.randrange(5):
        case 0:
            held["config"] = mutated_plain(held["config"], source)
        case 1:
            name = source.choice(list(held["state_dict"]))
            shape = source.choice(((2**33,), (2**20, 2**13), (0,), (1, 2**40)))
            held["state_dict"][name] = torch.zeros(1).expand(*shape) if 0 not in shape else torch.zeros(shape)
        case 2:
            held["state_dict"] = mutated_plain(dict.fromkeys(held["state_dict"], 0), source)
        case 3:
            held["beside"] = bytearray(10)
        case _:
            params = held["config"]["params"]
            params[source.choice(list(params))] = source.choice((10**9, 2**62, 2**30, 4 * 10**6))
    torch.save(held, path)
    if source.random() < 0.2:  # the same, packed: a bomb may be
        packed = path.with_suffix(".packed")
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
            for info in old.infolist():
                new.writestr(info.filename, old.read(info))
        packed.replace(path)


def _make_training(folder: Path) -> None:
    run_trial(tiny(4), Paths(DATA, Storage.open(folder / "made")), Where(torch.device("cpu")))
    (trained,) = (folder / "made").glob("trainings/*")
    shutil.copytree(trained, folder / "t")
    shutil.rmtree(folder / "made")


def _harm_training(folder: Path, source: random.Random) -> None:
    files = sorted(
        path for path in (folder / "t").rglob("*") if path.is_file() and path.suffix in (".json", ".safetensors")
    )
    path = source.choice(files)
    if source.random() < 0.5 or path.suffix != ".json":
        rewritten(path, lambda content: mutated_bytes(content, source))
        return
    value = mutated_plain(json.loads(path.read_text()), source)
    if path.name == checkpoint.META and isinstance(value, dict):
        with contextlib.suppress(TypeError, ValueError):
            value[checkpoint.CHECKSUM] = checkpoint.checksum(value)
    path.write_text(json_text(value, source))


def _make_npz(folder: Path) -> None:
    source = np.random.default_rng(0)
    np.savez(folder / "images.npz", arr_0=source.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8))


def _harm_npz(name: str) -> Callable[[Path, random.Random], None]:
    def harm(folder: Path, source: random.Random) -> None:
        path = folder / name
        if source.random() < 0.4:
            rewritten(path, lambda content: mutated_bytes(content, source))
            return
        with np.load(path) as arrays:
            held = {key: arrays[key] for key in arrays.files}
        key = source.choice(list(held))
        match source.randrange(6):
            case 0:
                del held[key]
            case 1:
                held[key] = np.zeros((4000, 4000), np.float64)  # 128 MB that pack to nothing
            case 2:
                held[key] = np.array(source.choice((-1, 0, 2**62, 0.5, float("nan"), "x" * 100, "\x1b[2J")))
            case 3:
                held[key] = -held[key] if held[key].dtype.kind == "f" else held[key]
            case 4:
                kinds = ("f4", "i8", "c16", "U8") if held[key].dtype.kind in "fiu" else ("U1", "S99")
                held[key] = held[key].astype(source.choice(kinds))
            case _:
                held[key] = np.asfortranarray(np.broadcast_to(held[key], (2, *held[key].shape)))
        (np.savez_compressed if source.random() < 0.5 else np.savez)(path, **held)
        if source.random() < 0.3:  # a header that claims another shape
            rewritten(path, lambda content: content.replace(b"'shape': (1", b"'shape': (9", 1))

    return harm


def _make_statistics(folder: Path) -> None:
    detector, source = load_detector("openmoji"), np.random.default_rng(0)
    features = source.normal(size=(200, detector.feature_size))
    np.savez(
        folder / "stats.npz", mu=features.mean(0), sigma=np.cov(features.T), n=200, detector=detector.name,
        detector_sha256=detector.sha256, source="two hundred", features=features.astype("f4"),
    )  # fmt: skip


def _read_npz(folder: Path) -> object:
    return sum(int(batch.sum()) for batch in open_images(folder / "images.npz").batches(8))


def _read_statistics(folder: Path) -> object:
    return load_statistics(folder / "stats.npz", load_detector("openmoji"))


def _make_data(folder: Path) -> None:
    shutil.copytree(DATA, folder / "d")


def _reseal(folder: Path, value: Any) -> str:
    """A manifest whose hash is that of its entries, where that can be computed."""
    with contextlib.suppress(Exception):  # where it is too damaged for that, it stays as it is
        value["hash"] = Manifest._parse(value, folder).hash
    return json.dumps(value)


def _harm_data(folder: Path, source: random.Random) -> None:
    place = folder / "d"
    shards = sorted(place.glob("*.tar"))
    value = json.loads((place / FILE_NAME).read_text())
    match source.randrange(4):
        case 0:
            rewritten(place / FILE_NAME, lambda content: mutated_bytes(content, source))
            return
        case 1:
            value = mutated_plain(value, source)
            (place / FILE_NAME).write_text(
                _reseal(place, value) if isinstance(value, dict) else json_text(value, source)
            )
            return
        case 2:
            path = source.choice(shards)
            rewritten(path, lambda content: mutated_bytes(content, source))
        case _:
            path = source.choice(shards)
            _hostile_tar(path, source)
    for split in value["splits"].values():
        for shard in split["shards"]:
            if shard["name"] == path.name:
                shard |= {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    (place / FILE_NAME).write_text(_reseal(place, value))


def _hostile_tar(path: Path, source: random.Random) -> None:
    """A shard with a member that is harmful: packed, a link, odd names, an image of another kind or size."""
    if source.random() < 0.2:
        path.write_bytes(gzip.compress(path.read_bytes()))
        return
    with tarfile.open(path) as old:
        members = [(member, old.extractfile(member).read()) for member in old]  # type: ignore[union-attr]
    with tarfile.open(path, "w") as new:
        for member, before in members:
            content = before
            if source.random() < 0.1:
                match source.randrange(5):
                    case 0:
                        names = ("../x.png", "/abs.png", "a\x1b[0m.png", "x" * 300, "__meta__/y.png")
                        member.name = source.choice(names)
                    case 1:
                        content = hostile_picture(source)
                    case 2:
                        content = source.choice((b"", b"-1", b"9" * 5000, b"abc", b"\xff"))
                    case 3:
                        member.type = source.choice((tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE))
                        member.linkname = "/etc/passwd"
                    case _:
                        content = mutated_bytes(before, source)
            member.size = len(content)
            new.addfile(member, io.BytesIO(content))


def hostile_picture(source: random.Random) -> bytes:
    """An image file that Pillow would do more with than decode, or that is very large."""
    match source.randrange(4):
        case 0:
            return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\nshowpage\n"
        case 1:
            return _picture("PNG", (source.choice((1, 60_000)), source.choice((1, 40_000))), mode="1")
        case 2:
            return _picture(source.choice(("TIFF", "GIF", "PPM", "ICO", "PDF")), (32, 32))
        case _:
            return mutated_bytes(_picture(source.choice(("PNG", "JPEG", "WEBP", "BMP")), (32, 32)), source)


def _picture(kind: str, size: tuple[int, int], mode: str = "RGB") -> bytes:
    if size[0] * size[1] > 10**8:  # a header of that size, and no pixels
        small = bytearray(_picture(kind, (1, 1), mode))
        small[16:24] = size[0].to_bytes(4, "big") + size[1].to_bytes(4, "big")
        small[29:33] = zlib.crc32(small[12:29]).to_bytes(4, "big")
        return bytes(small)
    file = io.BytesIO()
    Image.new(mode, size, 1).save(file, format=kind)
    return file.getvalue()


def _read_data(folder: Path) -> object:
    place = folder / "d"
    manifest = Manifest.load(place)
    manifest.check(place)
    with ThreadPoolExecutor(1) as executor:
        return sum(
            load_shard(place, shard, manifest, executor, cache=ShardCache(0)).damaged
            for split in (manifest.train, manifest.validation)
            for shard in split.shards
        )


def _make_records(folder: Path) -> None:
    experiment, place = tiny(4), Storage.open(folder / "made")
    inputs = inputs_of(experiment.evaluation, Manifest.load(DATA), load_detector("openmoji"))
    experiment = replace(experiment, training=replace(experiment.training, precision="float32"))
    run_trial(experiment, Paths(DATA, place), Where(torch.device("cpu")), inputs=inputs)
    parts = cell_parts(experiment, inputs)
    SweepEntry("mine", "0" * 32, [CellEntry.of("cell", parts, flat_params(experiment), 0)]).write(place)
    exchange.export(place, (), folder / "lines.jsonl", print)
    third = sorted(record.finished for record in Ledger(place).all())[2]
    packing.pack(place, print, older_than=time.time() - third - 1e-3)  # three of them
    (folder / "s").mkdir()
    for name in ("records", "sweeps"):
        shutil.copytree(place.root / name, folder / "s" / name)
    shutil.rmtree(folder / "made")


def _harm_records(folder: Path, source: random.Random) -> None:
    files = [folder / "lines.jsonl", *sorted((folder / "s").rglob("*.json"))]
    path = source.choice([*files, *(folder / "s").rglob("*.pack1")])
    if source.random() < 0.3 or path.suffix == ".pack1":
        rewritten(path, lambda content: mutated_bytes(content, source))
        return
    if path.suffix == ".jsonl":
        lines = path.read_text().splitlines()
        at = source.randrange(len(lines))
        lines[at] = json_text(mutated_plain(json.loads(lines[at]), source), source)
        path.write_text("\n".join(lines) + "\n")
        return
    content = json_text(mutated_plain(json.loads(path.read_text()), source), source).encode()
    if path.parent.parent.name == "records":  # under a name that fits its content
        digest = path.name.partition(".")[0]
        path.unlink()
        path = path.with_name(f"{digest}.{content_digest(content)}.json")
    path.write_bytes(content)


def _read_records(folder: Path) -> object:
    said: list[str] = []
    place = Storage.open(folder / "s")
    found = len(list(Ledger(place, said.append).all())), len(list(read_sweeps(place, said.append)))
    exchange.import_lines(Storage.open(folder / "other"), folder / "lines.jsonl", said.append)
    for line in said:
        check_line(line)
    storage_frame(Storage.open(folder / "other"))
    storage_frame(place)
    return found


def _make_pictures(folder: Path) -> None:
    (folder / "p").mkdir()
    for number, kind in enumerate(("PNG", "JPEG", "WEBP", "BMP", "PNG", "PNG")):
        (folder / "p" / f"{number}.{kind.lower()}").write_bytes(_picture(kind, (32, 32)))


def _harm_pictures(folder: Path, source: random.Random) -> None:
    path = source.choice(sorted((folder / "p").iterdir()))
    match source.randrange(8):
        case 0:
            path.write_bytes(hostile_picture(source))
        case 1:
            path.unlink()
            source.choice((path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to("/etc/passwd")))()
        case 2:
            path.rename(path.with_name("\udcff\x1b[2J.png"))
        case _:
            rewritten(path, lambda content: mutated_bytes(content, source))


def _read_pictures(folder: Path) -> object:
    images = open_images(folder / "p")
    return images.content_hash(), sum(int(batch.sum()) for batch in images.batches(4))


READERS: dict[str, Reader] = {
    "checkpoint": Reader(_make_training, _harm_training, lambda folder: load_source(folder / "t")),
    "published": Reader(_make_published, _harm_published, lambda folder: load_source(folder / "m.ckpt")),
    "safetensors": Reader(_make_safetensors, _harm_safetensors, lambda folder: load_source(folder / "m.safetensors")),
    "images in npz": Reader(_make_npz, _harm_npz("images.npz"), _read_npz),
    "statistics": Reader(_make_statistics, _harm_npz("stats.npz"), _read_statistics),
    "manifest and shard": Reader(_make_data, _harm_data, _read_data),
    "records": Reader(_make_records, _harm_records, _read_records),
    "pictures": Reader(_make_pictures, _harm_pictures, _read_pictures),
}
