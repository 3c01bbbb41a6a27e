"""One client connection: an asyncio protocol that parses requests and answers them in order."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

import httptools

from testkit.s3server.faults import DropError
from testkit.s3server.wire import Request, S3Error, error_response, render

if TYPE_CHECKING:  # the server imports this module
    from testkit.s3server.server import S3Server


class Connection(asyncio.Protocol):
    """One client connection: parses requests, answers them in order.

    A request that can be answered at once is answered at once. One that has to wait is queued for
    a task, and so are those pipelined behind it.
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
            response = error_response(request, S3Error("BadRequest"))
            self._out.append(render(request, response, datetime.now(UTC)))
            self._flush()
            self._transport.close()
        else:
            self._flush()

    def _flush(self) -> None:
        out = self._out
        if out:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()

    # Nothing is read from a client that does not read.
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
        """Append a piece of the request target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a header."""
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Ask a client for its body if it waits before it sends that."""
        if b"expect" in self._headers and self._worker is None:
            self._out.append(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Append a piece of the body."""
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
        except Exception as failure:  # noqa: BLE001 (raised when the server is left)
            self._server.failures.append(failure)
            self.drop()
        finally:
            self._worker = None

    def drop(self, *, reset: bool = False) -> None:
        """Close at once, without a response."""
        if reset:
            sock = self._transport.get_extra_info("socket")
            if sock is not None:
                # Lingering for zero seconds makes the close a TCP reset.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()
