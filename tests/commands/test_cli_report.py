"""``asyncagg report`` on the command line, on a directory and on moto's server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest
from testkit.command import asyncagg, sampled
from testkit.moto_server import moto_endpoint
from testkit.reports import block


def settled(folder: Path, *words: str) -> None:
    """Settle a folder of sample files."""
    sampled(folder, "--files", "80", "--windows", "4", "--bad-fraction", "0.05", *words)
    assert asyncagg("run", str(folder), "--window-by", "name").returncode == 3


def sums(folder: Path, field: str) -> int:
    """Add up a field of the aggregates of a folder."""
    documents = [json.loads(path.read_bytes()) for path in (folder / "aggregates").glob("*Z.json")]
    return sum(int(document[field]) for document in documents)


def test_report_writes_a_page_of_a_directory(tmp_path: Path) -> None:
    """The page has the sums of the aggregates, and the store is unchanged."""
    store = tmp_path / "data"
    settled(store)
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    out = tmp_path / "page.html"
    done = asyncagg("report", str(store), "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert f"wrote {out}" in done.stdout
    data = block(out.read_bytes())
    for field in ("total_opportunities", "total_matches", "total_no_matches", "total_errors"):
        assert data["totals"][field] == sums(store, field)
    quarantined = {str(path.relative_to(store)) for path in (store / "quarantine").glob("*.json")}
    shown = data["quarantined"]["shown"]
    assert {each["moved_to"] for each in shown if each["there"]} == quarantined
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before
    assert [path.name for path in tmp_path.iterdir() if path != store] == ["page.html"]


def test_report_reads_a_bucket_of_moto(tmp_path: Path) -> None:
    """The page of a bucket has the data of the JSON report."""
    endpoint = moto_endpoint()
    bucket = f"report-{uuid4().hex}"
    with closing(boto3.client("s3", endpoint_url=endpoint)) as client:
        client.create_bucket(Bucket=bucket)
    out = tmp_path / "page.html"
    on = ("--endpoint-url", endpoint, "--conditional-writes", "off", "--window-by", "name")
    store = f"s3://{bucket}/some/prefix"
    asyncagg("sample", store, "--files", "40", "--windows", "2", *on)
    assert asyncagg("run", store, *on).returncode == 0
    done = asyncagg("report", store, "--out", str(out), "--json", *on)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert (data.pop("out"), data.pop("exit_code")) == (str(out), 0)
    assert data["totals"]["files"]["counted"] == 40
    assert data["windows"] == {"present": 2, "missing": 0}
    assert block(out.read_bytes()) == data


def test_json_alone_writes_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that reads the numbers wants no file in its folder."""
    settled(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    done = asyncagg("report", "data", "--json")
    assert (done.returncode, json.loads(done.stdout)["out"]) == (0, None)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_page_goes_to_standard_output(tmp_path: Path) -> None:
    """Standard output has only the page, in UTF-8 in any locale."""
    settled(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "asyncagg", "report", str(tmp_path), "--out", "-"],
        capture_output=True,
        check=True,
        env={**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
        timeout=100,
    )
    assert done.stdout.startswith(b"<!doctype html>")
    assert block(done.stdout)["windows"]["present"] == 4


def test_the_default_file_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """report.html in the current directory is written, and replaced if it exists."""
    (tmp_path / "report.html").write_text("the older one")
    monkeypatch.chdir(tmp_path)
    done = asyncagg("report", ".", "--allow-empty")
    assert done.returncode == 0, done.stderr
    assert "no aggregate in the interval" in done.stdout
    assert block((tmp_path / "report.html").read_bytes())["windows"]["present"] == 0


def test_an_interval_and_a_damaged_aggregate(tmp_path: Path) -> None:
    """A damaged aggregate gives exit code 3; an interval without it gives 0."""
    settled(tmp_path)
    first, *_, last = sorted((tmp_path / "aggregates").glob("*Z.json"))
    first.write_bytes(b"{}")
    out = ("--out", str(tmp_path / "page.html"), "--json")
    done = asyncagg("report", str(tmp_path), *out)
    assert done.returncode == 3
    data: dict[str, Any] = json.loads(done.stdout)
    assert data["unreadable"]["shown"][0]["key"] == f"aggregates/{first.name}"
    done = asyncagg("report", str(tmp_path), *out, "--since", first.stem, "--until", last.stem)
    assert done.returncode == 0
    assert json.loads(done.stdout)["windows"]["present"] == 3


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--out", "."], 2, "--out '.' is a directory: expected the name of a file"),
        (["--out", os.devnull], 2, f"--out '{os.devnull}' is not a regular file"),
        (["--out", "no/such/page.html"], 2, "expected a file in a directory that exists"),
        (["--out", "x" * 300], 1, "File name too long"),
        (["--out", "-", "--json"], 2, "--out - with --json"),
        (["--since", "noon"], 2, "--since 'noon': expected a time"),
        (
            ["--since", "20251021t1400Z", "--until", "20251021t1400Z"],
            2,
            "expected a time before until",
        ),
    ],
)
def test_an_error_is_one_sentence_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, message: str
) -> None:
    """An error leaves no traceback, no page and no temporary file."""
    monkeypatch.chdir(tmp_path)
    done = asyncagg("report", str(tmp_path), *words)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
