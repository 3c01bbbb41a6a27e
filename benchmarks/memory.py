"""Peak memory of the real handler under a hard limit of 128 MB, in several scenarios.

    python benchmarks/memory.py                 # all scenarios (an hour or more)
    python benchmarks/memory.py --only 1k 10k   # some of them
    python benchmarks/memory.py --tls           # over TLS, like real S3
    python benchmarks/memory.py --plot          # also docs/images/memory.png, from 100k

Where cgroups (version 1) are not writable, memory is measured but not limited, and a line says so.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from heapq import nlargest
from itertools import product
from pathlib import Path
from typing import Any

from harness import (
    BUCKET,
    HERE,
    MIB,
    RESULTS,
    Measured,
    Server,
    archive_format,
    box,
    keep,
    machine,
    measure,
    named,
    server,
    writable,
)

from asyncagg.errors import InvalidRunFileError
from asyncagg.ingest.parsing import parse
from asyncagg.model import RunFile

LIMIT = 128 * MIB
BUDGET = 110 * MIB
END = "2100-01-01T00:00:00Z"  # every window has ended
FIRST = datetime(2025, 10, 21, 13, 57, tzinfo=UTC)
PLOT = HERE.parent / "docs" / "images" / "memory.png"


def windows(count: int) -> list[datetime]:
    """Return a moment in each of ``count`` windows."""
    return [FIRST + timedelta(minutes=5 * number) for number in range(count)]


@dataclass(frozen=True)
class Scenario:
    """One case: the content of the inbox, and the number of files to count.

    Attributes:
        name: Its name on the command line.
        title: Its name in the table.
        prepare: Fills the store; returns the number of files that the measured run counts.
    """

    name: str
    title: str
    prepare: Callable[[Server], int]


def small(count: int, spread: int = 1) -> Callable[[Server], int]:
    """Return a function that puts small files of some windows into the inbox."""

    def prepare(store: Server) -> int:
        store.fill(count, windows(spread))
        return count

    return prepare


def megabytes(store: Server) -> int:
    """Put 10,000 files of 1 MB into the inbox."""
    store.fill(10_000, windows(1), size=1_000_000)
    return 10_000


def giant(store: Server) -> int:
    """Put one run file of 200 MB with a million matches into the inbox."""
    with tempfile.TemporaryFile() as file:
        for block in _giant():
            file.write(block)
        size = file.tell()
        file.seek(0)
        store.put("runs/giant.json", file, size)
    return 1


def _giant() -> Iterator[bytes]:
    yield b'{"run_id":"giant","total_opportunities":1000000,"top_matches":['
    for number in range(1_000_000):
        comma = b"," if number else b""
        match = {"match_score": number * 7919 % 999983 / 999983, "title": f"solicitation {number}"}
        yield comma + json.dumps(match | {"rationale": "x" * 128}).encode()
    yield b'],"matches_found":1000000}'


def slow(store: Server) -> int:
    """Delay the first file of each chunk, so that the rows of the others wait for it."""
    store.fill(30_000, windows(1))
    names = [
        f"runs/20251021t1357Z_DARPA-PS-25-32-{number:06}.json"
        for number in range(0, 30_000, 10_000)
    ]
    store.control("faults", slow_keys=dict.fromkeys(names, 10.0))
    return 30_000


def merge(store: Server) -> int:
    """Settle 500,000 files, and put 1,000 more of the same window into the inbox."""
    small(500_000)(store)
    done = settle(store, joins=[])
    assert done.answer["processed_files"] == 500_000, done
    store.control(
        "fill",
        bucket=BUCKET,
        prefix="runs/more-",
        count=1000,
        windows=[FIRST.isoformat()],
    )
    return 1000


PARTS = (
    *(b"[]", b"{}", b'""', b"0", b"0.5", b"1e9", b"null", b'{"a":0}', b"[[]]", b"[0.1]"),
    *('"é"'.encode(), '"🎉"'.encode(), b'"\\u00e9\\u4e00"', b'{"match_score":1,"a":[]}'),
)
PLACES = (
    (b'{"errors":1,"x":[', b"]}"),  # a list that is not read
    (b'{"errors":1,"x":{"y":[[', b"]]}}"),
    (b'{"errors":1,"top_matches":[', b"]}"),  # only objects are valid here
)
WHOLE, LARGEST = 60_000, 4_190_000
"""The sizes of a file that is decoded as a whole, and of the largest that is held in memory."""

MATCH = 250_000
"""The size of a match: larger ones are invalid."""

Document = Callable[[int], bytes]
"""Returns a document of about this size."""


def dense_documents() -> Iterator[Document]:
    """Yield documents that are built of very many small values."""

    def of_parts(start: bytes, part: bytes, end: bytes, size: int) -> bytes:
        times = (size - len(start) - len(end)) // (len(part) + 1)
        return start + b",".join([part] * times) + end

    def of_matches(part: bytes, size: int) -> bytes:
        match = of_parts(b'{"match_score":1,"x":[', part, b"]}", min(size, MATCH) - 100)
        return of_parts(b'{"errors":1,"top_matches":[', match, b"]}", size)

    def of_text(character: str, size: int) -> bytes:
        return f'{{"errors":1,"x":"{character * (size // len(character.encode()))}"}}'.encode()

    for (start, end), part in product(PLACES, PARTS):
        yield partial(of_parts, start, part, end)
    for part in PARTS:
        yield partial(of_matches, part)
    for character in ("é", "🎉", "\\u4e00"):
        yield partial(of_text, character)


def peak_of_parsing(data: bytes) -> int:
    """Return by how much the resident set of a forked process grows when it parses a file."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with suppress(InvalidRunFileError):
            parse(data, RunFile("runs/a.json", len(data), "e", FIRST))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        os.write(writer, str(grown * 1024).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        return int(file.read())


def dense(store: Server) -> int:
    """Put 32 copies of each of the worst documents into the inbox, half of them as gzip."""
    worst = [*_worst(WHOLE), *_worst(LARGEST)]
    for number, data in enumerate(worst):
        print(
            f"{peak_of_parsing(data) / MIB:.1f} MB to parse {len(data)} bytes: {data[:50]!r}",
            flush=True,
        )
        packed = gzip.compress(data, 1)
        for copy in range(16):
            store.put(f"runs/{number}-{copy}.json", data, len(data))
            store.put(f"runs/{number}-{copy}.json.gz", packed, len(packed))
    return 32 * sum(map(_is_valid, worst))


def _worst(size: int) -> list[bytes]:
    """Return the three documents of about this size that take the most memory."""
    documents = (kind(size) for kind in dense_documents())
    return nlargest(3, documents, key=peak_of_parsing)


def _is_valid(data: bytes) -> bool:
    try:
        parse(data, RunFile("runs/a.json", len(data), "e", FIRST))
    except InvalidRunFileError:
        return False
    return True


SCENARIOS = (
    Scenario("1k", "1,000 files, one window", small(1_000)),
    Scenario("10k", "10,000 files, one window", small(10_000)),
    Scenario("100k", "100,000 files, one window", small(100_000)),
    Scenario("1m", "1,000,000 files, 288 windows", small(1_000_000, 288)),
    Scenario("1m-one", "1,000,000 files, one window", small(1_000_000)),
    Scenario("backlog", "30,000 files, a backlog of 300 windows", small(30_000, 300)),
    Scenario("giant", "one file of 200 MB, a million matches", giant),
    Scenario("megabytes", "10,000 files of 1 MB", megabytes),
    Scenario("dense", "32 files of each of the worst documents below 4 MiB", dense),
    Scenario("slow", "30,000 files, each 10,000th answered after 10 seconds", slow),
    Scenario("merge", "1,000 files into an aggregate of 500,000", merge),
)


def settle(store: Server, joins: list[Path], form: str = "files") -> Measured:
    """Run the real handler until the inbox is empty."""
    settings = {**store.settings(), "ASYNCAGG_ARCHIVE_FORMAT": form}
    settings["MALLOC_MMAP_THRESHOLD_"] = "262144"  # as in template.yaml
    return measure(
        [sys.executable, str(HERE / "job.py"), END, "7200", "1"],
        env=settings | {"ASYNCAGG_LOG_LEVEL": "warning"},
        joins=joins,
        timeout=7200,
    )


def run(scenario: Scenario, form: str, tls: Path | None) -> dict[str, Any]:
    """Measure one scenario; ``tls`` is a folder for a certificate, if the server uses TLS."""
    with server(tls=tls) as store:
        expected = scenario.prepare(store)
        with box(memory_bytes=LIMIT) as joins:
            done = settle(store, joins, form)
    survived = done.code == 0 and done.answer["processed_files"] == expected
    if not survived:
        print(done.stderr, file=sys.stderr)
    row = {
        "name": scenario.name,
        "scenario": scenario.title,
        "files": expected,
        "limit": bool(joins),
        "survived": survived,
        "peak_mb": round(done.peak_bytes / MIB, 1),
        "cpu_seconds": round(done.cpu_seconds, 1),
        "wall_seconds": round(done.wall_seconds, 1),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }
    return row | ({"samples": done.samples} if scenario.name == "100k" else {})


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| scenario | peak RSS | within 110 MB | survived 128 MB | measured |",
        "| --- | --- | --- | --- | --- |",
    ]
    for each in results:
        within = "yes" if each["peak_mb"] * MIB <= BUDGET else "**no**"
        survived = "yes" if each["survived"] else "**no**"
        cells = (each["scenario"], f"{each['peak_mb']} MB", within, survived, each["date"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(samples: list[tuple[float, int, int]]) -> None:
    """Draw the resident set over time."""
    import matplotlib as mpl  # noqa: PLC0415 - only the plot needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(8, 4))
    axes.plot(
        [at for at, _, _ in samples], [now / MIB for _, now, _ in samples], label="resident set"
    )
    axes.axhline(LIMIT / MIB, color="tab:red", linestyle="--", label="hard limit")
    axes.axhline(BUDGET / MIB, color="tab:orange", linestyle=":", label="budget")
    axes.set(xlabel="seconds", ylabel="MB", ylim=(0, 140), title="100,000 files, one window")
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(PLOT, dpi=120)


def main() -> None:
    """Measure the scenarios of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--only", nargs="*", choices=names, default=names)
    parser.add_argument("--plot", action="store_true", help="draw docs/images/memory.png")
    parser.add_argument("--tls", action="store_true", help="run the server with TLS")
    archive_format(parser)
    args = parser.parse_args()
    name = named("memory-tls" if args.tls else "memory", args.archive_format)
    if not writable("memory"):
        print("cgroups are not writable here: memory is measured, not limited")
    found = stored(name)
    for scenario in SCENARIOS:
        if scenario.name in args.only:
            with tempfile.TemporaryDirectory() as folder:
                row = run(scenario, args.archive_format, Path(folder) if args.tls else None)
            samples = row.pop("samples", None)
            found[scenario.name] = row
            print(table([row]).splitlines()[-1], flush=True)
            results = [found[each.name] for each in SCENARIOS if each.name in found]
            keep(name, {"machine": machine(), "results": results})
            if args.plot and samples:
                plot(samples)


def stored(name: str) -> dict[str, dict[str, Any]]:
    """Return the stored rows of a result, by scenario; those not measured again stay."""
    path = RESULTS / f"{name}.json"
    rows = json.loads(path.read_text())["results"] if path.exists() else []
    return {row["name"]: row for row in rows}


if __name__ == "__main__":
    main()
