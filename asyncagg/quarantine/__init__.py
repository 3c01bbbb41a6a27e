"""What is in quarantine, why, and whether it would be accepted now.

Nothing is changed here; `asyncagg.quarantine.putback` takes files out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

import orjson
from msgspec import structs

from asyncagg.aggregate.spool import open_spool
from asyncagg.errors import AggregateError, InvalidRunFileError, NotFoundError, UsageError
from asyncagg.ingest.gzipped import Inflater, is_gzipped
from asyncagg.ingest.parsing import is_run_file
from asyncagg.job.fetch import MODIFIED, REASON
from asyncagg.job.layout import Layout
from asyncagg.job.reader import Reader
from asyncagg.job.settle import load
from asyncagg.model import RunFile, Window
from asyncagg.runtime.tasks import for_each
from asyncagg.settings import Settings
from asyncagg.store import ObjectInfo, Store, StreamedBody
from asyncagg.windows import stamp_of, window_selector

__all__ = ("EXCERPT_BYTES", "Held", "Shown", "Wanted", "check_key", "held", "refusal", "show")

EXCERPT_BYTES = 512
"""How much of a file's content is shown."""

_MOST_INFLATED = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Held:
    """One file in quarantine.

    Attributes:
        file: Its reference, under its key in quarantine.
        window: The window that it would have been counted in; None where nothing tells. What was
            overwritten in quarantine has lost its metadata, and with it the time it came at.
        reason: Why it is there: what its metadata say, else what the window's aggregate says;
            empty where neither does.
    """

    file: RunFile
    window: Window | None
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        window = self.window.name if self.window else None
        return structs.asdict(self.file) | {"window": window, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which files are asked for.

    Attributes:
        since: Not those of windows that start earlier.
        until: Not those of windows that end later.
        reason: Only those whose reason contains this text, in upper or lower case.
    """

    since: datetime | None = None
    until: datetime | None = None
    reason: str = ""

    def holds(self, each: Held) -> bool:
        """Say whether a file is asked for; where its window is not known, its own time counts."""
        start = each.window.start if each.window else each.file.last_modified
        end = each.window.end if each.window else each.file.last_modified
        return (
            (self.since is None or self.since <= start)
            and (self.until is None or end <= self.until)
            and self.reason.casefold() in each.reason.casefold()
        )


@dataclass(frozen=True, slots=True)
class Shown:
    """All that is known of one file in quarantine.

    Attributes:
        held: The file.
        came_from: Its key in the inbox.
        entry: What its window's aggregate says of it, if it does.
        refusal: Why it would be refused again; empty where it would be accepted now.
        excerpt: Its first bytes.
        unzipped: Whether those are of its unzipped content.
    """

    held: Held
    came_from: str
    entry: dict[str, Any] | None
    refusal: str
    excerpt: bytes
    unzipped: bool

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON; bytes that are not UTF-8 are told as escapes."""
        known = asdict(self) | {"excerpt": self.excerpt.decode("utf-8", "backslashreplace")}
        del known["held"]
        return self.held.as_dict() | known | {"accepted": not self.refusal}


def check_key(settings: Settings, key: str) -> None:
    """Make sure that a key is one in quarantine.

    Raises:
        UsageError: It is not.
    """
    prefix = settings.quarantine_prefix
    if not key.startswith(prefix) or key == prefix:
        raise UsageError(
            f"key {key!r}: expected one below {prefix!r}, as `asyncagg quarantine list` prints it"
        )


async def held(store: Store, settings: Settings, wanted: Wanted) -> AsyncIterator[Held]:
    """Yield the files in quarantine that are asked for, in key order, holding one page of them.

    Args:
        store: Where they are.
        settings: The prefixes, the windows and the bounds.
        wanted: Which of them.
    """
    async for page in store.list_pages(settings.quarantine_prefix):
        for each in await _known(store, settings, [each for each in page if is_run_file(each.key)]):
            if wanted.holds(each):
                yield each


async def _known(store: Store, settings: Settings, page: Sequence[RunFile]) -> list[Held]:
    """Return what is known of each file of a page; some may be gone meanwhile."""
    found: dict[str, Held] = {}

    async def look(file: RunFile) -> None:
        try:
            info = await store.head(file.key)
        except NotFoundError:
            return
        found[file.key] = _told_by_metadata(info, settings)

    await for_each(page, look, workers=settings.concurrency)
    untold = [each for each in found.values() if not each.reason]
    for key, entry in (await _entries(store, settings, untold)).items():
        found[key] = replace(found[key], reason=str(entry.get("reason", "")))
    return [found[file.key] for file in page if file.key in found]


def _told_by_metadata(info: ObjectInfo, settings: Settings) -> Held:
    file = info.file
    came_at = _time(info.metadata.get(MODIFIED, ""))
    window = None
    if came_at is not None or (settings.window_by == "name" and stamp_of(file.key) is not None):
        original = structs.replace(
            file,
            key=Layout(settings).inbox_key(file.key),
            last_modified=came_at or file.last_modified,
        )
        window = window_selector(settings.window_by, settings.window_minutes)(original)
    return Held(file, window, info.metadata.get(REASON, ""))


def _time(text: str) -> datetime | None:
    """Return the time that metadata tell; whoever wrote them may have written anything."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else None


async def _entries(
    store: Store, settings: Settings, page: Iterable[Held]
) -> dict[str, dict[str, Any]]:
    """Return what aggregates say of files in quarantine, by their key there."""
    asked: defaultdict[Window, set[str]] = defaultdict(set)
    for each in page:
        if each.window is not None:
            asked[each.window].add(each.file.key)
    found: dict[str, dict[str, Any]] = {}
    for window, keys in asked.items():
        async with open_spool(settings.spool_bytes) as spool:
            try:
                existing = await load(store, Layout(settings).aggregate_key(window), window, spool)
            except AggregateError:
                continue  # it says nothing that could be believed; `asyncagg verify` tells of it
            if existing is not None:
                async for _, _, line in existing.quarantined():
                    row = orjson.loads(line)
                    if row.get("moved_to") in keys:
                        found[row["moved_to"]] = row
    return found


async def show(store: Store, settings: Settings, key: str) -> Shown:
    """Return all that is known of one file in quarantine.

    Args:
        store: Where it is.
        settings: The prefixes, the windows, and the bounds that it is judged by.
        key: Its key in quarantine.

    Raises:
        UsageError: The key is not one in quarantine.
        NotFoundError: No object has it.
    """
    check_key(settings, key)
    known = _told_by_metadata(await store.head(key), settings)
    entry = (await _entries(store, settings, [known])).get(key)
    if entry is not None and not known.reason:
        known = replace(known, reason=str(entry.get("reason", "")))
    refused = await refusal(Reader(store, settings), known.file)
    async with store.stream(key, if_match=known.file.etag) as body:
        excerpt, unzipped = await _excerpt(key, body)
    came_from = str(entry["key"]) if entry else Layout(settings).inbox_key(key)
    return Shown(known, came_from, entry, refused, excerpt, unzipped)


async def refusal(reader: Reader, file: RunFile, *, at: str = "") -> str:
    """Return why a file would be refused by today's rules; empty where it would be accepted.

    Args:
        reader: Reads it, with the bounds to judge by.
        file: Its reference.
        at: The key where it stands, if not its own.
    """
    if not is_run_file(file.key):
        return f"{file.key!r} is no run file: expected a name that ends with .json or .json.gz"
    try:
        await reader.read(file, at=at)
    except InvalidRunFileError as error:
        return error.reason
    return ""


async def _excerpt(key: str, body: StreamedBody) -> tuple[bytes, bool]:
    raw, unzipped = bytearray(), bytearray()
    inflater = Inflater(_MOST_INFLATED) if is_gzipped(key, body.content_encoding) else None
    async for block in body.chunks:
        raw += block[:EXCERPT_BYTES]
        if inflater is not None:
            try:
                for part in inflater.feed(block):
                    unzipped += part
                    if len(unzipped) >= EXCERPT_BYTES:
                        break
            except InvalidRunFileError:
                inflater = None
        if len(raw if inflater is None else unzipped) >= EXCERPT_BYTES:
            break
    if unzipped:
        return bytes(unzipped[:EXCERPT_BYTES]), True
    return bytes(raw[:EXCERPT_BYTES]), False
