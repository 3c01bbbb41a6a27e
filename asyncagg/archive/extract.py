"""Extract counted files from packs and from single objects of the archive."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from asyncagg.archive.listing import ArchivedFile, Wanted, list_archived
from asyncagg.archive.targets import RefusedError, Target
from asyncagg.errors import (
    AccessDeniedError,
    NotFoundError,
    PreconditionFailedError,
    StoreError,
)
from asyncagg.job.byte_limiter import ByteLimiter
from asyncagg.job.context import JobContext
from asyncagg.model import CountedFile, Pack
from asyncagg.packs.format import DamagedPackError
from asyncagg.packs.reader import PackReader, stream_files
from asyncagg.runtime.tasks import for_each


class Extracted(NamedTuple):
    """What happened to a file.

    Attributes:
        key: Its key in the inbox.
        window: The name of its window.
        size: Its size in bytes.
        target: Where it is now; empty if it was not extracted.
        reason: Why it was not extracted, or empty.
    """

    key: str
    window: str
    size: int
    target: str = ""
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return self._asdict()


Report = Callable[[Extracted], object]
"""Called with what happened to each file."""


async def extract(
    context: JobContext, wanted: Wanted, target: Target, report: Report, *, counted: bool = True
) -> None:
    """Extract files; ``report`` is called with each result.

    A pack all of whose files are wanted is read as one stream; else a file is read by itself.

    Args:
        context: Where they are.
        wanted: Which files.
        target: Where they go.
        report: Called with each result.
        counted: Whether to extract files that an aggregate counts.

    Raises:
        AggregateError: An aggregate is damaged, or is not an aggregate.
        ConfigurationError: The store cannot be used.
        StoreError: An aggregate could not be read.
    """
    work = _Extraction(context, target, report)
    async for page in list_archived(context, wanted):
        if counted or not page[0].counted:
            await work.add(page)
            continue
        for each in page:
            reason = f"the aggregate of {each.window.name} still counts it"
            report(Extracted(each.file.key, each.window.name, each.file.size, reason=reason))
    await work.finish()


class _Extraction:
    def __init__(self, context: JobContext, target: Target, report: Report) -> None:
        self._context = context
        self._store = context.store
        self._target = target
        self._report = report
        self._limiter = ByteLimiter(context.settings.max_inflight_bytes)
        self._window = ""
        self._packed: defaultdict[str, list[ArchivedFile]] = defaultdict(list)

    async def add(self, page: Sequence[ArchivedFile]) -> None:
        """Extract the files of a page, or keep them until their whole pack is wanted."""
        if page[0].window.name != self._window:
            await self.finish()
            self._window = page[0].window.name
        single: list[ArchivedFile] = []
        for each in page:
            (self._packed[each.file.pack] if each.pack else single).append(each)
        await self._extract_each(single)
        for name, files in list(self._packed.items()):
            pack = files[0].pack
            if pack and len(files) == pack.files:
                del self._packed[name]
                await self._extract_pack(pack, files)

    async def finish(self) -> None:
        """Extract the files of packs of which only a part is wanted."""
        files = [each for group in self._packed.values() for each in group]
        self._packed.clear()
        await self._extract_each(files)

    async def _extract_pack(self, pack: Pack, files: Sequence[ArchivedFile]) -> None:
        rest = {(each.file.key, each.file.etag): each for each in files}
        try:
            async for file, data in stream_files(self._store, pack, [e.file for e in files]):
                await self._write(rest.pop((file.key, file.etag)), data)
        except (DamagedPackError, StoreError):
            await self._extract_each(rest.values())  # says for each what is wrong

    async def _extract_each(self, files: Iterable[ArchivedFile]) -> None:
        await for_each(files, self._extract_one, workers=self._context.settings.concurrency)

    async def _extract_one(self, each: ArchivedFile) -> None:
        file = each.file
        async with self._limiter.hold(file.size):
            try:
                data = await self._read(each)
            except AccessDeniedError:
                raise
            except (DamagedPackError, StoreError) as error:
                self._report(Extracted(file.key, each.window.name, file.size, reason=str(error)))
                return
            await self._write(each, data)

    async def _read(self, each: ArchivedFile) -> bytes:
        if each.file.pack:
            packs = [each.pack] if each.pack else []
            return (await PackReader(self._store, packs, block=0).read(each.file)).data
        return await self._read_object(each.file)

    async def _read_object(self, file: CountedFile) -> bytes:
        layout = self._context.layout
        archived = layout.archive_key(file.key)
        conflict = layout.conflict_key(archived, file.etag)
        # A copy of an encrypted object has another etag than the file had.
        for key, etag in (
            (archived, file.etag),
            (conflict, file.etag),
            (file.key, file.etag),
            (conflict, None),
            (archived, None),
        ):
            try:
                data = (await self._store.get(key, if_match=etag)).data
            except (NotFoundError, PreconditionFailedError):
                continue
            if len(data) == file.size:
                return data
        raise NotFoundError(f"no copy of {file.key!r} with etag {file.etag!r}", key=file.key)

    async def _write(self, each: ArchivedFile, data: bytes) -> None:
        file, window = each.file, each.window.name
        try:
            place = await self._target.write(file, data)
        except RefusedError as error:
            self._report(Extracted(file.key, window, file.size, reason=str(error)))
        else:
            self._report(Extracted(file.key, window, file.size, target=place))
