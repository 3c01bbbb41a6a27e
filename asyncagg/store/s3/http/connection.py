"""One keep-alive connection with at most one exchange (a request and its response).

It uses asyncio's futures and callbacks: anyio's streams would cost more CPU per request than the
rest of the client together. A connection whose response was not read to its end is never reused. If
its caller has gone, `drop` or the pool's next sweep closes it.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Literal, Protocol, cast

import httptools
import msgspec

from asyncagg.errors import ConnectionLostError, TransientError

_MAX_HEAD_BYTES = 64 * 1024
_ONE_WRITE_BYTES = 64 * 1024
_WRITE_BYTES = 256 * 1024
"""Bytes of a large body that a transport gets at a time: TLS copies twice what it cannot send."""

_PAUSE_BYTES = 256 * 1024
_RESUME_BYTES = 64 * 1024
_NOTHING = memoryview(b"")
_HEAD_END = b"\r\n\r\n"
_LINE_END = b"\r\n"
_FRAMING = (b"\r\ncontent-length:", b"\r\ntransfer-encoding:")
_FIELD = re.compile(rb"\r\n([^:\r\n]+):[ \t]*([^\r\n]*)")


class BodyStream(AsyncIterator[bytes]):
    """The blocks of a body as they arrive; it pauses the transport while too many are buffered.

    Attributes:
        buffered: The number of bytes that are received and not yet read.
        ended: Whether no more bytes follow, at the body's end or after a failure.
        paused: Whether the transport is paused.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self.buffered = 0
        self.ended = False
        self.paused = False
        self._transport = transport
        self._blocks: deque[bytes] = deque()
        self._error: TransientError | None = None
        self._reader: asyncio.Future[None] | None = None

    def feed(self, block: bytes) -> None:
        """Add the next block."""
        self._blocks.append(block)
        self.buffered += len(block)
        if self.buffered >= _PAUSE_BYTES and not self.paused:
            self.paused = True
            self._transport.pause_reading()
        self._wake()

    def finish(self, error: TransientError | None = None) -> None:
        """End the stream, with an error if the body is incomplete."""
        self.ended = True
        self._error = error
        self._resume()
        self._wake()

    async def __anext__(self) -> bytes:
        while not self._blocks:
            if self._error is not None:
                raise self._error
            if self.ended:
                raise StopAsyncIteration
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        block = self._blocks.popleft()
        self.buffered -= len(block)
        if self.buffered <= _RESUME_BYTES:
            self._resume()
        return block

    def _resume(self) -> None:
        if self.paused:
            self.paused = False
            self._transport.resume_reading()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class Response(msgspec.Struct, gc=False):
    """A response.

    Attributes:
        head: The status line and the header fields, as received.
        body: The whole body; empty if it is streamed.
        stream: The body, if it is streamed.
    """

    status: int
    head: bytes
    body: bytes = b""
    stream: BodyStream | None = None

    @property
    def headers(self) -> dict[bytes, bytes]:
        """The header fields, names in lower case. Parsed at each call: few responses need them."""
        return {name.lower(): value.rstrip() for name, value in _FIELD.findall(self.head)}

    def field(self, name: bytes) -> bytes | None:
        """Return one header field, which takes a tenth of the time of `headers`.

        Args:
            name: Its name in lower case, between a line break and a colon.
        """
        start = self.head.lower().find(name)
        if start < 0:
            return None
        start += len(name)
        end = self.head.find(_LINE_END, start)
        return (self.head[start:] if end < 0 else self.head[start:end]).strip(b" \t")

    @property
    def framed(self) -> bool:
        """Whether the headers say where the body ends, so that a truncated one is detected."""
        return any(self.field(name) is not None for name in _FRAMING)


Expected = Literal["body", "no body", "stream"]
"""What to read after the headers: the whole body; nothing, as for a HEAD, whatever its headers say;
or a stream."""


class Owner(Protocol):
    """The callbacks of a connection to its pool."""

    def released(self, connection: Connection) -> None:
        """Take back a connection that can carry the next exchange."""

    def lost(self, connection: Connection) -> None:
        """Remove a connection that is closed."""


class Connection(asyncio.BufferedProtocol):
    """A socket, its parser, and at most one exchange.

    It is a buffered protocol because for other protocols TLS allocates 256 KiB for each read, which
    costs more CPU than the rest of the request. Connections can share the receive buffer: what it
    holds is parsed at once. ``max_body_bytes`` limits a body that is read whole.

    Attributes:
        busy: Whether an exchange is in progress.
        closing: Whether the connection is closed or closing.
        started: When the current or last exchange began.
        last_received: When the last bytes arrived; at first, when the exchange began.
    """

    def __init__(
        self,
        owner: Owner,
        clock: Callable[[], float],
        *,
        buffer: memoryview,
        max_body_bytes: int,
    ) -> None:
        self.busy = False
        self.closing = True  # until there is a transport
        self.started = self.last_received = clock()
        self._owner = owner
        self._clock = clock
        self._buffer = buffer
        self._max_body_bytes = max_body_bytes
        self._loop = asyncio.get_running_loop()
        # This class has no `on_header`: it would be called for each field, and few are needed.
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Response] | None = None
        self._response: Response | None = None  # set when its headers are complete
        self._head = b""  # the bytes received until then
        self._head_bytes = 0
        self._blocks: list[bytes] = []
        self._body_bytes = 0
        self._unsent = _NOTHING  # the rest of a large request
        self._writing_paused = False
        self._expected: Expected = "body"
        self._complete = False
        self._reusable = False

    def send(
        self, head: bytes, body: bytes, now: float, expected: Expected
    ) -> asyncio.Future[Response]:
        """Begin an exchange at the time ``now``, and return the future of the response.

        If a stream is expected, the future is done at the end of the headers.
        """
        self._waiter = waiter = self._loop.create_future()
        transport = self._transport
        if self.closing or transport is None:
            waiter.set_exception(ConnectionLostError("the server closed the connection"))
            waiter.exception()  # as in `fail`
            return waiter
        self.busy = True
        self._expected = expected
        self._complete = False
        self._head = b""
        self._head_bytes = self._body_bytes = 0
        self.started = self.last_received = now
        if len(body) <= _ONE_WRITE_BYTES:
            transport.write(head + body)
        else:
            self._unsent = memoryview(body)
            transport.write(head)
            self._write(transport)
        return waiter

    def _write(self, transport: asyncio.Transport) -> None:
        """Send as much of a large body as the transport takes."""
        while self._unsent and not self._writing_paused and not transport.is_closing():
            block, rest = self._unsent[:_WRITE_BYTES], self._unsent[_WRITE_BYTES:]
            self._unsent = rest or _NOTHING  # an empty view would keep the body
            transport.write(block)

    def drop(self, waiter: asyncio.Future[Response]) -> None:
        """Close the connection unless the exchange of this future is complete."""
        if self.busy and waiter is self._waiter:
            self.abort()

    def fail(self, error: TransientError, cause: BaseException | None = None) -> None:
        """Close the connection and end the exchange with an error."""
        error.__cause__ = cause
        self.busy = False
        if self._response is not None and self._response.stream is not None:
            self._response.stream.finish(error)
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
            self._waiter.exception()  # so that asyncio does not log it as never retrieved
        self.abort()

    def abort(self) -> None:
        """Close the connection at once; the owner is notified later."""
        self.busy = False
        self.closing = True
        self._unsent = _NOTHING
        if self._transport is not None:
            self._transport.abort()

    def overdue(self, now: float, *, read: float, total: float) -> str:
        """Return why the exchange has taken too long, or an empty string.

        The limits are ``read`` for a silence, and ``total`` for an exchange that is not streamed.
        """
        if not self.busy:
            return ""
        if self._waiter is not None and self._waiter.cancelled():
            return "the request was cancelled"
        if self._response and self._response.stream and self._response.stream.paused:
            self.last_received = now  # the reader, not the server, causes the silence
        if now - self.last_received > read:
            return f"no byte for {read:g} seconds"
        if now - self.started > total and self._expected != "stream":
            return f"no complete response in {total:g} seconds"
        return ""

    # Callbacks of the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)
        self.closing = False

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 (asyncio calls it)
        """Return the receive buffer."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Feed the parser, which calls the ``on_`` methods below; then check the progress."""
        if not self.busy:  # unexpected bytes would be taken for the next response
            self.abort()
            return
        data = self._buffer[:nbytes]
        if self._response is None:
            self._head += data
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._complete:
                self.fail(TransientError("the response is not HTTP"), error)
                return
            self._reusable = False
        if self._complete:
            self._finish()
            return
        self.last_received = self._clock()
        if self._response is None:
            self._head_bytes += nbytes
            if self._head_bytes > _MAX_HEAD_BYTES:
                detail = f"the response's headers exceed {_MAX_HEAD_BYTES} bytes"
                self.fail(TransientError(detail))
        elif self._body_bytes > self._max_body_bytes:
            detail = f"the response's body exceeds {self._max_body_bytes} bytes"
            self.fail(TransientError(detail))

    def pause_writing(self) -> None:
        """Hold back the rest of a large body: the transport has enough."""
        self._writing_paused = True

    def resume_writing(self) -> None:
        """Continue with a large body."""
        self._writing_paused = False
        if self._transport is not None:
            self._write(self._transport)

    def eof_received(self) -> None:
        """Mark the connection as closing; the transport closes it."""
        self.closing = True

    def connection_lost(self, exc: Exception | None) -> None:
        """End the exchange, and notify the owner."""
        self.closing = True
        if self.busy:
            self._end_of_input(exc)
        self._transport = None
        self._unsent = _NOTHING
        self._owner.lost(self)

    def _end_of_input(self, cause: Exception | None) -> None:
        if self._response is None:
            detail = "the server closed the connection before it responded"
            self.fail(ConnectionLostError(detail), cause)
        elif cause is None and not self._response.framed:
            self._reusable = False
            self._finish()  # the end of the connection is the end of the body
        else:
            self.fail(ConnectionLostError("the response was cut short"), cause)

    # Callbacks of the parser

    def on_message_begin(self) -> None:
        """Detect bytes after the response."""
        if self._complete:
            self._reusable = False

    def on_headers_complete(self) -> None:
        """Skip an interim response; deliver the head of a streamed one."""
        if self._complete:
            return  # the server sends a second response
        status = self._parser.get_status_code()
        head, _, rest = self._head.partition(_HEAD_END)
        if status < 200:
            self._head = rest
            return
        self._response = response = Response(status, head)
        if self._expected == "no body":
            self.on_message_complete()
        waiter, transport = self._waiter, self._transport
        if self._expected == "stream" and transport and waiter and not waiter.done():
            response.stream = BodyStream(transport)
            waiter.set_result(response)

    def on_body(self, block: bytes) -> None:
        """Keep a block of the body."""
        if self._complete:
            self._reusable = False
        elif self._response is not None and self._response.stream is not None:
            self._response.stream.feed(block)
        else:
            self._blocks.append(block)
            self._body_bytes += len(block)

    def on_message_complete(self) -> None:
        """Mark the response as complete; it is delivered when all received bytes are parsed."""
        if self._response is not None and not self._complete:
            self._complete = True
            self._reusable = self._parser.should_keep_alive()

    def _finish(self) -> None:
        """Deliver the response, then give the connection back, or close it."""
        response, waiter, transport = self._response, self._waiter, self._transport
        blocks, self._blocks = self._blocks, []
        self._response = self._waiter = None
        self.busy = False
        if self._expected == "no body":  # the parser may wait for the announced body
            self._parser = httptools.HttpResponseParser(self)

        if response is not None and response.stream is not None:
            response.stream.finish()
        elif response is not None and waiter is not None and not waiter.done():
            response.body = blocks[0] if len(blocks) == 1 else b"".join(blocks)
            waiter.set_result(response)

        # A server may respond before it has read the whole request. The unsent rest would then be
        # read as the start of the next request.
        if (
            self._reusable
            and transport is not None
            and not self._unsent
            and not transport.get_write_buffer_size()
        ):
            self._owner.released(self)
        else:
            self.abort()
