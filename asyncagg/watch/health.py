"""Whether a watch is well, judged by its last runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio

from asyncagg.errors import ConfigurationError
from asyncagg.watch import WatchedRun

__all__ = ("Health",)

_PATIENCE_WINDOWS = 2


class Health:
    """Well is a watch whose last success is recent.

    A success is a run that came to its end, or did something in its time, and left no window in
    failure; deferred and quarantined files do not count against it. One failure that may pass does
    not make a watch unwell, a success that is more than two windows old does. Configuration trouble
    (no permission, no bucket) does at once: somebody has to mend it. The next success makes it well
    again.

    Args:
        window_minutes: The length of a window.
        delay: How long after the end of a window its run starts, in seconds.
        clock: The time in seconds; one that nobody sets.
    """

    def __init__(
        self,
        window_minutes: int,
        delay: float,
        *,
        clock: Callable[[], float] = anyio.current_time,
    ) -> None:
        self._window_seconds = window_minutes * 60
        self._patience = _PATIENCE_WINDOWS * self._window_seconds + delay
        self._clock = clock
        self._last: WatchedRun | None = None
        self._success: tuple[float, WatchedRun] | None = None

    def note(self, done: WatchedRun) -> None:
        """Take notice of a run."""
        self._last = done
        if not done.trouble:
            self._success = self._clock(), done

    @property
    def reason(self) -> str:
        """Why it is unwell, or empty."""
        if self._last is None:
            return "no run has come to its end yet"
        trouble = self._last.trouble
        if trouble and isinstance(self._last.error, ConfigurationError):
            return trouble
        if self._success is None:
            return trouble
        age = self._clock() - self._success[0]
        if age > self._patience:
            told = f"the last success was {age:.0f} seconds ago"
            return f"{told}: {trouble}" if trouble else told
        return ""

    def as_dict(self) -> dict[str, Any]:
        """Return the state, ready for JSON."""
        return {
            "healthy": not self.reason,
            "reason": self.reason,
            "last_run": None if self._last is None else self._last.end.isoformat(),
            "last_trouble": "" if self._last is None else self._last.trouble,
            "last_success": None if self._success is None else self._success[1].end.isoformat(),
            "seconds_since_success": (
                None if self._success is None else round(self._clock() - self._success[0], 3)
            ),
        }
