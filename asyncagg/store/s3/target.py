"""The server of a bucket, and the redirects to another one that are followed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from asyncagg.store.s3.http import Endpoint
from asyncagg.store.s3.sigv4 import encode_path

_REGION = re.compile(r"[a-z0-9-]{1,40}")
# S3's own host names only: another host below amazonaws.com, such as a load balancer, can belong to
# anybody.
_AWS = re.compile(
    r"s3(-fips|-accesspoint|-accesspoint-fips|-[a-z]{2}(-[a-z]+)+-\d)?"
    r"(\.dualstack)?(\.[a-z]{2}(-[a-z]+)+-\d)?\.(?P<domain>amazonaws\.com(\.cn)?)"
)


@dataclass(frozen=True, slots=True)
class Target:
    """A bucket and its server.

    Attributes:
        endpoint: The S3 server, without the bucket in its name.
        region: The region that requests are signed for.
        bucket: The bucket.
        path_style: Whether the bucket is part of the path rather than of the host name.
        path: The path of the endpoint before the bucket or the key, without a trailing slash.
    """

    endpoint: Endpoint
    region: str
    bucket: str
    path_style: bool
    path: str = ""

    @property
    def server(self) -> Endpoint:
        """The server that requests are sent to."""
        if self.path_style:
            return self.endpoint
        return replace(self.endpoint, host=f"{self.bucket}.{self.endpoint.host}")

    @property
    def root(self) -> str:
        """The path of the bucket, without a trailing slash."""
        bucket = f"/{self.bucket}" if self.path_style else ""
        return encode_path(self.path + bucket)


def redirected(
    target: Target, status: int, headers: Mapping[bytes, bytes], region: str
) -> Target | None:
    """Return the target that a response redirects to, or ``None`` if it names no other one.

    A region is taken from the headers or the body of any response (``region`` is that of the body).
    A host is taken only if it is S3's own in the same partition as the one asked, and a port never:
    a forged response cannot send signed requests elsewhere.
    """
    if status not in (301, 307, 400):
        return None
    named = headers.get(b"x-amz-bucket-region", b"").decode("latin-1") or region
    if not _REGION.fullmatch(named):
        named = target.region
    endpoint = _in_region(target.endpoint, target.region, named)
    if status != 400:
        location = headers.get(b"location", b"").decode("latin-1")
        endpoint = _trusted_endpoint(target, location) or endpoint
    moved = replace(target, endpoint=endpoint, region=named)
    return None if moved == target else moved


def _in_region(endpoint: Endpoint, old: str, new: str) -> Endpoint:
    """Return the same kind of AWS endpoint in another region; other endpoints do not change."""
    found = _AWS.fullmatch(endpoint.host)
    if found is None or new == old:
        return endpoint
    labels = endpoint.host.split(".")
    if old in labels:
        host = ".".join([new if label == old else label for label in labels])
    else:  # the global name, or a legacy one
        host = f"s3.{new}.{found['domain']}"
    return replace(endpoint, host=host)


def _trusted_endpoint(target: Target, location: str) -> Endpoint | None:
    """Return the endpoint of a ``Location`` header, or ``None`` if it must not be followed."""
    try:
        url = urlsplit(location)
        host, port = url.hostname or "", url.port
    except ValueError:
        return None
    tls = target.endpoint.tls
    if url.scheme != ("https" if tls else "http"):
        return None
    if (port or (443 if tls else 80)) != target.endpoint.port:
        return None
    if not target.path_style:
        if not host.startswith(f"{target.bucket}."):
            return None
        host = host.removeprefix(f"{target.bucket}.")
    if host != target.endpoint.host:
        current, new = _AWS.fullmatch(target.endpoint.host), _AWS.fullmatch(host)
        if current is None or new is None or current["domain"] != new["domain"]:
            return None
    return replace(target.endpoint, host=host)
