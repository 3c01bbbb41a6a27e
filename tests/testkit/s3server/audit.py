"""What the server saw: counts, peaks, a log of requests, and every lost object."""

from __future__ import annotations

from collections import Counter, deque
from typing import NamedTuple


class LogEntry(NamedTuple):
    """One request as it was answered; status 0 means that the connection was dropped."""

    ordinal: int
    operation: str
    bucket: str
    key: str
    status: int


class Loss(NamedTuple):
    """An overwrite or delete that removed the last copy of some content in its bucket."""

    operation: str
    bucket: str
    key: str
    etag: str
    ordinal: int


class Audit:
    """What the server saw.

    Args:
        log_size: how many requests the log keeps; 0 turns it off.
    """

    def __init__(self, log_size: int) -> None:
        self.counts: Counter[str] = Counter()
        self.lost: list[Loss] = []
        self.log: deque[LogEntry] = deque(maxlen=log_size)
        self.peak_total = 0
        self._running: Counter[str] = Counter()
        self._peaks: Counter[str] = Counter()

    @property
    def peak(self) -> dict[str, int]:
        """The most requests of each operation that were being answered at one time."""
        return {operation: max(1, self._peaks[operation]) for operation in self.counts}

    def enter(self, operation: str) -> None:
        """Record that a request that may take time has begun."""
        self._running[operation] += 1
        self._peaks[operation] = max(self._peaks[operation], self._running[operation])
        self.peak_total = max(self.peak_total, self._running.total())

    def leave(self, operation: str) -> None:
        """Record that it has ended."""
        self._running[operation] -= 1
