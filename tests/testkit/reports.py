"""Stores with aggregates to report on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from asyncagg.model import Window
from asyncagg.report import Report, gather
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.store.memory import MemoryStore
from testkit.documents import Entry, written

__all__ = (
    "HOSTILE",
    "NOW",
    "START",
    "block",
    "gathered",
    "nth",
    "stored",
)


START = datetime(2025, 10, 21, tzinfo=UTC)


NOW = START + timedelta(days=60)


HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "]]>&lt;&amp;",
    "\u2028\u2029\u202egnp.json\u2066",
    "' onmouseover=alert(1) \"",
    "${data} $$ %s {{7*7}}",
)


def nth(number: int) -> Window:
    """Return the window of five minutes with a number, counted from `START`."""
    return Window(START + timedelta(minutes=5) * (number + 1), 5)


async def stored(aggregates: Mapping[int, Iterable[Entry]], *, late: int = 0) -> MemoryStore:
    """Return a store with the aggregates of these windows."""
    store = MemoryStore(lambda: NOW)
    for number, entries in aggregates.items():
        window = nth(number)
        data = await written(entries, window=window, late=late)
        await store.put(f"aggregates/{window.name}.json", data)
    return store


async def gathered(store: Store, **more: Any) -> Report:
    """Gather a report with a fixed clock."""
    return await gather(store, Settings(), now=lambda: NOW, **more)


def block(page: bytes) -> dict[str, Any]:
    """Return the data of a page, as its script reads it."""
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.decode())
    assert len(found) == 1
    return dict(json.loads(found[0]))
