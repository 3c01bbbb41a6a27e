"""What becomes of a file that a request failed for: it stays in the inbox, the others continue."""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import datetime

from asyncagg.errors import (
    AccessDeniedError,
    NotFoundError,
    PreconditionFailedError,
    StoreError,
)
from asyncagg.job.context import JobContext
from asyncagg.job.outcome import Tally
from asyncagg.job.refusals import Refusals
from asyncagg.model import RunFile

_MAX_LISTINGS = 100
"""So many files of a run are listed again; two runners at work may miss many more."""

_LONG_WINDOWS = 4
"""A file that is deferred when it is so many windows old was deferred by earlier runs, too."""

_log = logging.getLogger(__name__)


class Deferrals:
    """The files of a run that stay in the inbox.

    A file that another runner moved or its producer replaced is not listed any more as it was. If
    it still is, every run would miss it in the same way, so it is deferred and named.

    Args:
        context: Where the files are, and the length of a window.
        refusals: Notes what the store refuses for good.
        at: The moment of the run; default: now.

    Attributes:
        oldest_seconds: The age of the oldest file that was deferred; 0 if there was none.
    """

    def __init__(self, context: JobContext, refusals: Refusals, at: datetime | None = None) -> None:
        self.oldest_seconds = 0.0
        self.refusals = refusals
        self._store = context.store
        self._at = at or context.now()
        self._long = context.settings.window_minutes * 60 * _LONG_WINDOWS
        self._listings_left = _MAX_LISTINGS

    async def add(self, file: RunFile, error: StoreError, tally: Tally) -> None:
        """Add a file to a tally as gone, changed or deferred.

        Raises:
            StoreError: The set-up is at fault.
        """
        is_missing = isinstance(error, NotFoundError | PreconditionFailedError)
        if is_missing and not await self._is_still_listed(file):
            tally.gone += isinstance(error, NotFoundError)
            tally.changed += isinstance(error, PreconditionFailedError)
            return
        tally.deferred += 1
        age = self._note_age(file.last_modified)
        reason = (
            f"it is still listed with etag {file.etag!r}, but: {error}" if is_missing else error
        )
        fields = {
            "key": file.key,
            "operation": error.operation,
            "reason": str(reason),
            "age_seconds": round(age),
        }
        if age > self._long:
            _log.error("deferred", extra=fields)
        else:
            _log.warning("deferred", extra=fields)
        self._refuse(error)

    def add_window(self, end: datetime, error: StoreError) -> None:
        """Note that all files of a window that ended then are deferred.

        Raises:
            StoreError: The set-up is at fault.
        """
        self._note_age(end)
        self._refuse(error)

    def _note_age(self, since: datetime) -> float:
        age = max(0.0, (self._at - since).total_seconds())
        self.oldest_seconds = max(self.oldest_seconds, age)
        return age

    def _refuse(self, error: StoreError) -> None:
        if isinstance(error, AccessDeniedError):
            self.refusals.add(error)

    async def _is_still_listed(self, file: RunFile) -> bool:
        """Return whether the store lists a file as before, though a request missed it."""
        if not self._listings_left:
            return False
        self._listings_left -= 1
        with suppress(StoreError):  # then the next run meets it again
            async for page in self._store.list_pages(file.key):
                return any((each.key, each.etag) == (file.key, file.etag) for each in page)
        return False
