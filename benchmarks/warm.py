"""A child process of the benchmarks: one invocation of the handler, measured from its start.

It can also do the same job with the floor, which knows no invocations.

    python benchmarks/warm.py STARTED SECONDS [PROCS...]

Before the measured invocation it does what Lambda does at full speed: it imports the handler, and,
if STARTED is "warm", runs an earlier invocation, which leaves an open client. Then it joins the
cgroups whose ``cgroup.procs`` files are given, and the invocation begins. It is killed after
SECONDS, as on Lambda. It prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import floor
from job import Context, cpu, peak

from asyncagg.handler import lambda_handler

NOTHING_ENDED = "2000-01-01T00:00:00Z"
ALL_ENDED = "2100-01-01T00:00:00Z"
TOTALS = ("opportunities", "matches", "no_matches", "errors")


def invoke(seconds: float) -> dict[str, Any]:
    """Invoke the handler once, and return its results."""
    answer = lambda_handler({"time": ALL_ENDED}, Context(seconds))
    return dict(json.loads(answer["body"])["results"])


def do_floor(_: float) -> dict[str, Any]:
    """Settle the whole inbox with the floor, and return its results as the handler names them."""
    store = os.environ["ASYNCAGG_STORE"].removeprefix("s3://")
    files, *sums = floor.run(os.environ["ASYNCAGG_ENDPOINT_URL"], store)
    totals = dict(zip((f"total_{name}" for name in TOTALS), sums, strict=True))
    return {"processed_files": files, "left_files": 0, "complete": True, **totals}


def main() -> None:
    """Invoke the handler; print its results, and its CPU time and memory."""
    started, seconds, joins = sys.argv[1], float(sys.argv[2]), sys.argv[3:]
    if started == "warm":
        lambda_handler({"time": NOTHING_ENDED}, Context(1))
    work = do_floor if started == "floor" else invoke
    for procs in joins:
        Path(procs).write_text(str(os.getpid()))
    start_cpu, began = cpu(), time.perf_counter()
    signal.setitimer(
        signal.ITIMER_REAL, seconds
    )  # the default action of the signal ends the process
    results = work(seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(
        json.dumps(
            {
                **results,
                "start_cpu_seconds": start_cpu,
                "cpu_seconds": cpu() - start_cpu,
                "wall_seconds": time.perf_counter() - began,
                "peak_bytes": peak(),
            }
        )
    )
    sys.stdout.flush()
    os._exit(0)  # as on Lambda, the event loop stays open


if __name__ == "__main__":
    main()
