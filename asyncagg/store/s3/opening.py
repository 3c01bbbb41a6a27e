"""Opens a bucket: its credentials, its server, and the planes that send the requests."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from anyio import move_on_after, to_thread

from asyncagg.settings import Settings
from asyncagg.store.guards import GuardedStore, PartsGuard
from asyncagg.store.protocol import Store
from asyncagg.store.retry import Retry, RetryPolicy
from asyncagg.store.s3.demanded import demanded_headers, demanded_parameters
from asyncagg.store.s3.environment import check_credentials, read_environment, warn_of_plain_http
from asyncagg.store.s3.http import Limits, tls_context
from asyncagg.store.s3.http_multipart import HttpMultipart
from asyncagg.store.s3.http_plane import HttpDataPlane
from asyncagg.store.s3.plane import DataPlane, Multipart, StorageClass
from asyncagg.store.s3.requester import CredentialsSource, Requester
from asyncagg.store.s3.store import S3Store
from asyncagg.store.s3.target import Target

if TYPE_CHECKING:
    from asyncagg.store.s3.boto import Control

_log = logging.getLogger(__name__)

_CLEANUP_SECONDS = 5.0
_MAX_PAGE_BYTES = 16 * 1024 * 1024


@asynccontextmanager
async def open_s3(
    settings: Settings, bucket: str, prefix: str, retry: Retry | None
) -> AsyncIterator[Store]:
    """Open a bucket, or a prefix of one; see `asyncagg.store.opening.open_store`."""
    retry = retry or Retry(RetryPolicy(attempts=settings.retry_attempts))
    async with _open_planes(settings, bucket, prefix) as (plane, multipart):
        store = S3Store(settings.store, plane, multipart, retry)
        archive, required = settings.archive_prefix, settings.conditional_writes == "required"
        store.parts_guard = PartsGuard(store, store.put_in_parts, prefix=archive, required=required)
        yield GuardedStore(store, prefix=archive, required=required)


@asynccontextmanager
async def _open_planes(
    settings: Settings, bucket: str, prefix: str
) -> AsyncIterator[tuple[DataPlane, Multipart]]:
    if settings.data_plane == "lean":
        check_credentials(os.environ)
        read = partial(
            read_environment, os.environ, bucket=bucket, endpoint_url=settings.endpoint_url
        )
        found = await to_thread.run_sync(read)
        if found is not None:
            warn_of_plain_http(settings.endpoint_url)
            access = (found.target, found.credentials, found.ca_bundle)
            async with _open_http_planes(settings, prefix, *access) as planes:
                yield planes
            return
    from asyncagg.store.s3.boto import open_control  # noqa: PLC0415 - few Lambdas need it

    async with open_control(
        endpoint_url=settings.endpoint_url,
        connections=settings.concurrency,
        parameters=demanded_parameters(settings),
    ) as control:
        if control.proxy and settings.data_plane == "lean":
            _log.info("requests go through aioboto3", extra={"proxy": control.proxy})
        if control.proxy or settings.data_plane == "boto":
            yield _boto_planes(control, settings, bucket, prefix)
            return
        access = (await control.locate(bucket), control.credentials, control.ca_bundle)
        async with _open_http_planes(settings, prefix, *access) as planes:
            yield planes


def _boto_planes(
    control: Control, settings: Settings, bucket: str, prefix: str
) -> tuple[DataPlane, Multipart]:
    from asyncagg.store.s3.boto import BotoBucket, BotoMultipart, BotoPlane  # noqa: PLC0415 - few need it

    place = BotoBucket(control.client, bucket, prefix)
    storage_class = StorageClass(settings.archive_storage_class, settings.archive_prefix)
    plane = BotoPlane(
        place,
        max_body_bytes=max(settings.stream_bytes, _MAX_PAGE_BYTES),
        storage_class=storage_class,
    )
    return plane, BotoMultipart(place, storage_class=storage_class)


@asynccontextmanager
async def _open_http_planes(
    settings: Settings,
    prefix: str,
    target: Target,
    credentials: CredentialsSource,
    ca_bundle: str | None,
) -> AsyncIterator[tuple[DataPlane, Multipart]]:
    demanded = demanded_headers(settings)
    tls = None
    if target.endpoint.tls:
        tls = await to_thread.run_sync(tls_context, ca_bundle)
    requester = Requester(
        target,
        credentials,
        # One connection more than slots, because the listing reads one page ahead of them.
        limits=Limits(
            max_connections=settings.concurrency + 1,
            max_body_bytes=max(settings.stream_bytes, _MAX_PAGE_BYTES),
        ),
        tls=tls,
        headers=demanded.every,
    )
    storage_class = StorageClass(settings.archive_storage_class, settings.archive_prefix)
    try:
        yield (
            HttpDataPlane(requester, prefix, storage_class=storage_class, demanded=demanded),
            HttpMultipart(requester, prefix, storage_class=storage_class, demanded=demanded),
        )
    finally:
        with move_on_after(_CLEANUP_SECONDS, shield=True):
            await requester.aclose()
