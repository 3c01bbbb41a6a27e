"""CPU per file and peak memory against the number of files: both should be constant.

    python benchmarks/scaling.py                         # 1 k to 1 M files (an hour or so)
    python benchmarks/scaling.py --sizes 1000 10000      # some of them
    python benchmarks/scaling.py --plot                  # also docs/images/scaling.png

Each size is measured twice: in windows of at most 100,000 files, and in one window. Start-up is not
included: CPU is counted from the start of an invocation whose client is already open.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

from harness import (
    BUCKET,
    HERE,
    MIB,
    Server,
    archive_format,
    archived_content,
    keep,
    lost,
    machine,
    markdown,
    measure,
    named,
    server,
)

SIZES = (1_000, 10_000, 100_000, 1_000_000)
WINDOW_FILES = 100_000
ENOUGH = 30_000  # small runs are repeated until they reach this number of files
FIRST = datetime(2025, 10, 21, 13, 57, tzinfo=UTC)
PRICES = {  # USD a request, as in docs/explanation/scaling.md
    **dict.fromkeys(("GetObject", "HeadObject"), 0.0004 / 1000),
    **dict.fromkeys(
        (
            *("PutObject", "CopyObject", "ListObjectsV2"),
            *("CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"),
        ),
        0.005 / 1000,
    ),
}
PLOT = HERE.parent / "docs" / "images" / "scaling.png"
SECONDS = 4 * 3600.0


def once(store: Server, files: int, windows: int, form: str) -> dict[str, float]:
    """Settle this number of files, and check the results."""
    store.control("reset")
    moments = [FIRST + timedelta(minutes=5 * each) for each in range(windows)]
    totals = store.fill(files, moments)
    before = store.control("audit")
    done = measure(
        [sys.executable, str(HERE / "warm.py"), "warm", str(SECONDS)],
        env=store.settings() | {"ASYNCAGG_LOG_LEVEL": "warning", "ASYNCAGG_ARCHIVE_FORMAT": form},
        timeout=SECONDS,
    )
    assert done.answer is not None, done.stderr
    audit = store.control("audit")
    sent = Counter(audit["counts"])
    sent.subtract(before["counts"])
    assert done.answer["processed_files"] == files
    assert done.answer["total_opportunities"] == totals["total_opportunities"]
    content = archived_content(store, audit, moments)
    assert content == before["buckets"][BUCKET]["runs/"]["content"]
    assert not lost(audit, form), lost(audit, form)
    return {
        "requests": sum(sent.values()),
        "price": sum(sent[name] * price for name, price in PRICES.items()) * 1e6 / files,
        "cpu_us": done.answer["cpu_seconds"] / files * 1e6,
        "wall_us": done.answer["wall_seconds"] / files * 1e6,
        "peak_mb": done.answer["peak_bytes"] / MIB,
    }


def run(files: int, windows: int, repeat: int, form: str) -> dict[str, Any]:
    """Measure one size."""
    with server() as store:
        runs = [once(store, files, windows, form) for _ in range(max(repeat, ENOUGH // files))]
    found = {name: round(median(each[name] for each in runs), 2) for name in runs[0]}
    return {"files": files, "windows": windows, "runs": len(runs), **found}


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as a Markdown table."""
    columns = ["files", "windows", "CPU µs a file", "wall µs a file", "peak RSS", "runs"]
    counted = all("requests" in each for each in results)  # older results have no such number
    rows = []
    for each in results:
        row = [
            f"{each['files']:,}",
            str(each["windows"]),
            f"{each['cpu_us']:.0f}",
            f"{each['wall_us']:.0f}",
            f"{each['peak_mb']:.0f} MB",
            str(each["runs"]),
        ]
        price = [f"{each['requests']:,.0f}", f"{each['price']:.2f}"] if counted else []
        rows.append([*row, *price])
    return markdown([*columns, *(["requests", "USD a million files"] if counted else [])], rows)


def plot(results: Sequence[Mapping[str, Any]], to: Path) -> None:
    """Draw CPU per file and peak memory against the number of files."""
    import matplotlib as mpl  # noqa: PLC0415 - only the plot needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    split = [each for each in results if each["files"] <= each["windows"] * WINDOW_FILES]
    whole = [each for each in results if each["windows"] == 1]
    for label, line, style in (
        (f"windows of at most {WINDOW_FILES:,}", split, "o-"),
        ("all in one window", whole, "s--"),
    ):
        files = [each["files"] for each in line]
        left.plot(files, [each["cpu_us"] for each in line], style, label=label)
        right.plot(files, [each["peak_mb"] for each in line], style, label=label)
    for axes, title in ((left, "CPU µs a file"), (right, "peak RSS, MB")):
        axes.set(xscale="log", xlabel="files", title=title)
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, alpha=0.3)
    left.legend(loc="lower left")
    figure.tight_layout()
    to.parent.mkdir(exist_ok=True)
    figure.savefig(to, dpi=120)


def main() -> None:
    """Measure the sizes of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument(
        "--repeat", type=int, default=3, help="take the median of at least this number of runs"
    )
    parser.add_argument("--plot", action="store_true", help="draw docs/images/scaling.png")
    archive_format(parser)
    args = parser.parse_args()
    results = []
    for files in args.sizes:
        for windows in sorted({1, -(-files // WINDOW_FILES)}):
            results.append(run(files, windows, args.repeat, args.archive_format))
            print(table(results[-1:]).splitlines()[-1], flush=True)
    keep(named("scaling", args.archive_format), {"machine": machine(), "results": results})
    print("\n" + table(results))
    if args.plot:
        plot(results, PLOT)


if __name__ == "__main__":
    main()
