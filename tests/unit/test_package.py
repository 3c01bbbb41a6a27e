"""What importing the package gives and loads."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from importlib import metadata

import pytest

import asyncagg

MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(asyncagg.__path__, "asyncagg.")
    if not any(part.startswith("_") for part in info.name.split("."))
)

NOT_ON_LAMBDA = (
    "typer",
    "rich",
    "click",
    "moto",
    "dask",
    "distributed",
    "matplotlib",
    "pyarrow",
    "asyncagg.backfill",
    "asyncagg.cli",
    "asyncagg.doctor",
    "asyncagg.export",
    "asyncagg.report",
    "asyncagg.verify",
    "asyncagg.watch",
    "pytest",
)


PUBLIC_AS_A_WHOLE = ("asyncagg.errors",)
"""Modules that the reference of the API shows with all their names."""


@pytest.mark.parametrize("name", MODULES)
def test_only_what_is_public_is_listed_as_public(name: str) -> None:
    """A module has a docstring. Packages that export names, and public modules, have `__all__`."""
    module = importlib.import_module(name)
    assert module.__doc__
    public = getattr(module, "__all__", None)
    if not hasattr(module, "__path__"):
        assert (public is not None) == (name in PUBLIC_AS_A_WHOLE)
    for each in public or ():
        assert hasattr(module, each), f"{name}.{each}"
    assert isinstance(public or (), tuple)
    assert list(public or ()) == sorted(public or (), key=lambda each: (not each.isupper(), each))


def test_the_handler_imports_only_what_a_lambda_needs() -> None:
    """The handler loads no command line, moto, plotting or cluster library."""
    script = "import sys, asyncagg.handler; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    unwanted = [name for name in NOT_ON_LAMBDA if name in loaded]
    assert "asyncagg.job.pipeline" in loaded
    assert not unwanted


def test_the_core_does_not_import_s3() -> None:
    """The AWS client is imported only where a bucket is opened."""
    script = "import sys, asyncagg; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert not {"aioboto3", "botocore", "aiohttp"} & set(done.stdout.split())


def test_the_package_is_typed_and_has_its_schema() -> None:
    """`py.typed` and the JSON Schema are installed, and no tests."""
    files = {str(file) for file in metadata.files("asyncagg") or ()}
    installed = importlib.resources.files("asyncagg")
    assert installed.joinpath("py.typed").is_file()
    assert installed.joinpath("aggregate", "aggregate.schema.json").is_file()
    assert not any(name.startswith("tests/") for name in files)
