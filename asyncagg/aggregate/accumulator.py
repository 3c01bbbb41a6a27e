"""The accumulator: run results are folded into it, and accumulators are merged.

It is a commutative monoid: ``Accumulator()`` is its identity, `Accumulator.merge` is associative
and commutative, and folding a list in any order or any split gives the same value, to the byte.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from decimal import Context, Decimal, Inexact
from typing import Any, TypeAlias

import orjson

from asyncagg.aggregate.sketch import Sketch
from asyncagg.model import TOP, Match, RunResult

RankedMatch: TypeAlias = tuple[float, str, int, bytes]
"""A match with its sort key: minus its score, its file's key, its position there, its JSON.

The best match is the smallest. The JSON decides between two versions of one key.
"""

RESERVED = ("source_key", "source_position")
"""The fields that an aggregate adds to a match object, to name its source."""

# Exact, or an error: the sum never depends on the order of its terms.
_EXACT = Context(prec=2000, traps=[Inexact])


def rank(key: str, match: Match) -> RankedMatch:
    """Return a match of the file ``key`` with its sort key."""
    body = match.body
    if b'"source_' in body:
        fields = orjson.loads(body)
        body = orjson.dumps({name: fields[name] for name in fields if name not in RESERVED})
    return (-match.score, key, match.position, body)


def best(ranked: Iterable[RankedMatch]) -> list[RankedMatch]:
    """Return the `TOP` best, the best first, through a bounded heap."""
    return heapq.nsmallest(TOP, ranked)


class Accumulator:
    """Sums, extremes, quantiles and the top matches of run results.

    Attributes:
        counted: Files folded in.
        quarantined: Files quarantined.
        bytes: Bytes of the files folded in, as stored.
        opportunities: Sum over the runs.
        matches: Sum over the runs.
        no_matches: Sum over the runs.
        errors: Sum over the runs.
        timed: Runs that have a processing time.
        seconds: The exact sum of their processing times.
        shortest: The least of them in seconds.
        longest: The greatest of them in seconds.
        sketch: Their distribution.
        top: The best matches, the best first.
    """

    __slots__ = (
        "bytes",
        "counted",
        "errors",
        "longest",
        "matches",
        "no_matches",
        "opportunities",
        "quarantined",
        "seconds",
        "shortest",
        "sketch",
        "timed",
        "top",
    )

    def __init__(self) -> None:
        self.counted = 0
        self.quarantined = 0
        self.bytes = 0
        self.opportunities = 0
        self.matches = 0
        self.no_matches = 0
        self.errors = 0
        self.timed = 0
        self.seconds = Decimal(0)
        self.shortest = math.inf
        self.longest = -math.inf
        self.sketch = Sketch()
        self.top: list[RankedMatch] = []

    def fold(self, key: str, size: int, result: RunResult) -> None:
        """Fold one run file in.

        Args:
            key: The file's key.
            size: Its size in bytes, as stored.
            result: Its content.
        """
        self.counted += 1
        self.bytes += size
        self.opportunities += result.opportunities
        self.matches += result.matches
        self.no_matches += result.no_matches
        self.errors += result.errors
        if result.processing_time is not None:
            self._time(result.processing_time)
        if result.top_matches:
            self._compete(key, result.top_matches)

    def _time(self, seconds: float) -> None:
        self.timed += 1
        # The shortest decimal of a float is the number in the JSON of the run.
        self.seconds = _EXACT.add(self.seconds, Decimal(repr(seconds)))
        if seconds < self.shortest:  # noqa: PLR1730 - a call costs four times as much
            self.shortest = seconds
        if seconds > self.longest:  # noqa: PLR1730 - likewise
            self.longest = seconds
        self.sketch.add(seconds)

    @property
    def top_cutoff(self) -> float:
        """The score below which no match can enter the top."""
        return -self.top[-1][0] if len(self.top) == TOP else -math.inf

    def _compete(self, key: str, matches: Iterable[Match]) -> None:
        top_cutoff = self.top_cutoff
        rivals = [rank(key, match) for match in matches if match.score >= top_cutoff]
        if rivals:
            self.top = best([*self.top, *rivals])

    def merge(self, other: Accumulator) -> None:
        """Add all that another accumulator has folded."""
        self.counted += other.counted
        self.quarantined += other.quarantined
        self.bytes += other.bytes
        self.opportunities += other.opportunities
        self.matches += other.matches
        self.no_matches += other.no_matches
        self.errors += other.errors
        self.timed += other.timed
        self.seconds = _EXACT.add(self.seconds, other.seconds)
        self.shortest = min(self.shortest, other.shortest)
        self.longest = max(self.longest, other.longest)
        self.sketch.merge(other.sketch)
        self.top = best([*self.top, *other.top])

    def processing_time(self) -> dict[str, Any]:
        """Return the distribution of the processing times, and the state that merges it."""
        return {
            "count": self.timed,
            "mean": float(self.seconds / self.timed) if self.timed else None,
            "min": self.shortest if self.timed else None,
            "max": self.longest if self.timed else None,
            "p50": self._quantile(0.50),
            "p90": self._quantile(0.90),
            "p99": self._quantile(0.99),
            "exact_sum": f"{self.seconds.normalize(_EXACT):f}",
            "sketch": self.sketch.state(),
        }

    def _quantile(self, q: float) -> float | None:
        value = self.sketch.quantile(q)
        return None if value is None else min(max(value, self.shortest), self.longest)
