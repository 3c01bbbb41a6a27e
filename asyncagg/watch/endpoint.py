"""``/healthz`` and ``/metrics`` of a watch, over HTTP. Needs the extra ``watch``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
from aiohttp import web
from anyio import to_thread
from prometheus_client.exposition import choose_encoder

from asyncagg.errors import ConfigurationError, UsageError
from asyncagg.watch.exporter import Exporter
from asyncagg.watch.health import Health

MAX_CONNECTIONS = 64
"""The most connections at a time; others are closed at once."""

CONNECTION_SECONDS = 10.0
"""The time of a connection: for the request and the response."""

_CLOSING_SECONDS = 1.0


class _BoundedServer(web.Server):
    """An HTTP server with a bound on its connections, and on the time of each.

    Each connection has one request. aiohttp itself has no limit for a client that connects and
    sends nothing, or half of a request.
    """

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Close a connection after its time, or at once if there are too many."""
        super().connection_made(handler, transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            asyncio.get_running_loop().call_later(CONNECTION_SECONDS, transport.abort)


def address_of(text: str) -> tuple[str, int]:
    """Return the host and port of ``PORT``, ``HOST:PORT`` or ``[IPv6]:PORT``.

    The default host is 127.0.0.1, which only this machine can reach. Port 0 means a free port.

    Raises:
        UsageError: It has none of these forms.
    """
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not (port.isascii() and port.isdigit() and int(port) < 65536) or (
        ":" in host and not bracketed
    ):
        raise UsageError(
            f"listen {text!r}: expected PORT or HOST:PORT, such as 9464, 0.0.0.0:9464, [::1]:9464",
            setting="listen",
        )
    return (host[1:-1] if bracketed else host) or "127.0.0.1", int(port)


async def _respond(request: web.BaseRequest, health: Health, exporter: Exporter) -> web.Response:
    if request.method not in {"GET", "HEAD"}:
        return web.Response(status=405, headers={"allow": "GET, HEAD"})
    match request.path:
        case "/healthz":
            state = health.as_dict()
            return web.Response(
                body=orjson.dumps(state) + b"\n",
                status=200 if state["healthy"] else 503,
                content_type="application/json",
                headers={"cache-control": "no-store"},
            )
        case "/metrics":
            encode, kind = choose_encoder(request.headers.get("accept", ""))
            metrics = await to_thread.run_sync(encode, exporter.registry)  # it reads from /proc
            return web.Response(body=metrics, headers={"content-type": kind})
        case _:
            return web.Response(status=404)


@asynccontextmanager
async def serve(address: tuple[str, int], health: Health, exporter: Exporter) -> AsyncIterator[str]:
    """Serve on an address as long as the context is open, which yields the URL.

    ``/healthz`` answers 200 or 503 with the state as JSON, ``/metrics`` in Prometheus' format.

    Args:
        address: Host and port.
        health: The state.
        exporter: The metrics.

    Raises:
        ConfigurationError: The address is not available.
    """

    async def answer(request: web.BaseRequest) -> web.Response:
        response = await _respond(request, health, exporter)
        response.force_close()
        return response

    runner = web.ServerRunner(
        _BoundedServer(answer, access_log=None), shutdown_timeout=_CLOSING_SECONDS
    )
    await runner.setup()
    try:
        host, port = address
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise ConfigurationError(f"listen {host}:{port}: {error.strerror or error}") from error
        bound = runner.addresses[0][1]
        yield f"http://{f'[{host}]' if ':' in host else host}:{bound}"
    finally:
        await runner.cleanup()
