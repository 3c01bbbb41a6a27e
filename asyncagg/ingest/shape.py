"""The fields of a run file: their types and ranges, and the words for what is accepted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, get_type_hints

import msgspec
from msgspec import Meta

from asyncagg.ingest.timestamps import is_timestamp
from asyncagg.model import Match, RunFile, RunResult

MAX_MATCH_BYTES = 256 * 1024
"""The size of the largest match object, in the file and written as JSON: ten of them are held."""

MAX_MATCH_DEPTH = 254
"""How deep a match object may be nested: orjson reads deeper objects, but does not write them."""

MAX_TEXT = 1024
"""The longest text, in characters."""

_MAX_COUNT = 2**53 - 1
"""The largest count that every JSON reader can represent exactly (RFC 7493, section 2.2)."""
_MAX_SECONDS = 10**12

_Count = Annotated[int, Meta(ge=0, le=_MAX_COUNT)] | None
_Text = Annotated[str, Meta(max_length=MAX_TEXT)] | None


class MatchShape(msgspec.Struct, gc=False):
    """The field of a match object that is read."""

    match_score: Annotated[
        int | float | None, Meta(description="What the top ten are chosen by; 0 if it has none.")
    ] = 0


class RunShape(msgspec.Struct, gc=False):
    """The fields of a run file that are read. All others are ignored, and null is missing."""

    run_id: Annotated[_Text, Meta(description="The run's name; the file's key if it has none.")] = (
        None
    )
    timestamp: Annotated[
        _Text,
        Meta(description="When the run took place; the file's last_modified if it has none."),
    ] = None
    total_opportunities: Annotated[
        _Count, Meta(description="How many opportunities the run examined; 0 if missing.")
    ] = None
    matches_found: Annotated[
        _Count, Meta(description="How many of them matched; 0 if missing.")
    ] = None
    no_matches: Annotated[_Count, Meta(description="How many did not match; 0 if missing.")] = None
    errors: Annotated[_Count, Meta(description="How many failed; 0 if missing.")] = None
    processing_time_seconds: Annotated[
        Annotated[float, Meta(ge=0, le=_MAX_SECONDS)] | None,
        Meta(description="How long the run took; unknown if missing, and in no quantile."),
    ] = None
    top_matches: Annotated[
        list[MatchShape] | None,
        Meta(description="Its best matches. Each is kept as it is, if it is in the top ten."),
    ] = None


_TYPES: dict[str, Any] = get_type_hints(RunShape, include_extras=True)

_WHOLE_NUMBER = f"a whole number from 0 to {_MAX_COUNT}"

ACCEPTED = {
    "run_id": f"a string of at most {MAX_TEXT} characters",
    "timestamp": "an RFC 3339 time such as 2025-10-21T13:56:00Z",
    "total_opportunities": _WHOLE_NUMBER,
    "matches_found": _WHOLE_NUMBER,
    "no_matches": _WHOLE_NUMBER,
    "errors": _WHOLE_NUMBER,
    "processing_time_seconds": f"a number from 0 to {_MAX_SECONDS}",
    "top_matches": "a list of objects",
}
"""What each field that is read may contain, in words."""


def field_value(name: str, value: Any) -> Any:
    """Return the value of a field as its type.

    Raises:
        ValueError: The field does not accept it.
    """
    if ACCEPTED[name] is _WHOLE_NUMBER and isinstance(value, float) and value.is_integer():
        value = int(value)  # 5.0 is 5
    value = msgspec.convert(value, _TYPES[name])
    if name == "timestamp" and value and not is_timestamp(value):
        raise ValueError(value)
    return value


def result_of(shape: RunShape, file: RunFile, matches: Iterable[Match]) -> RunResult:
    """Return the result of a run file, with the file's key and time in place of missing ones."""
    seconds = shape.processing_time_seconds
    return RunResult(
        shape.run_id or file.key,
        shape.timestamp or file.last_modified.isoformat(),
        shape.total_opportunities or 0,
        shape.matches_found or 0,
        shape.no_matches or 0,
        shape.errors or 0,
        None if seconds is None else seconds + 0.0,  # turns -0.0 into 0.0
        tuple(matches),
    )
