"""S3's XML: the pages of a listing, errors, and the batch that DeleteObjects takes."""

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
from asyncagg.store.s3.plane import Page

__all__ = (
    "Refusal",
    "delete_batch",
    "fits_xml",
    "parse_copied",
    "parse_listing",
    "parse_refusal",
    "parse_undeleted",
)

_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_NOT_PRINTABLE = re.compile("[\x00-\x1f\x7f]+")
# White space too: written plainly, a parser would turn some of it into other white space.
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
_MAX_MESSAGE = 300
_ENTRY = re.compile(
    r"<Contents><Key>([^<&]*)</Key><LastModified>([^<&]*)</LastModified>"
    r"<ETag>(?:&quot;|\")([^<&\"]*)(?:&quot;|\")</ETag>"
    r"(?:<ChecksumAlgorithm>\w*</ChecksumAlgorithm>)*(?:<ChecksumType>\w*</ChecksumType>)?"
    r"<Size>(\d+)</Size><StorageClass>\w*</StorageClass></Contents>"
)
_FIRST, _LAST = b"<Contents>", b"</Contents>"


_Entry: TypeAlias = tuple[str, str, str, str]
"""What a listing says of an object: its key, as written; when it came; its etag; its size."""


class Refusal(msgspec.Struct, frozen=True):
    """What an ``<Error>`` says.

    Attributes:
        code: S3's error code; empty where the answer was no such document.
        message: S3's own sentence.
        key: The object's key, in the answer to a batch.
        region: The region to ask instead.
    """

    code: str = ""
    message: str = ""
    key: str = ""
    region: str = ""


def parse_listing(body: bytes, prefix: str) -> Page:
    """Return a page of ListObjectsV2, its keys relative to ``prefix``.

    Raises:
        TransientError: It is no such page, or a damaged one.
    """
    frame, entries = _split(body)
    root = _parse(frame, "ListBucketResult")
    space = root.tag.removesuffix("ListBucketResult")
    encoded = root.findtext(f"{space}EncodingType") == "url"
    skip = len(prefix)
    files = []
    try:
        for key, modified, etag, size in entries or _entries(root, space):
            name = unquote_plus(key) if encoded and ("%" in key or "+" in key) else key
            files.append(RunFile(name[skip:], int(size), etag, _moment(modified)))
    except ValueError as error:
        raise TransientError(f"a damaged entry in the listing: {error}") from error
    token = root.findtext(f"{space}NextContinuationToken") or None
    if token is None and root.findtext(f"{space}IsTruncated") == "true":
        raise TransientError("the listing is truncated and does not say how it goes on")
    return Page(files, token)


@lru_cache(maxsize=1024)
def _moment(text: str) -> datetime:
    """Return a time of a listing: files that came in the same second share it, and its hash."""
    return datetime.fromisoformat(text)


def _split(body: bytes) -> tuple[bytes, list[_Entry]]:
    """Take the entries out of a listing that is written as S3 writes it.

    A tree of elements for each key costs thrice as much as the rest of the listing. Where anything
    is not as expected, there are no entries and the frame is the whole: the XML parser reads it.
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


def parse_refusal(body: bytes) -> Refusal:
    """Return what an error's body says, as far as it says anything."""
    try:
        root = _parse(body, "Error")
    except TransientError:
        return Refusal()
    return _refusal(root)


def parse_copied(body: bytes) -> Refusal | None:
    """Return the error that a CopyObject's 200 holds; ``None`` where the copy was made.

    Raises:
        TransientError: It holds neither an error nor the result.
    """
    if body.find(b"<CopyObjectResult") >= 0 and body.find(b"</ETag>") >= 0:
        return None
    try:
        return _refusal(_parse(body, "Error"))
    except TransientError:
        raise TransientError("the answer says neither that it copied nor why not") from None


def parse_undeleted(body: bytes) -> Iterator[Refusal]:
    """Yield what the answer to DeleteObjects says could not be deleted.

    Raises:
        TransientError: It is no such answer.
    """
    root = _parse(body, "DeleteResult")
    for entry in root.iterfind("{*}Error"):
        yield _refusal(entry)


def fits_xml(*keys: str) -> bool:
    """Tell whether XML 1.0 can say these keys: it cannot write most control characters."""
    text = "".join(keys)
    if text.isascii() and not text.encode().translate(None, _PLAIN):
        return True  # the usual case, in a fifth of the time
    return _NOT_IN_XML.search(text) is None


def delete_batch(objects: Sequence[tuple[str, str]]) -> bytes:
    """Return the body of a quiet DeleteObjects for these keys and ETags; an empty one is none."""
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


def _parse(body: bytes, name: str) -> ET.Element:
    try:
        # S3 is asked over TLS or by the operator's own choice, and expat bounds what entities
        # expand to.
        root = ET.fromstring(body)  # noqa: S314
    except ET.ParseError as error:
        raise TransientError(f"the answer is no XML: {error}") from error
    if root.tag.rpartition("}")[2] != name:
        raise TransientError(f"the answer is no {name}")
    return root


def _refusal(entry: ET.Element) -> Refusal:
    message = _NOT_PRINTABLE.sub(" ", entry.findtext("{*}Message") or "")
    return Refusal(
        code=entry.findtext("{*}Code") or "",
        message=message[:_MAX_MESSAGE],
        key=entry.findtext("{*}Key") or "",
        region=entry.findtext("{*}Region") or "",
    )
