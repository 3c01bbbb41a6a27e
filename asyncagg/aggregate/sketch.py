"""A mergeable sketch of a distribution: quantiles with a bounded relative error."""

from __future__ import annotations

import math
import sys
from typing import Any


class Sketch:
    """A DDSketch: quantiles with a bounded relative error, mergeable without loss.

    The ``ddsketch`` package is not used: its state can be stored only as protobuf, and its bins
    depend on the order of insertion, so the same input would not give the same bytes.

    Source: Masson, Rim, Lee: DDSketch, VLDB 2019, https://arxiv.org/abs/1908.10693.

    Attributes:
        bins: How many values fell in each bin; bin ``i`` holds (g^(i-1), g^i]
            where g is (1 + accuracy) / (1 - accuracy).
        zeros: How many values were below a nanosecond, and count as 0.
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
        """Add the counts of another sketch."""
        self.zeros += other.zeros
        for index, count in other.bins.items():
            self.bins[index] = self.bins.get(index, 0) + count

    @property
    def count(self) -> int:
        """How many values were counted."""
        return self.zeros + sum(self.bins.values())

    def quantile(self, q: float) -> float | None:
        """Return the ``q`` quantile (0 to 1) of the values; ``None`` if there are none."""
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
        """Return the state for `from_state`, ready for JSON."""
        return {
            "accuracy": self.ACCURACY,
            "zeros": self.zeros,
            "bins": [[index, self.bins[index]] for index in sorted(self.bins)],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Sketch:
        """Return the sketch with this `state`."""
        if state["accuracy"] != cls.ACCURACY:
            raise ValueError(f"sketch accuracy {state['accuracy']!r}: expected {cls.ACCURACY}")
        bins = {int(index): int(count) for index, count in state["bins"]}
        if any(abs(index) > cls._FARTHEST or count <= 0 for index, count in bins.items()):
            raise ValueError("sketch bins: expected those of finite numbers, with positive counts")
        return cls(bins, int(state["zeros"]))
