"""What a piece of work is done with, whoever does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from asyncagg.settings import Settings
from asyncagg.store import Store

__all__ = ("JobContext",)


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class JobContext:
    """What a piece of work is done with.

    Attributes:
        store: Where the objects live.
        settings: The prefixes, the window and the bounds.
        temporary: Folder for rows that do not fit in memory.
        now: The clock of ``aggregation_timestamp``.
    """

    store: Store
    settings: Settings
    temporary: Path | None = None
    now: Callable[[], datetime] = _now
