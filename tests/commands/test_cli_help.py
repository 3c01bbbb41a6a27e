"""What all commands have in common: help, errors, pipes, completion, signals."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from cli_reference import TARGET, reference
from testkit.command import COMMAND, asyncagg, installed, sampled
from testkit.s3server import DropError, Request, S3Server, ThreadedS3Server
from testkit.scenario import BUCKET

from asyncagg.cli import _exit_code, base
from asyncagg.cli.application import application, commands

COMMANDS = dict(commands(application()))
NAMES = [pytest.param(names, id=" ".join(names)) for names in COMMANDS]


def piped(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script whose first word is the installed command."""
    environ = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    return subprocess.run(
        ["/bin/bash", "-o", "pipefail", "-c", script.replace("asyncagg", f"'{COMMAND}'", 1)],
        capture_output=True,
        text=True,
        check=False,
        env=environ | environment,
        timeout=100,
    )


# ------------------------------------------------------------------------------ help


@pytest.mark.parametrize("names", NAMES)
def test_every_help_has_examples_and_exit_codes(names: tuple[str, ...]) -> None:
    """Each help has examples, on a line each, and the exit codes."""
    done = asyncagg(*names, "--help", COLUMNS="80")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    start = lines.index("  Examples:") + 1
    examples = [line.strip() for line in lines[start : lines.index("", start)]]
    assert examples
    assert all(each.startswith(f"asyncagg {' '.join(names)}") for each in examples)
    assert "Exit codes: 0 " in done.stdout
    assert "\b" not in done.stdout


@pytest.mark.parametrize("names", NAMES)
def test_every_example_is_accepted_by_its_own_command(
    names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The options of each example exist."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fixed.json").touch()
    command = COMMANDS[names]
    for line in re.findall(r"^ +asyncagg (.+)$", command.help, re.MULTILINE):
        words = shlex.split(line)[len(names) :]
        command.make_context("asyncagg", words, resilient_parsing=False)


def test_the_reference_is_current() -> None:
    """docs/reference/cli.md is what `tox -e cli-reference` writes."""
    if not TARGET.parents[1].is_dir():
        pytest.skip("the tests of an installed wheel come without docs")
    assert TARGET.read_text(encoding="utf-8") == reference(), "run: tox -e cli-reference"


@pytest.mark.parametrize("words", [["--help"], ["quarantine", "--help"]], ids=" ".join)
def test_no_summary_of_a_command_is_cut_off(words: list[str]) -> None:
    """The summary of a command fits into one line of a narrow terminal."""
    listed = asyncagg(*words, COLUMNS="80").stdout.partition("Commands:\n")[2]
    assert listed.splitlines()
    assert all(line.endswith(".") and not line.endswith("..") for line in listed.splitlines())


def test_the_settings_come_after_a_commands_own_options() -> None:
    """A command's own options come before the settings."""
    text = asyncagg("run", "--help", COLUMNS="100").stdout
    own, _, settings = text.partition("\nSettings (")
    assert "--dry-run" in own
    assert "--window-by" not in own.partition("\nOptions:")[2]
    assert "[last_modified or name; default: name]" in " ".join(settings.split())


def test_the_version_is_that_of_the_package() -> None:
    """--version needs no command."""
    done = asyncagg("--version")
    assert (done.returncode, done.stdout) == (0, f"asyncagg {metadata.version('asyncagg')}\n")


# ------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--debug", "run", "/no/such/folder"], 1, "ConfigurationError"),
        (["run", "/no/such/folder", "--debug"], 1, "ConfigurationError"),
        (["run", ".", "--debug", "--at", "noon"], 2, "UsageError"),
    ],
)
def test_debug_shows_where_an_error_comes_from(words: list[str], code: int, message: str) -> None:
    """--debug works before and after the command, and keeps the message and the exit code."""
    done = asyncagg(*words)
    assert done.returncode == code
    assert "Traceback" in done.stderr
    assert message in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["run", "/no/such/folder", "--json"], 1, "/no/such/folder"),
        (["verify", "--json", "ftp://x"], 2, "store 'ftp://x'"),
        (["run", "s3://b", "--endpoint-url", "nonsense", "--json"], 2, "endpoint_url"),
        (["run", ".", "--no-such-option", "--json"], 2, "No such option: --no-such-option"),
        (["run", ".", "--json", "--at"], 2, "Option '--at' requires an argument"),
        (["run", ".", "another", "--json"], 2, "unexpected extra argument"),
        (["rollup", ".", "--json"], 2, "Missing option"),
        (["rollup", ".", "--period", "week", "--json"], 2, "'week' is not one of"),
        (["sample", ".", "--files", "0", "--json"], 2, "'--files'"),
        (["no-such-command", "--json"], 2, "No such command 'no-such-command'"),
    ],
)
def test_a_failure_is_a_json_document_too(
    words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --json a program reads the error and the exit code from standard output."""
    assert _exit_code(words, debug=False) == code
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert document.keys() == {"error", "exit_code"}
    assert document["exit_code"] == code
    assert message in document["error"]
    (line,) = map(json.loads, printed.err.splitlines())
    assert (line["level"], line["message"]) == ("ERROR", "failed")
    assert line["reason"] == document["error"]


def test_an_unknown_variable_is_reported(tmp_path: Path) -> None:
    """A misspelled variable is not silently ignored."""
    done = asyncagg("run", str(tmp_path), ASYNCAGG_WINDOWBY="name")
    assert done.returncode == 0
    assert "warning: ASYNCAGG_WINDOWBY is not a setting and is ignored" in done.stderr


def test_for_machines_every_line_before_the_work_is_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable that is ignored, and a setting that is not accepted, are lines of the log."""
    monkeypatch.setenv("ASYNCAGG_WINDOWBY", "name")
    assert _exit_code(["run", ".", "--window-minutes", "7", "--json"], debug=True) == 2
    ignored, failed = map(json.loads, capsys.readouterr().err.splitlines())
    assert (ignored["message"], ignored["variable"]) == ("not a setting", "ASYNCAGG_WINDOWBY")
    assert (failed["message"], failed["error"]) == ("failed", "UsageError")
    assert "window_minutes 7" in failed["reason"]
    assert "Traceback" in failed["exc_info"]


@pytest.mark.parametrize(
    ("words", "environment", "code", "message"),
    [
        ([], {"AWS_PROFILE": "nobodys"}, 1, "AWS_PROFILE: The config profile (nobodys) could not"),
        (["--endpoint-url", "127.0.0.1:9"], {}, 2, "expected a URL such as http://127.0.0.1:5000"),
    ],
)
def test_a_wrong_aws_configuration_is_one_sentence(
    words: list[str], environment: dict[str, str], code: int, message: str
) -> None:
    """The error names what to change."""
    done = asyncagg("run", "s3://bucket", *words, **environment)
    assert done.returncode == code
    assert message in done.stderr
    assert "unexpected" not in done.stderr


def test_an_empty_result_is_a_sentence(tmp_path: Path) -> None:
    """An empty result is neither an empty table nor silence."""
    assert asyncagg("run", str(tmp_path)).stdout.startswith("no window that ended by ")
    assert asyncagg("quarantine", "list", str(tmp_path)).stdout == "no file is quarantined\n"
    assert asyncagg("quarantine", "list", str(tmp_path), "--json").stdout == ""


def test_after_two_dashes_debug_is_an_argument() -> None:
    """A folder may have that name."""
    done = asyncagg("run", "--", "--debug")
    assert "store '--debug': No such file" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("more", "traceback"), [([], False), (["--debug"], True)])
def test_an_unexpected_error_is_a_sentence_that_names_debug(
    more: list[str],
    traceback: bool,  # noqa: FBT001 - a parameter of the test
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An unexpected error shows no traceback without --debug."""

    def fail(*_: object, **__: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(base, "configure_logs", fail)
    done = asyncagg("run", ".", *more)
    assert done.returncode == 1
    assert "error: unexpected KeyError: 'a bug'" in done.stderr
    assert ("Traceback" in done.stderr, "--debug shows where" in done.stderr) == (
        traceback,
        not traceback,
    )


@pytest.mark.parametrize("names", NAMES)
def test_an_option_that_does_not_exist_is_wrong_usage(names: tuple[str, ...]) -> None:
    """An unknown option exits with 2 and one sentence after the usage."""
    done = asyncagg(*names, "--no-such-option")
    assert done.returncode == 2
    assert "Error: No such option: --no-such-option" in done.stderr
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------------------------ pipes


def test_a_pipe_gets_no_colours_and_whole_values(tmp_path: Path) -> None:
    """Output in a pipe has no escapes and cuts no long key."""
    prefix = "a-prefix-that-is-far-longer-than-any-terminal-is-wide/" * 3
    sampled(tmp_path, "--files", "20")
    asyncagg("run", str(tmp_path), "--rollup-prefix", prefix)
    done = piped(
        f"asyncagg rollup '{tmp_path}' --period hour --rollup-prefix '{prefix}' | cat",
        TERM="xterm-256color",
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert prefix in done.stdout


def test_no_color_is_honoured_on_a_terminal(tmp_path: Path) -> None:
    """NO_COLOR turns colours off, even if they are forced."""
    done = piped(f"asyncagg run '{tmp_path}'", FORCE_COLOR="1", NO_COLOR="1", TERM="xterm-256color")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", done.stdout)


@pytest.mark.parametrize(
    "words", ["demo --on directory --files 10", "demo --on directory --files 10 --json", "--help"]
)
def test_a_closed_pipe_is_not_reported(words: str) -> None:
    """`asyncagg … | head` ends quietly."""
    done = piped(f"asyncagg {words} | true")
    assert done.stderr == ""


def test_closed_streams_are_no_trouble(tmp_path: Path) -> None:
    """The command works with closed standard streams, as some daemons start it."""
    sampled(tmp_path, "--files", "5")
    done = piped(f"asyncagg run '{tmp_path}' --window-by name <&- >&- 2>&-")
    assert done.returncode == 0
    assert len(list((tmp_path / "archive").glob("*.json"))) == 5


def test_brackets_in_a_value_are_text(tmp_path: Path) -> None:
    """Brackets in a name are shown, not read as markup."""
    done = asyncagg("run", str(tmp_path / "[red]no[/red][/]"))
    assert "[red]no[/red][/]" in done.stderr


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    """Control characters in a name are not sent to the terminal."""
    prefix = "rollups\x1b]0;owned\x07\x9b31m/"
    sampled(tmp_path, "--files", "5")
    asyncagg("run", str(tmp_path), "--rollup-prefix", prefix)
    words = ["--period", "hour", "--rollup-prefix", prefix]
    done = installed("rollup", str(tmp_path), *words, FORCE_COLOR="1", TERM="xterm-256color")
    assert done.returncode == 0, done.stderr
    assert "]0;owned" in done.stdout
    assert "\x1b]" not in done.stdout
    assert "\x9b" not in done.stdout


# ------------------------------------------------------------------------------ completion


def complete(words: str, number: int) -> list[str]:
    """Return the completions in bash for the word with this number."""
    environment = {"COMP_WORDS": words, "COMP_CWORD": str(number)}
    return asyncagg(_ASYNCAGG_COMPLETE="complete_bash", **environment).stdout.split()


def test_the_shell_completes_commands_and_options() -> None:
    """Commands, options and choices are completed."""
    assert complete("asyncagg rol", 1) == ["rollup"]
    assert complete("asyncagg run --dry", 2) == ["--dry-run"]
    assert complete("asyncagg rollup --period m", 3) == ["month"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_completion_can_be_shown(shell: str) -> None:
    """The completion script can be shown for each shell."""
    environment = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    assert "_ASYNCAGG_COMPLETE" in asyncagg("--show-completion", shell, **environment).stdout


# ------------------------------------------------------------------------------ signals


def test_ctrl_c_while_the_command_starts_is_no_traceback(tmp_path: Path) -> None:
    """Nothing of weight is imported before the command line handles Ctrl-C."""
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", COMMAND, "run", str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        modules = []
        for line in process.stderr:
            modules.append(line.rpartition("|")[2].strip())
            if "asyncagg.cli" in modules[:-1]:  # it runs, and has imported something since
                process.send_signal(signal.SIGINT)
                break
        _, errors = process.communicate(timeout=60)
    ours = [name for name in modules if name.startswith("asyncagg")]
    assert ours == ["asyncagg", "asyncagg.errors", "asyncagg.cli"]
    assert process.returncode == 130
    assert "Traceback" not in errors


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_gives_the_code_that_shells_know(number: signal.Signals, code: int) -> None:
    """Ctrl-C gives 130 and SIGTERM 143, and one line says that nothing is lost."""
    with ThreadedS3Server(S3Server([BUCKET])) as threaded:
        threaded.server.put(BUCKET, "runs/a.json", b"{}")
        with subprocess.Popen(
            [COMMAND, "run", f"s3://{BUCKET}", "--endpoint-url", threaded.url],
            stderr=subprocess.PIPE,
            text=True,
        ) as process:

            def interrupt(_: Request) -> None:
                process.send_signal(number)
                raise DropError(reset=True)  # so that it cannot end before the signal comes

            threaded.server.on_request = interrupt
            _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert errors.splitlines()[0] == (
        f"stopping on {number.name}: nothing is lost, run it again to continue"
    )
    assert "Traceback" not in errors


def test_every_json_document_is_one_line(tmp_path: Path) -> None:
    """A JSON document is one line."""
    written: dict[str, Any] = sampled(tmp_path, "--files", "5")
    done = asyncagg("run", str(tmp_path), "--window-by", "name", "--json")
    assert written["files"] == json.loads(done.stdout)["total"]["counted"]
    assert done.stdout.count("\n") == 1
