"""The lean data plane: one method, one signed HTTP request, and little else.

It exists because the CPU that a request costs is the throughput of the whole program, and a
general client spends forty times as much. `asyncagg.store.s3.requester` signs and sends,
`asyncagg.store.s3.xml` reads the answers.
"""

from __future__ import annotations

import re
import ssl
import time
import zlib
from base64 import b64encode
from binascii import b2a_base64
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from hashlib import md5
from typing import Any

from asyncagg.errors import AsyncaggError, NotFoundError, StoreError, TransientError
from asyncagg.model import RunFile
from asyncagg.store.protocol import Absent, Body, Condition, Matches, ObjectInfo, StreamedBody
from asyncagg.store.s3 import xml as s3xml
from asyncagg.store.s3.http import Endpoint, Limits, Response
from asyncagg.store.s3.plane import Page, failure
from asyncagg.store.s3.requester import CredentialsSource, Requester, S3Request, with_context
from asyncagg.store.s3.sigv4 import canonical_query, encode_path
from asyncagg.store.s3.target import Target

__all__ = ("HttpDataPlane", "HttpPlaneConfig")

_MD5 = re.compile("[0-9a-f]{32}")
_RANGE = re.compile(rb"bytes (\d+)-")
_META = b"x-amz-meta-"
_CRC32 = b"x-amz-checksum-crc32"
_CRC32_AS_S3_WRITES_IT = b"\r\nx-amz-checksum-crc32: "


@dataclass(frozen=True, slots=True)
class HttpPlaneConfig:
    """Where a lean plane works, and within which bounds.

    Attributes:
        endpoint: The S3 server, without the bucket in its name.
        region: The region to sign for.
        bucket: The bucket.
        prefix: What the keys of the store are below, with its slash; empty for the whole bucket.
        path_style: Whether the bucket stands in the path rather than in the host.
        limits: The connections and their timeouts.
        tls: The TLS context, from `asyncagg.store.s3.http.tls_context`.
        verify_bodies: Whether a body must have the CRC32 that comes with it, or the MD5 that its
            ETag claims to be. Turn it off for a server whose ETags look like an MD5 and are none.
    """

    endpoint: Endpoint
    region: str
    bucket: str
    prefix: str = ""
    path_style: bool = False
    limits: Limits = field(default_factory=Limits)
    tls: ssl.SSLContext | None = None
    verify_bodies: bool = True


class HttpDataPlane:
    """`asyncagg.store.s3.plane.DataPlane` over HTTP connections of our own.

    Args:
        config: Where and within which bounds.
        credentials: Where the credentials come from.
        clock: The time in seconds since the epoch, for signatures.
        monotonic: The time in seconds, for timeouts.
    """

    def __init__(
        self,
        config: HttpPlaneConfig,
        credentials: CredentialsSource,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bucket = config.bucket
        self._prefix = config.prefix
        self._root = f"/{encode_path(config.prefix)}"
        self._verify_bodies = config.verify_bodies
        self._requester = Requester(
            Target(config.endpoint, config.region, config.bucket, config.path_style),
            credentials,
            limits=config.limits,
            tls=config.tls,
            clock=clock,
            monotonic=monotonic,
        )

    def list_page(
        self, prefix: str, *, start_after: str, token: str | None
    ) -> Coroutine[Any, Any, Page]:
        """ListObjectsV2, up to 1,000 keys; ``token`` continues an earlier page."""
        query = {
            "list-type": "2",
            "encoding-type": "url",
            "max-keys": "1000",
            "prefix": self._prefix + prefix,
        }
        if token is not None:
            query["continuation-token"] = token
        elif start_after:
            query["start-after"] = self._prefix + start_after
        request = S3Request("list", prefix, "GET", "/", query=canonical_query(query.items()))
        return self._requester.ask(request, self._page)

    def _page(self, _: S3Request, response: Response) -> Page:
        return s3xml.parse_listing(response.body, self._prefix)

    def head(self, key: str) -> Coroutine[Any, Any, ObjectInfo]:
        """HeadObject."""
        request = S3Request("head", key, "HEAD", self._root + encode_path(key))
        return self._requester.ask(request, _info)

    def get(self, key: str, *, if_match: str | None) -> Coroutine[Any, Any, Body]:
        """GetObject, read whole; a short or altered body is a `TransientError`."""
        headers = {"x-amz-checksum-mode": "ENABLED"}
        if if_match is not None:
            headers["if-match"] = f'"{if_match}"'
        request = S3Request("get", key, "GET", self._root + encode_path(key), headers)
        return self._requester.ask(request, self._body)

    def _body(self, request: S3Request, response: Response) -> Body:
        data = response.body
        # Most objects have a CRC32, which takes a sixth of the time of an MD5: SDKs send it.
        checksum = _crc32(data)
        if response.head.find(_CRC32_AS_S3_WRITES_IT + checksum) < 0:
            self._verify(response, checksum)
        # A condition that held names the ETag.
        etag = request.headers.get("if-match", "").strip('"') or _etag(response.headers)
        return Body(data, etag, _content_encoding(response))

    def _verify(self, response: Response, checksum: bytes) -> None:
        """Verify a body by its CRC32 or its MD5, or at least by its length."""
        if self._verify_bodies:
            headers = response.headers
            etag = _etag(headers)
            given = headers.get(_CRC32, b"-")
            if given == checksum or md5(response.body, usedforsecurity=False).hexdigest() == etag:
                return
            if _is_md5(etag, headers):
                raise TransientError("the body is not the one of its ETag")
            if b"-" not in given:  # with a hyphen, it is one of the parts' checksums
                raise TransientError("the body is not the one of its checksum")
        if not response.framed:
            raise TransientError("nothing tells whether the body is whole")

    @asynccontextmanager
    async def open(
        self, key: str, *, if_match: str | None, offset: int
    ) -> AsyncIterator[StreamedBody]:
        """GetObject from byte ``offset``, read with back-pressure."""
        headers = {} if if_match is None else {"if-match": f'"{if_match}"'}
        if offset:
            headers["range"] = f"bytes={offset}-"
        request = S3Request("get", key, "GET", self._root + encode_path(key), headers)
        async with self._requester.stream(request) as response:
            answered = response.headers
            if not response.framed:
                raise TransientError("nothing tells where the body ends")
            if _starts_at(response.status, answered) != offset:
                raise TransientError(f"the body does not start at byte {offset}")
            blocks = _blocks(request, response)
            yield StreamedBody(blocks, _etag(answered), _content_encoding(response))

    def put(
        self,
        key: str,
        data: bytes,
        *,
        condition: Condition | None,
        content_type: str,
        metadata: Mapping[str, str],
    ) -> Coroutine[Any, Any, str]:
        """PutObject; returns the etag."""
        headers = _object_headers(content_type, "", metadata)
        headers["x-amz-checksum-crc32"] = _crc32(data).decode()
        if isinstance(condition, Matches):
            headers["if-match"] = f'"{condition.etag}"'
        elif condition is not None:
            headers["if-none-match"] = "*"
        path = self._root + encode_path(key)
        return self._requester.ask(S3Request("put", key, "PUT", path, headers, body=data), _written)

    def copy(
        self,
        source: str,
        target: str,
        *,
        if_match: str,
        condition: Absent | None,
        replacing: ObjectInfo | None,
    ) -> Coroutine[Any, Any, None]:
        """CopyObject; ``replacing`` gives the copy these headers and metadata instead."""
        headers = {"x-amz-copy-source": f"{self._bucket}{self._root}{encode_path(source)}"}
        if if_match:
            headers["x-amz-copy-source-if-match"] = f'"{if_match}"'
        if condition is not None:
            headers["if-none-match"] = "*"
        if replacing is not None:
            headers["x-amz-metadata-directive"] = "REPLACE"
            headers |= _object_headers(
                replacing.content_type, replacing.content_encoding, replacing.metadata
            )
        request = S3Request("copy", source, "PUT", self._root + encode_path(target), headers)
        return self._requester.ask(request, self._copied)

    def _copied(self, request: S3Request, response: Response) -> None:
        refusal = s3xml.parse_copied(response.body)
        if refusal is not None:  # S3 may find out after it has begun to answer 200
            raise self._failure(request, refusal, request.key)

    def _failure(self, request: S3Request, refusal: s3xml.Refusal, key: str) -> AsyncaggError:
        """Return the error for a refusal that came inside of a 200."""
        return failure(
            request.operation,
            key,
            bucket=self._bucket,
            status=200,
            code=refusal.code,
            message=refusal.message,
        )

    async def delete(self, files: Sequence[RunFile]) -> Mapping[str, StoreError]:
        """DeleteObjects with each object's ETag; returns the failures by key."""
        all_fit = s3xml.fits_xml(*[file.key for file in files])
        batch = files if all_fit else [file for file in files if s3xml.fits_xml(file.key)]
        failures = await self._delete_batch(batch) if batch else {}
        if not all_fit:
            for file in files:
                if not s3xml.fits_xml(file.key):
                    failures |= await self._delete_one(file)
        return failures

    def _delete_batch(self, files: Sequence[RunFile]) -> Coroutine[Any, Any, dict[str, StoreError]]:
        body = s3xml.delete_batch([(self._prefix + file.key, file.etag) for file in files])
        # Of the checksums that it wants, the one that every server knows.
        digest = b64encode(md5(body, usedforsecurity=False).digest()).decode()
        headers = {"content-type": "application/xml", "content-md5": digest}
        request = S3Request("delete", files[0].key, "POST", "/", headers, "delete=", body)
        return self._requester.ask(request, self._undeleted)

    def _undeleted(self, request: S3Request, response: Response) -> dict[str, StoreError]:
        failures: dict[str, StoreError] = {}
        for refusal in s3xml.parse_undeleted(response.body):
            key = refusal.key[len(self._prefix) :]
            error = self._failure(request, refusal, key)
            if not isinstance(error, StoreError):
                raise error
            if not isinstance(error, NotFoundError):
                failures[key] = error
        return failures

    async def _delete_one(self, file: RunFile) -> dict[str, StoreError]:
        headers = {"if-match": f'"{file.etag}"'} if file.etag else {}
        path = self._root + encode_path(file.key)
        request = S3Request("delete", file.key, "DELETE", path, headers)
        try:
            await self._requester.ask(request, _nothing)
        except NotFoundError:
            return {}
        except StoreError as error:
            return {file.key: error}
        return {}

    async def aclose(self) -> None:
        """Close the connections."""
        await self._requester.aclose()


def _nothing(_: S3Request, __: Response) -> None:
    return


def _written(_: S3Request, response: Response) -> str:
    return _etag(response.headers)


def _info(request: S3Request, response: Response) -> ObjectInfo:
    headers = response.headers
    try:
        file = RunFile(
            request.key,
            int(headers[b"content-length"]),
            _etag(headers),
            parsedate_to_datetime(headers[b"last-modified"].decode("latin-1")),
        )
    except (KeyError, ValueError) as error:
        raise TransientError(f"the answer lacks or garbles {error}") from error
    return ObjectInfo(
        file,
        content_type=headers.get(b"content-type", b"").decode("latin-1"),
        content_encoding=_content_encoding(response),
        metadata={
            name.removeprefix(_META).decode("latin-1"): value.decode("latin-1")
            for name, value in headers.items()
            if name.startswith(_META)
        },
    )


def _etag(headers: Mapping[bytes, bytes]) -> str:
    etag = headers.get(b"etag")
    if etag is None:
        raise TransientError("the answer has no ETag")
    return etag.decode("latin-1").strip('"')


def _content_encoding(response: Response) -> str:
    if response.head.lower().find(b"\r\ncontent-encoding:") < 0:  # few have one
        return ""
    value = response.headers[b"content-encoding"]
    return "" if value == b"aws-chunked" else value.decode("latin-1").lower()


def _is_md5(etag: str, headers: Mapping[bytes, bytes]) -> bool:
    """Tell whether an ETag is the MD5 of the body: not of parts, not of what was encrypted.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html
    """
    return (
        _MD5.fullmatch(etag) is not None
        and headers.get(b"x-amz-server-side-encryption", b"AES256") == b"AES256"
        and b"x-amz-server-side-encryption-customer-algorithm" not in headers
    )


def _starts_at(status: int, headers: Mapping[bytes, bytes]) -> int:
    """Return the offset of the first byte of a body, -1 where that cannot be told."""
    if status != 206:
        return 0
    found = _RANGE.match(headers.get(b"content-range", b""))
    return int(found[1]) if found else -1


async def _blocks(request: S3Request, response: Response) -> AsyncIterator[bytes]:
    if response.stream is None:
        return
    try:
        async for block in response.stream:
            yield block
    except TransientError as error:
        raise with_context(request, error) from error


def _crc32(data: bytes) -> bytes:
    return b2a_base64(zlib.crc32(data).to_bytes(4, "big"), newline=False)


def _object_headers(
    content_type: str, content_encoding: str, metadata: Mapping[str, str]
) -> dict[str, str]:
    headers = {f"x-amz-meta-{name.lower()}": value for name, value in metadata.items()}
    if content_type:
        headers["content-type"] = content_type
    if content_encoding:
        headers["content-encoding"] = content_encoding
    return headers
