"""Sends signed requests to one bucket, and learns from its error responses.

From an error response it learns the bucket's region and endpoint, the server's clock, and that the
credentials have expired. For a new endpoint it sends the request again, once; what else it learned
helps the next attempt.
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

from asyncagg.errors import AsyncaggError, TransientError
from asyncagg.store.s3.demanded import NOTHING
from asyncagg.store.s3.http import HttpPool, Limits, Response
from asyncagg.store.s3.plane import make_error, s3_error
from asyncagg.store.s3.sigv4 import Credentials, S3Request, Signer
from asyncagg.store.s3.target import Target, redirected
from asyncagg.store.s3.text import in_utc
from asyncagg.store.s3.xml import ErrorResponse, parse_error

T = TypeVar("T")

CredentialsSource = Callable[[Credentials | None], Awaitable[Credentials]]
"""Returns the credentials to sign with. Its argument is the credentials that the server rejected as
expired, which it must not return again, or ``None``."""

_CREDENTIALS_SECONDS = 30.0
_MAX_SKEW_SECONDS = 300.0
_MAX_ERROR_BYTES = 64 * 1024
_EXPIRED_CODES = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})


class _Channel:
    """A target with its signer and its connections."""

    def __init__(self, target: Target, pool: HttpPool, headers: Mapping[str, str]) -> None:
        self.target = target
        self.pool = pool
        self.signer = Signer(
            target.server.authority,
            target.region,
            headers,
            root=target.root,
            tls=target.endpoint.tls,
        )

    def send(self, request: S3Request, credentials: Credentials, now: float) -> Awaitable[Response]:
        """Send a request and return its response, body included."""
        head = self.signer.sign(request, credentials, now)
        return self.pool.request(
            head, request.body, "no body" if request.method == "HEAD" else "body"
        )


class Requester:
    """Sends requests to one bucket.

    The source of credentials is called every 30 seconds, and when they have expired. ``headers``
    are sent with every request. ``clock`` is the time for signatures, ``monotonic`` the one for
    timeouts, both in seconds.
    """

    def __init__(
        self,
        target: Target,
        credentials: CredentialsSource,
        *,
        limits: Limits | None = None,
        tls: ssl.SSLContext | None = None,
        headers: Mapping[str, str] = NOTHING.every,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.bucket = target.bucket
        self._source = credentials
        self._limits = limits or Limits()
        self._tls = tls
        self._headers = headers
        self._clock = clock
        self._monotonic = monotonic
        self._channels: dict[Target, _Channel] = {}
        self._channel = self._channel_to(target)
        self._skew = 0.0
        self._credentials = Credentials("", "")
        self._expired: Credentials | None = None
        self._refresh_at = -math.inf
        self._refreshing = asyncio.Lock()

    async def ask(self, request: S3Request, parse: Callable[[S3Request, Response], T]) -> T:
        """Send a request, and return its parsed response.

        ``parse`` gets a successful response; it may raise a `TransientError` without context. The
        rare steps (refresh the credentials; ask another server) are checked inline, because this
        runs for every request.

        Raises:
            AsyncaggError: The error of `s3_error` for an error response.
            TransientError: The network failed, or the response is damaged.
        """
        now = self._clock()
        if now >= self._refresh_at:
            await self._refresh_credentials()
            now = self._clock()
        channel, credentials = self._channel, self._credentials
        try:
            response = await channel.send(request, credentials, now + self._skew)
            if response.status >= 300 and self._follow_redirect(channel, response):
                now = self._clock() + self._skew
                response = await self._channel.send(request, credentials, now)
            if response.status < 300:
                return parse(request, response)
        except TransientError as error:
            if error.operation:
                raise
            raise self.with_context(request, error) from error
        raise self._error(request, response, credentials)

    @asynccontextmanager
    async def stream(self, request: S3Request) -> AsyncIterator[Response]:
        """Send a request without a body, and open its response for streaming; raises as `ask`."""
        if self._clock() >= self._refresh_at:
            await self._refresh_credentials()
        channel, credentials = self._channel, self._credentials
        async with AsyncExitStack() as stack:
            try:
                response = await self._open(stack, channel, credentials, request)
                if response.status >= 300 and self._follow_redirect(channel, response):
                    response = await self._open(stack, self._channel, credentials, request)
                if response.status < 300:
                    yield response
                    return
            except TransientError as error:
                if error.operation:
                    raise
                raise self.with_context(request, error) from error
            raise self._error(request, response, credentials)

    def with_context(self, request: S3Request, error: TransientError) -> AsyncaggError:
        """Return the same error with the request's operation, key and bucket."""
        return make_error(
            type(error), request.operation, request.key, bucket=self.bucket, detail=str(error)
        )

    def error_in_result(self, request: S3Request, error: ErrorResponse) -> AsyncaggError:
        """Return the error for an error in a 200: S3 may fail after it has begun to respond."""
        return s3_error(
            request.operation,
            request.key,
            bucket=self.bucket,
            status=200,
            code=error.code,
            message=error.message,
        )

    async def aclose(self) -> None:
        """Close the connections."""
        for channel in self._channels.values():
            await channel.pool.aclose()

    def _channel_to(self, target: Target) -> _Channel:
        if target not in self._channels:
            pool = HttpPool(target.server, self._limits, tls=self._tls, clock=self._monotonic)
            self._channels[target] = _Channel(target, pool, self._headers)
        return self._channels[target]

    async def _open(
        self, stack: AsyncExitStack, channel: _Channel, credentials: Credentials, request: S3Request
    ) -> Response:
        head = channel.signer.sign(request, credentials, self._clock() + self._skew)
        response = await stack.enter_async_context(channel.pool.stream(head))
        if response.status >= 300:
            response.body = await _read_error(response)
        return response

    # What is learned from error responses

    def _follow_redirect(self, channel: _Channel, response: Response) -> bool:
        """Learn the bucket's server from a response; return whether to send the request again."""
        if channel is self._channel:  # otherwise another request has learned the server meanwhile
            region = parse_error(response.body).region
            moved = redirected(channel.target, response.status, response.headers, region)
            if moved is None:
                return False
            self._channel = self._channel_to(moved)
        return response.status in {301, 307, 400}

    def _error(
        self, request: S3Request, response: Response, credentials: Credentials
    ) -> AsyncaggError:
        """Return the error for an error response, after learning from it."""
        error, status = parse_error(response.body), response.status
        code = error.code
        if status == 403 and self._learn_skew(response.headers):
            code = "RequestTimeTooSkewed"
        elif code in _EXPIRED_CODES or (
            # The response to a HEAD has no code. An expired token is the one transient reason.
            request.method == "HEAD" and status == 400 and credentials.token
        ):
            code = "ExpiredToken"
            if credentials is self._credentials:  # otherwise they are refreshed already
                self._expired = credentials
                self._refresh_at = -math.inf
        return s3_error(
            request.operation,
            request.key,
            bucket=self.bucket,
            status=status,
            code=code,
            message=error.message,
            region=response.headers.get(b"x-amz-bucket-region", b"").decode("latin-1")
            or error.region,
        )

    def _learn_skew(self, headers: Mapping[bytes, bytes]) -> bool:
        """Adopt the server's time if ours is too far off, and return whether it was."""
        try:
            date = in_utc(parsedate_to_datetime(headers.get(b"date", b"").decode("latin-1")))
        except (OverflowError, ValueError):
            return False
        skew = date.timestamp() - self._clock()
        if abs(skew - self._skew) < _MAX_SKEW_SECONDS:
            return False
        self._skew = skew
        return True

    async def _refresh_credentials(self) -> None:
        async with self._refreshing:
            if self._clock() >= self._refresh_at:  # otherwise another request has refreshed them
                # The mark serves once. If there are no others, the next request asks the server
                # again: a warm Lambda has the same ones in its environment for ever.
                expired, self._expired = self._expired, None
                self._credentials = await self._source(expired)
                self._refresh_at = self._clock() + _CREDENTIALS_SECONDS


async def _read_error(response: Response) -> bytes:
    blocks: list[bytes] = []
    if response.stream is not None:
        async for block in response.stream:
            blocks.append(block)
            if sum(map(len, blocks)) > _MAX_ERROR_BYTES:
                break
    return b"".join(blocks)
