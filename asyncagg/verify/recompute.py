"""Recompute aggregates from the files that they name, and report where they differ.

Nothing is moved. The aggregate itself says which files belong to its window, because a file in the
archive has the time of its copy. So a window without an aggregate, or with one that cannot be read,
cannot be recomputed.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import msgspec

from asyncagg.aggregate.accumulator import Accumulator
from asyncagg.aggregate.head import top_matches, totals
from asyncagg.aggregate.reader import StoredAggregate, read_head
from asyncagg.aggregate.rows import RowSpool
from asyncagg.errors import AggregateError, NotFoundError, PreconditionFailedError, StoreError
from asyncagg.job.aggregates import commit_aggregate, load_aggregate
from asyncagg.job.context import JobContext
from asyncagg.job.deferrals import Deferrals
from asyncagg.job.fetch import Fetcher
from asyncagg.job.outcome import Tally
from asyncagg.job.refusals import Refusals
from asyncagg.job.run_files import Loaded, RunFileReader
from asyncagg.model import CountedFile, Pack, Place, RunFile, Window
from asyncagg.packs.format import DamagedPackError
from asyncagg.packs.reader import PackReader
from asyncagg.store import Matches

SHOWN = 10
"""The most keys that are shown of a window."""


@dataclass(slots=True)
class Recomputed:
    """The result for one window.

    Attributes:
        window: Its name.
        aggregate_key: The key of its aggregate.
        files: How many files it counts.
        bytes: Their size together.
        missing: The keys of files that could not be read, the first few: lost ones first, then
            invalid ones.
        lost: How many of its files are neither in the archive nor in the inbox.
        refused: How many are not valid run files any more.
        unread: How many the store has, but does not return.
        unproven: How many have another etag than the one that was counted, as copies of encrypted
            objects and of multipart uploads do. Their size is the same.
        differences: The fields that differ: the value in the aggregate, and the true one.
        written: Whether the true aggregate replaced it.
        failure: Why it could not be computed, or empty.
    """

    window: str
    aggregate_key: str
    files: int = 0
    bytes: int = 0
    missing: list[str] = field(default_factory=list)
    lost: int = 0
    refused: int = 0
    unread: int = 0
    unproven: int = 0
    differences: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    written: bool = False
    failure: str = ""


@dataclass(slots=True)
class RecomputeReport:
    """The results for the windows of an interval.

    Attributes:
        windows: Each of them, in the order of time.
        complete: Whether there was time for all.
    """

    windows: list[Recomputed] = field(default_factory=list)
    complete: bool = True

    @property
    def exit_code(self) -> int:
        """0 no differences, 3 some differ, or could not be read.

        It is 1 if files are lost or no longer valid, or if no window could be computed.
        """
        failed = sum(bool(each.failure) for each in self.windows)
        if failed and failed == len(self.windows):
            return 1
        if any(each.lost or each.refused for each in self.windows):
            return 1
        differ = any(each.differences and not each.written for each in self.windows)
        return 3 if differ or failed or not self.complete else 0

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return asdict(self) | {"exit_code": self.exit_code}


async def recompute(context: JobContext, window: Window, *, write: bool) -> Recomputed:
    """Recompute the aggregate of a window and compare.

    Args:
        context: The dependencies.
        window: The window.
        write: Whether to replace an aggregate that differs. One with a file missing is never
            replaced.
    """
    try:
        return await recompute_or_raise(context, window, write=write)
    except NotFoundError:
        failure = "its aggregate is gone"
    except PreconditionFailedError:
        failure = "another runner committed it in the meantime: run it again"
    except (AggregateError, StoreError) as error:
        failure = str(error)
    return Recomputed(window.name, context.layout.aggregate_key(window), failure=failure)


async def recompute_or_raise(
    context: JobContext,
    window: Window,
    *,
    write: bool = False,
    proven: bool = False,
    on_loaded: Callable[[StoredAggregate], Awaitable[object]] | None = None,
) -> Recomputed:
    """Do the work of `recompute`, but raise the errors that prevent it.

    Args:
        context: The dependencies.
        window: The window.
        write: Whether to replace an aggregate that differs.
        proven: Replace it only if every file has the etag that was counted.
        on_loaded: Called with the aggregate, before its files are read.

    Raises:
        NotFoundError: The aggregate is gone.
        PreconditionFailedError: Another runner committed it in the meantime.
        AggregateError: It is damaged, or is not an aggregate.
        StoreError: The store failed, or refuses it.
    """
    key = context.layout.aggregate_key(window)
    result = Recomputed(window.name, key)
    async with AsyncExitStack() as stack:
        spools = [await stack.enter_async_context(context.open_spool()) for _ in range(3)]
        stored = await load_aggregate(context, window, spools[0])
        if stored is None:
            raise NotFoundError(f"aggregate {key!r}: no such key", operation="get", key=key)
        if on_loaded is not None:
            await on_loaded(stored)
        rows = RowSpool(*spools[1:])
        total = await _refold(context, stored, rows, result)
        if total is None:
            return result
        result.differences = await _compare(context, window, stored, total, rows)
        if result.differences and write and not (proven and result.unproven):
            await commit_aggregate(
                context,
                window,
                total,
                [rows],
                packs=stored.packs,
                condition=Matches(stored.etag),
                revision=stored.revision + 1,
                late=stored.late,
            )
            result.written = True
    return result


async def _refold(
    context: JobContext, stored: StoredAggregate, rows: RowSpool, result: Recomputed
) -> Accumulator | None:
    """Fold the files of an aggregate again; return None if some could not be read."""
    counted = stored.accumulator.counted
    result.files, result.bytes = counted, stored.accumulator.bytes
    batches = _batches(stored, context.settings.chunk_files)
    total, why = await fold_archived(context, batches, rows, result, packs=stored.packs)
    if result.missing:
        result.failure = f"{counted - total.counted} of its files could not be read"
        if result.unread:
            result.failure += f": {why}"
        return None
    total.quarantined = stored.accumulator.quarantined
    async for row in stored.quarantined_rows():
        await rows.append(row)
    return total


async def fold_archived(
    context: JobContext,
    batches: AsyncIterator[Sequence[RunFile]],
    rows: RowSpool,
    result: Recomputed,
    *,
    packs: Sequence[Pack],
) -> tuple[Accumulator, str]:
    """Fold counted files from where they are now.

    Args:
        context: The dependencies.
        batches: The files, in the order of key and etag.
        rows: Where their rows go.
        result: Files that could not be read, or whose content is not proven, are added to it.
        packs: The packs that some of them are in.

    Returns:
        The sum, and the first reason why a file could not be read.
    """
    archive = _Archive(context, packs)
    deferrals = Deferrals(context, Refusals(most=math.inf))
    total = Accumulator()
    unread: list[str] = []
    async for files in batches:
        fetcher = Fetcher(
            archive.load, archive.note_invalid, rows, Tally(), deferrals, packs=_Places()
        )
        await fetcher.fetch(files, slots=context.slots, until=math.inf)
        total.merge(fetcher.accumulator)
        read = {(file.key, file.etag) for file in fetcher.counted}
        missed = (file.key for file in files if (file.key, file.etag) not in read)
        unread += islice(missed, SHOWN - len(unread))
    result.lost, result.unproven, result.refused = archive.lost, archive.unproven, archive.invalid
    result.unread = archive.unread
    missing = dict.fromkeys([*archive.lost_keys, *archive.invalid_keys, *unread])
    result.missing = list(missing)[:SHOWN]
    return total, archive.first_error


async def _batches(stored: StoredAggregate, size: int) -> AsyncIterator[list[RunFile]]:
    batch: list[RunFile] = []
    async for files in stored.files():
        batch += files
        while len(batch) >= size:
            yield batch[:size]
            del batch[:size]
    if batch:
        yield batch


class _Places:
    """Files stay where they are; see `asyncagg.job.fetch.Packs`."""

    def add(self, file: RunFile, _data: bytes | None) -> Place | None:
        """Return the place that the row of a file names."""
        if isinstance(file, CountedFile) and file.pack:
            return Place(file.pack, file.offset)
        return None


class _Archive:
    """Reads counted files where they are now: in a pack, in the archive, or still in the inbox.

    Attributes:
        lost: How many files are nowhere.
        lost_keys: Their keys, the first few.
        invalid: How many are not valid run files any more.
        invalid_keys: Their keys, the first few.
        unread: How many the store does not return.
        first_error: Its first error.
        unproven: How many are recognised by their size alone.
    """

    def __init__(self, context: JobContext, packs: Sequence[Pack]) -> None:
        self._packs = PackReader(context.store, packs)
        self._store = context.store
        self._layout = context.layout
        self._reader = RunFileReader(context.store, context.settings)
        self.lost = 0
        self.lost_keys: list[str] = []
        self.invalid = 0
        self.invalid_keys: list[str] = []
        self.unread = 0
        self.first_error = ""
        self.unproven = 0

    async def load(self, file: RunFile) -> Loaded:
        """Load a counted file; see `asyncagg.job.fetch.Load`."""
        try:
            return await self._load(file)
        except NotFoundError:
            self.lost += 1
            if len(self.lost_keys) < SHOWN:
                self.lost_keys.append(file.key)
            raise
        except StoreError as error:
            self.unread += 1
            self.first_error = self.first_error or str(error)
            raise

    async def _load(self, file: RunFile) -> Loaded:
        if isinstance(file, CountedFile) and file.pack:
            try:
                return await self._load_packed(file)
            except (DamagedPackError, NotFoundError):
                pass  # a run that stopped after its commit has left the file in the inbox
        archived = self._layout.archive_key(file.key)
        conflict = self._layout.conflict_key(archived, file.etag)
        for key in (archived, conflict, file.key):
            try:
                return await self._reader.load(file, key=key)
            except (NotFoundError, PreconditionFailedError):
                continue
        # It moved between two reads, or it is a copy with another etag: of an encrypted object, or
        # of a multipart upload. The conflict key comes first, since it contains the counted etag.
        for key in (conflict, archived):
            copy = await self._find(key)
            if copy is not None and copy.size == file.size:
                self.unproven += copy.etag != file.etag
                renamed = msgspec.structs.replace(file, etag=copy.etag)
                return await self._reader.load(renamed, key=key)
        raise NotFoundError(f"no copy of {file.key!r} with etag {file.etag!r}", key=file.key)

    async def _load_packed(self, file: CountedFile) -> Loaded:
        async def read() -> bytes:
            content = await self._packs.read(file)
            self.unproven += not content.proven
            return content.data

        return await self._reader.load_content(file, read)

    async def note_invalid(self, file: RunFile, _reason: str) -> None:
        """Note a file that is invalid now, but was counted; it is not moved."""
        self.invalid += 1
        if len(self.invalid_keys) < SHOWN:
            self.invalid_keys.append(file.key)

    async def _find(self, key: str) -> RunFile | None:
        try:
            return (await self._store.head(key)).file
        except NotFoundError:
            return None


async def _compare(
    context: JobContext,
    window: Window,
    stored: StoredAggregate,
    true: Accumulator,
    rows: RowSpool,
) -> dict[str, tuple[Any, Any]]:
    """Return the fields of an aggregate that differ: the value in it, and the true one."""
    # Its head is read again, because loading has parsed and converted its numbers.
    async with context.store.stream(stored.key, if_match=stored.etag) as body:
        head = await read_head(stored.key, window, body.chunks)
    expected = totals(true, stored.late) | {"top_matches": list(top_matches(true))}
    differences = {
        name: (head.get(name), value) for name, value in expected.items() if head.get(name) != value
    }
    differing = 0
    true_rows = rows.counted_rows()
    async for row in stored.counted_rows():
        differing += row != await anext(true_rows)
    if differing:
        differences["run_summaries"] = (f"{differing} rows", "other rows")
    return differences
