"""A run that is cut off with a backlog of 60,000 files, on a virtual clock."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import cache

import anyio
import msgspec

from asyncagg.job.deadline import Deadline
from asyncagg.job.outcome import RunReport
from asyncagg.job.pipeline import run
from asyncagg.model import RunFile
from asyncagg.settings import Settings
from asyncagg.store.memory import MemoryStore
from testkit.hooked import HookedStore
from testkit.scenario import AT, moment
from testkit.virtual import run_virtually

__all__ = ("BACKLOG", "CutOff", "cut_off")

BACKLOG = 60_000
_PAGE = 1000
_GET_SECONDS = 0.5


@dataclass(frozen=True)
class CutOff:
    """What a run tells, and how many files of windows that have ended it really leaves."""

    report: RunReport
    left: int


@dataclass
class _Slow(HookedStore):
    """Lists the inbox from a list: sorting it for each page would take most of the test's time."""

    files: Sequence[RunFile] = ()
    page_seconds: float = field(default=0.0, kw_only=True)

    async def list_pages(
        self, prefix: str, *, start_after: str = ""
    ) -> AsyncIterator[Sequence[RunFile]]:
        """As `Store.list_pages`; nothing but the inbox has objects."""
        assert not start_after
        files = self.files if prefix == "runs/" else ()
        for start in range(0, len(files), _PAGE):
            await anyio.sleep(self.page_seconds)
            yield files[start : start + _PAGE]


@cache
def _inbox() -> MemoryStore:
    store = MemoryStore(clock=lambda: moment(13, 57))
    anyio.run(store.put, "runs/000000.json", b'{"run_id": "a"}')
    (first,) = store._objects.values()
    for number in range(BACKLOG):
        file = msgspec.structs.replace(first.info.file, key=f"runs/{number:06}.json")
        info = msgspec.structs.replace(first.info, file=file)
        store._objects[file.key] = msgspec.structs.replace(first, info=info)
    return store


def cut_off(seconds: float, *, page_seconds: float) -> CutOff:
    """Run until the time is up; a page of the listing takes ``page_seconds``."""
    inner = MemoryStore(clock=lambda: AT)
    inner._objects.update(_inbox()._objects)
    files = [each.info.file for each in inner._objects.values()]

    async def slow(operation: str, key: str, when: str) -> None:
        if (operation, when) == ("get", "before") and key.startswith("runs/"):
            await anyio.sleep(_GET_SECONDS)

    async def work() -> RunReport:
        store = _Slow(inner, slow, files=files, page_seconds=page_seconds)
        return await run(store, Settings(), at=AT, deadline=Deadline.after(seconds))

    report = run_virtually(work)
    return CutOff(report, sum(key.startswith("runs/") for key in inner._objects))
