"""Multipart uploads over the package's own HTTP client: one signed HTTP request per method."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from io import BytesIO
from typing import Any

from asyncagg.model import RunFile
from asyncagg.store.protocol import Condition
from asyncagg.store.s3 import xml as s3xml
from asyncagg.store.s3.demanded import NOTHING, Demanded
from asyncagg.store.s3.http import Response
from asyncagg.store.s3.http_plane import (
    condition_headers,
    etag_of,
    object_headers,
)
from asyncagg.store.s3.plane import DEFAULT_CLASS, Part, StorageClass, crc32_of
from asyncagg.store.s3.requester import Requester
from asyncagg.store.s3.sigv4 import S3Request, canonical_query, encode_path


class HttpMultipart:
    """`asyncagg.store.s3.plane.Multipart` over the package's own HTTP client."""

    def __init__(
        self,
        requester: Requester,
        prefix: str = "",
        *,
        storage_class: StorageClass = DEFAULT_CLASS,
        demanded: Demanded = NOTHING,
    ) -> None:
        self._requester = requester
        self._bucket = requester.bucket
        self._root = f"/{encode_path(prefix)}"
        self._storage_class = storage_class
        self._demanded = demanded

    async def create(
        self, key: str, *, content_type: str, metadata: Mapping[str, str], copies: bool
    ) -> str:
        """CreateMultipartUpload, of parts that are sent or of ``copies``; returns its id."""
        headers = object_headers(content_type, "", metadata)
        if not copies:
            headers["x-amz-checksum-algorithm"] = "CRC32"
        if name := self._storage_class.of(key):
            headers["x-amz-storage-class"] = name
        headers |= self._demanded.puts
        request = S3Request("put", key, "POST", self._path(key), headers, "uploads=")
        return await self._requester.ask(request, _parse_upload)

    def upload_part(
        self, key: str, upload: str, number: int, data: BytesIO
    ) -> Coroutine[Any, Any, Part]:
        """UploadPart."""
        body = data.getvalue()
        checksum = crc32_of(body).decode()
        headers = {"x-amz-checksum-crc32": checksum}
        query = _part(upload, number)
        request = S3Request("put", key, "PUT", self._path(key), headers, query, body)
        return self._requester.ask(request, lambda _, response: Part(etag_of(response), checksum))

    def copy_part(
        self, key: str, upload: str, number: int, *, source: RunFile, first: int, last: int
    ) -> Coroutine[Any, Any, Part]:
        """UploadPartCopy of the source's bytes from first to last, if it is unchanged."""
        headers = {
            "x-amz-copy-source": f"{self._bucket}{self._path(source.key)}",
            "x-amz-copy-source-if-match": f'"{source.etag}"',
            "x-amz-copy-source-range": f"bytes={first}-{last}",
            **self._demanded.part_copies,
        }
        query = _part(upload, number)
        request = S3Request("copy", source.key, "PUT", self._path(key), headers, query)
        return self._requester.ask(request, self._parse_copied)

    def complete(
        self, key: str, upload: str, parts: Sequence[Part], *, condition: Condition | None
    ) -> Coroutine[Any, Any, str]:
        """CompleteMultipartUpload; returns the object's etag."""
        headers = {"content-type": "application/xml", **condition_headers(condition)}
        query = canonical_query({"uploadId": upload}.items())
        body = s3xml.complete_body(parts)
        request = S3Request("put", key, "POST", self._path(key), headers, query, body)
        return self._requester.ask(request, self._parse_completed)

    def abort(self, key: str, upload: str) -> Coroutine[Any, Any, None]:
        """AbortMultipartUpload."""
        query = canonical_query({"uploadId": upload}.items())
        request = S3Request("put", key, "DELETE", self._path(key), query=query)
        return self._requester.ask(request, lambda *_: None)

    def _path(self, key: str) -> str:
        return self._root + encode_path(key)

    def _parse_copied(self, request: S3Request, response: Response) -> Part:
        return Part(self._parse_etag(request, response, "CopyPartResult"))

    def _parse_completed(self, request: S3Request, response: Response) -> str:
        return self._parse_etag(request, response, "CompleteMultipartUploadResult")

    def _parse_etag(self, request: S3Request, response: Response, result: str) -> str:
        """Return the etag in the body: S3 may fail after it has begun to respond 200."""
        etag = s3xml.parse_result_etag(response.body, result)
        if isinstance(etag, str):
            return etag
        raise self._requester.error_in_result(request, etag)


def _part(upload: str, number: int) -> str:
    return canonical_query({"partNumber": str(number), "uploadId": upload}.items())


def _parse_upload(_: S3Request, response: Response) -> str:
    return s3xml.parse_upload_id(response.body)
