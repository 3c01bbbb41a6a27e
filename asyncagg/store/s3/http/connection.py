"""One keep-alive connection and the exchange under way on it.

Futures and callbacks of plain asyncio, not anyio's streams: those cost more per request than the
rest of the client together. A connection whose response was not read to its end is never free for
the next exchange: where nobody waits for it any more, `drop` or the next sweep closes it.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Protocol, cast

import httptools
import msgspec

from asyncagg.errors import TransientError

__all__ = ("BodyStream", "Connection", "Owner", "Response")

_MAX_HEAD_BYTES = 64 * 1024
_ONE_WRITE_BYTES = 64 * 1024
_PAUSE_BYTES = 256 * 1024
_RESUME_BYTES = 64 * 1024
_HEAD_END = b"\r\n\r\n"


_FIELD = re.compile(rb"\r\n([^:\r\n]+):[ \t]*([^\r\n]*)")


class BodyStream(AsyncIterator[bytes]):
    """A body in blocks, as it comes in; reading from the socket pauses while too much waits.

    Args:
        transport: The transport to pause.

    Attributes:
        buffered: The bytes that are received and not yet taken.
        ended: Whether nothing more comes in, at the body's end or after a failure.
        paused: Whether reading from the socket is paused.
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
        """Take in the next block."""
        self._blocks.append(block)
        self.buffered += len(block)
        if self.buffered >= _PAUSE_BYTES and not self.paused:
            self.paused = True
            self._transport.pause_reading()
        self._wake()

    def finish(self, error: TransientError | None = None) -> None:
        """Take note that nothing follows, because of ``error`` if there is one."""
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
    """What came back.

    Attributes:
        status: The HTTP status.
        head: The status line and the header fields, as they came.
        body: The whole body; empty where it is streamed.
        stream: The body that is still coming in, where it is streamed.
    """

    status: int
    head: bytes
    body: bytes = b""
    stream: BodyStream | None = None

    @property
    def headers(self) -> dict[bytes, bytes]:
        """The header fields; names in lower case. Made at each call: many answers do without."""
        return {name.lower(): value.rstrip() for name, value in _FIELD.findall(self.head)}

    @property
    def framed(self) -> bool:
        """Whether it says where its body ends; where not, a cut body looks like a whole one."""
        headers = self.headers
        return b"content-length" in headers or b"transfer-encoding" in headers


class Owner(Protocol):
    """Who holds a connection and is told what becomes of it."""

    def released(self, connection: Connection) -> None:
        """Take back a connection that can carry the next exchange."""

    def lost(self, connection: Connection) -> None:
        """Forget a connection that is closed."""


class Connection(asyncio.BufferedProtocol):
    """A socket, its parser, and at most one exchange.

    It is a buffered protocol because the loops' TLS makes a new quarter of a megabyte for each
    read of the other kind, which costs more than the rest of the request.

    Args:
        owner: Who is told when the connection is free, and when it is closed.
        clock: The time in seconds, for `started` and `heard`.
        buffer: Where bytes are received, for the moment until they are parsed: connections may
            share it.
        max_body_bytes: The most bytes of a body that is gathered whole.

    Attributes:
        busy: Whether an exchange is under way.
        closing: Whether the connection is closed or about to be.
        started: When the exchange under way, or the last one, began.
        heard: When it began, or when the last byte came in of an answer that is not yet whole.
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
        self.closing = True  # as long as there is no transport
        self.started = self.heard = clock()
        self._owner = owner
        self._clock = clock
        self._buffer = buffer
        self._max_body_bytes = max_body_bytes
        self._loop = asyncio.get_running_loop()
        # Not `on_header`: most answers are never asked for a field, and it is called for each.
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Response] | None = None
        self._response: Response | None = None  # from the end of its headers on
        self._head = b""  # and whatever came with it
        self._head_bytes = 0
        self._blocks: list[bytes] = []
        self._body_bytes = 0
        self._bodyless = self._streamed = False
        self._complete = False
        self._reusable = False

    def send(
        self, head: bytes, body: bytes, now: float, *, bodyless: bool, streamed: bool
    ) -> asyncio.Future[Response]:
        """Begin an exchange; the future is done when the response is there.

        Args:
            head: The request line and the headers.
            body: The request's content.
            now: The time on the connection's clock.
            bodyless: The response has no body, whatever its headers say (HEAD).
            streamed: The response is there with its headers; its body follows as a stream.
        """
        self._answer = answer = self._loop.create_future()
        transport = self._transport
        if self.closing or transport is None:
            answer.set_exception(TransientError("the server closed the connection"))
            answer.exception()  # seen, as in `fail`
            return answer
        self.busy = True
        self._bodyless, self._streamed = bodyless, streamed
        self._complete = False
        self._head = b""
        self._head_bytes = self._body_bytes = 0
        self.started = self.heard = now
        if len(body) <= _ONE_WRITE_BYTES:
            transport.write(head + body)
        else:
            transport.writelines((head, body))
        return answer

    def drop(self, answer: asyncio.Future[Response]) -> None:
        """Give up on an answer: unless it came in whole, its connection is closed."""
        if self.busy and answer is self._answer:
            self.abort()

    def fail(self, reason: str, cause: BaseException | None = None) -> None:
        """Close the connection and end the exchange under way with a `TransientError`."""
        error = TransientError(reason)
        error.__cause__ = cause
        self.busy = False
        if self._response is not None and self._response.stream is not None:
            self._response.stream.finish(error)
        elif self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
            self._answer.exception()  # seen: asyncio is not to report it as never retrieved
        self.abort()

    def abort(self) -> None:
        """Close the connection at once; the owner is told when that is done."""
        self.busy = False
        self.closing = True
        if self._transport is not None:
            self._transport.abort()

    def overdue(self, now: float, *, read: float, total: float) -> str:
        """Return why the exchange under way has taken too long; empty if it has not.

        Args:
            now: The time on the connection's clock.
            read: The longest silence, in seconds.
            total: The longest exchange, in seconds; a streamed one is as long as its reader's work.
        """
        if not self.busy:
            return ""
        if self._answer is not None and self._answer.cancelled():
            return "nobody waits for the answer any more"
        if self._response and self._response.stream and self._response.stream.paused:
            self.heard = now  # the silence is ours
        if now - self.heard > read:
            return f"no byte for {read:g} seconds"
        if now - self.started > total and not self._streamed:
            return f"no whole answer in {total:g} seconds"
        return ""

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)
        self.closing = False

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 (asyncio calls it)
        """Lend the place to receive bytes."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Feed the parser, which calls the ``on_`` methods below; then see how far it came."""
        if not self.busy:  # what nobody asked for would be taken for the next answer
            self.abort()
            return
        data = self._buffer[:nbytes]
        if self._response is None:
            self._head += data
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._complete:
                self.fail("the answer is not HTTP", error)
                return
            self._reusable = False
        if self._complete:
            self._finish()
            return
        self.heard = self._clock()
        if self._response is None:
            self._head_bytes += nbytes
            if self._head_bytes > _MAX_HEAD_BYTES:
                self.fail(f"the answer's headers pass {_MAX_HEAD_BYTES} bytes")
        elif self._body_bytes > self._max_body_bytes:
            self.fail(f"the answer's body passes {self._max_body_bytes} bytes")

    def eof_received(self) -> None:
        """Take note that the server closes the connection; the transport does so too."""
        self.closing = True

    def connection_lost(self, exc: Exception | None) -> None:
        """End the exchange under way, and tell the owner."""
        self.closing = True
        if self.busy:
            self._end_of_input(exc)
        self._transport = None
        self._owner.lost(self)

    def _end_of_input(self, cause: Exception | None) -> None:
        if self._response is None:
            self.fail("the server closed the connection before it answered", cause)
        elif cause is None and not self._response.framed:
            self._reusable = False
            self._finish()  # the end of the connection is the end of its body
        else:
            self.fail("the answer was cut short", cause)

    # What the parser calls

    def on_message_begin(self) -> None:
        """Notice bytes behind the response."""
        if self._complete:
            self._reusable = False

    def on_headers_complete(self) -> None:
        """Skip an interim response; hand out the head of a streamed one."""
        status = self._parser.get_status_code()
        head, _, rest = self._head.partition(_HEAD_END)
        if status < 200:
            self._head = rest
            return
        self._response = response = Response(status, head)
        if self._bodyless:
            self.on_message_complete()
        if self._streamed and self._transport and self._answer and not self._answer.done():
            response.stream = BodyStream(self._transport)
            self._answer.set_result(response)

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
        """Note the response's end; it is handed out when the parser has seen what follows it."""
        if self._response is not None and not self._complete:
            self._complete = True
            self._reusable = self._parser.should_keep_alive()

    def _finish(self) -> None:
        response, answer, transport = self._response, self._answer, self._transport
        blocks, self._blocks = self._blocks, []
        self._response = self._answer = None
        self.busy = False
        if self._bodyless:  # the parser may wait for the body that the headers speak of
            self._parser = httptools.HttpResponseParser(self)
        if response is not None and response.stream is not None:
            response.stream.finish()
        elif response is not None and answer is not None and not answer.done():
            response.body = blocks[0] if len(blocks) == 1 else b"".join(blocks)
            answer.set_result(response)
        # An answer that came before the whole request was taken leaves the rest in the way.
        if self._reusable and transport is not None and not transport.get_write_buffer_size():
            self._owner.released(self)
        else:
            self.abort()
