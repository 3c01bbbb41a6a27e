"""From the bytes of a run file to a `RunResult`, and the reasons for which a file is refused."""

from __future__ import annotations

import math
import re
from datetime import datetime
from typing import Annotated, Any

import msgspec
import orjson
from msgspec import Meta

from asyncagg.errors import InvalidRunFileError
from asyncagg.model import Match, RunFile, RunResult

__all__ = (
    "FIELDS",
    "MAX_MATCH_BYTES",
    "MAX_MATCH_DEPTH",
    "check_match",
    "infinite",
    "is_run_file",
    "match_score",
    "parse",
    "validate",
)

MAX_MATCH_BYTES = 256 * 1024
"""A match object longer than this refuses its file: ten of them are held at a time."""

MAX_MATCH_DEPTH = 254
"""A match object nested deeper refuses its file: orjson reads deeper than it writes."""

_LONGER_WRITTEN = 4  # 1e15 is written as 1000000000000000.0

_EXACT = 2.0**53
_LEAST_EXACT = -_EXACT

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

_TEXT_OR_NUMBER = re.compile(
    rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)'
    rb"|(-?(?:0|[1-9]\d*+)(?:\.\d++)?+(?:[eE][+-]?\d++)?+)([ \t\r\n]*+:)?",
    re.DOTALL,
)

_Count = Annotated[int, Meta(ge=0, le=2**53 - 1)]
"""A count that every JSON reader can hold exactly (RFC 7493, section 2.2)."""


class _MatchShape(msgspec.Struct, gc=False):
    match_score: int | float = 0


class _RunShape(msgspec.Struct, gc=False):
    run_id: Annotated[str, Meta(max_length=1024)] = ""
    timestamp: Annotated[str, Meta(max_length=64)] = ""
    total_opportunities: _Count = 0
    matches_found: _Count = 0
    no_matches: _Count = 0
    errors: _Count = 0
    processing_time_seconds: Annotated[float, Meta(ge=0, le=1e12)] | None = None
    top_matches: list[_MatchShape] = []


_skimmer = msgspec.json.Decoder(_RunShape)

FIELDS = frozenset(_RunShape.__struct_fields__)
"""The fields of a run file that are read; all others are skipped."""


def is_run_file(key: str) -> bool:
    """Say whether a key's ending is one that is read (``.json``, ``.json.gz``)."""
    return key.endswith((".json", ".json.gz"))


def parse(data: bytes, file: RunFile, top_cutoff: float = -math.inf) -> RunResult:
    """Return what a run file says.

    Args:
        data: Its content, unzipped.
        file: Its reference: gives the run's name and time where the content does not.
        top_cutoff: Matches with a lower score are checked and left out.

    Raises:
        InvalidRunFileError: It can never be counted.
    """
    # To drop them takes a quarter of the time that `bytes.count` takes.
    opened = len(data) - len(data.replace(b"{", b"").replace(b"[", b""))
    if len(data) <= MAX_MATCH_BYTES // _LONGER_WRITTEN and opened <= MAX_MATCH_DEPTH:
        if top_cutoff > -math.inf and (shape := _skim(data, top_cutoff)) is not None:
            return _result(shape, file, ())
        return validate(_decode(data), file, top_cutoff)
    result = validate(_decode(data), file)
    for match in result.top_matches:
        check_match(match)
    return result


def _skim(data: bytes, top_cutoff: float) -> _RunShape | None:
    """Read no more than the fields that count, which takes a quarter of the time.

    Returns:
        What the file says, or None where that takes a closer look: at a match that competes, or
        at what may be at fault in a part that was skipped.
    """
    try:
        if not data.isascii():
            data.decode()
        shape = _skimmer.decode(data)
    except (UnicodeDecodeError, msgspec.DecodeError):
        return None
    # Bytes are found faster than `in` does: it tries what it looks for as a number first.
    if data.find(b"\\") >= 0 and _SURROGATE.search(data):
        return None
    most = min(top_cutoff, _EXACT)  # beyond it, what a number is depends on its reader
    for match in shape.top_matches:
        if not _LEAST_EXACT < match.match_score < most:
            return None
    return shape


def _decode(data: bytes) -> Any:
    """Return what JSON decodes to, a number that no double can hold as "inf" or "-inf".

    Raises:
        InvalidRunFileError: It is no JSON.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        told = str(error)
    if "infinity" in told:
        try:
            return orjson.loads(_bounded(data))
        except orjson.JSONDecodeError as error:
            told = str(error)
    raise InvalidRunFileError(f"not JSON: {told}")


def _bounded(data: bytes) -> bytearray:
    """Return JSON with a text in the place of each number that no double can hold."""
    bounded = bytearray(data)
    for found in _TEXT_OR_NUMBER.finditer(data):
        number, colon = found.groups()
        if number and not colon and math.isinf(float(number)):
            start, end = found.span(1)
            # The shortest such number is as long: 9e308.
            bounded[start:end] = f'"{infinite(float(number))}"'.encode().ljust(end - start)
    return bounded


def infinite(number: float) -> str:
    """Return what stands for a number that is valid JSON, but more than a double can hold."""
    return "inf" if number > 0 else "-inf"


def validate(content: Any, file: RunFile, top_cutoff: float = -math.inf) -> RunResult:
    """Return the result that a decoded run file stands for.

    Args:
        content: What it decodes to.
        file: Its reference.
        top_cutoff: Matches with a lower score are left out.

    Raises:
        InvalidRunFileError: Its shape is not that of a run file.
    """
    try:
        shape = msgspec.convert(content, _RunShape)
    except msgspec.ValidationError as error:
        raise InvalidRunFileError(_reason(error)) from None
    bodies = content.get("top_matches")
    matches = [
        Match(match.match_score, position, bodies[position])
        for position, match in enumerate(shape.top_matches)
        if match.match_score >= top_cutoff
    ]
    return _result(shape, file, tuple(matches))


def _result(shape: _RunShape, file: RunFile, matches: tuple[Match, ...]) -> RunResult:
    if shape.timestamp:
        _check_timestamp(shape.timestamp)
    seconds = shape.processing_time_seconds
    return RunResult(
        run_id=shape.run_id or file.key,
        timestamp=shape.timestamp or file.last_modified.isoformat(),
        opportunities=shape.total_opportunities,
        matches=shape.matches_found,
        no_matches=shape.no_matches,
        errors=shape.errors,
        processing_time=None if seconds is None else seconds + 0.0,  # -0.0 is 0.0
        top_matches=matches,
    )


def match_score(body: Any, position: int) -> int | float:
    """Return the score of one match object.

    Raises:
        InvalidRunFileError: It is no object, or its score no number.
    """
    try:
        return msgspec.convert(body, _MatchShape).match_score
    except msgspec.ValidationError as error:
        raise InvalidRunFileError(_reason(error, f"top_matches[{position}]")) from None


def check_match(match: Match) -> None:
    """Refuse the file of a match that is too long to be held, or too deep to be written.

    Raises:
        InvalidRunFileError: The match is longer than `MAX_MATCH_BYTES`, or nested deeper than
            `MAX_MATCH_DEPTH`.
    """
    try:
        size = len(orjson.dumps(match.body))
    except orjson.JSONEncodeError:
        raise InvalidRunFileError(
            f"top_matches[{match.position}]: nested deeper than {MAX_MATCH_DEPTH}"
        ) from None
    if size > MAX_MATCH_BYTES:
        raise InvalidRunFileError(
            f"top_matches[{match.position}]: {size} bytes, expected at most {MAX_MATCH_BYTES}"
        )


def _check_timestamp(text: str) -> None:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRunFileError(f"timestamp: expected ISO 8601, got {text!r}") from None


def _reason(error: msgspec.ValidationError, within: str = "") -> str:
    """Turn "Expected `int`, got `str` - at `$.errors`" into "errors: expected int, got str"."""
    told, _, path = str(error).partition(" - at ")
    field = (within + path.strip("`").removeprefix("$")).removeprefix(".") or "not an object"
    return f"{field}: {told[0].lower()}{told[1:]}".replace("`", "")
