"""What a stranger's file may do. Oracle: what a harmful file would do elsewhere: a marker that a program writes, a pipe
that blocks, a size in memory."""

from __future__ import annotations

import io
import json
import os
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pforce.base.arrays import open_arrays
from pforce.base.console import make_console
from pforce.base.foreign import ForeignError, inside, open_regular, parse_json, parse_object, printable, quoted
from pforce.base.tensors import read_pickle
from pforce.images import MOST_PIXELS, open_picture, to_rgb


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "a\0b", "a\x1b[0m", "link/x", "x" * 5000])
def test_a_name_in_a_file_stays_below_its_folder(tmp_path, name):
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "link").symlink_to(outside)
    assert inside(folder, "a/b.tar") == folder / "a" / "b.tar"
    (folder / "loop").symlink_to(folder / "loop")
    for each in (name, "loop", "y" * 300):
        with pytest.raises(ForeignError):
            inside(folder, each)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 200_000 + "]" * 200_000, "nested"),
        ("[" * 100 + "]" * 100, "nested"),
        ("9" * 5000, "beyond 64 bits"),
        (str(2**70), "beyond 64 bits"),
        ("[NaN]", "NaN"),
        ("[1e999]", "beyond floating-point"),
        ("{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
    ],
)
def test_json_that_would_hang_or_allocate_is_refused(text, why):
    with pytest.raises(ForeignError, match=why) as error:
        parse_json(text)
    assert "\n" not in str(error.value)


def test_json_as_others_write_it_is_read():
    assert parse_json(b'\xef\xbb\xbf{"a": [1, -2.5, null]}') == {"a": [1, -2.5, None]}
    assert parse_json(str(2**63 - 1)) == 2**63 - 1
    with pytest.raises(ForeignError, match="list, not an object"):
        parse_object("[]")


def test_what_is_no_file_is_said_at_once(tmp_path):
    """A pipe without a writer blocks whoever opens it as a file."""
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a pipe"), (tmp_path, "a folder"), (Path("/dev/null"), "a device")):
        with pytest.raises(ForeignError, match=kind):
            open_regular(path)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\u202eb", "a\\u202eb"),
        ("\udcff", "\\udcff"),
        ("λ ± 64² 🧑‍🚀 naïve\n\t", "λ ± 64² 🧑‍🚀 naïve\n\t"),
        ("line\u2028end\x85", "line\\u2028end\\x85"),
    ],
)
def test_characters_that_a_terminal_obeys_are_shown(text, shown):
    assert printable(text) == shown


def test_errors_repeat_little_of_a_file():
    assert len(quoted("x" * 100_000)) < 1000
    twice: list[object] = []
    for _ in range(40):
        twice = [twice, twice]
    assert len(quoted(twice)) < 1000, "its whole text has 10^13 characters"
    assert "\n" not in quoted("a\nb")


def test_on_a_console_a_text_is_a_text():
    """Markup, escapes and codes of emoji, in a line and in a table."""
    from rich.table import Table

    hostile = "[/bold] [red]x \x1b[2J\x1b]0;title :smile:"
    table = Table("column")
    table.add_row(hostile)
    out = io.StringIO()
    console = make_console(file=out, width=200)
    console.print(hostile)
    console.print(table)
    text = out.getvalue()
    assert text.count("[/bold] [red]x \\x1b[2J\\x1b]0;title") == 2
    assert ":smile:" in text
    assert "\x1b" not in text


# --- images --------------------------------------------------------------------------------------------------------


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize("of", ["path", "bytes"])
def test_no_program_is_started_for_a_picture(tmp_path, monkeypatch, of):
    """Pillow itself starts Ghostscript for an EPS, whatever it is called."""
    marker, programs = tmp_path / "ran", tmp_path / "bin"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch {marker}\n")
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    (tmp_path / "a.png").write_bytes(EPS)
    with pytest.raises(ForeignError, match="none of PNG"), open_picture(tmp_path / "a.png" if of == "path" else EPS):
        pass
    assert not marker.exists()
    with pytest.raises(OSError), Image.open(io.BytesIO(EPS)) as image:  # noqa: PT011  # the oracle: Pillow does
        image.load()
    assert marker.exists()


def test_pictures_that_are_none_or_too_large(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "pipe.png", tmp_path / "folder.png"):
        with pytest.raises(ForeignError, match="not a file"), open_picture(path):
            pass
    Image.new("1", (8192, MOST_PIXELS // 8192 + 1)).save(tmp_path / "large.png")
    with pytest.raises(ForeignError, match="pixels, more than"), open_picture(tmp_path / "large.png"):
        pass
    whole = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(whole, format="PNG")
    for cut in (20, 60, 100):
        with pytest.raises(ForeignError), open_picture(whole.getvalue()[:cut]) as image:
            image.load()


def test_pictures_of_sixteen_bits_are_scaled_not_clipped(tmp_path):
    """Oracle: 20000 of 65535 is 78 of 255; Pillow itself makes 255 of it."""
    deep = Image.fromarray(np.full((4, 5), 20_000, np.uint16))
    deep.save(tmp_path / "deep.png")
    with open_picture(tmp_path / "deep.png") as image:
        assert image.mode.startswith("I")
        assert np.unique(to_rgb(image)).tolist() == [78]
        assert to_rgb(image).shape == (4, 5, 3)
    assert np.unique(to_rgb(Image.fromarray(np.array([[0, 65_535]], np.uint16)))).tolist() == [0, 255]
    assert np.unique(to_rgb(Image.new("L", (2, 2), 7))).tolist() == [7]
    with pytest.raises(ForeignError, match="floating-point"):
        to_rgb(Image.new("F", (2, 2)))


# --- arrays --------------------------------------------------------------------------------------------------------


def with_header(path: Path, header: bytes, values: bytes = b"", *, packed: bool = False) -> Path:
    """An npz with one member `a` whose header says what it likes."""
    head = header.ljust(117) + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + values
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        archive.writestr("a.npy", content)
    return path


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000)}",
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (9,)}",
        b"{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (1,)}",
        b"no header",
    ],
)
def test_an_array_holds_what_its_header_says(tmp_path, header):
    with (
        pytest.raises(ForeignError),
        open_arrays(with_header(tmp_path / "a.npz", header, b"\0" * 8)) as arrays,
    ):
        arrays.read("a", 2**40)


def test_an_array_unpacks_to_no_more_than_is_expected(tmp_path):
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (100000000,)}"
    path = with_header(tmp_path / "bomb.npz", header, b"\0" * 100_000_000, packed=True)
    assert path.stat().st_size < 200_000
    with pytest.raises(ForeignError, match="at most 1,000 are expected"), open_arrays(path) as arrays:
        arrays.read("a", 1000)
    with pytest.raises(ForeignError, match="at most"), open_arrays(path) as arrays:
        arrays.read_all(path.stat().st_size)


def test_arrays_are_read_as_numpy_reads_them(tmp_path):
    held = {
        "c": np.arange(6.0).reshape(2, 3), "f": np.asfortranarray(np.arange(6).reshape(2, 3)), "n": np.array(3),
        "text": np.array("λ"), "none": np.array(""), "empty": np.zeros((0, 4), "f4"),
    }  # fmt: skip
    np.savez(tmp_path / "a.npz", **held)  # type: ignore[arg-type]
    with open_arrays(tmp_path / "a.npz") as arrays:
        for name, value in held.items():
            np.testing.assert_array_equal(arrays.read(name, 1000), value)
        assert (arrays.text("text"), arrays.text("none")) == ("λ", "")
        with pytest.raises(ForeignError, match="is not a text"):
            arrays.text("c")


# --- pickles -------------------------------------------------------------------------------------------------------


class _Room:
    """Unpickled, it takes a gigabyte."""

    def __reduce__(self):
        return bytearray, (1 << 30,)


def test_a_pickle_makes_no_room(tmp_path):
    torch.save({"state_dict": {}, "room": _Room()}, tmp_path / "a.ckpt")
    with pytest.raises(ForeignError, match="bytearray"):
        read_pickle(tmp_path / "a.ckpt")
    for name in ("torch\nFloatTensor", "torch\nTensor", "torch.storage\nUntypedStorage", "builtins\nbytearray"):
        made = b"\x80\x02c" + name.encode() + b"\nJ@B\x0f\x00\x85R."  # of 1,000,000 numbers
        for entry in ("x/data.pkl", "x/DATA.PKL"):
            with zipfile.ZipFile(tmp_path / "d.ckpt", "w") as archive:
                archive.writestr(entry, made)
                archive.writestr("x/version", "3")
            with pytest.raises(ForeignError, match="which no weights need"):
                read_pickle(tmp_path / "d.ckpt")
    torch.save({"a": torch.zeros(1_000_000)}, tmp_path / "b.ckpt")
    with zipfile.ZipFile(tmp_path / "b.ckpt") as old, zipfile.ZipFile(tmp_path / "c.ckpt", "w", 8) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    assert (tmp_path / "c.ckpt").stat().st_size < 20_000
    with pytest.raises(ForeignError, match="compressed"):
        read_pickle(tmp_path / "c.ckpt")
    assert read_pickle(tmp_path / "b.ckpt")["a"].shape == (1_000_000,)  # type: ignore[index]


# --- what is written -----------------------------------------------------------------------------------------------


def test_nothing_is_written_through_a_planted_link(tmp_path):
    """In a folder that others may write, a link at a predictable name points to somebody's file."""
    from pforce.base.files import write_json, write_text

    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("table.csv", "lock.json"):
        (tmp_path / name).symlink_to(victim)
    write_text(tmp_path / "table.csv", "a,b\n")
    write_json(tmp_path / "lock.json", {"a": 1})
    assert victim.read_text() == "precious"
    assert (tmp_path / "table.csv").read_text() == "a,b\n"
    assert json.loads((tmp_path / "lock.json").read_text()) == {"a": 1}
    assert stat.S_ISREG((tmp_path / "table.csv").lstat().st_mode)
    os.mkfifo(tmp_path / "figure.png")
    with pytest.raises(OSError, match="is a pipe, not a file"):
        write_text(tmp_path / "figure.png", "x")
