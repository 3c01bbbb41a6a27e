"""The bodies and headers of uploads: encodings undone, digests checked, headers to keep."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable

from testkit.s3server.wire import Request, S3Error

# CRC32C and CRC64NVME are not verified: the standard library has neither.
CHECKSUMS: dict[bytes, Callable[[bytes], bytes]] = {
    b"x-amz-checksum-crc32": lambda body: zlib.crc32(body).to_bytes(4, "big"),
    b"x-amz-checksum-sha1": lambda body: hashlib.sha1(body, usedforsecurity=False).digest(),
    b"x-amz-checksum-sha256": lambda body: hashlib.sha256(body).digest(),
}
_KEPT = frozenset(
    (
        b"cache-control",
        b"content-disposition",
        b"content-encoding",
        b"content-language",
        b"content-type",
        b"expires",
    )
)


def read_payload(request: Request) -> tuple[bytes, bytes]:
    """Decode an upload's body and check every digest that was sent with it.

    Returns:
        The payload, and the checksums as header lines.
    """
    headers, body = request.headers, request.body
    if headers.get(b"x-amz-content-sha256", b"").startswith(b"STREAMING-"):
        body, trailers = decode_aws_chunked(body)
        if int(headers.get(b"x-amz-decoded-content-length", len(body))) != len(body):
            raise S3Error("IncompleteBody")
        headers = headers | trailers
    given_md5 = headers.get(b"content-md5")
    if given_md5 is not None:
        _check_digest(given_md5, hashlib.md5(body, usedforsecurity=False).digest())
    checksums = b""
    for name, value in headers.items():
        if name.startswith(b"x-amz-checksum-") and name != b"x-amz-checksum-type":
            compute = CHECKSUMS.get(name)
            if compute is not None:
                _check_digest(value, compute(body))
            checksums += b"%b: %b\r\n" % (name, value)
    return body, checksums


def decode_aws_chunked(body: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """Undo the aws-chunked encoding.

    Returns:
        The payload, and the trailers that followed it.
    """
    parts: list[bytes] = []
    at = 0
    try:
        while True:
            end = body.index(b"\r\n", at)
            size = int(body[at:end].partition(b";")[0], 16)
            at = end + 2
            if size == 0:
                break
            parts.append(body[at : at + size])
            at += size + 2
    except ValueError:
        raise S3Error("IncompleteBody") from None
    lines = (line.partition(b":") for line in body[at:].split(b"\r\n"))
    return b"".join(parts), {name.lower(): value.strip() for name, colon, value in lines if colon}


def _check_digest(given: bytes, actual: bytes) -> None:
    try:
        decoded = base64.b64decode(given, validate=True)
    except ValueError:
        raise S3Error("InvalidDigest") from None
    if decoded != actual:
        raise S3Error("BadDigest")


def crc32_headers(body: bytes) -> bytes:
    """Render the CRC32 of a body as header lines: the checksum that boto3 sends."""
    digest = base64.b64encode(CHECKSUMS[b"x-amz-checksum-crc32"](body))
    return b"x-amz-checksum-crc32: %b\r\nx-amz-checksum-type: FULL_OBJECT\r\n" % digest


def encryption(request: Request) -> tuple[bytes, str | None]:
    """Return the header lines of the encryption that an upload asks for, and its ETag.

    The ETag of what a KMS key encrypts looks like an MD5, and is none.
    """
    lines = b"".join(
        b"%b: %b\r\n" % (name, value)
        for name, value in request.headers.items()
        if name.startswith(b"x-amz-server-side-encryption")
    )
    if b"aws:kms" not in lines:
        return lines, None
    return lines, f'"{hashlib.md5(b"%d" % request.ordinal).hexdigest()}"'


def kept_headers(request: Request) -> bytes:
    """Render the headers of an upload that are stored with the object."""
    kept = {
        name: value
        for name, value in request.headers.items()
        if name in _KEPT or name.startswith(b"x-amz-meta-")
    }
    codings = [coding.strip() for coding in kept.pop(b"content-encoding", b"").split(b",")]
    coding = b",".join(coding for coding in codings if coding not in (b"", b"aws-chunked"))
    if coding:
        kept[b"content-encoding"] = coding
    kept.setdefault(b"content-type", b"binary/octet-stream")
    return b"".join(b"%b: %b\r\n" % item for item in kept.items())
