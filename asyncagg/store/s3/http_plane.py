"""The HTTP data plane: each method sends one signed HTTP request with as little CPU as possible.

The CPU that a request costs limits the throughput of the whole program, and a general client needs
forty times as much. `asyncagg.store.s3.requester` signs and sends, `asyncagg.store.s3.xml` parses.
"""

from __future__ import annotations

import logging
import re
from base64 import b64encode
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from functools import partial
from hashlib import md5
from typing import Any

from asyncagg.errors import NotFoundError, StoreError, TransientError
from asyncagg.model import RunFile
from asyncagg.store.protocol import Absent, Body, Condition, Matches, ObjectInfo, StreamedBody
from asyncagg.store.s3 import xml as s3xml
from asyncagg.store.s3.demanded import NOTHING, Demanded
from asyncagg.store.s3.http import Response
from asyncagg.store.s3.plane import (
    DEFAULT_CLASS,
    Page,
    StorageClass,
    check_etag,
    crc32_of,
    delete_failures,
)
from asyncagg.store.s3.requester import Requester
from asyncagg.store.s3.sigv4 import S3Request, canonical_query, encode_path
from asyncagg.store.s3.text import content_encoding, in_utc

_log = logging.getLogger(__name__)

_MD5 = re.compile("[0-9a-f]{32}")
_RANGE = re.compile(rb"bytes (\d+)-")
_META = b"x-amz-meta-"
_CRC32 = b"\r\nx-amz-checksum-crc32:"
_CRC32_LINE_OF_S3 = _CRC32 + b" "
_ETAG = b"\r\netag:"
_MOST_UNLIKE = 1000


class HttpDataPlane:
    """`asyncagg.store.s3.plane.DataPlane` over the package's own HTTP client.

    A body must match its CRC32 or the MD5 in its ETag. The ETags of some servers, and of objects
    that AWS Backup restored, look like an MD5 but are not: once the same bytes have come twice,
    ETags are no longer compared.
    """

    def __init__(
        self,
        requester: Requester,
        prefix: str = "",
        *,
        storage_class: StorageClass = DEFAULT_CLASS,
        demanded: Demanded = NOTHING,
    ) -> None:
        self._bucket = requester.bucket
        self._prefix = prefix
        self._root = f"/{encode_path(prefix)}"
        self._etags_are_md5 = True
        self._unlike_etag: dict[str, bytes] = {}  # the checksum of a body, by its ETag
        self._requester = requester
        self._storage_class = storage_class
        self._demanded = demanded

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
        return self._requester.ask(request, self._parse_page)

    def _parse_page(self, _: S3Request, response: Response) -> Page:
        return s3xml.parse_listing(response.body, self._prefix)

    def head(self, key: str) -> Coroutine[Any, Any, ObjectInfo]:
        """HeadObject."""
        request = S3Request("head", key, "HEAD", self._root + encode_path(key))
        return self._requester.ask(request, _parse_info)

    def get(self, key: str, *, if_match: str | None) -> Coroutine[Any, Any, Body]:
        """GetObject, read whole; a short or altered body is a `TransientError`."""
        headers = _if_match(if_match)
        headers["x-amz-checksum-mode"] = "ENABLED"
        request = S3Request("get", key, "GET", self._root + encode_path(key), headers)
        return self._requester.ask(request, self._parse_body)

    def _parse_body(self, request: S3Request, response: Response) -> Body:
        data, head = response.body, response.head
        # Most objects have a CRC32, because SDKs send it; it takes a sixth of the time of an MD5.
        at = head.find(_CRC32_LINE_OF_S3)
        if at < 0 or not head.startswith(crc32_of(data), at + len(_CRC32_LINE_OF_S3)):
            self._verify(request, response)
        if_match = request.headers.get("if-match")
        if if_match is None:
            return Body(data, etag_of(response))
        expected = if_match.strip('"')
        # Some servers ignore the condition. The usual form of the header needs no parsing.
        at = head.find(if_match.encode())
        if head[at - 6 : at].lower() != b"etag: ":
            check_etag(request.key, etag_of(response), expected)
        return Body(data, expected)

    def _verify(self, request: S3Request, response: Response) -> None:
        """Verify a body by its CRC32 or its MD5, or at least by its length."""
        data, etag = response.body, etag_of(response)
        given = response.field(_CRC32)
        if given is not None and given == crc32_of(data):
            return
        if self._etags_are_md5 and md5(data, usedforsecurity=False).hexdigest() == etag:
            return
        if given is not None and b"-" not in given:  # a hyphen: a checksum of parts' checksums
            raise TransientError("the body does not match its checksum")
        if not response.framed:
            raise TransientError("the response has no length, so it may be incomplete")
        if self._etags_are_md5 and _is_md5(etag, response.headers):
            self._learn_etag(request.key, etag, crc32_of(data))

    def _learn_etag(self, key: str, etag: str, checksum: bytes) -> None:
        """Raise at the first body that does not match its ETag; accept the same bytes again."""
        if self._unlike_etag.get(etag) != checksum:
            if len(self._unlike_etag) >= _MOST_UNLIKE:
                self._unlike_etag.clear()
            self._unlike_etag[etag] = checksum
            raise TransientError("the body does not match its ETag")
        self._etags_are_md5 = False
        self._unlike_etag.clear()
        _log.warning("etags are not MD5", extra={"key": key, "etag": etag})

    def get_range(
        self, key: str, start: int, length: int, *, if_match: str | None
    ) -> Coroutine[Any, Any, Body]:
        """GetObject of a range, read whole; it may be shorter if the object ends before."""
        headers = _if_match(if_match)
        headers["range"] = f"bytes={start}-{start + length - 1}"
        request = S3Request("get", key, "GET", self._root + encode_path(key), headers)

        def parse(_: S3Request, response: Response) -> Body:
            headers = response.headers
            if not response.framed:
                raise TransientError("the response has no length, so it may be incomplete")
            if response.status != 206 or _first_byte(response.status, headers) != start:
                raise TransientError(f"the body is not the range from byte {start}")
            etag = etag_of(response)
            if if_match is not None:
                check_etag(key, etag, if_match)
            return Body(response.body, etag)

        return self._requester.ask(request, parse)

    @asynccontextmanager
    async def open(
        self, key: str, *, if_match: str | None, offset: int
    ) -> AsyncIterator[StreamedBody]:
        """GetObject from byte ``offset``, read with back-pressure."""
        headers = _if_match(if_match)
        if offset:
            headers["range"] = f"bytes={offset}-"
        request = S3Request("get", key, "GET", self._root + encode_path(key), headers)
        async with self._requester.stream(request) as response:
            headers_received = response.headers
            if not response.framed:
                raise TransientError("the response has no length, so its end is unknown")
            if _first_byte(response.status, headers_received) != offset:
                raise TransientError(f"the body does not start at byte {offset}")
            blocks = self._blocks(request, response)
            yield StreamedBody(blocks, etag_of(response))

    async def _blocks(self, request: S3Request, response: Response) -> AsyncIterator[bytes]:
        if response.stream is None:
            return
        try:
            async for block in response.stream:
                yield block
        except TransientError as error:
            raise self._requester.with_context(request, error) from error

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
        headers = object_headers(content_type, "", metadata)
        headers["x-amz-checksum-crc32"] = crc32_of(data).decode()
        headers |= condition_headers(condition)
        if name := self._storage_class.of(key):
            headers["x-amz-storage-class"] = name
        if self._demanded.puts:
            headers |= self._demanded.puts
        path = self._root + encode_path(key)
        request = S3Request("put", key, "PUT", path, headers, body=data)
        return self._requester.ask(request, _parse_etag)

    def copy(
        self,
        source: str,
        target: str,
        *,
        if_match: str,
        condition: Absent | None,
        replacing: ObjectInfo | None,
    ) -> Coroutine[Any, Any, None]:
        """CopyObject; ``replacing`` replaces the source's headers and metadata."""
        headers = condition_headers(condition)
        headers["x-amz-copy-source"] = f"{self._bucket}{self._root}{encode_path(source)}"
        if if_match:
            headers["x-amz-copy-source-if-match"] = f'"{if_match}"'
        if replacing is not None:
            headers["x-amz-metadata-directive"] = "REPLACE"
            headers |= object_headers(
                replacing.content_type, replacing.content_encoding, replacing.metadata
            )
        if self._storage_class.name and (name := self._storage_class.of(target)):
            headers["x-amz-storage-class"] = name
        if self._demanded.copies:
            headers |= self._demanded.copies
        request = S3Request("copy", source, "PUT", self._root + encode_path(target), headers)
        return self._requester.ask(request, self._parse_copied)

    def _parse_copied(self, request: S3Request, response: Response) -> None:
        error = s3xml.parse_copy_error(response.body)
        if error is not None:
            raise self._requester.error_in_result(request, error)

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
        body = s3xml.delete_body([(self._prefix + file.key, file.etag) for file in files])
        headers = {"content-type": "application/xml", "content-md5": _content_md5(body)}
        request = S3Request("delete", files[0].key, "POST", "/", headers, "delete=", body)
        return self._requester.ask(request, partial(self._parse_deleted, files))

    def _parse_deleted(
        self, files: Sequence[RunFile], _: S3Request, response: Response
    ) -> dict[str, StoreError]:
        errors = s3xml.parse_delete_errors(response.body)
        return delete_failures(
            ((error.key, error.code, error.message) for error in errors),
            files,
            prefix=self._prefix,
            bucket=self._bucket,
        )

    async def _delete_one(self, file: RunFile) -> dict[str, StoreError]:
        headers = _if_match(file.etag or None)
        path = self._root + encode_path(file.key)
        request = S3Request("delete", file.key, "DELETE", path, headers)
        try:
            await self._requester.ask(request, lambda *_: None)
        except NotFoundError:
            return {}
        except StoreError as error:
            return {file.key: error}
        return {}


def _parse_etag(_: S3Request, response: Response) -> str:
    return etag_of(response)


def _parse_info(request: S3Request, response: Response) -> ObjectInfo:
    headers = response.headers
    try:
        file = RunFile(
            request.key,
            int(headers[b"content-length"]),
            etag_of(response),
            in_utc(parsedate_to_datetime(headers[b"last-modified"].decode("latin-1"))),
        )
    except (KeyError, OverflowError, ValueError) as error:
        raise TransientError(f"a header is missing or invalid: {error}") from error
    return ObjectInfo(
        file,
        content_type=headers.get(b"content-type", b"").decode("latin-1"),
        content_encoding=content_encoding(headers.get(b"content-encoding", b"").decode("latin-1")),
        metadata={
            name.removeprefix(_META).decode("latin-1"): value.decode("latin-1")
            for name, value in headers.items()
            if name.startswith(_META)
        },
    )


def etag_of(response: Response) -> str:
    """Return the ETag of a response, without quotes."""
    etag = response.field(_ETAG)
    if etag is None:
        raise TransientError("the response has no ETag")
    return etag.decode("latin-1").strip('"')


def _is_md5(etag: str, headers: Mapping[bytes, bytes]) -> bool:
    """Whether an ETag is the MD5 of the body: not of a multipart upload or an encrypted object.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html
    """
    return (
        _MD5.fullmatch(etag) is not None
        and headers.get(b"x-amz-server-side-encryption", b"AES256") == b"AES256"
        and b"x-amz-server-side-encryption-customer-algorithm" not in headers
    )


def _first_byte(status: int, headers: Mapping[bytes, bytes]) -> int:
    """Return the offset of the first byte of a body, -1 if it is unknown."""
    if status != 206:
        return 0
    found = _RANGE.match(headers.get(b"content-range", b""))
    return int(found[1]) if found else -1


def _content_md5(body: bytes) -> str:
    """Return the checksum of a DeleteObjects: S3 requires one, and all servers know this one."""
    return b64encode(md5(body, usedforsecurity=False).digest()).decode()


def _if_match(etag: str | None) -> dict[str, str]:
    return {} if etag is None else {"if-match": f'"{etag}"'}


def condition_headers(condition: Condition | None) -> dict[str, str]:
    """Return the header of a condition, if there is one."""
    if isinstance(condition, Matches):
        return _if_match(condition.etag)
    return {} if condition is None else {"if-none-match": "*"}


def object_headers(
    content_type: str, content_encoding: str, metadata: Mapping[str, str]
) -> dict[str, str]:
    """Return the headers that describe an object."""
    headers = {f"x-amz-meta-{name.lower()}": value for name, value in metadata.items()}
    if content_type:
        headers["content-type"] = content_type
    if content_encoding:
        headers["content-encoding"] = content_encoding
    return headers
