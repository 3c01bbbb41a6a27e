"""`check` says what a run would do with a file, in the same words."""

from __future__ import annotations

import io
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from testkit.command import asyncagg
from testkit.corpus import CORPUS, MAX_BYTES

from asyncagg.check import Verdict, check, check_content
from asyncagg.job.pipeline import run
from asyncagg.settings import Settings
from asyncagg.store.directory import DirectoryStore

SETTINGS = Settings(max_file_bytes=MAX_BYTES, stream_bytes=64 * 1024)


def write(folder: Path, files: dict[str, bytes]) -> None:
    """Write files below a folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


async def test_every_file_of_the_corpus_has_the_reason_of_the_reader(tmp_path: Path) -> None:
    """Small and streamed files, valid and invalid, in a folder and without a name."""
    cases = {case.key: case for case in CORPUS if len(case.data) <= 300_000}
    write(tmp_path, {key: case.data for key, case in cases.items()})
    found = {each.file: each async for each in check(str(tmp_path), SETTINGS)}
    assert len(found) == len(cases) > 60
    for key, case in cases.items():
        each = found[str(tmp_path / key)]
        expected = Verdict.QUARANTINED if case.reason else Verdict.COUNTED
        assert each.verdict is expected, case.name
        assert case.reason in each.reason
        if len(case.data) < 1000:
            assert (await check_content(case.data, SETTINGS)).reason == each.reason


async def test_a_run_does_what_check_says(tmp_path: Path) -> None:
    """Counted, quarantined and ignored files are those that were announced, in their windows."""
    names = {
        "20251021t1356Z_a.json": b'{"errors":1}',
        "20251021t135801z_b.JSON": b'{"errors":1}',
        "20301021t1356Z_early.json": b'{"errors":1}',
        "late/20251021t1401Z_c.json.gz": b'{"errors":1}',
        "no-stamp.json": b'{"errors":1}',
        "20251021t1356Z_bad.json": b'{"errors":"none"}',
        "lines.jsonl": b'{"errors":1}',
        ".hidden.json": b'{"errors":1}',
        "~20251021t1356Z.json": b'{"errors":1}',
    }
    write(tmp_path / "runs", names)
    store = DirectoryStore(tmp_path, inbox="runs/")
    announced = {
        each.file.removeprefix(f"{tmp_path}/runs/"): (each.verdict, each.window)
        async for each in check(str(tmp_path / "runs"), Settings())
    }
    assert announced == {
        "20251021t1356Z_a.json": ("counted", "20251021t1400Z"),
        "20251021t135801z_b.JSON": ("counted", "20251021t1400Z"),
        "20301021t1356Z_early.json": ("counted", ""),
        "late/20251021t1401Z_c.json.gz": ("counted", "20251021t1405Z"),
        "no-stamp.json": ("counted", ""),
        "20251021t1356Z_bad.json": ("quarantined", ""),
        "lines.jsonl": ("ignored", ""),
        ".hidden.json": ("ignored", ""),
        "~20251021t1356Z.json": ("ignored", ""),
    }
    report = await run(store, Settings(), at=datetime(2040, 1, 1, tzinfo=UTC))
    assert (report.total.counted, report.total.quarantined) == (5, 1)
    left = {path.name for path in (tmp_path / "runs").rglob("*.*")}
    assert left == {"lines.jsonl", ".hidden.json", "~20251021t1356Z.json"}
    for window in {window for _, window in announced.values() if window}:
        assert window in report.windows


@pytest.mark.parametrize(
    ("words", "code", "printed"),
    [
        (["good.json"], 0, "counted      good.json  in the window of its upload\n1 counted, 0 q"),
        (["bad.json"], 3, "quarantined  bad.json: errors: expected a whole number from 0 to"),
        ([".", "--json"], 3, '"file":"good.json","verdict":"counted","reason":"","window":""}\n'),
        (["x.txt"], 3, "ignored      x.txt: the name does not end in .json or .json.gz\n0 counted"),
        (["-"], 3, "quarantined  -: not JSON: it is cut short at byte 11\n"),
        (["link.json"], 0, "counted      link.json"),
        (["nope.json"], 1, "'nope.json': No such file or directory; expected a file or a folder"),
        (["empty"], 1, "nothing found: looked in 'empty'; expected folders with files"),
        (["pipe"], 1, "'pipe' is not a regular file: pipe it to `asyncagg check -`"),
        ([], 2, "Missing argument 'FILE...'"),
    ],
)
def test_the_command(
    words: list[str],
    code: int,
    printed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The exit code is 0 if all files would be counted, 3 if not, 1 if there is none."""
    write(tmp_path, {"good.json": b'{"errors":1}', "bad.json": b'{"errors":"x"}', "x.txt": b""})
    (tmp_path / "link.json").symlink_to("good.json")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"errors":1')))
    done = asyncagg("check", *words)
    assert done.returncode == code
    assert printed in done.stdout + done.stderr
    if "--json" in words:
        assert json.loads(done.stdout.splitlines()[-1])["exit_code"] == 3
