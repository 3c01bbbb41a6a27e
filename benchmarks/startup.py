"""What a start costs: import the Lambda's entry point and open its bucket, with and without boto.

    python benchmarks/startup.py

Nothing is requested. The median of several fresh processes is reported, in turns, so that other
load on the machine affects both.
"""

from __future__ import annotations

import argparse
import sys
from statistics import median

from harness import MIB, Measured, keep, machine, markdown, measure

CODE = """
import asyncio, sys
import asyncagg.handler
from asyncagg.settings import settings_from
from asyncagg.store.opening import open_store

async def main():
    async with open_store(settings_from({"store": "s3://bucket", "data_plane": sys.argv[1]})):
        print("{}")

asyncio.run(main())
"""
PLANES = {"lean": "environment variables alone", "boto": "boto's session and client"}


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeat", type=int, default=15, help="processes of each kind")
    args = parser.parse_args()
    found: dict[str, list[Measured]] = {plane: [] for plane in PLANES}
    for _ in range(args.repeat):
        for plane, runs in found.items():
            done = measure([sys.executable, "-c", CODE, plane], env={}, sample_seconds=0.005)
            assert done.code == 0, done.stderr
            runs.append(done)
    results = [
        {
            "start": title,
            "cpu_seconds": round(median(each.cpu_seconds for each in found[plane]), 3),
            "peak_mb": round(median(each.peak_bytes for each in found[plane]) / MIB, 1),
        }
        for plane, title in PLANES.items()
    ]
    keep("startup", {"machine": machine(), "repeat": args.repeat, "results": results})
    rows = [
        (str(each["start"]), str(each["cpu_seconds"]), f"{each['peak_mb']} MB") for each in results
    ]
    print(markdown(("start with", "CPU seconds", "peak RSS"), rows))


if __name__ == "__main__":
    main()
