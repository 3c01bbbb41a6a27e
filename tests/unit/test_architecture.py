"""The layers of the package hold, and the tests share code only through the test kit."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import asyncagg

ROOT = Path(__file__).parents[2]
PACKAGE = Path(asyncagg.__file__).parent
LINTER = Path(sys.executable).with_name("lint-imports")

needs_linter = pytest.mark.skipif(not LINTER.exists(), reason="import-linter is not installed")


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the contracts of pyproject.toml on a copy of the package in a folder."""
    return subprocess.run(
        [LINTER, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package and its contracts."""
    shutil.copytree(PACKAGE, tmp_path / "asyncagg", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@needs_linter
def test_the_layers_hold(copy: Path) -> None:
    """No contract is broken."""
    done = lint(copy)
    assert done.returncode == 0, done.stdout


@needs_linter
@pytest.mark.parametrize(
    ("module", "imported", "message"),
    [
        ("model.py", "settings", "asyncagg.model is not allowed to import asyncagg.settings"),
        ("ingest/parsing.py", "store", "asyncagg.ingest is not allowed to import asyncagg.store"),
        ("store/retry.py", "job", "asyncagg.store is not allowed to import asyncagg.job"),
        ("rollup/__init__.py", "watch", "asyncagg.rollup is not allowed to import asyncagg.watch"),
        ("job/pipeline.py", "store.memory", "asyncagg.job.pipeline -> asyncagg.store.memory"),
        ("handler.py", "report", "asyncagg.handler is not allowed to import asyncagg.report"),
        ("extra.py", "errors", "asyncagg.extra"),  # a module that has no layer
    ],
)
def test_a_forbidden_import_breaks_a_contract(
    copy: Path, module: str, imported: str, message: str
) -> None:
    """Each of these makes `tox -e lint` fail, with the import in its message."""
    with (copy / "asyncagg" / module).open("a") as file:
        file.write(f"\nimport asyncagg.{imported}\n")
    done = lint(copy)
    assert done.returncode == 1, done.stdout
    assert message in done.stdout


def imports(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or ''}.{each.name}" for each in node.names)


def test_no_counter_is_read_before_an_await() -> None:
    """``self.count += await f()`` reads first: what others add during the await is lost."""
    lost = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.AugAssign)
        and not isinstance(node.target, ast.Name)
        and any(isinstance(each, ast.Await) for each in ast.walk(node.value))
    ]
    assert lost == []


def test_no_test_module_is_imported() -> None:
    """What two test modules share is in `testkit`."""
    tests = Path(__file__).parents[1]
    modules = {path.stem for path in tests.rglob("test_*.py")} | {"conftest"}
    offences = [
        f"{path.relative_to(tests)} imports {name}"
        for path in sorted(tests.rglob("*.py"))
        for name in imports(path)
        if modules & set(name.split("."))
    ]
    assert not offences


def test_the_benchmarks_reach_the_test_kit_in_one_place() -> None:
    """`harness.TESTKIT` is the only path from benchmarks into tests."""
    folder = ROOT / "benchmarks"
    naming = [path.name for path in folder.glob("*.py") if '"tests"' in path.read_text("utf-8")]
    assert naming == ["harness.py"]


def test_few_modules_are_loose() -> None:
    """The top of the package has folders; its own modules are those that all layers know."""
    loose = {path.name for path in PACKAGE.glob("*.py")}
    assert loose == {
        *("__init__.py", "__main__.py", "errors.py", "handler.py"),
        *("model.py", "settings.py", "windows.py"),
    }
