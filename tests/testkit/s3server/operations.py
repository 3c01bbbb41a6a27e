"""What S3 answers to the operations on buckets and objects: a request in, a response out."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import TypeAlias

from testkit.s3server import multipart
from testkit.s3server.backend import Backend, check_match, judge
from testkit.s3server.objects import Bucket, Page, StoredObject
from testkit.s3server.payload import encryption, kept_headers, read_payload
from testkit.s3server.signing import verify_signature
from testkit.s3server.wire import (
    XML_TYPE,
    Request,
    Response,
    S3Error,
    encode_url,
    error_body,
    escape,
    etag_matches,
    http_time,
    iso_time,
    parse_range,
    parse_xml,
    xml_response,
)

MAX_KEYS = 1000
MAX_KEY_BYTES = 1024

Handler: TypeAlias = Callable[[Backend, Request], Response]


def execute(backend: Backend, request: Request) -> Response:
    """Execute a request.

    Raises:
        S3Error: to be sent as the response.
    """
    operation, faults = request.operation, backend.faults
    if backend.credentials is not None:
        state = backend.state
        verify_signature(request, backend.credentials, state.region, state.now())
    if faults.redirect_region is not None and operation != "GetBucketLocation":
        raise _redirect(request, faults.redirect_region)
    backend.permit(operation, request.key)
    handler = HANDLERS.get(operation)
    if handler is None:
        raise S3Error("NotImplemented" if request.bucket else "InvalidURI")
    return handler(backend, request)


def _redirect(request: Request, region: str) -> S3Error:
    detail = (
        f"<Endpoint>{escape(request.bucket)}.s3.{region}.amazonaws.com</Endpoint>"
        f"<Bucket>{escape(request.bucket)}</Bucket>"
    )
    header = f"x-amz-bucket-region: {region}\r\n".encode()
    return S3Error("PermanentRedirect", headers=header, detail=detail)


# ------------------------------------------------------------------------------ buckets


def create_bucket(backend: Backend, request: Request) -> Response:
    """Create a bucket."""
    if request.bucket in backend.state.buckets:
        raise S3Error("BucketAlreadyOwnedByYou")
    backend.state.buckets[request.bucket] = Bucket()
    return Response(200, f"location: /{request.bucket}\r\n".encode())


def head_bucket(backend: Backend, request: Request) -> Response:
    """Confirm that a bucket exists."""
    backend.bucket(request.bucket)
    return Response(200, f"x-amz-bucket-region: {backend.state.region}\r\n".encode())


def delete_bucket(backend: Backend, request: Request) -> Response:
    """Delete an empty bucket."""
    if backend.bucket(request.bucket).objects:
        raise S3Error("BucketNotEmpty")
    del backend.state.buckets[request.bucket]
    return Response(204)


def get_bucket_location(backend: Backend, request: Request) -> Response:
    """Name the region of a bucket; us-east-1 has an empty name here."""
    backend.bucket(request.bucket)
    region = backend.state.region
    return xml_response("LocationConstraint", "" if region == "us-east-1" else region)


def list_objects(backend: Backend, request: Request) -> Response:
    """List one page of keys and common prefixes."""
    bucket, query = backend.bucket(request.bucket), request.query
    token = query.get("continuation-token")
    start_after = query.get("start-after", "")
    try:
        limit = min(int(query.get("max-keys", MAX_KEYS)), MAX_KEYS)
        cursor = start_after and start_after + "\0"
        if token is not None:
            cursor = base64.urlsafe_b64decode(token).decode("utf-8", "surrogatepass")
    except ValueError:
        raise S3Error("InvalidArgument") from None
    endless = backend.faults.endless_listing
    cursor = "" if endless == "same token" else cursor
    page = bucket.page(query.get("prefix", ""), query.get("delimiter", ""), cursor, limit)
    truncated = page.cursor is not None or endless in {"same token", "empty pages"}
    match endless:
        case "same token" | "last page has a token":
            page = page._replace(cursor="~")
        case "empty pages":
            page = page._replace(keys=[], cursor=f"{cursor}~")
    region = f"x-amz-bucket-region: {backend.state.region}\r\n".encode()
    listing = _listing(request, bucket, page, limit, truncated=truncated)
    return xml_response("ListBucketResult", listing, region)


def _listing(request: Request, bucket: Bucket, page: Page, limit: int, *, truncated: bool) -> str:
    query = request.query
    encode = encode_url if query.get("encoding-type") == "url" else escape
    inner = [
        f"<Name>{request.bucket}</Name><Prefix>{encode(query.get('prefix', ''))}</Prefix>",
        f"<KeyCount>{len(page.keys) + len(page.common_prefixes)}</KeyCount>",
        f"<MaxKeys>{limit}</MaxKeys>",
        f"<IsTruncated>{str(truncated).lower()}</IsTruncated>",
    ]
    if query.get("delimiter"):
        inner.append(f"<Delimiter>{encode(query['delimiter'])}</Delimiter>")
    if query.get("start-after"):
        inner.append(f"<StartAfter>{encode(query['start-after'])}</StartAfter>")
    if encode is encode_url:
        inner.append("<EncodingType>url</EncodingType>")
    if "continuation-token" in query:
        token = escape(query["continuation-token"])
        inner.append(f"<ContinuationToken>{token}</ContinuationToken>")
    if page.cursor is not None:
        raw = page.cursor.encode("utf-8", "surrogatepass")
        following = base64.urlsafe_b64encode(raw).decode()
        inner.append(f"<NextContinuationToken>{following}</NextContinuationToken>")
    for key in page.keys:
        stored = bucket.objects[key]
        inner.append(
            f"<Contents><Key>{encode(key)}</Key>"
            f"<LastModified>{iso_time(stored.last_modified)}</LastModified>"
            f"<ETag>{escape(stored.etag)}</ETag><Size>{stored.content.size}</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
        )
    inner += [
        f"<CommonPrefixes><Prefix>{encode(common)}</Prefix></CommonPrefixes>"
        for common in page.common_prefixes
    ]
    return "".join(inner)


# ------------------------------------------------------------------------------ objects


def get_object(backend: Backend, request: Request) -> Response:
    """Return an object, part of it, or its headers alone."""
    stored, headers = backend.object(request.bucket, request.key), request.headers
    if_match, if_none_match = request.header("if-match"), request.header("if-none-match")
    etag = stored.etag
    if if_match is not None:
        judge(backend.faults.guards.get_if_match, holds=etag_matches(if_match, etag))
    about = b"etag: %b\r\nlast-modified: %b\r\n" % (
        etag.encode(),
        http_time(stored.last_modified),
    )
    if if_none_match is not None and etag_matches(if_none_match, etag):
        raise S3Error("NotModified", headers=about)
    about += b"accept-ranges: bytes\r\n" + stored.head
    size = stored.size
    part = parse_range(headers[b"range"].decode(), size) if b"range" in headers else None
    if part is not None:
        about += b"content-range: bytes %d-%d/%d\r\n" % (part.start, part.stop - 1, size)
        size = part.stop - part.start
    elif b"x-amz-checksum-mode" in headers:
        about += stored.checksums or stored.content.checksums
    status = 200 if part is None else 206
    if request.method == "HEAD":
        return Response(status, about, length=size)
    body = stored.content.body
    return Response(status, about, body if part is None else body[part])


def put_object(backend: Backend, request: Request) -> Response:
    """Store an object."""
    guards = backend.faults.guards
    bucket = backend.bucket(request.bucket)
    if len(request.key.encode()) > MAX_KEY_BYTES:
        raise S3Error("KeyTooLongError")
    body, checksums = read_payload(request)
    backend.check_write(request, guards.put_if_absent, guards.put_if_match)
    lines, etag = encryption(request)
    head = kept_headers(request) + lines
    stored = StoredObject(bucket.content(body), backend.state.now(), head, etag, checksums)
    backend.state.write(request.bucket, request.key, stored)
    return Response(200, f"etag: {stored.etag}\r\n".encode() + checksums)


def copy_object(backend: Backend, request: Request) -> Response:
    """Copy an object."""
    faults = backend.faults
    bucket = backend.bucket(request.bucket)
    if len(request.key.encode()) > MAX_KEY_BYTES:
        raise S3Error("KeyTooLongError")
    source = backend.copy_source(request)
    backend.check_write(request, faults.guards.copy_if_absent, faults.guards.copy_if_match)
    replaces = request.headers.get(b"x-amz-metadata-directive") == b"REPLACE"
    if source is bucket.objects.get(request.key) and not replaces:
        raise S3Error("InvalidRequest", "This copy request changes nothing.")
    if faults.strikes(request, faults.copy_error):
        return Response(200, XML_TYPE, error_body(request, S3Error("InternalError")))
    lines, etag = encryption(request)
    head = kept_headers(request) if replaces else _not_encrypted(source.head)
    content = bucket.adopt(source.content)
    stored = StoredObject(content, backend.state.now(), head + lines, etag, source.checksums)
    backend.state.write(request.bucket, request.key, stored)
    copied = (
        f"<LastModified>{iso_time(stored.last_modified)}</LastModified>"
        f"<ETag>{escape(stored.etag)}</ETag>"
    )
    return xml_response("CopyObjectResult", copied)


def _not_encrypted(head: bytes) -> bytes:
    lines = head.splitlines(keepends=True)
    return b"".join(each for each in lines if not each.startswith(b"x-amz-server-side-encryption"))


def delete_object(backend: Backend, request: Request) -> Response:
    """Delete an object."""
    bucket, condition = backend.bucket(request.bucket), request.header("if-match")
    if condition is not None:
        check_match(backend.faults.guards.delete_etag, condition, bucket.objects.get(request.key))
    backend.state.remove(request.bucket, request.key)
    return Response(204)


def delete_objects(backend: Backend, request: Request) -> Response:
    """Delete a batch of objects, each with its own condition and result."""
    bucket = backend.bucket(request.bucket)
    digests = (b"content-md5", b"x-amz-checksum-")
    if not any(name.startswith(digests) for name in request.headers):
        raise S3Error("InvalidRequest", "Missing required header: Content-MD5")
    root = parse_xml(read_payload(request)[0])
    wanted = root.findall("Object")
    if root.tag != "Delete" or not 0 < len(wanted) <= MAX_KEYS:
        raise S3Error("MalformedXML")
    if backend.faults.guards.delete_etag == "malformed" and root.find("Object/ETag") is not None:
        raise S3Error("MalformedXML")
    quiet = root.findtext("Quiet") == "true"
    results: list[str] = []
    for element in wanted:
        key = element.findtext("Key") or ""
        try:
            _delete_one(backend, request, bucket, key, element.findtext("ETag"))
        except S3Error as error:
            results.append(
                f"<Error><Key>{escape(key)}</Key><Code>{error.code}</Code>"
                f"<Message>{escape(error.message)}</Message></Error>"
            )
        else:
            if not quiet:
                results.append(f"<Deleted><Key>{escape(key)}</Key></Deleted>")
    return xml_response("DeleteResult", "".join(results))


def _delete_one(
    backend: Backend, request: Request, bucket: Bucket, key: str, etag: str | None
) -> None:
    faults = backend.faults
    backend.permit("DeleteObject", key)
    if faults.strikes(request, faults.delete_error):
        raise S3Error("InternalError")
    if etag is not None:
        check_match(faults.guards.delete_etag, etag, bucket.objects.get(key))
    backend.state.remove(request.bucket, key)


HANDLERS: dict[str, Handler] = {
    "CreateBucket": create_bucket,
    "HeadBucket": head_bucket,
    "DeleteBucket": delete_bucket,
    "GetBucketLocation": get_bucket_location,
    "ListObjectsV2": list_objects,
    "GetObject": get_object,
    "HeadObject": get_object,
    "PutObject": put_object,
    "CopyObject": copy_object,
    "DeleteObject": delete_object,
    "DeleteObjects": delete_objects,
    "ListMultipartUploads": multipart.list_uploads,
    "CreateMultipartUpload": multipart.create_upload,
    "UploadPart": multipart.upload_part,
    "UploadPartCopy": multipart.upload_part_copy,
    "CompleteMultipartUpload": multipart.complete_upload,
    "AbortMultipartUpload": multipart.abort_upload,
}
