"""Every shell and Python block of the documents is run, in order, page by page.

A page gets an empty folder and one shell. Comments on the lines above a block control it:

    <!-- exits 3 -->             the block ends with this code
    <!-- not run: REASON -->     only the syntax of the block is checked
    <!-- needs MODULE -->        likewise, if this module is not installed
    <!-- with sample files in ./data -->   are written before the page begins

If a ``text`` block follows, it is the expected output; ``...`` matches anything.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
BASH = shutil.which("bash") or "bash"
SERVER = "http://127.0.0.1:5000"
SECONDS = 240
"""The timeout of a block: on a busy machine the demo takes a minute."""

SAMPLES = "<!-- with sample files in ./data -->"
_BLOCK = re.compile(
    r"(?P<comments>(?:^ *<!--[^\n]*-->\n)*)^(?P<indent> *)```(?P<language>bash|python)\n"
    r"(?P<code>.*?)^ *```\n(?:\n *```text\n(?P<output>.*?)^ *```\n)?",
    re.DOTALL | re.MULTILINE,
)
_OUTPUT = re.compile(r"^```text\n(.*?)^```", re.DOTALL | re.MULTILINE)

pytestmark = pytest.mark.timeout(2 * SECONDS)


@dataclass(frozen=True)
class Block:
    """A block of code, and its comments."""

    language: str
    code: str
    exits: int
    not_run: str
    output: str | None


def blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page, in order."""
    for found in _BLOCK.finditer(page.read_text("utf-8")):
        comments = found["comments"]
        exits = re.search(r"<!-- exits (\d+) -->", comments)
        not_run = re.search(r"<!-- not run: (.+) -->", comments)
        needs = re.search(r"<!-- (needs (\w+)) -->", comments)
        if needs and find_spec(needs[2]) is None:
            not_run = needs
        yield Block(
            language=found["language"],
            code=textwrap.dedent(found["code"]),
            exits=int(exits[1]) if exits else 0,
            not_run=not_run[1] if not_run else "",
            output=textwrap.dedent(found["output"]) if found["output"] is not None else None,
        )


RUN = [page for page in PAGES if any(not block.not_run for block in blocks(page))]


def environment() -> dict[str, str]:
    """Return the environment, with the commands of this interpreter first on the path."""
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "COLUMNS": "100",
        "NO_COLOR": "1",
    }


class Shell:
    """One shell for a page: variables and the folder are kept from block to block."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._state = folder.parent / f"{folder.name}.state"
        self._state.write_text("")

    def run(self, block: Block, code: str) -> tuple[int, str]:
        """Run a block; return its exit code and output."""
        if block.language == "python":
            code = f"python3 -c {shlex.quote(code)}"
        state = shlex.quote(str(self._state))
        script = f"set -eu\nsource {state}\ntrap 'export -p > {state}' EXIT\n{code}"
        done = subprocess.run(
            [BASH, "-c", script],
            cwd=self._folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        return done.returncode, done.stdout


@contextmanager
def server() -> Iterator[str]:
    """Run moto's server, as the page asks its reader to do."""
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    try:
        _, port = running.get_host_and_port()
        yield f"http://127.0.0.1:{port}"
    finally:
        running.stop()


def matches(expected: str, printed: str) -> bool:
    """Return whether an output is the expected one.

    Times, windows and the width of white space may differ; ``...`` matches anything.
    """
    pattern = ".*".join(re.escape(part) for part in plain(expected).split("..."))
    return re.fullmatch(pattern, plain(printed), re.DOTALL) is not None


def plain(text: str) -> str:
    """Replace times and windows by fixed words, and white space by single spaces."""
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[.\d]*(\+00:00|Z)", "MOMENT", text)
    text = re.sub(r"\b\d\d:\d\d:\d\d\b", "MOMENT", text)
    text = re.sub(r"\d{8}t\d{4}Z", "WINDOW", text)
    text = re.sub("─+", "─", text)  # as long as the table is wide
    return " ".join(text.split())


@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_do_what_it_says(page: Path, tmp_path: Path) -> None:
    """Each block has the expected exit code and output."""
    folder = tmp_path / "reader"
    folder.mkdir()
    shell = Shell(folder)
    if SAMPLES in page.read_text("utf-8"):
        sample = Block("bash", "asyncagg sample ./data --files 50", 0, "", None)
        assert shell.run(sample, sample.code)[0] == 0
    with server() as url:
        for block in blocks(page):
            if block.not_run:
                continue
            code, printed = shell.run(block, block.code.replace(SERVER, url))
            assert code == block.exits, f"{block.code}\n{printed}"
            if block.output is not None:
                assert matches(block.output, printed), f"{block.code}\n{printed}"


def test_the_demo_ends_as_the_readme_says(tmp_path: Path) -> None:
    """The first block's command, in this environment, prints the output in the README."""
    (create, demo) = next(blocks(README)).code.splitlines()
    assert create.startswith("python3 -m venv")
    assert demo == ".venv/bin/asyncagg demo"
    ended = Block("bash", demo.removeprefix(".venv/bin/"), 0, "", None)
    code, printed = Shell(tmp_path).run(ended, ended.code)
    assert code == 0, printed
    shown = _OUTPUT.findall(README.read_text("utf-8"))
    assert matches(next(text for text in shown if "objects in the store" in text), printed)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_is_well_formed(page: Path) -> None:
    """Every block parses, also one that is not run."""
    for block in blocks(page):
        if block.language == "python":
            ast.parse(block.code)
        else:
            done = subprocess.run(
                [BASH, "-n", "-c", block.code], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{block.code}\n{done.stderr}"
