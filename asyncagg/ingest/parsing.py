"""Parse a run file that is held in memory."""

from __future__ import annotations

import math

import orjson

from asyncagg.errors import InvalidRunFileError
from asyncagg.ingest.shape import (
    MAX_MATCH_BYTES,
    MAX_MATCH_DEPTH,
    check_match,
    result_of,
    shape_of,
)
from asyncagg.model import Match, RunFile, RunResult

_MAX_GROWTH = 4
"""How many times longer JSON can be when it is written again: 1e15 as 1000000000000000.0."""


def is_run_file(key: str) -> bool:
    """Return whether a key ends like a run file's: ``.json`` or ``.json.gz``, in any case."""
    return key.endswith((".json", ".json.gz")) or key[-8:].lower().endswith((".json", ".json.gz"))


def parse(data: bytes, file: RunFile, top_cutoff: float = -math.inf) -> RunResult:
    """Return the result of a run file.

    Args:
        data: Its content, unzipped.
        file: Its reference: its key and time replace missing ones.
        top_cutoff: Matches with a lower score are checked and left out.

    Raises:
        InvalidRunFileError: It can never be counted.
    """
    # orjson reads the whole file, though most matches are left out. A parser that skips them is
    # faster, but accepts in them what orjson does not, such as half a surrogate pair or 1e999:
    # whether a file is counted would depend on the matches of the files before it.
    try:
        content = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        # Not every JSON number is one that a double can hold: 1e999 is not.
        kind = "number out of range" if "infinity" in error.msg else "not JSON"
        raise InvalidRunFileError(f"{kind}: {error}") from None
    shape = shape_of(content)
    if not shape.top_matches:
        return result_of(shape, file, ())
    bodies = content["top_matches"]
    if _may_have_large_match(data):
        for position, body in enumerate(bodies):
            check_match(body, position)
    matches = [
        Match(match.match_score, position, bodies[position])
        for position, match in enumerate(shape.top_matches)
        if match.match_score >= top_cutoff
    ]
    return result_of(shape, file, matches)


def _may_have_large_match(data: bytes) -> bool:
    # Each level of nesting has an opening bracket. `replace` is four times as fast as `count`.
    opened = len(data) - len(data.replace(b"{", b"").replace(b"[", b""))
    return len(data) > MAX_MATCH_BYTES // _MAX_GROWTH or opened > MAX_MATCH_DEPTH
