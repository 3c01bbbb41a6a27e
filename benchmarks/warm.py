"""A child process of the benchmarks: one invocation of the handler, measured from its start.

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

from job import Context, cpu, peak

from asyncagg.handler import lambda_handler

NOTHING_ENDED = "2000-01-01T00:00:00Z"
ALL_ENDED = "2100-01-01T00:00:00Z"


def main() -> None:
    """Invoke the handler; print its results, and its CPU time and memory."""
    started, seconds, joins = sys.argv[1], float(sys.argv[2]), sys.argv[3:]
    if started == "warm":
        lambda_handler({"time": NOTHING_ENDED}, Context(1))
    for procs in joins:
        Path(procs).write_text(str(os.getpid()))
    start_cpu, began = cpu(), time.perf_counter()
    signal.setitimer(
        signal.ITIMER_REAL, seconds
    )  # the default action of the signal ends the process
    answer = lambda_handler({"time": ALL_ENDED}, Context(seconds))
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(
        json.dumps(
            {
                **json.loads(answer["body"])["results"],
                "status": answer["statusCode"],
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
