"""AWS Signature Version 4 in the ``Authorization`` header, as S3 wants it.

The rules are those of
https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html, with botocore's
reading of what they leave open; the tests hold both equal.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Iterable, Mapping
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
    """Signs the requests to one host.

    What depends on the credentials and the second alone is made once a second, and so is what the
    requests with the same headers have in common: a request costs one hash and one HMAC.

    Args:
        host: The value of the ``host`` header.
        region: The region that is part of the signature.
        service: The service that is part of it.
    """

    def __init__(self, host: str, region: str, service: str = "s3") -> None:
        self._host = host
        self._region = region
        self._service = service
        self._second = -1
        self._day = ""
        self._credentials: Credentials | None = None
        self._common: dict[str, str] = {}
        self._plain = False
        self._authorization = ""
        self._forms: dict[tuple[str, ...], _Form] = {}
        self._inner_of_day = self._inner = self._outer = sha256()

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
            headers: What to sign and send beside ``host``; names in lower case.
            payload: The hash of the content, or `UNSIGNED_PAYLOAD`.

        Raises:
            UsageError: A header is not plain ASCII on one line.
        """
        second = int(now)
        if second != self._second or credentials is not self._credentials:
            self._prepare(credentials, second)
        names = (payload, *headers)
        form = self._forms.get(names) or self._form(names)
        lines = trimmed = form.lines % form.values(headers)
        if not (self._plain and _is_plain("".join(headers.values()))):
            trimmed = _trimmed({**self._common, "x-amz-content-sha256": payload, **headers})
        canonical = f"{method}\n{path}\n{query}\n{trimmed}{form.end}".encode()
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(sha256(canonical).hexdigest().encode())
        outer.update(inner.digest())
        wire = lines.replace(_LINE_END, _WIRE_LINE_END)
        return f"{wire}{form.authorization}{outer.hexdigest()}\r\n"

    def _prepare(self, credentials: Credentials, second: int) -> None:
        date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))
        day = date[:8]
        scope = f"{day}/{self._region}/{self._service}/aws4_request"
        if day != self._day or credentials is not self._credentials:
            key = self._signing_key(credentials, day).ljust(64, b"\0")
            # An HMAC is two hashes (RFC 2104) that begin the same for every request of a day.
            # Copying them costs half of what copying the standard library's HMAC does.
            self._inner_of_day = sha256(key.translate(_INNER))
            self._outer = sha256(key.translate(_OUTER))
        self._inner = self._inner_of_day.copy()
        self._inner.update(f"AWS4-HMAC-SHA256\n{date}\n{scope}\n".encode())
        self._authorization = (
            f"authorization:AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}"
        )
        self._common = {"host": self._host, "x-amz-date": date}
        if credentials.token:
            self._common["x-amz-security-token"] = credentials.token
        self._plain = _is_plain("".join(self._common.values()))
        self._forms.clear()
        self._second, self._day, self._credentials = second, day, credentials

    def _signing_key(self, credentials: Credentials, day: str) -> bytes:
        key = f"AWS4{credentials.secret_key}".encode()
        for part in (day, self._region, self._service, "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        return key

    def _form(self, names: tuple[str, ...]) -> _Form:
        """Return what the requests of this second have in common that have the same headers.

        Args:
            names: What stands for the content, and the names of the headers.
        """
        payload, *varying = names
        fixed = {**self._common, "x-amz-content-sha256": payload}
        ordered = sorted({*fixed, *varying})
        listed = ";".join(ordered)
        lines = [
            f"{name}:{fixed[name].replace('%', '%%') if name in fixed else '%s'}\n"
            for name in ordered
        ]
        form = self._forms[names] = _Form(
            values=itemgetter(*sorted(varying)) if varying else _nothing,
            lines="".join(lines),
            end=f"\n{listed}\n{payload}",
            authorization=f"{self._authorization}, SignedHeaders={listed}, Signature=",
        )
        return form


class _Form(NamedTuple):
    """What the requests of one second with the same headers have in common.

    Attributes:
        values: Takes the values that vary out of the headers, in the order of signing.
        lines: A format for them of all lines, each ended by a line feed.
        end: What ends the canonical request behind them.
        authorization: The line of that header, up to the signature.
    """

    values: Callable[[Mapping[str, str]], str | tuple[str, ...]]
    lines: str
    end: str
    authorization: str


def _nothing(_: Mapping[str, str]) -> tuple[str, ...]:
    return ()


_INNER, _OUTER = (bytes([byte ^ pad for byte in range(256)]) for pad in (0x36, 0x5C))

_LINE_END, _WIRE_LINE_END = "\n", "\r\n"


def _is_plain(text: str) -> bool:
    """Tell whether a text is visible ASCII throughout, so that there is nothing to trim."""
    return text.isascii() and text.isprintable() and " " not in text


def _trimmed(headers: Mapping[str, str]) -> str:
    """Return the lines of headers with the white space of each value trimmed and collapsed."""
    for name, value in headers.items():
        if not value.isascii() or "\n" in value or "\r" in value:
            raise UsageError(f"header {name}: {value!r} is not ASCII on one line")
    return "".join([f"{name}:{' '.join(headers[name].split())}\n" for name in sorted(headers)])
