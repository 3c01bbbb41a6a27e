"""The control plane: the one place where aioboto3 is imported.

It finds credentials, region and endpoint, sends multipart uploads, and can send everything else too
(``data_plane=boto``).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aioboto3
import aiohttp
from aiobotocore.config import AioConfig
from botocore import exceptions as boto_errors

from asyncagg.errors import AsyncaggError, ConfigurationError, StoreError, TransientError
from asyncagg.model import RunFile
from asyncagg.store.plane import Page, failure
from asyncagg.store.protocol import Body, ObjectInfo, StreamedBody
from asyncagg.store.sigv4 import Credentials

__all__ = (
    "Answer",
    "BotoMultipart",
    "BotoPlane",
    "Control",
    "Identity",
    "Location",
    "open_control",
)

_CONNECT_SECONDS = 5.0
_READ_SECONDS = 30.0
_BLOCK = 256 * 1024

_PASSING = (
    boto_errors.HTTPClientError,  # timeouts, closed connections
    boto_errors.ConnectionError,  # resets, refused connections
    boto_errors.ResponseStreamingError,
    boto_errors.IncompleteReadError,
    aiohttp.ClientError,
    TimeoutError,
    ConnectionError,
)


@dataclass(frozen=True, slots=True)
class Location:
    """Where the control plane says that a bucket is.

    Attributes:
        host: The server, without the bucket in its name.
        port: Its port.
        tls: Whether it speaks TLS.
        region: The region to sign for.
        path_style: Whether the bucket stands in the path rather than in the host.
    """

    host: str
    port: int
    tls: bool
    region: str
    path_style: bool


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose credentials were found, and where.

    Attributes:
        access_key: The public half of them.
        source: Where they come from: ``env``, ``shared-credentials-file``, ``iam-role`` and so on.
    """

    access_key: str
    source: str


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of S3, a refusal or not.

    Attributes:
        status: The HTTP status.
        code: S3's error code; empty where there is none.
        message: S3's own sentence of it.
        headers: Its headers, names in lower case.
        content: All that it says.
    """

    status: int
    code: str
    message: str
    headers: Mapping[str, str]
    content: Mapping[str, Any]


class Control:
    """aioboto3's session and client: what knows credentials, regions and endpoints.

    Attributes:
        client: The S3 client, for requests that are not sent per file.
    """

    def __init__(self, session: aioboto3.Session, client: Any) -> None:
        self.client = client
        self._session = session

    async def locate(self, bucket: str) -> Location:
        """Return where requests for a bucket go: custom endpoints, dual-stack, FIPS and all.

        Raises:
            ConfigurationError: There are no credentials.
        """
        with _Bucket(self.client, bucket, "").translated("locate", bucket):
            url = urlsplit(
                await self.client.generate_presigned_url(
                    "get_object", Params={"Bucket": bucket, "Key": "key"}
                )
            )
        scope = parse_qs(url.query)["X-Amz-Credential"][0].split("/")
        host = url.hostname or ""
        path_style = not host.startswith(f"{bucket}.")
        tls = url.scheme == "https"
        return Location(
            host=host if path_style else host.removeprefix(f"{bucket}."),
            port=url.port or (443 if tls else 80),
            tls=tls,
            region=scope[2],
            path_style=path_style,
        )

    @property
    def region(self) -> str:
        """The region that the environment names; empty where it names none."""
        return self._session.region_name or ""

    async def identity(self) -> Identity | None:
        """Return whose credentials were found, renewed where they can be; None where none were.

        Raises:
            AsyncaggError: They could not be renewed.
        """
        with _Bucket(self.client, "", "").translated("credentials", ""):
            source = await self._session.get_credentials()
            if source is None:
                return None
            frozen = await source.get_frozen_credentials()
        return Identity(frozen.access_key, source.method)

    async def ask(self, operation: str, *, bucket: str, **parameters: Any) -> Answer:
        """Send one request of a client's method, and return its answer, a refusal too.

        Raises:
            AsyncaggError: There was no answer.
        """
        with _Bucket(self.client, bucket, "").translated(operation, bucket):
            try:
                content = await getattr(self.client, operation)(Bucket=bucket, **parameters)
            except boto_errors.ClientError as error:
                content = error.response
        about, told = content["ResponseMetadata"], content.get("Error", {})
        return Answer(
            status=about["HTTPStatusCode"],
            code=str(told.get("Code", "")),
            message=told.get("Message", ""),
            headers=about["HTTPHeaders"],
            content=content,
        )

    async def credentials(self, expired: Credentials | None) -> Credentials:
        """Return credentials to sign with, other ones than those that the store refused.

        Raises:
            ConfigurationError: There are none.
        """
        found = await self._frozen()
        if found == expired:
            self._session = aioboto3.Session()  # looks everywhere anew
            found = await self._frozen()
        if found is None or found == expired:
            told = "none found" if found is None else "expired"
            raise ConfigurationError(
                f"credentials: {told}; expected those of the AWS environment "
                "(AWS_PROFILE, AWS_ACCESS_KEY_ID, a role)"
            )
        return found

    async def _frozen(self) -> Credentials | None:
        source = await self._session.get_credentials()
        if source is None:
            return None
        frozen = await source.get_frozen_credentials()
        return Credentials(frozen.access_key, frozen.secret_key, frozen.token or "")


@asynccontextmanager
async def open_control(*, endpoint_url: str, connections: int) -> AsyncIterator[Control]:
    """Open an S3 client of aioboto3, whose own retries are off.

    Args:
        endpoint_url: Another S3 server than AWS, or empty.
        connections: How many it may hold open.

    Raises:
        ConfigurationError: There is no region, or the endpoint is no URL.
    """
    config = AioConfig(
        retries={"total_max_attempts": 1},
        signature_version="s3v4",
        max_pool_connections=connections,
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        # The conditions and Content-Length already guard each body.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # A bucket's own host name would not resolve on other servers.
        s3={"addressing_style": "path"} if endpoint_url else {},
    )
    async with AsyncExitStack() as stack:
        with _set_up(endpoint_url):
            session = aioboto3.Session()
            region = session.region_name or "us-east-1"
            client = await stack.enter_async_context(
                session.client(
                    "s3", endpoint_url=endpoint_url or None, region_name=region, config=config
                )
            )
        yield Control(session, client)


@contextmanager
def _set_up(endpoint_url: str) -> Iterator[None]:
    try:
        yield
    except boto_errors.ProfileNotFound as error:
        raise ConfigurationError(
            f"AWS_PROFILE: {error}; expected a profile of the AWS configuration"
        ) from error
    except (boto_errors.NoRegionError, ValueError) as error:
        raise ConfigurationError(
            f"endpoint_url {endpoint_url!r}: {error}; expected a URL such as http://127.0.0.1:5000"
        ) from error


class _Bucket:
    """A bucket, what its keys start with, and how its answers are translated."""

    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        self.client = client
        self.name = bucket
        self.prefix = prefix

    def at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.name, "Key": self.prefix + key}

    @contextmanager
    def translated(self, operation: str, key: str) -> Iterator[None]:
        try:
            yield
        except boto_errors.ClientError as error:
            raise self._failure(operation, key, error) from error
        except _PASSING as error:
            told = f"{operation} {key!r} in bucket {self.name!r}: {type(error).__name__}: {error}"
            raise TransientError(told, operation=operation, key=key) from error
        except (boto_errors.NoCredentialsError, boto_errors.PartialCredentialsError) as error:
            raise ConfigurationError(
                f"credentials for bucket {self.name!r}: {error}; expected those of the AWS "
                "environment (AWS_PROFILE, AWS_ACCESS_KEY_ID, a role)"
            ) from error
        except boto_errors.BotoCoreError as error:
            raise StoreError(
                f"{operation} {key!r} in bucket {self.name!r}: {error}",
                operation=operation,
                key=key,
            ) from error

    def _failure(self, operation: str, key: str, error: boto_errors.ClientError) -> AsyncaggError:
        told = error.response.get("Error", {})
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = str(told.get("Code", ""))
        return failure(
            operation,
            key,
            bucket=self.name,
            status=status,
            code="" if code.isdigit() else code,  # a HEAD's answer has no body to name one
            message=told.get("Message", ""),
        )


def _conditions(if_match: str | None, *, if_absent: bool) -> dict[str, str]:
    conditions = {}
    if if_match is not None:
        conditions["IfMatch"] = f'"{if_match}"'
    if if_absent:
        conditions["IfNoneMatch"] = "*"
    return conditions


def _etag(answer: Mapping[str, Any]) -> str:
    return str(answer["ETag"]).strip('"')


class BotoPlane:
    """Sends the requests per file through aioboto3.

    Args:
        client: Of a `Control`.
        bucket: The bucket.
        prefix: What all keys start with, or empty.
    """

    def __init__(self, client: Any, bucket: str, prefix: str = "") -> None:
        self._bucket = _Bucket(client, bucket, prefix)

    async def list_page(self, prefix: str, *, start_after: str, token: str | None) -> Page:
        """See `asyncagg.store.plane.DataPlane.list_page`."""
        bucket = self._bucket
        after = {"ContinuationToken": token} if token else {}
        if start_after and not token:
            after = {"StartAfter": bucket.prefix + start_after}
        with bucket.translated("list", prefix):
            answer = await bucket.client.list_objects_v2(
                Bucket=bucket.name,
                Prefix=bucket.prefix + prefix,
                **after,
            )
        cut = len(bucket.prefix)
        files = [
            RunFile(each["Key"][cut:], each["Size"], _etag(each), each["LastModified"])
            for each in answer.get("Contents", ())
        ]
        return Page(files, answer.get("NextContinuationToken"))

    async def head(self, key: str) -> ObjectInfo:
        """See `asyncagg.store.plane.DataPlane.head`."""
        with self._bucket.translated("head", key):
            answer = await self._bucket.client.head_object(**self._bucket.at(key))
        return ObjectInfo(
            RunFile(key, answer["ContentLength"], _etag(answer), answer["LastModified"]),
            answer.get("ContentType", ""),
            answer.get("ContentEncoding", ""),
            answer.get("Metadata", {}),
        )

    async def get(self, key: str, *, if_match: str | None) -> Body:
        """See `asyncagg.store.plane.DataPlane.get`."""
        with self._bucket.translated("get", key):
            answer = await self._bucket.client.get_object(
                **self._bucket.at(key), **_conditions(if_match, if_absent=False)
            )
            async with answer["Body"] as body:
                data = await body.read()
        self._check_length("get", key, answer["ContentLength"], len(data))
        return Body(data, _etag(answer), answer.get("ContentEncoding", ""))

    def _check_length(self, operation: str, key: str, told: int, read: int) -> None:
        if told != read:
            raise TransientError(
                f"{operation} {key!r} in bucket {self._bucket.name!r}: {read} bytes of {told}",
                operation=operation,
                key=key,
            )

    @asynccontextmanager
    async def open(
        self, key: str, *, if_match: str | None, offset: int
    ) -> AsyncIterator[StreamedBody]:
        """See `asyncagg.store.plane.DataPlane.open`."""
        ranged = {"Range": f"bytes={offset}-"} if offset else {}
        with self._bucket.translated("get", key):
            answer = await self._bucket.client.get_object(
                **self._bucket.at(key), **ranged, **_conditions(if_match, if_absent=False)
            )
        async with answer["Body"] as body:
            chunks = self._chunks(key, body, answer["ContentLength"])
            yield StreamedBody(chunks, _etag(answer), answer.get("ContentEncoding", ""))

    async def _chunks(self, key: str, body: Any, length: int) -> AsyncIterator[bytes]:
        read = 0
        while True:
            with self._bucket.translated("get", key):
                block = await body.content.read(_BLOCK)
            if not block:
                break
            read += len(block)
            yield block
        self._check_length("get", key, length, read)

    async def put(
        self,
        key: str,
        data: bytes,
        *,
        if_match: str | None,
        if_absent: bool,
        content_type: str,
        metadata: Mapping[str, str],
    ) -> str:
        """See `asyncagg.store.plane.DataPlane.put`."""
        with self._bucket.translated("put", key):
            answer = await self._bucket.client.put_object(
                **self._bucket.at(key),
                Body=data,
                ContentType=content_type,
                Metadata=dict(metadata),
                **_conditions(if_match, if_absent=if_absent),
            )
        return _etag(answer)

    async def copy(
        self,
        source: str,
        target: str,
        *,
        if_match: str,
        if_absent: bool,
        replacing: ObjectInfo | None,
    ) -> None:
        """See `asyncagg.store.plane.DataPlane.copy`."""
        options: dict[str, Any] = {"CopySourceIfMatch": f'"{if_match}"'} if if_match else {}
        if replacing is not None:
            options |= {
                "MetadataDirective": "REPLACE",
                "Metadata": dict(replacing.metadata),
                "ContentType": replacing.content_type,
            }
            if replacing.content_encoding:
                options["ContentEncoding"] = replacing.content_encoding
        with self._bucket.translated("copy", source):
            await self._bucket.client.copy_object(
                **self._bucket.at(target),
                CopySource=self._bucket.at(source),
                **_conditions(None, if_absent=if_absent),
                **options,
            )

    async def delete(self, files: Sequence[RunFile]) -> Mapping[str, StoreError]:
        """See `asyncagg.store.plane.DataPlane.delete`."""
        bucket = self._bucket
        objects = [
            {"Key": bucket.prefix + file.key} | ({"ETag": f'"{file.etag}"'} if file.etag else {})
            for file in files
        ]
        with bucket.translated("delete", files[0].key):
            answer = await bucket.client.delete_objects(
                Bucket=bucket.name, Delete={"Objects": objects, "Quiet": True}
            )
        failures: dict[str, StoreError] = {}
        for each in answer.get("Errors", ()):
            key = each["Key"][len(bucket.prefix) :]
            error = failure(
                "delete",
                key,
                bucket=bucket.name,
                status=200,
                code=each.get("Code", ""),
                message=each.get("Message", ""),
            )
            if not isinstance(error, StoreError):
                raise error
            if each.get("Code") != "NoSuchKey":  # gone is what was asked for
                failures[key] = error
        return failures

    async def aclose(self) -> None:
        """Nothing is left to close: the client is closed by whoever opened it."""


class BotoMultipart:
    """Sends the requests of multipart uploads through aioboto3; see `asyncagg.store.s3.Multipart`.

    Args:
        client: Of a `Control`.
        bucket: The bucket.
        prefix: What all keys start with, or empty.
    """

    def __init__(self, client: Any, bucket: str, prefix: str = "") -> None:
        self._bucket = _Bucket(client, bucket, prefix)

    async def create(self, key: str, *, content_type: str, metadata: Mapping[str, str]) -> str:
        """CreateMultipartUpload; returns the upload's id."""
        with self._bucket.translated("put", key):
            answer = await self._bucket.client.create_multipart_upload(
                **self._bucket.at(key), ContentType=content_type, Metadata=dict(metadata)
            )
        return str(answer["UploadId"])

    async def upload_part(self, key: str, upload: str, number: int, data: BytesIO) -> str:
        """UploadPart; returns the part's etag."""
        data.seek(0)
        with self._bucket.translated("put", key):
            answer = await self._bucket.client.upload_part(
                **self._bucket.at(key), UploadId=upload, PartNumber=number, Body=data
            )
        return _etag(answer)

    async def copy_part(
        self, key: str, upload: str, number: int, *, source: RunFile, first: int, last: int
    ) -> str:
        """UploadPartCopy of the source's bytes from first to last, if it is unchanged."""
        with self._bucket.translated("copy", source.key):
            answer = await self._bucket.client.upload_part_copy(
                **self._bucket.at(key),
                UploadId=upload,
                PartNumber=number,
                CopySource=self._bucket.at(source.key),
                CopySourceIfMatch=f'"{source.etag}"',
                CopySourceRange=f"bytes={first}-{last}",
            )
        return _etag(answer["CopyPartResult"])

    async def complete(
        self,
        key: str,
        upload: str,
        etags: Sequence[str],
        *,
        if_match: str | None,
        if_absent: bool,
    ) -> str:
        """CompleteMultipartUpload; returns the object's etag."""
        parts = [{"PartNumber": n, "ETag": f'"{etag}"'} for n, etag in enumerate(etags, 1)]
        with self._bucket.translated("put", key):
            answer = await self._bucket.client.complete_multipart_upload(
                **self._bucket.at(key),
                UploadId=upload,
                MultipartUpload={"Parts": parts},
                **_conditions(if_match, if_absent=if_absent),
            )
        return _etag(answer)

    async def abort(self, key: str, upload: str) -> None:
        """AbortMultipartUpload."""
        with self._bucket.translated("put", key):
            await self._bucket.client.abort_multipart_upload(
                **self._bucket.at(key), UploadId=upload
            )
