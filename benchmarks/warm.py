"""A child of the benchmarks: one invocation of the handler, measured from its first moment.

    python benchmarks/warm.py STARTED SECONDS [PROCS...]

What Lambda does at full speed and outside of an invocation's time is done before it: importing the
handler, and, where STARTED is "warm", an earlier invocation, which leaves an open client behind.
Then the process joins the boxes whose ``cgroup.procs`` files are given, and the invocation begins.
It is killed when SECONDS are over, as Lambda does it. Prints one line of JSON.
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
    """Invoke the handler; print what it did and what that cost."""
    started, seconds, joins = sys.argv[1], float(sys.argv[2]), sys.argv[3:]
    if started == "warm":
        lambda_handler({"time": NOTHING_ENDED}, Context(1))
    for procs in joins:
        Path(procs).write_text(str(os.getpid()))
    start_cpu, began = cpu(), time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, seconds)  # the signal's default action is to kill
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
    os._exit(0)  # the warm loop is not closed, as in Lambda


if __name__ == "__main__":
    main()
