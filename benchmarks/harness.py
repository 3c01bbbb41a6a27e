"""What the benchmarks share: the S3 server as a process, cgroup limits, and measured children.

Times are CPU-seconds (user and system) of the child alone; the server runs on another core.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import md5
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZipFile

HERE = Path(__file__).parent
RESULTS = HERE / "results"
TESTKIT = HERE.parent / "tests"
"""The folder that holds the test kit, whose S3 server and checks the benchmarks use."""
BUCKET = "bench"
CREDENTIALS = ("AKIDEXAMPLE", "secretkeyexample")
CGROUPS = Path("/sys/fs/cgroup")
MIB = 1024 * 1024


def environment() -> dict[str, str]:
    """Return the environment of a child: this process's, with test credentials and no settings."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "ASYNCAGG_", "SAM_MATCHING_"))
    }
    return kept | {
        "AWS_ACCESS_KEY_ID": CREDENTIALS[0],
        "AWS_SECRET_ACCESS_KEY": CREDENTIALS[1],
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def cores() -> tuple[set[int], set[int]]:
    """Return a core for the server and one for the measured process; they differ if possible."""
    usable = sorted(os.sched_getaffinity(0))
    return {usable[0]}, {usable[-1]}


@dataclass
class Server:
    """The S3 server process, and its control over HTTP.

    Attributes:
        url: The endpoint.
        certificate: The file that a client must trust, if the server uses TLS.
        pid: The process id.
    """

    url: str
    certificate: Path | None = None
    pid: int = 0

    def control(self, name: str, **parameters: Any) -> Any:
        """Send a control request to the server; see `testkit.s3server`."""
        body = json.dumps(parameters).encode() if name != "audit" else None
        return json.loads(self._send(f"_control/{name}", body) or b"null")

    def read(self, key: str) -> Any:
        """Return the content of a JSON object in the bucket."""
        return json.loads(self._send(f"{BUCKET}/{key}", None))

    def get(self, key: str) -> bytes:
        """Return the bytes of an object in the bucket."""
        return self._send(f"{BUCKET}/{key}", None)

    def put(self, key: str, body: bytes | BinaryIO, size: int) -> None:
        """Put an object of a size into the bucket."""
        request = urllib.request.Request(  # noqa: S310 - loopback
            f"{self.url}/{BUCKET}/{key}",
            data=body,
            headers={"Content-Length": str(size)},
            method="PUT",
        )
        with urllib.request.urlopen(request, timeout=600):  # noqa: S310 - loopback
            pass

    def _send(self, path: str, body: bytes | None) -> bytes:
        request = urllib.request.Request(f"{self.url}/{path}", data=body)  # noqa: S310 - loopback
        trusted = ssl.create_default_context(cafile=self.certificate) if self.certificate else None
        with urllib.request.urlopen(request, timeout=3600, context=trusted) as answer:  # noqa: S310
            return bytes(answer.read())

    def settings(self) -> dict[str, str]:
        """Return the environment variables with which asyncagg uses this server."""
        found = {"ASYNCAGG_STORE": f"s3://{BUCKET}", "ASYNCAGG_ENDPOINT_URL": self.url}
        return found | self.trust()

    def trust(self) -> dict[str, str]:
        """Return the environment variables with which an S3 client trusts the server."""
        return {"AWS_CA_BUNDLE": str(self.certificate)} if self.certificate else {}

    def fill(self, count: int, windows: Sequence[datetime], size: int = 2500) -> dict[str, Any]:
        """Put run files into the inbox, spread over windows; return their exact totals."""
        stamps = [moment.isoformat() for moment in windows]
        return dict(
            self.control(
                "fill", bucket=BUCKET, prefix="runs/", count=count, windows=stamps, size=size
            )
        )


@contextmanager
def server(*words: str, tls: Path | None = None) -> Iterator[Server]:
    """Run the S3 server on its own core, on a free port of the loopback interface.

    Args:
        words: Further options of its command line.
        tls: A folder for a new certificate; if given, the server uses TLS.
    """
    certificate = _certificate(tls) if tls else None
    if certificate:
        key = certificate.with_name("key.pem")
        words += ("--tls-cert", str(certificate), "--tls-key", str(key))
    command = [sys.executable, "-m", "testkit.s3server", "--port", "0", "--bucket", BUCKET]
    command += ["--log-size", "0"]
    with subprocess.Popen(
        [*command, *words], stdout=subprocess.PIPE, text=True, env=environment(), cwd=TESTKIT
    ) as process:
        os.sched_setaffinity(process.pid, cores()[0])
        try:
            assert process.stdout is not None
            yield Server(process.stdout.readline().split()[-1], certificate, process.pid)
        finally:
            process.terminate()


def lost(audit: Mapping[str, Any], form: str = "files") -> list[Any]:
    """Return the run files that are lost according to an audit.

    Replaced aggregates and the deleted objects of the guards' probe are not losses. The server does
    not look into packs: see `archived_content`.
    """
    others = ("aggregates/", "runs/") if form == "packs" else ("aggregates/",)
    return [
        each
        for each in audit["lost"]
        if not each["key"].startswith(others) and "/asyncagg-probe-" not in each["key"]
    ]


def archived_content(store: Server, audit: Mapping[str, Any], windows: Iterable[datetime]) -> str:
    """Return the content of all archived files, single or in packs, as an audit states it.

    Args:
        store: The server.
        audit: Its audit.
        windows: A moment in each window that asyncagg has settled.
    """
    content = int(audit["buckets"][BUCKET]["archive/"]["content"], 16)
    content -= _digest(store.get("archive/.asyncagg"))  # the copy of the store's record
    for moment in windows:
        for pack in store.read(aggregate_key(moment)).get("packs", ()):
            data = store.get(pack["key"])
            with ZipFile(BytesIO(data)) as members:
                content += sum(_digest(members.read(name)) for name in members.infolist())
            content -= _digest(data)
    return f"{content % (1 << 128):032x}"


def aggregate_key(moment: datetime) -> str:
    """Return the key of the aggregate of the window of five minutes that has a moment."""
    return f"aggregates/{moment + timedelta(minutes=5 - moment.minute % 5):%Y%m%dt%H%MZ}.json"


def _digest(data: bytes) -> int:
    return int.from_bytes(md5(data, usedforsecurity=False).digest())


def archive_format(parser: ArgumentParser) -> None:
    """Add the option of how asyncagg archives."""
    parser.add_argument("--archive-format", choices=["files", "packs"], default="files")


def in_flight(requests: int) -> dict[str, str]:
    """Return the environment variables that bound the requests in flight, ours and of the peers."""
    return {name: str(requests) for name in ("ASYNCAGG_CONCURRENCY", "IN_FLIGHT")}


def named(result: str, form: str) -> str:
    """Return the name of a result with this form of the archive."""
    return result if form == "files" else f"{result}-{form}"


def _certificate(folder: Path) -> Path:
    """Make a self-signed certificate for 127.0.0.1."""
    made = folder / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    extensions = ("subjectAltName=IP:127.0.0.1", "basicConstraints=critical,CA:FALSE")
    subprocess.run(
        [
            *command.split(),
            *("-subj", "/CN=benchmark", "-keyout", str(folder / "key.pem"), "-out", str(made)),
            *(word for extension in extensions for word in ("-addext", extension)),
        ],
        check=True,
        capture_output=True,
    )
    return made


def writable(controller: str) -> bool:
    """Return whether limits of a cgroup (version 1) controller can be set on this machine."""
    return os.access(CGROUPS / controller / "cgroup.procs", os.W_OK)


@contextmanager
def box(*, memory_bytes: int | None = None, cpus: float | None = None) -> Iterator[list[Path]]:
    """Make cgroups with hard limits of memory and CPU; yield the files for joining them.

    The list is empty where cgroups are not writable: the caller should report this.
    """
    made: list[Path] = []
    try:
        if memory_bytes is not None and writable("memory"):
            folder = CGROUPS / "memory" / f"asyncagg-{os.getpid()}-{time.monotonic_ns()}"
            folder.mkdir()
            made.append(folder)
            (folder / "memory.limit_in_bytes").write_text(str(memory_bytes))
            (folder / "memory.swappiness").write_text("0")
        if cpus is not None and writable("cpu"):
            folder = CGROUPS / "cpu" / f"asyncagg-{os.getpid()}-{time.monotonic_ns()}"
            folder.mkdir()
            made.append(folder)
            # Lambda schedules CPU in short slices, of about 20 ms.
            (folder / "cpu.cfs_period_us").write_text("20000")
            (folder / "cpu.cfs_quota_us").write_text(str(max(1000, int(20000 * cpus))))
        yield [folder / "cgroup.procs" for folder in made]
    finally:
        for folder in made:
            folder.rmdir()


@dataclass
class Measured:
    """The results of a child process.

    Attributes:
        answer: The last line of its output, from JSON; None if there was none.
        code: The exit code, negative for a signal.
        cpu_seconds: User and system time, start-up included.
        wall_seconds: The time from start to end.
        peak_bytes: The largest resident set.
        samples: The resident set over time: (seconds, bytes, largest so far).
        stderr: The end of its standard error.
    """

    answer: Any
    code: int
    cpu_seconds: float
    wall_seconds: float
    peak_bytes: int
    samples: list[tuple[float, int, int]] = field(default_factory=list)
    stderr: str = ""


def measure(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    joins: Sequence[Path] = (),
    sample_seconds: float = 0.05,
    timeout: float = 3600,
) -> Measured:
    """Run a child on its own core, optionally in cgroups, and measure it."""

    def enter() -> None:
        for procs in joins:
            procs.write_text(str(os.getpid()))
        os.sched_setaffinity(0, cores()[1])

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment() | dict(env),
        preexec_fn=enter,  # noqa: PLW1509 - the limits must hold from the start
    ) as process:
        samples: list[tuple[float, int, int]] = []
        watching = threading.Thread(
            target=_watch, args=(process, started, sample_seconds, samples), daemon=True
        )
        watching.start()
        out, err = process.communicate(timeout=timeout)
        watching.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Measured(
        answer=json.loads(out.splitlines()[-1]) if out.strip() else None,
        code=process.returncode,
        cpu_seconds=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        wall_seconds=time.perf_counter() - started,
        peak_bytes=max((largest for _, _, largest in samples), default=0),
        samples=samples,
        stderr=err[-2000:],
    )


def _watch(
    process: subprocess.Popen[str],
    started: float,
    every: float,
    samples: list[tuple[float, int, int]],
) -> None:
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        try:
            text = status.read_text()
        except (FileNotFoundError, ProcessLookupError):
            return
        sizes = {line.split(":")[0]: line.split()[1] for line in text.splitlines() if "kB" in line}
        if "VmHWM" in sizes:  # the kernel's own peak, so that none is missed between samples
            now, largest = int(sizes["VmRSS"]) * 1024, int(sizes["VmHWM"]) * 1024
            samples.append((time.perf_counter() - started, now, largest))
        time.sleep(every)


def machine(*more: str) -> dict[str, Any]:
    """Return the context of a result: machine, versions (also of more packages), date, command."""
    model = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith(("model name", "CPU part"))
    ]
    packages = ("asyncagg", "aioboto3", "aiohttp", "httptools", "uvloop", "orjson", "msgspec")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "python": platform.python_version(),
        "processor": model[0] if model else platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.system() + " " + platform.machine(),
        "versions": {name: metadata.version(name) for name in (*packages, *more)},
    }


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is aligned left, the others right."""
    lines = [columns, ["---", *["--:"] * (len(columns) - 1)], *rows]
    return "\n".join([f"| {' | '.join(cells)} |" for cells in lines])


def keep(name: str, result: Mapping[str, Any]) -> None:
    """Store a result as JSON in the folder of results."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
