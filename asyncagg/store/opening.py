"""From a store's name to the store: ``s3://bucket[/prefix]`` or a directory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from asyncagg.errors import UsageError
from asyncagg.limits import Retry, RetryPolicy
from asyncagg.settings import Settings
from asyncagg.store.guards import GuardedStore
from asyncagg.store.protocol import Store

__all__ = ("open_store",)


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[Store]:
    """Open the store that the settings name, for as long as the context lasts.

    Raises:
        UsageError: The name is none of a store.
        ConfigurationError: There is no such directory, or no way to reach the bucket.
    """
    if "://" in settings.store:
        async with _open_s3(settings) as store:
            yield store
    elif settings.store:
        # Imported where it is asked for: the Lambda does without it.
        from asyncagg.store.directory import DirectoryStore  # noqa: PLC0415

        yield DirectoryStore(Path(settings.store))
    else:
        raise UsageError(
            "store '': expected s3://bucket[/prefix] or a directory "
            "(or ASYNCAGG_STORE, or SAM_MATCHING_OUT_RUNS_BUCKET, in the environment)"
        )


@asynccontextmanager
async def _open_s3(settings: Settings) -> AsyncIterator[Store]:
    from asyncagg.store.boto import BotoMultipart, BotoPlane, open_client  # noqa: PLC0415 - a directory needs no S3
    from asyncagg.store.s3 import S3Store  # noqa: PLC0415

    bucket, prefix = _parse(settings.store)
    retry = Retry(RetryPolicy(attempts=settings.retry_attempts))
    async with open_client(
        endpoint_url=settings.endpoint_url, connections=settings.concurrency
    ) as client:
        plane = BotoPlane(client, bucket, prefix)
        multipart = BotoMultipart(client, bucket, prefix)
        store = S3Store(settings.store, plane, multipart, retry)
        yield GuardedStore(
            store,
            prefix=settings.archive_prefix,
            required=settings.conditional_writes == "required",
        )


def _parse(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    prefix = parts.path.lstrip("/")
    if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
        raise UsageError(f"store {url!r}: expected s3://bucket[/prefix] or a directory")
    if prefix and not prefix.endswith("/"):
        prefix += "/"
    return parts.netloc, prefix
