"""The requests of a multipart upload, through aioboto3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from asyncagg.model import RunFile
from asyncagg.store.protocol import Condition
from asyncagg.store.s3.boto.bucket import BotoBucket, condition_parameters, etag_of

__all__ = ("BotoMultipart",)


class BotoMultipart:
    """Sends the requests of multipart uploads through aioboto3.

    Args:
        client: Of a `Control`.
        bucket: The bucket.
        prefix: What all keys start with, or empty.
    """

    def __init__(self, client: Any, bucket: str, prefix: str = "") -> None:
        self._bucket = BotoBucket(client, bucket, prefix)

    async def create(self, key: str, *, content_type: str, metadata: Mapping[str, str]) -> str:
        """CreateMultipartUpload; returns the upload's id."""
        with self._bucket.translated("put", key):
            answer = await self._bucket.client.create_multipart_upload(
                **self._bucket.at(key), ContentType=content_type, Metadata=dict(metadata)
            )
        return str(answer["UploadId"])

    async def upload_part(self, key: str, upload: str, number: int, data: BytesIO) -> str:
        """UploadPart; returns the part's etag."""
        data.seek(0)
        with self._bucket.translated("put", key):
            answer = await self._bucket.client.upload_part(
                **self._bucket.at(key), UploadId=upload, PartNumber=number, Body=data
            )
        return etag_of(answer)

    async def copy_part(
        self, key: str, upload: str, number: int, *, source: RunFile, first: int, last: int
    ) -> str:
        """UploadPartCopy of the source's bytes from first to last, if it is unchanged."""
        with self._bucket.translated("copy", source.key):
            answer = await self._bucket.client.upload_part_copy(
                **self._bucket.at(key),
                UploadId=upload,
                PartNumber=number,
                CopySource=self._bucket.at(source.key),
                CopySourceIfMatch=f'"{source.etag}"',
                CopySourceRange=f"bytes={first}-{last}",
            )
        return etag_of(answer["CopyPartResult"])

    async def complete(
        self,
        key: str,
        upload: str,
        etags: Sequence[str],
        *,
        condition: Condition | None,
    ) -> str:
        """CompleteMultipartUpload; returns the object's etag."""
        parts = [{"PartNumber": n, "ETag": f'"{etag}"'} for n, etag in enumerate(etags, 1)]
        with self._bucket.translated("put", key):
            answer = await self._bucket.client.complete_multipart_upload(
                **self._bucket.at(key),
                UploadId=upload,
                MultipartUpload={"Parts": parts},
                **condition_parameters(condition),
            )
        return etag_of(answer)

    async def abort(self, key: str, upload: str) -> None:
        """AbortMultipartUpload."""
        with self._bucket.translated("put", key):
            await self._bucket.client.abort_multipart_upload(
                **self._bucket.at(key), UploadId=upload
            )
