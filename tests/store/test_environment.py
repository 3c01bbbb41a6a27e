"""Start without boto: what environment variables say is what boto would find."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import botocore.session
import pytest
from anyio import to_thread

from asyncagg.errors import ConfigurationError
from asyncagg.settings import settings_from
from asyncagg.store.opening import open_store
from asyncagg.store.s3.boto import open_control
from asyncagg.store.s3.environment import Environment, read_environment
from asyncagg.store.s3.sigv4 import Credentials

REGIONS = botocore.session.Session().get_available_regions("s3", "aws")
URLS = [
    "http://127.0.0.1:9000",
    "http://127.0.0.1:9000/",
    "https://s3.example.org",
    "https://S3.Example.org:8443",
    "http://[::1]:9000",
    "http://localhost",
]
UNKNOWN = [
    {"AWS_PROFILE": "other"},
    {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"},
    {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"},
    {"AWS_USE_FIPS_ENDPOINT": "true"},
    {"AWS_USE_DUALSTACK_ENDPOINT": "true"},
    {"AWS_A_VARIABLE_OF_NEXT_YEAR": "1"},
    {"HTTPS_PROXY": "http://proxy:1"},
    {"all_proxy": "http://proxy:1"},
    {"AWS_ACCESS_KEY_ID": ""},
    {"AWS_SECRET_ACCESS_KEY": ""},
    {"AWS_DEFAULT_REGION": ""},
    {"AWS_DEFAULT_REGION": "cn-north-1"},
    {"AWS_DEFAULT_REGION": "us-gov-west-1"},
    {"AWS_DEFAULT_REGION": "a region"},
]
"""Changes to the environment after which only boto can tell."""


async def read(bucket: str, url: str) -> Environment | None:
    """Read the environment of this process."""
    found = partial(read_environment, os.environ, bucket=bucket, endpoint_url=url)
    return await to_thread.run_sync(found)


@pytest.mark.parametrize("bucket", ["b-1", "a" * 63, "name-abc-s3alias"])
async def test_the_server_is_the_one_that_boto_would_ask(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every region of AWS, and for other servers."""
    for region, url in [*((each, "") for each in REGIONS), *(("eu-west-1", url) for url in URLS)]:
        monkeypatch.setenv("AWS_DEFAULT_REGION", region)
        found = await read(bucket, url)
        async with open_control(endpoint_url=url, connections=1) as control:
            expected = await control.locate(bucket)
            credentials = await control.credentials(None)
        assert found is not None
        assert found.target == expected
        assert await found.credentials(None) == credentials


@pytest.mark.parametrize("bucket", ["a.b", "Upper", "under_score", "zone--x-s3", "no"])
def test_buckets_with_special_names_are_left_to_boto(bucket: str) -> None:
    """Their host, or their place in the path, is not the usual one."""
    assert read_environment(os.environ, bucket=bucket, endpoint_url="") is None


@pytest.mark.parametrize("url", ["http://host/path", "http://u:p@host", "host:1", "http://h?q=1"])
def test_other_endpoints_are_left_to_boto(url: str) -> None:
    """An endpoint with more than a host and a port, or that is not valid."""
    assert read_environment(os.environ, bucket="bucket", endpoint_url=url) is None


@pytest.mark.parametrize("change", UNKNOWN, ids=str)
def test_what_is_not_known_is_left_to_boto(change: dict[str, str]) -> None:
    """A variable that may change the credentials or the server, or whose meaning is not known."""
    assert read_environment(dict(os.environ), bucket="bucket", endpoint_url="") is not None
    variables = {**os.environ, **change}
    assert read_environment(variables, bucket="bucket", endpoint_url="") is None


@pytest.mark.parametrize("place", ["variable", "home", "named by a variable"])
@pytest.mark.parametrize("name", ["config", "credentials"])
def test_files_of_boto_are_left_to_boto(
    name: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may name another region, endpoint or profile."""
    variable = {"config": "AWS_CONFIG_FILE", "credentials": "AWS_SHARED_CREDENTIALS_FILE"}[name]
    path = tmp_path / ".aws" / name
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(variable)
    if place != "home":
        monkeypatch.setenv(variable, str(path) if place == "variable" else f"$HOME/.aws/{name}")
    assert read_environment(os.environ, bucket="bucket", endpoint_url="") is not None
    path.parent.mkdir()
    path.touch()
    assert read_environment(os.environ, bucket="bucket", endpoint_url="") is None


async def test_expired_credentials_are_not_used_again() -> None:
    """The variables of a process do not change: only a new one can have others."""
    found = await read("bucket", "")
    assert found is not None
    with pytest.raises(ConfigurationError, match="credentials: expired; expected those"):
        await found.credentials(Credentials("testing", "testing"))


async def test_white_space_around_credentials_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise every signature would be wrong."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing\n")
    with pytest.raises(ConfigurationError, match="AWS_SECRET_ACCESS_KEY has white space"):
        async with open_store(settings_from({"store": "s3://bucket"})):
            pass


def test_a_lambda_does_not_load_boto() -> None:
    """Neither its entry point nor the store that it opens imports boto or aiohttp."""
    code = (
        "import sys, anyio, asyncagg.handler\n"
        "from asyncagg.settings import settings_from\n"
        "from asyncagg.store.opening import open_store\n"
        "async def main():\n"
        "    async with open_store(settings_from({'store': 's3://bucket'})):\n"
        "        print({'aiohttp', 'aiobotocore', 'botocore.session'} & set(sys.modules))\n"
        "anyio.run(main)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout == "set()\n"
