"""Verifies AWS Signature Version 4.

The rules: https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from urllib.parse import parse_qsl, quote, unquote_to_bytes

from testkit.s3server.wire import Request, S3Error, iso_time

MAX_SKEW = timedelta(minutes=15)

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<access>[^/]+)/(?P<date>\d{8})/(?P<region>[^/]+)/s3/"
    r"aws4_request,\s*SignedHeaders=(?P<signed>[^,]+),\s*Signature=(?P<signature>[0-9a-f]{64})"
).fullmatch


def verify_signature(
    request: Request, credentials: Mapping[str, str], region: str, now: datetime
) -> None:
    """Check a request's SigV4 header, its time, and its payload hash when it gives one.

    Raises:
        S3Error: if one of them is wrong.
    """
    found = _AUTHORIZATION(request.header("authorization") or "")
    if found is None:
        raise S3Error("AccessDenied")
    if found["access"] not in credentials:
        raise S3Error("InvalidAccessKeyId")
    if found["region"] != region:
        detail = f"<Region>{region}</Region>"
        raise S3Error("AuthorizationHeaderMalformed", detail=detail)
    stamp = request.header("x-amz-date") or ""
    try:
        sent = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise S3Error("AccessDenied", "A valid x-amz-date header is required") from None
    if abs(now - sent) > MAX_SKEW:
        raise S3Error("RequestTimeTooSkewed", detail=f"<ServerTime>{iso_time(now)}</ServerTime>")
    signed = found["signed"].split(";")
    needed = {n.decode() for n in request.headers if n.startswith(b"x-amz-")} | {"host"}
    if not needed.issubset(signed):
        raise S3Error("AccessDenied", "There were headers present which were not signed")
    digest = hashlib.sha256(_canonical_request(request, signed).encode()).hexdigest()
    scope = f"{found['date']}/{region}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}"
    key = _signing_key(credentials[found["access"]], found["date"], region)
    expected = hmac.digest(key, text.encode(), "sha256").hex()
    if not hmac.compare_digest(expected, found["signature"]) or stamp[:8] != found["date"]:
        raise S3Error("SignatureDoesNotMatch")
    _verify_payload(request)


@lru_cache(256)
def _signing_key(secret: str, date: str, region: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for step in (date, region, "s3", "aws4_request"):
        key = hmac.digest(key, step.encode(), "sha256")
    return key


def _canonical_request(request: Request, signed: list[str]) -> str:
    """Render what SigV4 signs, by the rules for S3: the path is encoded once, never normalised."""
    path, _, query = request.target.decode("latin-1").partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    encoded = sorted((quote(name, safe=""), quote(value, safe="")) for name, value in pairs)
    lines = [
        request.method,
        quote(unquote_to_bytes(path), safe="/"),
        "&".join(f"{name}={value}" for name, value in encoded),
        *(f"{name}:{' '.join((request.header(name) or '').split())}" for name in signed),
        "",
        ";".join(signed),
        request.header("x-amz-content-sha256") or "",
    ]
    return "\n".join(lines)


def _verify_payload(request: Request) -> None:
    given = request.header("x-amz-content-sha256")
    if given is None:
        raise S3Error("InvalidRequest", "Missing required header: x-amz-content-sha256")
    if given == "UNSIGNED-PAYLOAD" or given.startswith("STREAMING-"):
        return
    if given != hashlib.sha256(request.body).hexdigest():
        raise S3Error("XAmzContentSHA256Mismatch")
