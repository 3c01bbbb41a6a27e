"""What S3 answers to the operations of multipart uploads."""

from __future__ import annotations

import base64
import hashlib
from xml.etree import ElementTree as ET

from testkit.s3server.backend import Backend
from testkit.s3server.objects import Part, StoredObject, Upload
from testkit.s3server.payload import CHECKSUMS, encryption, kept_headers, read_payload
from testkit.s3server.wire import (
    Request,
    Response,
    S3Error,
    encode_url,
    escape,
    iso_time,
    parse_range,
    parse_xml,
    xml_response,
)

MIN_PART_BYTES = 5 * 1024 * 1024


def create_upload(backend: Backend, request: Request) -> Response:
    """Begin an upload."""
    uploads = backend.bucket(request.bucket).uploads
    upload_id = f"upload-{request.ordinal}"
    uploads[upload_id] = Upload(
        request.key,
        kept_headers(request) + encryption(request)[0],
        backend.state.now(),
        {},
        request.header("x-amz-checksum-algorithm") or "",
    )
    inner = (
        f"<Bucket>{request.bucket}</Bucket><Key>{escape(request.key)}</Key>"
        f"<UploadId>{upload_id}</UploadId>"
    )
    return xml_response("InitiateMultipartUploadResult", inner)


def upload_part(backend: Backend, request: Request) -> Response:
    """Store a part."""
    _, upload = _find_upload(backend, request)
    body, checksums = read_payload(request)
    etag = _store_part(request, upload, body, _checksum_of_part(upload, checksums))
    return Response(200, f"etag: {etag}\r\n".encode() + checksums)


def upload_part_copy(backend: Backend, request: Request) -> Response:
    """Store a range of another object as a part."""
    _, upload = _find_upload(backend, request)
    source = backend.copy_source(request)
    wanted = request.header("x-amz-copy-source-range")
    part = parse_range(wanted, source.size) if wanted else None
    body, checksum, listed = source.body[part or slice(None)], b"", ""
    if upload.algorithm:
        checksum = base64.b64encode(CHECKSUMS[upload.checksum_header](body))
        listed = f"<{upload.checksum_element}>{checksum.decode()}</{upload.checksum_element}>"
    etag = _store_part(request, upload, body, checksum)
    copied = (
        f"<LastModified>{iso_time(backend.state.now())}</LastModified><ETag>{escape(etag)}</ETag>"
        f"{listed}"
    )
    return xml_response("CopyPartResult", copied)


def complete_upload(backend: Backend, request: Request) -> Response:
    """Join the parts to an object."""
    upload_id, upload = _find_upload(backend, request)
    parts = _chosen_parts(
        upload, parse_xml(request.body), allow_small=backend.faults.allow_small_parts
    )
    guard = backend.faults.guards.complete
    backend.check_write(request, guard, guard)
    bucket = backend.bucket(request.bucket)
    digests = b"".join(part.digest for part in parts)
    etag = f'"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"'
    content = bucket.content(b"".join(part.body for part in parts))
    stored = StoredObject(
        content, backend.state.now(), upload.head, etag, _composite_checksum(upload, parts)
    )
    backend.state.write(request.bucket, request.key, stored)
    del bucket.uploads[upload_id]
    inner = (
        f"<Bucket>{request.bucket}</Bucket><Key>{escape(request.key)}</Key>"
        f"<ETag>{escape(etag)}</ETag>"
    )
    return xml_response("CompleteMultipartUploadResult", inner)


def abort_upload(backend: Backend, request: Request) -> Response:
    """Forget an upload and its parts."""
    upload_id, _ = _find_upload(backend, request)
    del backend.bucket(request.bucket).uploads[upload_id]
    return Response(204)


def list_uploads(backend: Backend, request: Request) -> Response:
    """List the uploads under way, all on one page."""
    uploads = backend.bucket(request.bucket).uploads
    encode = encode_url if request.query.get("encoding-type") == "url" else escape
    prefix = request.query.get("prefix", "")
    found = sorted(
        (upload.key, name, upload.initiated)
        for name, upload in uploads.items()
        if upload.key.startswith(prefix)
    )
    inner = f"<Bucket>{request.bucket}</Bucket><Prefix>{encode(prefix)}</Prefix>"
    inner += "<EncodingType>url</EncodingType>" if encode is encode_url else ""
    inner += "<IsTruncated>false</IsTruncated>" + "".join(
        f"<Upload><Key>{encode(key)}</Key><UploadId>{name}</UploadId>"
        f"<Initiated>{iso_time(initiated)}</Initiated></Upload>"
        for key, name, initiated in found
    )
    return xml_response("ListMultipartUploadsResult", inner)


def _find_upload(backend: Backend, request: Request) -> tuple[str, Upload]:
    upload_id = request.query["uploadId"]
    upload = backend.bucket(request.bucket).uploads.get(upload_id)
    if upload is None or upload.key != request.key:
        raise S3Error("NoSuchUpload")
    return upload_id, upload


def _checksum_of_part(upload: Upload, checksums: bytes) -> bytes:
    """Return the checksum of a part; an upload with an algorithm wants it from each."""
    given, _, value = checksums.partition(b": ")
    if upload.algorithm and given != upload.checksum_header:
        expected = upload.algorithm.lower()
        raise S3Error("InvalidRequest", f"Checksum Type mismatch, expected: {expected}")
    return value.strip()


def _composite_checksum(upload: Upload, parts: list[Part]) -> bytes:
    """Render the checksum of the parts' checksums as header lines."""
    if not upload.algorithm:
        return b""
    name = upload.checksum_header
    digests = b"".join(base64.b64decode(part.checksum) for part in parts)
    value = base64.b64encode(CHECKSUMS[name](digests)) + b"-%d" % len(parts)
    return b"%b: %b\r\nx-amz-checksum-type: COMPOSITE\r\n" % (name, value)


def _store_part(request: Request, upload: Upload, body: bytes, checksum: bytes = b"") -> str:
    number = request.query.get("partNumber", "")
    if not number.isdigit() or not 1 <= int(number) <= 10_000:
        raise S3Error("InvalidArgument", "Part number must be from 1 to 10000")
    digest = hashlib.md5(body, usedforsecurity=False).digest()
    upload.parts[int(number)] = Part(body, digest, checksum)
    return f'"{digest.hex()}"'


def _chosen_parts(upload: Upload, root: ET.Element, *, allow_small: bool) -> list[Part]:
    listed = [
        (int(part.findtext("PartNumber") or 0), (part.findtext("ETag") or "").strip('"'))
        for part in root.findall("Part")
    ]
    numbers = [number for number, _ in listed]
    if not listed:
        raise S3Error("MalformedXML")
    if numbers != sorted(set(numbers)):
        raise S3Error("InvalidPartOrder")
    parts = [upload.parts.get(number) for number in numbers]
    chosen = [part for part in parts if part is not None]
    if [part.digest.hex() for part in chosen] != [etag for _, etag in listed]:
        raise S3Error("InvalidPart")
    if upload.algorithm:
        sums = [part.findtext(upload.checksum_element) for part in root.findall("Part")]
        if None in sums:
            raise S3Error("InvalidRequest", "The complete request must include each checksum")
        if [part.checksum.decode() for part in chosen] != sums:
            raise S3Error("InvalidPart")
    small = any(len(part.body) < MIN_PART_BYTES for part in chosen[:-1])
    if small and not allow_small:
        raise S3Error("EntityTooSmall")
    return chosen
