"""The journal of a store: what a run works on, so that the next one knows what it died of.

A run that is killed (no memory left, a crash in native code, Lambda's timeout) cannot say why, but
its journal still says that it is running. The next run narrows the cause down: it settles few files
at a time, one request after the other, and writes down which. If it dies too, those are the
suspects: they are tried last, in ever smaller parts. A run may die of another cause, so a file that
a run dies of alone is tried alone once more. If a run dies of it again, it is deferred from then
on, and all others go on as usual.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated

import anyio
import msgspec

from asyncagg.errors import NotFoundError, StoreError
from asyncagg.job.context import JobContext
from asyncagg.job.deadline import Deadline
from asyncagg.model import RunFile
from asyncagg.runtime.process import Process

PARTS = 10
"""Into so many parts the suspects of a run that died are divided."""

_LIFETIME = timedelta(minutes=15)
"""How long a run is believed to live after it wrote the journal, if its process cannot be seen."""

_RENEWAL = timedelta(minutes=5)
"""How often a long run writes that it lives."""

_END_SECONDS = 5.0

_log = logging.getLogger(__name__)


class _Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the journal says; files are keys with their etags.

    Attributes:
        running: Whether a run has begun and not ended.
        runner: The process of the run, where it can be seen.
        until: When the run has ended or written the journal again, if it is alive.
        working: The files that it works on; empty for many at a time.
        suspects: Groups of files of which an earlier run died; each run tries the last one first.
        struck: Those that a run died of alone once, among the suspects and those it works on.
        poison: The files that runs died of.
    """

    running: bool = False
    runner: Process | None = None
    until: Annotated[datetime, msgspec.Meta(tz=True)] = datetime.min.replace(tzinfo=UTC)
    working: dict[str, str] = {}
    suspects: list[dict[str, str]] = []
    struck: dict[str, str] = {}
    poison: dict[str, str] = {}


class Journal:
    """Says what this run works on, and what the last one died of.

    Args:
        context: Where the journal is.
        deadline: When the run must be over.
        is_kept: Whether it is read and written at all.

    Attributes:
        is_careful: Whether to settle few files at a time.
        may_forget: Whether this run may write that other files are gone: it has listed all keys of
            the inbox, and is no dry run.
        watched: Keys and etags of the files that are not to be settled with the others.
        poisonous: Files to be deferred.
    """

    def __init__(self, context: JobContext, deadline: Deadline, *, is_kept: bool) -> None:
        self.is_careful = False
        self.may_forget = False
        self._is_kept = is_kept
        self.watched: frozenset[tuple[str, str]] = frozenset()
        self.poisonous: list[RunFile] = []
        self._context = context
        self._deadline = deadline
        self._is_ours = False
        self._has_begun = self._has_learned = False
        self._runner: Process | None = None
        self._written: _Entry | None = None
        self._poison: dict[str, str] = {}
        self._struck: dict[str, str] = {}
        self._suspects: list[dict[str, str]] = []
        self._part: dict[str, str] = {}
        self._listed: set[tuple[str, str]] = set()
        self._held: dict[tuple[str, str], RunFile] = {}

    async def open(self) -> None:
        """Read what the last run has left."""
        if not self._is_kept:
            return
        last = await self._read()
        if last is None:
            return
        self._runner = Process.current(self._context.proc)
        self._poison, self._struck, self._suspects = last.poison, last.struck, last.suspects
        was_killed = self._was_killed(last)
        self._is_ours = was_killed or not last.running  # else another runner is at work
        if was_killed:
            self._narrow_down(last.working)
        self.watched = frozenset(
            each for group in (self._poison, *self._suspects) for each in group.items()
        )

    def _was_killed(self, last: _Entry) -> bool:
        """Return whether the last run ended without saying so."""
        if not last.running:
            return False
        has_ended = None
        if last.runner and last.runner != self._runner:  # a process may outlive its runs
            has_ended = last.runner.has_ended(self._context.proc)
        return last.until <= self._context.now() if has_ended is None else has_ended

    def _narrow_down(self, working: dict[str, str]) -> None:
        """Learn from the files that a run worked on when it was killed."""
        self._has_learned = True
        _log.warning("the last run was killed", extra={"files": len(working)})
        if not working:
            self.is_careful = True
        elif len(working) == 1 and working.items() <= self._struck.items():
            self._poison = self._poison | working
        else:
            self._suspects = [*self._suspects, working]
            if len(working) == 1:
                self._struck = self._struck | working

    def note_listed(self, page: Sequence[RunFile]) -> None:
        """Note which of the watched files are still there."""
        if self.watched:
            self._listed |= self.watched.intersection((file.key, file.etag) for file in page)

    def hold_back(self, file: RunFile) -> None:
        """Keep a watched file, to be tried last or deferred."""
        if self._poison.get(file.key) == file.etag:
            self.poisonous.append(file)
        else:
            self._held[file.key, file.etag] = file

    async def begin(self, files: Sequence[RunFile] = ()) -> None:
        """Say that this run works, and on which files if they are few."""
        seconds = min(self._deadline.ends - anyio.current_time(), _LIFETIME.total_seconds())
        until = self._context.now() + timedelta(seconds=seconds)
        last = self._written
        if not files and last and not last.working and until - last.until < _RENEWAL:
            return  # it says so already
        self._has_begun = True
        known = self._known({file.key: file.etag for file in files})
        await self._write(
            msgspec.structs.replace(known, running=True, runner=self._runner, until=until)
        )

    def next_part(self) -> list[RunFile]:
        """Return some of the suspects, to be tried without the others; none if all are tried."""
        for group in reversed(self._suspects):
            held = [each for each in group.items() if each in self._held]
            if held:
                part = held[: max(1, len(held) // PARTS)]
                for key, _ in part:
                    del group[key]
                self._part = dict(part)
                return [self._held.pop(each) for each in part]
        return []

    def clear_part(self) -> None:
        """Note that the last part of the suspects was tried, and the run is alive."""
        self._part = {}

    @property
    def untried(self) -> int:
        """How many files were held back, and neither tried nor deferred."""
        return len(self._held) + len(self.poisonous)

    async def end(self) -> None:
        """Say that the run has ended, and forget the watched files that are gone.

        If this cannot be written, the next run takes this one for killed. That costs a good file no
        more than being tried alone: it is not deferred unless a run dies of it once more.
        """
        if not (self._has_begun or (self._has_learned and self.may_forget)):
            return  # nothing is new, or the next run is to learn the same
        self._suspects.append(self._part)  # the run may have been cut off
        if self.may_forget:
            self._poison = self._still_there(self._poison)
            self._suspects = [self._still_there(group) for group in self._suspects]
        await self._write(self._known({}))

    def _still_there(self, files: dict[str, str]) -> dict[str, str]:
        return {key: etag for key, etag in files.items() if (key, etag) in self._listed}

    def _known(self, working: dict[str, str]) -> _Entry:
        """Return what this run knows of files, while it works on some."""
        suspects = [group for group in self._suspects if group]
        watched = {each for group in (working, *suspects) for each in group.items()}
        struck = {key: etag for key, etag in self._struck.items() if (key, etag) in watched}
        return _Entry(working=working, suspects=suspects, struck=struck, poison=self._poison)

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
