"""Opens the store that a URL names: ``s3://bucket[/prefix]`` or a directory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from asyncagg.errors import UsageError
from asyncagg.settings import Settings
from asyncagg.store.protocol import Store
from asyncagg.store.retry import Retry


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
        from asyncagg.store.s3.opening import open_s3  # noqa: PLC0415 - a directory needs no S3

        bucket, prefix = parse_bucket(settings.store)
        async with open_s3(settings, bucket, prefix, retry) as store:
            yield store
    elif settings.store:
        from asyncagg.store.directory import DirectoryStore  # noqa: PLC0415 - never in the Lambda

        yield DirectoryStore(Path(settings.store), inbox=settings.runs_prefix)
    else:
        raise UsageError(
            "store '': expected s3://bucket[/prefix] or a directory "
            "(or ASYNCAGG_STORE, or SAM_MATCHING_OUT_RUNS_BUCKET, in the environment)"
        )


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
