"""The command line: what it does, prints and returns."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from testkit.command import asyncagg, installed, sampled

from asyncagg.cli import main
from asyncagg.settings import all_settings


def in_process(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run the command line in this process; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["asyncagg", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_run_settles_a_directory_and_reports_it(tmp_path: Path) -> None:
    """The installed command counts and archives the files of a directory; its report says so."""
    sampled(tmp_path, "--files", "60", "--windows", "2")
    done = installed("run", str(tmp_path), "--window-by", "name", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["total"]["counted"] == report["total"]["archived"] == 60
    assert [window["revision"] for window in report["windows"]] == [1, 1]
    assert len(list((tmp_path / "aggregates").glob("*Z.json"))) == 2
    assert not list((tmp_path / "runs").glob("*.json"))
    log = [json.loads(line) for line in done.stderr.splitlines()]
    assert {line["message"] for line in log} == {"window", "run"}
    (correlation,) = {line["correlation_id"] for line in log}
    assert correlation


def test_run_again_does_nothing_more(tmp_path: Path) -> None:
    """A second run counts nothing and does not change the aggregates."""
    sampled(tmp_path, "--files", "10")
    asyncagg("run", str(tmp_path), "--window-by", "name")
    before = {path: path.read_bytes() for path in (tmp_path / "aggregates").iterdir()}
    done = asyncagg("run", str(tmp_path), "--window-by", "name", "--json")
    assert json.loads(done.stdout)["total"]["counted"] == 0
    assert {path: path.read_bytes() for path in (tmp_path / "aggregates").iterdir()} == before


def test_quarantined_files_give_exit_code_3(tmp_path: Path) -> None:
    """Quarantined files give exit code 3, which a script can check."""
    totals = sampled(tmp_path, "--files", "50", "--bad-fraction", "0.2")
    done = asyncagg("run", str(tmp_path), "--window-by", "name")
    assert totals["bad"] > 0
    assert done.returncode == 3
    assert len(list((tmp_path / "quarantine").glob("*.json"))) == totals["bad"]


def test_dry_run_changes_nothing(tmp_path: Path) -> None:
    """--dry-run reports the waiting files and moves none."""
    sampled(tmp_path, "--files", "10")
    before = sorted(tmp_path.rglob("*"))
    done = asyncagg("run", str(tmp_path), "--window-by", "name", "--dry-run", "--json")
    assert json.loads(done.stdout)["total"]["left"] == 10
    assert sorted(tmp_path.rglob("*")) == before


def test_files_of_a_window_that_has_not_ended_wait(tmp_path: Path) -> None:
    """--at, not the clock, decides which windows have ended."""
    sampled(tmp_path, "--files", "10")
    done = asyncagg(
        "run", str(tmp_path), "--window-by", "name", "--at", "2020-01-01T00:00:00Z", "--json"
    )
    report = json.loads(done.stdout)
    assert (report["waiting"], report["total"]["counted"]) == (10, 0)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["run"], 2, "store '': expected s3://bucket"),
        (["run", "/no/such/folder"], 1, "/no/such/folder"),
        (["run", "ftp://x"], 2, "store 'ftp://x': expected s3://bucket"),
        (["run", "s3://"], 2, "store 's3://': expected s3://bucket"),
        (["run", "s3:/bucket"], 2, "store 's3:/bucket': expected s3://bucket"),
        (["run", ".", "--at", "noon"], 2, "--at 'noon': expected a time"),
        (["run", ".", "--window-minutes", "7"], 2, "window_minutes 7: expected"),
        (["run", ".", "--window-minutes", "five"], 2, "window_minutes 'five': expected"),
        (["run", ".", "--concurrency", "0"], 2, "concurrency '0': expected"),
        (["run", ".", "--window-by", "luck"], 2, "window_by 'luck': expected last_modified"),
        (["run", ".", "--archive-prefix", "runs/"], 2, "runs_prefix 'runs/' lies in"),
        (["run", ".", "--runs-prefix", "runs"], 2, "runs_prefix 'runs': expected"),
        (["run", "s3://x", "--endpoint-url", "nonsense"], 2, "endpoint_url 'nonsense'"),
        (["sample", "x", "--bad-fraction", "2"], 2, "bad-fraction"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_an_error_is_one_sentence_with_the_value_and_what_is_accepted(
    words: list[str], code: int, message: str
) -> None:
    """Wrong usage exits with 2, a wrong configuration with 1; no traceback."""
    done = asyncagg(*words)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_usage_changes_nothing(tmp_path: Path) -> None:
    """A run with a wrong setting moves no file."""
    sampled(tmp_path, "--files", "5")
    before = sorted(tmp_path.rglob("*"))
    asyncagg("run", str(tmp_path), "--quarantine-prefix", "archive/")
    assert sorted(tmp_path.rglob("*")) == before


def test_the_environment_sets_what_options_do_not(tmp_path: Path) -> None:
    """ASYNCAGG_* variables are settings; an option overrides them."""
    sampled(tmp_path, "--files", "5")
    environment = {"ASYNCAGG_STORE": str(tmp_path), "ASYNCAGG_WINDOW_BY": "name"}
    done = asyncagg("run", "--json", "--dry-run", **environment)
    assert json.loads(done.stdout)["total"]["left"] == 5
    done = asyncagg("run", "--json", "--dry-run", "--window-by", "last_modified", **environment)
    assert json.loads(done.stdout)["waiting"] == 5


def test_the_help_shows_every_setting_and_an_example() -> None:
    """Each setting is an option of run, made from its one declaration."""
    done = asyncagg("run", "--help")
    assert "Examples" in done.stdout
    for setting in all_settings():
        if setting.name != "store":
            assert setting.option in done.stdout


def test_sample_writes_the_same_files_for_the_same_seed(tmp_path: Path) -> None:
    """The contents depend on the seed; only the windows depend on the clock."""
    for name in ("one", "two"):
        sampled(tmp_path / name, "--files", "20", "--seed", "7")
    one, two = (
        [path.read_bytes().partition(b'"total_opportunities"')[2] for path in sorted(tree)]
        for tree in ((tmp_path / name).rglob("*.json") for name in ("one", "two"))
    )
    assert sorted(one) == sorted(two)


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["sample", "file"], 1, "store 'file': File exists; expected a directory that this user"),
        (["sample", "s3://b", "--endpoint-url", "127.0.0.1:1"], 2, "http://127.0.0.1:5000 (--end"),
        (
            ["quarantine", "show", ".", "quarantine/x"],
            1,
            "`asyncagg quarantine list` shows the keys",
        ),
        (["report", ".", "--since", "2025-10-21"], 1, "--since and --until around windows that"),
    ],
)
def test_the_error_for_a_newcomers_mistake_says_what_to_do(  # noqa: PLR0917 - as pytest calls it
    words: list[str],
    code: int,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A name that is taken, a URL without a scheme, a wrong key, an empty interval."""
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    assert in_process(monkeypatch, *words) == code
    error = capsys.readouterr().err
    assert sentence in error
    assert "unexpected" not in error


@pytest.mark.parametrize("words", [("run", ".", "--json"), ("--help",)])
def test_output_that_finds_no_space_is_one_sentence(
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A full disk below the output is an error of that place, without a traceback."""
    monkeypatch.chdir(tmp_path)
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert in_process(monkeypatch, *words) == 1
    error = capsys.readouterr().err
    assert "No space left on device: free some space for the output" in error
    assert "Traceback" not in error


def test_one_of_a_kind_is_in_the_singular_and_nothing_is_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What people read is a sentence for one file, too."""
    store = str(tmp_path)
    printed = []
    for words in (
        ("sample", store, "--files", "1"),
        ("run", store),
        ("verify", store),
        ("archive", "pack", store, "--dry-run"),
        ("archive", "pack", store),
        ("rollup", store, "--period", "hour"),
        ("rollup", store, "--period", "hour"),
    ):
        assert in_process(monkeypatch, *words) == 0
        printed.append(capsys.readouterr().out.splitlines())
    sample, _, verify, planned, packed, first, again = printed
    assert sample[0].startswith("wrote 1 run file, 0 of them bad, ")
    assert verify[0] == "1 aggregate with 1 counted file; 1 archived, 0 quarantined, 0 in the inbox"
    assert planned[0].startswith("1 window: 1 file (")
    assert planned[0].endswith(" to pack, 0 to keep")
    assert packed[0].endswith(" into 1 pack, 1 single copy deleted, 0 kept")
    assert first[0] == "1 rollup written, 0 unchanged"
    assert again == ["0 rollups written, 1 unchanged"]
