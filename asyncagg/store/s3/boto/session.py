"""aiobotocore's session, whose HTTP clients verify the server and stay with it.

aiobotocore 2.25, which aioboto3 15.5 pins, does not check host names, checks no certificate at all
through a proxy, and follows every redirect with the body and the headers.
"""

from __future__ import annotations

import os
from functools import partial
from types import SimpleNamespace
from typing import Any

import aiohttp
import anyio
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from aiobotocore.utils import AioContainerMetadataFetcher, _RefCountedSession
from anyio import to_thread
from botocore.config import Config
from botocore.exceptions import ReadTimeoutError
from botocore.utils import get_environ_proxies

from asyncagg.store.s3.http import tls_context

_TOTAL_SECONDS = 120.0
_MAX_BODY_BYTES = 16 * 1024 * 1024


class _Response(aiohttp.ClientResponse):
    """A response whose body cannot fill the memory; objects are read block by block instead."""

    async def read(self) -> bytes:
        """Return the whole body."""
        body = bytearray()
        complete = False
        try:
            async for block in self.content.iter_any():
                body += block
                _check_size(len(body))
            complete = True
        finally:
            if not complete:  # cut short, or too long: the connection cannot be used again
                self.close()
        return bytes(body)


def _check_size(size: int) -> None:
    if size > _MAX_BODY_BYTES:
        raise aiohttp.ClientPayloadError(f"the body exceeds {_MAX_BODY_BYTES} bytes")


class HttpSession(AIOHTTPSession):
    """Sends each request once, to the server it is for, after verifying its name over TLS."""

    async def send(self, request: Any) -> Any:
        """Send a request; its response must be complete in time, unless it is streamed."""
        with anyio.move_on_after(None if request.stream_output else _TOTAL_SECONDS):
            return await super().send(request)
        raise ReadTimeoutError(endpoint_url=request.url)

    def _create_connector(self, _proxy_url: str | None) -> aiohttp.TCPConnector:
        return aiohttp.TCPConnector(
            limit=self._max_pool_connections, ssl=self._tls, **self._connector_args
        )

    async def _get_session(self, proxy_url: str | None) -> SimpleNamespace:
        if proxy_url not in self._sessions:
            bundle = self._verify if isinstance(self._verify, str) and self._verify else None
            self._tls = await to_thread.run_sync(tls_context, bundle)
        session = await super()._get_session(proxy_url)
        session._response_class = _Response
        session._retry_connection = False  # the retries are those of `asyncagg.store.retry`
        return SimpleNamespace(request=partial(session.request, allow_redirects=False))


class _MetadataSession(HttpSession, _RefCountedSession):
    """The same for the endpoints of EC2 and of containers that serve credentials."""


class _Config(AioConfig):
    """A configuration that keeps `HttpSession` when it is merged; aiobotocore's loses it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(http_session_cls=HttpSession, **options)

    def merge(self, other_config: Config) -> _Config:
        """Return both configurations as one; the other's options win."""
        return _Config(**{**self._user_provided_options, **other_config._user_provided_options})


class Session(AioSession):
    """A session all of whose clients, those of its credential providers included, are safe."""

    def __init__(self) -> None:
        super().__init__()
        # The one retry layer is `asyncagg.store.retry`, also for credentials.
        self.set_default_client_config(_Config(retries={"total_max_attempts": 1}))

    @property
    def ca_bundle(self) -> str | None:
        """The file or directory of the trusted authorities, if the environment names one."""
        found = self.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")
        return found or None

    def _create_credential_resolver(self) -> Any:
        resolver = super()._create_credential_resolver()
        providers = {each.METHOD: each for each in resolver.providers}
        session = _MetadataSession(
            verify=self.ca_bundle or True, timeout=AioContainerMetadataFetcher.TIMEOUT_SECONDS
        )
        providers["container-role"]._fetcher = AioContainerMetadataFetcher(session)
        instance = providers["iam-role"]._role_fetcher
        instance._session = _MetadataSession(
            timeout=instance._timeout,
            proxies=get_environ_proxies(instance._base_url),
        )
        return resolver
