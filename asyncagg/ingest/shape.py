"""The fields of a run file, their types and ranges, and the reasons that name them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any

import msgspec
import orjson
from msgspec import Meta

from asyncagg.errors import InvalidRunFileError
from asyncagg.model import Match, RunFile, RunResult

MAX_MATCH_BYTES = 256 * 1024
"""The size of the largest match object, written as JSON: ten of them are held at a time."""

MAX_MATCH_DEPTH = 254
"""How deep a match object may be nested: orjson reads deeper objects, but does not write them."""

_Count = Annotated[int, Meta(ge=0, le=2**53 - 1)]
"""A count that every JSON reader can represent exactly (RFC 7493, section 2.2)."""


class _MatchShape(msgspec.Struct, gc=False):
    match_score: int | float = 0


class RunShape(msgspec.Struct, gc=False):
    """The fields of a run file that are read. All others are ignored."""

    run_id: Annotated[str, Meta(max_length=1024)] = ""
    timestamp: Annotated[str, Meta(max_length=64)] = ""
    total_opportunities: _Count = 0
    matches_found: _Count = 0
    no_matches: _Count = 0
    errors: _Count = 0
    processing_time_seconds: Annotated[float, Meta(ge=0, le=1e12)] | None = None
    top_matches: list[_MatchShape] = []


FIELDS = frozenset(RunShape.__struct_fields__)
"""The names of the fields that are read."""


def shape_of(content: Any) -> RunShape:
    """Return the fields of a run file, given the Python value of its JSON.

    Raises:
        InvalidRunFileError: A field has the wrong type or is out of its range.
    """
    try:
        return msgspec.convert(content, RunShape)
    except msgspec.ValidationError as error:
        raise _invalid(error) from None


def result_of(shape: RunShape, file: RunFile, matches: Iterable[Match]) -> RunResult:
    """Return the result of a run file, with the file's key and time in place of missing ones.

    Raises:
        InvalidRunFileError: The time stamp is not ISO 8601.
    """
    if shape.timestamp:
        try:
            datetime.fromisoformat(shape.timestamp)
        except ValueError:
            raise InvalidRunFileError(
                f"timestamp: expected ISO 8601, got {shape.timestamp!r}"
            ) from None
    seconds = shape.processing_time_seconds
    return RunResult(
        shape.run_id or file.key,
        shape.timestamp or file.last_modified.isoformat(),
        shape.total_opportunities,
        shape.matches_found,
        shape.no_matches,
        shape.errors,
        None if seconds is None else seconds + 0.0,  # turns -0.0 into 0.0
        tuple(matches),
    )


def match_score(body: Any, position: int) -> int | float:
    """Return the score of one match object.

    Raises:
        InvalidRunFileError: It is not an object, or its score is not a number.
    """
    try:
        return msgspec.convert(body, _MatchShape).match_score
    except msgspec.ValidationError as error:
        raise _invalid(error, f"top_matches[{position}]") from None


def check_match(body: Any, position: int) -> None:
    """Check the size and the depth of one match object.

    Raises:
        InvalidRunFileError: It is larger than `MAX_MATCH_BYTES` or deeper than `MAX_MATCH_DEPTH`.
    """
    try:
        size = len(orjson.dumps(body))
    except orjson.JSONEncodeError:
        raise InvalidRunFileError(
            f"top_matches[{position}]: nested deeper than {MAX_MATCH_DEPTH}"
        ) from None
    if size > MAX_MATCH_BYTES:
        raise InvalidRunFileError(
            f"top_matches[{position}]: {size} bytes, expected at most {MAX_MATCH_BYTES}"
        )


def _invalid(error: msgspec.ValidationError, within: str = "") -> InvalidRunFileError:
    # "Expected `int`, got `str` - at `$.errors`" becomes "errors: expected int, got str".
    message, _, path = str(error).partition(" - at ")
    field = (within + path.strip("`").removeprefix("$")).removeprefix(".") or "not an object"
    return InvalidRunFileError(f"{field}: {message[0].lower()}{message[1:]}".replace("`", ""))
