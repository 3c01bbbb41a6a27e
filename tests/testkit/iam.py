"""Checks requests to the test server against the statements of IAM policies, as S3 does."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import unquote

from testkit.promises import PROBE
from testkit.s3server import Request, S3Error, S3Server
from testkit.scenario import BUCKET

__all__ = ("Judge", "patterns")

_OBJECTS = f"arn:aws:s3:::{BUCKET}/"

_OF_ONE_OBJECT = {
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "PutObject": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "GetObjectTagging": "s3:GetObjectTagging",
    "PutObjectTagging": "s3:PutObjectTagging",
}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def patterns(statement: dict[str, Any]) -> list[str]:
    """Return the resources of a statement, or the prefixes that it is restricted to."""
    condition = statement.get("Condition")
    if condition is None:
        return _as_list(statement["Resource"])
    assert statement["Resource"] == _OBJECTS[:-1]
    (prefixes,) = condition["StringLike"].values()
    return _as_list(prefixes)


class Judge:
    """Denies a request that the statements do not grant, and records which grants are used.

    Attributes:
        statements: The statements in force; more may be added.
        used: The grants that allowed a request.
    """

    def __init__(self, server: S3Server, statements: Iterable[dict[str, Any]] = ()) -> None:
        self.statements = list(statements)
        self.used: set[tuple[str, str]] = set()
        self._server = server

    def granted(self) -> set[tuple[str, str]]:
        """Return every grant: the action, and the pattern of its resource or prefix."""
        return {
            (action, pattern)
            for statement in self.statements
            for action in _as_list(statement["Action"])
            for pattern in patterns(statement)
        }

    def allows(self, action: str, subject: str) -> bool:
        """Return whether an action on an object, or on a prefix, is allowed."""
        for granted, pattern in self.granted():
            if granted == action and fnmatchcase(subject, pattern):
                self.used.add((granted, pattern))
                return True
        return False

    def __call__(self, request: Request) -> None:
        """Deny a request that is not granted; answer requests for tags, which the server lacks."""
        if not all(self.allows(*each) for each in self.needed(request)):
            raise S3Error("AccessDenied")
        if "tagging" in request.query:
            raise S3Error("NoSuchKey")

    def needed(  # noqa: C901 (one case for each operation)
        self, request: Request
    ) -> Iterator[tuple[str, str]]:
        """Yield the permissions that a request needs.

        The source: https://docs.aws.amazon.com/AmazonS3/latest/API/
        """
        target = _OBJECTS + request.key
        operation = request.operation
        if "tagging" in request.query:
            operation = f"{request.method.title()}ObjectTagging"
        match operation:
            case "ListObjectsV2":
                yield "s3:ListBucket", request.query["prefix"]
            case "CreateMultipartUpload" | "UploadPart" | "CompleteMultipartUpload":
                yield "s3:PutObject", target
            case "CopyObject":
                source = unquote(request.header("x-amz-copy-source") or "").removeprefix("/")
                yield "s3:GetObject", f"arn:aws:s3:::{source}"
                yield "s3:PutObject", target
                if PROBE not in source:  # a run file may have tags
                    yield "s3:GetObjectTagging", f"arn:aws:s3:::{source}"
                    yield "s3:PutObjectTagging", target
            case "DeleteObjects":
                for key in re.findall("<Key>(.*?)</Key>", request.body.decode()):
                    yield "s3:DeleteObject", _OBJECTS + key
                    yield "s3:GetObject", _OBJECTS + key  # it carries an ETag
            case single if single in _OF_ONE_OBJECT:
                yield _OF_ONE_OBJECT[single], target
                if request.header("if-match"):
                    yield "s3:GetObject", target
                new = request.header("if-none-match") is not None
                if not self._server.has(BUCKET, request.key) and not new:
                    yield "s3:ListBucket", request.key  # without it, S3 answers 403 instead of 404
            case "" if request.query.keys() & {"versioning", "lifecycle"}:
                return  # optional requests, which this server does not support
            case other:
                raise AssertionError(f"{other}: its permissions are not listed here")
