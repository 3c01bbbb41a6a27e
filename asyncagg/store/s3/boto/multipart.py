"""The requests of a multipart upload, through aioboto3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO

from asyncagg.model import RunFile
from asyncagg.store.protocol import Condition
from asyncagg.store.s3.boto.bucket import (
    BotoBucket,
    class_parameters,
    condition_parameters,
    etag_of,
)
from asyncagg.store.s3.plane import DEFAULT_CLASS, Part, StorageClass, crc32_of


class BotoMultipart:
    """Sends each request of a multipart upload once, through aioboto3."""

    def __init__(self, bucket: BotoBucket, *, storage_class: StorageClass = DEFAULT_CLASS) -> None:
        self._bucket = bucket
        self._storage_class = storage_class

    async def create(
        self, key: str, *, content_type: str, metadata: Mapping[str, str], copies: bool
    ) -> str:
        """CreateMultipartUpload, of parts that are sent or of ``copies``; returns its id."""
        checksum = {} if copies else {"ChecksumAlgorithm": "CRC32"}
        with self._bucket.translating("put", key):
            response = await self._bucket.client.create_multipart_upload(
                **self._bucket.parameters(key),
                ContentType=content_type,
                Metadata=dict(metadata),
                **class_parameters(self._storage_class, key),
                **checksum,
            )
        return str(response["UploadId"])

    async def upload_part(self, key: str, upload: str, number: int, data: BytesIO) -> Part:
        """UploadPart."""
        data.seek(0)
        checksum = crc32_of(data.getbuffer()).decode()
        with self._bucket.translating("put", key):
            response = await self._bucket.client.upload_part(
                **self._bucket.parameters(key),
                UploadId=upload,
                PartNumber=number,
                Body=data,
                ChecksumCRC32=checksum,
            )
        return Part(etag_of(response), checksum)

    async def copy_part(
        self, key: str, upload: str, number: int, *, source: RunFile, first: int, last: int
    ) -> Part:
        """UploadPartCopy of the source's bytes from first to last, if it is unchanged."""
        with self._bucket.translating("copy", source.key):
            response = await self._bucket.client.upload_part_copy(
                **self._bucket.parameters(key),
                UploadId=upload,
                PartNumber=number,
                CopySource=self._bucket.parameters(source.key),
                CopySourceIfMatch=f'"{source.etag}"',
                CopySourceRange=f"bytes={first}-{last}",
            )
        return Part(etag_of(response["CopyPartResult"]))

    async def complete(
        self, key: str, upload: str, parts: Sequence[Part], *, condition: Condition | None
    ) -> str:
        """CompleteMultipartUpload; returns the object's etag."""
        listed = [
            {"PartNumber": number, "ETag": f'"{part.etag}"'}
            | ({"ChecksumCRC32": part.crc32} if part.crc32 else {})
            for number, part in enumerate(parts, 1)
        ]
        with self._bucket.translating("put", key):
            response = await self._bucket.client.complete_multipart_upload(
                **self._bucket.parameters(key),
                UploadId=upload,
                MultipartUpload={"Parts": listed},
                **condition_parameters(condition),
            )
        return etag_of(response)

    async def abort(self, key: str, upload: str) -> None:
        """AbortMultipartUpload."""
        with self._bucket.translating("put", key):
            await self._bucket.client.abort_multipart_upload(
                **self._bucket.parameters(key), UploadId=upload
            )
