"""A server and a client for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from testkit.boto_client import NOON, connect
from testkit.s3server import S3Server


@pytest.fixture
async def server() -> AsyncIterator[S3Server]:
    """A server with one bucket and a clock at noon."""
    async with S3Server(["b"], clock=lambda: NOON) as server:
        yield server


@pytest.fixture
async def client(server: S3Server) -> AsyncIterator[Any]:
    """A client of that server."""
    async with connect(server.url) as client:
        yield client
