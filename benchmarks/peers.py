"""The peers: the same job, written as users of other S3 clients would write it.

    python benchmarks/peers.py NAME ENDPOINT BUCKET

Each peer runs in its own process. It lists the inbox, gets and parses every file, adds up the four
counts, puts one aggregate (sums only; asyncagg's has two rows per file), copies every file to the
archive and deletes the originals in batches. Peers do not protect against interruptions; only the
floor makes its copies and deletes conditional.

A client is imported where it is used, so that a process loads only one.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from job import cpu, peak

if TYPE_CHECKING:
    from obstore.store import ClientConfig

BATCH = 1000
IN_FLIGHT = int(os.environ.get("IN_FLIGHT", "32"))
AGGREGATE = "aggregates/peer.json"

T = TypeVar("T")


class Totals:
    """The results of the job: the number of files, and their four sums."""

    NAMES = ("total_opportunities", "matches_found", "no_matches", "errors")

    def __init__(self) -> None:
        self.files = 0
        self.sums = dict.fromkeys(self.NAMES, 0)

    def add(self, content: Mapping[str, Any]) -> None:
        """Add a file's counts."""
        self.files += 1
        for name in self.NAMES:
            self.sums[name] += content.get(name, 0)

    def aggregate(self) -> bytes:
        """Return the aggregate."""
        return json.dumps({"files": self.files, **self.sums}).encode()


def archived(key: str) -> str:
    """Return a file's key in the archive."""
    return "archive/" + key.removeprefix("runs/")


def batches(items: Iterable[T]) -> Iterator[list[T]]:
    """Yield the items in lists of the size that DeleteObjects accepts."""
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH)):
        yield batch


async def gathered(work: Callable[[str], Awaitable[None]], keys: list[str]) -> None:
    """Do the work on each key, at most `IN_FLIGHT` at a time."""
    semaphore = asyncio.Semaphore(IN_FLIGHT)

    async def one(key: str) -> None:
        async with semaphore:
            await work(key)

    await asyncio.gather(*[one(key) for key in keys])


def boto3_serial(endpoint: str, bucket: str) -> Totals:
    """Use boto3, one request after the other, as a typical handler does."""
    return _boto3(endpoint, bucket, lambda work, keys: [work(key) for key in keys])


def boto3_threads(endpoint: str, bucket: str) -> Totals:
    """Use boto3 from 32 threads."""
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        return _boto3(endpoint, bucket, lambda work, keys: list(pool.map(work, keys)))


def _boto3(
    endpoint: str,
    bucket: str,
    each: Callable[[Callable[[str], Any], list[str]], list[Any]],
) -> Totals:
    import boto3  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415

    s3 = boto3.client("s3", endpoint_url=endpoint, config=Config(max_pool_connections=IN_FLIGHT))
    totals = Totals()
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="runs/")
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    def get(key: str) -> Any:
        return json.loads(s3.get_object(Bucket=bucket, Key=key)["Body"].read())

    def copy(key: str) -> None:
        source = {"Bucket": bucket, "Key": key}
        s3.copy_object(Bucket=bucket, Key=archived(key), CopySource=source)

    for batch in batches(keys):
        for content in each(get, batch):
            totals.add(content)
    if keys:
        s3.put_object(Bucket=bucket, Key=AGGREGATE, Body=totals.aggregate())
    for batch in batches(keys):
        each(copy, batch)
        objects = [{"Key": key} for key in batch]
        s3.delete_objects(Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
    return totals


def aioboto3_semaphore(endpoint: str, bucket: str) -> Totals:
    """Use aioboto3, 32 requests in flight behind a semaphore."""
    import aioboto3  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415

    totals = Totals()

    async def job() -> None:
        config = Config(max_pool_connections=IN_FLIGHT)
        async with aioboto3.Session().client("s3", endpoint_url=endpoint, config=config) as s3:
            pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="runs/")
            keys = [entry["Key"] async for page in pages for entry in page.get("Contents", ())]

            async def get(key: str) -> None:
                answer = await s3.get_object(Bucket=bucket, Key=key)
                async with answer["Body"] as body:
                    totals.add(json.loads(await body.read()))

            async def copy(key: str) -> None:
                source = {"Bucket": bucket, "Key": key}
                await s3.copy_object(Bucket=bucket, Key=archived(key), CopySource=source)

            await gathered(get, keys)
            if keys:
                await s3.put_object(Bucket=bucket, Key=AGGREGATE, Body=totals.aggregate())
            for batch in batches(keys):
                await gathered(copy, batch)
                objects = [{"Key": key} for key in batch]
                await s3.delete_objects(Bucket=bucket, Delete={"Objects": objects, "Quiet": True})

    asyncio.run(job())
    return totals


def obstore_async(endpoint: str, bucket: str) -> Totals:
    """Use obstore (Rust), 32 requests in flight behind a semaphore, orjson."""
    import obstore  # noqa: PLC0415
    import orjson  # noqa: PLC0415
    from obstore.store import S3Store  # noqa: PLC0415

    options: ClientConfig = {"allow_http": True}
    if bundle := os.environ.get("AWS_CA_BUNDLE"):
        options["root_certificate"] = Path(bundle).read_bytes()
    store = S3Store(bucket, endpoint=endpoint, client_options=options)
    totals = Totals()

    async def job() -> None:
        keys = [
            entry["path"]
            async for page in obstore.list(store, prefix="runs/", chunk_size=BATCH)
            for entry in page
        ]

        async def get(key: str) -> None:
            answer = await obstore.get_async(store, key)
            totals.add(orjson.loads(bytes(await answer.bytes_async())))

        async def copy(key: str) -> None:
            await obstore.copy_async(store, key, archived(key))

        await gathered(get, keys)
        if keys:
            await obstore.put_async(store, AGGREGATE, totals.aggregate())
        for batch in batches(keys):
            await gathered(copy, batch)
            await obstore.delete_async(store, batch)

    asyncio.run(job())
    return totals


def s3fs_bulk(endpoint: str, bucket: str) -> Totals:
    """Use s3fs, with its own bulk operations, 32 requests in flight."""
    import s3fs  # noqa: PLC0415

    fs = s3fs.S3FileSystem(
        endpoint_url=endpoint,
        config_kwargs={"max_pool_connections": IN_FLIGHT},
        skip_instance_cache=True,
    )
    totals = Totals()
    paths = fs.find(f"{bucket}/runs/")
    for batch in batches(paths):
        for body in fs.cat(batch, batch_size=IN_FLIGHT).values():
            totals.add(json.loads(body))
    if paths:
        fs.pipe_file(f"{bucket}/{AGGREGATE}", totals.aggregate())
    for batch in batches(paths):
        targets = [f"{bucket}/{archived(path.removeprefix(f'{bucket}/'))}" for path in batch]
        fs.copy(batch, targets, batch_size=IN_FLIGHT)
        fs.rm(batch)
    return totals


def floor(endpoint: str, bucket: str) -> Totals:
    """Use only httptools and uvloop; see `floor.py`."""
    from floor import run  # noqa: PLC0415

    totals = Totals()
    totals.files, *sums = run(endpoint, bucket)
    totals.sums = dict(zip(totals.NAMES, sums, strict=True))
    return totals


PEERS: dict[str, Callable[[str, str], Totals]] = {
    "floor": floor,
    "obstore": obstore_async,
    "aioboto3": aioboto3_semaphore,
    "boto3-threads": boto3_threads,
    "boto3-serial": boto3_serial,
    "s3fs": s3fs_bulk,
}


def main() -> None:
    """Do the job; print its results, CPU time and memory as one line of JSON."""
    name, endpoint, bucket = sys.argv[1:]
    totals = PEERS[name](endpoint, bucket)
    print(
        json.dumps(
            {
                "processed_files": totals.files,
                "sums": list(totals.sums.values()),
                "cpu_seconds": cpu(),
                "peak_bytes": peak(),
            }
        )
    )
    sys.stdout.flush()
    os._exit(0)  # as job.py does


if __name__ == "__main__":
    main()
