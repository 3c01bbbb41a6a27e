"""The package with one step taken away, by which it keeps a promise.

Each mutation is a change that a reviewer could miss. The explorer must find a schedule in which it
breaks a promise; a checker that finds none of them would prove nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

import asyncagg.archive.packing as packing_module
import asyncagg.job.aggregates as aggregates_module
import asyncagg.job.fetch as fetch_module
import asyncagg.job.pipeline as pipeline_module
import asyncagg.job.settle as settle_module
import asyncagg.quarantine.restore as restore_module
import asyncagg.windows as windows_module
from asyncagg.aggregate.reader import Known, StoredAggregate
from asyncagg.aggregate.rows import counted_row
from asyncagg.errors import NotFoundError, StoreError, TransientError
from asyncagg.job.archive import Mover
from asyncagg.job.committer import Committer
from asyncagg.job.context import JobContext
from asyncagg.job.outcome import Tally
from asyncagg.job.packing import LostPack, remove_lost
from asyncagg.job.settle import Settlement
from asyncagg.model import Place, RunFile, RunResult, Window
from asyncagg.store import Absent, Matches
from testkit.explorer.store import ScheduledStore
from testkit.scenario import AT

__all__ = ("MUTATIONS", "Mutation")


@dataclass(frozen=True)
class Mutation:
    """A step taken away.

    Attributes:
        name: What the package does then.
        scenario: The name of the scenario in which it breaks a promise.
        apply: Changes the package.
    """

    name: str
    scenario: str
    apply: Callable[[pytest.MonkeyPatch], None]


def _archive_before_commit(patch: pytest.MonkeyPatch) -> None:
    commit = Committer._commit

    async def mutated(self: Committer, settlement: Settlement, *rest: Any) -> None:
        async for files in settlement.files.batches():
            await Mover(settlement.context, Tally()).archive(files)
        await commit(self, settlement, *rest)

    patch.setattr(Committer, "_commit", mutated)


def _commit_unconditionally(patch: pytest.MonkeyPatch) -> None:
    commit = aggregates_module.commit_aggregate

    async def mutated(*given: Any, **options: Any) -> str:
        return await commit(*given, **(options | {"condition": None}))

    patch.setattr(aggregates_module, "commit_aggregate", mutated)


def _commit_over_the_latest(patch: pytest.MonkeyPatch) -> None:
    commit = aggregates_module.commit_aggregate

    async def mutated(context: JobContext, window: Window, *given: Any, **options: Any) -> str:
        condition: Absent | Matches = Absent()
        try:
            latest = await context.store.head(context.layout.aggregate_key(window))
            condition = Matches(latest.file.etag)
        except NotFoundError:
            pass
        return await commit(context, window, *given, **(options | {"condition": condition}))

    patch.setattr(aggregates_module, "commit_aggregate", mutated)


def _copy_without_etag(patch: pytest.MonkeyPatch) -> None:
    _copy_with(patch, if_match=None)


def _copy_over_other_content(patch: pytest.MonkeyPatch) -> None:
    _copy_with(patch, condition=None)


def _copy_with(patch: pytest.MonkeyPatch, **options: object) -> None:
    copy = ScheduledStore.copy

    async def mutated(*given: Any, **more: Any) -> None:
        await copy(*given, **(more | options))

    patch.setattr(ScheduledStore, "copy", mutated)


def _delete_without_etag(patch: pytest.MonkeyPatch) -> None:
    async def mutated(self: ScheduledStore, files: Sequence[RunFile]) -> Mapping[str, StoreError]:
        for file in files:
            await self.remove(file.key)
        return {}

    patch.setattr(ScheduledStore, "delete", mutated)


def _skip_counted_check(patch: pytest.MonkeyPatch) -> None:
    async def mutated(*_: object, **__: object) -> Known:
        return Known(set(), set(), set(), {})

    patch.setattr(StoredAggregate, "known", mutated)


def _ignore_record(patch: pytest.MonkeyPatch) -> None:
    async def mutated(context: JobContext) -> JobContext:
        return context

    patch.setattr(pipeline_module, "follow_record", mutated)
    patch.setattr(pipeline_module, "ensure_record", mutated)


def _restore_without_claim(patch: pytest.MonkeyPatch) -> None:
    async def mutated(*_: object) -> dict[str, RunFile]:
        return {}

    patch.setattr(restore_module, "claim_files", mutated)


def _restore_into_any_window(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(windows_module, "RESTORED", "nowhere in a key")


def _delete_before_commit(patch: pytest.MonkeyPatch) -> None:
    commit = Committer._commit

    async def mutated(self: Committer, settlement: Settlement, *rest: Any) -> None:
        async for files in settlement.files.batches():
            if rest[-1]:  # packs
                await Mover(settlement.context, Tally()).remove_packed(files)
        await commit(self, settlement, *rest)

    patch.setattr(Committer, "_commit", mutated)


def _remove_pack_of_unclear_commit(patch: pytest.MonkeyPatch) -> None:
    commit = Committer._commit

    async def mutated(self: Committer, settlement: Settlement, *rest: Any) -> None:
        try:
            await commit(self, settlement, *rest)
        except TransientError:
            for pack in rest[-1]:
                await settlement.context.store.delete([RunFile(pack.key, 0, pack.etag, AT)])
            raise

    patch.setattr(Committer, "_commit", mutated)


def _remove_pack_of_refused_commit(patch: pytest.MonkeyPatch) -> None:
    async def mutated(
        context: JobContext, stored: StoredAggregate | None, lost: list[LostPack]
    ) -> None:
        await remove_lost(context, stored and replace(stored, packs=()), lost)

    patch.setattr(settle_module, "remove_lost", mutated)


def _rows_without_place(patch: pytest.MonkeyPatch) -> None:
    def mutated(file: RunFile, result: RunResult, _place: Place | None = None) -> bytes:
        return counted_row(file, result)

    patch.setattr(fetch_module, "counted_row", mutated)


def _pack_archive_unconditionally(patch: pytest.MonkeyPatch) -> None:
    async def mutated(*given: Any, **options: Any) -> str:
        return await aggregates_module.commit_aggregate(*given, **(options | {"condition": None}))

    patch.setattr(packing_module, "commit_aggregate", mutated)


def _delete_by_setting(patch: pytest.MonkeyPatch) -> None:
    find = Settlement.find_known

    async def mutated(self: Settlement, *given: Any) -> Known:
        known = await find(self, *given)
        packs = self.context.settings.archive_format == "packs"
        return known._replace(packed=known.counted if packs else set())

    patch.setattr(Settlement, "find_known", mutated)


MUTATIONS = (
    Mutation("archives and deletes before the commit", "two runners", _archive_before_commit),
    Mutation("commits without a condition", "two runners", _commit_unconditionally),
    Mutation("commits over the latest etag", "two runners", _commit_over_the_latest),
    Mutation(
        "deletes packed files before the commit", "two runners with packs", _delete_before_commit
    ),
    Mutation(
        "removes the pack of an unclear commit",
        "two runners with packs",
        _remove_pack_of_unclear_commit,
    ),
    Mutation(
        "removes the pack of a refused commit that succeeded",
        "packs, arriving",
        _remove_pack_of_refused_commit,
    ),
    Mutation("rows do not name the pack", "two runners with packs", _rows_without_place),
    Mutation(
        "deletes counted files by the setting, not by the row",
        "an unfinished run, then packs",
        _delete_by_setting,
    ),
    Mutation(
        "archive pack commits without a condition",
        "archive pack next to a run",
        _pack_archive_unconditionally,
    ),
    Mutation("copies without the etag of the source", "overwritten", _copy_without_etag),
    Mutation("copies over other content", "overwritten", _copy_over_other_content),
    Mutation("deletes without the etag", "overwritten", _delete_without_etag),
    Mutation("skips the check for counted files", "two runners", _skip_counted_check),
    Mutation("ignores the record", "other settings than the record", _ignore_record),
    Mutation("restores without a claim", "different limits, deleted", _restore_without_claim),
    Mutation(
        "restores into the window of the copy",
        "restored by two next to smaller limits",
        _restore_into_any_window,
    ),
)
