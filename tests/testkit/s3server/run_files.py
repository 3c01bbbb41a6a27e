"""Run files that fill an inbox: generated from a number when they are read, with exact totals."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from operator import add
from typing import Any

from testkit.s3server.objects import Bucket, Content, State, StoredObject
from testkit.s3server.wire import iso_time

JSON_HEAD = b"content-type: application/json\r\n"
TOTALS = ("files", "bytes", "total_opportunities", "matches_found", "no_matches", "errors")
_RUN = (
    b'{"run_id": "%b-%06d", "timestamp": "%b", "total_opportunities": %d, "matches_found": %d, '
    b'"no_matches": %d, "errors": %d, "processing_time_seconds": %d.%03d, "top_matches": ['
)
_MATCH = (
    b'{"opportunity_id": "DARPA-PS-25-%02d-%06d", "title": "Resilient autonomous logistics", '
    b'"agency": "Defense Advanced Research Projects Agency", "match_score": 0.%04d, '
    b'"reasons": ["past performance", "naics 541715", "set-aside"]}'
)


def fill(
    state: State,
    bucket: str,
    prefix: str,
    count: int,
    windows: Iterable[str | Mapping[str, str]],
    *,
    size: int = 2500,
    seed: int = 0,
) -> dict[str, Any]:
    """Store `count` run files whose bodies are generated when read.

    Args:
        state: where to store them.
        bucket: created if absent.
        prefix: of the keys, such as ``runs/``.
        count: how many files; they are spread evenly over the windows, in order.
        windows: for each an ISO time, or ``{"last_modified": ISO, "stamp": in the name}``.
        size: about how many bytes each body has.
        seed: varies the bodies.

    Returns:
        The exact totals, and under ``by_window`` those of each stamp.
    """
    home = state.buckets.setdefault(bucket, Bucket())
    recipes = [RunRecipe.of(window, size, seed) for window in windows]
    sources = [recipe.body for recipe in recipes]  # one bound method for all files of a window
    rows = {recipe.stamp: [0] * len(TOTALS) for recipe in recipes}
    state.operation = "fill"
    gc.disable()  # a million new objects, none of them garbage
    try:
        for index in range(count):
            chosen = index * len(recipes) // count
            recipe = recipes[chosen]
            body = recipe.body(index)
            digest = hashlib.md5(body, usedforsecurity=False).digest()
            content = home.adopt(Content(digest, len(body), (sources[chosen], index)))
            stored = StoredObject(content, recipe.last_modified, JSON_HEAD)
            state.write(bucket, f"{prefix}{recipe.name(index)}", stored)
            row = (1, len(body), *recipe.counts(index))
            rows[recipe.stamp] = list(map(add, rows[recipe.stamp], row))
    finally:
        gc.enable()
    if count >= 100_000:
        gc.freeze()  # later collections need not look at them
    whole = dict(zip(TOTALS, map(sum, zip(*rows.values(), strict=True)), strict=True))
    by_window = {stamp: dict(zip(TOTALS, row, strict=True)) for stamp, row in rows.items()}
    return {**whole, "by_window": by_window}


@dataclass(frozen=True, slots=True)
class RunRecipe:
    """Generates the run files of one window; the same index always gives the same bytes."""

    stamp: str
    last_modified: datetime
    template: bytes
    matches: int
    seed: int

    @classmethod
    def of(cls, window: str | Mapping[str, str], size: int, seed: int) -> RunRecipe:
        """Read one entry of a fill's windows."""
        given = {"last_modified": window} if isinstance(window, str) else window
        moment = datetime.fromisoformat(given["last_modified"]).astimezone(UTC)
        stamp = given.get("stamp") or moment.strftime("%Y%m%dt%H%MZ")
        matches = min(10, max(1, (size - len(_RUN)) // len(_MATCH)))
        template = _RUN + b", ".join([_MATCH] * matches) + b'], "engine": "matcher 4.2"}'
        recipe = cls(stamp, moment.replace(microsecond=0), template, matches, seed)
        padding = _padding(size - len(recipe.body(0)))
        return replace(recipe, template=template[:-1] + padding + b"}")

    def name(self, index: int) -> str:
        """Return the file's name."""
        return f"{self.stamp}_DARPA-PS-25-32-{index:06d}.json"

    def counts(self, index: int) -> tuple[int, int, int, int]:
        """Return the file's opportunities, matches, non-matches and errors."""
        noise = self._noise(index)
        total = 40 + noise % 160
        matches = (noise >> 8) % (total // 4)
        errors = (noise >> 16) % 50 // 48
        return total, matches, total - matches - errors, errors

    def body(self, index: int) -> bytes:
        """Return the file's bytes."""
        noise = self._noise(index)
        scores: list[int] = []
        for place in range(self.matches):
            mixed = (noise * (2 * place + 3)) & 0xFFFFFFFF
            scores += (mixed % 90, mixed % 1000000, mixed >> 19)
        timestamp = iso_time(self.last_modified).encode()
        head = (self.stamp.encode(), index, timestamp, *self.counts(index))
        return self.template % (*head, noise % 90, noise % 997, *scores)

    def _noise(self, index: int) -> int:
        return ((index + 1) * 2654435761 + self.seed * 40503) & 0xFFFFFFFF


def _padding(size: int) -> bytes:
    """Return an unknown field of this size: a log, as real run files have."""
    field, line = b', "log": [%b]', b'"compared with one more solicitation: nothing to report"'
    lines = (size - len(field)) // (len(line) + 1)
    text = field.replace(b"%b", b",".join([line] * lines)) if lines > 0 else b""
    return text + b" " * (size - len(text))
