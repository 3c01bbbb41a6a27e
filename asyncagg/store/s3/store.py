"""S3 as a `Store`: retries, resumed streams and multipart uploads around a data plane."""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Coroutine,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from functools import partial
from io import BytesIO
from typing import Any

import anyio
from msgspec import structs

from asyncagg.errors import (
    AsyncaggError,
    NotFoundError,
    PreconditionFailedError,
    StoreError,
    TransientError,
)
from asyncagg.model import RunFile
from asyncagg.store.guards import PartsGuard
from asyncagg.store.protocol import (
    Absent,
    Body,
    Condition,
    ObjectInfo,
    StreamedBody,
    check_batch,
    check_range,
)
from asyncagg.store.retry import Retry
from asyncagg.store.s3.plane import DataPlane, Multipart, Part, check_etag

PART_BYTES = 5 * 1024 * 1024
"""S3's minimum size of a part, except the last one; an upload has at most 10,000 parts."""

_CLEANUP_SECONDS = 5.0

_MAX_EMPTY_PAGES = 1000
"""S3 may list empty pages, but not without end."""


class S3Store:
    """A bucket, or a prefix of one.

    ``retry`` is the one retry layer around the requests of the data plane and of multipart uploads.
    Objects larger than ``copy_bytes`` are copied in parts.

    Attributes:
        parts_guard: Asked before a conditional multipart upload is completed, if there is one.
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
        self.parts_guard: PartsGuard | None = None

    @property
    def url(self) -> str:
        """The store's name for messages."""
        return self._url

    async def list_pages(
        self, prefix: str, *, start_after: str = ""
    ) -> AsyncIterator[Sequence[RunFile]]:
        """Yield the objects whose key starts with a prefix, page by page, in key order."""
        token: str | None = None
        previous: str | None = None
        pages = empty_pages = 0
        while True:
            page = await self.retry.call(
                "list",
                partial(self._plane.list_page, prefix, start_after=start_after, token=token),
            )
            yield page.files
            token = page.next_token
            if token is None:
                return
            pages += 1
            empty_pages = 0 if page.files else empty_pages + 1
            if token == previous or empty_pages >= _MAX_EMPTY_PAGES:
                what = (
                    "the same continuation token again"
                    if empty_pages < _MAX_EMPTY_PAGES
                    else (f"{empty_pages} empty pages in a row")
                )
                raise StoreError(
                    f"list {prefix!r} in {self._url!r}: the server sends {what}, so the listing "
                    "never ends; expected a server that lists as Amazon S3 does",
                    operation="list",
                    key=prefix,
                )
            if pages & (pages - 1) == 0:
                previous = token  # at each power of two: this finds a cycle of any length

    async def head(self, key: str) -> ObjectInfo:
        """Return an object's reference, media type and metadata."""
        return await self.retry.call("head", partial(self._plane.head, key))

    def get(self, key: str, *, if_match: str | None = None) -> Coroutine[Any, Any, Body]:
        """Return an object's whole content, if its etag is still ``if_match``."""
        return self.retry.call("get", lambda: self._plane.get(key, if_match=if_match))

    async def get_range(
        self, key: str, start: int, length: int, *, if_match: str | None = None
    ) -> Body:
        """Return a part of an object's content."""

        def request() -> Awaitable[Body]:
            return self._plane.get_range(key, start, length, if_match=if_match)

        body = await self.retry.call("get", request)
        check_range("get", key, start, length, len(body.data))
        return body

    @asynccontextmanager
    async def stream(self, key: str, *, if_match: str | None = None) -> AsyncIterator[StreamedBody]:
        """Open an object's content for reading; a broken download continues where it broke."""
        async with AsyncExitStack() as stack:
            body = await self._open(stack, key, if_match, 0)
            yield StreamedBody(self._resuming(stack, key, body), body.etag)

    async def _open(
        self, stack: AsyncExitStack, key: str, if_match: str | None, offset: int
    ) -> StreamedBody:
        def request() -> Awaitable[StreamedBody]:
            return stack.enter_async_context(
                self._plane.open(key, if_match=if_match, offset=offset)
            )

        body = await self.retry.call("get", request)
        if if_match is not None:
            check_etag(key, body.etag, if_match)
        return body

    async def _resuming(
        self, stack: AsyncExitStack, key: str, body: StreamedBody
    ) -> AsyncIterator[bytes]:
        offset = offset_at_break = 0
        breaks_in_a_row = 0
        etag = body.etag
        while True:
            try:
                async for chunk in body.chunks:
                    yield chunk
                    offset += len(chunk)
            except TransientError:
                breaks_in_a_row = 1 if offset > offset_at_break else breaks_in_a_row + 1
                offset_at_break = offset
                if breaks_in_a_row >= self.retry.policy.attempts:
                    raise
            else:
                return
            await stack.aclose()  # the broken download
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
        """Write an object and return its etag; a body larger than one part is sent in parts."""
        try:
            async with aclosing(_parts(body)) as parts:
                part, is_last = await anext(parts)
                if is_last:
                    request = partial(
                        self._plane.put,
                        key,
                        part.getvalue(),
                        condition=condition,
                        content_type=content_type,
                        metadata=metadata or {},
                    )
                    return await self.retry.call("put", request)
                async with self._upload("put", key, content_type, metadata or {}) as upload:
                    sent: list[Part] = []
                    while True:
                        number = len(sent) + 1
                        send = partial(self._multipart.upload_part, key, upload, number, part)
                        sent.append(await self.retry.call("put", send))
                        if is_last:
                            if condition is not None and self.parts_guard is not None:
                                condition = await self.parts_guard(key, condition)
                            return await self._complete(key, upload, sent, condition)
                        del part, send  # there is memory for one part only
                        part, is_last = await anext(parts)
        except NotFoundError as error:
            # The object to replace is gone, or an attempt whose response was lost has completed the
            # upload. In both cases the caller must read the key again.
            raise PreconditionFailedError(
                str(error), operation="put", key=key, bucket=error.bucket
            ) from error

    async def put_in_parts(self, key: str, data: bytes, condition: Condition) -> str:
        """Write an object by a multipart upload of one part, however small it is."""
        async with self._upload("put", key, "application/octet-stream", {}) as upload:
            send = partial(self._multipart.upload_part, key, upload, 1, BytesIO(data))
            sent = [await self.retry.call("put", send)]
            return await self._complete(key, upload, sent, condition)

    @asynccontextmanager
    async def _upload(
        self, operation: str, key: str, content_type: str, metadata: Mapping[str, str]
    ) -> AsyncIterator[str]:
        """Create a multipart upload and yield its id; abort it if the context fails."""
        create = partial(
            self._multipart.create,
            key,
            content_type=content_type,
            metadata=metadata,
            copies=operation == "copy",
        )
        upload = await self.retry.call(operation, create)
        try:
            yield upload
        except BaseException:
            # Parts cost money until they are removed. A lifecycle rule removes what this cannot.
            with anyio.move_on_after(_CLEANUP_SECONDS, shield=True), suppress(AsyncaggError):
                await self._multipart.abort(key, upload)
            raise

    async def _complete(
        self, key: str, upload: str, parts: Sequence[Part], condition: Condition | None
    ) -> str:
        request = partial(self._multipart.complete, key, upload, parts, condition=condition)
        return await self.retry.call("put", request)

    async def copy(
        self,
        source: str,
        target: str,
        *,
        if_match: str,
        condition: Absent | None = Absent(),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Copy an object whose etag is ``if_match``; a large object is copied in parts."""
        replacing: ObjectInfo | None = None
        if metadata is not None:
            # S3 replaces all headers or none, so the media type must be sent again.
            replacing = structs.replace(await self.head(source), metadata=metadata)

        def request() -> Awaitable[None]:
            return self._plane.copy(
                source, target, if_match=if_match, condition=condition, replacing=replacing
            )

        try:
            await self.retry.call("copy", request)
        except StoreError as error:
            if type(error) is not StoreError:
                raise
            # S3 has no error code of its own for an object that is too large to copy.
            info = replacing or await self.head(source)
            if info.file.size <= self._copy_bytes:
                raise
            info = structs.replace(info, file=structs.replace(info.file, etag=if_match))
            await self._copy_in_parts(info, target, condition)

    async def _copy_in_parts(
        self, source: ObjectInfo, target: str, condition: Absent | None
    ) -> None:
        size = source.file.size
        step = self._copy_bytes // 5
        copied: list[Part] = []
        async with self._upload("copy", target, source.content_type, source.metadata) as upload:
            for first in range(0, size, step):
                request = partial(
                    self._multipart.copy_part,
                    target,
                    upload,
                    len(copied) + 1,
                    source=source.file,
                    first=first,
                    last=min(first + step, size) - 1,
                )
                copied.append(await self.retry.call("copy", request))
            await self._complete(target, upload, copied, condition)

    async def delete(self, files: Sequence[RunFile]) -> Mapping[str, StoreError]:
        """Delete objects whose etag is unchanged; return the failures by key, after retries."""
        check_batch(files)
        if not files:
            return {}
        remaining = list(files)
        final: dict[str, StoreError] = {}
        transient: dict[str, StoreError] = {}

        async def attempt() -> None:
            nonlocal remaining
            transient.clear()
            failures = await self._plane.delete(remaining)
            for key, error in failures.items():
                (transient if isinstance(error, TransientError) else final)[key] = error
            remaining = [file for file in remaining if file.key in transient]
            for error in transient.values():
                raise error

        try:
            await self.retry.call("delete", attempt)
        except TransientError as error:
            return final | {file.key: transient.get(file.key, error) for file in remaining}
        return final


async def _parts(body: bytes | AsyncIterable[bytes]) -> AsyncGenerator[tuple[BytesIO, bool], None]:
    """Yield the body in parts, each with whether it is the last; only the last can be small.

    Blocks are gathered in a `BytesIO` that is sent as it is: joining them would need twice the
    memory.
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
