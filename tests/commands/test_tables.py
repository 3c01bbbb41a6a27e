"""What the commands print fits a terminal of 80 columns, whatever the names and the numbers."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len
from testkit.command import sampled

from asyncagg.cli import _exit_code, base
from asyncagg.cli.tables import wrap
from asyncagg.job.outcome import RunReport, Tally, WindowReport

LONG = "a-folder-whose-name-is-long/and-another-one-inside-it/"
NAMES = {
    "ASYNCAGG_RUNS_PREFIX": f"{LONG}runs/",
    "ASYNCAGG_AGGREGATE_PREFIX": f"{LONG}aggregates/",
    "ASYNCAGG_ARCHIVE_PREFIX": f"{LONG}archive/",
    "ASYNCAGG_QUARANTINE_PREFIX": f"{LONG}quarantine/",
    "ASYNCAGG_ROLLUP_PREFIX": f"{LONG}rollups/",
}
SINCE = ("--since", "20200101")
COMMANDS = {
    "run": ("--dry-run",),
    "backfill": (*SINCE, "--dry-run"),
    "verify": (),
    "report": ("--out", "{folder}/report.html"),
    "rollup": ("--period", "day"),
    "quarantine list": (),
    "archive list": (),
    "doctor": (),
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with something of everything, below long prefixes."""
    folder = tmp_path_factory.mktemp("a-store-with-a-long-name") / "store"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in NAMES.items():
            patch.setenv(name, value)
        sampled(folder, "--files", "40", "--windows", "3", "--bad-fraction", "0.1")
        assert _exit_code(["run", str(folder)], debug=False) == 3
        sampled(folder, "--files", "20", "--windows", "2", "--seed", "1")
        extra = folder / LONG / "archive" / "counted-nowhere.json"
        extra.write_bytes(b"{}")
        yield folder


def printed(width: int, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command with an output of this width, and return what it prints."""
    capsys.readouterr()
    before, base.out.width = base.out.width, width
    try:
        _exit_code(words, debug=False)
    finally:
        base.out.width = before
    return capsys.readouterr().out


def words_of(text: str) -> set[str]:
    """Return the words of an output and the parts of its paths; numbers vary."""
    return set(re.findall(r"[^\s/─]+", re.sub(r"\d+", "0", text)))


def check_fits(narrow: str, wide: str) -> None:
    """Check that an output has the words of the other, in lines of 80 columns."""
    assert [line for line in narrow.splitlines() if len(line) > 80] == []
    assert words_of(narrow) >= words_of(wide) - {"total"}
    assert words_of(narrow) <= words_of(wide) | {"total"}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_line_is_longer_than_the_terminal_and_no_word_is_broken(
    name: str, filled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A column is as wide as its words; a key is broken after a slash only."""
    command, *more = name.split()
    options = [each.format(folder=filled.parent) for each in COMMANDS[name]]
    words = [command, *more, str(filled), *options]
    wide = printed(10_000, words, capsys)
    shutil.rmtree(filled / LONG / "rollups", ignore_errors=True)
    check_fits(printed(80, words, capsys), wide)
    assert not re.search(r"\d\d:\d\d:\d\d\.\d", wide)


def test_a_table_that_does_not_fit_becomes_a_block_per_row(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Millions of files in every column are shown, a line for each number."""
    report = RunReport(at="2025-10-21T14:10:00.123456+00:00")
    numbers = Tally(*[123_456_789] * 10)
    report.windows = {
        name: WindowReport(name, f"{name}.json", 12, numbers)
        for name in ("20251021t1400Z", "20251021t1405Z")
    }
    base.print_report(report)
    wide = capsys.readouterr().out
    before, base.out.width = base.out.width, 80
    base.print_report(report)
    base.out.width = before
    narrow = capsys.readouterr().out
    check_fits(narrow, wide)
    assert "window       20251021t1400Z\n" in narrow
    assert wide.splitlines()[-1].split() == ["total", *["246,913,578"] * 7]


@pytest.mark.parametrize("width", [1, 2, 7, 30])
@pytest.mark.parametrize(
    "text",
    ["", " ", "one two  three", "a/b//c/dd/", "x" * 40, "日本/日本 語", "a\n\n b", "  in"],
)
def test_wrapped_text_keeps_its_characters(text: str, width: int) -> None:
    """Only white space at the ends of lines is left out."""
    lines = wrap(text, width)
    assert "".join("".join(lines).split()) == "".join(text.split())
    if width >= 2:
        assert all(cell_len(line) <= width for line in lines)
