"""Load the aggregate of a window, and commit it: the moment at which its files become counted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from asyncagg.aggregate.accumulator import Accumulator
from asyncagg.aggregate.merge import RowSource
from asyncagg.aggregate.reader import StoredAggregate, read_aggregate, read_head
from asyncagg.aggregate.spool import Spool
from asyncagg.aggregate.writer import AggregateWriter
from asyncagg.errors import (
    AggregateError,
    NotFoundError,
    OverlapError,
    PreconditionFailedError,
    TransientError,
)
from asyncagg.job.context import JobContext
from asyncagg.job.outcome import WindowReport
from asyncagg.model import Pack, Window
from asyncagg.store import Absent, Condition, Matches

T = TypeVar("T")

MAX_COMMIT_ATTEMPTS = 10
"""The most attempts of a commit while other runners commit first."""


async def load_aggregate(
    context: JobContext, window: Window, spool: Spool, *, key: str = ""
) -> StoredAggregate | None:
    """Read the aggregate of a window, or return None if it has none.

    Args:
        context: Where it is.
        window: The window.
        spool: An empty spool to hold it.
        key: The key of a partial aggregate to read instead.

    Raises:
        AggregateError: It is not an aggregate, is damaged, or belongs to another window.
    """
    key = key or context.layout.aggregate_key(window)
    try:
        async with context.store.stream(key) as body:
            return await read_aggregate(key, body.etag, window, body.chunks, spool)
    except NotFoundError:
        return None


async def commit_aggregate(
    context: JobContext,
    window: Window,
    total: Accumulator,
    sources: Sequence[RowSource],
    *,
    packs: Sequence[Pack],
    condition: Condition,
    revision: int = 1,
    late: int = 0,
    key: str = "",
) -> str:
    """Write an aggregate in one conditional step and return its etag.

    If the response of a write is lost, its retry fails on the condition. So if the condition fails
    but the stored aggregate has the id of this commit, the write succeeded.

    Args:
        context: Where to write it.
        window: Its window.
        total: All that is folded into it.
        sources: Its rows.
        packs: The packs that its rows name.
        condition: What must hold for it to be written.
        revision: The number of its commits, including this one.
        late: How many of its files were added after its first commit.
        key: The key of a partial aggregate to write instead.

    Raises:
        PreconditionFailedError: Another runner committed it first.
        OverlapError: Two sources have the same file.
    """
    commit_id = context.new_id()
    document = AggregateWriter(
        window, total, revision, commit_id, late, context.now(), sources, packs
    )
    key = key or context.layout.aggregate_key(window)
    try:
        return await context.store.put(key, document, condition=condition)
    except PreconditionFailedError:
        etag = await _find_commit(context, window, key, commit_id)
        if etag is None:
            raise
        return etag


async def _find_commit(context: JobContext, window: Window, key: str, commit_id: str) -> str | None:
    """Return the etag of an aggregate if it was written by this commit, else None."""
    try:
        async with context.store.stream(key) as body:
            head = await read_head(key, window, body.chunks)
            return body.etag if head.get("commit_id") == commit_id else None
    except (AggregateError, NotFoundError):
        return None  # the next `load_aggregate` raises this error


async def add_to_aggregate(
    context: JobContext,
    window: Window,
    stored: StoredAggregate | None,
    fresh: Accumulator,
    sources: Sequence[RowSource],
    *,
    packs: Sequence[Pack],
    report: WindowReport,
    late: bool,
) -> str:
    """Commit files that are not in the aggregate of a window yet, and return its new etag.

    Args:
        context: Where it is.
        window: Its window.
        stored: The aggregate as it was read, or None if there was none.
        fresh: What is folded from the new files.
        sources: Their rows.
        packs: The packs that they are in.
        report: The window's; what was counted is added to it.
        late: Whether the new files count as late.

    Raises:
        PreconditionFailedError: Another runner committed it first.
        OverlapError: Two sources have the same file.
    """
    number = fresh.counted if late else 0
    existing = [stored] if stored else []
    etag = await commit_aggregate(
        context,
        window,
        merge_accumulators([fresh, *(each.accumulator for each in existing)]),
        [*sources, *existing],
        packs=merge_packs([*(each.packs for each in existing), packs]),
        condition=Matches(stored.etag) if stored else Absent(),
        revision=(stored.revision if stored else 0) + 1,
        late=(stored.late if stored else 0) + number,
    )
    report.revision = (stored.revision if stored else 0) + 1
    report.tally.add_counted(fresh)
    report.tally.late += number
    return etag


def merge_accumulators(parts: Iterable[Accumulator]) -> Accumulator:
    """Return a new accumulator of all parts."""
    total = Accumulator()
    for part in parts:
        total.merge(part)
    return total


def merge_packs(parts: Iterable[Iterable[Pack]]) -> list[Pack]:
    """Return the packs of all parts, each once."""
    return list({pack.id: pack for packs in parts for pack in packs}.values())


async def retry_commit(attempt: Callable[[], Awaitable[T]]) -> T:
    """Return what ``attempt`` returns, calling it again while other runners commit first.

    Raises:
        TransientError: Others were first `MAX_COMMIT_ATTEMPTS` times.
    """
    for _ in range(MAX_COMMIT_ATTEMPTS):
        try:
            return await attempt()
        except (PreconditionFailedError, OverlapError):  # committed, or counted, by another
            continue
    raise TransientError(
        f"gave up after {MAX_COMMIT_ATTEMPTS} attempts: other runners committed the aggregate first"
    )
