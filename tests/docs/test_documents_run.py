"""Every shell and Python block of the documents, run in order, page by page.

A page gets an empty folder and one shell. A comment on the line above a block says what a reader
sees in the text:

    <!-- exits 3 -->             the block ends with that code
    <!-- not run: REASON -->     the block is checked for its syntax only
    <!-- with sample files in ./data -->   before the page begins

A ``text`` block that follows is what the block prints; ``...`` stands for anything.
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
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
BASH = shutil.which("bash") or "bash"
SERVER = "http://127.0.0.1:5000"
SECONDS = 240
"""How long a block may take: on a busy machine the demo takes a minute."""

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
    """A block of code, and what is said of it."""

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
        yield Block(
            language=found["language"],
            code=textwrap.dedent(found["code"]),
            exits=int(exits[1]) if exits else 0,
            not_run=not_run[1] if not_run else "",
            output=textwrap.dedent(found["output"]) if found["output"] is not None else None,
        )


RUN = [page for page in PAGES if any(not block.not_run for block in blocks(page))]


def environment() -> dict[str, str]:
    """Return the test's own environment, with the command of the interpreter that runs it."""
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "COLUMNS": "100",
        "NO_COLOR": "1",
    }


class Shell:
    """One shell for a page: variables and the folder last from block to block."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._state = folder.parent / f"{folder.name}.state"
        self._state.write_text("")

    def run(self, block: Block, code: str) -> tuple[int, str]:
        """Run a block; return its exit code and what it printed."""
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
    """Run moto's server, as a page tells its reader to."""
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    try:
        _, port = running.get_host_and_port()
        yield f"http://127.0.0.1:{port}"
    finally:
        running.stop()


def matches(expected: str, printed: str) -> bool:
    """Tell whether what was printed is what is written.

    Moments and windows are those of the day of writing, ``...`` stands for anything, and how wide
    a space is does not matter.
    """
    pattern = ".*".join(re.escape(part) for part in plain(expected).split("..."))
    return re.fullmatch(pattern, plain(printed), re.DOTALL) is not None


def plain(text: str) -> str:
    """Return a text without its moments, and with single spaces."""
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[.\d]*(\+00:00|Z)", "MOMENT", text)
    text = re.sub(r"\b\d\d:\d\d:\d\d\b", "MOMENT", text)
    text = re.sub(r"\d{8}t\d{4}Z", "WINDOW", text)
    return " ".join(text.split())


@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_do_what_it_says(page: Path, tmp_path: Path) -> None:
    """Each block ends as it says, and prints what it says."""
    folder = tmp_path / "reader"
    folder.mkdir()
    shell = Shell(folder)
    if SAMPLES in page.read_text("utf-8"):
        made = Block("bash", "asyncagg sample ./data --files 50", 0, "", None)
        assert shell.run(made, made.code)[0] == 0
    with server() as url:
        for block in blocks(page):
            if block.not_run:
                continue
            code, printed = shell.run(block, block.code.replace(SERVER, url))
            assert code == block.exits, f"{block.code}\n{printed}"
            if block.output is not None:
                assert matches(block.output, printed), f"{block.code}\n{printed}"


def test_the_demo_ends_as_the_readme_says(tmp_path: Path) -> None:
    """The first block's command, without the environment that it makes, prints what is shown."""
    (making, demo) = next(blocks(README)).code.splitlines()
    assert making.startswith("python3 -m venv")
    assert demo == ".venv/bin/asyncagg demo"
    ended = Block("bash", demo.removeprefix(".venv/bin/"), 0, "", None)
    code, printed = Shell(tmp_path).run(ended, ended.code)
    assert code == 0, printed
    shown = _OUTPUT.findall(README.read_text("utf-8"))
    assert matches(next(text for text in shown if "objects in the store" in text), printed)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_is_well_formed(page: Path) -> None:
    """Also one that is not run parses."""
    for block in blocks(page):
        if block.language == "python":
            ast.parse(block.code)
        else:
            done = subprocess.run(
                [BASH, "-n", "-c", block.code], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{block.code}\n{done.stderr}"
