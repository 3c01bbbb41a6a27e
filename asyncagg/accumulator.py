"""The value that run results are folded into, and that merges with another of its kind.

It is a commutative monoid: ``Accumulator()`` is its identity, `Accumulator.merge` is associative
and commutative, and folding a list in any order or any split gives the same value, to the byte.
"""

from __future__ import annotations

import heapq
import math
import sys
from collections.abc import Iterable
from decimal import Context, Decimal, Inexact
from typing import Any, TypeAlias

import orjson

from asyncagg.model import Match, RunResult

__all__ = ("TOP", "Accumulator", "RankedMatch", "Sketch", "best", "rank")

TOP = 10
"""How many matches an aggregate shows."""

RankedMatch: TypeAlias = tuple[float, str, int, bytes]
"""A match in its place: minus its score, its file's key, its position there, its JSON.

Sorted, the first is the best. The JSON settles what the rest leaves open: two versions of one key.
"""

RESERVED = ("source_key", "source_position")
"""What an aggregate adds to a match object, to say where it came from."""

# Exact or an error: no sum ever drifts, whatever the order of its terms.
_EXACT = Context(prec=2000, traps=[Inexact])


class Sketch:
    """A DDSketch: quantiles with a bounded relative error, mergeable without loss.

    The ``ddsketch`` package was not taken: its state can be stored only through protobuf, its bins
    carry padding and floating-point counts that depend on the order of insertion (so the same input
    would not give the same bytes), and the algorithm is these few lines.

    Source: Masson, Rim, Lee: DDSketch, VLDB 2019, https://arxiv.org/abs/1908.10693.

    Attributes:
        bins: How many values fell in each bin; bin ``i`` holds (g^(i-1), g^i]
            where g is (1 + accuracy) / (1 - accuracy).
        zeros: How many values were below a nanosecond, taken for 0.
    """

    ACCURACY = 0.01
    SMALLEST = 1e-9
    _GAMMA = (1 + ACCURACY) / (1 - ACCURACY)
    _LOG_GAMMA = math.log(_GAMMA)
    _FARTHEST = math.floor(math.log(sys.float_info.max) / _LOG_GAMMA) - 1

    __slots__ = ("bins", "zeros")

    def __init__(self, bins: dict[int, int] | None = None, zeros: int = 0) -> None:
        self.bins = {} if bins is None else bins
        self.zeros = zeros

    def add(self, value: float) -> None:
        """Count one value, from 0."""
        if value < self.SMALLEST:
            self.zeros += 1
            return
        index = math.ceil(math.log(value) / self._LOG_GAMMA)
        self.bins[index] = self.bins.get(index, 0) + 1

    def merge(self, other: Sketch) -> None:
        """Count what another sketch counted."""
        self.zeros += other.zeros
        for index, count in other.bins.items():
            self.bins[index] = self.bins.get(index, 0) + count

    @property
    def count(self) -> int:
        """How many values were counted."""
        return self.zeros + sum(self.bins.values())

    def quantile(self, q: float) -> float | None:
        """Return the value below which a share ``q`` of the values lies; ``None`` of none."""
        if not self.count:
            return None
        rank_left = math.floor(q * (self.count - 1)) - self.zeros
        if rank_left < 0:
            return 0.0
        for index in sorted(self.bins):
            rank_left -= self.bins[index]
            if rank_left < 0:
                break
        return 2 * self._GAMMA**index / (self._GAMMA + 1)

    def state(self) -> dict[str, Any]:
        """Return what `from_state` needs, ready for JSON."""
        return {
            "accuracy": self.ACCURACY,
            "zeros": self.zeros,
            "bins": [[index, self.bins[index]] for index in sorted(self.bins)],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Sketch:
        """Return the sketch whose `state` this is."""
        if state["accuracy"] != cls.ACCURACY:
            raise ValueError(f"sketch accuracy {state['accuracy']!r}: expected {cls.ACCURACY}")
        bins = {int(index): int(count) for index, count in state["bins"]}
        if any(abs(index) > cls._FARTHEST or count <= 0 for index, count in bins.items()):
            raise ValueError("sketch bins: expected those of finite numbers, with what they count")
        return cls(bins, int(state["zeros"]))


def rank(key: str, match: Match) -> RankedMatch:
    """Return a match of the file ``key`` in its place in the total order."""
    body = {name: value for name, value in match.body.items() if name not in RESERVED}
    return (-match.score, key, match.position, orjson.dumps(body))


def best(ranked: Iterable[RankedMatch]) -> list[RankedMatch]:
    """Return the `TOP` best, the best first, through a bounded heap."""
    return heapq.nsmallest(TOP, ranked)


class Accumulator:
    """Sums, extremes, quantiles and the top matches of run results.

    Attributes:
        counted: Files folded in.
        quarantined: Files refused.
        bytes: Bytes of the files folded in, as stored.
        opportunities: Sum over the runs.
        matches: Sum over the runs.
        no_matches: Sum over the runs.
        errors: Sum over the runs.
        timed: Runs that said how long they took.
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
            result: What it says.
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
        # The shortest decimal that reads back as this float is what the run's JSON said.
        self.seconds = _EXACT.add(self.seconds, Decimal(repr(seconds)))
        if seconds < self.shortest:  # noqa: PLR1730 - a call costs four times as much
            self.shortest = seconds
        if seconds > self.longest:  # noqa: PLR1730 - likewise
            self.longest = seconds
        self.sketch.add(seconds)

    @property
    def least(self) -> float:
        """The score below which no match comes to the top any more."""
        return -self.top[-1][0] if len(self.top) == TOP else -math.inf

    def _compete(self, key: str, matches: Iterable[Match]) -> None:
        least = self.least
        rivals = [rank(key, match) for match in matches if match.score >= least]
        if rivals:
            self.top = best([*self.top, *rivals])

    def merge(self, other: Accumulator) -> None:
        """Take in all that another accumulator has folded."""
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
