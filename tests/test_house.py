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
