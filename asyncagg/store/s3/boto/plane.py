"""The data plane through aioboto3 (``data_plane=boto``)."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from zlib import crc32

from asyncagg.errors import NotFoundError, StoreError, TransientError
from asyncagg.model import RunFile
from asyncagg.store.protocol import Absent, Body, Condition, Matches, ObjectInfo, StreamedBody
from asyncagg.store.s3.boto.bucket import (
    BotoBucket,
    class_parameters,
    condition_parameters,
    etag_of,
)
from asyncagg.store.s3.plane import DEFAULT_CLASS, Page, StorageClass, check_etag, delete_failures
from asyncagg.store.s3.text import content_encoding, in_utc
from asyncagg.store.s3.xml import fits_xml

_BLOCK = 256 * 1024


class BotoPlane:
    """`asyncagg.store.s3.plane.DataPlane` through aioboto3.

    ``max_body_bytes`` limits a body that is read whole.
    """

    def __init__(
        self,
        bucket: BotoBucket,
        *,
        max_body_bytes: int = 64 * 1024 * 1024,
        storage_class: StorageClass = DEFAULT_CLASS,
    ) -> None:
        self._bucket = bucket
        self._max_body_bytes = max_body_bytes
        self._storage_class = storage_class

    async def list_page(self, prefix: str, *, start_after: str, token: str | None) -> Page:
        """ListObjectsV2, up to 1,000 keys; ``token`` continues an earlier page."""
        bucket = self._bucket
        after = {"ContinuationToken": token} if token else {}
        if start_after and not token:
            after = {"StartAfter": bucket.prefix + start_after}
        with bucket.translating("list", prefix):
            response = await bucket.client.list_objects_v2(
                Bucket=bucket.name,
                Prefix=bucket.prefix + prefix,
                **after,
            )
        skip = len(bucket.prefix)
        files = [
            RunFile(each["Key"][skip:], each["Size"], etag_of(each), in_utc(each["LastModified"]))
            for each in response.get("Contents", ())
        ]
        truncated = response.get("IsTruncated")
        return Page(files, response.get("NextContinuationToken") if truncated else None)

    async def head(self, key: str) -> ObjectInfo:
        """HeadObject."""
        with self._bucket.translating("head", key):
            response = await self._bucket.client.head_object(**self._bucket.parameters(key))
        modified = in_utc(response["LastModified"])
        return ObjectInfo(
            RunFile(key, response["ContentLength"], etag_of(response), modified),
            response.get("ContentType", ""),
            content_encoding(response.get("ContentEncoding", "")),
            response.get("Metadata", {}),
        )

    async def get(self, key: str, *, if_match: str | None) -> Body:
        """GetObject, read whole; a short body is a `TransientError`."""
        with self._bucket.translating("get", key):
            response = await self._get(key, if_match)
            length = self._length(key, response)
            async with response["Body"] as body:
                if length > self._max_body_bytes:
                    detail = f"the response's body exceeds {self._max_body_bytes} bytes"
                    raise self._bucket.error(TransientError, "get", key, detail)
                data = await body.read()
        return self._body(key, if_match, response, data)

    async def get_range(self, key: str, start: int, length: int, *, if_match: str | None) -> Body:
        """GetObject of a range, read whole; it may be shorter if the object ends before."""
        with self._bucket.translating("get", key):
            ranged = f"bytes={start}-{start + length - 1}"
            response = await self._get(key, if_match, Range=ranged)
            if not response.get("ContentRange", "").startswith(f"bytes {start}-"):
                detail = f"the body is not the range from byte {start}"
                raise self._bucket.error(TransientError, "get", key, detail)
            async with response["Body"] as body:
                data = await body.read()
        return self._body(key, if_match, response, data)

    def _body(
        self, key: str, if_match: str | None, response: Mapping[str, Any], data: bytes
    ) -> Body:
        self._check_length(key, self._length(key, response), len(data))
        etag = etag_of(response)
        if if_match is not None:
            check_etag(key, etag, if_match)
        return Body(data, etag)

    @asynccontextmanager
    async def open(
        self, key: str, *, if_match: str | None, offset: int
    ) -> AsyncIterator[StreamedBody]:
        """GetObject from byte ``offset``, read with back-pressure."""
        ranged = {"Range": f"bytes={offset}-"} if offset else {}
        with self._bucket.translating("get", key):
            response = await self._get(key, if_match, **ranged)
            length = self._length(key, response)
        async with response["Body"] as body:
            chunks = self._chunks(key, body, length)
            yield StreamedBody(chunks, etag_of(response))

    async def _get(self, key: str, if_match: str | None, **more: str) -> Any:
        condition = None if if_match is None else Matches(if_match)
        return await self._bucket.client.get_object(
            **self._bucket.parameters(key), **more, **condition_parameters(condition)
        )

    async def _chunks(self, key: str, body: Any, length: int) -> AsyncIterator[bytes]:
        read = 0
        while True:
            with self._bucket.translating("get", key):
                block = await body.content.read(_BLOCK)
            if not block:
                break
            read += len(block)
            yield block
        self._check_length(key, length, read)

    def _length(self, key: str, response: Mapping[str, Any]) -> int:
        if "ContentLength" not in response:
            detail = "the response has no length, so its end is unknown"
            raise self._bucket.error(TransientError, "get", key, detail)
        return int(response["ContentLength"])

    def _check_length(self, key: str, announced: int, read: int) -> None:
        if announced != read:
            detail = f"received {read} of {announced} bytes"
            raise self._bucket.error(TransientError, "get", key, detail)

    async def put(
        self,
        key: str,
        data: bytes,
        *,
        condition: Condition | None,
        content_type: str,
        metadata: Mapping[str, str],
    ) -> str:
        """PutObject; returns the etag."""
        with self._bucket.translating("put", key):
            response = await self._bucket.client.put_object(
                **self._bucket.parameters(key),
                Body=data,
                ChecksumCRC32=b64encode(crc32(data).to_bytes(4, "big")).decode(),
                ContentType=content_type,
                Metadata=dict(metadata),
                **class_parameters(self._storage_class, key),
                **condition_parameters(condition),
            )
        return etag_of(response)

    async def copy(
        self,
        source: str,
        target: str,
        *,
        if_match: str,
        condition: Absent | None,
        replacing: ObjectInfo | None,
    ) -> None:
        """CopyObject; ``replacing`` replaces the source's headers and metadata."""
        options: dict[str, Any] = {"CopySourceIfMatch": f'"{if_match}"'} if if_match else {}
        if replacing is not None:
            options |= {
                "MetadataDirective": "REPLACE",
                "Metadata": dict(replacing.metadata),
                "ContentType": replacing.content_type,
            }
            if replacing.content_encoding:
                options["ContentEncoding"] = replacing.content_encoding
        with self._bucket.translating("copy", source):
            await self._bucket.client.copy_object(
                **self._bucket.parameters(target),
                CopySource=self._bucket.parameters(source),
                **condition_parameters(condition),
                **class_parameters(self._storage_class, target),
                **options,
            )

    async def delete(self, files: Sequence[RunFile]) -> Mapping[str, StoreError]:
        """DeleteObjects with each object's ETag; returns the failures by key."""
        batch = [file for file in files if fits_xml(file.key)]
        failures = await self._delete_batch(batch) if batch else {}
        if len(batch) < len(files):
            for file in files:
                if not fits_xml(file.key):
                    failures |= await self._delete_one(file)
        return failures

    async def _delete_batch(self, files: Sequence[RunFile]) -> dict[str, StoreError]:
        bucket = self._bucket
        objects = [
            {"Key": bucket.prefix + file.key} | ({"ETag": f'"{file.etag}"'} if file.etag else {})
            for file in files
        ]
        with bucket.translating("delete", files[0].key):
            response = await bucket.client.delete_objects(
                Bucket=bucket.name, Delete={"Objects": objects, "Quiet": True}
            )
        errors = (
            (each.get("Key", ""), each.get("Code", ""), each.get("Message", ""))
            for each in response.get("Errors", ())
        )
        return delete_failures(errors, files, prefix=bucket.prefix, bucket=bucket.name)

    async def _delete_one(self, file: RunFile) -> dict[str, StoreError]:
        condition = Matches(file.etag) if file.etag else None
        try:
            with self._bucket.translating("delete", file.key):
                await self._bucket.client.delete_object(
                    **self._bucket.parameters(file.key), **condition_parameters(condition)
                )
        except NotFoundError:
            return {}
        except StoreError as error:
            return {file.key: error}
        return {}
