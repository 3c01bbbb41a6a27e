"""The HTTP client: every kind of response bytes, and every kind of interruption."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import pytest
from testkit.certificates import Authority
from testkit.loops import on_both_loops, until

from asyncagg.errors import ConfigurationError, ConnectionLostError, TransientError
from asyncagg.store.s3.http import Endpoint, HttpPool, Limits, Response, tls_context
from asyncagg.store.s3.http.connection import Connection, Expected

GET = b"GET /k HTTP/1.1\r\nhost:h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

# ------------------------------------------------------------------ one connection, byte by byte


class FakeTransport(asyncio.Transport):
    """A transport that records the calls of its methods."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.unsent = 0
        self.aborted = False
        self._paused = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False

    def is_reading(self) -> bool:
        return not self._paused


class FakeOwner:
    """Records the callbacks of its connection."""

    def __init__(self) -> None:
        self.free: list[Connection] = []
        self.gone: list[Connection] = []

    def released(self, connection: Connection) -> None:
        self.free.append(connection)

    def lost(self, connection: Connection) -> None:
        self.gone.append(connection)


class Wire:
    """A connection with a fake transport and owner, and an exchange in progress."""

    def __init__(self, expected: Expected = "body") -> None:
        self.owner = FakeOwner()
        self.transport = FakeTransport()
        self.connection = Connection(
            self.owner,
            lambda: 0.0,
            buffer=memoryview(bytearray(64 * 1024)),
            max_body_bytes=100_000,
        )
        self.connection.connection_made(self.transport)
        self.answer = self.begin(expected)

    def begin(self, expected: Expected = "body") -> asyncio.Future[Response]:
        return self.connection.send(GET, b"", 0.0, expected)

    def receive(self, data: bytes) -> None:
        """Deliver bytes as an event loop does."""
        self.connection.get_buffer(-1)[: len(data)] = data
        self.connection.buffer_updated(len(data))

    @property
    def reusable(self) -> bool:
        return bool(self.owner.free) and not self.transport.aborted

    def failure(self) -> str:
        error = self.answer.exception()
        assert isinstance(error, TransientError)
        assert self.transport.aborted
        assert not self.owner.free
        return str(error)


CHUNKS = b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nx-trailer: t\r\n\r\n"
WHOLE = {
    "length": (
        b'HTTP/1.1 200 OK\r\nContent-Length: 11\r\nETag: "e"\r\n\r\nhello world',
        200,
        b"hello world",
    ),
    "empty": (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 200, b""),
    "chunked": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + CHUNKS,
        200,
        b"hello world",
    ),
    "interim": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: <x>\r\n\r\n" + OK,
        200,
        b"ok",
    ),
    "no-content": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
    "not-modified": (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", 304, b""),
    "refusal": (b"HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnope", 404, b"nope"),
    "no-reason": (b"HTTP/1.1 200\r\ncontent-length: 1\r\n\r\nx", 200, b"x"),
    "http-1.0-kept": (
        b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 1\r\n\r\nx",
        200,
        b"x",
    ),
}


@pytest.mark.parametrize(("data", "status", "body"), WHOLE.values(), ids=WHOLE)
async def test_a_response_is_the_same_wherever_it_is_split(
    data: bytes, status: int, body: bytes
) -> None:
    """Split anywhere, or into single bytes, a response is the same, and the connection is kept."""
    splits = [[data[:at], data[at:]] for at in range(1, len(data))]
    splits += [[data], [data[at : at + 1] for at in range(len(data))]]
    for pieces in splits:
        wire = Wire()
        for piece in pieces:
            assert not wire.owner.free
            wire.receive(piece)
        response = await wire.answer
        assert (response.status, response.body) == (status, body)
        assert b"x-trailer" not in response.headers
        assert b"link" not in response.headers
        assert wire.reusable


@pytest.mark.parametrize("data", [data for data, _, _ in WHOLE.values()], ids=WHOLE)
async def test_a_response_that_is_cut_short_is_transient_trouble(data: bytes) -> None:
    """The end of the connection inside a response is never taken for the end of the response."""
    for at in range(len(data)):
        wire = Wire()
        if at:
            wire.receive(data[:at])
        wire.connection.connection_lost(None)
        assert "cut short" in wire.failure() or "before it responded" in wire.failure()
        assert wire.owner.gone == [wire.connection]


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 twohundred OK\r\n\r\n",
        b"<html>502</html>",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok!",
        b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n" + CHUNKS,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\rb: c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx\x00y: a\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_transient_trouble(data: bytes) -> None:
    """Garbage, two lengths or a split header end the exchange and the connection."""
    wire = Wire()
    wire.receive(data)
    assert "not HTTP" in wire.failure()


@pytest.mark.parametrize(
    "length", [b"", b"content-length: 5\r\n", b"transfer-encoding: chunked\r\n"]
)
async def test_the_answer_to_a_head_has_no_body(length: bytes) -> None:
    """Whatever length the headers announce, the next response is read from its start."""
    wire = Wire("no body")
    wire.receive(b"HTTP/1.1 200 OK\r\netag: x\r\n" + length + b"\r\n")
    assert (await wire.answer).body == b""
    if length:
        assert wire.reusable
        answer = wire.begin()
        wire.receive(OK)
        assert (await answer).body == b"ok"


@pytest.mark.parametrize(
    "data",
    [
        OK + OK,
        OK + b"H",
        OK + b"garbage",
        OK.replace(b"200", b"404") + b"\x00",
        OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n") + b"more",
    ],
)
async def test_bytes_behind_a_response_end_the_connection(data: bytes) -> None:
    """An unexpected response cannot become the response to the next request."""
    wire = Wire()
    wire.receive(data)
    assert (await wire.answer).body == b"ok"
    assert not wire.owner.free
    assert wire.transport.aborted


async def test_a_body_behind_the_answer_to_a_head_ends_the_connection() -> None:
    """A server that sends a body for a HEAD does not shift the next responses."""
    wire = Wire("no body")
    wire.receive(OK)
    assert (await wire.answer).status == 200
    assert wire.transport.aborted


@pytest.mark.parametrize("chunk", [1, 50, 1000])
async def test_a_second_response_does_not_change_the_first(chunk: int) -> None:
    """A server that sends two does not turn a refusal into a success."""
    refusal = b"HTTP/1.1 412 Precondition Failed\r\netag: first\r\ncontent-length: 4\r\n\r\nnope"
    wire = Wire()
    sent = refusal + OK
    for start in range(0, len(sent), chunk):
        wire.receive(sent[start : start + chunk])
    answer = await wire.answer
    assert (answer.status, answer.headers[b"etag"], answer.body) == (412, b"first", b"nope")
    assert wire.transport.aborted


async def test_bytes_between_exchanges_end_the_connection() -> None:
    """Bytes that arrive between two exchanges close the connection."""
    wire = Wire()
    wire.receive(OK)
    wire.receive(OK)
    assert (await wire.answer).body == b"ok"
    assert wire.transport.aborted


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
    ],
)
async def test_a_server_that_wants_to_close_is_not_asked_again(data: bytes) -> None:
    """The response is valid; the connection is closed."""
    wire = Wire()
    wire.receive(data)
    assert (await wire.answer).body == b"ok"
    assert wire.transport.aborted
    assert not wire.owner.free


async def test_a_body_without_a_length_ends_with_the_connection() -> None:
    """The body is read whole, and the response says that its length is unknown."""
    wire = Wire()
    wire.receive(b"HTTP/1.0 200 OK\r\n\r\nhel")
    wire.receive(b"lo")
    assert not wire.answer.done()
    wire.connection.connection_lost(None)
    response = await wire.answer
    assert (response.body, response.framed) == (b"hello", False)


async def test_a_reset_is_not_the_end_of_a_body_without_a_length() -> None:
    """A socket error fails the exchange even if a close would be a valid end."""
    wire = Wire()
    wire.receive(b"HTTP/1.0 200 OK\r\n\r\nhel")
    wire.connection.connection_lost(ConnectionResetError())
    assert "cut short" in wire.failure()


@pytest.mark.parametrize(
    ("start", "block"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"x-filler: 0123456789\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"x" * 1000),
        (b"HTTP/1.1 200 OK\r\nx: ", b"x" * 1000),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["many-fields", "long-name", "long-value", "interim-for-ever"],
)
async def test_headers_are_bounded(start: bytes, block: bytes) -> None:
    """Endless headers fail the exchange."""
    wire = Wire()
    wire.receive(start or block)
    received = 0
    while not wire.answer.done():
        wire.receive(block)
        received += len(block)
        assert received < 100_000
    assert "headers exceed" in wire.failure()


async def test_a_body_that_is_gathered_is_bounded() -> None:
    """A body larger than the limit fails the exchange and does not fill the memory."""
    wire = Wire()
    wire.receive(b"HTTP/1.1 200 OK\r\ncontent-length: 10000000\r\n\r\n")
    for _ in range(11):
        wire.receive(bytes(10_000))
    assert "body exceeds" in wire.failure()


async def test_an_answer_to_half_a_request_ends_the_connection() -> None:
    """The unsent rest of a request would be read as the start of the next one."""
    wire = Wire()
    wire.transport.unsent = 5
    wire.receive(OK)
    assert (await wire.answer).body == b"ok"
    assert wire.transport.aborted


async def test_a_request_is_one_write() -> None:
    """The head and the body are sent together."""
    wire = Wire()
    wire.receive(OK)
    wire.transport.written = b""
    wire.connection.send(GET, b"content", 0.0, "body")
    assert wire.transport.written == GET + b"content"


async def test_a_large_request_waits_for_its_transport() -> None:
    """While the transport has enough, the rest of the body stays with the connection."""
    wire = Wire()
    wire.receive(OK)
    wire.transport.written = b""
    body = bytes(range(256)) * 4000
    wire.connection.pause_writing()
    wire.connection.send(GET, body, 0.0, "body")
    assert wire.transport.written == GET
    wire.connection.resume_writing()
    assert wire.transport.written == GET + body
    wire.receive(OK)
    assert wire.reusable


async def test_an_answer_to_half_a_large_request_ends_the_connection() -> None:
    """What the connection holds back is a part of the request, too."""
    wire = Wire()
    wire.receive(OK)
    wire.owner.free.clear()
    wire.connection.pause_writing()
    answered = wire.connection.send(GET, bytes(100_000), 0.0, "body")
    wire.receive(OK)
    assert (await answered).body == b"ok"
    assert not wire.reusable


@pytest.mark.parametrize("end", ["closed", "unexpected bytes"])
async def test_a_connection_that_ends_before_its_request_is_sent_fails_it(end: str) -> None:
    """Nothing is sent, and bytes that came before the request are not its response."""
    wire = Wire()
    wire.receive(OK)
    wire.transport.written = b""
    if end == "closed":
        wire.connection.eof_received()
    else:
        wire.receive(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n")
    with pytest.raises(ConnectionLostError, match="the server closed the connection"):
        await wire.begin()
    assert not wire.transport.written


async def test_a_dropped_answer_closes_a_half_read_connection() -> None:
    """After a cancellation inside a response, its rest is not read by the next request."""
    wire = Wire()
    wire.receive(OK[:-1])
    wire.answer.cancel()
    wire.connection.drop(wire.answer)
    assert wire.transport.aborted
    wire.receive(OK[-1:])
    assert not wire.owner.free


async def test_an_answer_that_came_whole_keeps_its_connection_though_nobody_waits() -> None:
    """A cancellation just after the response keeps the connection."""
    wire = Wire()
    wire.answer.cancel()
    wire.receive(OK)
    wire.connection.drop(wire.answer)
    assert wire.reusable


async def test_a_streamed_body_pauses_the_transport_and_resumes_it() -> None:
    """The buffer stays below the limit plus one read; nothing is lost or reordered."""
    wire = Wire("stream")
    wire.receive(b"HTTP/1.1 200 OK\r\ncontent-length: 600000\r\n\r\n")
    response = await wire.answer
    assert response.stream is not None
    sent = 0
    while wire.transport.is_reading():
        wire.receive(bytes([sent // 10_000]) * 10_000)
        sent += 10_000
    assert response.stream.buffered == sent == 270_000
    taken = [await anext(response.stream)]
    while not wire.transport.is_reading():
        taken.append(await anext(response.stream))
    assert response.stream.buffered <= 65_536
    while sent < 600_000:
        wire.receive(bytes([sent // 10_000]) * 10_000)
        sent += 10_000
    taken += [block async for block in response.stream]
    assert b"".join(taken) == b"".join(bytes([at]) * 10_000 for at in range(60))
    assert wire.transport.is_reading()
    assert wire.reusable


async def test_a_streamed_body_that_is_cut_gives_what_it_has_and_then_fails() -> None:
    """The reader gets every received byte, and then an error."""
    wire = Wire("stream")
    wire.receive(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nabc")
    response = await wire.answer
    wire.connection.connection_lost(None)
    assert response.stream is not None
    assert await anext(response.stream) == b"abc"
    for _ in range(2):
        with pytest.raises(TransientError, match="cut short"):
            await anext(response.stream)


# ------------------------------------------------------------------ the pool, on real sockets

Action = Callable[["Peer", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
LIMITS = Limits(max_connections=2)


async def answer(_peer: Peer, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Respond normally."""
    writer.write(OK)


async def hang(peer: Peer, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Respond only after the release."""
    await peer.release.wait()
    writer.write(OK)


async def half(peer: Peer, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send all but the last byte, which follows after the release."""
    writer.write(OK[:-1])
    await peer.release.wait()
    writer.write(OK[-1:])


async def close(_peer: Peer, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close the connection instead of a response."""
    writer.close()


async def answer_and_close(
    _peer: Peer, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Respond, and close the connection without announcing it."""
    writer.write(OK)
    writer.close()


class Peer:
    """A server with an action for each path.

    Attributes:
        seen: The connection and path of each request.
        busy: How many requests are being answered.
        peak: The most of them at a time.
        release: Ends the waiting of `hang` and `half`.
    """

    def __init__(self) -> None:
        self.actions: dict[str, Action] = {}
        self.seen: list[tuple[int, str]] = []
        self.connections = 0
        self.ended = 0
        self.busy = 0
        self.peak = 0
        self.release = asyncio.Event()

    async def asked(self, path: str, times: int) -> None:
        """Wait until a path was requested this number of times."""
        await until(lambda: [seen for _, seen in self.seen].count(path) == times)

    async def connected(self, times: int) -> None:
        """Wait until this number of connections was opened."""
        await until(lambda: self.connections == times)

    async def left(self, times: int) -> None:
        """Wait until this number of connections has ended."""
        await until(lambda: self.ended == times)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        with suppress(ConnectionError, asyncio.IncompleteReadError), aborting(writer):
            while not writer.is_closing():
                request = await reader.readuntil(b"\r\n\r\n")
                path = request.split()[1].decode()
                self.seen.append((number, path))
                self.busy += 1
                self.peak = max(self.peak, self.busy)
                try:
                    await self.actions.get(path, answer)(self, reader, writer)
                    await writer.drain()
                finally:
                    self.busy -= 1
        self.ended += 1


@contextmanager
def aborting(writer: asyncio.StreamWriter) -> Iterator[None]:
    """Abort a connection at the end, unless it is closing already."""
    try:
        yield
    finally:
        if not writer.is_closing():
            writer.transport.abort()


@asynccontextmanager
async def pooled(
    limits: Limits = LIMITS,
    *,
    server_tls: ssl.SSLContext | None = None,
    host: str = "127.0.0.1",
    tls: ssl.SSLContext | None = None,
    clock: Callable[[], float] = lambda: 0.0,
) -> AsyncIterator[tuple[HttpPool, Peer]]:
    """Yield a pool and its server."""
    peer = Peer()
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.get_running_loop().create_task(peer.serve(reader, writer)))

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=server_tls)
    port = server.sockets[0].getsockname()[1]
    pool = HttpPool(Endpoint(host, port, tls=tls is not None), limits, tls=tls, clock=clock)
    try:
        yield pool, peer
    finally:
        await pool.aclose()
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(3):  # lets the transports report their end
            await asyncio.sleep(0)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Return an authority that only `trusting` trusts."""
    return Authority(tmp_path)


@pytest.fixture
def trusting(authority: Authority) -> ssl.SSLContext:
    """Return the TLS context of a client that trusts the authority; creating it reads files."""
    return tls_context(str(authority.bundle))


@pytest.fixture
def localhost(authority: Authority) -> ssl.SSLContext:
    """Return the TLS context of a server with a certificate for ``localhost``."""
    context = authority.server_context("localhost")
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def get(path: str = "/ok") -> bytes:
    """Return a request."""
    return f"GET {path} HTTP/1.1\r\nhost: h\r\n\r\n".encode()


def begun(pool: HttpPool, path: str = "/ok") -> asyncio.Task[Response]:
    """Begin a request in a new task."""

    async def request() -> Response:
        return await pool.request(get(path))

    return asyncio.create_task(request())


async def assert_sound(pool: HttpPool, limits: Limits = LIMITS) -> None:
    """Assert that more requests than the limit all get their responses."""
    many = 3 * limits.max_connections
    responses = await asyncio.gather(*(pool.request(get()) for _ in range(many)))
    assert [(response.status, response.body) for response in responses] == [(200, b"ok")] * many
    assert pool.open_connections <= limits.max_connections


@on_both_loops
async def test_a_connection_is_reused() -> None:
    """Consecutive requests share one connection."""
    async with pooled() as (pool, peer):
        for _ in range(5):
            assert (await pool.request(get())).body == b"ok"
        assert [number for number, _ in peer.seen] == [1] * 5


@on_both_loops
async def test_the_connection_used_last_is_used_first() -> None:
    """Of two idle connections the last used one is used, so that the other can expire."""
    async with pooled() as (pool, peer):
        peer.actions["/slow"] = hang
        slow = begun(pool, "/slow")
        await peer.asked("/slow", 1)
        await pool.request(get())
        peer.release.set()
        await slow
        for _ in range(3):
            await pool.request(get("/after"))
        assert [number for number, path in peer.seen if path == "/after"] == [1] * 3


@on_both_loops
async def test_a_connection_that_the_server_closed_while_idle_is_replaced() -> None:
    """A detected close fails no request."""
    async with pooled() as (pool, peer):
        peer.actions["/last"] = answer_and_close
        assert (await pool.request(get("/last"))).body == b"ok"
        await until(lambda: not pool.open_connections)
        assert (await pool.request(get())).body == b"ok"
        assert peer.connections == 2


@on_both_loops
async def test_a_connection_that_was_idle_for_too_long_is_not_trusted() -> None:
    """After a freeze, only the clock shows that a connection is old."""
    now = 0.0
    async with pooled(clock=lambda: now) as (pool, peer):
        await pool.request(get())
        now = LIMITS.idle + 1
        await pool.request(get())
        assert peer.connections == 2
        await until(lambda: pool.open_connections == 1)
        now = 2 * LIMITS.idle + 2
        pool.sweep()
        await until(lambda: not pool.open_connections)
        await assert_sound(pool)


@on_both_loops
async def test_a_connection_closed_in_place_of_an_answer_is_transient_trouble() -> None:
    """The pool never sends twice: the request fails, and the next one succeeds."""
    async with pooled() as (pool, peer):
        peer.actions["/close"] = close
        for _ in range(5):
            await pool.request(get())
            with pytest.raises(TransientError, match="before it responded"):
                await pool.request(get("/close"))
        assert [path for _, path in peer.seen].count("/close") == 5
        await assert_sound(pool)


@on_both_loops
async def test_no_more_connections_than_allowed() -> None:
    """The server never sees more connections than the limit."""
    limits = Limits(max_connections=5)
    async with pooled(limits) as (pool, peer):
        peer.actions["/slow"] = hang
        requests = [begun(pool, "/slow") for _ in range(50)]
        await until(lambda: peer.busy == 5)
        assert pool.open_connections == 5
        peer.release.set()
        await asyncio.gather(*requests)
        assert (peer.peak, peer.connections) == (5, 5)


@on_both_loops
async def test_who_waits_longest_is_served_first() -> None:
    """Waiting requests get the connection in their order."""
    limits = Limits(max_connections=1)
    async with pooled(limits) as (pool, peer):
        await asyncio.gather(*(pool.request(get(f"/{at}")) for at in range(20)))
        assert [path for _, path in peer.seen] == [f"/{at}" for at in range(20)]


@on_both_loops
async def test_a_cancelled_waiter_takes_nobodys_turn() -> None:
    """If a request is cancelled while it waits or just as it is served, the next one is served."""
    limits = Limits(max_connections=1)
    async with pooled(limits) as (pool, peer):
        peer.actions["/slow"] = half
        first = begun(pool, "/slow")
        await peer.asked("/slow", 1)
        waiting = [begun(pool, f"/{at}") for at in range(4)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        first.add_done_callback(lambda _: waiting[1].cancel())  # it is served by then
        peer.release.set()
        results = await asyncio.gather(first, *waiting, return_exceptions=True)
        assert [type(result) for result in results] == [
            Response,
            asyncio.CancelledError,
            asyncio.CancelledError,
            Response,
            Response,
        ]
        await assert_sound(pool, limits)


STAGES: dict[str, Action] = {"head": hang, "body": half}


@pytest.mark.parametrize("stage", STAGES)
@on_both_loops
async def test_a_cancelled_request_leaves_the_pool_sound(stage: str) -> None:
    """A connection with an unread response is closed; the limit and later responses are correct."""
    async with pooled() as (pool, peer):
        peer.actions["/slow"] = STAGES[stage]
        for times in range(1, 6):
            request = begun(pool, "/slow")
            await peer.asked("/slow", times)
            if stage == "body":
                await until(lambda: any(c._response for c in pool._connections))
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            pool.sweep()
            await until(lambda: not pool.open_connections)
        peer.release.set()
        await assert_sound(pool)


@on_both_loops
async def test_an_answer_that_nobody_waits_for_goes_to_nobody_else() -> None:
    """If the response is complete nevertheless, its connection carries the next request."""
    limits = Limits(max_connections=1)
    async with pooled(limits) as (pool, peer):
        peer.actions["/slow"] = half
        request = begun(pool, "/slow")
        await peer.asked("/slow", 1)
        request.cancel()
        following = begun(pool)
        peer.release.set()
        assert (await following).body == b"ok"
        assert peer.connections == 1
        await assert_sound(pool, limits)


@on_both_loops
async def test_a_request_cancelled_while_connecting_gives_its_place_back(
    trusting: ssl.SSLContext,
) -> None:
    """The half-open connection is closed, and the next request may open one."""
    limits = Limits(max_connections=1)
    async with pooled(limits, tls=trusting) as (pool, peer):  # the server does not speak TLS
        for times in range(1, 4):
            request = begun(pool)
            await peer.connected(times)
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            await peer.left(times)


@on_both_loops
async def test_a_stream_left_early_closes_its_connection() -> None:
    """A stream that ends early or is cancelled leaves no unread bytes on a connection."""
    async with pooled() as (pool, peer):
        peer.actions["/slow"] = half
        for _ in range(3):
            async with pool.stream(get("/slow")) as response:
                assert response.status == 200
            await until(lambda: not pool.open_connections)
        request = asyncio.create_task(read_stream(pool, "/slow"))
        await until(lambda: any(c._response for c in pool._connections))
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await until(lambda: not pool.open_connections)
        await assert_sound(pool)


async def read_stream(pool: HttpPool, path: str) -> bytes:
    """Return a body, read block by block."""
    async with pool.stream(get(path)) as response:
        assert response.stream is not None
        return b"".join([block async for block in response.stream])


@on_both_loops
async def test_a_stream_read_to_its_end_keeps_its_connection() -> None:
    """The connection of a streamed exchange is reused."""
    async with pooled() as (pool, peer):
        for _ in range(3):
            assert await read_stream(pool, "/ok") == b"ok"
        assert peer.connections == 1


BIG = 64 * 1024 * 1024


async def send_big(
    _peer: Peer, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Send 64 MB, as fast as they are read."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % BIG)
    block = bytes(64 * 1024)
    for _ in range(BIG // len(block)):
        writer.write(block)
        await writer.drain()


@on_both_loops
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_large_body_is_not_buffered(
    scheme: str, trusting: ssl.SSLContext, localhost: ssl.SSLContext
) -> None:
    """Without a reader, the server is held back; the buffer stays below 512 KiB."""
    client, server = (trusting, localhost) if scheme == "https" else (None, None)
    async with pooled(host="localhost", tls=client, server_tls=server) as (pool, peer):
        peer.actions["/big"] = send_big
        async with pool.stream(get("/big")) as response:
            stream = response.stream
            assert stream is not None
            await until(lambda: stream.paused)
            for _ in range(1000):
                await asyncio.sleep(0)
            assert stream.buffered <= 512 * 1024
            size = peak = 0
            async for block in stream:
                size += len(block)
                peak = max(peak, stream.buffered)
        assert size == BIG
        assert peak <= 512 * 1024
        await assert_sound(pool)


@on_both_loops
async def test_a_silent_server_is_given_up() -> None:
    """Silence, or a slow response beyond the total, fails the exchange; the pool still works."""
    now = 0.0
    async with pooled(clock=lambda: now) as (pool, peer):
        peer.actions["/slow"] = hang
        request = begun(pool, "/slow")
        await peer.asked("/slow", 1)
        now = LIMITS.read - 1
        pool.sweep()
        assert not request.done()
        now = LIMITS.read + 1
        pool.sweep()
        with pytest.raises(TransientError, match="no byte for 30 seconds"):
            await request
        request = begun(pool, "/slow")
        await peer.asked("/slow", 2)
        (connection,) = (c for c in pool._connections if c.busy)
        now += LIMITS.total + 1
        connection.last_received = now  # as after a drip
        pool.sweep()
        with pytest.raises(TransientError, match="no complete response in 120 seconds"):
            await request
        await assert_sound(pool)


@on_both_loops
async def test_the_timer_sweeps_by_itself() -> None:
    """The timer calls the sweep: a silent server is detected soon after the limit."""
    limits = Limits(read=0.05)
    async with pooled(limits, clock=asyncio.get_running_loop().time) as (pool, peer):
        peer.actions["/slow"] = hang
        with pytest.raises(TransientError, match="no byte for"):
            await pool.request(get("/slow"))


@on_both_loops
async def test_a_reader_who_takes_his_time_is_not_a_silent_server() -> None:
    """While the client pauses reading, the server's silence does not count."""
    now = 0.0
    async with pooled(clock=lambda: now) as (pool, peer):
        peer.actions["/big"] = send_big
        async with pool.stream(get("/big")) as response:
            stream = response.stream
            assert stream is not None
            await until(lambda: stream.paused)
            now = 1000.0
            pool.sweep()
            assert sum([len(block) async for block in stream]) == BIG


@on_both_loops
async def test_a_server_that_does_not_accept_is_transient_trouble() -> None:
    """A refused connection is reported, and its slot is freed."""
    async with pooled() as (pool, _):
        pass
    pool = HttpPool(pool.endpoint, Limits(max_connections=1))
    for _ in range(3):
        with pytest.raises(TransientError, match=str(pool.endpoint)):
            await pool.request(get())
    await pool.aclose()


@on_both_loops
async def test_connecting_takes_no_longer_than_allowed(trusting: ssl.SSLContext) -> None:
    """A server that accepts and stays silent is a timeout, and its slot is freed."""
    async with pooled(Limits(max_connections=1, connect=0.02), tls=trusting) as (pool, _):
        for _ in range(3):
            with pytest.raises(TransientError, match=r"no connection in 0\.02 seconds"):
                await pool.request(get())


@on_both_loops
async def test_closing_the_pool_ends_what_is_under_way() -> None:
    """Requests, streams and waiting requests fail; the sockets are closed when it returns."""
    async with pooled() as (pool, peer):
        peer.actions["/slow"] = half
        tasks = [begun(pool, "/slow") for _ in range(3)]
        await peer.asked("/slow", 2)
        await pool.aclose()
        assert not pool.open_connections
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, TransientError)
            assert "closed" in str(result)
        with pytest.raises(TransientError, match="closed"):
            await pool.request(get())
        await pool.aclose()


# ------------------------------------------------------------------ large requests

LARGE = 20 * 1024 * 1024


async def sum_slowly(
    peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Read a body after the release, and respond with its digest."""
    await peer.release.wait()
    digest = sha256(await reader.readexactly(LARGE)).hexdigest().encode()
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 64\r\n\r\n" + digest)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@on_both_loops
async def test_a_large_request_is_not_copied_as_a_whole(
    trusting: ssl.SSLContext, localhost: ssl.SSLContext, *, tls: bool
) -> None:
    """The transport never has more than a megabyte of it; the server gets all of it."""
    body = bytes(range(251)) * (LARGE // 251) + bytes(LARGE % 251)
    secure = {"host": "localhost", "server_tls": localhost, "tls": trusting} if tls else {}
    async with pooled(**cast("Any", secure)) as (pool, peer):
        peer.actions["/sum"] = sum_slowly
        await assert_sound(pool)
        transport = cast("asyncio.Transport", pool._idle[-1]._transport)
        answered = asyncio.ensure_future(pool.request(get("/sum"), body))
        await peer.asked("/sum", 1)
        buffered = [transport.get_write_buffer_size()]
        peer.release.set()
        while not answered.done():
            buffered.append(transport.get_write_buffer_size())
            await asyncio.sleep(0)
        assert (await answered).body == sha256(body).hexdigest().encode()
        assert max(buffered) <= 1024 * 1024
        assert not transport.is_closing()


# ------------------------------------------------------------------ TLS


@on_both_loops
async def test_a_server_that_our_authority_vouches_for_is_trusted(
    trusting: ssl.SSLContext, localhost: ssl.SSLContext
) -> None:
    """The CA bundle is used, and HTTP/1.1 is negotiated."""
    async with pooled(host="localhost", server_tls=localhost, tls=trusting) as (pool, _):
        await assert_sound(pool)
        transport = cast("asyncio.Transport", pool._idle[0]._transport)
        assert transport.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"


@on_both_loops
async def test_a_certificate_for_another_host_is_refused(
    trusting: ssl.SSLContext, localhost: ssl.SSLContext
) -> None:
    """A trusted certificate for another host is an error of the configuration."""
    async with pooled(host="127.0.0.1", server_tls=localhost, tls=trusting) as (pool, peer):
        with pytest.raises(ConfigurationError, match=r"127\.0\.0\.1"):
            await pool.request(get())
        assert not peer.seen


@pytest.fixture
def unsuspecting() -> ssl.SSLContext:
    """Return the TLS context of a client that trusts the system's authorities."""
    return tls_context()


@on_both_loops
async def test_an_unknown_authority_is_refused(
    unsuspecting: ssl.SSLContext, localhost: ssl.SSLContext
) -> None:
    """Without the bundle, the same server is not trusted."""
    async with pooled(host="localhost", server_tls=localhost, tls=unsuspecting) as (pool, peer):
        with pytest.raises(ConfigurationError, match="certificate"):
            await pool.request(get())
        assert not peer.seen


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_bundle_that_is_none_is_refused(tmp_path: Path, content: str | None) -> None:
    """A missing or empty bundle is an error that names it."""
    bundle = tmp_path / "bundle.pem"
    if content is not None:
        bundle.write_text(content)
    with pytest.raises(ConfigurationError, match=r"bundle\.pem"):
        tls_context(str(bundle))


def test_the_host_header_names_a_port_only_where_it_must() -> None:
    """The authority is what is signed: with the port only if it is not the default one."""
    assert Endpoint("h", 443, tls=True).authority == "h"
    assert Endpoint("h", 80, tls=False).authority == "h"
    assert Endpoint("h", 80, tls=True).authority == "h:80"
    assert Endpoint("::1", 9000, tls=False).authority == "[::1]:9000"
