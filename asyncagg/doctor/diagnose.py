"""Runs all checks of a set-up, without changing anything.

A permission is checked by requests for keys that do not exist and with conditions that must fail.
The guards are probed as in a run, with objects below the archive prefix that are then removed.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from anyio import to_thread
from msgspec import structs

from asyncagg.doctor.checks import CheckResult, Diagnosis, Examination
from asyncagg.doctor.permission_checks import check_permission, prerequisites
from asyncagg.doctor.permissions import Grant, grants, policy
from asyncagg.errors import AccessDeniedError, AsyncaggError, NotFoundError, UsageError
from asyncagg.job.context import JobContext
from asyncagg.job.layout import KeyKind, Layout
from asyncagg.job.listing import find_disorder
from asyncagg.job.outcome import MAX_IGNORED
from asyncagg.job.record import follow_record
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.store.guards import (
    OPTIONAL,
    PROBE,
    WITHOUT_GUARDS,
    GuardedStore,
    PartsGuard,
)
from asyncagg.store.opening import open_store, parse_bucket

if TYPE_CHECKING:
    from asyncagg.doctor.s3_checks import S3Checks

_ATTEMPTS = 2
_LATENCY_REQUESTS = 5
_SLOW_SECONDS = 0.2
_ORDER_PAGES = 3
_INSTEAD = {
    "copy_if_absent": "the archive is checked before each copy",
    "get_if_match": "the ETag of each response is compared",
}


async def diagnose(
    settings: Settings,
    *,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    monotonic: Callable[[], float] = time.monotonic,
) -> Diagnosis:
    """Check the store that the settings name.

    Args:
        settings: The settings of the job.
        now: The clock of this machine.
        monotonic: The time in seconds, for latencies.

    Raises:
        UsageError: The URL is not that of a store.
    """
    exam = Examination()
    exam.results["prefixes"] = _prefixes(settings)
    if "://" in settings.store:
        return await _check_bucket(exam, settings, now, monotonic)
    if not settings.store:
        raise UsageError("store '': expected s3://bucket[/prefix] or a directory")
    await _check_directory(exam, settings)
    return Diagnosis(settings.store, exam.results)


def _prefixes(settings: Settings) -> CheckResult:
    """Look for prefixes that are allowed, but may be a mistake."""
    if settings.aggregate_prefix == settings.runs_prefix:
        return CheckResult(
            "warn",
            f"aggregates and run files share the prefix {settings.runs_prefix!r}",
            "give aggregates another prefix: every run lists all of them here",
        )
    nested = [
        f"{name} {prefix!r}"
        for name, prefix in structs.asdict(settings).items()
        if name.endswith("_prefix")
        and name != "runs_prefix"
        and prefix.startswith(settings.runs_prefix)
    ]
    if nested:
        return CheckResult(
            "warn",
            f"below the inbox {settings.runs_prefix!r}: {', '.join(nested)}",
            "move them elsewhere: every run lists their objects here",
        )
    return CheckResult("ok", "they do not overlap")


async def _check_directory(exam: Examination, settings: Settings) -> None:
    from asyncagg.doctor import directory_checks as checks  # noqa: PLC0415 - a bucket needs none

    root = Path(settings.store)

    async def check(name: str, find: Callable[[], CheckResult], *needs: str) -> None:
        async def in_thread() -> CheckResult:
            try:
                return await to_thread.run_sync(find)
            except OSError as error:
                return CheckResult("fail", f"{error.strerror}: {str(error.filename or root)!r}")

        await exam.check(name, in_thread, needs=needs)

    await check("directory", partial(checks.root_folder, root))
    prefixes = (
        settings.runs_prefix,
        settings.aggregate_prefix,
        settings.archive_prefix,
        settings.quarantine_prefix,
    )
    for prefix in filter(None, dict.fromkeys(prefixes)):
        await check(f"folder {prefix}", partial(checks.folder, root, prefix), "directory")
    await check("file system", partial(checks.file_system, root), "directory")
    await check("space", partial(checks.space, root), "directory")
    async with open_store(settings) as store:
        if exam.passed("directory"):
            await _check_record(exam, store, settings)
        await exam.check("names", partial(_names, store, settings), needs=["directory"])
        await exam.check("order", partial(check_order, store, settings), needs=["directory"])


async def _check_bucket(
    exam: Examination,
    settings: Settings,
    now: Callable[[], datetime],
    monotonic: Callable[[], float],
) -> Diagnosis:
    from asyncagg.doctor.s3_checks import S3Checks  # noqa: PLC0415 - a directory needs no S3
    from asyncagg.store.s3.boto import open_control  # noqa: PLC0415 - likewise
    from asyncagg.store.s3.demanded import demanded_parameters  # noqa: PLC0415 - likewise

    bucket, root = parse_bucket(settings.store)
    try:
        async with open_control(
            endpoint_url=settings.endpoint_url,
            connections=2,
            parameters=demanded_parameters(settings),
        ) as control:
            s3 = S3Checks(control, bucket, root, settings, now)
            await s3.check_access(exam)
            if exam.passed("bucket"):
                await _check_requests(exam, settings, s3, monotonic)
                await s3.check_configuration(exam)
            else:
                exam.skip("needs bucket, which did not pass", "permissions", "guards", "latency")
            region = control.region
    except AsyncaggError as error:  # opening failed; the errors of a check are in its result
        exam.results["endpoint"] = CheckResult("fail", str(error))
        return Diagnosis(settings.store, exam.results)
    missing = [result.missing for result in exam.results.values() if result.missing is not None]
    granting = policy(missing, bucket=bucket, root=root, partition=_partition(region))
    return Diagnosis(settings.store, exam.results, granting if missing else None)


def _partition(region: str) -> str:
    by_start = {"cn-": "aws-cn", "us-gov-": "aws-us-gov"}
    return next((name for start, name in by_start.items() if region.startswith(start)), "aws")


async def _check_requests(
    exam: Examination, settings: Settings, s3: S3Checks, monotonic: Callable[[], float]
) -> None:
    """Check each permission that the job needs, the guards and the latency."""
    impatient = structs.replace(settings, retry_attempts=_ATTEMPTS)
    archive = settings.archive_prefix
    needed_by_guards = (
        Grant("s3:ListBucket", archive),
        Grant("s3:GetObject", archive),
        Grant("s3:DeleteObject", f"{archive}{PROBE}"),
        Grant("s3:PutObject", archive),
    )
    async with open_store(impatient) as guarded:
        store = guarded.unguarded if isinstance(guarded, GuardedStore) else guarded
        settings = await _check_record(exam, store, settings)
        for grant in grants(settings):
            await exam.check(
                str(grant),
                partial(check_permission, store, grant, s3.request_for),
                needs=prerequisites(grant),
            )
        await exam.check(
            "guards",
            partial(_guards, store, settings),
            needs=[str(grant) for grant in needed_by_guards],
        )
        await exam.check(
            "names",
            partial(_names, store, settings),
            needs=[str(Grant("s3:ListBucket", settings.runs_prefix))],
        )
        await exam.check(
            "order",
            partial(check_order, store, settings),
            needs=[
                str(Grant("s3:ListBucket", prefix))
                for prefix in (
                    settings.runs_prefix,
                    settings.archive_prefix,
                    settings.aggregate_prefix,
                )
            ],
        )
        await exam.check(
            "latency",
            partial(_latency, store, settings, monotonic),
            needs=[str(Grant("s3:GetObject", settings.runs_prefix))],
        )


async def _check_record(exam: Examination, store: Store, settings: Settings) -> Settings:
    """Compare the settings with the store's record, and return those that a run uses."""
    used = settings

    async def find() -> CheckResult:
        nonlocal used
        try:
            used = (await follow_record(JobContext(store, settings))).settings
        except UsageError as error:
            return CheckResult("fail", str(error), "run with the recorded value")
        except AccessDeniedError:
            return CheckResult("skipped", "not readable: see the permissions")
        return CheckResult(
            "ok", f"window_by={used.window_by}, window_minutes={used.window_minutes}"
        )

    await exam.check("record", find)
    return used


async def check_order(store: Store, settings: Settings) -> CheckResult:
    """Look whether the store lists in key order, and each key once, in the first pages."""
    seen = 0
    for prefix in (settings.runs_prefix, settings.archive_prefix, settings.aggregate_prefix):
        last, pages = "", 0
        async for page in store.list_pages(prefix):
            if disorder := find_disorder(last, page):
                key, before = disorder
                return CheckResult(
                    "warn",
                    f"{key!r} is listed after {before!r}: not in key order, or again",
                    "runs count each file once, but settle fewer at a time; "
                    "`asyncagg backfill` refuses this store",
                )
            last = page[-1].key if page else last
            seen, pages = seen + len(page), pages + 1
            if pages == _ORDER_PAGES:
                break
    if not seen:
        return CheckResult("ok", "no objects yet")
    return CheckResult("ok", f"objects listed: {seen:,}, in key order, each once")


async def _names(store: Store, settings: Settings) -> CheckResult:
    """Look for objects in the inbox that no run will ever read, in the first page."""
    layout = Layout(settings)
    async for page in store.list_pages(settings.runs_prefix):
        ignored = [
            file.key
            for file in page
            if layout.kind(file.key) is KeyKind.IGNORED and not file.key.endswith("/")
        ]
        if ignored:
            return CheckResult(
                "warn",
                f"{len(ignored)} of the first {len(page)} objects in the inbox are ignored: "
                f"{', '.join(map(repr, ignored[:MAX_IGNORED]))}",
                "a run reads keys that end in .json or .json.gz: rename or remove the others",
            )
        break
    return CheckResult("ok", "no object in the inbox is ignored")


async def _guards(store: Store, settings: Settings) -> CheckResult:
    # As in a run, guards that seem to be missing are probed again: a response may have been lost.
    found = await GuardedStore(store, prefix=settings.archive_prefix, required=False).guards()
    parts = getattr(store, "parts_guard", None)
    missing = list(found.missing)
    if isinstance(parts, PartsGuard) and not await parts.honoured():
        missing.append("conditions of multipart uploads")
    if not missing:
        return CheckResult("ok", "conditional writes, copies and deletes are honoured")
    detail = f"not honoured: {', '.join(missing)}"
    if set(missing) <= set(OPTIONAL):
        instead = "; ".join(_INSTEAD[name] for name in missing)
        return CheckResult("warn", f"{detail}; {instead} instead")
    if settings.conditional_writes == "off":
        return CheckResult(
            "warn",
            f"{detail}; conditional_writes is off",
            "run one at a time: see docs/explanation/guarantees.md",
        )
    return CheckResult(
        "fail",
        detail,
        "use a store with conditional writes, copies and deletes, such as Amazon S3; or "
        f"{WITHOUT_GUARDS}",
    )


async def _latency(store: Store, settings: Settings, monotonic: Callable[[], float]) -> CheckResult:
    times = []
    for _ in range(_LATENCY_REQUESTS):
        before = monotonic()
        with suppress(NotFoundError):
            await store.get(f"{settings.runs_prefix}{PROBE}{uuid.uuid4().hex}")
        times.append(monotonic() - before)
    detail = f"{median(times) * 1000:,.1f} ms a request (median of {len(times)})"
    if median(times) > _SLOW_SECONDS:
        return CheckResult("warn", detail, "run in the bucket's region, or raise the concurrency")
    return CheckResult("ok", detail)
