"""One line on the terminal that shows how far a command is: nothing on a pipe or with --json."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import anyio
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

from asyncagg.errors import StoreError
from asyncagg.model import RunFile
from asyncagg.runtime.tasks import task_group
from asyncagg.store import Store
from asyncagg.store.protocol import Absent, Body, StreamedBody

_SECONDS = 0.25
"""Between two updates of the line."""

_NAMED = 10
"""So many quarantined files are named; the others are only counted."""


@dataclass(slots=True)
class Bar:
    """How far a command is; the terminal shows it until the command ends.

    Attributes:
        unit: What is counted, in the plural; empty if nothing is.
        done: How many are done.
        total: How many there are so far; None if that is not known.
        is_final: Whether the total is complete, so that the time left can be estimated.
        note: What else there is to show.
        quarantined: How many files were quarantined.
        is_shown: Whether there is a terminal that shows it.
        clock: Returns seconds.
    """

    unit: str
    done: float = 0
    total: int | None = None
    is_final: bool = False
    note: str = ""
    quarantined: int = 0
    is_shown: bool = False
    clock: Callable[[], float] = time.monotonic
    _started: float = field(init=False)
    _working_since: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._started = self.clock()

    def counts(self) -> str:
        """Return how many are done, of how many."""
        if not self.unit:
            return ""
        known = "" if self.total is None else f"/{self.total:,}{'' if self.is_final else '+'}"
        return f"{self.done:,.0f}{known} {self.unit}"

    def details(self) -> str:
        """Return the time that is left, or has passed; the rate, and the notes."""
        now = self.clock()
        if self._working_since is None and (self.done or self.total):
            self._working_since = now
        working = now - (now if self._working_since is None else self._working_since)
        if self.is_final and self.total and 0 < self.done < self.total and working:
            # By files, not by windows, whose sizes differ; at the mean rate, which does not jump.
            time_part = f"{_duration(working * (self.total - self.done) / self.done)} left"
        else:
            time_part = _duration(now - self._started)
        rate = f"{self.done / working:,.0f}/s" if self.done and working else ""
        bad = f"{self.quarantined:,} quarantined" if self.quarantined else ""
        return ", ".join(filter(None, (time_part, rate, self.note, bad)))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


@asynccontextmanager
async def shown(bar: Bar, console: Console, *, json: bool) -> AsyncIterator[Bar]:
    """Show a bar for as long as the context lasts, if the console is a terminal."""
    if json or not console.is_terminal:
        yield bar
        return
    bar.is_shown = True
    columns = (
        SpinnerColumn(),
        TextColumn("{task.fields[counts]}"),
        _BarOfKnownTotal(),
        TextColumn("{task.fields[details]}"),
    )
    with Progress(*columns, console=console, transient=True) as line, _few_named(bar):
        task = line.add_task("", counts=bar.counts(), details=bar.details())

        async def follow() -> None:
            while True:
                counts, details = bar.counts(), bar.details()
                line.update(
                    task, total=bar.total, completed=bar.done, counts=counts, details=details
                )
                await anyio.sleep(_SECONDS)

        async with task_group() as group:
            group.start_soon(follow)
            yield bar
            group.cancel_scope.cancel()


class _BarOfKnownTotal(ProgressColumn):
    def __init__(self) -> None:
        super().__init__()
        self._bar = BarColumn(bar_width=16)

    def render(self, task: Task) -> RenderableType:
        return self._bar.render(task) if task.total else Text()


@contextmanager
def _few_named(bar: Bar) -> Iterator[None]:
    """Let the log name the first quarantined files only, and count them all."""

    def is_shown(record: logging.LogRecord) -> bool:
        if record.msg != "quarantined":
            return True
        bar.quarantined += 1
        return bar.quarantined <= _NAMED

    handlers = logging.getLogger("asyncagg").handlers
    for each in handlers:
        each.addFilter(is_shown)
    try:
        yield
    finally:
        for each in handlers:
            each.removeFilter(is_shown)


class CountedStore:
    """A store that notes on a bar how many files of the inbox are listed, read and moved.

    Half of the work on a file is to read it, the other half to move it out of the inbox.

    Args:
        store: The store.
        inbox: The prefix of the inbox.
        bar: Where they are noted.
        is_wanted: Which listed files are added to the total; default: none.
    """

    def __init__(
        self,
        store: Store,
        inbox: str,
        bar: Bar,
        is_wanted: Callable[[RunFile], bool] | None = None,
    ) -> None:
        self._store = store
        self._inbox = inbox
        self._bar = bar
        self._is_wanted = is_wanted
        self._read = self._copied = self._removed = 0
        self.head = store.head
        self.get_range = store.get_range
        self.put = store.put

    @property
    def url(self) -> str:
        """The store's name for messages."""
        return self._store.url

    async def list_pages(
        self, prefix: str, *, start_after: str = ""
    ) -> AsyncIterator[Sequence[RunFile]]:
        """Yield the objects below a prefix; those of the inbox are added to the total."""
        counted = self._is_wanted if prefix == self._inbox else None
        async for page in self._store.list_pages(prefix, start_after=start_after):
            if counted is not None:
                self._bar.total = (self._bar.total or 0) + sum(map(counted, page))
            yield page
        if counted is not None:
            self._bar.is_final = True

    async def get(self, key: str, *, if_match: str | None = None) -> Body:
        """Return an object's whole content."""
        body = await self._store.get(key, if_match=if_match)
        self._note_read(key)
        return body

    @asynccontextmanager
    async def stream(self, key: str, *, if_match: str | None = None) -> AsyncIterator[StreamedBody]:
        """Open an object's content for reading block by block."""
        async with self._store.stream(key, if_match=if_match) as body:
            yield body
        self._note_read(key)

    async def copy(
        self,
        source: str,
        target: str,
        *,
        if_match: str,
        condition: Absent | None = Absent(),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Copy an object within the store."""
        await self._store.copy(
            source, target, if_match=if_match, condition=condition, metadata=metadata
        )
        self._copied += source.startswith(self._inbox)
        self._note_done()

    async def delete(self, files: Sequence[RunFile]) -> Mapping[str, StoreError]:
        """Delete objects; return the failures by key."""
        failures = await self._store.delete(files)
        removed = sum(file.key.startswith(self._inbox) for file in files) - len(failures)
        self._removed += max(0, removed)
        self._note_done()
        return failures

    def _note_read(self, key: str) -> None:
        if key.startswith(self._inbox):
            self._read += 1
            self._note_done()

    def _note_done(self) -> None:
        moved = max(self._copied, self._removed)  # packed files are not copied
        # A file that was counted before is moved without being read.
        self._bar.done = (max(self._read, moved) + moved) / 2
