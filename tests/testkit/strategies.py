"""All hypothesis strategies of the tests: values, and run files that contain them."""

from __future__ import annotations

import gzip
import zlib
from datetime import UTC, datetime
from itertools import product
from typing import Any

import orjson
from hypothesis import strategies as st

from asyncagg.aggregate.accumulator import RESERVED
from asyncagg.model import Match, RunFile, RunResult, Window
from asyncagg.windows import MINUTES_A_DAY, window_of

__all__ = (
    "PREFIXES",
    "chunkings",
    "counts",
    "etags",
    "gzip_files",
    "json_values",
    "keys",
    "match_objects",
    "moments",
    "odd_run_objects",
    "plain_results",
    "prefixes",
    "run_files",
    "run_objects",
    "run_results",
    "scores",
    "seconds",
    "texts",
    "window_lengths",
    "windows",
)

MOST = 2**53 - 1
"""The largest count of one run file."""

ODD_TEXTS = (
    "",
    '"',
    "\\",
    "\\u0041",
    "a\nb\r\n\t",
    "\0\x01\x1f\x7f",
    "\u2028\u2029",
    "é e\u0301 日本語 🎉",
    "\uffff\ufffe\ufeff",
    "\U0010ffff",
    '"run_summaries":[',
    "],",
    "},{",
    "🎉" * 40,
    "null",
    "NaN",
)

texts: st.SearchStrategy[str] = st.sampled_from(ODD_TEXTS) | st.text(max_size=20)
"""Any text that JSON can hold."""

keys: st.SearchStrategy[str] = st.builds("runs/{}.json".format, texts)
"""Keys of run files, also ones with quotes, line breaks and every other character."""

etags: st.SearchStrategy[str] = st.text("0123456789abcdef-", min_size=1, max_size=32)

counts: st.SearchStrategy[int] = (
    st.integers(0, 20) | st.integers(0, MOST) | st.sampled_from((0, 1, MOST))
)

seconds: st.SearchStrategy[float] = st.floats(0, 1e12) | st.sampled_from(
    (0.0, 5e-324, 2.2250738585072014e-308, 1e-9, 0.1, 0.3, 1 / 3, 1e12, 1e12 - 0.0001)
)
"""Any processing time that a run file may contain."""

_int64 = st.integers(-(2**63), 2**64 - 1)
_numbers = (
    st.integers(-3, 3)
    | _int64
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from((0.0, -0.0, 1e300, -1e300, 5e-324, 2**64 - 1, -(2**63), 2**53 + 1, 0.1))
)

scores: st.SearchStrategy[int | float] = st.sampled_from((0, 1, 0.5, 0.5, 1.0, -1)) | _numbers
"""Scores, often equal, to test ties."""

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | _numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
"""Any JSON value that orjson reads and writes."""

_match_names = st.sampled_from(("title", "a", *RESERVED)) | texts.filter(
    lambda name: name != "match_score"
)

match_objects: st.SearchStrategy[dict[str, Any]] = st.builds(
    lambda rest, score: rest | score,
    st.dictionaries(_match_names, json_values, max_size=3),
    st.fixed_dictionaries({}, optional={"match_score": scores}),
)
"""Match objects of run files, also with the reserved names."""

_timestamps = st.datetimes(timezones=st.none() | st.just(UTC)).map(datetime.isoformat) | st.just("")


def run_objects(most_matches: int = 4) -> st.SearchStrategy[dict[str, Any]]:
    """Return a strategy for the JSON objects of run files that can be counted."""
    known = {
        "run_id": texts,
        "timestamp": _timestamps,
        "total_opportunities": counts,
        "matches_found": counts,
        "no_matches": counts,
        "errors": counts,
        "processing_time_seconds": st.none() | seconds | st.integers(0, 10**12),
        "top_matches": st.lists(match_objects, max_size=most_matches),
    }
    unknown = st.dictionaries(texts.filter(lambda name: name not in known), json_values, max_size=2)
    return st.builds(
        lambda rest, run: rest | run, unknown, st.fixed_dictionaries({}, optional=dict(known))
    )


odd_run_objects: st.SearchStrategy[Any] = json_values | st.builds(
    lambda run, wrong: run | wrong,
    run_objects(2),
    st.dictionaries(
        st.sampled_from(
            (
                "run_id",
                "timestamp",
                "total_opportunities",
                "matches_found",
                "no_matches",
                "errors",
                "processing_time_seconds",
                "top_matches",
            )
        ),
        json_values | st.lists(json_values, max_size=3),
        min_size=1,
        max_size=2,
    ),
)
"""JSON values that are nearly run files, or not at all."""


def _result(bodies: list[dict[str, Any]], **fields: Any) -> RunResult:
    matches = tuple(
        [
            Match(body.get("match_score", 0), position, orjson.dumps(body))
            for position, body in enumerate(bodies)
        ]
    )
    return RunResult(top_matches=matches, **fields)


def _results(bodies: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[RunResult]:
    return st.builds(
        _result,
        bodies=st.lists(bodies, max_size=3),
        run_id=texts,
        timestamp=st.sampled_from(("", "2025-10-21T13:59:00", "2025-10-21")),
        opportunities=counts,
        matches=counts,
        no_matches=counts,
        errors=counts,
        processing_time=st.none() | seconds,
    )


run_results: st.SearchStrategy[RunResult] = _results(match_objects)
"""Parsed run files."""

plain_results: st.SearchStrategy[RunResult] = _results(
    st.sampled_from(
        [
            body | ({} if score is None else {"match_score": score})
            for score in (
                None,
                0,
                -0.0,
                0.5,
                0.5000000000000001,
                1,
                1.0,
                2**64 - 1,
                -(2**63),
                1e300,
            )
            for body in ({}, {"title": "é"}, {"a": [1, 2.5, None]}, {RESERVED[0]: "forged"})
        ]
    )
)
"""Parsed run files with few kinds of matches, which are generated quickly."""

moments: st.SearchStrategy[datetime] = st.datetimes(
    datetime(1, 1, 3),  # noqa: DTZ001 - hypothesis adds the zone
    datetime(9999, 12, 30),  # noqa: DTZ001 - likewise
    timezones=st.just(UTC),
)
"""Any moment in UTC, without the first and the last days that `datetime` supports."""

run_files: st.SearchStrategy[RunFile] = st.builds(
    RunFile, key=keys, size=st.integers(0, 2**40), etag=etags, last_modified=moments
)

window_lengths: st.SearchStrategy[int] = st.sampled_from(
    [minutes for minutes in range(1, MINUTES_A_DAY + 1) if not MINUTES_A_DAY % minutes]
)
"""Every length in minutes that a window may have."""

windows: st.SearchStrategy[Window] = st.builds(window_of, moments, window_lengths)

PREFIXES = tuple(
    "".join(f"{name}/" for name in names)
    for depth in range(4)
    for names in product(("runs", "raw", "archive", "20251021t1400Z.json", "x"), repeat=depth)
)
prefixes: st.SearchStrategy[str] = st.sampled_from(PREFIXES)
"""Prefixes that often nest in each other, or are the same."""


def chunkings(data: bytes) -> st.SearchStrategy[list[bytes]]:
    """Return a strategy for splitting ``data`` into chunks, also empty ones."""
    cuts = st.lists(st.integers(0, len(data)), max_size=8).map(sorted)
    return cuts.map(
        lambda cuts: [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    ) | st.integers(1, 7).map(
        lambda size: [data[start : start + size] for start in range(0, len(data), size)]
    )


def _raw_gzip(data: bytes, level: int) -> bytes:
    packer = zlib.compressobj(level, wbits=31)
    return packer.compress(data) + packer.flush()


def gzip_files(data: bytes) -> st.SearchStrategy[bytes]:
    """Return a strategy for gzip files that unzip to ``data``: members, padding, levels."""

    def pack(cuts: list[int], level: int, padding: list[int]) -> bytes:
        parts = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        padded = zip(parts, padding, strict=False)
        return b"".join(_raw_gzip(part, level) + bytes(zeros) for part, zeros in padded)

    cuts = st.lists(st.integers(0, len(data)), max_size=3).map(sorted)
    padding = st.lists(st.sampled_from((0, 0, 1, 512)), min_size=4, max_size=4)
    return st.builds(pack, cuts, st.integers(0, 9), padding) | st.just(
        gzip.compress(data, mtime=1_700_000_000)
    )
