"""The best matches of many aggregates, bounded in number and size for display."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import orjson

from asyncagg.aggregate.accumulator import RankedMatch
from asyncagg.model import Window

MAX_MATCHES = 200
"""How many matches a report shows."""

_MAX_FIELDS = 40
_MAX_NAME = 120
_MAX_VALUE = 1000
_MAX_LABEL = 300

_TIE_BYTES = 4096
"""How much of a match's JSON decides a tie: two versions of one key."""

_LABELS = ("title", "name", "solicitation_id", "id")
"""The fields that may identify a match for a reader; the first that is present does."""


class _Entry(NamedTuple):
    order: tuple[float, str, int, bytes, str]
    shown: dict[str, Any]


class BestMatches:
    """The best of the top matches of aggregates.

    The first ten are exactly the top 10 of all files, because each of those is in the top 10 of its
    own window. The others are the best of ten from each window.
    """

    def __init__(self) -> None:
        self._entries: list[_Entry] = []

    def add(self, window: Window, ranked: Iterable[RankedMatch]) -> None:
        """Add the top matches of a window's aggregate, the best first."""
        full = len(self._entries) == MAX_MATCHES
        fresh = []
        for score, key, position, body in ranked:
            order = (score, key, position, body[:_TIE_BYTES], window.name)
            if full and order >= self._entries[-1].order:
                break
            fresh.append(_Entry(order, _shown(window, -score, key, position, body)))
        if fresh:
            merged = heapq.merge(self._entries, fresh, key=lambda entry: entry.order)
            self._entries = [entry for entry, _ in zip(merged, range(MAX_MATCHES), strict=False)]

    def as_list(self) -> list[dict[str, Any]]:
        """Return them, the best first, ready for JSON."""
        return [entry.shown for entry in self._entries]


def _shown(window: Window, score: float, key: str, position: int, body: bytes) -> dict[str, Any]:
    fields: dict[str, Any] = orjson.loads(body)
    names = list(fields)[:_MAX_FIELDS]
    labels = (fields[name] for name in _LABELS if isinstance(fields.get(name), str))
    return {
        "score": score if math.isfinite(score) else None,
        "label": truncate(next((label for label in labels if label.strip()), ""), _MAX_LABEL),
        "key": key,
        "position": position,
        "window": window.name,
        "fields": [[truncate(name, _MAX_NAME), _text(fields[name])] for name in names],
        "more_fields": len(fields) - len(names),
    }


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return truncate(text, _MAX_VALUE)


def truncate(text: str, length: int) -> str:
    """Return text of at most ``length`` characters; an ellipsis marks what is left out."""
    return text if len(text) <= length else text[: length - 1] + "…"
