"""Credentials, region and endpoint from the environment variables of a Lambda, without boto.

Loading boto and opening its client take half of the CPU time of a start and a third of the memory.
So boto decides only if the environment has anything that this module does not know.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address
from urllib.parse import urlsplit

from asyncagg.errors import ConfigurationError
from asyncagg.store.s3.http import Endpoint
from asyncagg.store.s3.sigv4 import Credentials
from asyncagg.store.s3.target import Target

CREDENTIALS_ADVICE = (
    "expected those of the AWS environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "AWS_PROFILE, or a role"
)

_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_FILES = {
    "AWS_CONFIG_FILE": "~/.aws/config",
    "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
}
_KNOWN = frozenset(
    {
        *_CREDENTIALS,
        *_FILES,
        "AWS_CA_BUNDLE",
        "AWS_DEFAULT_REGION",
        "AWS_EC2_METADATA_DISABLED",
        "AWS_EXECUTION_ENV",
        "AWS_REGION",  # boto ignores it
    }
)
_OF_LAMBDA = ("AWS_LAMBDA_", "AWS_XRAY_")
_PROXIES = frozenset({"http_proxy", "https_proxy", "all_proxy"})
# The regions of the partition "aws", and the names that have the usual host: buckets, and aliases.
_AWS_REGION = re.compile(r"(us|eu|ap|sa|ca|me|af|il|mx)-\w+-\d+")
_BUCKET = re.compile(r"(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_REGION = re.compile(r"[a-z0-9-]*")
_HOST = re.compile(r"[a-z0-9.:-]+")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Environment:
    """What the environment says of a bucket.

    Attributes:
        target: Where its requests go.
        ca_bundle: The file or directory of the trusted authorities, if it names one.
        found: The credentials.
    """

    target: Target
    ca_bundle: str | None
    found: Credentials

    async def credentials(self, expired: Credentials | None) -> Credentials:
        """Return the credentials; they cannot be refreshed.

        Raises:
            ConfigurationError: They have expired.
        """
        if self.found == expired:
            raise ConfigurationError(f"credentials: expired; {CREDENTIALS_ADVICE}")
        return self.found


def read_environment(
    variables: Mapping[str, str], *, bucket: str, endpoint_url: str
) -> Environment | None:
    """Return what the variables say, or None if only boto can tell. It looks for boto's files.

    Args:
        variables: The environment variables.
        bucket: The bucket.
        endpoint_url: The URL of an S3 server other than AWS, or empty.
    """
    if not all(_is_known(name) for name in variables) or any(map(_exists, _files(variables))):
        return None
    found = Credentials(*(variables.get(name, "") for name in _CREDENTIALS))
    target = _target(bucket, endpoint_url, variables.get("AWS_DEFAULT_REGION", ""))
    if not (found.access_key and found.secret_key and target):
        return None
    ca_bundle = variables.get("AWS_CA_BUNDLE") or variables.get("REQUESTS_CA_BUNDLE")
    return Environment(target, ca_bundle or None, found)


def _is_known(name: str) -> bool:
    if name.startswith("AWS_"):
        return name in _KNOWN or name.startswith(_OF_LAMBDA)
    return name.lower() not in _PROXIES


def _files(variables: Mapping[str, str]) -> list[str]:
    return [variables.get(name) or default for name, default in _FILES.items()]


def _exists(path: str) -> bool:
    # As boto does; unlike those of `pathlib`, these functions never raise.
    return path != os.devnull and os.path.exists(os.path.expanduser(os.path.expandvars(path)))  # noqa: PTH110, PTH111


def _target(bucket: str, endpoint_url: str, region: str) -> Target | None:
    if not _BUCKET.fullmatch(bucket):
        return None
    if not endpoint_url:
        if not _AWS_REGION.fullmatch(region):
            return None
        host = "s3.amazonaws.com" if region == "us-east-1" else f"s3.{region}.amazonaws.com"
        return Target(Endpoint(host, 443, tls=True), region, bucket, path_style=False)
    endpoint = _endpoint(endpoint_url)
    if endpoint is None or not _REGION.fullmatch(region):
        return None
    return Target(endpoint, region or "us-east-1", bucket, path_style=True)


def _endpoint(endpoint_url: str) -> Endpoint | None:
    """Return the server of a URL that has only a scheme, a host and perhaps a port."""
    try:
        url = urlsplit(endpoint_url)
        host, port = url.hostname or "", url.port
    except ValueError:
        return None
    rest = endpoint_url.partition("://")[2].rstrip("/")
    tls = url.scheme == "https"
    if url.scheme not in {"http", "https"} or rest != url.netloc or "@" in rest:
        return None
    return Endpoint(host, port or (443 if tls else 80), tls=tls) if _HOST.fullmatch(host) else None


def check_credentials(variables: Mapping[str, str]) -> None:
    """Check for white space around credentials, which only a rejected signature would show.

    Raises:
        ConfigurationError: There is some.
    """
    for name in _CREDENTIALS:
        value = variables.get(name, "")
        if value != value.strip():
            raise ConfigurationError(
                f"{name} has white space around its value: remove it, also a line break at its end"
            )


@cache  # once per process
def warn_of_plain_http(url: str) -> None:
    """Warn that signed requests, and a session token, can be read on the way to a server."""
    server = urlsplit(url)
    if server.scheme == "http" and not _is_loopback(server.hostname or ""):
        _log.warning("credentials are used over http", extra={"endpoint": url})


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
