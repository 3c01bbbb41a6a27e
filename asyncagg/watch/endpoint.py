"""``/healthz`` and ``/metrics`` of a watch, over HTTP. Needs the extra ``watch``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
from aiohttp import web
from prometheus_client.aiohttp import make_aiohttp_handler

from asyncagg.errors import ConfigurationError, UsageError
from asyncagg.watch.exporter import Exporter
from asyncagg.watch.health import Health

_CLOSING_SECONDS = 1.0


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

    async def healthz(_: web.Request) -> web.Response:
        state = health.as_dict()
        return web.Response(
            body=orjson.dumps(state) + b"\n",
            status=200 if state["healthy"] else 503,
            content_type="application/json",
            headers={"cache-control": "no-store"},
        )

    application = web.Application()
    application.router.add_get("/healthz", healthz)
    application.router.add_get("/metrics", make_aiohttp_handler(exporter.registry))
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=_CLOSING_SECONDS)
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
