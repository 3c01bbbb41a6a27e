"""The export of run summaries to Parquet: rows per second, CPU and memory, beside pyarrow alone.

    python benchmarks/export.py                    # 30 windows of 10,000 files
    python benchmarks/export.py --windows 288      # a day of them, 2.9 M rows (10 min)

The aggregates are in a directory. After the export, DuckDB's sums over it must equal the sums of
the aggregates, to the digit. The same rows are also exported as NDJSON, which pyarrow alone then
converts to Parquet, with the same columns and compression.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
from harness import MIB, keep, machine, markdown, measure

from asyncagg.aggregate.accumulator import Accumulator
from asyncagg.aggregate.rows import RowSpool, counted_row
from asyncagg.aggregate.spool import open_spool
from asyncagg.aggregate.writer import AggregateWriter
from asyncagg.job.context import JobContext
from asyncagg.job.record import ensure_record
from asyncagg.model import Match, RunFile, RunResult, Window
from asyncagg.settings import Settings
from asyncagg.store.directory import DirectoryStore

FIRST = datetime(2025, 10, 21, tzinfo=UTC)
COLUMNS = ("opportunities", "matches", "no_matches", "errors")


async def prepare(folder: Path, windows: int, files: int) -> Accumulator:
    """Write the aggregates of windows of so many files; return their total."""
    store, total = DirectoryStore(folder), Accumulator()
    for number in range(windows):
        window = Window(FIRST + timedelta(minutes=5 * (number + 1)), 5)
        async with open_spool(64 * MIB) as counted, open_spool(0) as quarantined:
            rows, part = RowSpool(counted, quarantined), Accumulator()
            async for file, result in results(window, files):
                part.fold(file.key, file.size, result)
                await rows.append(counted_row(file, result))
            document = AggregateWriter(window, part, 1, "c0ffee", 0, window.end, [rows])
            await store.put(f"aggregates/{window.name}.json", document)
        total.merge(part)
    await ensure_record(JobContext(store, Settings()))
    return total


async def results(window: Window, files: int) -> AsyncIterator[tuple[RunFile, RunResult]]:
    """Yield the files of a window, in order, with their results."""
    chance = random.Random(window.name)
    for number in range(files):
        moment = window.start + timedelta(seconds=300 * number / files)
        key = f"runs/{window.start_name}_DARPA-PS-25-32-{number:06}.json"
        examined, matched = chance.randrange(500), chance.randrange(50)
        result = RunResult(
            run_id=f"run-{chance.getrandbits(64):016x}",
            timestamp=moment.isoformat(),
            opportunities=examined + matched,
            matches=matched,
            no_matches=examined,
            errors=number % 3,
            processing_time=chance.expovariate(0.1),
            top_matches=(Match(chance.random(), 0, b'{"title":"a solicitation"}'),),
        )
        yield RunFile(key, 2500, f"{chance.getrandbits(128):032x}", moment), result


def check(folder: Path, total: Accumulator) -> None:
    """Check that DuckDB's sums over an export are those of the aggregates."""
    import duckdb  # noqa: PLC0415 - only the parent needs it

    sums = ", ".join(f"sum({name})" for name in (*COLUMNS, "processing_time"))
    query = f"SELECT {sums} FROM '{folder}/runs/**/*.parquet'"  # noqa: S608 - own words
    with duckdb.connect() as connection:
        found = connection.sql(query).fetchall()[0]
    assert [*found] == [*(getattr(total, name) for name in COLUMNS), total.seconds], found
    assert isinstance(found[-1], Decimal)


def convert(source: Path, target: Path) -> None:
    """Convert NDJSON to Parquet with pyarrow alone: what an export cannot do without."""
    import pyarrow.parquet as pq  # noqa: PLC0415 - the parent does not need it
    from pyarrow import json as pajson  # noqa: PLC0415

    from asyncagg.export.parquet import arrow_schema  # noqa: PLC0415
    from asyncagg.export.rows import ExportTable  # noqa: PLC0415

    options = pajson.ParseOptions(explicit_schema=arrow_schema(ExportTable.RUNS))
    target.mkdir()
    for path in sorted(source.rglob("*.ndjson")):
        table = pajson.read_json(path, parse_options=options)
        pq.write_table(table, target / f"{path.stem}.parquet", compression="zstd")
    print("{}")


def contenders(folder: Path) -> dict[str, list[str]]:
    """Return the commands to measure, by name, in the order that they need."""
    export = ["-m", "asyncagg", "export", str(folder / "data"), "--table", "runs", "--json", "--to"]
    return {
        "asyncagg, Parquet": [*export, str(folder / "parquet")],
        "asyncagg, Parquet, again": [*export, str(folder / "parquet")],
        "asyncagg, NDJSON": [*export, str(folder / "ndjson"), "--format", "ndjson"],
        "asyncagg, CSV": [*export, str(folder / "csv"), "--format", "csv"],
        "pyarrow alone": [__file__, "--convert", str(folder / "ndjson"), str(folder / "alone")],
    }


def run(windows: int, files: int, folder: Path) -> list[dict[str, Any]]:
    """Measure all contenders, and check the sums."""
    (folder / "data").mkdir()
    total = anyio.run(prepare, folder / "data", windows, files)
    found = []
    for name, words in contenders(folder).items():
        done = measure([sys.executable, *words], env={}, timeout=4 * 3600)
        assert done.code == 0, done.stderr
        found.append(
            {
                "name": name,
                "rows": windows * files,
                "cpu_us": round(done.cpu_seconds / (windows * files) * 1e6, 2),
                "wall_seconds": round(done.wall_seconds, 1),
                "peak_mb": round(done.peak_bytes / MIB),
            }
        )
        print(found[-1], flush=True)
    check(folder / "parquet", total)
    return found


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as a Markdown table."""
    columns = ("rows", "contender", "rows a second", "CPU µs a row", "wall s", "peak RSS")
    rows = [
        (
            f"{each['rows']:,}",
            each["name"],
            f"{each['rows'] / each['wall_seconds']:,.0f}",
            f"{each['cpu_us']:.1f}",
            f"{each['wall_seconds']:.1f}",
            f"{each['peak_mb']} MB",
        )
        for each in results
    ]
    return markdown(columns, rows)


def main() -> None:
    """Measure, print and keep the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--windows", type=int, nargs="+", default=[3, 30])
    parser.add_argument("--files", type=int, default=10_000, help="in each window")
    parser.add_argument("--convert", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.convert:
        convert(*options.convert)
        return
    found = []
    for windows in options.windows:
        with tempfile.TemporaryDirectory() as folder:
            found += run(windows, options.files, Path(folder))
    print(table(found))
    keep("export", {"machine": machine("pyarrow"), "results": found})


if __name__ == "__main__":
    main()
