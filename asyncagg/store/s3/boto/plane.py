"""The requests per file, through aioboto3 (``data_plane=boto``)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from asyncagg.errors import StoreError, TransientError
from asyncagg.model import RunFile
from asyncagg.store.protocol import Absent, Body, Condition, Matches, ObjectInfo, StreamedBody
from asyncagg.store.s3.boto.bucket import BotoBucket, condition_parameters, etag_of
from asyncagg.store.s3.plane import Page, failure

__all__ = ("BotoPlane",)

_BLOCK = 256 * 1024


class BotoPlane:
    """Sends the requests per file through aioboto3.

    Args:
        client: Of a `Control`.
        bucket: The bucket.
        prefix: What all keys start with, or empty.
    """

    def __init__(self, client: Any, bucket: str, prefix: str = "") -> None:
        self._bucket = BotoBucket(client, bucket, prefix)

    async def list_page(self, prefix: str, *, start_after: str, token: str | None) -> Page:
        """See `asyncagg.store.s3.plane.DataPlane.list_page`."""
        bucket = self._bucket
        after = {"ContinuationToken": token} if token else {}
        if start_after and not token:
            after = {"StartAfter": bucket.prefix + start_after}
        with bucket.translated("list", prefix):
            answer = await bucket.client.list_objects_v2(
                Bucket=bucket.name,
                Prefix=bucket.prefix + prefix,
                **after,
            )
        cut = len(bucket.prefix)
        files = [
            RunFile(each["Key"][cut:], each["Size"], etag_of(each), each["LastModified"])
            for each in answer.get("Contents", ())
        ]
        return Page(files, answer.get("NextContinuationToken"))

    async def head(self, key: str) -> ObjectInfo:
        """See `asyncagg.store.s3.plane.DataPlane.head`."""
        with self._bucket.translated("head", key):
            answer = await self._bucket.client.head_object(**self._bucket.at(key))
        return ObjectInfo(
            RunFile(key, answer["ContentLength"], etag_of(answer), answer["LastModified"]),
            answer.get("ContentType", ""),
            answer.get("ContentEncoding", ""),
            answer.get("Metadata", {}),
        )

    async def get(self, key: str, *, if_match: str | None) -> Body:
        """See `asyncagg.store.s3.plane.DataPlane.get`."""
        with self._bucket.translated("get", key):
            answer = await self._bucket.client.get_object(
                **self._bucket.at(key), **_only_if(if_match)
            )
            async with answer["Body"] as body:
                data = await body.read()
        self._check_length("get", key, answer["ContentLength"], len(data))
        return Body(data, etag_of(answer), answer.get("ContentEncoding", ""))

    def _check_length(self, operation: str, key: str, told: int, read: int) -> None:
        if told != read:
            raise TransientError(
                f"{operation} {key!r} in bucket {self._bucket.name!r}: {read} bytes of {told}",
                operation=operation,
                key=key,
            )

    @asynccontextmanager
    async def open(
        self, key: str, *, if_match: str | None, offset: int
    ) -> AsyncIterator[StreamedBody]:
        """See `asyncagg.store.s3.plane.DataPlane.open`."""
        ranged = {"Range": f"bytes={offset}-"} if offset else {}
        with self._bucket.translated("get", key):
            answer = await self._bucket.client.get_object(
                **self._bucket.at(key), **ranged, **_only_if(if_match)
            )
        async with answer["Body"] as body:
            chunks = self._chunks(key, body, answer["ContentLength"])
            yield StreamedBody(chunks, etag_of(answer), answer.get("ContentEncoding", ""))

    async def _chunks(self, key: str, body: Any, length: int) -> AsyncIterator[bytes]:
        read = 0
        while True:
            with self._bucket.translated("get", key):
                block = await body.content.read(_BLOCK)
            if not block:
                break
            read += len(block)
            yield block
        self._check_length("get", key, length, read)

    async def put(
        self,
        key: str,
        data: bytes,
        *,
        condition: Condition | None,
        content_type: str,
        metadata: Mapping[str, str],
    ) -> str:
        """See `asyncagg.store.s3.plane.DataPlane.put`."""
        with self._bucket.translated("put", key):
            answer = await self._bucket.client.put_object(
                **self._bucket.at(key),
                Body=data,
                ContentType=content_type,
                Metadata=dict(metadata),
                **condition_parameters(condition),
            )
        return etag_of(answer)

    async def copy(
        self,
        source: str,
        target: str,
        *,
        if_match: str,
        condition: Absent | None,
        replacing: ObjectInfo | None,
    ) -> None:
        """See `asyncagg.store.s3.plane.DataPlane.copy`."""
        options: dict[str, Any] = {"CopySourceIfMatch": f'"{if_match}"'} if if_match else {}
        if replacing is not None:
            options |= {
                "MetadataDirective": "REPLACE",
                "Metadata": dict(replacing.metadata),
                "ContentType": replacing.content_type,
            }
            if replacing.content_encoding:
                options["ContentEncoding"] = replacing.content_encoding
        with self._bucket.translated("copy", source):
            await self._bucket.client.copy_object(
                **self._bucket.at(target),
                CopySource=self._bucket.at(source),
                **condition_parameters(condition),
                **options,
            )

    async def delete(self, files: Sequence[RunFile]) -> Mapping[str, StoreError]:
        """See `asyncagg.store.s3.plane.DataPlane.delete`."""
        bucket = self._bucket
        objects = [
            {"Key": bucket.prefix + file.key} | ({"ETag": f'"{file.etag}"'} if file.etag else {})
            for file in files
        ]
        with bucket.translated("delete", files[0].key):
            answer = await bucket.client.delete_objects(
                Bucket=bucket.name, Delete={"Objects": objects, "Quiet": True}
            )
        failures: dict[str, StoreError] = {}
        for each in answer.get("Errors", ()):
            key = each["Key"][len(bucket.prefix) :]
            error = failure(
                "delete",
                key,
                bucket=bucket.name,
                status=200,
                code=each.get("Code", ""),
                message=each.get("Message", ""),
            )
            if not isinstance(error, StoreError):
                raise error
            if each.get("Code") != "NoSuchKey":  # gone is what was asked for
                failures[key] = error
        return failures

    async def aclose(self) -> None:
        """Nothing is left to close: the client is closed by whoever opened it."""


def _only_if(etag: str | None) -> dict[str, str]:
    return condition_parameters(None if etag is None else Matches(etag))
