"""Opens the store that a URL names: ``s3://bucket[/prefix]`` or a directory."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from anyio import move_on_after, to_thread

from asyncagg.errors import UsageError
from asyncagg.settings import Settings
from asyncagg.store.guards import GuardedStore, PartsGuard
from asyncagg.store.protocol import Store
from asyncagg.store.retry import Retry, RetryPolicy

if TYPE_CHECKING:
    from asyncagg.store.s3.boto import Control
    from asyncagg.store.s3.plane import DataPlane, StorageClass

_log = logging.getLogger(__name__)

_CLEANUP_SECONDS = 5.0
_MAX_PAGE_BYTES = 16 * 1024 * 1024


@asynccontextmanager
async def open_store(settings: Settings, *, retry: Retry | None = None) -> AsyncIterator[Store]:
    """Open the store that the settings name.

    Args:
        settings: The store's URL, and how to access it.
        retry: The retry layer around its requests, which counts them; a new one by default.

    Raises:
        UsageError: The URL is not that of a store.
        ConfigurationError: The directory does not exist, or the bucket cannot be reached.
    """
    if "://" in settings.store:
        async with _open_s3(settings, retry) as store:
            yield store
    elif settings.store:
        # Imported only when needed: the Lambda never does.
        from asyncagg.store.directory import DirectoryStore  # noqa: PLC0415

        yield DirectoryStore(Path(settings.store), inbox=settings.runs_prefix)
    else:
        raise UsageError(
            "store '': expected s3://bucket[/prefix] or a directory "
            "(or ASYNCAGG_STORE, or SAM_MATCHING_OUT_RUNS_BUCKET, in the environment)"
        )


@asynccontextmanager
async def _open_s3(settings: Settings, retry: Retry | None) -> AsyncIterator[Store]:
    # Imported only when needed: a directory needs no S3.
    from asyncagg.store.s3.boto import BotoBucket, BotoMultipart, open_control  # noqa: PLC0415
    from asyncagg.store.s3.demanded import demanded_parameters  # noqa: PLC0415
    from asyncagg.store.s3.store import S3Store  # noqa: PLC0415

    bucket, root = parse_bucket(settings.store)
    retry = retry or Retry(RetryPolicy(attempts=settings.retry_attempts))
    async with (
        open_control(
            endpoint_url=settings.endpoint_url,
            connections=settings.concurrency,
            parameters=demanded_parameters(settings),
        ) as control,
        _open_plane(control, settings, bucket, root) as plane,
    ):
        multipart = BotoMultipart(
            BotoBucket(control.client, bucket, root), storage_class=_storage_class(settings)
        )
        store = S3Store(settings.store, plane, multipart, retry)
        prefix, required = settings.archive_prefix, settings.conditional_writes == "required"
        store.parts_guard = PartsGuard(store, store.put_in_parts, prefix=prefix, required=required)
        yield GuardedStore(store, prefix=prefix, required=required)


@asynccontextmanager
async def _open_plane(
    control: Control, settings: Settings, bucket: str, prefix: str
) -> AsyncIterator[DataPlane]:
    if control.proxy and settings.data_plane == "lean":
        _log.info("requests go through aioboto3", extra={"proxy": control.proxy})
    if control.proxy or settings.data_plane == "boto":
        from asyncagg.store.s3.boto import BotoBucket, BotoPlane  # noqa: PLC0415

        yield BotoPlane(
            BotoBucket(control.client, bucket, prefix),
            max_body_bytes=max(settings.stream_bytes, _MAX_PAGE_BYTES),
            storage_class=_storage_class(settings),
        )
        return
    from asyncagg.store.s3.demanded import demanded_headers  # noqa: PLC0415
    from asyncagg.store.s3.http import Limits, tls_context  # noqa: PLC0415
    from asyncagg.store.s3.http_plane import HttpDataPlane  # noqa: PLC0415
    from asyncagg.store.s3.requester import Requester  # noqa: PLC0415

    target = await control.locate(bucket)
    tls = None
    if target.endpoint.tls:
        tls = await to_thread.run_sync(tls_context, control.ca_bundle)
    demanded = demanded_headers(settings)
    requester = Requester(
        target,
        control.credentials,
        # One connection more than workers, because the listing reads one page ahead of them.
        limits=Limits(
            max_connections=settings.concurrency + 1,
            max_body_bytes=max(settings.stream_bytes, _MAX_PAGE_BYTES),
        ),
        tls=tls,
        headers=demanded.every,
    )
    try:
        yield HttpDataPlane(
            requester, prefix, storage_class=_storage_class(settings), demanded=demanded
        )
    finally:
        with move_on_after(_CLEANUP_SECONDS, shield=True):
            await requester.aclose()


def _storage_class(settings: Settings) -> StorageClass:
    from asyncagg.store.s3.plane import StorageClass  # noqa: PLC0415 - a directory needs no S3

    return StorageClass(settings.archive_storage_class, settings.archive_prefix)


def parse_bucket(url: str) -> tuple[str, str]:
    """Return the bucket and the key prefix of an ``s3://`` URL, or raise a `UsageError`."""
    if url.startswith("s3://arn:"):
        raise UsageError(
            f"store {url!r}: an ARN is not accepted; expected a bucket's name or, for an access "
            "point, its alias, such as s3://name-...-s3alias"
        )
    parts = urlsplit(url)
    prefix = parts.path.lstrip("/")
    if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
        raise UsageError(f"store {url!r}: expected s3://bucket[/prefix] or a directory")
    if parts.netloc.endswith(("--x-s3", "--xa-s3", "--op-s3")):
        raise UsageError(
            f"store {url!r}: directory buckets and S3 on Outposts list in no order and lack "
            "conditions; expected a general purpose bucket"
        )
    if prefix and not prefix.endswith("/"):
        prefix += "/"
    return parts.netloc, prefix
