"""How the zip is built: what is locked, what is left out, and that builds are reproducible."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import lambda_zip
import pytest

NOT_IN_THE_ZIP = {"typer", "python-json-logger"}
"""Needed by the command line only."""


def name_of(requirement: str) -> str:
    """Return the name in a requirement such as ``anyio>=4.8; python_version > "3"``."""
    return requirement.partition(";")[0].partition(">")[0].partition("=")[0].strip()


def wanted() -> set[str]:
    """Return the requirements that are locked for the zip."""
    lines = (lambda_zip.HERE / "requirements.in").read_text().splitlines()
    return {line for line in lines if not line.startswith("#")}


def test_what_is_locked_is_what_the_package_depends_on() -> None:
    """It has the dependencies of pyproject.toml for the Lambda, but not the command line's."""
    project = tomllib.loads((lambda_zip.ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["speed"], *extras["lambda"]]
    plain = {each.partition(";")[0] for each in asked if not each.startswith("asyncagg[")}
    assert wanted() == {each for each in plain if name_of(each) not in NOT_IN_THE_ZIP}


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-runtime.txt"])
def test_every_locked_requirement_has_hashes(name: str) -> None:
    """Each has one version and the hashes of its files; no package index is named."""
    text = (lambda_zip.HERE / name).read_text()
    lines = [line for line in text.splitlines() if line and line[0] not in "# "]
    assert all("==" in line and line.endswith("\\") for line in lines)
    assert text.count("--hash=sha256:") >= len(lines)
    assert "index" not in text
    if name == "requirements.txt":
        assert {name_of(each) for each in wanted()} <= {name_of(line) for line in lines}


def write(folder: Path, *names: str) -> None:
    """Create files."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def test_what_the_lambda_never_loads_is_left_out(tmp_path: Path) -> None:
    """Other services, the command line and C sources are left out; licences and S3 stay."""
    kept = [
        "asyncagg/handler.py",
        "botocore/data/_retry.json",
        "botocore/data/s3/2006-03-01/service-2.json.gz",
        "botocore-1.dist-info/LICENSE.txt",
        "yarl-1.dist-info/licenses/LICENSE",
        "yarl/_quoting_c.so",
    ]
    dropped = [
        "asyncagg/backfill/cluster.py",
        "asyncagg/cli/commands.py",
        "asyncagg/report/page/app.js",
        "bin/jp.py",
        "botocore/data/ec2/2016-11-15/service-2.json.gz",
        "botocore/data/s3/2006-03-01/examples-1.json",
        "yarl-1.dist-info/RECORD",
        "yarl/__pycache__/x.pyc",
        "yarl/_quoting_c.pyx",
    ]
    write(tmp_path, *kept, *dropped)
    lambda_zip.strip(tmp_path)
    left = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(left) == sorted(kept)


def test_every_module_that_is_left_out_exists() -> None:
    """A module that was renamed must not get into the zip unnoticed."""
    patterns = [each for each in lambda_zip.UNUSED if each.startswith("asyncagg/")]
    assert not [each for each in patterns if not (lambda_zip.ROOT / each).exists()]


def test_the_models_keep_all_but_prose(tmp_path: Path) -> None:
    """Only documentation is removed; a member whose name is documentation stays."""
    model = {"shapes": {"A": {"documentation": "<p>long", "members": {"documentation": {"n": 1}}}}}
    path = tmp_path / "s3" / "2006-03-01" / "service-2.json.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(json.dumps(model).encode()))
    services: dict[str, Any] = {"ec2": {}, "s3": {"endpoints": {}}}
    (tmp_path / "endpoints.json").write_text(json.dumps({"partitions": [{"services": services}]}))
    lambda_zip.slim(tmp_path)
    model["shapes"]["A"]["documentation"] = ""
    assert json.loads(gzip.decompress(path.read_bytes())) == model
    endpoints = json.loads((tmp_path / "endpoints.json").read_text())
    assert endpoints == {"partitions": [{"services": {"s3": {"endpoints": {}}}}]}


def test_the_same_files_make_the_same_zip(tmp_path: Path) -> None:
    """Times and the order on disk do not matter; every file is readable for all."""
    for folder, names in (("one", ("a.py", "b/c.py")), ("two", ("b/c.py", "a.py"))):
        write(tmp_path / folder, *names)
    os.utime(tmp_path / "two" / "a.py", (0, 0))
    for folder in ("one", "two"):
        lambda_zip.pack(tmp_path / folder, tmp_path / f"{folder}.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert archive.namelist() == ["a.py", "b/c.py"]
        assert {info.external_attr >> 16 for info in archive.infolist()} == {0o644}


BUILD = """
import hashlib, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import lambda_zip
folder = Path(sys.argv[2])
lambda_zip.slim(folder / "data")
lambda_zip.pack(folder, folder.with_suffix(".zip"))
print(hashlib.sha256(folder.with_suffix(".zip").read_bytes()).hexdigest())
"""


def test_every_python_makes_the_same_bytes(tmp_path: Path) -> None:
    """The models of botocore and the zip do not depend on the Python that builds them."""
    found: dict[str, str] = {}
    for minor in (11, 12, 13, 14):
        python = lambda_zip.find_python(f"3.{minor}")
        if python is None:
            continue
        data = tmp_path / str(minor) / "data"
        model = data / "s3" / "2006-03-01" / "service-2.json.gz"
        model.parent.mkdir(parents=True)
        model.write_bytes(gzip.compress(json.dumps({"shapes": list(range(9999))}).encode()))
        (data / "endpoints.json").write_text('{"partitions": []}')
        words = [python, "-c", BUILD, str(lambda_zip.HERE), str(data.parent)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        found[python] = done.stdout
    assert len(set(found.values())) == 1, found


def test_a_zip_without_bytecode_is_loud(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Without the Lambda's Python, the build says so, first and last; with it, nothing."""
    built = lambda_zip.Built("arm64", tmp_path / "zip", "digest", 1, 2, None)
    monkeypatch.setattr(lambda_zip, "build", lambda *_: built)
    monkeypatch.setattr(sys, "argv", ["lambda_zip.py", "arm64", "--out", str(tmp_path)])
    for python, warnings in ((None, 2), (sys.executable, 0)):
        monkeypatch.setattr(lambda_zip, "find_python", lambda _, found=python: found)
        lambda_zip.main()
        assert capsys.readouterr().err.count("NO BYTECODE") == warnings


def test_an_interpreter_is_found_by_its_version() -> None:
    """The running one is found by its own version; an unknown version gives None."""
    assert lambda_zip.find_python(f"{sys.version_info[0]}.{sys.version_info[1]}") == sys.executable
    assert lambda_zip.find_python("2.9") is None
