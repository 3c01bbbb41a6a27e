"""The interface between the job and the place where objects live."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import msgspec

from asyncagg.errors import StoreError
from asyncagg.model import RunFile

DELETE_BATCH = 1000
"""The most objects that one ``delete`` takes (the limit of S3's DeleteObjects)."""


@dataclass(frozen=True, slots=True)
class Absent:
    """The condition of a write that no object has the key."""


@dataclass(frozen=True, slots=True)
class Matches:
    """The condition of a write that the present object has this etag (without quotes)."""

    etag: str


Condition: TypeAlias = Absent | Matches


class ObjectInfo(msgspec.Struct, frozen=True):
    """What ``head`` returns.

    Attributes:
        file: The object's reference.
        content_type: Its media type.
        content_encoding: ``gzip`` or empty, as its writer declared.
        metadata: Its metadata; keys are lower case.
    """

    file: RunFile
    content_type: str = ""
    content_encoding: str = ""
    metadata: Mapping[str, str] = {}


class Body(msgspec.Struct, frozen=True):
    """An object's whole content.

    Attributes:
        data: The bytes as stored (still compressed, if they are).
        etag: The etag of exactly these bytes, without quotes.
    """

    data: bytes
    etag: str


class StreamedBody(msgspec.Struct, frozen=True):
    """An object's content, block by block.

    Attributes:
        chunks: The blocks in order; they can be iterated once.
        etag: The etag of exactly these bytes, without quotes.
    """

    chunks: AsyncIterator[bytes]
    etag: str


@runtime_checkable
class Store(Protocol):
    """Where objects live: a bucket, a prefix of a bucket, a directory, or memory.

    Keys are relative to the store, and etags have no quotes. Every method raises errors of
    `asyncagg.errors` only: `NotFoundError`, `PreconditionFailedError`, `AccessDeniedError`,
    `ConfigurationError` (no such bucket or directory) and `TransientError` (after the store's own
    retries).
    """

    @property
    def url(self) -> str:
        """The store's name for messages, such as ``s3://bucket/prefix``."""

    def list_pages(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Sequence[RunFile]]:
        """Yield the objects whose key starts with a prefix, page by page, in key order.

        Args:
            prefix: The prefix.
            start_after: List only keys after this one.
        """

    async def head(self, key: str) -> ObjectInfo:
        """Return an object's reference, media type and metadata."""

    async def get(self, key: str, *, if_match: str | None = None) -> Body:
        """Return an object's whole content, if its etag is still ``if_match``."""

    async def get_range(
        self, key: str, start: int, length: int, *, if_match: str | None = None
    ) -> Body:
        """Return exactly ``length`` bytes of an object, 1 or more, from byte ``start``.

        Raises:
            StoreError: The object ends before.
        """

    def stream(
        self, key: str, *, if_match: str | None = None
    ) -> AbstractAsyncContextManager[StreamedBody]:
        """Open an object's content for reading block by block."""

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
            body: Its content; an iterable is iterated once.
            condition: What must hold for the key; ``None`` overwrites any object.
            content_type: Its media type.
            metadata: Its metadata (ASCII).

        Raises:
            PreconditionFailedError: The condition does not hold.
        """

    async def copy(
        self,
        source: str,
        target: str,
        *,
        if_match: str,
        condition: Absent | None = Absent(),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Copy an object within the store, without downloading it.

        Args:
            source: The key to copy from.
            target: The key to copy to.
            if_match: The etag that the source must have.
            condition: What must hold for the target key; ``None`` overwrites any object.
            metadata: Replaces the source's metadata.

        Raises:
            NotFoundError: The source does not exist.
            PreconditionFailedError: One of the two conditions does not hold.
        """

    async def delete(self, files: Sequence[RunFile]) -> Mapping[str, StoreError]:
        """Delete up to `DELETE_BATCH` objects, each only if it still has its etag.

        Returns:
            The failures by key: `PreconditionFailedError` for an object that has changed,
            `TransientError` where retries did not help. A key without an object is no failure.
        """


def check_range(operation: str, key: str, start: int, expected: int, received: int) -> None:
    """Raise a `StoreError` if a range of an object does not have the expected length."""
    if received != expected:
        raise StoreError(
            f"{operation} {key!r}: {received} bytes from byte {start}, expected {expected}: the "
            "object is shorter than expected",
            operation=operation,
            key=key,
        )


def check_batch(files: Sequence[RunFile]) -> None:
    """Raise a `StoreError` if a batch to delete has more than `DELETE_BATCH` objects."""
    if len(files) > DELETE_BATCH:
        raise StoreError(f"delete of {len(files)} objects: expected at most {DELETE_BATCH}")


def lower_keys(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return metadata with keys in lower case, as S3 returns it."""
    return {key.lower(): value for key, value in metadata.items()}
