"""What S3 is asked for each file: one method, one HTTP request. Two planes implement it.

A plane signs, sends, reads and translates; it never retries. `S3Store` retries around it, so there
is exactly one retry layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from asyncagg.errors import (
    AccessDeniedError,
    AsyncaggError,
    ConfigurationError,
    NotFoundError,
    PreconditionFailedError,
    StoreError,
    ThrottledError,
    TransientError,
    UnsupportedConditionError,
)
from asyncagg.model import RunFile
from asyncagg.store.protocol import Absent, Body, Condition, ObjectInfo, StreamedBody

__all__ = ("DataPlane", "Page", "failure")


class Page(msgspec.Struct, frozen=True):
    """One page of a listing.

    Attributes:
        files: The objects of the page, in key order.
        next_token: What to ask the next page with; ``None`` on the last one.
    """

    files: Sequence[RunFile]
    next_token: str | None = None


class DataPlane(Protocol):
    """The requests that are sent once per file or per page. Keys are relative to the store.

    Every method raises what `failure` returns, and `TransientError` for trouble of the network.
    """

    async def list_page(self, prefix: str, *, start_after: str, token: str | None) -> Page:
        """ListObjectsV2, up to 1,000 keys; ``token`` continues an earlier page."""
        ...

    async def head(self, key: str) -> ObjectInfo:
        """HeadObject."""
        ...

    async def get(self, key: str, *, if_match: str | None) -> Body:
        """GetObject, read whole; a short or altered body is a `TransientError`."""
        ...

    def open(
        self, key: str, *, if_match: str | None, offset: int
    ) -> AbstractAsyncContextManager[StreamedBody]:
        """GetObject from byte ``offset``, read with back-pressure."""
        ...

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
        ...

    async def copy(
        self,
        source: str,
        target: str,
        *,
        if_match: str,
        condition: Absent | None,
        replacing: ObjectInfo | None,
    ) -> None:
        """CopyObject; ``replacing`` gives the copy these headers and metadata instead.

        An empty ``if_match`` sends no condition, for a store that has no such guard.
        """
        ...

    async def delete(self, files: Sequence[RunFile]) -> Mapping[str, StoreError]:
        """DeleteObjects with each object's ETag; returns the failures by key.

        An empty etag sends no condition, for a store that has no such guard.
        """
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...


_BY_CODE: dict[str, type[AsyncaggError]] = {
    "NoSuchKey": NotFoundError,
    "NoSuchUpload": NotFoundError,
    "NotFound": NotFoundError,
    "PreconditionFailed": PreconditionFailedError,
    "ConditionalRequestConflict": PreconditionFailedError,
    "NotImplemented": UnsupportedConditionError,
    "AccessDenied": AccessDeniedError,
    "AllAccessDisabled": AccessDeniedError,
    "Forbidden": AccessDeniedError,
    "NoSuchBucket": ConfigurationError,
    "InvalidBucketName": ConfigurationError,
    "InvalidAccessKeyId": ConfigurationError,
    "SignatureDoesNotMatch": ConfigurationError,
    "AuthorizationHeaderMalformed": ConfigurationError,
    "PermanentRedirect": ConfigurationError,
    # Refreshed, or corrected by the clock, before the next try.
    "ExpiredToken": TransientError,
    "RequestTimeTooSkewed": TransientError,
    "SlowDown": ThrottledError,
    "ServiceUnavailable": ThrottledError,
    "Throttling": ThrottledError,
    "TooManyRequests": ThrottledError,
    "RequestTimeout": TransientError,
    "InternalError": TransientError,
    "BadDigest": TransientError,
    "IncompleteBody": TransientError,
    "XAmzContentSHA256Mismatch": TransientError,
    "OperationAborted": TransientError,
}

_BY_STATUS: dict[int, type[AsyncaggError]] = {
    403: AccessDeniedError,
    404: NotFoundError,
    408: TransientError,
    409: PreconditionFailedError,
    412: PreconditionFailedError,
    429: ThrottledError,
    501: UnsupportedConditionError,
    503: ThrottledError,
}


def failure(
    operation: str, key: str, *, bucket: str, status: int, code: str, message: str
) -> AsyncaggError:
    """Return the error of this package that an answer of S3 stands for.

    Args:
        operation: What was asked, in the words of `asyncagg.store.Store`.
        key: The object's key, or the prefix.
        bucket: The bucket asked.
        status: The HTTP status; 200 for an error inside a 200 or of one key of a batch.
        code: S3's error code, empty where the answer had no body.
        message: S3's own sentence.
    """
    kind = _BY_CODE.get(code) or _BY_STATUS.get(status)
    if code == "ConditionalRequestConflict" and operation == "copy":
        kind = TransientError  # S3 says to try again; a commit has to look again before it does
    if kind is None:
        kind = TransientError if status >= 500 else StoreError
    told = " ".join(part for part in (str(status), code, message) if part)
    text = f"{operation} {key!r} in bucket {bucket!r}: {told}"
    if issubclass(kind, StoreError):
        return kind(text, operation=operation, key=key)
    return kind(text)
