"""No client talks to a server that is not the one it is configured for.

Each client is tried with each wrong certificate, and with redirects to other servers. The servers
only record what they receive, so these tests cover the signed headers and the bodies of them all.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from io import BytesIO
from pathlib import Path
from ssl import SSLContext

import pytest
from aiobotocore.config import AioConfig
from anyio import to_thread
from botocore import UNSIGNED
from testkit.certificates import Authority

from asyncagg.errors import AsyncaggError, ConfigurationError
from asyncagg.store.s3.boto import BotoBucket, BotoMultipart, BotoPlane, Control, open_control
from asyncagg.store.s3.boto.session import HttpSession, Session
from asyncagg.store.s3.http import tls_context
from asyncagg.store.s3.http_plane import HttpDataPlane
from asyncagg.store.s3.requester import Requester

FORBIDDEN = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIATEST",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_SESSION_TOKEN": "the-session-token",
}


class Recorder:
    """A server that keeps the requests it receives, and sends the same response to each."""

    def __init__(self) -> None:
        self.port = 0
        self.received: list[bytes] = []
        self.response = FORBIDDEN

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one connection."""
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if b"100-continue" in head:
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
                body = await reader.readexactly(int(length[1]) if length else 0)
                self.received.append(head + body)
                writer.write(self.response)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def recording(tls: SSLContext | None = None) -> AsyncIterator[Recorder]:
    """Run a server that records."""
    recorder = Recorder()
    server = await asyncio.start_server(recorder.serve, "127.0.0.1", 0, ssl=tls)
    recorder.port = server.sockets[0].getsockname()[1]
    try:
        yield recorder
    finally:
        server.close()


# ------------------------------------------------------------------ the clients


async def _control(control: Control) -> None:
    await control.ask("list_objects_v2", bucket="b")


async def _multipart(control: Control) -> None:
    multipart = BotoMultipart(BotoBucket(control.client, "b"))
    await multipart.upload_part("k", "id", 1, BytesIO(b"the body"))


async def _boto_plane(control: Control) -> None:
    plane = BotoPlane(BotoBucket(control.client, "b"))
    await plane.put("k", b"the body", condition=None, content_type="text/plain", metadata={})


async def _lean_plane(control: Control) -> None:
    target = await control.locate("b")
    tls = await to_thread.run_sync(tls_context, control.ca_bundle)
    requester = Requester(target, control.credentials, tls=tls)
    plane = HttpDataPlane(requester)
    try:
        await plane.put("k", b"the body", condition=None, content_type="text/plain", metadata={})
    finally:
        await requester.aclose()


async def _refresh(control: Control) -> None:
    """Ask for credentials, with those of the environment of `_credential_source`."""
    control._session = Session()
    await control.credentials(None)


CLIENTS: dict[str, Callable[[Control], Awaitable[None]]] = {
    "control": _control,
    "multipart": _multipart,
    "boto plane": _boto_plane,
    "lean plane": _lean_plane,
    "web identity": _refresh,
    "container": _refresh,
}


@asynccontextmanager
async def opened(
    client: str, url: str, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Open a client whose server is at a URL, and yield a function that sends a request."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    async with open_control(endpoint_url=url, connections=1) as control:
        if CLIENTS[client] is _refresh:
            for name in CREDENTIALS:
                monkeypatch.delenv(name)
        if client == "web identity":
            token = folder / "token"
            token.write_text("the-web-identity-token")
            monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
            monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/r")
            monkeypatch.setenv("AWS_ENDPOINT_URL_STS", url)
        if client == "container":
            monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{url}/credentials")
            monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "the-container-token")
            monkeypatch.setattr(
                "aiobotocore.utils.AioContainerMetadataFetcher.SLEEP_TIME", 0, raising=True
            )
        yield lambda: CLIENTS[client](control)


# ------------------------------------------------------------------ certificates


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """An authority that the environment trusts."""
    authority = Authority(tmp_path)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.bundle))
    return authority


@pytest.mark.parametrize("client", CLIENTS)
async def test_only_a_server_that_proves_its_name_gets_a_request(
    client: str, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A right certificate is accepted; a wrong name, an expired or an unknown one is not."""
    wrong = {
        "name": authority.server_context("example.org"),
        "expired": authority.server_context("localhost", expired=True),
        "self-signed": authority.server_context("localhost", self_signed=True),
    }
    for case, context in wrong.items():
        async with recording(context) as server:
            url = f"https://localhost:{server.port}"
            async with opened(client, url, monkeypatch, tmp_path) as send:
                with pytest.raises(AsyncaggError) as caught:
                    await send()
            assert server.received == [], case
            if client != "container":  # its library hides the reason
                assert isinstance(caught.value, ConfigurationError), case
                assert "localhost" in str(caught.value)
    async with recording(authority.server_context("localhost")) as server:
        url = f"https://localhost:{server.port}"
        async with opened(client, url, monkeypatch, tmp_path) as send:
            with suppress(AsyncaggError):
                await send()
        assert server.received


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while block := await reader.read(65536):
            writer.write(block)
    writer.close()


async def _tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Be a proxy that connects to the port asked for."""
    head = await reader.readuntil(b"\r\n\r\n")
    port = int(head.split()[1].rpartition(b":")[2])
    from_server, to_server = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    await asyncio.gather(_pipe(reader, to_server), _pipe(from_server, writer))


async def test_a_proxy_changes_nothing_about_the_server_s_proof(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name and the certificate of the server behind a proxy are verified."""
    proxy = await asyncio.start_server(_tunnel, "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
    for name, accepted in (("example.org", False), ("localhost", True)):
        async with recording(authority.server_context(name)) as server:
            url = f"https://localhost:{server.port}"
            async with opened("boto plane", url, monkeypatch, tmp_path) as send:
                with pytest.raises(AsyncaggError) as caught:
                    await send()
            assert bool(server.received) is accepted
            assert isinstance(caught.value, ConfigurationError)  # 403 is one, too
    proxy.close()


async def test_a_ca_bundle_that_is_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CA bundle that cannot be read is not a server that cannot be reached."""
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "none.pem"))
    async with opened("control", "https://localhost:1", monkeypatch, tmp_path) as send:
        with pytest.raises(ConfigurationError, match=r"CA bundle .*none\.pem"):
            await send()


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "ca_bundle"])
async def test_the_ca_bundle_of_the_environment_is_that_of_every_plane(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variables and the AWS configuration are read as boto reads them."""
    if variable == "ca_bundle":
        (tmp_path / "config").write_text("[default]\nca_bundle = /its/bundle\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    else:
        monkeypatch.setenv(variable, "/its/bundle")
    async with open_control(endpoint_url="", connections=1) as control:
        assert control.ca_bundle == "/its/bundle"


# ------------------------------------------------------------------ redirects


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_redirect_takes_nothing_to_another_server(
    client: str, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a body nor a token goes to another scheme, host or port."""
    tls = authority.server_context("localhost")
    async with AsyncExitStack() as stack:
        asked, plain = [await stack.enter_async_context(recording(it)) for it in (tls, None)]
        tls_elsewhere = await stack.enter_async_context(recording(tls))
        other_host = await stack.enter_async_context(
            recording(authority.server_context("127.0.0.1"))
        )
        url = f"https://localhost:{asked.port}"
        send = await stack.enter_async_context(opened(client, url, monkeypatch, tmp_path))
        for status in (301, 302, 307, 308):
            for location in (
                f"http://localhost:{plain.port}/b/k",
                f"https://localhost:{tls_elsewhere.port}/b/k",
                f"https://127.0.0.1:{other_host.port}/b/k",
            ):
                asked.response = (
                    f"HTTP/1.1 {status} Moved\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n"
                ).encode()
                with suppress(AsyncaggError):
                    await send()
        assert 12 <= len(asked.received) <= 12 * 5
        assert [plain.received, tls_elsewhere.received, other_host.received] == [[], [], []]


@pytest.mark.parametrize("service", ["s3", "sts", "sso", "sso-oidc"])
async def test_every_client_of_the_session_is_a_safe_one(service: str) -> None:
    """Also those that the credential providers make, which pass a configuration of their own."""
    config = AioConfig(signature_version=UNSIGNED)
    for region in ("us-east-1", "fips-us-east-1"):
        async with Session().create_client(service, region_name=region, config=config) as client:
            assert type(client._endpoint.http_session) is HttpSession
            assert client.meta.config.signature_version is UNSIGNED
