"""aioboto3's session and client, which find credentials, regions and endpoints."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import aioboto3
from aiobotocore.config import AioConfig
from botocore import exceptions as boto_errors
from botocore.httpsession import mask_proxy_url
from botocore.utils import (
    get_environ_proxies,
    is_valid_endpoint_url,
    is_valid_ipv6_endpoint_url,
)

from asyncagg.errors import ConfigurationError, UsageError
from asyncagg.store.s3.boto.bucket import (
    BotoBucket,
    configuration_error,
    is_for_credentials,
)
from asyncagg.store.s3.boto.session import Session
from asyncagg.store.s3.environment import (
    CREDENTIALS_ADVICE,
    check_credentials,
    warn_of_plain_http,
)
from asyncagg.store.s3.http import Endpoint
from asyncagg.store.s3.sigv4 import Credentials
from asyncagg.store.s3.target import Target
from asyncagg.store.s3.text import printable

_CONNECT_SECONDS = 5.0
_READ_SECONDS = 30.0
_GLOBAL_HOST = "s3.amazonaws.com"

_NONE: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class S3Response:
    """A response of S3, successful or not; the code and the message are those of its error."""

    status: int
    code: str
    message: str
    headers: Mapping[str, str]
    content: Mapping[str, Any]


class Control:
    """aioboto3's session and client, which find credentials, regions and endpoints.

    Attributes:
        client: The S3 client, for requests that are not sent per file.
    """

    def __init__(self, session: Session, client: Any) -> None:
        self.client = client
        self._session = session

    @property
    def ca_bundle(self) -> str | None:
        """The file or directory of the trusted authorities, if the environment names one."""
        return self._session.ca_bundle

    @property
    def proxy(self) -> str:
        """The proxy in the environment for the client's endpoint; empty if there is none."""
        url = self.client.meta.endpoint_url
        return str(mask_proxy_url(get_environ_proxies(url).get(urlsplit(url).scheme, "")))

    async def locate(self, bucket: str) -> Target:
        """Return where requests for a bucket go: custom endpoints, dual-stack and FIPS included."""
        with BotoBucket(self.client, bucket).translating("locate", bucket):
            url = urlsplit(
                await self.client.generate_presigned_url(
                    "get_object", Params={"Bucket": bucket, "Key": "key"}
                )
            )
        scope = parse_qs(url.query)["X-Amz-Credential"][0].split("/")
        host = url.hostname or ""
        if host.endswith(_GLOBAL_HOST):  # boto's own requests go to the region
            own_host = urlsplit(self.client.meta.endpoint_url).hostname or ""
            host = host.removesuffix(_GLOBAL_HOST) + own_host
        path_style = not host.startswith(f"{bucket}.")
        path = unquote(url.path).removesuffix("/key")
        tls = url.scheme == "https"
        endpoint = Endpoint(
            host if path_style else host.removeprefix(f"{bucket}."),
            url.port or (443 if tls else 80),
            tls=tls,
        )
        return Target(
            endpoint,
            region=scope[2],
            bucket=bucket,
            path_style=path_style,
            path=path.removesuffix(f"/{bucket}") if path_style else path,
        )

    @property
    def region(self) -> str:
        """The region in the environment; empty if there is none."""
        return self._session.get_config_variable("region") or ""

    async def identity(self) -> tuple[str, str] | None:
        """Return the access key that was found and its source, such as ``env`` or ``iam-role``."""
        with BotoBucket(self.client, "").translating("credentials", ""):
            source = await self._session.get_credentials()
            if source is None:
                return None
            frozen = await source.get_frozen_credentials()
        return frozen.access_key, source.method

    async def ask(self, operation: str, *, bucket: str, **parameters: Any) -> S3Response:
        """Send one request by a method of the client; return error responses, too."""
        with BotoBucket(self.client, bucket).translating(operation, bucket):
            try:
                content = await getattr(self.client, operation)(Bucket=bucket, **parameters)
            except boto_errors.ClientError as error:
                if is_for_credentials(error):
                    raise
                content = error.response
        metadata, failure = content["ResponseMetadata"], content.get("Error", {})
        return S3Response(
            status=metadata["HTTPStatusCode"],
            code=printable(str(failure.get("Code", ""))),
            message=printable(failure.get("Message", "")),
            headers=metadata["HTTPHeaders"],
            content=content,
        )

    async def credentials(self, expired: Credentials | None) -> Credentials:
        """Return credentials to sign with, other than those that the server rejected.

        Raises:
            ConfigurationError: There are none.
        """
        found = await self._frozen()
        if found == expired:
            self._session = Session()  # it searches for credentials again
            found = await self._frozen()
        if found is None or found == expired:
            problem = "none found" if found is None else "expired"
            raise ConfigurationError(f"credentials: {problem}; {CREDENTIALS_ADVICE}")
        return found

    async def _frozen(self) -> Credentials | None:
        with BotoBucket(self.client, "").translating("credentials", ""):
            source = await self._session.get_credentials()
            if source is None:
                return None
            frozen = await source.get_frozen_credentials()
        return Credentials(frozen.access_key, frozen.secret_key, frozen.token or "")


@asynccontextmanager
async def open_control(
    *, endpoint_url: str, connections: int, parameters: Mapping[str, str] = _NONE
) -> AsyncIterator[Control]:
    """Open an S3 client of aioboto3.

    Args:
        endpoint_url: That of an S3 server other than AWS, or empty.
        connections: The most connections.
        parameters: Those of every request that knows them.

    Raises:
        UsageError: The endpoint is not a URL.
        ConfigurationError: boto rejects its environment.
    """
    check_credentials(os.environ)
    if endpoint_url and not (
        is_valid_endpoint_url(endpoint_url) or is_valid_ipv6_endpoint_url(endpoint_url)
    ):
        raise UsageError(
            f"endpoint_url {endpoint_url!r}: expected a URL such as http://127.0.0.1:5000",
            setting="endpoint_url",
        )
    config = AioConfig(
        signature_version="s3v4",
        max_pool_connections=connections,
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        # The conditions and Content-Length already protect each body.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # Other servers rarely have a DNS name for each bucket.
        s3={"addressing_style": "path"} if endpoint_url else {},
    )
    async with AsyncExitStack() as stack:
        try:
            session = Session()
            opening = aioboto3.Session(botocore_session=session).client(
                "s3",
                endpoint_url=endpoint_url or None,
                region_name=session.get_config_variable("region") or "us-east-1",
                config=config,
            )
            with BotoBucket(None, "").translating("open", ""):
                client = await stack.enter_async_context(opening)
        except boto_errors.BotoCoreError as error:
            raise configuration_error(error) from error
        client.meta.events.register("before-call.s3.HeadBucket", _without_redirect)
        if parameters:
            client.meta.events.register("provide-client-params.s3", partial(_provide, parameters))
        warn_of_plain_http(client.meta.endpoint_url)
        yield Control(session, client)


def _provide(
    parameters: Mapping[str, str], params: dict[str, Any], model: Any, **_: Any
) -> dict[str, Any]:
    """Return the parameters of a request with those that all requests of its kind have."""
    known = model.input_shape.members
    added: dict[str, Any] = {name: each for name, each in parameters.items() if name in known}
    if "BucketKeyEnabled" in added:
        added["BucketKeyEnabled"] = added["BucketKeyEnabled"] == "true"
    return params | added


def _without_redirect(*, context: dict[str, Any], **_: Any) -> None:
    """Keep a HeadBucket where it is: botocore sends one to follow a redirect, without end."""
    context["s3_redirect"]["redirected"] = True
