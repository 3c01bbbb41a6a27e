"""S3 as a `Store`: retries, resumed streams and multipart writes around a data plane."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from io import BytesIO
from typing import Any, Protocol

import anyio
from msgspec import structs

from asyncagg.errors import NotFoundError, PreconditionFailedError, StoreError, TransientError
from asyncagg.model import RunFile
from asyncagg.store.protocol import (
    DELETE_BATCH,
    Absent,
    Body,
    Condition,
    ObjectInfo,
    StreamedBody,
)
from asyncagg.store.retry import Retry
from asyncagg.store.s3.plane import DataPlane

__all__ = ("PART_BYTES", "Multipart", "S3Store")

PART_BYTES = 5 * 1024 * 1024
"""The least size of a part but the last, as S3 wants it; it takes 10,000 of them."""

_CLEANUP_SECONDS = 5.0


class Multipart(Protocol):
    """The requests of a multipart upload, each sent once."""

    async def create(self, key: str, *, content_type: str, metadata: Mapping[str, str]) -> str:
        """CreateMultipartUpload; returns the upload's id."""
        ...

    async def upload_part(self, key: str, upload: str, number: int, data: BytesIO) -> str:
        """UploadPart; returns the part's etag."""
        ...

    async def copy_part(
        self, key: str, upload: str, number: int, *, source: RunFile, first: int, last: int
    ) -> str:
        """UploadPartCopy of the source's bytes from first to last, if it is unchanged."""
        ...

    async def complete(
        self,
        key: str,
        upload: str,
        etags: Sequence[str],
        *,
        condition: Condition | None,
    ) -> str:
        """CompleteMultipartUpload; returns the object's etag."""
        ...

    async def abort(self, key: str, upload: str) -> None:
        """AbortMultipartUpload."""
        ...


class _Complete(Protocol):
    async def __call__(self, etags: list[str], condition: Condition | None) -> str: ...


class S3Store:
    """A bucket, or what is below a prefix of it.

    Args:
        url: Its name for messages.
        plane: Sends the requests per file and per page.
        multipart: Sends those of large writes.
        retry: The one retry layer around both.
        copy_bytes: The most bytes that one CopyObject takes; what is larger is copied in parts.
    """

    def __init__(
        self,
        url: str,
        plane: DataPlane,
        multipart: Multipart,
        retry: Retry,
        *,
        copy_bytes: int = 5 * 1024**3,
    ) -> None:
        self._url = url
        self._plane = plane
        self._multipart = multipart
        self._copy_bytes = copy_bytes
        self.retry = retry

    @property
    def url(self) -> str:
        """Its name for messages."""
        return self._url

    async def list_pages(
        self, prefix: str, *, start_after: str = ""
    ) -> AsyncIterator[Sequence[RunFile]]:
        """See `asyncagg.store.Store.list_pages`."""
        token: str | None = None
        while True:
            page = await self.retry.call(
                "list",
                partial(self._plane.list_page, prefix, start_after=start_after, token=token),
            )
            yield page.files
            token = page.next_token
            if token is None:
                return

    async def head(self, key: str) -> ObjectInfo:
        """See `asyncagg.store.Store.head`."""
        return await self.retry.call("head", partial(self._plane.head, key))

    def get(self, key: str, *, if_match: str | None = None) -> Coroutine[Any, Any, Body]:
        """See `asyncagg.store.Store.get`."""
        return self.retry.call("get", lambda: self._plane.get(key, if_match=if_match))

    @asynccontextmanager
    async def stream(self, key: str, *, if_match: str | None = None) -> AsyncIterator[StreamedBody]:
        """See `asyncagg.store.Store.stream`; a broken body is resumed where it broke."""
        async with AsyncExitStack() as stack:
            body = await self._open(stack, key, if_match, 0)
            yield StreamedBody(self._resumed(stack, key, body), body.etag, body.content_encoding)

    async def _open(
        self, stack: AsyncExitStack, key: str, if_match: str | None, offset: int
    ) -> StreamedBody:
        def request() -> AbstractAsyncContextManager[StreamedBody]:
            return self._plane.open(key, if_match=if_match, offset=offset)

        return await self.retry.call("get", lambda: stack.enter_async_context(request()))

    async def _resumed(
        self, stack: AsyncExitStack, key: str, body: StreamedBody
    ) -> AsyncIterator[bytes]:
        offset = progress = 0
        breaks = 0
        etag = body.etag
        while True:
            try:
                async for chunk in body.chunks:
                    yield chunk
                    offset += len(chunk)
            except TransientError:
                breaks = 1 if offset > progress else breaks + 1
                progress = offset
                if breaks >= self.retry.policy.attempts:
                    raise
            else:
                return
            await stack.aclose()  # the broken one
            body = await self._open(stack, key, etag, offset)

    async def put(
        self,
        key: str,
        body: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        content_type: str = "application/json",
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """See `asyncagg.store.Store.put`; what is longer than a part goes up in parts."""
        metadata = metadata or {}
        parts = _parts(body)
        first, whole = await anext(parts)
        try:
            if not whole:
                create = partial(
                    self._multipart.create, key, content_type=content_type, metadata=metadata
                )
                upload = await self.retry.call("put", create)
                # Handed over in a list, so that it is held no longer than it takes to send it.
                started = [first]
                del first
                return await self._put_in_parts(key, upload, started, parts, condition)
            request = partial(
                self._plane.put,
                key,
                first.getvalue(),
                condition=condition,
                content_type=content_type,
                metadata=metadata,
            )
            return await self.retry.call("put", request)
        except NotFoundError as error:
            # The object that was to be replaced is gone, or a lost answer had completed the upload:
            # either way somebody has to look again.
            raise PreconditionFailedError(str(error), operation="put", key=key) from error

    async def _put_in_parts(
        self,
        key: str,
        upload: str,
        started: list[BytesIO],
        parts: AsyncIterator[tuple[BytesIO, bool]],
        condition: Condition | None,
    ) -> str:
        etags: list[str] = []

        async def send(part: BytesIO) -> None:
            request = partial(self._multipart.upload_part, key, upload, len(etags) + 1, part)
            etags.append(await self.retry.call("put", request))

        async with self._completed(key, upload) as complete:
            await send(started.pop())
            async for part, _ in parts:
                await send(part)
                del part  # before the next one is gathered: there is room for one
            return await complete(etags, condition)

    @asynccontextmanager
    async def _completed(self, key: str, upload: str) -> AsyncIterator[_Complete]:
        """Give the function that completes an upload; whatever fails before aborts it."""

        async def complete(etags: list[str], condition: Condition | None) -> str:
            request = partial(
                self._multipart.complete,
                key,
                upload,
                etags,
                condition=condition,
            )
            return await self.retry.call("put", request)

        try:
            yield complete
        except BaseException:
            await self._abort(key, upload)
            raise

    async def _abort(self, key: str, upload: str) -> None:
        """Throw away the parts, so that they are not paid for; a lifecycle rule is the backstop."""
        with anyio.move_on_after(_CLEANUP_SECONDS, shield=True):
            try:
                await self._multipart.abort(key, upload)
            except StoreError:
                return

    async def copy(
        self,
        source: str,
        target: str,
        *,
        if_match: str,
        condition: Absent | None = Absent(),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """See `asyncagg.store.Store.copy`."""
        replacing: ObjectInfo | None = None
        if metadata is not None:
            # S3 replaces all or nothing: the media type must be said again.
            info = await self.head(source)
            replacing = ObjectInfo(
                info.file,
                info.content_type,
                info.content_encoding,
                metadata,
            )

        def request() -> Awaitable[None]:
            return self._plane.copy(
                source, target, if_match=if_match, condition=condition, replacing=replacing
            )

        try:
            await self.retry.call("copy", request)
        except StoreError as error:
            if type(error) is not StoreError:
                raise
            # Refused for a reason without a name of its own: its size?
            large = replacing or await self.head(source)
            if large.file.size <= self._copy_bytes:
                raise
            await self._copy_in_parts(large, target, if_match=if_match, condition=condition)

    async def _copy_in_parts(
        self, source: ObjectInfo, target: str, *, if_match: str, condition: Absent | None
    ) -> None:
        file = structs.replace(source.file, etag=if_match)
        create = partial(
            self._multipart.create,
            target,
            content_type=source.content_type,
            metadata=source.metadata,
        )
        upload = await self.retry.call("copy", create)
        step = self._copy_bytes // 5
        etags: list[str] = []
        async with self._completed(target, upload) as complete:
            for first in range(0, file.size, step):
                request = partial(
                    self._multipart.copy_part,
                    target,
                    upload,
                    len(etags) + 1,
                    source=file,
                    first=first,
                    last=min(first + step, file.size) - 1,
                )
                etags.append(await self.retry.call("copy", request))
            await complete(etags, condition)

    async def delete(self, files: Sequence[RunFile]) -> Mapping[str, StoreError]:
        """See `asyncagg.store.Store.delete`; keys in passing trouble are tried again."""
        if len(files) > DELETE_BATCH:
            raise StoreError(f"{len(files)} objects to delete: expected at most {DELETE_BATCH}")
        if not files:
            return {}
        remaining = list(files)
        final: dict[str, StoreError] = {}
        passing: dict[str, StoreError] = {}

        async def attempt() -> None:
            nonlocal remaining
            passing.clear()
            failures = await self._plane.delete(remaining)
            for key, error in failures.items():
                (passing if isinstance(error, TransientError) else final)[key] = error
            remaining = [file for file in remaining if file.key in passing]
            for error in passing.values():
                raise error

        try:
            await self.retry.call("delete", attempt)
        except TransientError as error:
            return final | {file.key: passing.get(file.key, error) for file in remaining}
        return final


async def _parts(body: bytes | AsyncIterable[bytes]) -> AsyncIterator[tuple[BytesIO, bool]]:
    """Yield the body in parts, and whether each is the last; none but the last is a short one.

    A part grows in place and is read from there: joining its blocks would hold it twice.
    """
    part = BytesIO()
    async for block in _blocks(body):
        if part.tell() >= PART_BYTES:
            yield part, False
            part = BytesIO()
        part.write(block)
    yield part, True


async def _blocks(body: bytes | AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(body, bytes):
        for start in range(0, len(body), PART_BYTES):
            yield body[start : start + PART_BYTES]
        return
    async for block in body:
        yield block
