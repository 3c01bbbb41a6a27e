"""A child process of the benchmarks: invokes the real Lambda handler until the inbox is empty.

It prints one line of JSON: the counts, and the CPU time and memory that the process measured.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any


class Context:
    """The part of Lambda's context that the handler reads: the remaining time."""

    aws_request_id = "benchmark"

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds

    def get_remaining_time_in_millis(self) -> int:
        """Return the remaining time, as Lambda does."""
        return int((self._ends - time.monotonic()) * 1000)


def cpu() -> float:
    """Return the CPU-seconds of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak() -> int:
    """Return the peak of the resident set in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    """Invoke the handler; the arguments are the event's time, seconds, and most invocations."""
    time_of_event, seconds, invocations = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    started = time.perf_counter()
    from asyncagg.handler import lambda_handler  # noqa: PLC0415 - the import is measured

    imported = (cpu(), peak())
    total: dict[str, Any] = {}
    done = 0
    for _ in range(invocations):
        answer = lambda_handler({"time": time_of_event}, Context(seconds))
        results = json.loads(answer["body"])["results"]
        done += 1
        for name, value in results.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                total[name] = total.get(name, 0) + value
        total["status"] = answer["statusCode"]
        if results["complete"] and not results["left_files"]:
            break
    print(
        json.dumps(
            {
                **total,
                "invocations": done,
                "import_cpu_seconds": imported[0],
                "import_peak_bytes": imported[1],
                "cpu_seconds": cpu(),
                "peak_bytes": peak(),
                "wall_seconds": time.perf_counter() - started,
            }
        )
    )
    sys.stdout.flush()
    os._exit(0)  # as on Lambda, the event loop stays open


if __name__ == "__main__":
    main()
