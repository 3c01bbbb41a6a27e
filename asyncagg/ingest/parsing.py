"""Parse a run file that is held in memory.

There are three ways, each slower than the one before. The first two accept ordinary files; what
they do not accept is left to the last one, which alone decides what is invalid, and says why. So
whether a file is counted does not depend on the way, nor on the matches of the files before it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from operator import attrgetter

import msgspec
import orjson

from asyncagg.ingest.shape import MAX_MATCH_DEPTH, RunShape, result_of
from asyncagg.ingest.streaming import RunFileParser, best_matches
from asyncagg.ingest.timestamps import is_common_timestamp
from asyncagg.model import TOP, Match, RunFile, RunResult

MAX_WHOLE_BYTES = 64 * 1024
"""The size of the largest file that is decoded as a whole: Python values are 30 times as large.

No match in such a file is longer than `MAX_MATCH_BYTES` when it is written.
"""

_EXACT = 2.0**53
"""Beyond it, what number a match score is depends on the decoder."""
_LOWEST = -_EXACT

_NO_CUTOFF = -math.inf

_skim_run = msgspec.json.Decoder(RunShape).decode


def is_run_file(key: str) -> bool:
    """Return whether a key ends like a run file's: ``.json`` or ``.json.gz``, in any case."""
    return key.endswith((".json", ".json.gz")) or key[-8:].lower().endswith((".json", ".json.gz"))


def parse(
    data: bytes,
    file: RunFile,
    top_cutoff: float = _NO_CUTOFF,
    unknown: Counter[str] | None = None,
) -> RunResult:
    """Return the result of a run file.

    Args:
        data: Its content, unzipped.
        file: Its reference: its key and time replace missing ones.
        top_cutoff: Matches with a lower score are checked and left out.
        unknown: Counts the names of fields that are not read; this takes more time.

    Raises:
        InvalidRunFileError: It can never be counted.
    """
    if len(data) <= MAX_WHOLE_BYTES and unknown is None:
        # Each level of nesting has an opening bracket. `replace` is faster than `count`.
        nested = len(data) - len(data.replace(b"{", b"").replace(b"[", b"")) > MAX_MATCH_DEPTH
        if not nested and (result := _skim(data, file, top_cutoff)) is not None:
            return result
        if (result := _decode(data, file, top_cutoff, nested=nested)) is not None:
            return result
    parser = RunFileParser(file, top_cutoff, unknown)
    parser.feed(data)
    return parser.finish()


def parse_blocks(blocks: Iterable[bytes], file: RunFile, unknown: Counter[str] | None) -> RunResult:
    """Return the result of a run file whose content is in blocks; see `parse`."""
    parser = RunFileParser(file, _NO_CUTOFF, unknown)
    for block in blocks:
        parser.feed(block)
    return parser.finish()


def _skim(data: bytes, file: RunFile, top_cutoff: float) -> RunResult | None:
    """Read the fields alone, without building the match objects; None if that is not enough."""
    if top_cutoff == _NO_CUTOFF:
        return None
    try:
        if not data.isascii():
            data.decode()  # msgspec does not look into the strings that it skips
        shape = _skim_run(data)
    except (UnicodeDecodeError, msgspec.DecodeError):
        return None
    if not _is_ordinary(shape):
        return None
    # One byte is found much faster than two. What may be half a surrogate pair is decoded.
    if data.find(b"\\") >= 0 and b"\\ud" in data.lower():
        return None
    highest = min(top_cutoff, _EXACT)
    for match in shape.top_matches or ():
        score = match.match_score
        if score is None or not _LOWEST < score < highest:
            return None
    return result_of(shape, file, ())


def _decode(data: bytes, file: RunFile, top_cutoff: float, *, nested: bool) -> RunResult | None:
    """Build the whole content; None if it is not an ordinary run file."""
    try:
        content = orjson.loads(data)
        shape = msgspec.convert(content, RunShape)
        if not _is_ordinary(shape):
            return None
        bodies = content.get("top_matches") or ()
        if nested:
            for body in bodies:
                orjson.dumps(body)  # fails if it is nested too deep
    except (orjson.JSONDecodeError, orjson.JSONEncodeError, msgspec.ValidationError):
        return None
    matches = [
        Match(score, position, orjson.dumps(bodies[position]))
        for position, match in enumerate(shape.top_matches or ())
        if (score := match.match_score or 0) >= top_cutoff
    ]
    if len(matches) > TOP:
        matches = sorted(best_matches(matches), key=attrgetter("position"))
    return result_of(shape, file, matches)


def _is_ordinary(shape: RunShape) -> bool:
    # A file without the one and the other may have no field of a run file at all.
    timestamp = shape.timestamp
    return is_common_timestamp(timestamp) if timestamp else bool(shape.run_id)
