"""Judges requests by the statements of IAM policies, as S3 does, on the project's own server."""

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
    """Return what a statement is restricted to: resources, or prefixes of the bucket."""
    condition = statement.get("Condition")
    if condition is None:
        return _as_list(statement["Resource"])
    assert statement["Resource"] == _OBJECTS[:-1]
    (prefixes,) = condition["StringLike"].values()
    return _as_list(prefixes)


class Judge:
    """Refuses a request that the statements do not grant, and notes which grants are of use.

    Attributes:
        statements: Those that are in force; more may be added.
        used: The grants that let something pass.
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
        """Tell whether an action on an object, or on a prefix, is allowed."""
        for granted, pattern in self.granted():
            if granted == action and fnmatchcase(subject, pattern):
                self.used.add((granted, pattern))
                return True
        return False

    def __call__(self, request: Request) -> None:
        """Refuse a request that is not granted; the server has no tags, so they end here."""
        if not all(self.allows(*each) for each in self.needed(request)):
            raise S3Error("AccessDenied")
        if "tagging" in request.query:
            raise S3Error("NoSuchKey")

    def needed(self, request: Request) -> Iterator[tuple[str, str]]:
        """Yield what S3 asks for; https://docs.aws.amazon.com/AmazonS3/latest/API/ says what."""
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
                if PROBE not in source:  # a run file's writer may have tagged it
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
                    yield "s3:ListBucket", request.key  # or 403 instead of 404
            case "" if request.query.keys() & {"versioning", "lifecycle"}:
                return  # hints, which this server does not give
            case other:
                raise AssertionError(f"the program sends {other}: say what that needs")
