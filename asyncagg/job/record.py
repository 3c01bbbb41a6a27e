"""The record of a store: the settings that must stay the same from run to run.

With another window or other prefixes, a file that is counted but not archived yet would be counted
again. So the first run writes these settings next to the aggregates, and every later command uses
them. A copy in the archive is found when the prefix of the aggregates has changed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import msgspec

from asyncagg.aggregate.reader import read_window
from asyncagg.errors import (
    AggregateError,
    ConfigurationError,
    NotFoundError,
    PreconditionFailedError,
    StoreError,
    UsageError,
)
from asyncagg.job.aggregates import load_aggregate
from asyncagg.job.context import JobContext
from asyncagg.job.layout import KeyKind
from asyncagg.model import Window
from asyncagg.settings import Settings
from asyncagg.store import Absent, Store
from asyncagg.windows import WindowBy, window_selector

FORMAT = 1
"""Raised when the meaning of the objects in a store changes."""

_BEFORE_RECORDS: tuple[WindowBy, ...] = ("last_modified", "name")
"""What may have decided the window of a file without a record; the default of that time first."""

_NEWEST = 10
"""How many aggregates are looked at in a store without a record."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The settings that decide which files an aggregate counts, and where they are."""

    format: int = FORMAT
    window_by: WindowBy
    window_minutes: int
    runs_prefix: str
    aggregate_prefix: str
    archive_prefix: str
    quarantine_prefix: str
    rollup_prefix: str
    work_prefix: str

    @classmethod
    def of(cls, settings: Settings) -> Record:
        """Return the record of these settings."""
        return cls(**{name: getattr(settings, name) for name in RECORDED})

    def encode(self) -> bytes:
        """Return it as JSON, one member per line."""
        return msgspec.json.format(msgspec.json.encode(self)) + b"\n"

    def values(self) -> dict[str, Any]:
        """Return the recorded settings by name."""
        return {name: getattr(self, name) for name in RECORDED}


RECORDED = tuple(name for name in Record.__struct_fields__ if name != "format")
"""The names of the settings in a record."""


async def follow_record(context: JobContext) -> JobContext:
    """Return the context with the recorded settings instead of those that were not given.

    In a store without a record, those that the newest aggregate was made with count as recorded.
    If there is no aggregate either, the context is returned as it is.

    Raises:
        UsageError: A given setting differs from the recorded one.
        ConfigurationError: The record is damaged, or has an unknown format.
    """
    key, record = await _find_record(context)
    if record is None:
        inferred = await _follow_aggregates(context)
        # Another run may have written the record, then the aggregates, since it was looked for.
        key, record = await _find_record(context)
        if record is None:
            return inferred
    return _follow(context, record.values(), key)


async def ensure_record(context: JobContext) -> None:
    """Write the record of these settings if the store has none.

    Raises:
        UsageError: The store has a record of other settings.
        ConfigurationError: The record is damaged, or has an unknown format.
    """
    layout, wanted = context.layout, Record.of(context.settings)
    if await _read(context.store, layout.record_key) == wanted:
        return
    # The copy first: without it, a change of `aggregate_prefix` would not be noticed.
    for key in (layout.record_copy_key, layout.record_key):
        try:
            await context.store.put(key, wanted.encode(), condition=Absent())
        except PreconditionFailedError:
            found = await _read(context.store, key) or wanted
            for name, value in found.values().items():
                if value != getattr(wanted, name):
                    _refuse(context.settings, name, value, key)


async def adopt_settings(context: JobContext) -> Record:
    """Replace the record of a store by one with the given settings, and return it.

    A setting that is not given stays as it is recorded.

    Raises:
        UsageError: The inbox is not empty, or a backfill is unfinished: files that are counted
            already could be counted again.
    """
    _, found = await _find_record(context, damaged_as_none=True)
    former = context if found is None else _with(context, found.values())
    given = {name: getattr(context.settings, name) for name in context.settings.explicit}
    new = _with(former, {name: given[name] for name in given.keys() & set(RECORDED)})
    await _check_idle(former)
    record = Record.of(new.settings)
    keys = (new.layout.record_copy_key, new.layout.record_key)
    for key in keys:
        await context.store.put(key, record.encode())
    outdated = {former.layout.record_copy_key, former.layout.record_key} - set(keys)
    for key in outdated:
        await context.store.delete([(await context.store.head(key)).file])
    return record


async def _check_idle(context: JobContext) -> None:
    settings, layout = context.settings, context.layout
    async for page in context.store.list_pages(settings.runs_prefix):
        for file in page:
            if layout.kind(file.key) is KeyKind.RUN_FILE:
                raise UsageError(
                    f"inbox: it has the run file {file.key!r}; expected an empty inbox, so that no "
                    "file is counted by both settings: settle and archive what is there first"
                )
    async for page in context.store.list_pages(settings.work_prefix):
        if page:
            raise UsageError(
                f"backfill: it has left {page[0].key!r}; expected no unfinished backfill: run it "
                "again to finish it first"
            )


async def _find_record(
    context: JobContext, *, damaged_as_none: bool = False
) -> tuple[str, Record | None]:
    """Return the record, or its copy in the archive, and the key where it is."""
    for key in (context.layout.record_key, context.layout.record_copy_key):
        try:
            record = await _read(context.store, key)
        except ConfigurationError:
            if not damaged_as_none:
                raise
            record = None
        if record is not None:
            return key, record
    return context.layout.record_key, None


async def _read(store: Store, key: str) -> Record | None:
    """Return the record with this key, or None if there is none."""
    try:
        data = (await store.get(key)).data
    except NotFoundError:
        return None
    try:
        record = msgspec.json.decode(data, type=Record)
    except msgspec.MsgspecError as error:
        raise _damaged(key, str(error)) from None
    if record.format != FORMAT:
        raise _damaged(key, f"format {record.format}, expected {FORMAT}")
    return record


def _damaged(key: str, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"record {key!r}: {what}; expected the settings of this store, as asyncagg wrote them. "
        "Use the version of asyncagg that wrote it, restore it, or replace it with "
        "`asyncagg doctor --adopt`"
    )


def _follow(context: JobContext, recorded: Mapping[str, Any], key: str) -> JobContext:
    """Return the context with the recorded values; refuse a given one that differs."""
    for name, value in recorded.items():
        if name in context.settings.explicit and value != getattr(context.settings, name):
            _refuse(context.settings, name, value, key)
    return _with(context, recorded)


def _with(context: JobContext, values: Mapping[str, Any]) -> JobContext:
    return replace(context, settings=msgspec.structs.replace(context.settings, **values))


def _refuse(settings: Settings, name: str, recorded: object, key: str) -> NoReturn:
    raise UsageError(
        f"{name} {getattr(settings, name)!r}: the aggregates of this store are made with "
        f"{recorded!r} (see {key!r}), and another value would count files twice or miss "
        f"them; expected {recorded!r}, or no {name}. To change it, settle the whole inbox first, "
        "then run `asyncagg doctor --adopt` with the new value",
        setting=name,
    )


async def _follow_aggregates(context: JobContext) -> JobContext:
    """Do the work of `follow_record` in a store without a record."""
    keys = deque[str](maxlen=_NEWEST)
    async for page in context.store.list_pages(context.layout.aggregate_prefix):
        keys.extend(file.key for file in page if context.layout.is_aggregate(file.key))
    minutes, possible, seen = 0, list(_BEFORE_RECORDS), ""
    for key in reversed(keys):
        try:
            window = await _window(context, key)
            if minutes and window.minutes != minutes:
                break
            possible = await _possible(context, key, window, possible)
        except (AggregateError, StoreError):
            continue  # a run names it when it settles its window
        minutes, seen = window.minutes, key
        if len(possible) == 1:
            break
    if not seen:
        return context
    by = possible[0]
    if "window_by" in context.settings.explicit and context.settings.window_by in possible:
        by = context.settings.window_by
    return _follow(context, {"window_by": by, "window_minutes": minutes}, seen)


async def _window(context: JobContext, key: str) -> Window:
    async with context.store.stream(key) as body:
        return await read_window(key, body.chunks)


async def _possible(
    context: JobContext, key: str, window: Window, ways: Sequence[WindowBy]
) -> list[WindowBy]:
    """Return in which of the ways the files of an aggregate belong to its window."""
    settings = context.settings
    possible = {by: window_selector(by, window.minutes) for by in ways}
    async with context.open_spool() as spool:
        stored = await load_aggregate(context, window, spool, key=key)
        if stored is None:
            return list(ways)
        async for files in stored.files():
            for file in files:
                if not file.key.startswith(settings.runs_prefix):
                    _refuse(settings, "runs_prefix", file.key.rpartition("/")[0] + "/", key)
            for by, window_of in list(possible.items()):
                if not all(window_of(file) == window for file in files):
                    del possible[by]
    if not possible:
        raise ConfigurationError(
            f"aggregate {key!r}: the times of its files, by name and by last_modified, are not all "
            "in its window; expected one of the two. Choose one with "
            "`asyncagg doctor --adopt --window-by ...`"
        )
    return list(possible)
