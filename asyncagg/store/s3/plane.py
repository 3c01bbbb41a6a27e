"""The data plane: the requests that are sent for each file. Two classes implement it.

A plane signs, sends, parses and translates; it never retries. `S3Store` retries around it, so that
there is exactly one retry layer.
"""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from io import BytesIO
from typing import NamedTuple, Protocol
from zlib import crc32

import msgspec

from asyncagg.errors import (
    AccessDeniedError,
    AsyncaggError,
    ConfigurationError,
    NotFoundError,
    PreconditionFailedError,
    StoreError,
    ThrottledError,
    TimedOutError,
    TransientError,
    UnsupportedConditionError,
)
from asyncagg.model import RunFile
from asyncagg.store.protocol import Absent, Body, Condition, ObjectInfo, StreamedBody
from asyncagg.store.s3.text import printable


class Page(msgspec.Struct, frozen=True):
    """One page of a listing, in key order, and the token that requests the next one, if any."""

    files: Sequence[RunFile]
    next_token: str | None = None


class StorageClass(NamedTuple):
    """The storage class of archived files and packs; other objects get the bucket's default.

    Attributes:
        name: S3's name of it; empty for the bucket's default.
        prefix: The archive.
    """

    name: str = ""
    prefix: str = ""

    def of(self, key: str) -> str:
        """Return the storage class of an object, or an empty string.

        The record's copy and the probe's objects are read at once; they have no such endings.
        """
        archived = key.startswith(self.prefix) and key.endswith((".json", ".gz", ".zip"))
        return self.name if archived else ""


DEFAULT_CLASS = StorageClass()
"""That of the bucket, for all objects."""


class DataPlane(Protocol):
    """One method, one HTTP request. Keys are relative to the store.

    Every method raises what `s3_error` returns, and `TransientError` for network failures.
    """

    async def list_page(self, prefix: str, *, start_after: str, token: str | None) -> Page:
        """ListObjectsV2, up to 1,000 keys; ``token`` continues an earlier page."""

    async def head(self, key: str) -> ObjectInfo:
        """HeadObject."""

    async def get(self, key: str, *, if_match: str | None) -> Body:
        """GetObject, read whole; a short or altered body is a `TransientError`."""

    async def get_range(self, key: str, start: int, length: int, *, if_match: str | None) -> Body:
        """GetObject of a range, read whole; it may be shorter if the object ends before."""

    def open(
        self, key: str, *, if_match: str | None, offset: int
    ) -> AbstractAsyncContextManager[StreamedBody]:
        """GetObject from byte ``offset``, read with back-pressure."""

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

    async def copy(
        self,
        source: str,
        target: str,
        *,
        if_match: str,
        condition: Absent | None,
        replacing: ObjectInfo | None,
    ) -> None:
        """CopyObject; ``replacing`` replaces the source's headers and metadata.

        An empty ``if_match`` sends no condition, for a store that does not support it.
        """

    async def delete(self, files: Sequence[RunFile]) -> Mapping[str, StoreError]:
        """DeleteObjects with each object's ETag; returns the failures by key.

        An empty etag sends no condition, for a store that does not support it.
        """


class Part(NamedTuple):
    """A part of a multipart upload, as `Multipart.complete` names it.

    Attributes:
        etag: Its etag.
        crc32: Its CRC32 in base64; empty if it was copied.
    """

    etag: str
    crc32: str = ""


class Multipart(Protocol):
    """The requests of a multipart upload, each sent once. Keys are relative to the store.

    Each part that is sent has a CRC32, as AWS's SDKs send it. S3 then requires the algorithm when
    the upload is created, and the checksum of each part when it is completed:
    https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html
    """

    async def create(
        self, key: str, *, content_type: str, metadata: Mapping[str, str], copies: bool
    ) -> str:
        """CreateMultipartUpload, of parts that are sent or of ``copies``; returns its id."""

    async def upload_part(self, key: str, upload: str, number: int, data: BytesIO) -> Part:
        """UploadPart."""

    async def copy_part(
        self, key: str, upload: str, number: int, *, source: RunFile, first: int, last: int
    ) -> Part:
        """UploadPartCopy of the source's bytes from first to last, if it is unchanged."""

    async def complete(
        self, key: str, upload: str, parts: Sequence[Part], *, condition: Condition | None
    ) -> str:
        """CompleteMultipartUpload; returns the object's etag."""

    async def abort(self, key: str, upload: str) -> None:
        """AbortMultipartUpload."""


_BY_CODE: dict[str, type[AsyncaggError]] = {
    "NoSuchKey": NotFoundError,
    "NoSuchUpload": NotFoundError,
    "NotFound": NotFoundError,
    "PreconditionFailed": PreconditionFailedError,
    "ConditionalRequestConflict": PreconditionFailedError,
    "NotImplemented": UnsupportedConditionError,
    "MalformedXML": UnsupportedConditionError,  # an ETag in DeleteObjects: the XML itself is right
    "AccessDenied": AccessDeniedError,
    "AllAccessDisabled": AccessDeniedError,
    "Forbidden": AccessDeniedError,
    "NoSuchBucket": ConfigurationError,
    "InvalidBucketName": ConfigurationError,
    "IllegalLocationConstraintException": ConfigurationError,
    "InvalidAccessKeyId": ConfigurationError,
    "SignatureDoesNotMatch": ConfigurationError,
    "AuthorizationHeaderMalformed": ConfigurationError,
    "PermanentRedirect": ConfigurationError,
    "TemporaryRedirect": ConfigurationError,
    # The requester refreshes credentials and corrects the clock before the next attempt.
    "ExpiredToken": TransientError,
    "RequestTimeTooSkewed": TransientError,
    "SlowDown": ThrottledError,
    "ServiceUnavailable": ThrottledError,
    "Throttling": ThrottledError,
    "TooManyRequests": ThrottledError,
    "RequestTimeout": TimedOutError,
    "InternalError": TransientError,
    "BadDigest": TransientError,
    "IncompleteBody": TransientError,
    "XAmzContentSHA256Mismatch": TransientError,
    "OperationAborted": TransientError,
}

_BY_STATUS: dict[int, type[AsyncaggError]] = {
    301: ConfigurationError,
    302: ConfigurationError,
    307: ConfigurationError,
    308: ConfigurationError,
    403: AccessDeniedError,
    404: NotFoundError,
    408: TimedOutError,
    409: PreconditionFailedError,
    412: PreconditionFailedError,
    429: ThrottledError,
    501: UnsupportedConditionError,
    503: ThrottledError,
}


_ELSEWHERE = frozenset({301, 302, 307, 308})


def s3_error(
    operation: str, key: str, *, bucket: str, status: int, code: str, message: str, region: str = ""
) -> AsyncaggError:
    """Return the error of this package for an error response of S3.

    The status is 200 for an error inside a 200, or of one key of a batch. The code and the message
    are empty if the response had no body. The region is the bucket's, if the response names it.
    """
    kind = _BY_CODE.get(code) or _BY_STATUS.get(status)
    if code == "ConditionalRequestConflict" and operation == "copy":
        # S3 asks to retry. A copy can be repeated as it is; a commit must read the aggregate first.
        kind = TransientError
    if kind is None:
        kind = TransientError if status >= 500 else StoreError
    detail = printable(" ".join(part for part in (str(status), code, message) if part))
    if status in _ELSEWHERE or code == "AuthorizationHeaderMalformed":
        detail += f"; {_other_region(printable(region))}"
    if code == "NoSuchBucket":
        detail += "; create it, or correct its name"
    return make_error(kind, operation, key, bucket=bucket, detail=detail)


def _other_region(region: str) -> str:
    if region:
        return f"the bucket is in the region {region!r}: set AWS_DEFAULT_REGION={region}"
    return (
        "the bucket is elsewhere: set AWS_DEFAULT_REGION to its region, or correct the endpoint_url"
    )


def make_error(
    kind: type[AsyncaggError], operation: str, key: str, *, bucket: str, detail: str
) -> AsyncaggError:
    """Return an error of this kind that names the operation, the key and the bucket."""
    message = f"{operation} {key!r} in bucket {bucket!r}: {printable(detail)}"
    if issubclass(kind, StoreError):
        return kind(message, operation=operation, key=key, bucket=bucket)
    return kind(message)


def crc32_of(data: bytes | memoryview) -> bytes:
    """Return the value of ``x-amz-checksum-crc32`` for a body."""
    return b2a_base64(crc32(data).to_bytes(4, "big"), newline=False)


def check_etag(key: str, found: str, expected: str) -> None:
    """Check the etag of a response to a conditional GET: some servers ignore the condition.

    Raises:
        PreconditionFailedError: The object has another etag.
    """
    if found != expected:
        error = PreconditionFailedError(
            f"get {key!r}: the response has etag {found!r}, expected {expected!r}",
            operation="get",
            key=key,
        )
        error.ignored = True
        raise error


def delete_failures(
    errors: Iterable[tuple[str, str, str]], files: Iterable[RunFile], *, prefix: str, bucket: str
) -> dict[str, StoreError]:
    """Return the failures of a DeleteObjects of these files by key; a missing object is none.

    Each error is the key in the bucket, S3's error code and S3's message. One that is not about
    its key, such as a missing bucket, is raised. One that names none of the files leaves open which
    was not deleted: then none of them counts as deleted.
    """
    found = list(errors)
    if not found:  # the usual case
        return {}
    keys = {prefix + file.key: file.key for file in files}
    failures: dict[str, StoreError] = {}
    unclear: StoreError | None = None
    for name, code, message in found:
        key = keys.get(name)
        error = s3_error(
            "delete", key or name, bucket=bucket, status=200, code=code, message=message
        )
        if not isinstance(error, StoreError):
            raise error
        if key is None:
            unclear = error
        elif not isinstance(error, NotFoundError):
            failures[key] = error
    return failures if unclear is None else dict.fromkeys(keys.values(), unclear) | failures
