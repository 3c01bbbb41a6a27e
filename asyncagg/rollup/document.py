"""The rollup document: built from inputs, written, and read back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from importlib import resources
from typing import Any

from asyncagg.aggregate.accumulator import Accumulator
from asyncagg.aggregate.head import accumulator_of, top_matches, totals
from asyncagg.errors import AggregateError
from asyncagg.rollup.periods import Span

SCHEMA_VERSION = 1

_INPUT_FIELDS = (
    *("revision", "total_opportunities", "total_matches", "total_no_matches", "total_errors"),
    *("processing_time_seconds", "processing_time", "files", "top_matches"),
)


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a rollup."""
    text = resources.files("asyncagg.rollup").joinpath("rollup.schema.json").read_text("utf-8")
    return dict(json.loads(text))


def build(
    span: Span, revision: int, written_at: datetime, inputs: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Return the rollup of a span: its inputs, merged by the accumulator of aggregates."""
    total = Accumulator()
    for each in inputs:
        total.merge(accumulator_of(each))
    return {
        "schema_version": SCHEMA_VERSION,
        "period": span.as_dict(),
        "revision": revision,
        "aggregation_timestamp": written_at.astimezone(UTC).isoformat(),
        **totals(total, sum(each["files"]["late"] for each in inputs)),
        "top_matches": list(top_matches(total)),
        "inputs": inputs,
    }


def to_input(key: str, etag: str, document: dict[str, Any]) -> dict[str, Any]:
    """Return what a rollup keeps of an input; `AggregateError` if a member is invalid."""
    try:
        accumulator_of(document)
        members = {name: document[name] for name in _INPUT_FIELDS}
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise _damaged(key, f"a member is missing or invalid: {error}") from None
    return {"key": key, "etag": etag, **members}


def load(key: str, data: bytes, span: Span | None = None) -> dict[str, Any]:
    """Return a rollup from its bytes; `AggregateError` if it is damaged or covers another span."""
    try:
        document: dict[str, Any] = json.loads(data)
        valid = document["schema_version"] == SCHEMA_VERSION
        valid &= span is None or document["period"] == span.as_dict()
        inputs = [to_input(each["key"], each["etag"], each) for each in document["inputs"]]
    except (LookupError, TypeError, ValueError, RecursionError):
        valid = False
    if not valid or inputs != document["inputs"]:
        raise _damaged(key, "it is not a valid rollup")
    return document


def dump(document: dict[str, Any]) -> bytes:
    """Return a rollup as JSON, with one input on each line for human readers."""
    # Not orjson: sums may exceed 64 bits.
    compact = partial(json.dumps, separators=(",", ":"), allow_nan=False)
    head = compact({name: value for name, value in document.items() if name != "inputs"})
    lines = ",\n".join(map(compact, document["inputs"]))
    return f'{head[:-1]},"inputs":[\n{lines}\n]}}\n'.encode()


def _damaged(key: str, what: str) -> AggregateError:
    return AggregateError(
        f"rollup input {key!r}: {what}; expected a document that asyncagg wrote. Move it away, and "
        "the next rollup writes it again"
    )
