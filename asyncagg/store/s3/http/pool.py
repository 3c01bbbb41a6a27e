"""The connections to one endpoint: opened as needed, bounded, reused, and watched by one timer."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from asyncagg.errors import ConfigurationError, TransientError
from asyncagg.store.s3.http.connection import Connection, Response

__all__ = ("Endpoint", "HttpPool", "Limits", "tls_context")

_RECEIVE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server listens.

    Attributes:
        host: Its name or address, without a port.
        port: Its port.
        tls: Whether it speaks TLS.
    """

    host: str
    port: int
    tls: bool

    @property
    def authority(self) -> str:
        """Its value of the ``Host`` header: the port only where it is not the usual one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}"


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a pool. Times are in seconds.

    Attributes:
        max_connections: The most connections at a time; who comes later waits, in order.
        connect: The longest that opening a connection takes, TLS included.
        read: The longest silence of the server within an exchange.
        total: The longest exchange whose body is read whole.
        idle: How long an unused connection is kept. Below what servers allow, so that a request
            seldom meets a connection that was just closed.
        max_body_bytes: The most bytes of a body that is read whole.
    """

    max_connections: int = 64
    connect: float = 10.0
    read: float = 30.0
    total: float = 120.0
    idle: float = 10.0
    max_body_bytes: int = 64 * 1024 * 1024


def tls_context(ca_bundle: str | None = None) -> ssl.SSLContext:
    """Return a TLS context that verifies the host and its certificate.

    It reads files, which blocks: an event loop is better given one that was made in a thread.

    Args:
        ca_bundle: A file or directory of authorities to trust instead of the system's.

    Raises:
        ConfigurationError: There is no such file, or it holds no certificate.
    """
    directory = ca_bundle is not None and Path(ca_bundle).is_dir()
    try:
        context = ssl.create_default_context(
            cafile=None if directory else ca_bundle, capath=ca_bundle if directory else None
        )
    except OSError as error:
        raise ConfigurationError(f"CA bundle {ca_bundle!r}: {error}") from error
    context.set_alpn_protocols(["http/1.1"])
    return context


class HttpPool:
    """Sends requests to one endpoint.

    A connection carries one exchange at a time and then waits for the next; the one used last is
    used first. A failure is a `TransientError`: the pool never sends a request twice.

    Args:
        endpoint: The server.
        limits: What bounds the pool.
        tls: The context for TLS, from `tls_context`; made here where it is needed and missing.
        clock: The time in seconds, for the limits.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        limits: Limits | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.endpoint = endpoint
        self._limits = limits or Limits()
        self._tls = (tls or tls_context()) if endpoint.tls else None
        self._clock = clock
        self._buffer = memoryview(bytearray(_RECEIVE_BYTES))
        self._connections: set[Connection] = set()
        self._idle: list[Connection] = []
        self._waiters: deque[asyncio.Future[Connection | None]] = deque()
        self._slots = self._limits.max_connections
        self._closed: asyncio.Event | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def open_connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def request(
        self, head: bytes, body: bytes = b"", *, bodyless: bool = False
    ) -> Awaitable[Response]:
        """Send a request and return its response, body included.

        It is sent at once where a connection is idle, and then no coroutine stands around the
        connection's own future. Whoever is cancelled while he waits leaves it to the next sweep to
        close the connection, unless the response has come in whole by then.

        Args:
            head: The request line and the headers, with the empty line that ends them.
            body: The request's content.
            bodyless: The response has no body, whatever its headers say (HEAD).

        Raises:
            TransientError: The network or the server failed; a retry may do.
            ConfigurationError: The server's certificate is not to be trusted.
        """
        now = self._clock()
        connection = self._idle_connection(now)
        if connection is None:
            return self._request_later(head, body, bodyless=bodyless)
        return connection.send(head, body, now, bodyless=bodyless, streamed=False)

    async def _request_later(self, head: bytes, body: bytes, *, bodyless: bool) -> Response:
        connection = await self._free_connection()
        return await connection.send(head, body, self._clock(), bodyless=bodyless, streamed=False)

    @asynccontextmanager
    async def stream(self, head: bytes) -> AsyncIterator[Response]:
        """Send a request without content; the response's body is read from its ``stream``.

        What is not read when the context ends is not waited for: the connection is closed.

        Args:
            head: The request line and the headers, with the empty line that ends them.

        Raises:
            TransientError: As in `request`; the stream raises it too.
            ConfigurationError: As in `request`.
        """
        now = self._clock()
        connection = self._idle_connection(now)
        if connection is None:
            connection = await self._free_connection()
            now = self._clock()
        answer = connection.send(head, b"", now, bodyless=False, streamed=True)
        try:
            yield await answer
        finally:
            connection.drop(answer)

    async def aclose(self) -> None:
        """Close every connection; requests under way fail. Returns when the sockets are closed."""
        if self._closed is None:
            self._closed = asyncio.Event()
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_exception(TransientError("the connection pool is closed"))
            for connection in tuple(self._connections):
                connection.fail("the connection pool is closed")
        if not self._connections:
            self._closed.set()
        await self._closed.wait()
        self._stop_timer()

    # Getting a connection

    def _idle_connection(self, now: float) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            # A frozen Lambda leaves connections that look alive: age tells, not the socket.
            if not connection.closing and now - connection.heard <= self._limits.idle:
                return connection
            connection.abort()
        return None

    async def _free_connection(self) -> Connection:
        if self._closed is not None:
            raise TransientError("the connection pool is closed")
        if self._slots:
            self._slots -= 1
            return await self._open()
        waiter: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            connection = await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled() and waiter.exception() is None:
                self._hand_on(waiter.result())  # it was served in the moment of the cancellation
            raise
        return await self._open() if connection is None else connection

    async def _open(self) -> Connection:
        try:
            connection = await self._connect()
        except BaseException:
            self._hand_on(None)
            raise
        self._connections.add(connection)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._period, self._tick)
        return connection

    async def _connect(self) -> Connection:
        endpoint, limits = self.endpoint, self._limits
        try:
            async with asyncio.timeout(limits.connect):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(
                        self,
                        self._clock,
                        buffer=self._buffer,
                        max_body_bytes=limits.max_body_bytes,
                    ),
                    endpoint.host,
                    endpoint.port,
                    ssl=self._tls,
                    server_hostname=endpoint.host if self._tls else None,
                )
        except ssl.SSLCertVerificationError as error:
            raise ConfigurationError(f"{endpoint}: {error.verify_message}") from error
        except TimeoutError as error:
            waited = f"no connection in {limits.connect:g} seconds"
            raise TransientError(f"{endpoint}: {waited}") from error
        except OSError as error:
            raise TransientError(f"{endpoint}: {error}") from error
        if connection.closing or self._closed is not None:
            connection.abort()
            raise TransientError(f"{endpoint}: the connection was closed as soon as it was open")
        return connection

    # Getting it back

    def released(self, connection: Connection) -> None:
        """Hand a connection to who waits longest, or keep it."""
        if self._waiters:
            self._hand_on(connection)
        else:
            self._idle.append(connection)

    def lost(self, connection: Connection) -> None:
        """Forget a closed connection; its place goes to who waits longest."""
        if connection not in self._connections:
            return  # it never was handed out: whoever opened it gives the place back
        self._connections.remove(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._hand_on(None)
        if self._closed is not None and not self._connections:
            self._closed.set()

    def _hand_on(self, connection: Connection | None) -> None:
        """Give a connection, or the right to open one, to the first who still waits."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        if connection is None:
            self._slots += 1
        else:
            self._idle.append(connection)

    # Watching the clock: one timer for all costs a request nothing

    @property
    def _period(self) -> float:
        return min(1.0, self._limits.read / 4, self._limits.total / 4)

    def _tick(self) -> None:
        self.sweep()
        self._timer = None
        if self._connections:
            self._timer = asyncio.get_running_loop().call_later(self._period, self._tick)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def sweep(self) -> None:
        """Fail the exchanges that take too long, close the connections that idle too long."""
        now, limits = self._clock(), self._limits
        for connection in tuple(self._connections):
            if reason := connection.overdue(now, read=limits.read, total=limits.total):
                connection.fail(reason)
        for connection in tuple(self._idle):
            if now - connection.heard > limits.idle:
                connection.abort()
