"""The real handler with the limits of a 128 MB Lambda: how many files does one invocation settle?

    python benchmarks/lambda_box.py                  # 300 seconds, twice: warm and cold
    python benchmarks/lambda_box.py --seconds 60     # shorter; the table shows an extrapolation
    python benchmarks/lambda_box.py --windows 20 --files 20000 --started warm floor

Cgroups limit the process to 128 MB and 0.0723 CPU (128/1769 of one). Each request to the store
takes 20 ms longer. The invocation has a deadline of 300 seconds, and is killed then. Its inbox
holds more files than it can settle.

*Warm*: an earlier invocation has left an open client. *Cold*: the package is already imported,
because Lambda does this at full speed before the invocation's time starts, but the client is not
open.

*Floor*: the least that a Python client needs for the same job, see `floor.py`.

A file is settled if it is counted *and* archived. A second invocation without limits settles the
rest, and the sums of both are checked against the totals of the server.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from harness import (
    BUCKET,
    HERE,
    MIB,
    Measured,
    Server,
    archive_format,
    archived_content,
    box,
    in_flight,
    keep,
    lost,
    machine,
    markdown,
    measure,
    named,
    server,
    writable,
)

MEMORY = 128 * MIB
CPUS = 128 / 1769
LATENCY = 0.020
INVOCATION = 300.0
STARTED = ("warm", "cold", "floor")
FIRST = datetime(2025, 10, 21, 13, 57, tzinfo=UTC)
COLUMNS = (
    "started",
    "windows",
    "seconds",
    "files settled",
    "CPU seconds",
    "CPU µs a file",
    "peak RSS",
    "exact",
    "killed",
)
SUMS = {  # the server's names, and the handler's
    "total_opportunities": "total_opportunities",
    "matches_found": "total_matches",
    "no_matches": "total_no_matches",
    "errors": "total_errors",
}


def invoke(store: Server, started: str, seconds: float, settings: Mapping[str, str]) -> Measured:
    """Invoke the handler once with the limits."""
    with box(memory_bytes=MEMORY) as memory, box(cpus=CPUS) as cpu:
        return measure(
            [sys.executable, str(HERE / "warm.py"), started, str(seconds), *map(str, cpu)],
            env={**store.settings(), **settings},
            joins=memory,
            sample_seconds=1,
        )


def finish(store: Server) -> Measured:
    """Settle the rest without limits."""
    return measure(
        [sys.executable, str(HERE / "warm.py"), "cold", "3600"],
        env=store.settings() | {"ASYNCAGG_LOG_LEVEL": "warning"},
    )


def run(started: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure one invocation, and check that nothing was lost or counted twice."""
    files, windows, seconds, form = args.files, args.windows, args.seconds, args.archive_format
    settings = {**in_flight(args.in_flight), "ASYNCAGG_ARCHIVE_FORMAT": form}
    with server() as store:
        moments = [FIRST + timedelta(minutes=5 * each) for each in range(windows)]
        totals = store.fill(files, moments)
        inbox = store.control("audit")["buckets"][BUCKET]["runs/"]
        store.control("faults", latency=LATENCY)
        done = invoke(store, started, seconds, settings)
        if done.answer is None:
            print(done.stderr, file=sys.stderr)
            return {"started": started, "killed": True, "code": done.code}
        left = store.control("audit")["buckets"][BUCKET].get("runs/", {"keys": 0})["keys"]
        archived = files - left  # a file leaves the inbox last
        store.control("faults", latency=0)
        rest = finish(store)
        audit = store.control("audit")
        content = audit["buckets"][BUCKET]["archive/"]["content"]
        if started != "floor":
            content = archived_content(store, audit, moments)
    assert rest.answer is not None, rest.stderr
    answer = done.answer
    both = {name: answer[field] + rest.answer[field] for name, field in SUMS.items()}
    after = audit["buckets"][BUCKET]
    exact = (
        both == {name: totals[name] for name in SUMS}
        and answer["processed_files"] + rest.answer["processed_files"] == files
        and content == inbox["content"]
        and "runs/" not in after
        and not lost(audit, form)
    )
    settled = min(archived, answer["processed_files"])
    return {
        "started": started,
        "killed": False,
        "exact": exact,
        "windows": windows,
        "inbox": files,
        "seconds": seconds,
        "counted": answer["processed_files"],
        "archived": archived,
        "settled": settled,
        "dry": not answer["left_files"] and bool(answer["complete"]),
        "in_300_seconds": settled if seconds == INVOCATION else None,
        "extrapolated": None if seconds == INVOCATION else round(settled * INVOCATION / seconds),
        "cpu_seconds": round(answer["cpu_seconds"], 2),
        "cpu_us_a_file": round(answer["cpu_seconds"] / max(1, settled) * 1e6, 1),
        "wall_seconds": round(answer["wall_seconds"], 1),
        "peak_mb": round(answer["peak_bytes"] / MIB, 1),
    }


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table."""
    rows = []
    for each in results:
        if each["killed"]:
            rows.append([each["started"], *[""] * 6, "", f"**yes** ({each['code']})"])
            continue
        settled = f"{each['settled']:,}"
        if each["dry"]:
            settled += " (all there were)"
        if each["extrapolated"]:
            settled += f" (would be {each['extrapolated']:,} in 300 s: extrapolated)"
        rows.append(
            [
                each["started"],
                str(each["windows"]),
                f"{each['wall_seconds']:g}",
                settled,
                str(each["cpu_seconds"]),
                f"{each['cpu_us_a_file']:.0f}",
                f"{each['peak_mb']:.0f} MB",
                "yes" if each["exact"] else "**no**",
                "no",
            ]
        )
    return markdown(COLUMNS, rows)


def main() -> None:
    """Measure the cases of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=INVOCATION, help="of one invocation")
    parser.add_argument("--files", type=int, default=200_000, help="in the inbox")
    parser.add_argument("--windows", type=int, default=1, help="over which they are spread")
    parser.add_argument("--started", nargs="*", choices=STARTED, default=STARTED[:2])
    parser.add_argument("--in-flight", type=int, default=32, help="requests in flight")
    archive_format(parser)
    args = parser.parse_args()
    if not (writable("memory") and writable("cpu")):
        print("cgroups (version 1) are not writable here: nothing is measured without limits")
        return
    results = [run(each, args) for each in args.started]
    if args.seconds == INVOCATION:
        case = "lambda_box" if args.windows == 1 else f"lambda_box-{args.windows}"
        keep(named(case, args.archive_format), {"machine": machine(), "results": results})
    print(table(results))


if __name__ == "__main__":
    main()
