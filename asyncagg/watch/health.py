"""Whether a watch is healthy, judged by its last runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio

from asyncagg.errors import TransientError
from asyncagg.watch.watcher import WatchedRun

_PATIENCE_WINDOWS = 2


class Health:
    """A watch is healthy while its last success is at most two windows old.

    A run succeeds if it completes, or does some work in its time, and no window fails; deferred
    and quarantined files are no failure. An error that is not temporary (no permission, no bucket)
    makes the watch unhealthy at once, because someone must correct it. The next success makes it
    healthy.

    Args:
        window_minutes: The length of a window.
        delay: How long after the end of a window its run starts, in seconds.
        clock: A monotonic clock, in seconds.
    """

    def __init__(
        self,
        window_minutes: int,
        delay: float,
        *,
        clock: Callable[[], float] = anyio.current_time,
    ) -> None:
        self._patience = _PATIENCE_WINDOWS * window_minutes * 60 + delay
        self._clock = clock
        self._last: WatchedRun | None = None
        self._success: tuple[float, WatchedRun] | None = None

    def note(self, done: WatchedRun) -> None:
        """Record a run."""
        self._last = done
        if not done.trouble:
            self._success = self._clock(), done

    @property
    def reason(self) -> str:
        """Why it is unhealthy, or empty."""
        if self._last is None:
            return "no run has completed yet"
        trouble = self._last.trouble
        if trouble and not isinstance(self._last.error, TransientError | None):
            return trouble
        if self._success is None:
            return trouble
        age = self._clock() - self._success[0]
        if age > self._patience:
            message = f"the last success was {age:.0f} seconds ago"
            return f"{message}: {trouble}" if trouble else message
        return ""

    def as_dict(self) -> dict[str, Any]:
        """Return the state, ready for JSON."""
        at, success = self._success or (None, None)
        return {
            "healthy": not self.reason,
            "reason": self.reason,
            "last_run": self._last.end.isoformat() if self._last else None,
            "last_trouble": self._last.trouble if self._last else "",
            "last_success": success.end.isoformat() if success else None,
            "seconds_since_success": None if at is None else round(self._clock() - at, 3),
        }
