"""The floor: the least CPU with which a Python client can do the whole job.

It lists, gets, sums, puts one aggregate, copies and deletes. Requests are signed, copies and
deletes are conditional. It uses raw asyncio protocols with the httptools parser on uvloop. It has
no retries, no timeouts and no promises: any error ends it. It uses none of asyncagg's code. A
worker is a generator that yields requests and receives the bodies of the responses, so that a
request needs no future and no task.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import re
import ssl
import time
from base64 import b64encode
from collections.abc import Generator, Iterator
from typing import TypeAlias, cast
from urllib.parse import unquote_plus, urlsplit
from xml.sax.saxutils import escape

import httptools
import orjson
import uvloop

CONNECTIONS = int(os.environ.get("IN_FLIGHT", "32"))
BATCH = 1000
SUMMED = ("total_opportunities", "matches_found", "no_matches", "errors")
EMPTY = hashlib.sha256(b"").hexdigest()
ENTRY = re.compile(r"<Key>([^<]*)</Key>.*?<ETag>(?:&quot;|\")(\w+)")
TOKEN = re.compile(r"<NextContinuationToken>([^<]*)<")

File: TypeAlias = tuple[str, str]
"""A URL-encoded key and its ETag."""

Work: TypeAlias = Generator[bytes, bytes, None]
"""Yields requests and receives the bodies of their responses."""


class Signer:
    """Signs requests to one bucket; computes what they share once per second."""

    def __init__(self, host: str, bucket: str) -> None:
        self.bucket = bucket
        self.host = host
        self._second = 0

    def _prepare(self, second: int) -> None:
        self._second = second
        self._date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))
        scope = f"{self._date[:8]}/{os.environ['AWS_DEFAULT_REGION']}/s3/aws4_request"
        self._preamble = f"AWS4-HMAC-SHA256\n{self._date}\n{scope}\n"
        self._who = f"AWS4-HMAC-SHA256 Credential={os.environ['AWS_ACCESS_KEY_ID']}/{scope}"
        key = f"AWS4{os.environ['AWS_SECRET_ACCESS_KEY']}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        padded = key.ljust(64, b"\0")
        # An HMAC is two hashes; for a given key each has a constant prefix.
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in padded))

    def request(
        self,
        method: str,
        path: str,
        lines: str,
        names: str,
        *,
        query: str = "",
        body: bytes = b"",
        payload: str = EMPTY,
    ) -> bytes:
        """Return a signed request.

        Args:
            method: The HTTP method.
            path: The path in the bucket, encoded.
            lines: The signed headers without ``x-amz-date``, sorted, each with a line feed.
            names: The names of all signed headers, with semicolons between them.
            query: The canonical query.
            body: The content.
            payload: The SHA-256 of the content.
        """
        second = int(time.time())
        if second != self._second:
            self._prepare(second)
        path = f"/{self.bucket}/{path}"
        lines = f"{lines}x-amz-date:{self._date}\n"
        canonical = f"{method}\n{path}\n{query}\n{lines}\n{names}\n{payload}".encode()
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(f"{self._preamble}{hashlib.sha256(canonical).hexdigest()}".encode())
        outer.update(inner.digest())
        target = f"{path}?{query}" if query else path
        wire = lines.replace("\n", "\r\n")
        return (
            f"{method} {target} HTTP/1.1\r\n{wire}content-length:{len(body)}\r\n"
            f"authorization:{self._who},SignedHeaders={names},Signature={outer.hexdigest()}\r\n\r\n"
        ).encode() + body


class Connection(asyncio.BufferedProtocol):
    """A socket for the requests of one worker, one at a time."""

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer
        self._parser = httptools.HttpResponseParser(self)
        self._blocks: list[bytes] = []

    async def run(self, work: Work) -> None:
        """Send the worker's requests until it ends."""
        self._work = work
        self._done = asyncio.get_running_loop().create_future()
        self._next(None)
        await self._done

    def _next(self, body: bytes | None) -> None:
        try:
            request = next(self._work) if body is None else self._work.send(body)
        except StopIteration:
            self._done.set_result(None)
        else:
            self._transport.write(request)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the current work, if any."""
        if not self._done.done():
            self._done.set_exception(exc or ConnectionError("the server closed the connection"))

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio calls it
        """Return the receive buffer, which all connections share."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Feed the parser."""
        try:
            self._parser.feed_data(self._buffer[:nbytes])
        except Exception as error:  # noqa: BLE001 - any error ends the run
            self._done.set_exception(error)

    def on_body(self, block: bytes) -> None:
        """Store a block of the body."""
        self._blocks.append(block)

    def on_message_complete(self) -> None:
        """Pass the body to the worker, and send its next request."""
        status = self._parser.get_status_code()
        blocks = self._blocks
        body = blocks[0] if len(blocks) == 1 else b"".join(blocks)
        blocks.clear()
        if status >= 300:
            raise RuntimeError(f"{status}: {body[:500]!r}")
        self._next(body)


def listing(signer: Signer, files: list[File]) -> Work:
    """List the inbox, page by page."""
    lines = f"host:{signer.host}\nx-amz-content-sha256:{EMPTY}\n"
    names = "host;x-amz-content-sha256;x-amz-date"
    token = ""
    while True:
        query = f"{token}encoding-type=url&list-type=2&max-keys={BATCH}&prefix=runs%2F"
        page = (yield signer.request("GET", "", lines, names, query=query)).decode()
        files += ENTRY.findall(page)
        following = TOKEN.search(page)
        if following is None:
            return
        token = f"continuation-token={following[1].replace('=', '%3D')}&"


def reading(signer: Signer, files: Iterator[File], totals: list[int]) -> Work:
    """Get, parse and sum files; the workers share one iterator."""
    lines = f"host:{signer.host}\nx-amz-content-sha256:{EMPTY}\n"
    names = "host;x-amz-content-sha256;x-amz-date"
    one, two, three, four = SUMMED
    for key, _ in files:
        body = yield signer.request("GET", key, lines, names)
        content = orjson.loads(body)
        totals[0] += content[one]
        totals[1] += content[two]
        totals[2] += content[three]
        totals[3] += content[four]


def putting(signer: Signer, body: bytes) -> Work:
    """Put the aggregate."""
    payload = hashlib.sha256(body).hexdigest()
    lines = f"host:{signer.host}\nif-none-match:*\nx-amz-content-sha256:{payload}\n"
    names = "host;if-none-match;x-amz-content-sha256;x-amz-date"
    yield signer.request("PUT", "aggregates/peer.json", lines, names, body=body, payload=payload)


def moving(signer: Signer, files: Iterator[File], copied: list[File]) -> Work:
    """Copy files; the workers share one iterator. Delete what they have copied, in batches."""
    start = f"host:{signer.host}\nif-none-match:*\nx-amz-content-sha256:{EMPTY}\n"
    start += f"x-amz-copy-source:{signer.bucket}/"
    names = (
        "host;if-none-match;x-amz-content-sha256;"
        "x-amz-copy-source;x-amz-copy-source-if-match;x-amz-date"
    )
    for key, etag in files:
        lines = f'{start}{key}\nx-amz-copy-source-if-match:"{etag}"\n'
        result = yield signer.request("PUT", f"archive/{key[5:]}", lines, names)
        assert b"<CopyObjectResult" in result, result
        copied.append((key, etag))
        if len(copied) == BATCH:
            batch = copied[:]
            copied.clear()
            yield from deleting(signer, batch)


def deleting(signer: Signer, files: list[File]) -> Work:
    """Delete copied files, if their ETags are those of the copies."""
    entries = [
        f"<Object><Key>{escape(unquote_plus(key))}</Key><ETag>{etag}</ETag></Object>"
        for key, etag in files
    ]
    body = f"<Delete><Quiet>true</Quiet>{''.join(entries)}</Delete>".encode()
    digest = b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
    payload = hashlib.sha256(body).hexdigest()
    lines = f"content-md5:{digest}\nhost:{signer.host}\nx-amz-content-sha256:{payload}\n"
    names = "content-md5;host;x-amz-content-sha256;x-amz-date"
    result = yield signer.request(
        "POST", "", lines, names, query="delete=", body=body, payload=payload
    )
    assert b"<Error>" not in result, result


async def job(endpoint: str, bucket: str) -> list[int]:
    """Do the whole job."""
    at = urlsplit(endpoint)
    context = None
    if at.scheme == "https":
        context = ssl.create_default_context(cafile=os.environ["AWS_CA_BUNDLE"])
    buffer = memoryview(bytearray(64 * 1024))
    loop = asyncio.get_running_loop()
    connections: list[Connection] = []
    for _ in range(CONNECTIONS):
        _, connection = await loop.create_connection(
            lambda: Connection(buffer), at.hostname or "", at.port or 0, ssl=context
        )
        connections.append(connection)
    signer = Signer(at.netloc, bucket)
    totals = [0] * len(SUMMED)
    files: list[File] = []
    copied: list[File] = []

    first = connections[0]
    await first.run(listing(signer, files))
    if files:
        left = iter(files)
        await asyncio.gather(*[each.run(reading(signer, left, totals)) for each in connections])
        aggregate = orjson.dumps({"files": len(files)} | dict(zip(SUMMED, totals, strict=True)))
        await first.run(putting(signer, aggregate))
        left = iter(files)
        await asyncio.gather(*[each.run(moving(signer, left, copied)) for each in connections])
        if copied:
            await first.run(deleting(signer, copied))
    return [len(files), *totals]


def run(endpoint: str, bucket: str) -> list[int]:
    """Do the whole job; return the number of files and their sums."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(job(endpoint, bucket))
