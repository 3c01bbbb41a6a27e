"""Backfill of large windows on a Dask cluster of this machine: one window, and a day of 288.

    python benchmarks/large_window.py --kill               # 1 M files (half an hour or so)
    python benchmarks/large_window.py --kill --go-on       # the cases that are not stored yet
    python benchmarks/large_window.py --files 50000        # quicker
    python benchmarks/large_window.py --only day           # without the single large window
    python benchmarks/large_window.py --plot               # docs/images/large-window.png too

Each result is stored as soon as it is measured: ``--go-on`` continues an interrupted run.

The S3 server is in memory, in one process with its own core, and needs more CPU per file than a
worker. Two workers at full speed would compete for the other core and wait for the server. So
cgroups limit each worker to a fixed share of a core (``--share``), small enough that two workers
and the server run without competing. The table shows the server's use of its core: above 90 %, the
server was the bottleneck. Where cgroups (version 1) are not writable, workers run on all cores
without a limit, and the table says so; ``--share 0`` does the same.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from harness import (
    BUCKET,
    HERE,
    MIB,
    RESULTS,
    TESTKIT,
    Server,
    box,
    cores,
    environment,
    keep,
    lost,
    machine,
    markdown,
    server,
    writable,
)

FIRST = datetime(2025, 10, 21, 0, 2, tzinfo=UTC)
WINDOWS = {"one": 1, "day": 288}
LIMIT = 128 * MIB
SATURATED = 0.9
PLOT = HERE.parent / "docs" / "images" / "large-window.png"
COLUMNS = (
    "windows",
    "files",
    "workers",
    "share of a core each",
    "files/s",
    "speed-up",
    "worker CPU µs a file",
    "server CPU µs a file",
    "server busy",
    "peak RSS of a worker",
)


# ------------------------------------------------------------------------------ child


async def backfill_in_child(url: str, workers: int, boxes: list[list[str]], kill: float) -> None:
    """Start a cluster, limit its workers, run the backfill, and print its times and memory."""
    import psutil  # noqa: PLC0415 - a dependency of Dask, for the child only

    from asyncagg.backfill import BackfillProgress, backfill, interval_of  # noqa: PLC0415 - likewise
    from asyncagg.backfill.cluster import start_cluster  # noqa: PLC0415
    from asyncagg.settings import Settings  # noqa: PLC0415

    settings = Settings(store=f"s3://{BUCKET}", endpoint_url=url)
    interval = interval_of(settings, FIRST - timedelta(minutes=2), FIRST + timedelta(days=1))
    async with start_cluster(settings, workers) as engine:
        pids = await _pids(engine)
        for pid, joins in zip(pids, boxes, strict=True):
            enter(pid, joins)
        before = {pid: cpu_seconds(pid) for pid in pids}
        victims = pids[:1] if kill else []

        def kill_worker(status: BackfillProgress) -> None:
            if victims and status.files_done >= kill * status.files > 0:
                os.kill(victims.pop(), signal.SIGKILL)

        async def limit_next_worker() -> None:
            known = set(psutil.Process().children())
            while not (found := set(psutil.Process().children()) - known):  # noqa: ASYNC110 - another process starts it
                await asyncio.sleep(0.05)
            enter(found.pop().pid, boxes[0])

        limiting = asyncio.create_task(limit_next_worker()) if kill else None
        started = time.perf_counter()
        report = await backfill(engine, settings, interval, progress=kill_worker)
        wall = time.perf_counter() - started
        if limiting is not None:
            await limiting
        alive = [pid for pid in pids if Path(f"/proc/{pid}").exists()]  # noqa: ASYNC240
        answer = {
            "counted": report.total.counted,
            "archived": report.total.archived,
            "exit_code": report.exit_code,
            "wall_seconds": wall,
            "worker_cpu_seconds": sum(cpu_seconds(pid) - before[pid] for pid in alive),
            "peak_bytes": max(peak_bytes(pid) for pid in await _pids(engine)),
            "client_peak_bytes": peak_bytes(os.getpid()),
        }
    print(json.dumps(answer))


def enter(pid: int, joins: list[str]) -> None:
    """Move a process into cgroups."""
    for procs in joins:
        Path(procs).write_text(str(pid))


async def _pids(engine: Any) -> list[int]:
    found = await engine._client.run(os.getpid)  # noqa: SLF001 - a measurement only
    return list(found.values())


def cpu_seconds(pid: int) -> float:
    """Return the CPU-seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_bytes(pid: int) -> int:
    """Return the peak of a process's resident set in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


# ------------------------------------------------------------------------------ the parent


def run(name: str, files: int, workers: int, share: float, kill: float = 0.0) -> dict[str, Any]:
    """Measure one case."""
    moments = [FIRST + timedelta(minutes=5 * number) for number in range(WINDOWS[name])]
    with server() as store, ExitStack() as stack:
        expected = store.fill(files, moments)
        boxes = [
            [str(procs) for procs in stack.enter_context(box(cpus=share or None))]
            for _ in range(workers)
        ]
        boxed = all(boxes)
        before = cpu_seconds(store.pid)
        answer = _child(store, workers, boxes, kill, free=not boxed)
        server_cpu = cpu_seconds(store.pid) - before
        audit = store.control("audit")
        check(answer, expected, audit, killed=bool(kill))
        digest = aggregates_digest(store)
    wall = answer["wall_seconds"]
    return {
        "name": name,
        "windows": WINDOWS[name],
        "files": files,
        "workers": workers,
        "share": share if boxed else 0.0,
        "killed": bool(kill),
        "wall_seconds": round(wall, 1),
        "files_per_second": round(files / wall),
        "worker_cpu_us": round(answer["worker_cpu_seconds"] / files * 1e6, 1),
        "server_cpu_us": round(server_cpu / files * 1e6, 1),
        "server_busy": round(server_cpu / wall, 3),
        "peak_mb": round(answer["peak_bytes"] / MIB, 1),
        "client_peak_mb": round(answer["client_peak_bytes"] / MIB, 1),
        "digest": digest,
    }


def _child(
    store: Server, workers: int, boxes: list[list[str]], kill: float, *, free: bool
) -> dict[str, Any]:
    words = [store.url, str(workers), json.dumps(boxes), str(kill)]

    def pin() -> None:
        if not free:
            os.sched_setaffinity(0, cores()[1])

    done = subprocess.run(
        [sys.executable, __file__, "--child", *words],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        preexec_fn=pin,  # the workers inherit the core
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def check(
    answer: dict[str, Any], expected: dict[str, Any], audit: dict[str, Any], *, killed: bool
) -> None:
    """Check the results against the state of the server."""
    places = audit["buckets"][BUCKET]
    assert answer["exit_code"] == 0, answer
    # If a worker dies, the results that it had not yet reported are missing from the report.
    assert killed or answer["counted"] == answer["archived"] == expected["files"], answer
    assert places["archive/"]["keys"] == expected["files"], places
    assert "runs/" not in places, places
    assert "work/" not in places, places
    gone = [each for each in lost(audit) if not each["key"].startswith("work/")]
    assert not gone, gone


def aggregates_digest(store: Server) -> str:
    """Return a digest of all aggregates without their history."""
    sys.path.append(str(TESTKIT))
    from testkit.promises import Seen, final_bytes  # noqa: PLC0415 - importable only now

    digest = hashlib.sha256()
    for number in range(max(WINDOWS.values())):
        end = FIRST + timedelta(minutes=5 * number + 3)
        key = f"aggregates/{end:%Y%m%dt%H%MZ}.json"
        try:
            data = store.get(key)
        except OSError:
            break
        digest.update(final_bytes({key: Seen(data, "", FIRST)})[key])
    return digest.hexdigest()


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table."""
    alone = {
        (each["name"], each["files"], each["share"]): each["files_per_second"]
        for each in results
        if each["workers"] == 1
    }
    rows = []
    for each in results:
        base = alone.get((each["name"], each["files"], each["share"]))
        faster = f"{each['files_per_second'] / base:.2f}" if base else ""
        busy = f"{each['server_busy']:.0%}"
        rows.append(
            [
                f"{each['windows']}, a worker killed" if each["killed"] else str(each["windows"]),
                f"{each['files']:,}",
                str(each["workers"]),
                f"{each['share']:.2f}" if each["share"] else "all there is",
                f"{each['files_per_second']:,}",
                faster,
                "" if each["killed"] else f"{each['worker_cpu_us']:,.0f}",
                f"{each['server_cpu_us']:,.0f}",
                f"**{busy}**" if each["server_busy"] > SATURATED else busy,
                f"{each['peak_mb']} MB",
            ]
        )
    return markdown(COLUMNS, rows)


def stored(files: int, share: float) -> list[dict[str, Any]]:
    """Return the results of an earlier, interrupted run."""
    path = RESULTS / "large-window.json"
    found = json.loads(path.read_text())["results"] if path.exists() else []
    return [each for each in found if (each["files"], each["share"]) == (files, share)]


def plot(results: list[dict[str, Any]]) -> None:
    """Draw files per second and memory, one bar per case."""
    import matplotlib as mpl  # noqa: PLC0415 - only the plot needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    labels = [
        f"{each['windows']} windows\n{each['workers']} workers"
        + ("\none killed" if each["killed"] else "")
        for each in results
    ]
    figure, (speed, memory) = plt.subplots(1, 2, figsize=(10, 4))
    speed.bar(labels, [each["files_per_second"] for each in results])
    speed.set(ylabel="files/s", title=f"{results[0]['files']:,} files")
    memory.bar(labels, [each["peak_mb"] for each in results], color="tab:green")
    memory.axhline(LIMIT / MIB, color="tab:red", linestyle="--", label="128 MB")
    memory.set(ylabel="MB", title="peak RSS of a worker")
    memory.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(PLOT, dpi=120)


def main() -> None:
    """Measure the cases of the command line."""
    if sys.argv[1:2] == ["--child"]:
        url, workers, boxes, kill = sys.argv[2:]
        asyncio.run(backfill_in_child(url, int(workers), json.loads(boxes), float(kill)))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--only", nargs="*", choices=list(WINDOWS), default=list(WINDOWS))
    parser.add_argument("--workers", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--share", type=float, default=0.3, help="of a core for each worker")
    parser.add_argument(
        "--kill", action="store_true", help="add a case with 2 workers of which one is killed"
    )
    parser.add_argument(
        "--go-on", action="store_true", help="leave out cases that are stored already"
    )
    parser.add_argument("--plot", action="store_true", help="draw docs/images/large-window.png")
    args = parser.parse_args()
    if args.share and not writable("cpu"):
        print("cgroups are not writable here: workers share all cores with the server")
    results = stored(args.files, args.share) if args.go_on else []
    for name in args.only:
        cases = [(workers, 0.0) for workers in args.workers]
        for count, killed in [*cases, (2, 0.5)] if args.kill else cases:
            case = (name, count, bool(killed))
            if case in {(each["name"], each["workers"], each["killed"]) for each in results}:
                continue
            results.append(run(name, args.files, count, args.share, killed))
            print(table(results).splitlines()[-1], flush=True)
            keep("large-window", {"machine": machine(), "results": results})
        digests = {each["digest"] for each in results if each["name"] == name}
        assert len(digests) == 1, f"{name}: the aggregates of the cases differ"
    print("\n" + table(results))
    if args.plot:
        plot(results)


if __name__ == "__main__":
    main()
