"""A TCP proxy in front of a server: it kills a process at the request that a pattern describes."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit

__all__ = ("KillingProxy",)


class KillingProxy:
    """Passes bytes on, until a request comes that kills its sender.

    Args:
        server: The server's address.
        pattern: Found in the first bytes of the request that kills.
        passed_on: Whether the server gets that request.

    Attributes:
        victim: The id of the process to kill.
        killed: Whether it was killed.
    """

    def __init__(self, server: str, pattern: bytes, *, passed_on: bool) -> None:
        self.victim = 0
        self.killed = False
        self._server = urlsplit(server)
        self._pattern = re.compile(pattern)
        self._passed_on = passed_on

    @property
    def url(self) -> str:
        """The proxy's address."""
        return "http://{}:{}".format(*self._listener.sockets[0].getsockname())

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, here = await asyncio.open_connection(self._server.hostname, self._server.port)
        back = asyncio.create_task(_pump(there, writer))
        try:
            while data := await reader.read(65536):
                if self._pattern.search(data) and not self.killed:
                    os.kill(self.victim, signal.SIGKILL)
                    self.killed = True
                    if not self._passed_on:
                        break
                here.write(data)
                await here.drain()
        except ConnectionError:
            pass  # the process is dead
        finally:
            here.close()
            await back


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
