"""The whole job on sample files, in a temporary store: moto's S3 server, or a directory."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import anyio.to_thread
import orjson
from aiofiles.tempfile import TemporaryDirectory

from asyncagg.errors import ConfigurationError
from asyncagg.ingest.parsing import is_run_file
from asyncagg.job.layout import Layout
from asyncagg.job.outcome import RunReport
from asyncagg.job.pipeline import run
from asyncagg.model import TOP
from asyncagg.sample import last_windows, samples, write_samples
from asyncagg.settings import Settings, settings_from
from asyncagg.store import Store
from asyncagg.store.opening import open_store

BAD_FRACTION = 0.005
WINDOWS = 3
_BUCKET = "demo-matching-out-runs"
_TOTALS = ("total_opportunities", "total_matches", "total_no_matches", "total_errors")


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The result of the demo.

    Attributes:
        headline: What was done, in a sentence.
        first: The run over the files that are in time.
        second: The run after the late file.
        totals: The sums over the aggregates in the end.
        top_matches: The best matches of the aggregates.
        objects: How many objects are under each prefix in the end.
    """

    headline: str
    first: RunReport
    second: RunReport
    totals: dict[str, int]
    top_matches: list[dict[str, Any]]
    objects: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        runs = {"first": self.first.as_dict(), "second": self.second.as_dict()}
        return asdict(self) | runs


async def run_demo(
    *, on_s3: bool, files: int, seed: int, step: Callable[[str], object] = lambda _: None
) -> DemoResult:
    """Write sample files, one of them late, settle them in two runs, and read the outcome.

    Args:
        on_s3: Whether to use moto's S3 server, or else a temporary directory.
        files: How many files.
        seed: The same seed gives the same files.
        step: Called with the name of each step when it begins.

    Raises:
        ConfigurationError: moto is not installed.
    """
    step("opening the store")
    async with _temporary_store(on_s3=on_s3) as (store, settings):
        step("writing run files")
        windows = last_windows(WINDOWS, settings.window_minutes)
        late, *in_time = samples(
            files=files,
            windows=windows,
            prefix=settings.runs_prefix,
            bad_fraction=BAD_FRACTION,
            seed=seed,
        )
        totals = await write_samples(store, in_time)
        step("counting and archiving them")
        first = await run(store, settings, at=windows[-1].end)
        step("counting a late file")
        await write_samples(store, [late])
        second = await run(store, settings, at=windows[-1].end)
        step("reading the aggregates")
        aggregates = [await _read(store, key) for key in _aggregate_keys(first, second)]
        return DemoResult(
            headline=f"wrote {totals.files} run files over {WINDOWS} windows to {store.url}, "
            f"{totals.bad} of them bad, and settled them:",
            first=first,
            second=second,
            totals={name: sum(each[name] for each in aggregates) for name in _TOTALS},
            top_matches=_top(aggregates),
            objects=await _count_objects(store, settings),
        )


def _aggregate_keys(*reports: RunReport) -> list[str]:
    return sorted({each.aggregate_key for report in reports for each in report.windows.values()})


async def _read(store: Store, key: str) -> dict[str, Any]:
    return dict(orjson.loads((await store.get(key)).data))


def _top(aggregates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    matches = [match for each in aggregates for match in each["top_matches"]]
    matches.sort(key=lambda match: (-match["match_score"], match["source_key"]))
    return matches[:TOP]


async def _count_objects(store: Store, settings: Settings) -> dict[str, int]:
    prefixes = (
        settings.runs_prefix,
        settings.aggregate_prefix,
        settings.archive_prefix,
        settings.quarantine_prefix,
    )
    record = Layout(settings).record_key
    return {
        prefix: sum(
            [
                is_run_file(file.key) and file.key != record
                async for page in store.list_pages(prefix)
                for file in page
            ]
        )
        for prefix in prefixes
    }


@asynccontextmanager
async def _temporary_store(*, on_s3: bool) -> AsyncIterator[tuple[Store, Settings]]:
    if on_s3:
        async with _moto() as settings, open_store(settings) as store:
            yield store, settings
    else:
        async with TemporaryDirectory(prefix="asyncagg-demo-") as folder:
            settings = settings_from({"store": folder})
            async with open_store(settings) as store:
                yield store, settings


@asynccontextmanager
async def _moto() -> AsyncIterator[Settings]:
    """Start moto's S3 server on a free port of this machine, with an empty bucket."""
    try:
        from moto.server import ThreadedMotoServer  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigurationError(
            f"the demo's S3 server: {error}; expected the extra 'demo' of asyncagg, or run "
            "the demo on a directory"
        ) from error
    from asyncagg.store.s3.boto import open_control  # noqa: PLC0415 - only for S3

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs a line per request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    await anyio.to_thread.run_sync(server.start)
    try:
        _, port = server.get_host_and_port()
        endpoint = f"http://127.0.0.1:{port}"
        _forget_real_credentials()
        async with open_control(endpoint_url=endpoint, connections=1) as control:
            await control.client.create_bucket(Bucket=_BUCKET)
        yield settings_from(
            {
                "store": f"s3://{_BUCKET}",
                "endpoint_url": endpoint,
                # moto accepts conditions on copies and deletes, but ignores them.
                "conditional_writes": "off",
            }
        )
    finally:
        await anyio.to_thread.run_sync(server.stop)


def _forget_real_credentials() -> None:
    """Replace all AWS settings of the environment, so that nothing reaches a real account."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "demo",
        "AWS_SECRET_ACCESS_KEY": "demo",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
