"""An in-memory S3 server: one asyncio protocol, faithful conditions, and faults on demand.

In a test: ``async with S3Server(buckets=["b"]) as server: ... server.url``; from synchronous code
or for child processes: ``with ThreadedS3Server(buckets=["b"]) as threaded: ... threaded.url``.
As a process: ``python s3server.py --port 0 --bucket b`` prints ``listening on URL`` and serves
until SIGTERM; ``/_control/audit|faults|fill|reset`` steer it over HTTP.

State changes happen synchronously in the event loop, so each request is atomic. `S3Server` is
built of three layers: `Store` (objects and the audit), `Operations` (what S3 answers), and the
server itself (what goes wrong on the way, and the network).
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gc
import hashlib
import hmac
import inspect
import json
import random
import re
import signal
import socket
import ssl
import struct
import threading
import zlib
from bisect import bisect_left, bisect_right, insort
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import lru_cache
from http import HTTPStatus
from itertools import islice
from operator import add
from typing import Any, Literal, NamedTuple, ParamSpec, Self, TypeVar, cast, get_args
from urllib.parse import parse_qsl, quote, quote_plus, unquote, unquote_to_bytes
from xml.etree import ElementTree as ET

import httptools

__all__ = (
    "Audit",
    "DropError",
    "Faults",
    "Guard",
    "Guards",
    "Pause",
    "Request",
    "S3Error",
    "S3Server",
    "StoredObject",
    "ThreadedS3Server",
)

MIN_PART_BYTES = 5 * 1024 * 1024
MAX_KEYS = 1000
MAX_KEY_BYTES = 1024
MAX_SKEW = timedelta(minutes=15)
XMLNS = "http://s3.amazonaws.com/doc/2006-03-01/"
CONTROL = "/_control/"

P = ParamSpec("P")
T = TypeVar("T")

# ------------------------------------------------------------------------------ errors and XML

ERRORS = {
    "AccessDenied": (403, "Access Denied"),
    "AuthorizationHeaderMalformed": (400, "The authorization header is malformed."),
    "BadDigest": (400, "The digest you specified did not match what we received."),
    "BadRequest": (400, "An error occurred when parsing the HTTP request."),
    "BucketAlreadyOwnedByYou": (409, "The bucket already exists and you own it."),
    "BucketNotEmpty": (409, "The bucket you tried to delete is not empty"),
    "ConditionalRequestConflict": (409, "A conflicting operation occurred. Try again."),
    "EntityTooSmall": (400, "Your proposed upload is smaller than the minimum allowed size"),
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
    "NoSuchBucket": (404, "The specified bucket does not exist"),
    "NoSuchKey": (404, "The specified key does not exist."),
    "NoSuchUpload": (404, "The specified upload does not exist."),
    "NotImplemented": (501, "A header or query you provided is not implemented."),
    "NotModified": (304, ""),
    "PermanentRedirect": (301, "The bucket must be addressed using the specified endpoint."),
    "PreconditionFailed": (412, "At least one of the pre-conditions you specified did not hold"),
    "RequestTimeTooSkewed": (403, "The difference between request and server time is too large."),
    "SignatureDoesNotMatch": (403, "The request signature we calculated does not match yours."),
    "SlowDown": (503, "Please reduce your request rate."),
    "XAmzContentSHA256Mismatch": (400, "x-amz-content-sha256 does not match what was computed."),
}
STATUS_LINES = {int(status): f"{int(status)} {status.phrase}".encode() for status in HTTPStatus}


class S3Error(Exception):
    """An answer other than success.

    Args:
        code: one of `ERRORS`; it fixes the status.
        message: what to say instead of the usual message.
        headers: raw header lines to add to the answer.
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
        # Only our own tests and benchmarks send this.
        return ET.fromstring(body.replace(f'xmlns="{XMLNS}"'.encode(), b""))  # noqa: S314
    except ET.ParseError:
        raise S3Error("MalformedXML") from None


@lru_cache(65536)
def iso_time(moment: datetime) -> str:
    """Render a time as listings show it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.000Z")


@lru_cache(65536)
def http_time(moment: datetime) -> bytes:
    """Render a time as HTTP headers show it."""
    return format_datetime(moment, usegmt=True).encode()


def etag_matches(condition: str, etag: str) -> bool:
    """Tell whether an If-Match style list of ETags (quoted or not, or ``*``) holds `etag`."""
    bare = etag.strip('"')
    return condition == "*" or any(part.strip().strip('"') == bare for part in condition.split(","))


# ------------------------------------------------------------------------------ the store


class Content:
    """Bytes that one or more objects of a bucket hold, counted."""

    __slots__ = ("digest", "refs", "size", "source")

    def __init__(self, digest: bytes, size: int, source: bytes | tuple[RunRecipe, int]) -> None:
        self.digest = digest
        self.size = size
        self.source = source
        self.refs = 0

    @property
    def body(self) -> bytes:
        """The bytes; those of filled run files are made anew each time, to save memory."""
        source = self.source
        if isinstance(source, bytes):
            return source
        recipe, index = source
        return recipe.body(index)

    @property
    def checksums(self) -> bytes:
        """The checksum of a filled run file as header lines: the one that boto3 would have sent."""
        if isinstance(self.source, bytes):
            return b""
        digest = base64.b64encode(CHECKSUMS[b"x-amz-checksum-crc32"](self.body))
        return b"x-amz-checksum-crc32: %b\r\nx-amz-checksum-type: FULL_OBJECT\r\n" % digest


class StoredObject:
    """One object: its content, time, ETag and stored headers."""

    __slots__ = ("checksums", "content", "given_etag", "head", "last_modified")

    def __init__(
        self,
        content: Content,
        last_modified: datetime,
        head: bytes,
        given_etag: str | None = None,
        checksums: bytes = b"",
    ) -> None:
        self.content = content
        self.last_modified = last_modified
        self.head = head
        self.given_etag = given_etag
        self.checksums = checksums

    @property
    def body(self) -> bytes:
        """The bytes of the object."""
        return self.content.body

    @property
    def size(self) -> int:
        """Length of the body in bytes."""
        return self.content.size

    @property
    def etag(self) -> str:
        """The ETag in quotes: the MD5 of the body, unless multipart or given."""
        return self.given_etag or f'"{self.content.digest.hex()}"'

    @property
    def headers(self) -> dict[str, str]:
        """The stored headers (content-type, x-amz-meta-*, ...), names in lower case."""
        lines = self.head.decode("utf-8", "replace").split("\r\n")
        return {name: value for name, _, value in (line.partition(": ") for line in lines) if name}


class SortedKeys:
    """Keys in order, in blocks: adding, removing and seeking cost O(log n) plus one short block."""

    BLOCK = 512

    def __init__(self) -> None:
        self._blocks: list[list[str]] = []
        self._firsts: list[str] = []

    def add(self, key: str) -> None:
        """Add a key that is not there yet."""
        if not self._blocks:
            self._blocks, self._firsts = [[key]], [key]
            return
        at = max(bisect_right(self._firsts, key) - 1, 0)
        block = self._blocks[at]
        insort(block, key)
        self._firsts[at] = block[0]
        if len(block) > 2 * self.BLOCK:
            tail = block[self.BLOCK :]
            del block[self.BLOCK :]
            self._blocks.insert(at + 1, tail)
            self._firsts.insert(at + 1, tail[0])

    def remove(self, key: str) -> None:
        """Remove a key that is there."""
        at = bisect_right(self._firsts, key) - 1
        block = self._blocks[at]
        del block[bisect_left(block, key)]
        if block:
            self._firsts[at] = block[0]
        else:
            del self._blocks[at], self._firsts[at]

    def since(self, cursor: str) -> Iterator[str]:
        """Iterate over the keys that are `cursor` or greater."""
        at = max(bisect_right(self._firsts, cursor) - 1, 0)
        for block in islice(self._blocks, at, None):
            start = bisect_left(block, cursor) if block[0] < cursor else 0
            yield from islice(block, start, None)


class Page(NamedTuple):
    """One page of a listing; `cursor` is where the next one starts, if there is one."""

    keys: list[str]
    common_prefixes: list[str]
    cursor: str | None


class Part(NamedTuple):
    """One uploaded part."""

    body: bytes
    digest: bytes


class Upload(NamedTuple):
    """One multipart upload under way."""

    key: str
    head: bytes
    initiated: datetime
    parts: dict[int, Part]


class Bucket:
    """Objects by key, their order, and the contents they hold."""

    def __init__(self) -> None:
        self.objects: dict[str, StoredObject] = {}
        self.keys = SortedKeys()
        self.contents: dict[bytes, Content] = {}
        self.uploads: dict[str, Upload] = {}

    def content(self, body: bytes) -> Content:
        """Find or make the content of these bytes."""
        digest = hashlib.md5(body, usedforsecurity=False).digest()
        return self.adopt(Content(digest, len(body), body))

    def adopt(self, content: Content) -> Content:
        """Find this bucket's equal of a content, which may be another bucket's."""
        known = self.contents.get(content.digest)
        if known is None:
            known = Content(content.digest, content.size, content.source)
            self.contents[content.digest] = known
        return known

    def page(self, prefix: str, delimiter: str, cursor: str, limit: int) -> Page:
        """List at most `limit` keys and common prefixes from `cursor` on."""
        keys: list[str] = []
        common: list[str] = []
        cursor = max(cursor, prefix)
        more = limit > 0
        while more:
            more = False
            for key in self.keys.since(cursor):
                if not key.startswith(prefix):
                    break
                if len(keys) + len(common) == limit:
                    return Page(keys, common, cursor)
                cut = key.find(delimiter, len(prefix)) if delimiter else -1
                if cut >= 0:
                    common.append(key[: cut + len(delimiter)])
                    cursor = common[-1] + "\U0010ffff"
                    more = True
                    break
                keys.append(key)
                cursor = key + "\0"
        return Page(keys, common, None)


class LogEntry(NamedTuple):
    """One request as it was answered; status 0 means that the connection was dropped."""

    ordinal: int
    operation: str
    bucket: str
    key: str
    status: int


class Loss(NamedTuple):
    """An overwrite or delete that removed the last copy of some content in its bucket."""

    operation: str
    bucket: str
    key: str
    etag: str
    ordinal: int


class Audit:
    """What the server saw.

    Args:
        log_size: how many requests the log keeps; 0 turns it off.
    """

    def __init__(self, log_size: int) -> None:
        self.counts: Counter[str] = Counter()
        self.lost: list[Loss] = []
        self.log: deque[LogEntry] = deque(maxlen=log_size)
        self.peak_total = 0
        self._running: Counter[str] = Counter()
        self._peaks: Counter[str] = Counter()

    @property
    def peak(self) -> dict[str, int]:
        """The most requests of each operation that were being answered at one time."""
        return {operation: max(1, self._peaks[operation]) for operation in self.counts}

    def enter(self, operation: str) -> None:
        """Note that a request that may take time has begun."""
        self._running[operation] += 1
        self._peaks[operation] = max(self._peaks[operation], self._running[operation])
        self.peak_total = max(self.peak_total, self._running.total())

    def leave(self, operation: str) -> None:
        """Note that it has ended."""
        self._running[operation] -= 1


DEFAULT_HEAD = b"content-type: binary/octet-stream\r\n"
JSON_HEAD = b"content-type: application/json\r\n"


class Store:
    """Buckets and their audit, with a synchronous Python interface.

    Args:
        buckets: names to create at once.
        clock: tells the time, aware; S3 keeps whole seconds of it.
        region: of the buckets.
        log_size: how many requests the audit's log keeps; 0 turns it off.
    """

    def __init__(
        self,
        buckets: Iterable[str] = (),
        *,
        clock: Callable[[], datetime] | None = None,
        region: str = "us-east-1",
        log_size: int = 10_000,
    ) -> None:
        self.clock = clock or (lambda: datetime.now(UTC))
        self.region = region
        self.ordinal = 0
        self._names = tuple(buckets)
        self._log_size = log_size
        self._now = datetime.fromtimestamp(0, UTC)
        self._doing = "put"
        self.clear()

    def clear(self) -> None:
        """Forget every object and the audit; the buckets given at the start stay, empty."""
        self.buckets = {name: Bucket() for name in self._names}
        self.audit = Audit(self._log_size)
        self.ordinal = 0

    def now(self) -> datetime:
        """The clock's time in whole seconds; one value object per second, to save memory."""
        now = self.clock().astimezone(UTC).replace(microsecond=0)
        if now != self._now:
            self._now = now
        return self._now

    def put(
        self,
        bucket: str,
        key: str,
        body: bytes,
        *,
        last_modified: datetime | None = None,
        etag: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> StoredObject:
        """Store an object directly, unconditionally.

        Args:
            bucket: created if absent.
            key: of the object.
            body: its bytes.
            last_modified: aware; the clock's time if None.
            etag: quoted, to differ from the MD5.
            headers: to store with it, such as ``{"content-type": "application/json"}``.

        Returns:
            The object as stored.
        """
        home = self.buckets.setdefault(bucket, Bucket())
        head = "".join(f"{k.lower()}: {v}\r\n" for k, v in (headers or {}).items()).encode()
        moment = (last_modified or self.now()).astimezone(UTC).replace(microsecond=0)
        stored = StoredObject(home.content(body), moment, head or DEFAULT_HEAD, etag)
        self._doing = "put"
        self._write(bucket, home, key, stored)
        return stored

    def get(self, bucket: str, key: str) -> StoredObject:
        """Return an object; raises KeyError if the bucket or key is absent."""
        return self.buckets[bucket].objects[key]

    def has(self, bucket: str, key: str) -> bool:
        """Tell whether an object exists."""
        return bucket in self.buckets and key in self.buckets[bucket].objects

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """List the keys that start with `prefix`, in order."""
        return self.buckets[bucket].page(prefix, "", "", 1 << 62).keys

    def delete(self, bucket: str, key: str) -> None:
        """Delete an object directly; an absent key is fine."""
        self._doing = "delete"
        self._remove(bucket, self.buckets[bucket], key)

    def fill(
        self,
        bucket: str,
        prefix: str,
        count: int,
        windows: Iterable[str | Mapping[str, str]],
        *,
        size: int = 2500,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Make `count` run files whose bodies are generated when read.

        Args:
            bucket: created if absent.
            prefix: of the keys, such as ``runs/``.
            count: how many files; they are spread evenly over the windows, in order.
            windows: for each an ISO time, or ``{"last_modified": ISO, "stamp": in the name}``.
            size: about how many bytes each body has.
            seed: varies the bodies.

        Returns:
            The exact totals, and under ``by_window`` those of each stamp.
        """
        home = self.buckets.setdefault(bucket, Bucket())
        recipes = [RunRecipe.of(window, size, seed) for window in windows]
        rows = {recipe.stamp: [0] * len(FILL_TOTALS) for recipe in recipes}
        self._doing = "fill"
        gc.disable()  # a million new objects, none of them garbage
        try:
            for index in range(count):
                recipe = recipes[index * len(recipes) // count]
                body = recipe.body(index)
                digest = hashlib.md5(body, usedforsecurity=False).digest()
                content = home.adopt(Content(digest, len(body), (recipe, index)))
                stored = StoredObject(content, recipe.last_modified, JSON_HEAD)
                self._write(bucket, home, f"{prefix}{recipe.name(index)}", stored)
                made = (1, len(body), *recipe.counts(index))
                rows[recipe.stamp] = list(map(add, rows[recipe.stamp], made))
        finally:
            gc.enable()
        if count >= 100_000:
            gc.freeze()  # nor worth looking at again
        whole = dict(zip(FILL_TOTALS, map(sum, zip(*rows.values(), strict=True)), strict=True))
        by_window = {stamp: dict(zip(FILL_TOTALS, row, strict=True)) for stamp, row in rows.items()}
        return {**whole, "by_window": by_window}

    def summary(self) -> dict[str, Any]:
        """Digest every bucket by first path segment: the number of keys, and two hashes.

        ``digest`` covers keys with their ETags; ``content`` covers the bodies alone, whatever
        their names and order, so that it is the same before and after a move.
        """
        return {name: self._summarise(bucket) for name, bucket in self.buckets.items()}

    def _summarise(self, bucket: Bucket) -> dict[str, dict[str, Any]]:
        found: dict[str, tuple[list[int], Any]] = {}
        for key in bucket.keys.since(""):
            head, slash, _ = key.partition("/")
            sums, digest = found.setdefault(head + slash, ([0, 0, 0], hashlib.sha256()))
            stored = bucket.objects[key]
            digest.update(f"{key}\0{stored.etag}\n".encode())
            sums[0] += 1
            sums[1] += stored.size
            sums[2] += int.from_bytes(stored.content.digest, "big")
        return {
            prefix: {
                "keys": sums[0],
                "bytes": sums[1],
                "digest": digest.hexdigest(),
                "content": f"{sums[2] % (1 << 128):032x}",
            }
            for prefix, (sums, digest) in found.items()
        }

    def _write(self, name: str, bucket: Bucket, key: str, stored: StoredObject) -> None:
        stored.content.refs += 1
        old = bucket.objects.get(key)
        bucket.objects[key] = stored
        if old is None:
            bucket.keys.add(key)
        else:
            self._release(name, bucket, key, old)

    def _remove(self, name: str, bucket: Bucket, key: str) -> None:
        old = bucket.objects.pop(key, None)
        if old is not None:
            bucket.keys.remove(key)
            self._release(name, bucket, key, old)

    def _release(self, name: str, bucket: Bucket, key: str, old: StoredObject) -> None:
        content = old.content
        content.refs -= 1
        if not content.refs:
            del bucket.contents[content.digest]
            self.audit.lost.append(Loss(self._doing, name, key, old.etag, self.ordinal))


# ------------------------------------------------------------------------------ run files


FILL_TOTALS = ("files", "bytes", "total_opportunities", "matches_found", "no_matches", "errors")
_RUN = (
    b'{"run_id": "%b-%06d", "timestamp": "%b", "total_opportunities": %d, "matches_found": %d, '
    b'"no_matches": %d, "errors": %d, "processing_time_seconds": %d.%03d, "top_matches": ['
)
_MATCH = (
    b'{"opportunity_id": "DARPA-PS-25-%02d-%06d", "title": "Resilient autonomous logistics", '
    b'"agency": "Defense Advanced Research Projects Agency", "match_score": 0.%04d, '
    b'"reasons": ["past performance", "naics 541715", "set-aside"]}'
)


@dataclass(frozen=True, slots=True)
class RunRecipe:
    """Makes the run files of one window; the same index always gives the same bytes."""

    stamp: str
    last_modified: datetime
    template: bytes
    matches: int
    seed: int

    @classmethod
    def of(cls, window: str | Mapping[str, str], size: int, seed: int) -> RunRecipe:
        """Read one entry of a fill's windows."""
        given = {"last_modified": window} if isinstance(window, str) else window
        moment = datetime.fromisoformat(given["last_modified"]).astimezone(UTC)
        stamp = given.get("stamp") or moment.strftime("%Y%m%dt%H%MZ")
        matches = min(10, max(1, (size - len(_RUN)) // len(_MATCH)))
        template = _RUN + b", ".join([_MATCH] * matches) + b'], "engine": "matcher 4.2"}'
        recipe = cls(stamp, moment.replace(microsecond=0), template, matches, seed)
        padding = _filler(size - len(recipe.body(0)))
        return replace(recipe, template=template[:-1] + padding + b"}")

    def name(self, index: int) -> str:
        """The file's name."""
        return f"{self.stamp}_DARPA-PS-25-32-{index:06d}.json"

    def counts(self, index: int) -> tuple[int, int, int, int]:
        """The file's opportunities, matches, non-matches and errors."""
        noise = self._noise(index)
        total = 40 + noise % 160
        matches = (noise >> 8) % (total // 4)
        errors = (noise >> 16) % 50 // 48
        return total, matches, total - matches - errors, errors

    def body(self, index: int) -> bytes:
        """The file's bytes."""
        noise = self._noise(index)
        scores: list[int] = []
        for place in range(self.matches):
            mixed = (noise * (2 * place + 3)) & 0xFFFFFFFF
            scores += (mixed % 90, mixed % 1000000, mixed >> 19)
        timestamp = iso_time(self.last_modified).encode()
        head = (self.stamp.encode(), index, timestamp, *self.counts(index))
        return self.template % (*head, noise % 90, noise % 997, *scores)

    def _noise(self, index: int) -> int:
        return ((index + 1) * 2654435761 + self.seed * 40503) & 0xFFFFFFFF


def _filler(size: int) -> bytes:
    """Return a field of this size that nobody reads: a log, as runs keep them."""
    field, line = b', "log": [%b]', b'"compared with one more solicitation: nothing to report"'
    lines = (size - len(field)) // (len(line) + 1)
    text = field.replace(b"%b", b",".join([line] * lines)) if lines > 0 else b""
    return text + b" " * (size - len(text))


# ------------------------------------------------------------------------------ requests


@dataclass(slots=True)
class Request:
    """One request as it arrived; header names are in lower case."""

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
# The rest are marks of operations that this server does not know: they must not pass for others.
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


@lru_cache(1024)
def host_label(host: bytes) -> str:
    """Return the bucket that a Host header may name: the first label, unless it is an address."""
    name = host.decode("latin-1").partition(":")[0]
    label, dot, rest = name.partition(".")
    return "" if not dot or rest.replace(".", "").isdigit() else label


_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<access>[^/]+)/(?P<date>\d{8})/(?P<region>[^/]+)/s3/"
    r"aws4_request,\s*SignedHeaders=(?P<signed>[^,]+),\s*Signature=(?P<signature>[0-9a-f]{64})"
).fullmatch


@lru_cache(256)
def signing_key(secret: str, date: str, region: str) -> bytes:
    """Derive the SigV4 key of one day, region and S3."""
    key = f"AWS4{secret}".encode()
    for step in (date, region, "s3", "aws4_request"):
        key = hmac.digest(key, step.encode(), "sha256")
    return key


def canonical_request(request: Request, signed: list[str]) -> str:
    """Render what SigV4 signs, by the rules for S3: the path is encoded once, never normalised."""
    path, _, query = request.target.decode("latin-1").partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    encoded = sorted((quote(name, safe=""), quote(value, safe="")) for name, value in pairs)
    lines = [
        request.method,
        quote(unquote_to_bytes(path), safe="/"),
        "&".join(f"{name}={value}" for name, value in encoded),
        *(f"{name}:{' '.join((request.header(name) or '').split())}" for name in signed),
        "",
        ";".join(signed),
        request.header("x-amz-content-sha256") or "",
    ]
    return "\n".join(lines)


def verify_signature(
    request: Request, credentials: Mapping[str, str], region: str, now: datetime
) -> None:
    """Check a request's SigV4 header, its time, and its payload hash when it gives one.

    Raises:
        S3Error: if anything is amiss.
    """
    found = _AUTHORIZATION(request.header("authorization") or "")
    if found is None:
        raise S3Error("AccessDenied")
    if found["access"] not in credentials:
        raise S3Error("InvalidAccessKeyId")
    if found["region"] != region:
        detail = f"<Region>{region}</Region>"
        raise S3Error("AuthorizationHeaderMalformed", detail=detail)
    stamp = request.header("x-amz-date") or ""
    try:
        sent = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise S3Error("AccessDenied", "A valid x-amz-date header is required") from None
    if abs(now - sent) > MAX_SKEW:
        raise S3Error("RequestTimeTooSkewed", detail=f"<ServerTime>{iso_time(now)}</ServerTime>")
    signed = found["signed"].split(";")
    needed = {n.decode() for n in request.headers if n.startswith(b"x-amz-")} | {"host"}
    if not needed.issubset(signed):
        raise S3Error("AccessDenied", "There were headers present which were not signed")
    digest = hashlib.sha256(canonical_request(request, signed).encode()).hexdigest()
    scope = f"{found['date']}/{region}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}"
    key = signing_key(credentials[found["access"]], found["date"], region)
    expected = hmac.digest(key, text.encode(), "sha256").hex()
    if not hmac.compare_digest(expected, found["signature"]) or stamp[:8] != found["date"]:
        raise S3Error("SignatureDoesNotMatch")
    _verify_payload(request)


def _verify_payload(request: Request) -> None:
    given = request.header("x-amz-content-sha256")
    if given is None:
        raise S3Error("InvalidRequest", "Missing required header: x-amz-content-sha256")
    if given == "UNSIGNED-PAYLOAD" or given.startswith("STREAMING-"):
        return
    if given != hashlib.sha256(request.body).hexdigest():
        raise S3Error("XAmzContentSHA256Mismatch")


def decode_aws_chunked(body: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """Undo the aws-chunked encoding.

    Returns:
        The payload, and the trailers that followed it.
    """
    parts: list[bytes] = []
    at = 0
    try:
        while True:
            end = body.index(b"\r\n", at)
            size = int(body[at:end].partition(b";")[0], 16)
            at = end + 2
            if size == 0:
                break
            parts.append(body[at : at + size])
            at += size + 2
    except ValueError:
        raise S3Error("IncompleteBody") from None
    lines = (line.partition(b":") for line in body[at:].split(b"\r\n"))
    return b"".join(parts), {name.lower(): value.strip() for name, colon, value in lines if colon}


# CRC32C and CRC64NVME are taken on trust: the standard library has neither.
CHECKSUMS: dict[bytes, Callable[[bytes], bytes]] = {
    b"x-amz-checksum-crc32": lambda body: zlib.crc32(body).to_bytes(4, "big"),
    b"x-amz-checksum-sha1": lambda body: hashlib.sha1(body, usedforsecurity=False).digest(),
    b"x-amz-checksum-sha256": lambda body: hashlib.sha256(body).digest(),
}
_KEPT = frozenset(
    (
        b"cache-control",
        b"content-disposition",
        b"content-encoding",
        b"content-language",
        b"content-type",
        b"expires",
    )
)


def read_payload(request: Request) -> tuple[bytes, bytes]:
    """Decode an upload's body and check every digest that came with it.

    Returns:
        The payload, and the checksums as header lines.
    """
    headers, body = request.headers, request.body
    if headers.get(b"x-amz-content-sha256", b"").startswith(b"STREAMING-"):
        body, trailers = decode_aws_chunked(body)
        if int(headers.get(b"x-amz-decoded-content-length", len(body))) != len(body):
            raise S3Error("IncompleteBody")
        headers = headers | trailers
    given_md5 = headers.get(b"content-md5")
    if given_md5 is not None:
        _check_digest(given_md5, hashlib.md5(body, usedforsecurity=False).digest())
    checksums = b""
    for name, value in headers.items():
        if name.startswith(b"x-amz-checksum-") and name != b"x-amz-checksum-type":
            compute = CHECKSUMS.get(name)
            if compute is not None:
                _check_digest(value, compute(body))
            checksums += b"%b: %b\r\n" % (name, value)
    return body, checksums


def _check_digest(given: bytes, actual: bytes) -> None:
    try:
        decoded = base64.b64decode(given, validate=True)
    except ValueError:
        raise S3Error("InvalidDigest") from None
    if decoded != actual:
        raise S3Error("BadDigest")


def kept_headers(request: Request) -> bytes:
    """Render the headers of an upload that are stored with the object."""
    kept = {
        name: value
        for name, value in request.headers.items()
        if name in _KEPT or name.startswith(b"x-amz-meta-")
    }
    codings = [coding.strip() for coding in kept.pop(b"content-encoding", b"").split(b",")]
    coding = b",".join(coding for coding in codings if coding not in (b"", b"aws-chunked"))
    if coding:
        kept[b"content-encoding"] = coding
    kept.setdefault(b"content-type", b"binary/octet-stream")
    return b"".join(b"%b: %b\r\n" % item for item in kept.items())


# ------------------------------------------------------------------------------ faults

Guard = Literal["honour", "ignore", "refuse", "always_fail"]
OnRequest = Callable[[Request], Awaitable[None] | None]


@dataclass(slots=True)
class Guards:
    """What becomes of each condition, to imitate lesser stores.

    ``honour`` it, ``ignore`` it silently, ``refuse`` it (501 NotImplemented), or ``always_fail``
    (412).
    """

    put_if_absent: Guard = "honour"
    put_if_match: Guard = "honour"
    copy_source_if_match: Guard = "honour"
    copy_if_absent: Guard = "honour"
    copy_if_match: Guard = "honour"
    delete_etag: Guard = "honour"
    complete: Guard = "honour"


@dataclass(slots=True)
class Pause:
    """A place to stop at: wait for `reached`, look around, then set `release`.

    Args:
        at: the ordinal of a request, or a predicate that chooses requests.
        executed: stop after executing, before answering.
    """

    at: int | Callable[[Request], bool]
    executed: bool = False
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self, request: Request, *, executed: bool) -> None:
        """Stop if this is the place."""
        chosen = request.ordinal == self.at if isinstance(self.at, int) else self.at(request)
        if chosen and executed == self.executed:
            self.reached.set()
            await self.release.wait()


@dataclass(slots=True)
class Faults:
    """What goes wrong. Every switch stands alone, combines with others, and may change any time.

    Probabilities are from 0 to 1 and drawn per request from `random`; seed that to repeat a run.
    """

    latency: float = 0.0
    """Seconds before each request is executed."""
    slow_keys: dict[str, float | None] = field(default_factory=dict)
    """Seconds before requests for a key; None hangs for ever."""
    operations: Collection[str] | None = None
    """If given, the probabilities below apply to these operations only."""
    slow_down: float = 0.0
    """Answered 503 SlowDown, not executed."""
    internal_error: float = 0.0
    """Answered 500 InternalError, not executed."""
    conflict: float = 0.0
    """Conditional writes answered 409 ConditionalRequestConflict, not executed."""
    reset: float = 0.0
    """Connection reset, not executed."""
    lose_response: float = 0.0
    """Executed, then the connection reset in place of the response."""
    truncate: float = 0.0
    """Executed, and half of the response's body sent before the connection is closed."""
    copy_error: float = 0.0
    """CopyObject answered 200 with an InternalError in its body, not executed."""
    delete_error: float = 0.0
    """Per key of DeleteObjects: an InternalError inside the 200, not deleted."""
    dies_at: int | None = None
    """From this ordinal on, connections are closed without a response."""
    dies_executing: bool = False
    """The request that it dies at is executed all the same."""
    pause_at: Pause | None = None
    redirect_region: str | None = None
    """Answer 301 PermanentRedirect, naming this region."""
    denied: Callable[[str, str], bool] | None = None
    """Given operation and key, tells whether to answer 403 AccessDenied."""
    allow_small_parts: bool = False
    """Complete multipart uploads whose parts are below 5 MiB."""
    guards: Guards = field(default_factory=Guards)
    random: random.Random = field(default_factory=lambda: random.Random(0))

    def delays(self) -> bool:
        """Tell whether any switch is on that needs more than an immediate answer."""
        return bool(
            self.latency
            or self.slow_keys
            or self.slow_down
            or self.internal_error
            or self.reset
            or self.lose_response
            or self.truncate
            or self.dies_at is not None
            or self.pause_at is not None
        )

    def strikes(self, request: Request, probability: float) -> bool:
        """Draw whether a fault of this probability strikes this request."""
        if not probability or (self.operations and request.operation not in self.operations):
            return False
        return self.random.random() < probability

    def update(self, switches: Mapping[str, Any]) -> None:
        """Set switches from JSON; ``guards`` is an object of its own, ``seed`` seeds the random.

        Raises:
            ValueError: if a name or value is not known.
        """
        for name, value in switches.items():
            match name:
                case "seed":
                    self.random.seed(value)
                case "guards":
                    self._update_guards(value)
                case "random" | "denied" | "pause_at":
                    raise ValueError(f"{name} can only be set in Python")
                case _ if name in self.__slots__:
                    setattr(self, name, value)
                case _:
                    raise ValueError(f"unknown switch {name!r}")

    def _update_guards(self, values: Mapping[str, Guard]) -> None:
        for name, value in values.items():
            if name not in Guards.__slots__ or value not in get_args(Guard):
                raise ValueError(f"unknown guard {name!r}: {value!r}")
            setattr(self.guards, name, value)


# ------------------------------------------------------------------------------ operations


class Operations(Store):
    """What S3 answers: a request in, the bytes of a response out, at once."""

    credentials: Mapping[str, str] | None
    faults: Faults
    failures: list[BaseException]

    # -- reading a request, and answering

    def read(self, method: str, target: bytes, headers: dict[bytes, bytes], body: bytes) -> Request:
        """Make sense of a request and number it; a path that is not UTF-8 names no bucket."""
        raw, _, raw_query = target.partition(b"?")
        try:
            path = (unquote_to_bytes(raw) if b"%" in raw else raw).decode()
        except UnicodeDecodeError:
            path = ""
        query = dict(parse_qsl(raw_query.decode(), keep_blank_values=True)) if raw_query else {}
        if path.startswith(CONTROL):
            return Request(0, "control", method, "", path, query, target, headers, body)
        label = host_label(headers.get(b"host", b""))
        if label and (label in self.buckets or path == "/"):
            bucket, key = label, path[1:]
        else:
            bucket, _, key = path[1:].partition("/")
        operation = name_operation(method, key, query, headers) if bucket else ""
        self.ordinal += 1
        self.audit.counts[operation or "unknown"] += 1
        return Request(self.ordinal, operation, method, bucket, key, query, target, headers, body)

    def answer(self, request: Request) -> bytes:
        """Execute a request and log it."""
        self._doing = request.operation
        try:
            response = self._execute(request)
        except S3Error as error:
            response = self.refuse(request, error)
        except Exception as failure:  # noqa: BLE001 (raised again when the server is left)
            self.failures.append(failure)
            response = self.refuse(request, S3Error("InternalError", repr(failure)))
        self.note(request, int(response[9:12]))
        return response

    def note(self, request: Request, status: int) -> None:
        """Log a request; status 0 means no response."""
        if self._log_size:
            entry = LogEntry(
                request.ordinal, request.operation, request.bucket, request.key, status
            )
            self.audit.log.append(entry)

    def respond(
        self,
        request: Request,
        status: int,
        headers: bytes = b"",
        body: bytes = b"",
        length: int | None = None,
    ) -> bytes:
        """Assemble a response; `length` is for a HEAD, whose body is not sent."""
        if status not in (204, 304):
            headers += b"content-length: %d\r\n" % (len(body) if length is None else length)
        return b"HTTP/1.1 %b\r\nx-amz-request-id: %016X\r\ndate: %b\r\n%b\r\n%b" % (
            STATUS_LINES[status],
            request.ordinal,
            http_time(self.now()),
            headers,
            body,
        )

    def refuse(self, request: Request, error: S3Error) -> bytes:
        """Assemble an error response."""
        body = b""
        if request.method != "HEAD" and error.status != 304:
            body = self._error_body(request, error)
        headers = error.headers + (b"content-type: application/xml\r\n" if body else b"")
        return self.respond(request, error.status, headers, body)

    def _error_body(self, request: Request, error: S3Error) -> bytes:
        path = escape(request.target.decode("latin-1").partition("?")[0])
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f"<Error><Code>{error.code}</Code><Message>{escape(error.message)}</Message>"
            f"{error.detail}<Resource>{path}</Resource>"
            f"<RequestId>{request.ordinal:016X}</RequestId></Error>"
        ).encode()

    def _xml(self, request: Request, root: str, inner: str) -> bytes:
        return self.respond(request, 200, b"content-type: application/xml\r\n", xml(root, inner))

    def _execute(self, request: Request) -> bytes:
        operation, faults = request.operation, self.faults
        if self.credentials is not None:
            verify_signature(request, self.credentials, self.region, self.now())
        if faults.redirect_region is not None and operation != "GetBucketLocation":
            raise self._redirect(request, faults.redirect_region)
        self._permit(operation, request.key)
        handler = HANDLERS.get(operation)
        if handler is None:
            raise S3Error("NotImplemented" if request.bucket else "InvalidURI")
        return handler(self, request)

    def _redirect(self, request: Request, region: str) -> S3Error:
        detail = (
            f"<Endpoint>{escape(request.bucket)}.s3.{region}.amazonaws.com</Endpoint>"
            f"<Bucket>{escape(request.bucket)}</Bucket>"
        )
        header = f"x-amz-bucket-region: {region}\r\n".encode()
        return S3Error("PermanentRedirect", headers=header, detail=detail)

    def _permit(self, operation: str, key: str) -> None:
        if self.faults.denied is not None and self.faults.denied(operation, key):
            raise S3Error("AccessDenied")

    def _bucket(self, name: str) -> Bucket:
        try:
            return self.buckets[name]
        except KeyError:
            detail = f"<BucketName>{escape(name)}</BucketName>"
            raise S3Error("NoSuchBucket", detail=detail) from None

    def _object(self, bucket: str, key: str) -> StoredObject:
        found = self._bucket(bucket).objects.get(key)
        if found is None:
            raise S3Error("NoSuchKey", detail=f"<Key>{escape(key)}</Key>")
        return found

    # -- conditions

    def _judge(self, guard: Guard, *, holds: bool) -> None:
        if guard == "refuse":
            raise S3Error("NotImplemented")
        if guard == "always_fail" or (guard == "honour" and not holds):
            raise S3Error("PreconditionFailed")

    def _check_match(self, guard: Guard, condition: str, old: StoredObject | None) -> None:
        """Check an If-Match of a write, which an absent key answers with 404."""
        if old is None and guard == "honour":
            raise S3Error("NoSuchKey")
        self._judge(guard, holds=old is not None and etag_matches(condition, old.etag))

    def _check_write(self, request: Request, absent: Guard, match: Guard) -> None:
        old = self._bucket(request.bucket).objects.get(request.key)
        if_none_match, if_match = request.header("if-none-match"), request.header("if-match")
        if if_none_match is None and if_match is None:
            return
        if self.faults.strikes(request, self.faults.conflict):
            raise S3Error("ConditionalRequestConflict")
        if if_none_match is not None:
            if if_none_match != "*":
                raise S3Error("NotImplemented", "If-None-Match of a write must be *")
            self._judge(absent, holds=old is None)
        if if_match is not None:
            self._check_match(match, if_match, old)

    # -- buckets

    def _create_bucket(self, request: Request) -> bytes:
        if request.bucket in self.buckets:
            raise S3Error("BucketAlreadyOwnedByYou")
        self.buckets[request.bucket] = Bucket()
        return self.respond(request, 200, f"location: /{request.bucket}\r\n".encode())

    def _head_bucket(self, request: Request) -> bytes:
        self._bucket(request.bucket)
        return self.respond(request, 200, f"x-amz-bucket-region: {self.region}\r\n".encode())

    def _delete_bucket(self, request: Request) -> bytes:
        if self._bucket(request.bucket).objects:
            raise S3Error("BucketNotEmpty")
        del self.buckets[request.bucket]
        return self.respond(request, 204)

    def _get_bucket_location(self, request: Request) -> bytes:
        self._bucket(request.bucket)
        named = "" if self.region == "us-east-1" else self.region
        return self._xml(request, "LocationConstraint", named)

    def _list_objects(self, request: Request) -> bytes:
        bucket, query = self._bucket(request.bucket), request.query
        encode = encode_url if query.get("encoding-type") == "url" else escape
        token = query.get("continuation-token")
        start_after = query.get("start-after", "")
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        try:
            limit = min(int(query.get("max-keys", MAX_KEYS)), MAX_KEYS)
            cursor = start_after and start_after + "\0"
            if token is not None:
                cursor = base64.urlsafe_b64decode(token).decode("utf-8", "surrogatepass")
        except ValueError:
            raise S3Error("InvalidArgument") from None
        page = bucket.page(prefix, delimiter, cursor, limit)
        truncated = page.cursor is not None
        inner = [f"<Name>{request.bucket}</Name><Prefix>{encode(prefix)}</Prefix>"]
        inner.append(f"<KeyCount>{len(page.keys) + len(page.common_prefixes)}</KeyCount>")
        inner.append(
            f"<MaxKeys>{limit}</MaxKeys><IsTruncated>{str(truncated).lower()}</IsTruncated>"
        )
        if delimiter:
            inner.append(f"<Delimiter>{encode(delimiter)}</Delimiter>")
        if start_after:
            inner.append(f"<StartAfter>{encode(start_after)}</StartAfter>")
        if encode is encode_url:
            inner.append("<EncodingType>url</EncodingType>")
        if token is not None:
            inner.append(f"<ContinuationToken>{escape(token)}</ContinuationToken>")
        if page.cursor is not None:
            raw = page.cursor.encode("utf-8", "surrogatepass")
            following = base64.urlsafe_b64encode(raw).decode()
            inner.append(f"<NextContinuationToken>{following}</NextContinuationToken>")
        for key in page.keys:
            stored = bucket.objects[key]
            inner.append(
                f"<Contents><Key>{encode(key)}</Key>"
                f"<LastModified>{iso_time(stored.last_modified)}</LastModified>"
                f"<ETag>{escape(stored.etag)}</ETag><Size>{stored.content.size}</Size>"
                "<StorageClass>STANDARD</StorageClass></Contents>"
            )
        inner += [
            f"<CommonPrefixes><Prefix>{encode(common)}</Prefix></CommonPrefixes>"
            for common in page.common_prefixes
        ]
        about = f"content-type: application/xml\r\nx-amz-bucket-region: {self.region}\r\n"
        return self.respond(request, 200, about.encode(), xml("ListBucketResult", "".join(inner)))

    # -- objects

    def _get_object(self, request: Request) -> bytes:
        stored, headers = self._object(request.bucket, request.key), request.headers
        if_match, if_none_match = request.header("if-match"), request.header("if-none-match")
        etag = stored.etag
        if if_match is not None and not etag_matches(if_match, etag):
            raise S3Error("PreconditionFailed")
        about = b"etag: %b\r\nlast-modified: %b\r\n" % (
            etag.encode(),
            http_time(stored.last_modified),
        )
        if if_none_match is not None and etag_matches(if_none_match, etag):
            raise S3Error("NotModified", headers=about)
        about += b"accept-ranges: bytes\r\n" + stored.head
        size = stored.size
        part = parse_range(headers[b"range"].decode(), size) if b"range" in headers else None
        if part is not None:
            about += b"content-range: bytes %d-%d/%d\r\n" % (part.start, part.stop - 1, size)
            size = part.stop - part.start
        elif b"x-amz-checksum-mode" in headers:
            about += stored.checksums or stored.content.checksums
        status = 200 if part is None else 206
        if request.method == "HEAD":
            return self.respond(request, status, about, length=size)
        body = stored.content.body
        return self.respond(request, status, about, body if part is None else body[part])

    def _put_object(self, request: Request) -> bytes:
        guards = self.faults.guards
        bucket = self._bucket(request.bucket)
        if len(request.key.encode()) > MAX_KEY_BYTES:
            raise S3Error("KeyTooLongError")
        body, checksums = read_payload(request)
        self._check_write(request, guards.put_if_absent, guards.put_if_match)
        head = kept_headers(request)
        stored = StoredObject(bucket.content(body), self.now(), head, checksums=checksums)
        self._write(request.bucket, bucket, request.key, stored)
        return self.respond(request, 200, f"etag: {stored.etag}\r\n".encode() + checksums)

    def _copy_source(self, request: Request) -> StoredObject:
        """Find the source of a copy and check the conditions on it."""
        header = unquote(request.headers[b"x-amz-copy-source"].decode().partition("?")[0])
        name, _, key = header.removeprefix("/").partition("/")
        self._permit("GetObject", key)
        source = self._object(name, key)
        if_match = request.header("x-amz-copy-source-if-match")
        if_none_match = request.header("x-amz-copy-source-if-none-match")
        if if_match is not None:
            guard = self.faults.guards.copy_source_if_match
            self._judge(guard, holds=etag_matches(if_match, source.etag))
        if if_none_match is not None and etag_matches(if_none_match, source.etag):
            raise S3Error("PreconditionFailed")
        return source

    def _copy_object(self, request: Request) -> bytes:
        guards = self.faults.guards
        bucket = self._bucket(request.bucket)
        if len(request.key.encode()) > MAX_KEY_BYTES:
            raise S3Error("KeyTooLongError")
        source = self._copy_source(request)
        self._check_write(request, guards.copy_if_absent, guards.copy_if_match)
        replaces = request.headers.get(b"x-amz-metadata-directive") == b"REPLACE"
        if source is bucket.objects.get(request.key) and not replaces:
            raise S3Error("InvalidRequest", "This copy request changes nothing.")
        if self.faults.strikes(request, self.faults.copy_error):
            error = self._error_body(request, S3Error("InternalError"))
            return self.respond(request, 200, b"content-type: application/xml\r\n", error)
        head = kept_headers(request) if replaces else source.head
        content = bucket.adopt(source.content)
        stored = StoredObject(content, self.now(), head, checksums=source.checksums)
        self._write(request.bucket, bucket, request.key, stored)
        return self._xml(request, "CopyObjectResult", _copied(stored.etag, stored.last_modified))

    def _delete_object(self, request: Request) -> bytes:
        bucket, condition = self._bucket(request.bucket), request.header("if-match")
        if condition is not None:
            old = bucket.objects.get(request.key)
            self._check_match(self.faults.guards.delete_etag, condition, old)
        self._remove(request.bucket, bucket, request.key)
        return self.respond(request, 204)

    def _delete_objects(self, request: Request) -> bytes:
        bucket = self._bucket(request.bucket)
        digests = (b"content-md5", b"x-amz-checksum-")
        if not any(name.startswith(digests) for name in request.headers):
            raise S3Error("InvalidRequest", "Missing required header: Content-MD5")
        root = parse_xml(read_payload(request)[0])
        wanted = root.findall("Object")
        if root.tag != "Delete" or not 0 < len(wanted) <= MAX_KEYS:
            raise S3Error("MalformedXML")
        quiet = root.findtext("Quiet") == "true"
        results: list[str] = []
        for element in wanted:
            key = element.findtext("Key") or ""
            try:
                self._delete_one(request, bucket, key, element.findtext("ETag"))
            except S3Error as error:
                results.append(
                    f"<Error><Key>{escape(key)}</Key><Code>{error.code}</Code>"
                    f"<Message>{escape(error.message)}</Message></Error>"
                )
            else:
                if not quiet:
                    results.append(f"<Deleted><Key>{escape(key)}</Key></Deleted>")
        return self._xml(request, "DeleteResult", "".join(results))

    def _delete_one(self, request: Request, bucket: Bucket, key: str, etag: str | None) -> None:
        self._permit("DeleteObject", key)
        if self.faults.strikes(request, self.faults.delete_error):
            raise S3Error("InternalError")
        if etag is not None:
            self._check_match(self.faults.guards.delete_etag, etag, bucket.objects.get(key))
        self._remove(request.bucket, bucket, key)

    # -- multipart

    def _upload(self, request: Request) -> tuple[str, Upload]:
        upload_id = request.query["uploadId"]
        upload = self._bucket(request.bucket).uploads.get(upload_id)
        if upload is None or upload.key != request.key:
            raise S3Error("NoSuchUpload")
        return upload_id, upload

    def _create_upload(self, request: Request) -> bytes:
        uploads = self._bucket(request.bucket).uploads
        upload_id = f"upload-{request.ordinal}"
        uploads[upload_id] = Upload(request.key, kept_headers(request), self.now(), {})
        inner = (
            f"<Bucket>{request.bucket}</Bucket><Key>{escape(request.key)}</Key>"
            f"<UploadId>{upload_id}</UploadId>"
        )
        return self._xml(request, "InitiateMultipartUploadResult", inner)

    def _store_part(self, request: Request, upload: Upload, body: bytes) -> str:
        number = request.query.get("partNumber", "")
        if not number.isdigit() or not 1 <= int(number) <= 10_000:
            raise S3Error("InvalidArgument", "Part number must be from 1 to 10000")
        digest = hashlib.md5(body, usedforsecurity=False).digest()
        upload.parts[int(number)] = Part(body, digest)
        return f'"{digest.hex()}"'

    def _upload_part(self, request: Request) -> bytes:
        _, upload = self._upload(request)
        body, checksums = read_payload(request)
        etag = self._store_part(request, upload, body)
        return self.respond(request, 200, f"etag: {etag}\r\n".encode() + checksums)

    def _upload_part_copy(self, request: Request) -> bytes:
        _, upload = self._upload(request)
        source = self._copy_source(request)
        wanted = request.header("x-amz-copy-source-range")
        part = parse_range(wanted, source.size) if wanted else None
        etag = self._store_part(request, upload, source.body[part or slice(None)])
        return self._xml(request, "CopyPartResult", _copied(etag, self.now()))

    def _complete_upload(self, request: Request) -> bytes:
        upload_id, upload = self._upload(request)
        parts = self._chosen_parts(upload, parse_xml(request.body))
        guard = self.faults.guards.complete
        self._check_write(request, guard, guard)
        bucket = self._bucket(request.bucket)
        digests = b"".join(part.digest for part in parts)
        etag = f'"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"'
        content = bucket.content(b"".join(part.body for part in parts))
        stored = StoredObject(content, self.now(), upload.head, etag)
        self._write(request.bucket, bucket, request.key, stored)
        del bucket.uploads[upload_id]
        inner = (
            f"<Bucket>{request.bucket}</Bucket><Key>{escape(request.key)}</Key>"
            f"<ETag>{escape(etag)}</ETag>"
        )
        return self._xml(request, "CompleteMultipartUploadResult", inner)

    def _chosen_parts(self, upload: Upload, root: ET.Element) -> list[Part]:
        listed = [
            (int(part.findtext("PartNumber") or 0), (part.findtext("ETag") or "").strip('"'))
            for part in root.findall("Part")
        ]
        numbers = [number for number, _ in listed]
        if not listed:
            raise S3Error("MalformedXML")
        if numbers != sorted(set(numbers)):
            raise S3Error("InvalidPartOrder")
        parts = [upload.parts.get(number) for number in numbers]
        chosen = [part for part in parts if part is not None]
        if [part.digest.hex() for part in chosen] != [etag for _, etag in listed]:
            raise S3Error("InvalidPart")
        small = any(len(part.body) < MIN_PART_BYTES for part in chosen[:-1])
        if small and not self.faults.allow_small_parts:
            raise S3Error("EntityTooSmall")
        return chosen

    def _abort_upload(self, request: Request) -> bytes:
        upload_id, _ = self._upload(request)
        del self.buckets[request.bucket].uploads[upload_id]
        return self.respond(request, 204)

    def _list_uploads(self, request: Request) -> bytes:
        uploads = self._bucket(request.bucket).uploads
        encode = encode_url if request.query.get("encoding-type") == "url" else escape
        prefix = request.query.get("prefix", "")
        found = sorted(
            (upload.key, name, upload.initiated)
            for name, upload in uploads.items()
            if upload.key.startswith(prefix)
        )
        inner = f"<Bucket>{request.bucket}</Bucket><Prefix>{encode(prefix)}</Prefix>"
        inner += "<EncodingType>url</EncodingType>" if encode is encode_url else ""
        inner += "<IsTruncated>false</IsTruncated>" + "".join(
            f"<Upload><Key>{encode(key)}</Key><UploadId>{name}</UploadId>"
            f"<Initiated>{iso_time(initiated)}</Initiated></Upload>"
            for key, name, initiated in found
        )
        return self._xml(request, "ListMultipartUploadsResult", inner)


HANDLERS: dict[str, Callable[[Operations, Request], bytes]] = {
    "CreateBucket": Operations._create_bucket,
    "HeadBucket": Operations._head_bucket,
    "DeleteBucket": Operations._delete_bucket,
    "GetBucketLocation": Operations._get_bucket_location,
    "ListObjectsV2": Operations._list_objects,
    "ListMultipartUploads": Operations._list_uploads,
    "GetObject": Operations._get_object,
    "HeadObject": Operations._get_object,
    "PutObject": Operations._put_object,
    "CopyObject": Operations._copy_object,
    "DeleteObject": Operations._delete_object,
    "DeleteObjects": Operations._delete_objects,
    "CreateMultipartUpload": Operations._create_upload,
    "UploadPart": Operations._upload_part,
    "UploadPartCopy": Operations._upload_part_copy,
    "CompleteMultipartUpload": Operations._complete_upload,
    "AbortMultipartUpload": Operations._abort_upload,
}


def _copied(etag: str, moment: datetime) -> str:
    return f"<LastModified>{iso_time(moment)}</LastModified><ETag>{escape(etag)}</ETag>"


_RANGE = re.compile(r"bytes=(\d*)-(\d*)").fullmatch


def parse_range(header: str, size: int) -> slice | None:
    """Read a Range; what is not a single byte range is None: S3 ignores it.

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


# ------------------------------------------------------------------------------ the server


class DropError(Exception):
    """The connection is to be dropped; `reset` says whether with a TCP reset."""

    def __init__(self, *, reset: bool) -> None:
        super().__init__()
        self.reset = reset


class Connection(asyncio.Protocol):
    """One client connection: parses requests, answers them in order.

    A request that can be answered at once is; when one has to wait, it and those pipelined behind
    it are queued for a task.
    """

    def __init__(self, server: S3Server) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._out: list[bytes] = []
        self._backlog: deque[tuple[Request, bool]] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio calls it)
        """End; requests that already arrived are still executed, as they would be by S3."""
        self._server.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        """Parse, answer what can be answered, and send that in one write."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            request = Request(0, "", "", "", "", {}, b"", {}, b"")
            self._out.append(self._server.refuse(request, S3Error("BadRequest")))
            self._flush()
            self._transport.close()
        else:
            self._flush()

    def _flush(self) -> None:
        out = self._out
        if out:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()

    # A client that does not read is not read from.
    def pause_writing(self) -> None:
        """Stop reading."""
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Read again."""
        self._transport.resume_reading()

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        """Take (a piece of) the request target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Encourage a client that waits before sending its body."""
        if b"expect" in self._headers and self._worker is None:
            self._out.append(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Answer the request, or queue it."""
        server, parser = self._server, self._parser
        if self._transport.is_closing():
            return
        keep_alive = parser.should_keep_alive()
        method = parser.get_method().decode()
        request = server.read(method, self._target, self._headers, b"".join(self._body))
        if self._worker is not None or server.waits(request):
            self._backlog.append((request, keep_alive))
            if self._worker is None:
                self._worker = server.spawn(self._work())
            return
        self._out.append(server.answer(request))
        if not keep_alive:
            self._flush()
            self._transport.close()

    async def _work(self) -> None:
        try:
            while self._backlog:
                request, keep_alive = self._backlog.popleft()
                response, complete = await self._server.answer_in_time(request)
                if self._transport.is_closing():
                    return  # the client has gone meanwhile
                self._transport.write(response)
                if not (keep_alive and complete):
                    self._transport.close()
                    return
        except DropError as drop:
            self.drop(reset=drop.reset)
        except Exception as failure:  # noqa: BLE001 (raised again when the server is left)
            self._server.failures.append(failure)
            self.drop()
        finally:
            self._worker = None

    def drop(self, *, reset: bool = False) -> None:
        """Close at once, without a word."""
        if reset:
            sock = self._transport.get_extra_info("socket")
            if sock is not None:
                # Lingering for zero seconds makes the close a TCP reset.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


class S3Server(Operations):
    """The server on the running event loop: ``async with S3Server(buckets=["b"]) as server``.

    Leaving raises the first error of an `on_request` hook or of the server itself, so that
    assertions made inside hooks are not lost.

    Args:
        buckets: names to create at once.
        host: to listen on.
        port: to listen on; 0 takes a free one.
        credentials: secrets by access key; if given, requests must be signed with one of them.
        faults: initial switches.
        on_request: called before each request is executed, with that request. It may look, wait,
            change switches, or raise: S3Error answers with that error, DropError drops the
            connection, and anything else is raised again when the server is left.
        clock: tells the time, aware; S3 keeps whole seconds of it.
        region: of the buckets.
        log_size: how many requests the audit's log keeps; 0 turns it off.
        ssl_context: to serve HTTPS.
    """

    def __init__(
        self,
        buckets: Iterable[str] = (),
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        credentials: Mapping[str, str] | None = None,
        faults: Faults | None = None,
        on_request: OnRequest | None = None,
        clock: Callable[[], datetime] | None = None,
        region: str = "us-east-1",
        log_size: int = 10_000,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(buckets, clock=clock, region=region, log_size=log_size)
        self.credentials = credentials
        self.faults = faults or Faults()
        self.failures = []
        self.host = host
        self.port = port
        self.on_request = on_request
        self.connections: set[Connection] = set()
        self._ssl_context = ssl_context
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http{'s' if self._ssl_context else ''}://{self.host}:{self.port}"

    async def start(self) -> None:
        """Listen."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            lambda: Connection(self), self.host, self.port, ssl=self._ssl_context
        )
        self.port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening, drop every connection and whatever is still being answered."""
        if self._listener is not None:
            self._listener.close()
        self.drop_connections()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # lets the dropped connections report their end

    def drop_connections(self) -> None:
        """Close every connection at once, as a server does with those that were idle for long."""
        for connection in list(self.connections):
            connection.drop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        await self.stop()
        if kind is None and self.failures:
            raise self.failures[0]

    def reset(self) -> None:
        """Forget objects, audit, faults and the hook."""
        self.clear()
        self.faults = Faults()
        self.on_request = None
        self.failures.clear()

    def waits(self, request: Request) -> bool:
        """Tell whether a request cannot be answered at once."""
        return self.on_request is not None or self.faults.delays() or request.operation == "control"

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a connection's work as a task that `stop` ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def answer_in_time(self, request: Request) -> tuple[bytes, bool]:
        """Answer with all that can go wrong on the way.

        Returns:
            What to send, and whether the connection may stay open.

        Raises:
            DropError: if nothing is to be sent.
        """
        if request.operation == "control":
            return self.control(request), True
        self.audit.enter(request.operation)
        try:
            return await self._answer_in_time(request)
        except DropError:
            self.note(request, 0)
            raise
        finally:
            self.audit.leave(request.operation)

    async def _answer_in_time(self, request: Request) -> tuple[bytes, bool]:
        faults = self.faults
        self._die(request)
        await self._delay(request)
        self._die(request)
        if faults.strikes(request, faults.reset):
            raise DropError(reset=True)
        for code, probability in (
            ("SlowDown", faults.slow_down),
            ("InternalError", faults.internal_error),
        ):
            if faults.strikes(request, probability):
                return self._refuse_and_note(request, S3Error(code)), True
        refusal = await self._call_hook(request)
        if refusal is not None:
            return refusal, True
        response = self.answer(request)
        if faults.pause_at is not None:
            await faults.pause_at.wait(request, executed=True)
        if faults.strikes(request, faults.lose_response):
            raise DropError(reset=True)
        if faults.strikes(request, faults.truncate):
            body_at = response.index(b"\r\n\r\n") + 4
            return response[: (body_at + len(response)) // 2], body_at == len(response)
        return response, True

    def _die(self, request: Request) -> None:
        faults = self.faults
        if faults.dies_at is not None and request.ordinal >= faults.dies_at:
            if faults.dies_executing and request.ordinal == faults.dies_at:
                self.answer(request)
            raise DropError(reset=False)

    async def _delay(self, request: Request) -> None:
        faults = self.faults
        if faults.latency:
            await asyncio.sleep(faults.latency)
        if request.key in faults.slow_keys:
            seconds = faults.slow_keys[request.key]
            await (asyncio.Event().wait() if seconds is None else asyncio.sleep(seconds))
        if faults.pause_at is not None:
            await faults.pause_at.wait(request, executed=False)

    async def _call_hook(self, request: Request) -> bytes | None:
        """Call the hook; an S3Error that it raises is the answer, other errors are kept."""
        if self.on_request is None:
            return None
        try:
            outcome = self.on_request(request)
            if inspect.isawaitable(outcome):
                await outcome
        except S3Error as error:
            return self._refuse_and_note(request, error)
        except DropError:
            raise
        except Exception as failure:  # noqa: BLE001 (raised again when the server is left)
            self.failures.append(failure)
        return None

    def _refuse_and_note(self, request: Request, error: S3Error) -> bytes:
        self.note(request, error.status)
        return self.refuse(request, error)

    # -- control over HTTP

    def control(self, request: Request) -> bytes:
        """Answer a request under ``/_control/``: JSON in, JSON out."""
        try:
            given = json.loads(request.body) if request.body else {}
            answer = self._control(request.key.removeprefix(CONTROL), given)
            status = 200
        except (LookupError, TypeError, ValueError) as error:
            answer, status = {"error": repr(error)}, 400
        body = json.dumps(answer).encode()
        return self.respond(request, status, b"content-type: application/json\r\n", body)

    def _control(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        match name:
            case "audit":
                return {
                    "counts": self.audit.counts,
                    "lost": [loss._asdict() for loss in self.audit.lost[:1000]],
                    "lost_count": len(self.audit.lost),
                    "peak": self.audit.peak,
                    "buckets": self.summary(),
                }
            case "faults":
                self.faults.update(given)
                return {}
            case "fill":
                return self.fill(**given)
            case "reset":
                self.reset()
                return {}
            case _:
                raise ValueError(f"unknown control {name!r}")


class ThreadedS3Server:
    """The server in a thread with a loop of its own, for synchronous code and child processes.

    Args:
        server: not yet started; a new one without buckets if None.
    """

    def __init__(self, server: S3Server | None = None) -> None:
        self.server = server or S3Server()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._ready = threading.Event()
        self._refusal: OSError | None = None
        self._loop: asyncio.AbstractEventLoop
        self._done: asyncio.Event

    @property
    def url(self) -> str:
        """The endpoint."""
        return self.server.url

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function in the server's loop, between requests, and return its result."""

        async def run() -> T:
            return function(*args, **kwargs)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        if self._refusal is not None:
            raise self._refusal
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join()
        if kind is None and self.server.failures:
            raise self.server.failures[0]

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._done = asyncio.Event()
        try:
            await self.server.start()
        except OSError as error:
            self._refusal = error
            return
        finally:
            self._ready.set()
        await self._done.wait()
        await self.server.stop()


# ------------------------------------------------------------------------------ as a process


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="An in-memory S3 server for tests and benchmarks.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--bucket", action="append", default=[], help="create it (repeatable)")
    parser.add_argument("--region", default="us-east-1")
    parser.add_argument("--credentials", metavar="KEY:SECRET", help="check signatures")
    parser.add_argument("--faults", type=json.loads, default={}, metavar="JSON")
    parser.add_argument("--log-size", type=int, default=0, help="requests the log keeps")
    parser.add_argument("--tls-cert", help="PEM file; serves HTTPS")
    parser.add_argument("--tls-key", help="PEM file")
    parser.add_argument("--no-uvloop", action="store_true", help="even if it is installed")
    return parser.parse_args()


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT."""
    context = None
    if arguments.tls_cert:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(arguments.tls_cert, arguments.tls_key)
    credentials = None
    if arguments.credentials:
        access_key, _, secret = arguments.credentials.partition(":")
        credentials = {access_key: secret}
    server = S3Server(
        arguments.bucket,
        host=arguments.host,
        port=arguments.port,
        credentials=credentials,
        region=arguments.region,
        log_size=arguments.log_size,
        ssl_context=context,
    )
    server.faults.update(arguments.faults)
    done = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, done.set)
    async with server:
        print(f"listening on {server.url}", flush=True)  # noqa: T201 (for the process that waits)
        await done.wait()


def main() -> None:
    """Run as a process, on uvloop where it is installed."""
    arguments = parse_arguments()
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if not arguments.no_uvloop:
        try:
            import uvloop  # noqa: PLC0415 (optional, and for the process only)
        except ImportError:
            pass
        else:
            factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(arguments))


if __name__ == "__main__":
    main()
