"""Dependencies shared by all jobs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from secrets import token_hex

from asyncagg.aggregate.spool import Spool, open_spool
from asyncagg.job.layout import Layout
from asyncagg.job.slots import Slots
from asyncagg.model import RunFile, Window
from asyncagg.runtime.clock import utc_now
from asyncagg.runtime.process import PROC
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.windows import window_selector


def _random_id() -> str:
    return token_hex(8)


@dataclass(frozen=True)
class JobContext:
    """Dependencies shared by all jobs.

    Attributes:
        store: Where the objects are.
        settings: The prefixes, the window and the bounds.
        temporary: Folder for data that does not fit in memory; default: the system's.
        now: The clock of ``aggregation_timestamp``.
        new_id: Returns a name that is unique among all runners.
        proc: Where the system shows its processes, if it does.
    """

    store: Store
    settings: Settings
    temporary: Path | None = None
    now: Callable[[], datetime] = utc_now
    new_id: Callable[[], str] = _random_id
    proc: Path = PROC

    @cached_property
    def layout(self) -> Layout:
        """The keys of run files, aggregates and archived files."""
        return Layout(self.settings)

    @cached_property
    def window_of(self) -> Callable[[RunFile], Window]:
        """The function that returns the window of a run file."""
        return window_selector(self.settings.window_by, self.settings.window_minutes)

    @cached_property
    def slots(self) -> Slots:
        """The request slots of this job."""
        return Slots(self.settings.concurrency)

    def open_spool(self, share: int = 1) -> AbstractAsyncContextManager[Spool]:
        """Open a spool that keeps in memory one of ``share`` parts of ``spool_bytes``."""
        return open_spool(self.settings.spool_bytes // share, self.temporary)
