"""What the benchmarks share: the S3 server in a process of its own, boxes, and measured children.

Times are CPU-seconds (user + system) of the child alone; the server runs on another core.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
SERVER = HERE.parent / "tests" / "s3server.py"
BUCKET = "bench"
CREDENTIALS = ("AKIDEXAMPLE", "secretkeyexample")
CGROUPS = Path("/sys/fs/cgroup")
MIB = 1024 * 1024


def environment() -> dict[str, str]:
    """Return the environment of a child: this one, without any AWS or asyncagg settings."""
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
    """Return the cores for the server and for what is measured: two, if there are two."""
    usable = sorted(os.sched_getaffinity(0))
    return {usable[0]}, {usable[-1]}


@dataclass
class Server:
    """The S3 server process, and its control over HTTP."""

    url: str

    def control(self, name: str, **parameters: Any) -> Any:
        """Ask the server something about itself; see `tests/s3server.py`."""
        body = json.dumps(parameters).encode() if name != "audit" else None
        request = urllib.request.Request(f"{self.url}/_control/{name}", data=body)  # noqa: S310 - loopback
        with urllib.request.urlopen(request, timeout=3600) as answer:  # noqa: S310 - loopback
            return json.loads(answer.read() or b"null")

    def fill(self, count: int, windows: Sequence[datetime], size: int = 2500) -> dict[str, Any]:
        """Put run files into the inbox, spread over windows; return their exact totals."""
        stamps = [moment.isoformat() for moment in windows]
        return dict(
            self.control(
                "fill", bucket=BUCKET, prefix="runs/", count=count, windows=stamps, size=size
            )
        )


@contextmanager
def server(*words: str) -> Iterator[Server]:
    """Run the S3 server on a core of its own, on a free port of this machine."""
    command = [sys.executable, str(SERVER), "--port", "0", "--bucket", BUCKET, "--log-size", "0"]
    with subprocess.Popen(
        [*command, *words], stdout=subprocess.PIPE, text=True, env=environment()
    ) as process:
        os.sched_setaffinity(process.pid, cores()[0])
        try:
            assert process.stdout is not None
            yield Server(process.stdout.readline().split()[-1])
        finally:
            process.terminate()


def writable(controller: str) -> bool:
    """Say whether limits of a cgroup (version 1) controller can be set on this machine."""
    return os.access(CGROUPS / controller / "cgroup.procs", os.W_OK)


@contextmanager
def box(*, memory_bytes: int | None = None, cpus: float | None = None) -> Iterator[list[Path]]:
    """Make a box with a hard limit of memory and CPU; yields what a process joins it by.

    Nothing is yielded where cgroups are not writable: whoever asks has to say so.
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
            # Lambda hands out CPU in short slices; 20 ms is of their order.
            (folder / "cpu.cfs_period_us").write_text("20000")
            (folder / "cpu.cfs_quota_us").write_text(str(max(1000, int(20000 * cpus))))
        yield [folder / "cgroup.procs" for folder in made]
    finally:
        for folder in made:
            folder.rmdir()


@dataclass
class Measured:
    """What a child did and cost.

    Attributes:
        answer: What it printed, from JSON; None if it died.
        code: Its exit code, negative for a signal.
        cpu_seconds: User and system time, start-up included.
        wall_seconds: From start to end.
        peak_bytes: Its largest resident set.
        samples: Resident set over time, (seconds, bytes).
        stderr: What it complained of.
    """

    answer: Any
    code: int
    cpu_seconds: float
    wall_seconds: float
    peak_bytes: int
    samples: list[tuple[float, int]] = field(default_factory=list)
    stderr: str = ""


def measure(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    joins: Sequence[Path] = (),
    sample_seconds: float = 0.05,
    timeout: float = 3600,
) -> Measured:
    """Run a child on its own core, in a box or not, and measure it."""

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
        preexec_fn=enter,  # noqa: PLW1509 - the box has to be entered before anything is loaded
    ) as process:
        samples: list[tuple[float, int]] = []
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
        peak_bytes=max((size for _, size in samples), default=0),
        samples=samples,
        stderr=err[-2000:],
    )


def _watch(
    process: subprocess.Popen[str],
    started: float,
    every: float,
    samples: list[tuple[float, int]],
) -> None:
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        try:
            text = status.read_text()
        except (FileNotFoundError, ProcessLookupError):
            return
        sizes = {line.split(":")[0]: line.split()[1] for line in text.splitlines() if "kB" in line}
        if "VmHWM" in sizes:  # the kernel's own high-water mark: no peak falls between samples
            samples.append((time.perf_counter() - started, int(sizes["VmHWM"]) * 1024))
        time.sleep(every)


def machine() -> dict[str, Any]:
    """Return what a number has to be read with: machine, versions, date, command."""
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
        "versions": {name: metadata.version(name) for name in packages},
    }


def keep(name: str, result: Mapping[str, Any]) -> None:
    """Store a result as JSON beside the benchmarks."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
