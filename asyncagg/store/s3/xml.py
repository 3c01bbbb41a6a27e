"""S3's XML: pages of a listing, errors, results, and the bodies of requests.

A response that is incomplete or not the expected one raises a `TransientError` without context.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import chain
from typing import TypeAlias
from urllib.parse import unquote_plus
from xml.etree import ElementTree as ET

import msgspec

from asyncagg.errors import TransientError
from asyncagg.model import RunFile
from asyncagg.store.s3.plane import Page, Part
from asyncagg.store.s3.text import in_utc, printable

_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
# White space is escaped because a parser normalizes it otherwise.
_ESCAPES_OF = {
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    "\t": "&#9;",
    "\n": "&#10;",
    "\r": "&#13;",
}
_ESCAPES = str.maketrans(_ESCAPES_OF)
_PLAIN = bytes(range(0x20, 0x7F))
_ENTRY = re.compile(
    r"<Contents><Key>([^<&]*)</Key><LastModified>([^<&]*)</LastModified>"
    r"<ETag>(?:&quot;|\")([^<&\"]*)(?:&quot;|\")</ETag>"
    r"(?:<ChecksumAlgorithm>\w*</ChecksumAlgorithm>)*(?:<ChecksumType>\w*</ChecksumType>)?"
    r"<Size>(\d+)</Size><StorageClass>\w*</StorageClass></Contents>"
)
_FIRST, _LAST = b"<Contents>", b"</Contents>"


_Entry: TypeAlias = tuple[str, str, str, str]
"""The key (encoded as in the listing), last modification, etag and size of an object."""


class ErrorResponse(msgspec.Struct, frozen=True):
    """The content of an ``<Error>`` element; all empty if the response has none.

    The key is that of one object of a DeleteObjects. The region is the bucket's, if it is wrong.
    """

    code: str = ""
    message: str = ""
    key: str = ""
    region: str = ""


def parse_listing(body: bytes, prefix: str) -> Page:
    """Return a page of ListObjectsV2, its keys relative to ``prefix``; raise if it is damaged."""
    frame, entries = _split(body)
    root = _parse(frame, "ListBucketResult")
    space = root.tag.removesuffix("ListBucketResult")
    encoded = root.findtext(f"{space}EncodingType") == "url"
    skip = len(prefix)
    files = []
    try:
        for key, modified, etag, size in entries or _entries(root, space):
            name = unquote_plus(key) if encoded and ("%" in key or "+" in key) else key
            files.append(RunFile(name[skip:], int(size), etag, _parse_time(modified)))
    except ValueError as error:
        raise TransientError(f"the listing has a damaged entry: {error}") from error
    if root.findtext(f"{space}IsTruncated") != "true":
        return Page(files)  # some servers send a token with the last page, too
    token = root.findtext(f"{space}NextContinuationToken")
    if not token:
        raise TransientError("the listing is truncated but has no continuation token")
    return Page(files, token)


@lru_cache(maxsize=1024)
def _parse_time(text: str) -> datetime:
    """Parse a time of a listing; files that were written in the same second share the value."""
    return in_utc(datetime.fromisoformat(text))


def _split(body: bytes) -> tuple[bytes, list[_Entry]]:
    """Return a listing without its entries, and the entries, if they are written as S3 does.

    This is fast: parsing each entry as XML costs three times as much as the rest of the listing. If
    any entry is written differently, return the whole listing and no entries; the XML parser then
    reads it.
    """
    start, end = body.find(_FIRST), body.rfind(_LAST) + len(_LAST)
    if start < 0:
        return body, []
    middle = body[start:end]
    try:
        entries = _ENTRY.findall(middle.decode())
    except UnicodeDecodeError:
        return body, []
    if len(entries) != middle.count(_FIRST) or len(entries) != middle.count(_LAST):
        return body, []
    return body[:start] + body[end:], entries


def _entries(root: ET.Element, space: str) -> Iterator[_Entry]:
    names = [f"{space}{name}" for name in ("Key", "LastModified", "ETag", "Size")]
    for entry in root.iterfind(f"{space}Contents"):
        key, modified, etag, size = [entry.findtext(name, "") for name in names]
        yield key, modified, etag.strip('"'), size


def parse_error(body: bytes) -> ErrorResponse:
    """Return the content of an error response; empty if its body is not an ``<Error>``."""
    try:
        root = _parse(body, "Error")
    except TransientError:
        return ErrorResponse()
    return _error(root)


def parse_copy_error(body: bytes) -> ErrorResponse | None:
    """Return the error in the 200 response to a CopyObject, or ``None`` if it succeeded."""
    if body.find(b"<CopyObjectResult") >= 0 and body.find(b"</ETag>") >= 0:
        return None
    try:
        return _error(_parse(body, "Error"))
    except TransientError:
        raise TransientError("the response to the copy has neither a result nor an error") from None


def parse_result_etag(body: bytes, name: str) -> str | ErrorResponse:
    """Return the etag in a result with this name, or the error in its place."""
    body = body.lstrip()  # S3 sends white space while it works
    try:
        root = _parse(body, name)
    except TransientError as unexpected:
        try:
            return _error(_parse(body, "Error"))
        except TransientError:
            raise unexpected from None
    etag = root.findtext("{*}ETag") or ""
    if not etag:
        raise TransientError(f"the {name} has no ETag")
    return etag.strip('"')


def parse_upload_id(body: bytes) -> str:
    """Return the id of a multipart upload that was created."""
    name = _parse(body, "InitiateMultipartUploadResult").findtext("{*}UploadId")
    if not name:
        raise TransientError("the response has no UploadId")
    return name


def parse_delete_errors(body: bytes) -> Iterator[ErrorResponse]:
    """Yield the errors in the response to a DeleteObjects; there are none if all succeeded."""
    root = _parse(body, "DeleteResult")
    for entry in root.iterfind("{*}Error"):
        yield _error(entry)


def fits_xml(*keys: str) -> bool:
    """Whether XML 1.0 can represent these keys: it has no form for most control characters."""
    text = "".join(keys)
    if text.isascii() and not text.encode().translate(None, _PLAIN):
        return True  # the usual case; takes a fifth of the time
    return _NOT_IN_XML.search(text) is None


def delete_body(objects: Sequence[tuple[str, str]]) -> bytes:
    """Return the body of a quiet DeleteObjects for keys and ETags; an empty ETag is left out."""
    text = "".join(chain.from_iterable(objects))
    if any(sign in text for sign in _ESCAPES_OF):
        objects = [(key.translate(_ESCAPES), etag.translate(_ESCAPES)) for key, etag in objects]
    entries = [
        f"<Object><Key>{key}</Key><ETag>&quot;{etag}&quot;</ETag></Object>"
        if etag
        else f"<Object><Key>{key}</Key></Object>"
        for key, etag in objects
    ]
    return f'<Delete xmlns="{_NAMESPACE}"><Quiet>true</Quiet>{"".join(entries)}</Delete>'.encode()


def complete_body(parts: Sequence[Part]) -> bytes:
    """Return the body of a CompleteMultipartUpload for its parts, in order."""
    entries = "".join(
        f"<Part><PartNumber>{number}</PartNumber>"
        f"<ETag>&quot;{part.etag.translate(_ESCAPES)}&quot;</ETag>"
        + (f"<ChecksumCRC32>{part.crc32}</ChecksumCRC32>" if part.crc32 else "")
        + "</Part>"
        for number, part in enumerate(parts, 1)
    )
    name = "CompleteMultipartUpload"
    return f'<{name} xmlns="{_NAMESPACE}">{entries}</{name}>'.encode()


def _parse(body: bytes, name: str) -> ET.Element:
    try:
        # The server is trusted (TLS, or the operator's choice), and expat limits the expansion of
        # entities.
        root = ET.fromstring(body)  # noqa: S314
    except ET.ParseError as error:
        raise TransientError(f"the response is not XML: {error}") from error
    if root.tag.rpartition("}")[2] != name:
        raise TransientError(f"the response is not a {name}")
    return root


def _error(entry: ET.Element) -> ErrorResponse:
    return ErrorResponse(
        code=entry.findtext("{*}Code") or "",
        message=printable(entry.findtext("{*}Message") or ""),
        key=entry.findtext("{*}Key") or "",
        region=entry.findtext("{*}Region") or "",
    )
