"""AWS Signature Version 4 in the ``Authorization`` header, as S3 wants it.

The rules are those of
https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html, with botocore's
reading of what they leave open; the tests hold both equal.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from hashlib import sha256
from operator import itemgetter
from string import ascii_letters, digits
from typing import NamedTuple
from urllib.parse import quote

import msgspec

from asyncagg.errors import UsageError

__all__ = (
    "EMPTY_PAYLOAD",
    "UNSIGNED_PAYLOAD",
    "Credentials",
    "Signer",
    "canonical_query",
    "encode_path",
    "payload_hash",
)

EMPTY_PAYLOAD = sha256(b"").hexdigest()
"""What stands for the content of a request that has none."""

UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"
"""What stands for a content that the signature leaves out (S3 allows it over TLS)."""


class Credentials(msgspec.Struct, frozen=True):
    """The keys that sign. Their ``repr`` keeps the secrets to itself.

    Attributes:
        access_key: The public half, sent with each request.
        secret_key: The secret half, never sent.
        token: The session token of temporary credentials; empty for lasting ones.
    """

    access_key: str
    secret_key: str
    token: str = ""

    def __repr__(self) -> str:
        return f"Credentials(access_key={self.access_key!r})"


_UNRESERVED = f"{ascii_letters}{digits}_.~/-".encode()
_VISIBLE = bytes(range(0x21, 0x7F))


def encode_path(key: str) -> str:
    """Return an object's key as it stands in a URL: encoded once, ``..`` and ``//`` untouched."""
    # To drop what needs no encoding costs a third of what a regular expression does.
    return quote(key, safe="/~") if key.encode().translate(None, _UNRESERVED) else key


def canonical_query(parameters: Iterable[tuple[str, str]]) -> str:
    """Return the query string in the one order and encoding that is signed and sent."""
    pairs = sorted(
        (quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in parameters
    )
    return "&".join([f"{name}={value}" for name, value in pairs])


def payload_hash(body: bytes) -> str:
    """Return what stands for ``body`` in the signature."""
    return sha256(body).hexdigest() if body else EMPTY_PAYLOAD


class Signer:
    """Signs the requests to one region of one service.

    What depends on the credentials and the second alone is made once a second, so that a request
    costs one hash and one HMAC.

    Args:
        region: The region that is part of the signature.
        service: The service that is part of it.
    """

    def __init__(self, region: str, service: str = "s3") -> None:
        self.region = region
        self._service = service
        self._second = -1
        self._day = ""
        self._credentials: Credentials | None = None
        self._date = ""
        self._preamble = ""
        self._authorization = ""
        self._inner = self._outer = sha256()

    def sign(
        self,
        credentials: Credentials,
        now: float,
        *,
        method: str,
        path: str,
        query: str,
        headers: Mapping[str, str],
        payload: str,
    ) -> str:
        """Return the header lines of a signed request, each ended by CR LF.

        Args:
            credentials: Whose request it is.
            now: The moment of signing, in seconds since the epoch.
            method: The HTTP method, in capitals.
            path: The path, encoded.
            query: The query string, canonical.
            headers: What to sign and send, ``host`` included; names in lower case.
            payload: The hash of the content, or `UNSIGNED_PAYLOAD`.

        Raises:
            UsageError: A header is not plain ASCII on one line.
        """
        second = int(now)
        if second != self._second or credentials is not self._credentials:
            self._prepare(credentials, second)
        signed = {**headers, "x-amz-content-sha256": payload, "x-amz-date": self._date}
        if credentials.token:
            signed["x-amz-security-token"] = credentials.token
        form = _form(tuple(signed))
        lines = form.lines % form.values(signed)
        text = "".join(headers.values()) + credentials.token
        odd = text.encode("utf-8", "surrogatepass").translate(None, _VISIBLE)
        trimmed = _trimmed(form.names, signed) if odd else lines
        canonical = f"{method}\n{path}\n{query}\n{trimmed}\n{form.listed}\n{payload}"
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(f"{self._preamble}{sha256(canonical.encode()).hexdigest()}".encode())
        outer.update(inner.digest())
        return (
            f"{lines.replace(_LINE_END, _WIRE_LINE_END)}"
            f"authorization:{self._authorization}{form.listed}, Signature={outer.hexdigest()}\r\n"
        )

    def _prepare(self, credentials: Credentials, second: int) -> None:
        date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))
        day = date[:8]
        scope = f"{day}/{self.region}/{self._service}/aws4_request"
        if day != self._day or credentials is not self._credentials:
            key = self._signing_key(credentials, day).ljust(64, b"\0")
            # An HMAC is two hashes (RFC 2104) that begin the same for every request of a day.
            # Copying them costs half of what copying the standard library's HMAC does.
            self._inner = sha256(key.translate(_INNER))
            self._outer = sha256(key.translate(_OUTER))
        self._authorization = (
            f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, SignedHeaders="
        )
        self._preamble = f"AWS4-HMAC-SHA256\n{date}\n{scope}\n"
        self._date, self._day = date, day
        self._second, self._credentials = second, credentials

    def _signing_key(self, credentials: Credentials, day: str) -> bytes:
        key = f"AWS4{credentials.secret_key}".encode()
        for part in (day, self.region, self._service, "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        return key


class _Form(NamedTuple):
    """What the requests with the same headers have in common.

    Attributes:
        names: The headers in the order of signing.
        values: Takes their values out of a mapping, in that order.
        lines: A format of their lines, each ended by a line feed.
        listed: Their names, as they are signed.
    """

    names: list[str]
    values: Callable[[Mapping[str, str]], tuple[str, ...]]
    lines: str
    listed: str


@lru_cache
def _form(names: tuple[str, ...]) -> _Form:
    ordered = sorted(names)
    lines = "".join([f"{name}:%s\n" for name in ordered])
    return _Form(ordered, itemgetter(*ordered), lines, ";".join(ordered))


_INNER, _OUTER = (bytes([byte ^ pad for byte in range(256)]) for pad in (0x36, 0x5C))

_LINE_END, _WIRE_LINE_END = "\n", "\r\n"


def _trimmed(names: Iterable[str], headers: Mapping[str, str]) -> str:
    """Return the headers with the white space of each value trimmed and collapsed."""
    for name in names:
        if not headers[name].isascii() or "\n" in headers[name] or "\r" in headers[name]:
            raise UsageError(f"header {name}: {headers[name]!r} is not ASCII on one line")
    return "".join([f"{name}:{' '.join(headers[name].split())}\n" for name in names])
