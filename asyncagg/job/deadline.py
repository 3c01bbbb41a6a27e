"""The moments by which a run must have done things."""

from __future__ import annotations

import math
from dataclasses import dataclass

import anyio

__all__ = ("Deadline",)


@dataclass(frozen=True, slots=True)
class Deadline:
    """The moments by which a run must have done things, on the event loop's clock, in seconds.

    Attributes:
        ends: When the run must be over; infinity where there is no deadline.
        reserve: How long before that it ends its work, to say what is left.
    """

    ends: float = math.inf
    reserve: float = 0.0

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """Return the deadline that is ``seconds`` from now; ``None`` means no deadline."""
        if seconds is None:
            return cls()
        return cls(anyio.current_time() + seconds, min(5.0, seconds / 10))

    @property
    def work_ends(self) -> float:
        """When the last request must be over."""
        return self.ends - self.reserve

    def intake_ends(self) -> float:
        """When to stop fetching, from now: to archive takes about as long as to fetch."""
        now = anyio.current_time()
        return now + max(0.0, self.work_ends - now) / 2
