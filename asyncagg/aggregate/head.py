"""Convert an accumulator to the head of a document, and back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import msgspec
import orjson

from asyncagg.aggregate.accumulator import RESERVED, Accumulator, RankedMatch
from asyncagg.aggregate.sketch import Sketch
from asyncagg.model import Pack


def totals(total: Accumulator, late: int) -> dict[str, Any]:
    """Return the members of a head for an accumulator, without the matches, ready for JSON."""
    return {
        "total_opportunities": total.opportunities,
        "total_matches": total.matches,
        "total_no_matches": total.no_matches,
        "total_errors": total.errors,
        "processing_time_seconds": float(total.seconds),
        "processing_time": total.processing_time(),
        "files": {
            "counted": total.counted,
            "quarantined": total.quarantined,
            "late": late,
            "bytes": total.bytes,
        },
    }


def top_matches(total: Accumulator) -> Iterator[dict[str, Any]]:
    """Yield the best matches as they are in a document, each with its source."""
    for _, key, position, body in total.top:
        yield orjson.loads(body) | dict(zip(RESERVED, (key, position), strict=True))


def packs_of(head: dict[str, Any]) -> tuple[Pack, ...]:
    """Return the packs that a head names.

    Raises:
        ValueError: The member is invalid.
    """
    return msgspec.convert(head.get("packs", ()), tuple[Pack, ...])


def accumulator_of(head: dict[str, Any]) -> Accumulator:
    """Return the accumulator of a head: the inverse of `totals` and `top_matches`.

    Raises:
        LookupError, TypeError, ValueError, ArithmeticError: A member is missing or invalid.
    """
    files, times = head["files"], head["processing_time"]
    value = Accumulator()
    value.counted = int(files["counted"])
    value.quarantined = int(files["quarantined"])
    value.bytes = int(files["bytes"])
    value.opportunities = int(head["total_opportunities"])
    value.matches = int(head["total_matches"])
    value.no_matches = int(head["total_no_matches"])
    value.errors = int(head["total_errors"])
    value.timed = int(times["count"])
    value.seconds = Decimal(times["exact_sum"])
    if value.timed:
        value.shortest = float(times["min"])
        value.longest = float(times["max"])
        if not (math.isfinite(value.shortest) and math.isfinite(value.longest)):
            raise ValueError("processing_time")
    value.sketch = Sketch.from_state(times["sketch"])
    if value.sketch.count != value.timed or not _is_sum_of_floats(value.seconds):
        raise ValueError("processing_time")
    value.top = [_ranked(match) for match in head["top_matches"]]
    return value


def _is_sum_of_floats(number: Decimal) -> bool:
    """Return whether it can be added exactly, and be converted to a float."""
    exponent = number.as_tuple().exponent
    return isinstance(exponent, int) and exponent > -400 and number.adjusted() < 300


def _ranked(match: dict[str, Any]) -> RankedMatch:
    key, position = (match[name] for name in RESERVED)
    if not isinstance(key, str) or not isinstance(position, int):
        raise TypeError("top_matches")
    orjson.dumps((key, position))  # raises if they could not be written again
    body = {name: value for name, value in match.items() if name not in RESERVED}
    return (-match.get("match_score", 0), key, position, orjson.dumps(body))
