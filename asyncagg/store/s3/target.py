"""Which server has the bucket, and where S3 says it is instead."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from asyncagg.store.s3.http import Endpoint
from asyncagg.store.s3.sigv4 import encode_path

__all__ = ("Target", "redirected")

_REGION = re.compile(r"[a-z0-9-]{1,40}")
# S3's own names and no other's: a load balancer below amazonaws.com may be anybody's.
_AWS = re.compile(
    r"s3(-fips|-accesspoint|-accesspoint-fips|-[a-z]{2}(-[a-z]+)+-\d)?"
    r"(\.dualstack)?(\.[a-z]{2}(-[a-z]+)+-\d)?\.(?P<domain>amazonaws\.com(\.cn)?)"
)


@dataclass(frozen=True, slots=True)
class Target:
    """A bucket, and how it is addressed.

    Attributes:
        endpoint: The S3 server, without the bucket in its name.
        region: The region that requests are signed for.
        bucket: The bucket.
        path_style: Whether the bucket stands in the path rather than in the host.
    """

    endpoint: Endpoint
    region: str
    bucket: str
    path_style: bool

    @property
    def server(self) -> Endpoint:
        """Where requests are sent."""
        if self.path_style:
            return self.endpoint
        return replace(self.endpoint, host=f"{self.bucket}.{self.endpoint.host}")

    @property
    def root(self) -> str:
        """The path of the bucket, without the slash behind it."""
        return f"/{encode_path(self.bucket)}" if self.path_style else ""


def redirected(
    target: Target, status: int, headers: Mapping[bytes, bytes], region: str
) -> Target | None:
    """Return where an answer says that the bucket is; ``None`` where it says nothing new.

    A region is taken from any answer. A host is taken only within S3's own domain of the same
    partition, or with the name asked: a forged answer cannot send signed requests elsewhere.

    Args:
        target: Who was asked.
        status: The status of the answer.
        headers: Its headers.
        region: The region that its body names, if it names one.
    """
    if status not in (301, 307, 400):
        return None
    named = headers.get(b"x-amz-bucket-region", b"").decode("latin-1") or region
    if not _REGION.fullmatch(named):
        named = target.region
    endpoint = _in_region(target.endpoint, target.region, named)
    if status != 400:
        endpoint = _located(target, headers.get(b"location", b"").decode("latin-1")) or endpoint
    moved = replace(target, endpoint=endpoint, region=named)
    return None if moved == target else moved


def _in_region(endpoint: Endpoint, old: str, new: str) -> Endpoint:
    """Return the same kind of endpoint in another region; those that are not AWS's stay."""
    found = _AWS.fullmatch(endpoint.host)
    if found is None or new == old:
        return endpoint
    labels = endpoint.host.split(".")
    if old in labels:
        host = ".".join([new if label == old else label for label in labels])
    else:  # the global name, or an old one
        host = f"s3.{new}.{found['domain']}"
    return replace(endpoint, host=host)


def _located(target: Target, location: str) -> Endpoint | None:
    """Return the endpoint of a ``Location``, if it may be followed."""
    try:
        url = urlsplit(location)
        host, port = url.hostname or "", url.port
    except ValueError:
        return None
    tls = target.endpoint.tls
    if url.scheme != ("https" if tls else "http"):
        return None
    if not target.path_style:
        if not host.startswith(f"{target.bucket}."):
            return None
        host = host.removeprefix(f"{target.bucket}.")
    if host != target.endpoint.host:
        ours, theirs = _AWS.fullmatch(target.endpoint.host), _AWS.fullmatch(host)
        if ours is None or theirs is None or ours["domain"] != theirs["domain"]:
            return None
    return Endpoint(host, port or (443 if tls else 80), tls=tls)
