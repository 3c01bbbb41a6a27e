"""The time limits of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import anyio


@dataclass(frozen=True, slots=True)
class Deadline:
    """The time limits of a run, on the event loop's clock, in seconds.

    Attributes:
        ends: When the run must be over; infinity means no deadline.
        reserve: Seconds before ``ends`` at which work stops, to leave time for the report.
    """

    ends: float = math.inf
    reserve: float = 0.0

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """Return the deadline ``seconds`` from now; ``None`` means no deadline."""
        if seconds is None:
            return cls()
        return cls(anyio.current_time() + seconds, min(5.0, seconds / 10))

    @property
    def work_ends(self) -> float:
        """When the last request must be over."""
        return self.ends - self.reserve

    def intake_ends(self) -> float:
        """Return when to stop fetching: half-way, because archiving takes about as long.

        As long as the reserve is left over, to list on and count the rest of the inbox.
        """
        now = anyio.current_time()
        return now + max(0.0, self.work_ends - self.reserve - now) / 2
