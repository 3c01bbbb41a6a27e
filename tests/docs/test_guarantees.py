"""The pages of guarantees and of security name tests and checks that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs" / "explanation" / f"{name}.md" for name in ("guarantees", "security")]
TESTS = ROOT / "tests"


def functions(path: Path) -> set[str]:
    """Return the names of the functions in a file, those of classes included."""
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_test_that_is_named_exists(page: Path) -> None:
    """A file is named by its path below tests/; the functions after it are in it or elsewhere."""
    named = re.findall(r"`([^`\s]*\b(?:test|check)_\w+(?:\.py)?)`", page.read_text("utf-8"))
    files = {name for name in named if name.endswith(".py")}
    assert len(files) > 5
    assert not [name for name in sorted(files) if not (TESTS / name).is_file()]
    existing = set[str]().union(*map(functions, TESTS.rglob("*.py")))
    assert len(named) > len(files) + 10
    assert not sorted({name for name in named if name not in files} - existing)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_name_is_shortened(page: Path) -> None:
    """A test is found by its full name: `…_over_http` is not one."""
    assert not re.findall(r"`[^`]*…[^`]*`", page.read_text("utf-8"))
