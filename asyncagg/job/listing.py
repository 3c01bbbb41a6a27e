"""List the inbox by ranges of keys, and the windows that have an aggregate."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from operator import lt
from typing import NamedTuple

from asyncagg.job.layout import Layout
from asyncagg.model import Interval, RunFile, Window
from asyncagg.settings import Settings
from asyncagg.store import Store


class KeyRange(NamedTuple):
    """The keys after one key, up to and including another.

    Attributes:
        after: The key before the first one; empty for the start of the listing.
        last: The last key; None for the end of the listing.
    """

    after: str = ""
    last: str | None = None

    def __contains__(self, key: object) -> bool:
        """Return whether a key is in the range."""
        return isinstance(key, str) and key > self.after and (self.last is None or key <= self.last)


def find_disorder(previous: str, page: Sequence[RunFile]) -> tuple[str, str] | None:
    """Return the first key of a page that is not after the key before it, and that key before it.

    Amazon S3 lists in key order, except directory buckets; some other servers do not.

    Args:
        previous: The last key of the page before.
        page: A page.
    """
    keys = [previous, *[file.key for file in page]]
    if all(map(lt, keys, keys[1:])):
        return None
    return next((key, before) for before, key in pairwise(keys) if key <= before)


async def list_range(store: Store, prefix: str, keys: KeyRange) -> AsyncIterator[Sequence[RunFile]]:
    """Yield the objects below a prefix whose keys are in a range, page by page, in key order."""
    if keys == KeyRange():
        async for page in store.list_pages(prefix):
            yield page
        return
    async for page in store.list_pages(prefix, start_after=keys.after):
        # The server may list keys outside the range.
        yield [file for file in page if file.key in keys]
        if keys.last is not None and page and page[-1].key > keys.last:
            return


async def list_aggregates(
    store: Store, settings: Settings, interval: Interval
) -> AsyncIterator[dict[Window, RunFile]]:
    """Yield the aggregates of an interval by their windows, page by page, in order.

    No page is empty.
    """
    layout = Layout(settings)
    start, end = (
        f"{layout.aggregate_prefix}{Window(moment, settings.window_minutes).name}"
        for moment in interval
    )
    async for page in store.list_pages(layout.aggregate_prefix, start_after=start):
        named = ((layout.aggregate_window(file.key), file) for file in page)
        # `end` first: the start of the earliest window does not fit in a datetime.
        found = {
            window: file
            for window, file in named
            if window and interval.since < window.end and interval.holds(window)
        }
        if found:
            yield found
        if page and page[-1].key > f"{end}.json":
            return


async def list_aggregate_windows(
    store: Store, settings: Settings, interval: Interval
) -> AsyncIterator[list[Window]]:
    """Yield the windows of an interval that have an aggregate, page by page, in order.

    No page is empty.
    """
    async for found in list_aggregates(store, settings, interval):
        yield list(found)
