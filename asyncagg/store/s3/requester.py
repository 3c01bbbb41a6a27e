"""Sends signed requests to one bucket, and learns from its refusals.

Learned are the region and endpoint of the bucket (the request is sent again, once), the server's
clock, and that credentials have expired (both leave the next try to the retry layer).
"""

from __future__ import annotations

import asyncio
import math
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from email.utils import parsedate_to_datetime
from typing import TypeVar

import msgspec

from asyncagg.errors import AsyncaggError, TransientError
from asyncagg.store.s3.http import HttpPool, Limits, Response
from asyncagg.store.s3.plane import failure
from asyncagg.store.s3.sigv4 import (
    EMPTY_PAYLOAD,
    UNSIGNED_PAYLOAD,
    Credentials,
    Signer,
    payload_hash,
)
from asyncagg.store.s3.target import Target, redirected
from asyncagg.store.s3.xml import parse_refusal

__all__ = ("CredentialsSource", "Requester", "S3Request", "with_context")

T = TypeVar("T")

CredentialsSource = Callable[[Credentials | None], Awaitable[Credentials]]
"""Returns the credentials to sign with. It is given those that the store refused as expired, and
then must not return them again; ``None`` otherwise."""

_CREDENTIALS_SECONDS = 30.0
_MAX_SKEW_SECONDS = 300.0
_MAX_HASHED_BYTES = 64 * 1024
_MAX_REFUSAL_BYTES = 64 * 1024
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})


class S3Request(msgspec.Struct, gc=False):
    """A request as it stands before anybody knows which server gets it.

    Attributes:
        operation: What is asked, in the words of `asyncagg.store.Store`.
        key: The object's key or the prefix, for messages.
        method: The HTTP method.
        path: The path below the bucket, encoded, with its slash.
        headers: What to sign and send, but for ``host``; names in lower case.
        query: The query string, canonical.
        body: The content.
    """

    operation: str
    key: str
    method: str
    path: str
    headers: dict[str, str] = {}
    query: str = ""
    body: bytes = b""


def with_context(request: S3Request, error: TransientError) -> TransientError:
    """Return the same trouble, saying which request it befell."""
    text = f"{request.operation} {request.key!r}: {error}"
    return TransientError(text, operation=request.operation, key=request.key)


class _Channel:
    """One target with its signer and its connections."""

    def __init__(self, target: Target, pool: HttpPool) -> None:
        self.target = target
        self.pool = pool
        self._signer = Signer(target.server.authority, target.region)
        self._root = target.root
        self._tls = target.endpoint.tls

    def send(self, request: S3Request, credentials: Credentials, now: float) -> Awaitable[Response]:
        """Send a request and return its answer, body included."""
        head = self.head(request, credentials, now)
        return self.pool.request(head, request.body, bodyless=request.method == "HEAD")

    def head(self, request: S3Request, credentials: Credentials, now: float) -> bytes:
        """Return the signed head of a request."""
        method, query, body = request.method, request.query, request.body
        path = self._root + request.path
        payload = EMPTY_PAYLOAD
        if body:
            # Over TLS a large content is left to its checksum, as botocore does; else it is hashed.
            unsigned = self._tls and len(body) > _MAX_HASHED_BYTES
            payload = UNSIGNED_PAYLOAD if unsigned else payload_hash(body)
        lines = self._signer.sign(
            credentials,
            now,
            method=method,
            path=path,
            query=query,
            headers=request.headers,
            payload=payload,
        )
        target = f"{path}?{query}" if query else path
        # A request that could have a content says that it has none.
        length = f"content-length:{len(body)}\r\n" if body or method in {"PUT", "POST"} else ""
        return f"{method} {target} HTTP/1.1\r\n{lines}{length}\r\n".encode()


class Requester:
    """Sends requests to one bucket.

    Args:
        target: The bucket.
        credentials: Where the credentials come from; asked now and then, and when some expired.
        limits: What bounds the connections.
        tls: The context for TLS.
        clock: The time in seconds since the epoch, for signatures.
        monotonic: The time in seconds, for timeouts.
    """

    def __init__(
        self,
        target: Target,
        credentials: CredentialsSource,
        *,
        limits: Limits,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = credentials
        self._limits = limits
        self._tls = tls
        self._clock = clock
        self._monotonic = monotonic
        self._channels: dict[Target, _Channel] = {}
        self._channel = self._channel_to(target)
        self._skew = 0.0
        self._credentials = Credentials("", "")
        self._expired: Credentials | None = None
        self._ask_again_at = -math.inf
        self._renewing = asyncio.Lock()

    @property
    def target(self) -> Target:
        """The bucket, where it is known to be."""
        return self._channel.target

    async def ask(self, request: S3Request, read: Callable[[S3Request, Response], T]) -> T:
        """Return what the answer to a request says, if it is no refusal.

        Args:
            request: What to ask.
            read: Reads the answer; it may raise a `TransientError` that does not say of what.

        Raises:
            AsyncaggError: What `asyncagg.store.s3.plane.failure` makes of the refusal.
            TransientError: The network failed, or the answer is damaged.
        """
        now = self._clock()
        if now >= self._ask_again_at:
            await self._renew_credentials()
            now = self._clock()  # that may have taken a while
        channel, credentials = self._channel, self._credentials
        try:
            response = await channel.send(request, credentials, now + self._skew)
            if response.status >= 300 and self._follow(channel, response):
                now = self._clock() + self._skew
                response = await self._channel.send(request, credentials, now)
            if response.status < 300:
                return read(request, response)
        except TransientError as error:
            if error.operation:
                raise
            raise with_context(request, error) from error
        raise self._refused(request, response, credentials)

    @asynccontextmanager
    async def stream(self, request: S3Request) -> AsyncIterator[Response]:
        """Open the answer to a request without content, if it is no refusal.

        Raises:
            AsyncaggError: As in `ask`.
        """
        if self._clock() >= self._ask_again_at:
            await self._renew_credentials()
        channel, credentials = self._channel, self._credentials
        async with AsyncExitStack() as stack:
            try:
                response = await self._opened(stack, channel, credentials, request)
                if response.status >= 300 and self._follow(channel, response):
                    response = await self._opened(stack, self._channel, credentials, request)
                if response.status < 300:
                    yield response
                    return
            except TransientError as error:
                if error.operation:
                    raise
                raise with_context(request, error) from error
            raise self._refused(request, response, credentials)

    async def aclose(self) -> None:
        """Close the connections."""
        for channel in self._channels.values():
            await channel.pool.aclose()

    # Sending

    def _channel_to(self, target: Target) -> _Channel:
        if target not in self._channels:
            pool = HttpPool(target.server, self._limits, tls=self._tls, clock=self._monotonic)
            self._channels[target] = _Channel(target, pool)
        return self._channels[target]

    async def _opened(
        self, stack: AsyncExitStack, channel: _Channel, credentials: Credentials, request: S3Request
    ) -> Response:
        head = channel.head(request, credentials, self._clock() + self._skew)
        response = await stack.enter_async_context(channel.pool.stream(head))
        if response.status >= 300:
            response.body = await _gathered(response)
        return response

    # Learning

    def _follow(self, channel: _Channel, response: Response) -> bool:
        """Tell whether to send a refused request again, to where the bucket is known to be now."""
        if channel is self._channel:
            region = parse_refusal(response.body).region
            moved = redirected(channel.target, response.status, response.headers, region)
            if moved is None:
                return False
            self._channel = self._channel_to(moved)
        # Else another request has learned it meanwhile.
        return response.status in {301, 307, 400}

    def _refused(
        self, request: S3Request, response: Response, credentials: Credentials
    ) -> AsyncaggError:
        """Return the error for a refusal, after learning what can be learned from it."""
        refusal, status = parse_refusal(response.body), response.status
        code = refusal.code
        if status == 403 and self._learn_skew(response.headers):
            code = "RequestTimeTooSkewed"
        elif code in _EXPIRED or self._may_be_expired(request, status, credentials):
            code = "ExpiredToken"
            self._expire(credentials)
        return failure(
            request.operation,
            request.key,
            bucket=self.target.bucket,
            status=status,
            code=code or _CODES_OF_HEADS.get(status, ""),
            message=refusal.message,
        )

    @staticmethod
    def _may_be_expired(request: S3Request, status: int, credentials: Credentials) -> bool:
        # The refusal of a HEAD has no body to say why; an expired token is the reason that passes.
        return request.method == "HEAD" and status == 400 and bool(credentials.token)

    def _learn_skew(self, headers: Mapping[bytes, bytes]) -> bool:
        """Tell whether our clock was too far from the server's, and follow the server's."""
        try:
            date = parsedate_to_datetime(headers.get(b"date", b"").decode("latin-1"))
        except ValueError:
            return False
        skew = date.timestamp() - self._clock()
        if abs(skew - self._skew) < _MAX_SKEW_SECONDS:
            return False
        self._skew = skew
        return True

    # Credentials

    async def _renew_credentials(self) -> None:
        async with self._renewing:
            if self._clock() >= self._ask_again_at:  # else another request has just renewed them
                self._credentials = await self._source(self._expired)
                self._expired = None
                self._ask_again_at = self._clock() + _CREDENTIALS_SECONDS

    def _expire(self, credentials: Credentials) -> None:
        if credentials is self._credentials:  # else they are renewed already
            self._expired = credentials
            self._ask_again_at = -math.inf


_CODES_OF_HEADS = {301: "PermanentRedirect"}


async def _gathered(response: Response) -> bytes:
    blocks: list[bytes] = []
    if response.stream is not None:
        async for block in response.stream:
            blocks.append(block)
            if sum(map(len, blocks)) > _MAX_REFUSAL_BYTES:
                break
    return b"".join(blocks)
