"""The loss curve of a training on disk: immutable segments, one per checkpoint.

`curve/FIRST-LAST.CONTENT.jsonl` has one point per line; FIRST and LAST are the images seen of its first and last point,
CONTENT is the hash of its bytes. Where two segments have the same point, because a training passed it twice, the point
of the first segment in the order of names counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from pforce.base.files import content_digest, read_small, write_bytes
from pforce.base.foreign import parse_object
from pforce.training.usage import Used
from pforce.training.window import Record

CURVE = "curve"
NAME = re.compile(r"(?P<first>\d{1,15})-(?P<last>\d{1,15})\.(?P<content>[0-9a-f]{32})\.jsonl")
MOST_BYTES = 64 << 20


def write_segment(folder: Path, points: Sequence[Record]) -> Path | None:
    """Write points into a training's folder and return the file, or None where there are no points."""
    if not points:
        return None
    lines = [json.dumps(point._asdict(), separators=(",", ":"), allow_nan=False) for point in points]
    content = ("\n".join(lines) + "\n").encode()
    name = f"{points[0].images_seen}-{points[-1].images_seen}.{content_digest(content)}.jsonl"
    path = folder / CURVE / name
    if not path.exists():
        write_bytes(path, content)
    return path


def segments(folder: Path) -> list[Path]:
    """Files of a training's curve, in the order of images seen."""
    found = [(match, path) for path in (folder / CURVE).glob("*.jsonl") if (match := NAME.fullmatch(path.name))]
    ordered = sorted(found, key=lambda each: (int(each[0]["first"]), int(each[0]["last"]), each[0]["content"]))
    return [path for _, path in ordered]


def _points(path: Path) -> list[Record]:
    """The points of a segment. ValueError where it is damaged, OSError where it cannot be read."""
    content = read_small(path, MOST_BYTES)
    if content_digest(content) != path.name.split(".")[1]:
        raise ValueError("is damaged: its content does not match its name")
    try:
        found = [_checked(Record(**parse_object(line))) for line in content.splitlines()]
    except TypeError as error:
        raise ValueError(f"does not hold points ({error})") from error
    return found


def _checked(point: Record) -> Record:
    """The point. TypeError where a field is no number."""
    for name, value in point._asdict().items():
        if name == "workers":
            rows = value or []
            size = 1 + len(Used._fields)
            fits = isinstance(rows, list) and all(isinstance(row, list) and len(row) == size for row in rows)
            fits = fits and all(_is_number(number) for row in rows for number in row)
        else:
            fits = _is_number(value)
        if not fits:
            raise TypeError(f"{name} is {str(value)[:40]!r}")
    return point


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_curve(
    folder: Path, *, until: int | None = None, say: Callable[[str], None] = lambda line: None
) -> list[Record]:
    """The points of a training's curve, in order; damaged segments are reported.

    Args:
        folder: folder of the training.
        until: images seen up to which points are read; None for all.
        say: called with a line for each damaged segment.
    """
    found: dict[int, Record] = {}
    for path in segments(folder):
        try:
            points = _points(path)
        except (OSError, ValueError) as error:
            say(f"{path}: {error}; its points are missing from the curve")
            continue
        for point in points:
            if until is None or point.images_seen <= until:
                found.setdefault(point.images_seen, point)
    return [found[images] for images in sorted(found)]
