"""The store refuses one object: that object is deferred, and the others continue."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from testkit.promises import check_after_clean_run, of_server, originals_of
from testkit.s3server import Faults, Request, S3Error, S3Server
from testkit.scenario import BUCKET, PLANES, open_s3, run_data

from asyncagg.errors import AccessDeniedError, ConfigurationError
from asyncagg.job.pipeline import run

START = datetime(2025, 10, 21, 13, 50, tzinfo=UTC)
AT = START + timedelta(minutes=15)
WINDOW = "20251021t1400Z.json"


def fill(server: S3Server) -> None:
    """Put nine run files into the inbox: three windows of three files."""
    for number in range(9):
        stamp = START + timedelta(minutes=number // 3 * 5 + number % 3)
        name = f"{stamp:%Y%m%dt%H%M%SZ}_{number}.json"
        server.put(BUCKET, f"runs/{name}", run_data(number), last_modified=stamp)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize(
    ("operation", "key", "settled", "deferred"),
    [
        pytest.param("GetObject", "runs/20251021t135600Z_4.json", 8, 1, id="GET of a file"),
        pytest.param("CopyObject", "archive/20251021t135600Z_4.json", 8, 1, id="COPY of a file"),
        pytest.param("GetObject", f"aggregates/{WINDOW}", 6, 3, id="GET of an aggregate"),
        pytest.param("PutObject", f"aggregates/{WINDOW}", 6, 3, id="PUT of an aggregate"),
    ],
)
async def test_one_refused_object_is_deferred(
    operation: str, key: str, settled: int, deferred: int, plane: str
) -> None:
    """The other files are counted and archived; once the refusal ends, so is this one."""
    faults = Faults(denied=lambda asked, of: (asked, of) == (operation, key))
    async with S3Server([BUCKET], clock=lambda: AT, faults=faults) as server:
        fill(server)
        originals = originals_of(of_server(server))
        async with open_s3(server, plane) as (store, settings):
            report = await run(store, settings, at=AT)
            assert (report.total.archived, report.total.deferred) == (settled, deferred)
            assert report.exit_code == 3
            faults.denied = None
            await run(store, settings, at=AT)
        check_after_clean_run(of_server(server), originals, at=AT)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("operation", ["GetObject", "CopyObject"])
async def test_a_refusal_of_all_objects_fails_the_run(operation: str, plane: str) -> None:
    """Then a permission is missing, and the error says which."""

    def denied(asked: str, key: str) -> bool:
        return asked == operation and "asyncagg-probe" not in key and not key.startswith("agg")

    async with S3Server([BUCKET], clock=lambda: AT, faults=Faults(denied=denied)) as server:
        fill(server)
        async with open_s3(server, plane) as (store, settings):
            with pytest.raises(AccessDeniedError, match=operation.removesuffix("Object").lower()):
                await run(store, settings, at=AT)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize(
    ("code", "detail", "advice"),
    [
        ("PermanentRedirect", "", "the bucket is elsewhere: set AWS_DEFAULT_REGION"),
        ("TemporaryRedirect", "", "the bucket is elsewhere: set AWS_DEFAULT_REGION"),
        ("PermanentRedirect", "<Region>eu-west-1</Region>", "set AWS_DEFAULT_REGION=eu-west-1"),
        (
            "AuthorizationHeaderMalformed",
            "<Region>eu-west-1</Region>",
            "set AWS_DEFAULT_REGION=eu-west-1",
        ),
    ],
)
async def test_a_bucket_elsewhere_is_named(code: str, detail: str, advice: str, plane: str) -> None:
    """A run says the bucket's region, as far as S3 does, and the setting."""

    def redirect(_: Request) -> None:
        raise S3Error(code, detail=detail)

    async with (
        S3Server([BUCKET], on_request=redirect) as server,
        open_s3(server, plane) as (store, settings),
    ):
        with pytest.raises(ConfigurationError, match=advice):
            await run(store, settings, at=AT)
