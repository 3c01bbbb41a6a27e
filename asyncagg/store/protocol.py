"""The one interface between the pipeline and the place where objects live."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import msgspec

from asyncagg.errors import StoreError
from asyncagg.model import RunFile

__all__ = (
    "DELETE_BATCH",
    "Absent",
    "Body",
    "Condition",
    "Matches",
    "ObjectInfo",
    "Store",
    "StreamedBody",
)

DELETE_BATCH = 1000
"""The most objects that one ``delete`` takes (the limit of S3's DeleteObjects)."""


@dataclass(frozen=True, slots=True)
class Absent:
    """The condition that no object has the key."""


@dataclass(frozen=True, slots=True)
class Matches:
    """The condition that the object that has the key has this etag.

    Attributes:
        etag: The etag, without quotes.
    """

    etag: str


Condition: TypeAlias = Absent | Matches
"""What must hold of a key for a write to it to succeed."""


class ObjectInfo(msgspec.Struct, frozen=True):
    """What a store knows of one object beyond its reference.

    Attributes:
        file: Its reference.
        content_type: Its media type.
        content_encoding: ``gzip`` or empty, as its writer declared.
        metadata: The writer's own pairs; keys are lower case.
    """

    file: RunFile
    content_type: str = ""
    content_encoding: str = ""
    metadata: Mapping[str, str] = {}


class Body(msgspec.Struct, frozen=True):
    """An object's whole content.

    Attributes:
        data: The bytes as stored (still compressed, if they are).
        etag: The tag of exactly these bytes, without quotes.
        content_encoding: ``gzip`` or empty, as its writer declared.
    """

    data: bytes
    etag: str
    content_encoding: str = ""


class StreamedBody(msgspec.Struct, frozen=True):
    """An object's content, block by block.

    Attributes:
        chunks: The blocks, to be read once, in order.
        etag: The tag of exactly these bytes, without quotes.
        content_encoding: ``gzip`` or empty, as its writer declared.
    """

    chunks: AsyncIterator[bytes]
    etag: str
    content_encoding: str = ""


@runtime_checkable
class Store(Protocol):
    """Where objects live: a bucket (below a prefix) or a directory.

    Every method raises the errors of `asyncagg.errors` and no others: `NotFoundError`,
    `PreconditionFailedError`, `AccessDeniedError`, `ConfigurationError` (no such bucket or
    directory) and `TransientError` (after the store's own retries).
    ETags have no quotes. Keys are relative to the store.
    """

    @property
    def url(self) -> str:
        """The store's name for messages, such as ``s3://bucket/prefix``."""
        ...

    def list_pages(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Sequence[RunFile]]:
        """Yield the objects whose key starts with ``prefix``, page by page, in key order.

        Args:
            prefix: What the keys start with.
            start_after: Only keys behind this one.
        """
        ...

    async def head(self, key: str) -> ObjectInfo:
        """Return what is known of an object."""
        ...

    async def get(self, key: str, *, if_match: str | None = None) -> Body:
        """Return an object's whole content, if its etag is still ``if_match``."""
        ...

    def stream(
        self, key: str, *, if_match: str | None = None
    ) -> AbstractAsyncContextManager[StreamedBody]:
        """Open an object's content for reading block by block."""
        ...

    async def put(
        self,
        key: str,
        body: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        content_type: str = "application/json",
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Write an object in one atomic step and return its etag.

        Args:
            key: The object's key.
            body: Its content; an iterable is iterated from its start at each attempt.
            condition: What must hold of the object that has that key, if anything.
            content_type: Its media type.
            metadata: Pairs to keep with it (ASCII).

        Raises:
            PreconditionFailedError: The condition does not hold.
        """
        ...

    async def copy(
        self,
        source: str,
        target: str,
        *,
        if_match: str,
        condition: Absent | None = Absent(),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Copy an object inside the store, without its content passing through here.

        Args:
            source: The key to copy from.
            target: The key to copy to.
            if_match: Only if the source still has this etag.
            condition: What must hold of the target: by default, that no object has its key.
            metadata: Pairs to keep with the copy instead of the source's.

        Raises:
            NotFoundError: The source is gone.
            PreconditionFailedError: One of the two conditions does not hold.
        """
        ...

    async def delete(self, files: Sequence[RunFile]) -> Mapping[str, StoreError]:
        """Delete up to `DELETE_BATCH` objects, each only if it still has its etag.

        Returns:
            What could not be deleted, by key: `PreconditionFailedError` where the object has
            changed, `TransientError` where trouble remained. A key that is gone is no failure.
        """
        ...
