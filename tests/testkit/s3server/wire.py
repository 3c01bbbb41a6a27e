"""What is on the wire: requests, the names of operations, responses, errors, XML and times."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import parse_qsl, quote_plus, unquote_to_bytes
from xml.etree import ElementTree as ET

CONTROL = "/_control/"
XMLNS = "http://s3.amazonaws.com/doc/2006-03-01/"

# ------------------------------------------------------------------------------ requests


@dataclass(slots=True)
class Request:
    """One request as it arrived; header names are in lower case.

    Its operation is "control" for one that steers the server, and empty if S3 has none.
    """

    ordinal: int
    operation: str
    method: str
    bucket: str
    key: str
    query: dict[str, str]
    target: bytes
    headers: dict[bytes, bytes]
    body: bytes

    def header(self, name: str) -> str | None:
        """Return a header's value, or None if it was not sent."""
        value = self.headers.get(name.lower().encode())
        return None if value is None else value.decode()


# By method, whether there is a key, and what marks the query ("copy" marks a copy's header).
OPERATIONS = {
    ("PUT", False, ""): "CreateBucket",
    ("HEAD", False, ""): "HeadBucket",
    ("DELETE", False, ""): "DeleteBucket",
    ("GET", False, "location"): "GetBucketLocation",
    ("GET", False, "list-type"): "ListObjectsV2",
    ("GET", False, "uploads"): "ListMultipartUploads",
    ("POST", False, "delete"): "DeleteObjects",
    ("GET", True, ""): "GetObject",
    ("HEAD", True, ""): "HeadObject",
    ("PUT", True, ""): "PutObject",
    ("PUT", True, "copy"): "CopyObject",
    ("DELETE", True, ""): "DeleteObject",
    ("POST", True, "uploads"): "CreateMultipartUpload",
    ("PUT", True, "uploadId"): "UploadPart",
    ("PUT", True, "uploadIdcopy"): "UploadPartCopy",
    ("POST", True, "uploadId"): "CompleteMultipartUpload",
    ("DELETE", True, "uploadId"): "AbortMultipartUpload",
}
# From "acl" on, these mark operations that this server does not have. They are listed so that
# such a request is not taken for another operation.
MARKS = (
    *("uploadId", "uploads", "location", "list-type", "delete"),
    *("acl", "attributes", "cors", "encryption", "legal-hold", "lifecycle", "object-lock"),
    *("partNumber", "policy", "restore", "retention", "select", "tagging", "torrent"),
    *("versionId", "versioning", "versions", "website"),
)


def name_operation(method: str, key: str, query: dict[str, str], headers: Collection[bytes]) -> str:
    """Name the S3 operation; an empty string if there is none."""
    mark = next((mark for mark in MARKS if mark in query), "") if query else ""
    if b"x-amz-copy-source" in headers:
        mark += "copy"
    return OPERATIONS.get((method, bool(key), mark), "")


def parse_request(
    method: str,
    target: bytes,
    headers: dict[bytes, bytes],
    body: bytes,
    buckets: Collection[str],
) -> Request:
    """Parse a request; a path that is not UTF-8 names no bucket.

    Args:
        method: in upper case.
        target: path and query, as sent.
        headers: names in lower case.
        body: all of it.
        buckets: the names that may be the first label of the host.
    """
    raw, _, raw_query = target.partition(b"?")
    try:
        path = (unquote_to_bytes(raw) if b"%" in raw else raw).decode()
    except UnicodeDecodeError:
        path = ""
    query = dict(parse_qsl(raw_query.decode(), keep_blank_values=True)) if raw_query else {}
    if path.startswith(CONTROL):
        return Request(0, "control", method, "", path, query, target, headers, body)
    label = host_label(headers.get(b"host", b""))
    if label and (label in buckets or path == "/"):
        bucket, key = label, path[1:]
    else:
        bucket, _, key = path[1:].partition("/")
    operation = name_operation(method, key, query, headers) if bucket else ""
    return Request(0, operation, method, bucket, key, query, target, headers, body)


@lru_cache(1024)
def host_label(host: bytes) -> str:
    """Return the bucket that a Host header may name: the first label, unless it is an address."""
    name = host.decode("latin-1").partition(":")[0]
    label, dot, rest = name.partition(".")
    return "" if not dot or rest.replace(".", "").isdigit() else label


_RANGE = re.compile(r"bytes=(\d*)-(\d*)").fullmatch


def parse_range(header: str, size: int) -> slice | None:
    """Parse a Range header; None if it is not a single byte range, which S3 ignores.

    Raises:
        S3Error: InvalidRange if it lies outside.
    """
    found = _RANGE(header.strip())
    if found is None or not (found[1] or found[2]):
        return None
    first = int(found[1]) if found[1] else max(0, size - int(found[2]))
    last = int(found[2]) if found[1] and found[2] else size - 1
    if found[2] and last < first < size:
        return None
    if first >= size:
        content_range = b"content-range: bytes */%d\r\n" % size
        detail = f"<ActualObjectSize>{size}</ActualObjectSize>"
        raise S3Error("InvalidRange", headers=content_range, detail=detail)
    return slice(first, min(last, size - 1) + 1)


def etag_matches(condition: str, etag: str) -> bool:
    """Return whether an If-Match style list of ETags (quoted or not, or ``*``) holds `etag`."""
    bare = etag.strip('"')
    return condition == "*" or any(part.strip().strip('"') == bare for part in condition.split(","))


# ------------------------------------------------------------------------------ responses


class Response(NamedTuple):
    """One response; `length` is for a HEAD, whose body is not sent."""

    status: int
    headers: bytes = b""
    body: bytes = b""
    length: int | None = None


STATUS_LINES = {int(status): f"{int(status)} {status.phrase}".encode() for status in HTTPStatus}
XML_TYPE = b"content-type: application/xml\r\n"


def render(request: Request, response: Response, now: datetime) -> bytes:
    """Render a response as it is sent."""
    status, headers, body, length = response
    if status not in (204, 304):
        headers += b"content-length: %d\r\n" % (len(body) if length is None else length)
    return b"HTTP/1.1 %b\r\nx-amz-request-id: %016X\r\ndate: %b\r\n%b\r\n%b" % (
        STATUS_LINES[status],
        request.ordinal,
        http_time(now),
        headers,
        body,
    )


def xml_response(root: str, inner: str, headers: bytes = b"") -> Response:
    """Return a response whose body is an XML document."""
    return Response(200, XML_TYPE + headers, xml(root, inner))


def error_response(request: Request, error: S3Error) -> Response:
    """Return the response that reports an error."""
    if request.method == "HEAD" or error.status == 304:
        return Response(error.status, error.headers)
    return Response(error.status, error.headers + XML_TYPE, error_body(request, error))


def error_body(request: Request, error: S3Error) -> bytes:
    """Render an error as XML."""
    path = escape(request.target.decode("latin-1").partition("?")[0])
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{error.code}</Code><Message>{escape(error.message)}</Message>"
        f"{error.detail}<Resource>{path}</Resource>"
        f"<RequestId>{request.ordinal:016X}</RequestId></Error>"
    ).encode()


@lru_cache(65536)
def iso_time(moment: datetime) -> str:
    """Render a time as listings show it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.000Z")


@lru_cache(65536)
def http_time(moment: datetime) -> bytes:
    """Render a time as HTTP headers show it."""
    return format_datetime(moment, usegmt=True).encode()


# ------------------------------------------------------------------------------ errors

ERRORS = {
    "AccessDenied": (403, "Access Denied"),
    "AuthorizationHeaderMalformed": (400, "The authorization header is malformed."),
    "BadDigest": (400, "The digest you specified did not match what we received."),
    "BadRequest": (400, "An error occurred when parsing the HTTP request."),
    "BucketAlreadyOwnedByYou": (409, "The bucket already exists and you own it."),
    "BucketNotEmpty": (409, "The bucket you tried to delete is not empty"),
    "ConditionalRequestConflict": (409, "A conflicting operation occurred. Try again."),
    "EntityTooSmall": (400, "Your proposed upload is smaller than the minimum allowed size"),
    "ExpiredToken": (400, "The provided token has expired."),
    "IncompleteBody": (400, "The request body terminated unexpectedly"),
    "InternalError": (500, "We encountered an internal error. Please try again."),
    "InvalidAccessKeyId": (403, "The AWS Access Key Id you provided does not exist."),
    "InvalidArgument": (400, "Invalid Argument"),
    "InvalidDigest": (400, "The Content-MD5 you specified is not valid."),
    "InvalidPart": (400, "One or more of the specified parts could not be found."),
    "InvalidPartOrder": (400, "The list of parts was not in ascending order."),
    "InvalidRange": (416, "The requested range is not satisfiable"),
    "InvalidRequest": (400, "The request is not valid."),
    "InvalidURI": (400, "Couldn't parse the specified URI."),
    "KeyTooLongError": (400, "Your key is too long"),
    "MalformedXML": (400, "The XML you provided was not well-formed."),
    "MethodNotAllowed": (405, "The specified method is not allowed against this resource."),
    "NoSuchBucket": (404, "The specified bucket does not exist"),
    "NoSuchKey": (404, "The specified key does not exist."),
    "NoSuchUpload": (404, "The specified upload does not exist."),
    "NotImplemented": (501, "A header or query you provided is not implemented."),
    "NotModified": (304, ""),
    "PermanentRedirect": (301, "The bucket must be addressed using the specified endpoint."),
    "PreconditionFailed": (412, "At least one of the pre-conditions you specified did not hold"),
    "RequestTimeTooSkewed": (403, "The difference between request and server time is too large."),
    "SignatureDoesNotMatch": (403, "The request signature we calculated does not match yours."),
    "TemporaryRedirect": (307, "Please re-send this request to the specified temporary endpoint."),
    "SlowDown": (503, "Please reduce your request rate."),
    "XAmzContentSHA256Mismatch": (400, "x-amz-content-sha256 does not match what was computed."),
}


class S3Error(Exception):
    """A response other than success.

    Args:
        code: one of `ERRORS`; it fixes the status.
        message: replaces the usual message.
        headers: raw header lines to add to the response.
        detail: further elements of the XML body, already rendered.
    """

    def __init__(
        self, code: str, message: str = "", headers: bytes = b"", detail: str = ""
    ) -> None:
        super().__init__(code)
        self.code = code
        self.status, usual = ERRORS[code]
        self.message = message or usual
        self.headers = headers
        self.detail = detail


# ------------------------------------------------------------------------------ XML

_SPECIAL = re.compile('[&<>"\x00-\x1f\x7f]')
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}
_PLAIN = re.compile(r"[A-Za-z0-9_.~/-]*").fullmatch


def escape(text: str) -> str:
    """Escape for XML; control characters become references, though XML 1.0 forbids most."""
    if _SPECIAL.search(text) is None:
        return text
    return _SPECIAL.sub(lambda m: _ENTITIES.get(m[0]) or f"&#x{ord(m[0]):X};", text)


def encode_url(text: str) -> str:
    """Encode as ``encoding-type=url`` does: a space is ``+``, slashes stay."""
    return text if _PLAIN(text) else quote_plus(text, safe="/")


def xml(root: str, inner: str) -> bytes:
    """Render a whole XML document."""
    head = '<?xml version="1.0" encoding="UTF-8"?>\n'
    return f'{head}<{root} xmlns="{XMLNS}">{inner}</{root}>'.encode()


def parse_xml(body: bytes) -> ET.Element:
    """Parse a request body, with or without the S3 namespace, into elements without one."""
    try:
        # Only the project's own tests and benchmarks send this.
        return ET.fromstring(body.replace(f'xmlns="{XMLNS}"'.encode(), b""))  # noqa: S314
    except ET.ParseError:
        raise S3Error("MalformedXML") from None
