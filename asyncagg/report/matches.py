"""The best matches of many aggregates, in a form to be shown: bounded in number and in size."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import orjson

from asyncagg.aggregate.accumulator import RankedMatch
from asyncagg.model import Window

__all__ = ("MOST_MATCHES", "BestMatches", "cut")

MOST_MATCHES = 200
"""How many matches a report shows."""

_MOST_FIELDS = 40
_LONGEST_NAME = 120
_LONGEST_VALUE = 1000
_LONGEST_LABEL = 300

_TIE = 4096
"""As many bytes of a match's JSON settle a tie: two versions of one key."""

_LABELS = ("title", "name", "solicitation_id", "id")
"""The fields that tell people which match it is; the first that there is."""


class _Entry(NamedTuple):
    order: tuple[float, str, int, bytes, str]
    shown: dict[str, Any]


class BestMatches:
    """The best of what aggregates keep as their own best.

    Its first ten are the top 10 of all the files together, exactly: none of those can be missing
    in the top 10 of its own window. Further down it is the best of ten a window.
    """

    def __init__(self) -> None:
        self._entries: list[_Entry] = []

    def add(self, window: Window, ranked: Iterable[RankedMatch]) -> None:
        """Take in the matches of a window's aggregate, the best first."""
        full = len(self._entries) == MOST_MATCHES
        fresh = []
        for score, key, position, body in ranked:
            order = (score, key, position, body[:_TIE], window.name)
            if full and order >= self._entries[-1].order:
                break
            fresh.append(_Entry(order, _shown(window, -score, key, position, body)))
        if fresh:
            merged = heapq.merge(self._entries, fresh, key=lambda entry: entry.order)
            self._entries = [entry for entry, _ in zip(merged, range(MOST_MATCHES), strict=False)]

    def as_list(self) -> list[dict[str, Any]]:
        """Return them, the best first, ready for JSON."""
        return [entry.shown for entry in self._entries]


def _shown(window: Window, score: float, key: str, position: int, body: bytes) -> dict[str, Any]:
    fields: dict[str, Any] = orjson.loads(body)
    names = list(fields)[:_MOST_FIELDS]
    labels = (fields[name] for name in _LABELS if isinstance(fields.get(name), str))
    return {
        "score": score if math.isfinite(score) else None,
        "label": cut(next((label for label in labels if label.strip()), ""), _LONGEST_LABEL),
        "key": key,
        "position": position,
        "window": window.name,
        "fields": [[cut(name, _LONGEST_NAME), _text(fields[name])] for name in names],
        "more_fields": len(fields) - len(names),
    }


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return cut(text, _LONGEST_VALUE)


def cut(text: str, longest: int) -> str:
    """Return a text of at most so many characters; an ellipsis says that there was more."""
    return text if len(text) <= longest else text[: longest - 1] + "…"
