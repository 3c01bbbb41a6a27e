"""The whole job, from list to delete: asyncagg, its peers and the floor, in one run.

    python benchmarks/throughput.py                       # everything (an hour or so)
    python benchmarks/throughput.py --files 5000 --only asyncagg-lean floor obstore
    python benchmarks/throughput.py --tls                 # over TLS, like real S3
    python benchmarks/throughput.py --windows 20 --in-flight 128 --only asyncagg-lean floor obstore
    python benchmarks/throughput.py --only asyncagg-lean --archive-format files packs

Each contender is a fresh process on its own core and does the same job on the same files. Its
results are checked against the state of the server: exact sums in the aggregate, an empty inbox,
and an archive with the content of the inbox. Before that, a server that verifies signatures checks
the requests of each contender.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from harness import (
    BUCKET,
    CREDENTIALS,
    HERE,
    MIB,
    Measured,
    Server,
    archived_content,
    in_flight,
    keep,
    lost,
    machine,
    markdown,
    measure,
    server,
)

END = "2100-01-01T00:00:00Z"
WINDOW = datetime(2025, 10, 21, 13, 57, tzinfo=UTC)
LATENCIES = (0, 20)  # milliseconds
PROOF_FILES = 100
START_FILES = 50
"""A job with so few files costs little more than the start-up, which is subtracted."""
OURS = ("total_opportunities", "total_matches", "total_no_matches", "total_errors")
COLUMNS = (
    "contender",
    "files",
    "CPU µs a file",
    "ratio",
    "with start-up",
    "CPU at 20 ms",
    "wall µs a file",
    "wall at 20 ms",
    "peak RSS",
)
THEIRS = ("total_opportunities", "matches_found", "no_matches", "errors")


@dataclass(frozen=True)
class Contender:
    """One program that does the whole job.

    Attributes:
        name: Its name on the command line.
        title: Its name in the table.
        share: It gets one file in this number, because slow contenders need fewer files.
        windows: Over how many windows its files are spread.
        fields: The names of the four sums in its aggregate.
        settings: Further environment variables.
    """

    name: str
    title: str
    share: int = 1
    windows: int = 1
    fields: Sequence[str] = THEIRS
    settings: Mapping[str, str] = field(default_factory=dict)

    def run(self, store: Server) -> Measured:
        """Do the job in a new process."""
        if self.fields is OURS:
            command = [str(HERE / "job.py"), END, "7200", "1"]
        else:
            command = [str(HERE / "peers.py"), self.name, store.url, BUCKET]
        done = measure([sys.executable, *command], env={**store.settings(), **self.settings})
        assert done.code == 0, f"{self.name} failed:\n{done.stderr}"
        return done

    def totals(self, store: Server) -> list[int]:
        """Return the four sums of its aggregates."""
        keys = ["aggregates/peer.json"]
        if self.fields is OURS:
            ends = [each + timedelta(minutes=3) for each in moments(self.windows)]
            keys = [f"aggregates/{end:%Y%m%dt%H%MZ}.json" for end in ends]
        aggregates = [store.read(key) for key in keys]
        return [sum(each[name] for each in aggregates) for name in self.fields]


def moments(windows: int) -> list[datetime]:
    """Return a moment in each of some windows of five minutes."""
    return [WINDOW + number * timedelta(minutes=5) for number in range(windows)]


def _ours(plane: str, title: str, share: int) -> Contender:
    return Contender(
        f"asyncagg-{plane}",
        title,
        share,
        fields=OURS,
        settings={"ASYNCAGG_DATA_PLANE": plane},
    )


def _packing(contender: Contender) -> Contender:
    """Return a contender of ours that archives into packs."""
    return replace(
        contender,
        name=f"{contender.name}-packs",
        title=f"{contender.title}, packs",
        settings={**contender.settings, "ASYNCAGG_ARCHIVE_FORMAT": "packs"},
    )


CONTENDERS = (
    _ours("lean", "**asyncagg**, lean plane", 1),
    Contender("floor", "the floor: bare httptools, uvloop, signed", 1),
    Contender("obstore", "obstore (Rust)", 2),
    _ours("boto", "asyncagg, boto plane", 10),
    Contender("boto3-threads", "boto3, 32 threads", 10),
    Contender("aioboto3", "aioboto3, semaphore of 32", 10),
    Contender("s3fs", "s3fs, batches of 32", 10),
    Contender("boto3-serial", "boto3, one by one", 20),
)


@contextmanager
def filled(store: Server, files: int, latency: int, windows: int = 1) -> Iterator[dict[str, Any]]:
    """Fill an empty store; yields the exact totals."""
    store.control("reset")
    totals = store.fill(files, moments(windows))
    store.control("faults", latency=latency / 1000)
    yield totals
    store.control("faults", latency=0)


def settled(contender: Contender, store: Server, files: int, latency: int = 0) -> Measured:
    """Let a contender do the job, and check its results."""
    with filled(store, files, latency, contender.windows) as totals:
        before = store.control("audit")["buckets"][BUCKET]
        done = contender.run(store)
        after = store.control("audit")
    assert done.answer["processed_files"] == files, (contender.name, done.answer)
    sums, expected = contender.totals(store), [totals[name] for name in THEIRS]
    assert sums == expected, (contender.name, sums, expected)
    left = after["buckets"][BUCKET]
    assert "runs/" not in left, (contender.name, left)
    form = contender.settings.get("ASYNCAGG_ARCHIVE_FORMAT", "files")
    assert not lost(after, form), lost(after, form)
    content = left["archive/"]["content"]
    if contender.fields is OURS:
        assert done.answer["archived_files"] == files, (contender.name, done.answer)
        content = archived_content(store, after, moments(contender.windows))
    assert content == before["runs/"]["content"], contender.name
    return done


def prove(contenders: Sequence[Contender], tls: Path | None) -> None:
    """Run a small job of each on a server that verifies signatures; this also warms up caches."""
    with server("--credentials", ":".join(CREDENTIALS), tls=tls) as store:
        for contender in contenders:
            with filled(store, PROOF_FILES, 0):
                done = contender.run(store)
            assert done.answer["processed_files"] == PROOF_FILES, (contender.name, done.answer)


def gather(
    contenders: Sequence[Contender], files: int, repeat: int, tls: Path | None
) -> list[dict[str, Any]]:
    """Measure all contenders in turns, so that other load on the machine affects all of them."""
    runs: defaultdict[tuple[str, int], list[Measured]] = defaultdict(list)
    starts: defaultdict[tuple[str, int], list[Measured]] = defaultdict(list)
    with server(tls=tls) as store:
        for turn in range(repeat):
            for contender in contenders:
                small = replace(contender, windows=1)
                for latency in LATENCIES:
                    case = contender.name, latency
                    starts[case].append(settled(small, store, START_FILES, latency))
                    mine = files // contender.share
                    runs[case].append(settled(contender, store, mine, latency))
                print(f"turn {turn + 1} of {repeat}: {contender.name}", file=sys.stderr)
    return [
        _summary(
            contender,
            files,
            {latency: starts[contender.name, latency] for latency in LATENCIES},
            {latency: runs[contender.name, latency] for latency in LATENCIES},
        )
        for contender in contenders
    ]


def _summary(
    contender: Contender,
    files: int,
    starts: Mapping[int, Sequence[Measured]],
    runs: Mapping[int, Sequence[Measured]],
) -> dict[str, Any]:
    mine = files // contender.share
    found: dict[str, Any] = {
        "name": contender.name,
        "contender": contender.title,
        "files": mine,
        "start_cpu_seconds": round(_best(starts[0], "cpu_seconds"), 3),
        "peak_mb": round(
            max(done.answer["peak_bytes"] for each in runs.values() for done in each) / MIB, 1
        ),
    }
    for latency, each in runs.items():
        start_cpu = _best(starts[latency], "cpu_seconds")
        start_wall = _best(starts[latency], "wall_seconds")
        more = mine - START_FILES
        cpu = (_best(each, "cpu_seconds") - start_cpu) / more * 1e6
        wall = (_best(each, "wall_seconds") - start_wall) / more * 1e6
        found[f"at_{latency}_ms"] = {
            "cpu_us": round(cpu, 1),
            # Start-up is divided by the same number of files for all.
            "cpu_with_start_us": round(cpu + start_cpu / files * 1e6, 1),
            "wall_us": round(wall, 1),
            "cpu_seconds_of_runs": [round(done.cpu_seconds, 3) for done in each],
        }
    return found


def _best(runs: Sequence[Measured], name: str) -> float:
    return min(float(getattr(each, name)) for each in runs)


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as a Markdown table, the cheapest first."""
    lean = next((each for each in results if each["name"] == "asyncagg-lean"), None)
    rows = []
    for each in sorted(results, key=lambda each: float(each["at_0_ms"]["cpu_us"])):
        near, far = each["at_0_ms"], each["at_20_ms"]
        rows.append(
            [
                each["contender"],
                f"{each['files']:,}",
                f"{near['cpu_us']:,.0f}",
                f"{near['cpu_us'] / lean['at_0_ms']['cpu_us']:.2f}" if lean else "",
                f"{near['cpu_with_start_us']:,.0f}",
                f"{far['cpu_us']:,.0f}",
                f"{near['wall_us']:,.0f}",
                f"{far['wall_us']:,.0f}",
                f"{each['peak_mb']:.0f} MB",
            ]
        )
    return markdown(COLUMNS, rows)


def main() -> None:
    """Measure the contenders of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    names = [contender.name for contender in CONTENDERS]
    parser.add_argument("--files", type=int, default=20_000, help="for the fast contenders")
    parser.add_argument(
        "--repeat", type=int, default=3, help="take the best of this number of runs"
    )
    parser.add_argument("--only", nargs="*", choices=names, default=names)
    parser.add_argument(
        "--archive-format",
        nargs="+",
        choices=["files", "packs"],
        default=["files"],
        help="how ours archive; with both, each of ours runs twice",
    )
    parser.add_argument("--windows", type=int, default=1, help="spread the files over so many")
    parser.add_argument("--in-flight", type=int, default=32, help="requests in flight")
    parser.add_argument("--tls", action="store_true", help="with a certificate made for this run")
    args = parser.parse_args()
    shares = {contender.name: contender.share for contender in CONTENDERS}
    if args.files <= START_FILES * max(shares[name] for name in args.only):
        parser.error(f"--files {args.files}: too few for the contenders that get a part of them")
    chosen = []
    for contender in CONTENDERS:
        if contender.name in args.only:
            ours = contender.fields is OURS
            chosen += [contender] if "files" in args.archive_format or not ours else []
            chosen += [_packing(contender)] if "packs" in args.archive_format and ours else []
    bound = in_flight(args.in_flight)
    chosen = [
        replace(each, windows=args.windows, settings={**each.settings, **bound}) for each in chosen
    ]
    with tempfile.TemporaryDirectory() as folder:
        tls = Path(folder) if args.tls else None
        prove(chosen, tls)
        results = gather(chosen, args.files, args.repeat, tls)
    case = "" if (args.windows, args.in_flight) == (1, 32) else f"-{args.windows}x{args.in_flight}"
    keep(
        f"throughput{case}-tls" if args.tls else f"throughput{case}",
        {
            "machine": machine(),
            "files": args.files,
            "windows": args.windows,
            "in_flight": args.in_flight,
            "repeat": args.repeat,
            "results": results,
        },
    )
    print(table(results))


if __name__ == "__main__":
    main()
