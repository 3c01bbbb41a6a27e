"""Compute aggregates again from the files that they name, and say where they differ.

Nothing is moved. Which files are of a window is what its aggregate says: in the archive, a file's
time is that of its copy. So a window without an aggregate, or with one that cannot be read, is
beyond what this can do.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import msgspec

from asyncagg.aggregate.accumulator import Accumulator
from asyncagg.aggregate.head import top_matches, totals
from asyncagg.aggregate.reading import StoredAggregate, read_head
from asyncagg.aggregate.rows import RowSpool
from asyncagg.aggregate.spool import open_spool
from asyncagg.aggregate.writing import AggregateWriter
from asyncagg.errors import AggregateError, NotFoundError, PreconditionFailedError, TransientError
from asyncagg.job.archive import Mover
from asyncagg.job.context import JobContext
from asyncagg.job.fetch import Fetcher
from asyncagg.job.layout import Layout
from asyncagg.job.outcome import Tally
from asyncagg.job.reader import Reader
from asyncagg.job.settle import load
from asyncagg.model import RunFile, RunResult, Window
from asyncagg.settings import Settings
from asyncagg.store import Matches, Store

__all__ = (
    "SHOWN",
    "RecomputeReport",
    "Recomputed",
    "examine",
    "fold_again",
    "recompute",
)

SHOWN = 10
"""The most keys that are told of a window."""


@dataclass(slots=True)
class Recomputed:
    """What came of one window.

    Attributes:
        window: Its name.
        aggregate_key: Where its aggregate stands.
        files: How many files it counts.
        bytes: Their size together.
        missing: The keys of files that could not be read, the first few: lost ones come first,
            then refused ones.
        lost: How many of its files stand neither in the archive nor in the inbox.
        refused: How many read as no run file any more.
        unproven: How many were read under another etag than the one that was counted: so it is with
            a copy of what was uploaded in parts, or is encrypted. Their size is the same.
        differences: What differs: the field's name, and the value that stands and the true one.
        written: Whether the true aggregate was written over it.
        failure: Why it could not be computed, or empty.
    """

    window: str
    aggregate_key: str
    files: int = 0
    bytes: int = 0
    missing: list[str] = field(default_factory=list)
    lost: int = 0
    refused: int = 0
    unproven: int = 0
    differences: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    written: bool = False
    failure: str = ""


@dataclass(slots=True)
class RecomputeReport:
    """What came of the windows of an interval.

    Attributes:
        windows: Each of them, in the order of time.
        complete: Whether time was enough for all.
    """

    windows: list[Recomputed] = field(default_factory=list)
    complete: bool = True

    @property
    def exit_code(self) -> int:
        """0 all as they should be, 1 a window failed, 3 some differ and are left as they are."""
        if any(each.failure for each in self.windows):
            return 1
        differ = any(each.differences and not each.written for each in self.windows)
        return 3 if differ or not self.complete else 0

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return asdict(self) | {"exit_code": self.exit_code}


async def recompute(context: JobContext, window: Window, *, write: bool) -> Recomputed:
    """Compute the aggregate of a window again and compare.

    Args:
        context: What it is done with.
        window: The window.
        write: Whether to write the true aggregate over one that differs. That is never done where
            a file is missing.
    """
    try:
        return await examine(context, window, write=write)
    except NotFoundError:
        failure = "its aggregate is gone"
    except PreconditionFailedError:
        failure = "somebody else committed it meanwhile: run it again"
    except (AggregateError, TransientError) as error:
        failure = str(error)
    key = Layout(context.settings).aggregate_key(window)
    return Recomputed(window.name, key, failure=failure)


async def examine(
    context: JobContext,
    window: Window,
    *,
    write: bool = False,
    proven: bool = False,
    seen: Callable[[StoredAggregate], Awaitable[object]] | None = None,
) -> Recomputed:
    """Do what `recompute` does, but raise what keeps it from being done.

    Args:
        context: What it is done with.
        window: The window.
        write: Whether to write the true aggregate over one that differs.
        proven: Write only where every file was read under the very etag that was counted.
        seen: Called with the aggregate as it stands, before its files are read.

    Raises:
        NotFoundError: The aggregate is gone.
        PreconditionFailedError: Somebody else committed it meanwhile.
        AggregateError: It is damaged, or not ours.
        TransientError: The store stayed in trouble.
    """
    key = Layout(context.settings).aggregate_key(window)
    outcome = Recomputed(window.name, key)
    async with AsyncExitStack() as stack:
        spools = [
            await stack.enter_async_context(
                open_spool(context.settings.spool_bytes, context.temporary)
            )
            for _ in range(3)
        ]
        existing = await load(context.store, key, window, spools[0])
        if existing is None:
            raise NotFoundError(f"aggregate {key!r}: no such key", operation="get", key=key)
        if seen is not None:
            await seen(existing)
        rows = RowSpool(*spools[1:])
        await _recompute(context, window, existing, rows, outcome, write=write, proven=proven)
    return outcome


async def _recompute(
    context: JobContext,
    window: Window,
    existing: StoredAggregate,
    rows: RowSpool,
    outcome: Recomputed,
    *,
    write: bool,
    proven: bool,
) -> None:
    stands = existing.accumulator
    outcome.files, outcome.bytes = stands.counted, stands.bytes
    batches = _batches(existing, context.settings.chunk_files)
    total = await fold_again(context, batches, rows, outcome)
    if outcome.missing:
        outcome.failure = f"{stands.counted - total.counted} of its files could not be read"
        return
    total.quarantined = stands.quarantined
    async for row in existing.quarantined():
        await rows.append(row)
    outcome.differences = await _differences(context, window, existing, total)
    differing = await _differing_rows(existing, rows)
    if differing:
        outcome.differences["run_summaries"] = (f"{differing} rows", "other rows")
    if outcome.differences and write and not (proven and outcome.unproven):
        document = AggregateWriter(
            window=window,
            accumulator=total,
            revision=existing.revision + 1,
            late=existing.late,
            written_at=context.now(),
            rows=rows,
        )
        await context.store.put(outcome.aggregate_key, document, condition=Matches(existing.etag))
        outcome.written = True


async def fold_again(
    context: JobContext, batches: AsyncIterator[list[RunFile]], rows: RowSpool, outcome: Recomputed
) -> Accumulator:
    """Fold counted files from where they are now.

    Args:
        context: What it is done with.
        batches: The files, in the order of key and etag.
        rows: Where their rows go.
        outcome: What could not be read, or not be proven, is added to it.
    """
    layout = Layout(context.settings)
    reader = _ArchiveReader(context.store, context.settings)
    tally = Tally()
    mover = _Bystander(context.store, 1, tally)
    total = Accumulator()
    unread: list[str] = []
    async for files in batches:
        fetcher = Fetcher(reader, mover, layout, rows, tally)
        await fetcher.fetch(files, workers=context.settings.concurrency, until=math.inf)
        total.merge(fetcher.accumulator)
        read = {(file.key, file.etag) for file in fetcher.counted}
        missed = (file.key for file in files if (file.key, file.etag) not in read)
        unread += islice(missed, SHOWN - len(unread))
    outcome.lost, outcome.unproven, outcome.refused = reader.lost, reader.unproven, mover.refused
    first = dict.fromkeys([*reader.lost_keys, *mover.refused_keys, *unread])
    outcome.missing = list(first)[:SHOWN]
    return total


async def _batches(existing: StoredAggregate, most: int) -> AsyncIterator[list[RunFile]]:
    batch: list[RunFile] = []
    async for row in existing.counted():
        batch.append(msgspec.json.decode(row.source, type=RunFile))
        if len(batch) >= most:
            yield batch
            batch = []
    if batch:
        yield batch


class _ArchiveReader(Reader):
    """Reads counted files where they are now: in the archive, or still in the inbox.

    Attributes:
        lost: How many stood nowhere.
        lost_keys: Their keys, the first few.
        unproven: How many were known by their size alone.
    """

    def __init__(self, store: Store, settings: Settings) -> None:
        super().__init__(store, settings)
        self._layout = Layout(settings)
        self.lost = 0
        self.lost_keys: list[str] = []
        self.unproven = 0

    async def read(
        self, file: RunFile, *, at: str = "", top_cutoff: float = -math.inf
    ) -> RunResult:
        """See `Reader.read`."""
        archived = at or self._layout.archive_key(file.key)
        beside = self._layout.conflict_key(archived, file.etag)
        for place in (archived, beside, file.key):
            try:
                return await super().read(file, at=place, top_cutoff=top_cutoff)
            except (NotFoundError, PreconditionFailedError):
                continue
        # It was moved between two looks; or it is the copy of an object that was uploaded in parts,
        # or is encrypted: such a copy has an etag of its own. A suffix says which version it is, so
        # that place comes first.
        for place in (beside, archived):
            copied = await self._there(place)
            if copied is not None and copied.size == file.size:
                self.unproven += copied.etag != file.etag
                copy = msgspec.structs.replace(file, etag=copied.etag)
                return await super().read(copy, at=place, top_cutoff=top_cutoff)
        self.lost += 1
        if len(self.lost_keys) < SHOWN:
            self.lost_keys.append(file.key)
        raise NotFoundError(f"no copy of {file.key!r} with etag {file.etag!r}", key=file.key)

    async def _there(self, key: str) -> RunFile | None:
        try:
            return (await self._store.head(key)).file
        except NotFoundError:
            return None


class _Bystander(Mover):
    """Moves nothing: a file that is refused now, and was counted once, is told as unread.

    Attributes:
        refused: How many there were.
        refused_keys: Their keys, the first few.
    """

    def __init__(self, store: Store, workers: int, tally: Tally) -> None:
        super().__init__(store, workers, tally)
        self.refused = 0
        self.refused_keys: list[str] = []

    async def ensure_copied(
        self,
        file: RunFile,
        target: str,  # noqa: ARG002 - as it is called
        metadata: Mapping[str, str] | None = None,  # noqa: ARG002
    ) -> str | None:
        """See `Mover.ensure_copied`; the file stays where it is."""
        self.refused += 1
        if len(self.refused_keys) < SHOWN:
            self.refused_keys.append(file.key)
        return None


async def _differences(
    context: JobContext, window: Window, existing: StoredAggregate, true: Accumulator
) -> dict[str, tuple[Any, Any]]:
    # Its head is read as it stands: what was loaded has already been calculated with.
    async with context.store.stream(existing.key, if_match=existing.etag) as body:
        stands = await read_head(existing.key, window, body.chunks)
    should = totals(true, existing.late) | {"top_matches": top_matches(true)}
    return {
        name: (stands.get(name), value)
        for name, value in should.items()
        if stands.get(name) != value
    }


async def _differing_rows(existing: StoredAggregate, rows: RowSpool) -> int:
    differing = 0
    true = rows.counted()
    async for row in existing.counted():
        differing += row != await anext(true)
    return differing
