"""Delete the single copies of files that are in a pack.

The copy of the last file of each pack is deleted last. So if a run is stopped, the next one finds
the packs that still have copies by one look for each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Sequence
from typing import NamedTuple

import msgspec

from asyncagg.aggregate.reader import StoredAggregate
from asyncagg.errors import AggregateError, NotFoundError, PreconditionFailedError, StoreError
from asyncagg.job.aggregates import load_aggregate
from asyncagg.job.context import JobContext
from asyncagg.job.listing import list_aggregate_windows
from asyncagg.model import CountedFile, Pack, RunFile, Window
from asyncagg.packs.reader import stream_files
from asyncagg.runtime.tasks import map_each
from asyncagg.store import DELETE_BATCH
from asyncagg.windows import check_interval, time_in_name

_HELD_FILES = 50_000
"""Files that wait for one look at all aggregates."""


class _Held(NamedTuple):
    window: Window
    files: Sequence[CountedFile]


class Copies:
    """Deletes the single copies of files that are in a pack.

    A file that is delivered again may be counted in another window too, unless the time in its name
    determines its window. Both rows then name one copy. So the copies of such packs are held until
    all aggregates are read; those that another row needs stay.

    Args:
        context: Where the files are.
    """

    def __init__(self, context: JobContext) -> None:
        self._context = context
        self._store = context.store
        self._held: list[_Held] = []

    async def delete(self, window: Window, written: Collection[str]) -> int:
        """Delete the copies of the packed files of a window, or hold them.

        Args:
            window: The window.
            written: The packs that surely have copies.

        Returns:
            Of how many files the copies were deleted.

        Raises:
            AggregateError: The aggregate is damaged.
            DamagedPackError: A pack does not have a file at its place: the copies are kept.
            StoreError: The store failed.
        """
        deleted = 0
        async with self._context.open_spool() as spool:
            stored = await load_aggregate(self._context, window, spool)
            if stored is None:
                return 0
            async for pack, files in self._packs_with_copies(stored, written):
                async for _ in stream_files(self._store, pack, files, if_match=pack.etag):
                    pass  # it checks each file
                if all(self._has_one_window(window, file) for file in files):
                    deleted += await self._delete(files)
                else:
                    self._held.append(_Held(window, files))
        return deleted

    async def _packs_with_copies(
        self, stored: StoredAggregate, written: Collection[str]
    ) -> AsyncIterator[tuple[Pack, list[CountedFile]]]:
        """Yield the packs that have single copies, and their files in the order of the pack."""
        chosen = {*written, *await self._find_packs(stored)}
        packs = {pack.id: pack for pack in stored.packs if pack.id in chosen}
        groups: defaultdict[str, list[CountedFile]] = defaultdict(list)
        async for files in stored.files():
            for file in files:
                if file.pack in packs:
                    groups[file.pack].append(file)
            for name in [name for name in groups if len(groups[name]) == packs[name].files]:
                yield packs[name], sorted(groups.pop(name), key=lambda file: file.offset)

    async def _find_packs(self, stored: StoredAggregate) -> list[str]:
        """Return the packs whose last file has a copy."""
        last: dict[str, CountedFile] = {}
        async for files in stored.files():
            for file in files:
                if file.pack and file.offset >= last.get(file.pack, file).offset:
                    last[file.pack] = file
        workers = self._context.settings.concurrency
        found = await map_each(last.values(), self._has_copy, workers=workers)
        return [name for name, has_copy in zip(last, found, strict=True) if has_copy]

    async def _has_copy(self, file: CountedFile) -> bool:
        for key in copy_keys(self._context, file):
            try:
                if (await self._store.head(key)).file.etag == file.etag:
                    return True
            except NotFoundError:
                continue
        return False

    def _has_one_window(self, window: Window, file: RunFile) -> bool:
        stamp = time_in_name(file.key, self._context.settings.window_by)
        return stamp is not None and window.start <= stamp < window.end

    @property
    def is_full(self) -> bool:
        """Whether it is time to call `delete_held`."""
        return sum(len(each.files) for each in self._held) >= _HELD_FILES

    async def delete_held(self) -> tuple[int, dict[str, str]]:
        """Delete the copies that no other row needs.

        Returns:
            Of how many files the copies were deleted, and the windows where that failed, and why.
        """
        held, self._held = self._held, []
        if not held:
            return 0, {}
        try:
            needed = await self._needed([file for each in held for file in each.files])
        except (AggregateError, StoreError) as error:
            return 0, {each.window.name: str(error) for each in held}
        deleted, failures = 0, {}
        for window, files in held:
            try:
                deleted += await self._delete([file for file in files if file.key not in needed])
            except StoreError as error:
                failures[window.name] = str(error)
        return deleted, failures

    async def _needed(self, files: Sequence[CountedFile]) -> set[str]:
        """Return the keys of files that an aggregate counts as single ones."""
        sizes = {(file.key, file.size) for file in files}
        needed: set[str] = set()
        context, everything = self._context, check_interval(None, None)
        async for windows in list_aggregate_windows(self._store, context.settings, everything):
            for window in windows:
                async with context.open_spool() as spool:
                    stored = await load_aggregate(context, window, spool)
                    if stored is None:
                        continue
                    known = await stored.known(files)
                needed |= known.counted - known.packed
                for versions in known.redelivered.values():
                    single = [each for each in versions if not each.pack]
                    needed |= {each.key for each in single if (each.key, each.size) in sizes}
        return needed

    async def _delete(self, files: Sequence[CountedFile]) -> int:
        """Delete the copies of files of a pack, the last one last; return of how many.

        Raises:
            StoreError: One could not be deleted.
        """
        copies = [
            msgspec.structs.replace(file, key=key)
            for file in files
            for key in copy_keys(self._context, file)
        ]
        last = max(0, len(copies) - 2)
        for start in range(0, last, DELETE_BATCH):
            await self._delete_batch(copies[start : min(start + DELETE_BATCH, last)])
        await self._delete_batch(copies[last:])
        return len(files)

    async def _delete_batch(self, copies: Sequence[RunFile]) -> None:
        failures = await self._store.delete(copies) if copies else {}
        for error in failures.values():
            if not isinstance(error, PreconditionFailedError):  # it is of another version
                raise error


def copy_keys(context: JobContext, file: RunFile) -> tuple[str, str]:
    """Return the keys that the single copy of a file may have in the archive."""
    archived = context.layout.archive_key(file.key)
    return archived, context.layout.conflict_key(archived, file.etag)
