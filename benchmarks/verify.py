"""What verification costs: of the same files archived one by one, and in packs.

    python benchmarks/verify.py

The start-up is measured on a store with few files, and subtracted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from harness import BUCKET, HERE, Measured, Server, keep, machine, markdown, measure, server
from throughput import END, START_FILES, WINDOW

FORMS = ("files", "packs")
COLUMNS = ("archive", "files", "requests", "CPU µs a file", "wall µs a file", "peak RSS")


def verified(store: Server, files: int, form: str) -> tuple[Measured, int]:
    """Archive run files, and verify them; return the measurement and the requests."""
    store.control("reset")
    store.fill(files, [WINDOW])
    settings = {**store.settings(), "ASYNCAGG_ARCHIVE_FORMAT": form}
    job = measure([sys.executable, str(HERE / "job.py"), END, "7200", "99"], env=settings)
    assert job.answer["archived_files"] == files, job.answer
    before = sum(store.control("audit")["counts"].values())
    command = [sys.executable, "-m", "asyncagg", "verify", f"s3://{BUCKET}", "--json"]
    done = measure(command, env=settings)
    assert done.code == 0, done.stderr
    assert done.answer["counts"]["files"] == files, done.answer
    return done, sum(store.control("audit")["counts"].values()) - before


def measured(store: Server, files: int, form: str) -> dict[str, Any]:
    """Return what the verification of one archive costs."""
    start, _ = verified(store, START_FILES, form)
    done, requests = verified(store, files, form)
    more = files - START_FILES
    return {
        "archive": form,
        "files": files,
        "requests": requests,
        "cpu_us": round((done.cpu_seconds - start.cpu_seconds) / more * 1e6, 1),
        "wall_us": round((done.wall_seconds - start.wall_seconds) / more * 1e6, 1),
        "peak_mb": round(done.peak_bytes / 2**20),
    }


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as a Markdown table, with the ratios of packs to files."""
    rows = [
        [
            each["archive"],
            f"{each['files']:,}",
            f"{each['requests']:,}",
            f"{each['cpu_us']:,.0f}",
            f"{each['wall_us']:,.0f}",
            f"{each['peak_mb']} MB",
        ]
        for each in results
    ]
    single, packed = results
    ratios = [f"{packed[name] / single[name]:.4f}" for name in ("requests", "cpu_us", "wall_us")]
    return markdown(COLUMNS, [*rows, ["packs / files", "", *ratios, ""]])


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--files", type=int, default=100_000)
    args = parser.parse_args()
    with server() as store:
        results = [measured(store, args.files, form) for form in FORMS]
    keep("verify", {"machine": machine(), "results": results})
    print(table(results))


if __name__ == "__main__":
    main()
