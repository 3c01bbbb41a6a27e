"""The details of one file in quarantine: its entry, its content, and whether it is valid now."""

from __future__ import annotations

import zlib
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from asyncagg.errors import InvalidRunFileError
from asyncagg.ingest.gzipped import is_gzip
from asyncagg.ingest.parsing import is_run_file
from asyncagg.job.context import JobContext
from asyncagg.job.run_files import RunFileReader
from asyncagg.model import RunFile
from asyncagg.quarantine.listing import QuarantinedFile, check_key, find_entries, look_up
from asyncagg.store import StreamedBody

EXCERPT_BYTES = 512
"""How much of a file's content is shown."""


@dataclass(frozen=True, slots=True)
class FileDetails:
    """All that is known of a file in quarantine.

    Attributes:
        quarantined: The file.
        original_key: The key that it had in the inbox.
        entry: Its entry in its window's aggregate, if any.
        reason_now: Why it would be quarantined again; empty if it would be accepted now.
        excerpt: Its first bytes.
        unzipped: Whether those are of its unzipped content.
    """

    quarantined: QuarantinedFile
    original_key: str
    entry: dict[str, Any] | None
    reason_now: str
    excerpt: bytes
    unzipped: bool

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON; bytes that are not UTF-8 are escaped."""
        return self.quarantined.as_dict() | {
            "came_from": self.original_key,
            "entry": self.entry,
            "refusal": self.reason_now,
            "excerpt": self.excerpt.decode("utf-8", "backslashreplace"),
            "unzipped": self.unzipped,
            "accepted": not self.reason_now,
        }


async def file_details(context: JobContext, key: str) -> FileDetails:
    """Return all that is known of the file with a key in quarantine.

    Raises:
        UsageError: The key is not in quarantine.
        NotFoundError: No object has the key.
    """
    check_key(context.settings, key)
    found = await look_up(context, key)
    entries, _ = await find_entries(context, [found])
    entry = entries.get(key)
    reason = await quarantine_reason(RunFileReader(context.store, context.settings), found.file)
    async with context.store.stream(key, if_match=found.file.etag) as body:
        excerpt, unzipped = await _excerpt(body)
    original_key = str(entry["key"]) if entry else context.layout.inbox_key(key)
    return FileDetails(found.with_entry(entry), original_key, entry, reason, excerpt, unzipped)


async def quarantine_reason(reader: RunFileReader, file: RunFile, *, key: str = "") -> str:
    """Return why a run would quarantine a file; empty if it would accept it.

    The file is read from ``key``, or else from its own.
    """
    if not is_run_file(file.key):
        return f"{file.key!r} is not a run file: expected a key that ends in .json or .json.gz"
    try:
        await reader.check(file, key=key)
    except InvalidRunFileError as error:
        return error.reason
    return ""


async def _excerpt(body: StreamedBody) -> tuple[bytes, bool]:
    """Return the first bytes of the content, and whether they are unzipped."""
    start = b""
    async for block in body.chunks:
        start += block
        if len(start) >= 8 * EXCERPT_BYTES:  # enough of a gzip file to unzip an excerpt
            break
    if is_gzip(start):
        with suppress(zlib.error):
            unzipped = zlib.decompressobj(wbits=31).decompress(start, EXCERPT_BYTES)
            if unzipped:
                return unzipped, True
    return start[:EXCERPT_BYTES], False
