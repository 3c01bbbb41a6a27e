"""List the files in quarantine, with their window and the reason."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import orjson
from msgspec import structs

from asyncagg.errors import AggregateError, NotFoundError, StoreError, UsageError
from asyncagg.ingest.parsing import is_run_file
from asyncagg.job.aggregates import load_aggregate
from asyncagg.job.archive import ETAG, MODIFIED, REASON
from asyncagg.job.context import JobContext
from asyncagg.job.refusals import Refusals
from asyncagg.model import RunFile, Window
from asyncagg.runtime.tasks import map_each
from asyncagg.settings import Settings
from asyncagg.windows import time_in_name


@dataclass(frozen=True, slots=True)
class QuarantinedFile:
    """A file in quarantine.

    Attributes:
        file: Its reference, with its key in quarantine.
        window: The window that it would be counted in, or None if unknown: a file that was
            overwritten in quarantine has lost its metadata, and with it the time of its arrival.
        reason: Why it is there, from its metadata or its window's aggregate; empty if unknown.
        etag: The etag with which it arrived, if that is known.
        failure: Why not all of this could be read, or empty.
    """

    file: RunFile
    window: Window | None
    reason: str
    etag: str = ""
    failure: str = ""

    def with_entry(self, entry: dict[str, Any] | None) -> QuarantinedFile:
        """Return it with the reason that an aggregate gives, if the metadata gave none."""
        if self.reason or entry is None:
            return self
        return replace(self, reason=str(entry.get("reason", "")))

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        window = self.window.name if self.window else None
        known = {"window": window, "reason": self.reason, "failure": self.failure}
        return structs.asdict(self.file) | known


def check_key(settings: Settings, key: str) -> None:
    """Raise `UsageError` unless a key is in quarantine."""
    prefix = settings.quarantine_prefix
    if not key.startswith(prefix) or key == prefix:
        raise UsageError(
            f"key {key!r}: expected one below {prefix!r}, as `asyncagg quarantine list` prints it"
        )


async def list_quarantined(
    context: JobContext,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    reason: str = "",
) -> AsyncIterator[QuarantinedFile]:
    """Yield the files in quarantine, in key order, with one page in memory.

    Args:
        context: Where they are.
        since: Only files of windows that start then or later.
        until: Only files of windows that end by then.
        reason: Only files whose reason contains this text; case is ignored.

    A file that cannot be read is always in the result, with its ``failure``.

    Raises:
        StoreError: The listing failed, or not one file could be read.
    """
    refusals = Refusals(most=math.inf)

    async def try_look_up(file: RunFile) -> QuarantinedFile | None:
        try:
            found = await look_up(context, file.key)
        except NotFoundError:
            return None  # it was restored or deleted meanwhile
        except StoreError as error:
            refusals.add(error)
            return QuarantinedFile(file, None, "", failure=str(error))
        refusals.accept("head")
        return found

    async for page in context.store.list_pages(context.settings.quarantine_prefix):
        files = [file for file in page if is_run_file(file.key)]
        results = await map_each(files, try_look_up, workers=context.settings.concurrency)
        found = [each for each in results if each is not None]
        without_reason = [each for each in found if not each.reason]
        entries, failures = await find_entries(context, without_reason)
        for each in found:
            complete = each.with_entry(entries.get(each.file.key))
            if each.window in failures and not each.reason:
                complete = replace(each, failure=failures[each.window])
            # If the window is unknown, the file's own time decides.
            span, modified = each.window, each.file.last_modified
            start, end = (span.start, span.end) if span else (modified, modified)
            in_interval = (since is None or since <= start) and (until is None or end <= until)
            matches = in_interval and reason.casefold() in complete.reason.casefold()
            if matches or complete.failure:
                yield complete
    refusals.check()


async def look_up(context: JobContext, key: str) -> QuarantinedFile:
    """Return a file in quarantine as its metadata and its key describe it."""
    settings, info = context.settings, await context.store.head(key)
    arrived = _parse_time(info.metadata.get(MODIFIED, ""))
    window = None
    if arrived is not None or time_in_name(key, settings.window_by) is not None:
        inbox_key, modified = context.layout.inbox_key(key), arrived or info.file.last_modified
        window = context.window_of(
            structs.replace(info.file, key=inbox_key, last_modified=modified)
        )
    metadata = info.metadata
    return QuarantinedFile(info.file, window, metadata.get(REASON, ""), metadata.get(ETAG, ""))


def _parse_time(text: str) -> datetime | None:
    """Return a time from metadata, or None: an operator may have written anything."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else None


async def find_entries(
    context: JobContext, files: Iterable[QuarantinedFile]
) -> tuple[dict[str, dict[str, Any]], dict[Window, str]]:
    """Find the entries of aggregates for files in quarantine.

    Returns:
        The entries by the files' keys, and the windows whose aggregate cannot be read, and why.
    """
    keys_of: defaultdict[Window, set[str]] = defaultdict(set)
    for each in files:
        if each.window is not None:
            keys_of[each.window].add(each.file.key)
    found: dict[str, dict[str, Any]] = {}
    failures: dict[Window, str] = {}
    for window, keys in keys_of.items():
        try:
            found |= await _entries_of(context, window, keys)
        except (AggregateError, StoreError) as error:
            failures[window] = str(error)
    return found, failures


async def _entries_of(
    context: JobContext, window: Window, keys: Collection[str]
) -> dict[str, dict[str, Any]]:
    async with context.open_spool() as spool:
        aggregate = await load_aggregate(context, window, spool)
        if aggregate is None:
            return {}
        entries = [orjson.loads(row.row) async for row in aggregate.quarantined_rows()]
    return {each["moved_to"]: each for each in entries if each.get("moved_to") in keys}
