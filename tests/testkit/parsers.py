"""The ways to parse a run file, for tests: whole, or as a stream in chunks of any size."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Coroutine, Iterable
from datetime import UTC, datetime
from typing import Any, TypeVar

from asyncagg.aggregate.accumulator import Accumulator
from asyncagg.ingest.gzipped import inflate, is_gzip
from asyncagg.ingest.parsing import parse
from asyncagg.ingest.streaming import parse_stream
from asyncagg.model import RunFile, RunResult
from testkit.corpus import MAX_BYTES, Case

__all__ = (
    "FILE",
    "best_of",
    "check",
    "finished",
    "in_chunks",
    "streamed",
    "whole",
    "without_matches",
)


FILE = RunFile("runs/a.json", 100, "etag", datetime(2025, 10, 21, 13, 56, tzinfo=UTC))

T = TypeVar("T")


def finished(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of async work that never waits, without an event loop."""
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    work.close()
    raise AssertionError("the work waited")


def in_chunks(data: bytes, size: int = 1 << 18) -> Iterable[bytes]:
    """Yield the data in chunks of a size."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


def whole(data: bytes, *, file: RunFile = FILE, max_bytes: int = MAX_BYTES) -> RunResult:
    """Parse a run file as the small ones are parsed."""
    return parse(b"".join(inflate(data, max_bytes)) if is_gzip(data) else data, file)


def without_matches(data: bytes) -> RunResult:
    """Parse a run file whose matches are all below the cutoff."""
    return parse(b"".join(inflate(data, MAX_BYTES)) if is_gzip(data) else data, FILE, math.inf)


def streamed(
    chunks: Iterable[bytes],
    *,
    file: RunFile = FILE,
    max_bytes: int = MAX_BYTES,
) -> RunResult:
    """Parse a run file as the large ones are parsed."""

    async def arriving() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    return finished(parse_stream(arriving(), file, max_bytes=max_bytes))


def best_of(result: RunResult) -> tuple[Any, ...]:
    """Return everything that a result adds to an aggregate: of its matches only the best."""
    value = Accumulator()
    value.fold(FILE.key, FILE.size, result)
    return (*[getattr(result, name) for name in result.__struct_fields__[:-1]], value.top)


def check(case: Case, result: RunResult) -> None:
    """Check a result against a case of the corpus."""
    for field, value in case.counted.items():
        if field == "scores":
            scores = sorted((match.score for match in result.top_matches), reverse=True)
            assert scores[:10] == value
        else:
            assert getattr(result, field) == value
