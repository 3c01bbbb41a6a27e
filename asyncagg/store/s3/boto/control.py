"""aioboto3's session and client: what knows credentials, regions and endpoints."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aioboto3
from aiobotocore.config import AioConfig
from botocore import exceptions as boto_errors

from asyncagg.errors import ConfigurationError
from asyncagg.store.s3.boto.bucket import BotoBucket
from asyncagg.store.s3.sigv4 import Credentials

__all__ = ("Answer", "Control", "Identity", "Location", "open_control")

_CONNECT_SECONDS = 5.0
_READ_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Location:
    """Where the control plane says that a bucket is.

    Attributes:
        host: The server, without the bucket in its name.
        port: Its port.
        tls: Whether it speaks TLS.
        region: The region to sign for.
        path_style: Whether the bucket stands in the path rather than in the host.
    """

    host: str
    port: int
    tls: bool
    region: str
    path_style: bool


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose credentials were found, and where.

    Attributes:
        access_key: The public half of them.
        source: Where they come from: ``env``, ``shared-credentials-file``, ``iam-role`` and so on.
    """

    access_key: str
    source: str


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of S3, a refusal or not.

    Attributes:
        status: The HTTP status.
        code: S3's error code; empty where there is none.
        message: S3's own sentence of it.
        headers: Its headers, names in lower case.
        content: All that it says.
    """

    status: int
    code: str
    message: str
    headers: Mapping[str, str]
    content: Mapping[str, Any]


class Control:
    """aioboto3's session and client: what knows credentials, regions and endpoints.

    Attributes:
        client: The S3 client, for requests that are not sent per file.
    """

    def __init__(self, session: aioboto3.Session, client: Any) -> None:
        self.client = client
        self._session = session

    async def locate(self, bucket: str) -> Location:
        """Return where requests for a bucket go: custom endpoints, dual-stack, FIPS and all.

        Raises:
            ConfigurationError: There are no credentials.
        """
        with BotoBucket(self.client, bucket, "").translated("locate", bucket):
            url = urlsplit(
                await self.client.generate_presigned_url(
                    "get_object", Params={"Bucket": bucket, "Key": "key"}
                )
            )
        scope = parse_qs(url.query)["X-Amz-Credential"][0].split("/")
        host = url.hostname or ""
        path_style = not host.startswith(f"{bucket}.")
        tls = url.scheme == "https"
        return Location(
            host=host if path_style else host.removeprefix(f"{bucket}."),
            port=url.port or (443 if tls else 80),
            tls=tls,
            region=scope[2],
            path_style=path_style,
        )

    @property
    def region(self) -> str:
        """The region that the environment names; empty where it names none."""
        return self._session.region_name or ""

    async def identity(self) -> Identity | None:
        """Return whose credentials were found, renewed where they can be; None where none were.

        Raises:
            AsyncaggError: They could not be renewed.
        """
        with BotoBucket(self.client, "", "").translated("credentials", ""):
            source = await self._session.get_credentials()
            if source is None:
                return None
            frozen = await source.get_frozen_credentials()
        return Identity(frozen.access_key, source.method)

    async def ask(self, operation: str, *, bucket: str, **parameters: Any) -> Answer:
        """Send one request of a client's method, and return its answer, a refusal too.

        Raises:
            AsyncaggError: There was no answer.
        """
        with BotoBucket(self.client, bucket, "").translated(operation, bucket):
            try:
                content = await getattr(self.client, operation)(Bucket=bucket, **parameters)
            except boto_errors.ClientError as error:
                content = error.response
        about, told = content["ResponseMetadata"], content.get("Error", {})
        return Answer(
            status=about["HTTPStatusCode"],
            code=str(told.get("Code", "")),
            message=told.get("Message", ""),
            headers=about["HTTPHeaders"],
            content=content,
        )

    async def credentials(self, expired: Credentials | None) -> Credentials:
        """Return credentials to sign with, other ones than those that the store refused.

        Raises:
            ConfigurationError: There are none.
        """
        found = await self._frozen()
        if found == expired:
            self._session = aioboto3.Session()  # looks everywhere anew
            found = await self._frozen()
        if found is None or found == expired:
            told = "none found" if found is None else "expired"
            raise ConfigurationError(
                f"credentials: {told}; expected those of the AWS environment "
                "(AWS_PROFILE, AWS_ACCESS_KEY_ID, a role)"
            )
        return found

    async def _frozen(self) -> Credentials | None:
        source = await self._session.get_credentials()
        if source is None:
            return None
        frozen = await source.get_frozen_credentials()
        return Credentials(frozen.access_key, frozen.secret_key, frozen.token or "")


@asynccontextmanager
async def open_control(*, endpoint_url: str, connections: int) -> AsyncIterator[Control]:
    """Open an S3 client of aioboto3, whose own retries are off.

    Args:
        endpoint_url: Another S3 server than AWS, or empty.
        connections: How many it may hold open.

    Raises:
        ConfigurationError: There is no region, or the endpoint is no URL.
    """
    config = AioConfig(
        retries={"total_max_attempts": 1},
        signature_version="s3v4",
        max_pool_connections=connections,
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        # The conditions and Content-Length already guard each body.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # A bucket's own host name would not resolve on other servers.
        s3={"addressing_style": "path"} if endpoint_url else {},
    )
    async with AsyncExitStack() as stack:
        with _set_up(endpoint_url):
            session = aioboto3.Session()
            region = session.region_name or "us-east-1"
            client = await stack.enter_async_context(
                session.client(
                    "s3", endpoint_url=endpoint_url or None, region_name=region, config=config
                )
            )
        yield Control(session, client)


@contextmanager
def _set_up(endpoint_url: str) -> Iterator[None]:
    try:
        yield
    except boto_errors.ProfileNotFound as error:
        raise ConfigurationError(
            f"AWS_PROFILE: {error}; expected a profile of the AWS configuration"
        ) from error
    except (boto_errors.NoRegionError, ValueError) as error:
        raise ConfigurationError(
            f"endpoint_url {endpoint_url!r}: {error}; expected a URL such as http://127.0.0.1:5000"
        ) from error
