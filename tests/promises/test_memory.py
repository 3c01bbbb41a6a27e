"""Bounded memory: the real handler in its own process, under a hard limit where possible.

`benchmarks/memory.py` does the same at full size. Where cgroups are not writable, the resident set
is measured but not limited.
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import BUCKET, HERE, MIB, Measured, Server, box, measure, server, writable
from memory import BUDGET, END, LIMIT, windows

pytestmark = pytest.mark.slow


@pytest.fixture
def store() -> Iterator[Server]:
    """An S3 server in its own process."""
    with server() as running:
        yield running


def settle(store: Server, **settings: str) -> Measured:
    """Run the handler in the box until the inbox is empty."""
    environment = {**store.settings(), "ASYNCAGG_LOG_LEVEL": "warning", **settings}
    with box(memory_bytes=LIMIT) as joins:
        done = measure(
            [sys.executable, str(HERE / "job.py"), END, "600", "1"], env=environment, joins=joins
        )
    assert done.code == 0, done.stderr
    return done


@pytest.mark.parametrize("plane", ["lean", "boto"])
def test_peak_memory_does_not_grow_with_the_number_of_files(store: Server, plane: str) -> None:
    """Four times the files, in chunks of the same size, cost less than 10 MB more."""
    peaks = []
    few = 2_000 if plane == "lean" else 300
    for count in (few, 4 * few):
        exact = store.fill(count, windows(1))
        done = settle(store, ASYNCAGG_DATA_PLANE=plane, ASYNCAGG_CHUNK_FILES=str(few))
        assert done.answer["processed_files"] == count
        assert done.answer["total_opportunities"] == exact["total_opportunities"]
        peaks.append(done.peak_bytes)
        store.control("reset")
    assert max(peaks) <= BUDGET
    assert peaks[1] - peaks[0] < 10 * MIB


def test_a_full_chunk_and_a_merge_stay_inside_the_budget(store: Server) -> None:
    """20,000 files at once, then 5,000 more into their aggregate."""
    for prefix, count in (("runs/", 20_000), ("runs/more-", 5_000)):
        stamps = [moment.isoformat() for moment in windows(1)]
        store.control("fill", bucket=BUCKET, prefix=prefix, count=count, windows=stamps)
        done = settle(store)
        assert done.answer["processed_files"] == count
        assert done.peak_bytes <= BUDGET


def test_large_files_stay_inside_the_budget(store: Server) -> None:
    """60 files of 1 MB fetched concurrently, then 60 of 5 MB that are parsed as streams."""
    for size in (1_000_000, 5_000_000):
        store.fill(60, windows(1), size=size)
        done = settle(store)
        assert done.answer["processed_files"] == 60
        assert done.peak_bytes <= BUDGET
        store.control("reset")


def test_packs_of_large_files_stay_inside_the_budget_over_tls(tmp_path: Path) -> None:
    """TLS copies what it sends, and a part of a pack has 5 MB."""
    with server(tls=tmp_path) as store:
        store.fill(200, windows(1), size=1_000_000)
        done = settle(store, ASYNCAGG_ARCHIVE_FORMAT="packs", MALLOC_MMAP_THRESHOLD_="262144")
        assert done.answer["processed_files"] == 200
        assert done.peak_bytes <= BUDGET


WORST = (
    b'{"errors":1,"x":[' + b"[]," * 800_000 + b"0]}",
    b'{"errors":1,"x":{"y":[[' + b"[[]]," * 800_000 + b"0]]}}",
    b'{"errors":1,"x":"' + "🎉".encode() * 1_000_000 + b'"}',
)
"""The worst kinds of documents that the search of `benchmarks/memory.py` finds, but for matches."""


@pytest.mark.skipif(not writable("memory"), reason="cgroups are not writable: there is no limit")
@pytest.mark.parametrize("packed", [False, True])
def test_dense_documents_stay_inside_the_budget(store: Server, *, packed: bool) -> None:
    """30 files at once whose decoded form would be 30 times as large as their JSON."""
    for number, data in enumerate(WORST):
        body = gzip.compress(data, 1) if packed else data
        for copy in range(10):
            store.put(f"runs/{number}-{copy}.json", body, len(body))
    done = settle(store, MALLOC_MMAP_THRESHOLD_="262144")  # as in template.yaml
    assert done.answer["processed_files"] == 30
    assert done.peak_bytes <= BUDGET
