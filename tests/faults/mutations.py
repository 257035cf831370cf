"""Random harm to bytes and to plain data, as a stranger or a bad disk would do it."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**53 + 1, 2**63, 2**70, 10**400, -0.5, 1e308, float("nan"), float("inf"), "",
    "x" * 5000,
    "../../../etc/passwd", "/etc/passwd", "a\0b", "\x1b[31mred\x1b]0;title\x07", "[/bold]", "\u202eabc", "${x}",
    "tests.faults.trap:f",
    [], {}, [[]], [0] * 1000, {"": ""}, {"__class__": "os.system"},
)  # fmt: skip
"""Values that a file may hold in place of its own."""


def mutated_bytes(content: bytes, source: random.Random) -> bytes:
    """Bytes changed, cut, repeated or put in, at random places; the beginning, where headers lie, more often."""
    data = bytearray(content)
    for _ in range(source.choice((1, 1, 2, 5))):
        end = len(data) if source.random() < 0.5 else min(len(data), 600)
        if not data or not end:
            break
        at = source.randrange(end)
        match source.randrange(6):
            case 0:
                data[at] = source.randrange(256)
            case 1:
                data[at] ^= 1 << source.randrange(8)
            case 2:
                del data[source.randrange(len(data)) :]
            case 3:
                data[at:at] = source.randbytes(source.choice((1, 4, 64)))
            case 4:
                del data[at : at + source.choice((1, 4, 512))]
            case _:
                word = source.choice((b"\xff" * 4, b"\0" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff", b"99999999"))
                data[at : at + len(word)] = word
    return bytes(data)


def places_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to all entries of plain data."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in items for place in ((*path, key), *places_of(inner, (*path, key)))]


def mutated_plain(value: Any, source: random.Random) -> Any:
    """Plain data with entries replaced by hostile ones, removed, or exchanged."""
    value = json.loads(json.dumps(value))
    for _ in range(source.choice((1, 1, 2))):
        places = places_of(value)
        if not places:
            return source.choice(HOSTILE)
        *path, key = source.choice(places)
        holder = value
        for step in path:
            holder = holder[step]
        match source.randrange(4):
            case 0 if isinstance(holder, dict):
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[source.choice(("unknown", "../x", "\x1b[0m", "", "a\nb"))] = holder.pop(key)
            case _:
                holder[key] = copy.deepcopy(source.choice(HOSTILE))
    return value


def deep(depth: int = 200_000) -> str:
    """JSON that is nested too deep."""
    return "[" * depth + "]" * depth


def json_text(value: Any, source: random.Random) -> str:
    """Plain data as JSON, once in a while of a kind that is hard to read."""
    chance = source.random()
    if chance < 0.02:
        return deep()
    text = json.dumps(value)
    return text.replace(":", ": " + "9" * 5000 + ', "x":', 1) if chance < 0.04 else text


def rewritten(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))
