"""Deadlines that pass without waiting, because the event loop's clock is moved forward."""

from __future__ import annotations

import asyncio

import pytest

from asyncagg.job.deadline import Deadline

__all__ = ("Leaps", "deadline")


class Leaps:
    """Moves the event loop's clock forward, so that no test waits for a deadline."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        real_time = loop.time
        self._ahead = 0.0
        monkeypatch.setattr(loop, "time", lambda: real_time() + self._ahead)

    def leap(self, seconds: float) -> None:
        """Move the clock; the loop reads it in its next iteration."""
        self._ahead += seconds
        asyncio.get_running_loop().call_soon(int)


def deadline(seconds: float = 100.0) -> Deadline:
    """Return a deadline that is reached only by `Leaps.leap`."""
    return Deadline(asyncio.get_running_loop().time() + seconds, reserve=seconds / 20)
