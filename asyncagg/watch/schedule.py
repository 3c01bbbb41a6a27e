"""When the runs of a watch are due."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from asyncagg.errors import UsageError
from asyncagg.windows import window_of

DELAY_SECONDS = 5.0
"""The default delay: files that are being written when a window ends are in the listing then."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The schedule of a watch: a run after the end of each window, by the wall clock, no drift.

    A run is named by the end of the window that makes it due.

    Attributes:
        minutes: The length of a window.
        delay: How long after the end of a window its run starts, in seconds.
    """

    minutes: int
    delay: float = DELAY_SECONDS

    def __post_init__(self) -> None:
        """Raise a `UsageError` if the delay is negative or not below the length of a window."""
        longest = self.length.total_seconds()
        if not 0 <= self.delay < longest:
            raise UsageError(
                f"delay {self.delay!r}: expected a number of seconds from 0 to below {longest:g}, "
                "the length of a window",
                setting="delay",
            )

    @property
    def length(self) -> timedelta:
        """The length of a window."""
        return timedelta(minutes=self.minutes)

    def due_at(self, end: datetime) -> datetime:
        """Return when the run of the window that ends at ``end`` is due."""
        return end + timedelta(seconds=self.delay)

    def latest(self, now: datetime) -> datetime:
        """Return the end of the newest window whose run is due by ``now``."""
        return window_of(now - timedelta(seconds=self.delay), self.minutes).start

    def next_after(self, last: datetime, now: datetime) -> datetime:
        """Return the end of the window to run after ``last``.

        1. If runs are due (the last took long, the machine slept), the newest of them: it settles
           the windows of all.
        2. If none is due, the one after the last. A clock that was set back a little does not
           repeat a run.
        3. If the clock was set back by more than a window, the next one by the clock of now: the
           clock was wrong before.
        """
        due = self.latest(now)
        if due > last:
            return due
        if last - due <= self.length:
            return last + self.length
        return due + self.length

    def time_limit(self, now: datetime) -> float:
        """Return how many seconds a run that starts ``now`` has until the next one is due.

        A run that starts late, with less than half a window left, replaces the next one.
        """
        left = (self.due_at(self.latest(now) + self.length) - now).total_seconds()
        length = self.length.total_seconds()
        return left if left >= length / 2 else left + length
