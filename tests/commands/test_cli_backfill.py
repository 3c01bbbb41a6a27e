"""``asyncagg backfill`` and ``rollup`` on the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from testkit.command import asyncagg, installed, sampled
from testkit.promises import final_bytes, of_directory

SINCE = (datetime.now(UTC) - timedelta(hours=12)).isoformat()
BACKFILL = ("--since", SINCE, "--window-by", "name")


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """Return the lines of JSON; the last one is the report."""
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["event"] for line in found[:-1]] == ["progress"] * (len(found) - 1)
    assert found[-1]["event"] == "done"
    return found


def settled_by_run(folder: Path) -> dict[str, bytes]:
    """Settle a copy of a folder with ``run``; return its aggregates."""
    copy = folder.with_name(f"{folder.name}-run")
    shutil.copytree(folder, copy)
    assert asyncagg("run", str(copy), "--window-by", "name").returncode in {0, 3}
    return final_bytes(of_directory(copy))


def test_backfill_then_rollup(tmp_path: Path) -> None:
    """A folder is settled and rolled up; a second rollup changes nothing."""
    sampled(tmp_path, "--files", "300", "--windows", "5")
    done = asyncagg("backfill", str(tmp_path), *BACKFILL, "--json", "--chunk-files", "20")
    assert done.returncode == 0, done.stderr
    report = lines(done)[-1]
    assert report["total"]["counted"] == report["total"]["archived"] == 300
    assert len(report["windows"]) == 5
    assert not list((tmp_path / "work").rglob("*.json"))

    done = asyncagg("rollup", str(tmp_path), "--period", "month", "--json")
    assert done.returncode == 0, done.stderr
    written = {each["key"]: each for each in json.loads(done.stdout)["written"]}
    months = [each["counted"] for key, each in written.items() if "/month/" in key]
    assert sum(months) == 300
    again = asyncagg("rollup", str(tmp_path), "--period", "month")
    assert f"{len(written)} unchanged" in again.stdout


def test_a_dry_run_lists(tmp_path: Path) -> None:
    """--dry-run reports the files and moves none."""
    sampled(tmp_path, "--files", "30")
    done = asyncagg("backfill", str(tmp_path), *BACKFILL, "--dry-run", "--json")
    assert done.returncode == 3
    assert lines(done)[-1]["total"]["left"] == 30
    assert len(list((tmp_path / "runs").glob("*.json"))) == 30


def test_an_empty_interval_is_reported(tmp_path: Path) -> None:
    """An interval without run files is reported in one sentence, and succeeds."""
    (tmp_path / "runs").mkdir()
    done = asyncagg("backfill", str(tmp_path), *BACKFILL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the inbox has no run files for the windows from ")
    assert len(done.stdout.splitlines()) == 1


def test_differences_from_the_archive_are_reported_and_fixed_with_write(tmp_path: Path) -> None:
    """Differences from the archived files are reported; --write fixes them; nothing is moved."""
    sampled(tmp_path, "--files", "60", "--windows", "2")
    asyncagg("run", str(tmp_path), "--window-by", "name")
    words = ("backfill", str(tmp_path), *BACKFILL, "--source", "archive")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    assert asyncagg(*words).returncode == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == before

    victim = min((tmp_path / "aggregates").glob("*Z.json"))
    data = victim.read_bytes().replace(b'"total_errors":', b'"total_errors":7')
    victim.write_bytes(data)
    done = asyncagg(*words)
    assert done.returncode == 3
    assert f"window {victim.stem}: total_errors is 7" in done.stdout
    assert victim.read_bytes() == data
    done = asyncagg(*words, "--write", "--json")
    assert done.returncode == 0
    assert [each["written"] for each in lines(done)[-1]["windows"]] == [True, False]
    assert asyncagg(*words).returncode == 0


@pytest.mark.slow
def test_workers_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--workers starts a cluster, with the aggregates and warnings of a run."""
    monkeypatch.chdir(tmp_path)
    words = ("--files", "200", "--windows", "4", "--bad-fraction", "0.02")
    bad = sampled(tmp_path / "data", *words)["bad"]
    expected = settled_by_run(tmp_path / "data")
    done = installed("backfill", "data", *BACKFILL, "--workers", "2", "--chunk-files", "15")
    assert done.returncode == 3, done.stderr
    warnings = done.stderr.splitlines()
    assert len([line for line in warnings if " warning quarantined key='runs/" in line]) == bad > 0
    assert len(warnings) == bad
    assert str(200 - bad) in done.stdout.split()
    assert final_bytes(of_directory(tmp_path / "data")) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["backfill", "."], "--since"),
        (["backfill", ".", "--since", "noon"], "--since 'noon': expected a time"),
        (["backfill", ".", "--since", "29991231t0000Z"], "expected a time early enough"),
        (
            ["backfill", ".", "--since", "20251002t0000Z", "--until", "20251001t0000Z"],
            "expected a time before until, 2025-10-01T00:00:00+00:00 (--since)",
        ),
        (
            ["backfill", ".", "--since", SINCE, "--workers", "1", "--scheduler", "tcp://x:1"],
            "expected one of them",
        ),
        (["backfill", ".", "--since", SINCE, "--write"], "expected --source archive"),
        (
            ["backfill", ".", "--since", SINCE, "--source", "archive", "--dry-run"],
            "without --write, it changes nothing",
        ),
        (["rollup", "."], "--period"),
        (
            ["rollup", ".", "--period", "day", "--since", "20251002", "--until", "20251001"],
            "expected a time before until, 2025-10-01T00:00:00+00:00 (--since)",
        ),
        (["rollup", ".", "--period", "week"], "week"),
        (["rollup", ".", "--period", "hour", "--window-minutes", "90"], "window_minutes 90"),
    ],
)
def test_wrong_usage_is_one_sentence(words: list[str], message: str) -> None:
    """Wrong usage exits with 2, without a traceback."""
    done = asyncagg(*words)
    assert done.returncode == 2, done.stderr
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_without_dask_it_says_what_to_install(tmp_path: Path) -> None:
    """--workers needs an extra, which the error names."""
    script = "import sys; sys.modules['distributed'] = None; from asyncagg.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "backfill", str(tmp_path), *BACKFILL, "--workers", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "expected the extra 'cluster' of asyncagg" in done.stderr.replace("\n", " ")
