"""Axes, zips and files of rows of a sweep, as users write them.

    F=a,b  F=lo..hi  F=log:lo..hi  F=int:lo..hi  timesteps=ltg:0.7,1,0.2,srm:1  F=(0.1,0.2),(0.3,)
    F,G=a:b,c:d                                   (zipped)

Values are numbers, true, false, none, or words; NAME:ARGUMENTS is a sampler or timestep sampler with its settings in
their order, or as NAME=VALUE.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from pforce.base.errors import ConfigError, did_you_mean
from pforce.base.files import read_small
from pforce.base.foreign import ForeignError
from pforce.base.words import counted
from pforce.config import Experiment
from pforce.orchestration.axes import Axis, Choice, Range, Zip
from pforce.orchestration.sweep import NamedRow
from pforce.sampling import SAMPLERS
from pforce.sampling.samplers import own_settings
from pforce.timesteps import SAMPLERS as TIMESTEP_SAMPLERS

WHOLE: dict[str, Mapping[str, type]] = {"timesteps": TIMESTEP_SAMPLERS, "sampler": SAMPLERS}
"""Fields whose values are chosen by name → the classes of these names."""
MOST_ROWS = 10_000
MOST_BYTES = 16 << 20
OWN = "-"
"""Cell of a file of rows that leaves a field as the experiment has it."""
ROW_NAME = "row"
"""Column of a file of rows with the rows' names."""
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"(?P<kind>log:|int:)?(?P<low>{_NUMBER})\.\.(?P<high>{_NUMBER})")
_WORD = re.compile(r"[A-Za-z_]\w*(?::|$)")


def parse_value(text: str) -> Any:
    """Parse a text as a number, True, False, None, or a tuple in parentheses; other texts are returned as they are.
    ConfigError for tuples that are nested deep."""
    if text.count("(") > 100:
        raise ConfigError(f"{text[:60]}…: has too many parentheses")
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    if text.startswith("(") and text.endswith(")"):
        return tuple(parse_value(each) for each in _split(text[1:-1]) if each)
    return text


def _split(text: str, sign: str = ",") -> list[str]:
    """Parts of a text between signs that stand outside parentheses."""
    parts, depth = [""], 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == sign and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _whole(path: str, text: str) -> Choice:
    """A sampler or timestep sampler of `NAME:SETTINGS`. ConfigError where it has no such settings."""
    name, _, rest = text.partition(":")
    kinds = WHOLE[path]
    if name not in kinds:
        raise ConfigError(f"{path}={text}: there is no {name!r}; {did_you_mean(name, kinds)}")
    known = own_settings(kinds[name]) if path == "sampler" else [each.name for each in fields(kinds[name])]
    settings: dict[str, Any] = {}
    for number, part in enumerate(_split(rest)):
        field, sign, value = (word.strip() for word in part.partition("="))
        if not sign and number >= len(known):
            raise ConfigError(f"{path}={text}: {name} has {len(known)} settings ({', '.join(known) or 'none'})")
        field, value = (field, value) if sign else (known[number], field)
        if field not in known or field in settings:
            raise ConfigError(f"{path}={text}: {field} is {'there twice' if field in settings else 'no setting'}; "
                              f"{name} has {', '.join(known) or 'none'}")  # fmt: skip
        settings[field] = parse_value(value)
    return Choice(name, tuple(settings.items()))


def _values(path: str, text: str) -> list[Any]:
    parts = _split(text)
    if path in WHOLE:  # the commas of `ltg:0.7,1,0.2` separate its settings
        joined: list[str] = []
        for part in parts:
            if joined and ":" in joined[-1] and not _WORD.match(part):
                joined[-1] += f",{part}"
            else:
                joined.append(part)
        return [_whole(path, part) if ":" in part else part for part in joined]
    return [parse_value(part) for part in parts]


def _parse_range(text: str) -> Range | None:
    found = _RANGE.fullmatch(text)
    if found is None:
        return None
    kind, low, high = found["kind"], parse_value(found["low"]), parse_value(found["high"])
    return Range(low, high, log=kind == "log:", integer=kind == "int:")


def with_whole_numbers(axis: Axis, base: Experiment) -> Axis:
    """The axis with whole numbers only, where its field takes no others: 4..24 of an NFE, but not 0..1 of a mean."""
    if axis.range is None or axis.range.integer or not _takes_whole_numbers(axis.path, base):
        return axis
    return replace(axis, range=replace(axis.range, integer=True))


def _takes_whole_numbers(path: str, base: Experiment) -> bool:
    *parents, leaf = path.split(".")
    value: Any = base
    for name in parents:
        value = getattr(value, name)
    kinds = [type(value), *(WHOLE[parents[0]].values() if parents and parents[0] in WHOLE else ())]
    hints = [hint for kind in kinds if (hint := get_type_hints(kind).get(leaf)) is not None]
    return bool(hints) and hints[0] in (int, int | None)


def parse_axis(text: str) -> Axis:
    """Parse `timesteps.m=0,0.7` or `flow.difficulty_weight=log:1e-4..1` as an Axis; ` when FIELD=VALUE` behind it is
    its condition. ConfigError where there is no `=`."""
    text, _, condition = text.partition(" when ")
    path, sign, values = (part.strip() for part in text.partition("="))
    if not sign or not path or not values:
        raise ConfigError(f"{text}: an axis is FIELD=VALUE,VALUE,… such as timesteps.m=0,0.7")
    when = None
    if condition:
        field, equals, value = (part.strip() for part in condition.partition("="))
        if not equals or not field or not value:
            raise ConfigError(f"--when {condition}: is FIELD=VALUE, such as sampler=dual_loop")
        when = (field, parse_value(value))
    found = None if path in WHOLE else _parse_range(values)
    if found is not None:
        return Axis(path, (), when=when, range=found)
    return Axis(path, tuple(_values(path, values)), when=when)


def parse_zip(text: str) -> Zip:
    """Parse `F,G=a:b,c:d` as fields that change together. ConfigError where a group has another number of values."""
    paths, sign, groups = text.partition("=")
    names = tuple(name.strip() for name in paths.split(","))
    if not sign or len(names) < 2 or not all(names):
        raise ConfigError(
            f"--zip {text}: must be FIELD,FIELD=VALUE:VALUE,VALUE:VALUE,… such as timesteps.m,timesteps.s=0:1,1:2; one "
            "field alone is an --axis"
        )
    rows = []
    for group in _split(groups):
        values = tuple(parse_value(value) for value in _split(group, ":"))
        if len(values) != len(names):
            told = f"{group} has {counted(len(values), 'value')}, where {len(names)} fields change together"
            raise ConfigError(
                f"--zip {text}: {told}; give {':'.join(['VALUE'] * len(names))}, with a comma between steps"
            )
        rows.append(values)
    return Zip(names, tuple(rows))


def join_conditions(words: list[str]) -> list[str]:
    """A command line with each `--when FIELD=VALUE` put into the `--axis` before it, whose condition it is.

    ConfigError for one that follows no axis.
    """
    joined: list[str] = []
    waiting = iter(words)
    for word in waiting:
        name, sign, value = word.partition("=")
        if name != "--when":
            joined.append(word)
            continue
        condition = value if sign else next(waiting, "")
        of_axis = len(joined) > 1 and joined[-2] == "--axis"
        if not of_axis and not (joined and joined[-1].startswith("--axis=")):
            raise ConfigError(f"--when {condition}: follows no --axis; it is the condition of the axis right before it")
        if " when " in joined[-1]:
            raise ConfigError(f"--when {condition}: its axis has a condition already; give one")
        joined[-1] += f" when {condition}"
    return joined


def read_rows(path: Path) -> tuple[NamedRow, ...]:
    """Rows of a CSV, JSON or YAML file: columns are fields, `row` names the rows. ConfigError names the row and the
    column that are wrong."""
    try:
        content = read_small(path, MOST_BYTES)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--rows {path}: cannot be read ({error})") from error
    if path.suffix.lower() == ".csv":
        records = _of_csv(path, content)
    elif path.suffix.lower() in (".yaml", ".yml", ".json"):
        records = _of_yaml(path, content)
    else:
        raise ConfigError(f"--rows {path}: is a .csv, .yaml or .json file")
    if not 0 < len(records) <= MOST_ROWS:
        raise ConfigError(f"--rows {path}: has {len(records):,} rows; 1 to {MOST_ROWS:,} are read")
    rows = []
    for number, record in enumerate(records, start=1):
        changes = {name: value for name, value in record.items() if name != ROW_NAME and value != OWN}
        rows.append(NamedRow(str(record.get(ROW_NAME) or _named(changes, number)), changes))
    return tuple(rows)


def _named(changes: Mapping[str, Any], number: int) -> str:
    """A row's name where the file gives none."""
    told = " ".join(f"{name.rsplit('.', 1)[-1]}={value}" for name, value in changes.items())
    return told if 0 < len(told) <= 60 else f"row {number}"


def _of_csv(path: Path, content: bytes) -> list[dict[str, Any]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"--rows {path}: is not UTF-8 ({error}); save it as CSV UTF-8") from error
    first = text.partition("\n")[0]
    if "," not in first and ";" in first:
        raise ConfigError(f"--rows {path}: its columns are separated by semicolons; save it with commas")
    reader = csv.reader(io.StringIO(text, newline=""))
    header = [name.strip() for name in next(reader, [])]
    if not all(header) or len(set(header)) < len(header):
        told = ", ".join(header) or "nothing"
        raise ConfigError(f"--rows {path}: its first line names the columns, each once; it has {told}")
    records = []
    for number, row in enumerate((row for row in reader if any(cell.strip() for cell in row)), start=1):
        if len(row) != len(header):
            told = f"has {len(row)} cells, where there are {len(header)} columns"
            raise ConfigError(f"--rows {path}, row {number}: {told}")
        for name, cell in zip(header, row, strict=True):
            if not cell.strip():
                raise ConfigError(
                    f"--rows {path}, row {number}: {name} is empty; write its value, or {OWN} for the experiment's own"
                )
        cells = (cell.strip() for cell in row)
        records.append({
            name: cell if name == ROW_NAME or cell == OWN else _cell(name, cell)
            for name, cell in zip(header, cells, strict=True)
        })  # fmt: skip
    return records


def _cell(name: str, text: str) -> Any:
    """The value of a cell; of a whole part, in the grammar of axes. ConfigError where it is several."""
    values = _values(name, text) if name in WHOLE else [parse_value(text)]
    if len(values) != 1:
        raise ConfigError(f"{name}={text}: a row has one value of a field; write a row for each, or an axis")
    return values[0]


def _of_yaml(path: Path, content: bytes) -> list[dict[str, Any]]:
    import yaml

    class Loader(yaml.BaseLoader):
        """Reads all values as texts, so that they mean what they mean on a command line (in YAML 1:30 is 90)."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names = [key.value for key, _ in node.value]
            if len({*map(str, names)}) < len(names):
                raise ForeignError("a row has a field twice")
            return super().construct_mapping(node, deep)

    try:
        data = yaml.load(content, Loader)  # it makes texts, lists and tables only
    except (ForeignError, yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"--rows {path}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        raise ConfigError(f"--rows {path}: is a list of rows, each with fields and values")
    return [{str(name): _plain(path, str(name), value) for name, value in row.items()} for row in data]


def _plain(path: Path, name: str, value: Any) -> Any:
    """A value of a YAML or JSON row."""
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return tuple(parse_value(each) for each in value)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"--rows {path}: {name} is {'empty' if not value else 'no value'}; write a value, or {OWN}")
    return value if name == ROW_NAME or value == OWN else _cell(name, value)
