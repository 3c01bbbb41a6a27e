"""The journal of a store: what a run works on, so that the next one knows what it died of.

A run that is killed (no memory left, a crash in native code, Lambda's timeout) cannot say why, but
its journal still says that it is running. The next run narrows the cause down: it settles few files
at a time, one request after the other, and writes down which. If it dies too, those are the
suspects: they are tried last, in ever smaller parts. A file that a run dies of alone is deferred
from there on, and all others go on as usual.
"""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

import anyio
import msgspec

from asyncagg.errors import NotFoundError, StoreError
from asyncagg.job.context import JobContext
from asyncagg.job.deadline import Deadline
from asyncagg.model import RunFile

PARTS = 10
"""Into so many parts the suspects of a run that died are divided."""

_LIFETIME = timedelta(minutes=15)
"""How long a run without a deadline is believed to live, if its process cannot be checked."""

_END_SECONDS = 5.0

_log = logging.getLogger(__name__)


class _Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the journal says; files are keys with their etags.

    Attributes:
        running: Whether a run has begun and not ended.
        host: The machine of the run.
        process: Its process.
        until: When it must have ended.
        working: The files that it works on; empty for many at a time.
        suspects: Groups of files of which an earlier run died; each run tries the last one first.
        poison: The files that runs died of.
    """

    running: bool = False
    host: str = ""
    process: int = 0
    until: datetime | None = None
    working: dict[str, str] = {}
    suspects: list[dict[str, str]] = []
    poison: dict[str, str] = {}

    async def was_killed(self, now: datetime) -> bool:
        """Return whether the run ended without saying so."""
        if not self.running:
            return False
        is_over = self.until is not None and self.until <= now
        return is_over or (self.host == socket.gethostname() and await _is_gone(self.process))


async def _is_gone(process: int) -> bool:
    """Return whether a process of this machine has ended, where that can be seen."""
    processes = anyio.Path("/proc")
    return await processes.is_dir() and not await (processes / str(process)).exists()


class Journal:
    """Says what this run works on, and what the last one died of.

    Args:
        context: Where the journal is.
        deadline: When the run must be over.
        is_kept: Whether it is read and written at all.

    Attributes:
        is_careful: Whether to settle few files at a time.
        watched: Keys and etags of the files that are not to be settled with the others.
        poisonous: Files to be deferred.
    """

    def __init__(self, context: JobContext, deadline: Deadline, *, is_kept: bool) -> None:
        self.is_careful = False
        self._is_kept = is_kept
        self.watched: frozenset[tuple[str, str]] = frozenset()
        self.poisonous: list[RunFile] = []
        self._context = context
        self._deadline = deadline
        self._is_ours = False
        self._written: _Entry | None = None
        self._poison: dict[str, str] = {}
        self._suspects: list[dict[str, str]] = []
        self._held: dict[tuple[str, str], RunFile] = {}

    async def open(self) -> None:
        """Read what the last run has left."""
        if not self._is_kept:
            return
        last = await self._read()
        if last is None:
            return
        self._poison, self._suspects = last.poison, last.suspects
        was_killed = await last.was_killed(self._context.now())
        self._is_ours = was_killed or not last.running  # else another runner is at work
        if was_killed:
            self._narrow_down(last.working)
        self.watched = frozenset(
            each for group in (self._poison, *self._suspects) for each in group.items()
        )

    def _narrow_down(self, working: dict[str, str]) -> None:
        """Learn from the files that a run worked on when it was killed."""
        _log.warning("the last run was killed", extra={"files": len(working)})
        if not working:
            self.is_careful = True
        elif len(working) == 1:
            self._poison = self._poison | working
        else:
            self._suspects = [*self._suspects, working]

    def hold_back(self, file: RunFile) -> None:
        """Keep a watched file, to be tried last or deferred."""
        if self._poison.get(file.key) == file.etag:
            self.poisonous.append(file)
        else:
            self._held[file.key, file.etag] = file

    async def begin(self, files: Sequence[RunFile] = ()) -> None:
        """Say that this run works, and on which files if they are few."""
        if not files and self._written is not None and not self._written.working:
            return  # it says so already
        is_limited = self._deadline.ends < math.inf
        seconds = self._deadline.ends - anyio.current_time()
        await self._write(
            _Entry(
                running=True,
                host=socket.gethostname(),
                process=os.getpid(),
                until=self._context.now()
                + (timedelta(seconds=seconds) if is_limited else _LIFETIME),
                working={file.key: file.etag for file in files},
                suspects=self._suspects,
                poison=self._poison,
            )
        )

    def next_part(self) -> list[RunFile]:
        """Return some of the suspects, to be tried without the others; none if all are tried."""
        while self._suspects:
            group = self._suspects[-1]
            held = [each for each in group.items() if each in self._held]
            part = held[: max(1, len(group) // PARTS)]
            if part:
                self._suspects[-1] = {key: group[key] for key in group if key not in dict(part)}
                return [self._held.pop(each) for each in part]
            self._suspects.pop()
        return []

    @property
    def untried(self) -> int:
        """How many files were held back, and neither tried nor deferred."""
        return len(self._held) + len(self.poisonous)

    async def end(self) -> None:
        """Say that the run has ended."""
        if self._written is not None:
            left = [{file.key: file.etag for file in self._held.values()}] if self._held else []
            await self._write(_Entry(suspects=left, poison=self._poison))

    async def _read(self) -> _Entry | None:
        key = self._context.layout.journal_key
        try:
            data = (await self._context.store.get(key)).data
            return msgspec.json.decode(data, type=_Entry)
        except (NotFoundError, msgspec.MsgspecError):
            return _Entry()
        except StoreError as error:
            # The work does not depend on it, but what it says must not be overwritten.
            _log.warning("journal not read", extra={"key": key, "reason": str(error)})
            return None

    async def _write(self, entry: _Entry) -> None:
        if not self._is_ours:
            return
        key = self._context.layout.journal_key
        try:
            await self._context.store.put(key, msgspec.json.encode(entry))
            self._written = entry
        except StoreError as error:  # the work does not depend on it
            _log.warning("journal not written", extra={"key": key, "reason": str(error)})


@asynccontextmanager
async def open_journal(
    context: JobContext, deadline: Deadline, *, kept: bool
) -> AsyncIterator[Journal]:
    """Give the journal, to be opened if it is ``kept``; say at the end that the run has ended."""
    journal = Journal(context, deadline, is_kept=kept)
    try:
        yield journal
    finally:
        left = (deadline.ends - anyio.current_time()) / 2  # the report needs some time, too
        with anyio.move_on_after(max(0.0, min(_END_SECONDS, left)), shield=True):
            await journal.end()
