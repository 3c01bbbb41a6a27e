"""``asyncagg verify`` on the command line, on a directory and on moto's server."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest
from testkit.command import asyncagg, sampled
from testkit.moto_server import moto_endpoint
from testkit.promises import final_bytes, of_directory

from asyncagg.verify.findings import FindingKind


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with two settled windows, and with bad files in quarantine."""
    sampled(tmp_path, "--files", "60", "--windows", "2", "--bad-fraction", "0.1")
    assert asyncagg("run", str(tmp_path), "--window-by", "name").returncode == 3
    return tmp_path


def verify(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command on a directory."""
    return asyncagg("verify", str(folder), "--window-by", "name", *words)


def report_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the one JSON document that was printed."""
    assert "Traceback" not in done.stderr, done.stderr
    return dict(json.loads(done.stdout))


def an_aggregate(folder: Path) -> Path:
    """Return the first aggregate of a directory."""
    return min((folder / "aggregates").glob("*Z.json"))


def test_a_correct_directory_gives_0_and_a_table(folder: Path) -> None:
    """Every check is listed, nothing is changed, and no temporary file is left."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    done = verify(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    for kind in FindingKind:
        assert kind.replace("_", " ") in done.stdout
    assert "no problems found: " in done.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    report = report_of(verify(folder, "--json"))
    assert report["findings"] == {}
    assert report["counts"]["aggregates"] == 2
    assert report["counts"]["files"] == report["counts"]["archived"]
    assert report["exit_code"] == 0


def test_differences_are_found_then_repaired(folder: Path) -> None:
    """A difference gives exit code 1; --repair --yes fixes it, to the byte, and checks again."""
    true = final_bytes(of_directory(folder))
    victim = an_aggregate(folder)
    victim.write_bytes(victim.read_bytes().replace(b'"total_errors":', b'"total_errors":7'))
    done = verify(folder)
    assert done.returncode == 1
    assert f"'aggregates/{victim.name}': total_errors is 7" in done.stdout
    report = report_of(verify(folder, "--json"))
    assert {kind: each["count"] for kind, each in report["findings"].items()} == {"different": 1}
    assert report["plan"]["rewrite"] == [victim.stem]

    done = verify(folder, "--repair", "--yes")
    assert done.returncode == 0, done.stdout
    assert f"to repair: aggregates replaced: {victim.stem}" in done.stdout
    assert final_bytes(of_directory(folder)) == true
    assert verify(folder).returncode == 0


def test_a_damaged_aggregate_is_rebuilt(folder: Path) -> None:
    """One document has the findings, the repairs and the findings after them."""
    true = final_bytes(of_directory(folder))
    victim = an_aggregate(folder)
    victim.write_bytes(victim.read_bytes()[:-3000])
    done = verify(folder, "--repair", "--yes", "--json")
    assert done.returncode == 0, done.stdout
    report = report_of(done)
    assert report["findings"]["damaged"]["count"] == 1
    assert report["repair"]["rebuilt"] == [victim.stem]
    assert report["repair"]["after"]["findings"] == {}
    assert final_bytes(of_directory(folder)) == true


def test_an_unfinished_move_is_finished(folder: Path) -> None:
    """A counted file that is in the inbox again is archived again."""
    archived = min((folder / "archive").glob("*.json"))
    shutil.copy2(archived, folder / "runs" / archived.name)
    report = report_of(verify(folder, "--json"))
    assert report["findings"]["unfinished_move"]["examples"][0]["key"] == f"runs/{archived.name}"
    assert verify(folder, "--repair", "--yes").returncode == 0
    assert not list((folder / "runs").iterdir())
    assert archived.exists()


def test_what_cannot_be_repaired_ends_with_1(folder: Path) -> None:
    """A lost file stays a finding, and the aggregate that counts it is kept."""
    lost = min((folder / "archive").glob("*.json"))
    lost.unlink()
    before = of_directory(folder)
    done = verify(folder, "--repair", "--yes", "--json")
    assert done.returncode == 1
    report = report_of(done)
    assert report["findings"]["counted_but_missing"]["examples"][0]["key"] == f"runs/{lost.name}"
    assert of_directory(folder) == before


@pytest.mark.parametrize(
    "words", [["verify"], ["report", "--json"], ["rollup", "--period", "day"]], ids=" ".join
)
def test_nothing_found_is_not_all_is_well(folder: Path, words: list[str]) -> None:
    """An empty or mistyped place is an error that says where it looked."""
    command, *options = words
    mistyped = [*options, "--aggregate-prefix", "agregates/", "--archive-prefix", "archives/"]
    mistyped += ["--quarantine-prefix", "other/"]
    done = asyncagg(command, str(folder), *mistyped)
    assert done.returncode == 1
    assert "nothing found: looked in" in done.stderr
    assert "'agregates/'" in done.stderr
    assert asyncagg(command, str(folder), *mistyped, "--allow-empty").returncode == 0


def test_repair_needs_yes_or_a_terminal(folder: Path) -> None:
    """--repair without --yes and without a terminal is wrong usage, and changes nothing."""
    before = of_directory(folder)
    done = asyncagg("verify", str(folder), "--repair")
    assert done.returncode == 2
    assert "expected --yes" in " ".join(done.stderr.split())
    assert of_directory(folder) == before


@pytest.mark.parametrize(("answer", "code"), [("n\n", 1), ("y\n", 0)])
def test_on_a_terminal_it_asks(folder: Path, answer: str, code: int) -> None:
    """The plan is shown first, and only a yes changes anything."""
    victim = an_aggregate(folder)
    broken = victim.read_bytes().replace(b'"total_errors":', b'"total_errors":7')
    victim.write_bytes(broken)
    ours, theirs = pty.openpty()
    words = ("verify", str(folder), "--window-by", "name", "--repair")
    with subprocess.Popen(
        [sys.executable, "-m", "asyncagg", *words],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        os.close(theirs)
        os.write(ours, answer.encode())
        output, asked = process.communicate(timeout=100)
    os.close(ours)
    assert process.returncode == code, output
    assert victim.stem in output
    assert "Repair this?" in asked
    assert (victim.read_bytes() == broken) == (code == 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--yes"], "--yes without --repair"),
        (["--since", "noon"], "--since 'noon': expected a time"),
        (
            ["--since", "2025-10-22", "--until", "2025-10-21"],
            "expected a time before until",
        ),
    ],
)
def test_wrong_usage_is_one_sentence(words: list[str], message: str) -> None:
    """Wrong usage exits with 2, without a traceback."""
    done = asyncagg("verify", ".", *words)
    assert done.returncode == 2, done.stderr
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_the_help_shows_examples() -> None:
    """The help has examples and describes --repair."""
    done = asyncagg("verify", "--help")
    assert "Examples" in done.stdout
    assert "--repair" in done.stdout


@pytest.fixture
def bucket() -> Iterator[tuple[Any, str]]:
    """A client of moto's server, and an empty bucket there."""
    client = boto3.client("s3", endpoint_url=moto_endpoint())
    name = f"verify-{uuid4().hex}"
    client.create_bucket(Bucket=name)
    yield client, name
    client.close()


def test_on_moto(bucket: tuple[Any, str]) -> None:
    """A bucket is clean after a run; a stray file and a changed sum are found, the sum repaired."""
    client, name = bucket
    place = (f"s3://{name}", "--endpoint-url", moto_endpoint(), "--conditional-writes", "off")
    common = (*place, "--window-by", "name", "--json")
    assert asyncagg("sample", *place, "--files", "20").returncode == 0
    assert asyncagg("run", *common).returncode == 0
    done = asyncagg("verify", *common)
    assert done.returncode == 0, done.stdout + done.stderr
    assert report_of(done)["counts"]["files"] == 20

    (key,) = [
        each["Key"]
        for each in client.list_objects_v2(Bucket=name, Prefix="aggregates/2")["Contents"]
    ]
    body = client.get_object(Bucket=name, Key=key)["Body"].read()
    client.put_object(Bucket=name, Key=key, Body=body.replace(b'"p50":', b'"p50":1'))
    client.put_object(Bucket=name, Key="archive/stray.json", Body=b"{}")
    done = asyncagg("verify", *common, "--repair", "--yes")
    assert done.returncode == 1
    report = report_of(done)
    assert set(report["findings"]) == {"different", "archived_but_counted_nowhere"}
    assert report["repair"]["rewritten"] == [key.removeprefix("aggregates/")[:-5]]
    assert report["repair"]["after"]["findings"] == {}
    assert set(report_of(asyncagg("verify", *common))["findings"]) == {
        "archived_but_counted_nowhere"
    }
