"""Claim files in quarantine: the aggregate of their window names them, so no run counts them.

A run copies a file to quarantine before its commit. If it stops there, or if another run commits
first, the file may still be counted. The commit decides: a file that the aggregate names as
quarantined is not counted any more, and a file that it counts is not restored.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import NamedTuple

from asyncagg.aggregate.accumulator import Accumulator
from asyncagg.aggregate.reader import StoredAggregate
from asyncagg.aggregate.rows import RowSpool, quarantined_row
from asyncagg.job.aggregates import add_to_aggregate, load_aggregate, retry_commit
from asyncagg.job.context import JobContext
from asyncagg.job.outcome import WindowReport
from asyncagg.model import RunFile, Window


class Claim(NamedTuple):
    """A file in quarantine that is to be restored.

    Attributes:
        file: The file in quarantine.
        arrived: The file as it arrived in the inbox; None if no run copied it from there.
        restored_key: The key under which it is restored.
        reason: Why it is in quarantine.
    """

    file: RunFile
    arrived: RunFile | None
    restored_key: str
    reason: str

    @property
    def identity(self) -> tuple[str, str]:
        """The key and the etag with which it arrived."""
        return (self.arrived.key, self.arrived.etag) if self.arrived else ("", "")


async def claim_files(
    context: JobContext, window: Window, claims: Sequence[Claim]
) -> dict[str, RunFile]:
    """Name files as quarantined in the aggregate of their window, unless it counts them.

    Returns:
        The files that are counted, as they are named there, by their keys in quarantine.

    Raises:
        AggregateError: The aggregate is damaged, or is not an aggregate.
        TransientError: The store failed, or other runners always committed first.
    """
    return await retry_commit(lambda: _claim(context, window, claims))


async def _claim(
    context: JobContext, window: Window, claims: Sequence[Claim]
) -> dict[str, RunFile]:
    async with AsyncExitStack() as stack:
        spools = [await stack.enter_async_context(context.open_spool()) for _ in range(3)]
        stored = await load_aggregate(context, window, spools[0])
        counted = await _find_counted(stored, claims) if stored else {}
        named = await _find_quarantined(stored, claims) if stored else set()
        fresh = {
            claim.identity: claim
            for claim in claims
            if claim.arrived and claim.file.key not in counted and claim.identity not in named
        }
        if fresh:
            rows, total = RowSpool(*spools[1:]), Accumulator()
            for _, claim in sorted(fresh.items()):
                file = claim.arrived or claim.file
                await rows.append(quarantined_row(file, claim.reason, claim.file.key))
                total.quarantined += 1
            report = WindowReport(window.name, context.layout.aggregate_key(window))
            await add_to_aggregate(
                context, window, stored, total, [rows], packs=(), report=report, late=False
            )
    return counted


async def _find_counted(stored: StoredAggregate, claims: Sequence[Claim]) -> dict[str, RunFile]:
    keys = {key for claim in claims for key in (claim.identity[0], claim.restored_key)}
    by_identity: dict[tuple[str, str], RunFile] = {}
    by_key: dict[str, RunFile] = {}
    async for files in stored.files():
        for file in files:
            if file.key in keys:
                by_identity[file.key, file.etag] = by_key[file.key] = file
    found = {
        # A restored key has one content, whatever the etag of its copy.
        claim.file.key: by_identity.get(claim.identity) or by_key.get(claim.restored_key)
        for claim in claims
    }
    return {key: file for key, file in found.items() if file is not None}


async def _find_quarantined(
    stored: StoredAggregate, claims: Sequence[Claim]
) -> set[tuple[str, str]]:
    identities = {claim.identity for claim in claims}
    named = {(row.key, row.etag) async for row in stored.quarantined_rows()}
    return identities & named
