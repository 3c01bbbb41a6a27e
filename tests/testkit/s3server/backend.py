"""What operations work on: the state, the faults that are on, and the conditions of requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from testkit.s3server.faults import Faults, Guard
from testkit.s3server.objects import Bucket, State, StoredObject
from testkit.s3server.wire import Request, S3Error, escape, etag_matches


@dataclass
class Backend:
    """The context of every operation.

    Attributes:
        state: Buckets and audit.
        faults: The switches.
        credentials: Secrets by access key; None if signatures are not verified.
    """

    state: State
    faults: Faults
    credentials: Mapping[str, str] | None = None

    def bucket(self, name: str) -> Bucket:
        """Return a bucket."""
        try:
            return self.state.buckets[name]
        except KeyError:
            detail = f"<BucketName>{escape(name)}</BucketName>"
            raise S3Error("NoSuchBucket", detail=detail) from None

    def object(self, bucket: str, key: str) -> StoredObject:
        """Return an object."""
        found = self.bucket(bucket).objects.get(key)
        if found is None:
            raise S3Error("NoSuchKey", detail=f"<Key>{escape(key)}</Key>")
        return found

    def permit(self, operation: str, key: str) -> None:
        """Raise AccessDenied where the faults deny an operation on a key."""
        if self.faults.denied is not None and self.faults.denied(operation, key):
            raise S3Error("AccessDenied")

    def check_write(self, request: Request, absent: Guard, match: Guard) -> None:
        """Check the conditions of a write on its target.

        Args:
            request: the write.
            absent: how If-None-Match is treated.
            match: how If-Match is treated.
        """
        old = self.bucket(request.bucket).objects.get(request.key)
        if_none_match, if_match = request.header("if-none-match"), request.header("if-match")
        if if_none_match is None and if_match is None:
            return
        if self.faults.strikes(request, self.faults.conflict):
            raise S3Error("ConditionalRequestConflict")
        if if_none_match is not None:
            if if_none_match != "*":
                raise S3Error("NotImplemented", "If-None-Match of a write must be *")
            judge(absent, holds=old is None)
        if if_match is not None:
            check_match(match, if_match, old)

    def copy_source(self, request: Request) -> StoredObject:
        """Find the source of a copy and check the conditions on it."""
        header = unquote(request.headers[b"x-amz-copy-source"].decode().partition("?")[0])
        name, _, key = header.removeprefix("/").partition("/")
        self.permit("GetObject", key)
        source = self.object(name, key)
        if_match = request.header("x-amz-copy-source-if-match")
        if_none_match = request.header("x-amz-copy-source-if-none-match")
        if if_match is not None:
            guard = self.faults.guards.copy_source_if_match
            judge(guard, holds=etag_matches(if_match, source.etag))
        if if_none_match is not None and etag_matches(if_none_match, source.etag):
            raise S3Error("PreconditionFailed")
        return source


def check_match(guard: Guard, condition: str, old: StoredObject | None) -> None:
    """Check an If-Match of a write, which an absent key answers with 404."""
    if old is None and guard == "honour":
        raise S3Error("NoSuchKey")
    judge(guard, holds=old is not None and etag_matches(condition, old.etag))


def judge(guard: Guard, *, holds: bool) -> None:
    """Raise the error for a condition, if there is one."""
    if guard == "malformed":
        raise S3Error("InvalidArgument")
    if guard == "refuse":
        raise S3Error("NotImplemented")
    if guard == "always_fail" or (guard == "honour" and not holds):
        raise S3Error("PreconditionFailed")
