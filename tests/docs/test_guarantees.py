"""The page of guarantees names tests and checks that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanation" / "guarantees.md"
TESTS = ROOT / "tests"


def functions(path: Path) -> set[str]:
    """Return the names of the functions in a file, those of classes included."""
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_test_that_guarantees_name_exists() -> None:
    """A file is named by its path below tests/; the functions after it are in it or elsewhere."""
    named = re.findall(r"`([^`\s]*\b(?:test|check)_\w+(?:\.py)?)`", PAGE.read_text("utf-8"))
    files = {name for name in named if name.endswith(".py")}
    assert len(files) > 5
    assert not [name for name in sorted(files) if not (TESTS / name).is_file()]
    existing = set[str]().union(*map(functions, TESTS.rglob("*.py")))
    assert len(named) > len(files) + 20
    assert not sorted({name for name in named if name not in files} - existing)


def test_no_name_in_guarantees_is_shortened() -> None:
    """A test is found by its full name: `…_over_http` is not one."""
    assert not re.findall(r"`[^`]*…[^`]*`", PAGE.read_text("utf-8"))
