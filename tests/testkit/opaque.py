"""A store like those with encrypted objects: the same bytes get another etag with each write."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import datetime

import msgspec

from asyncagg.model import RunFile
from asyncagg.store.memory import MemoryStore

__all__ = ("OpaqueStore",)


class OpaqueStore(MemoryStore):
    """A store whose etags say nothing about the content: each write has its own."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        super().__init__(clock)
        self._numbers = itertools.count()

    def _reference(self, key: str, data: bytes) -> RunFile:
        file = super()._reference(key, data)
        return msgspec.structs.replace(file, etag=f"etag-{next(self._numbers)}")
