"""What is wrong with a set-up, in plain words: a store examined from the outside.

Nothing is changed. Whether a permission is there is found out by requests on keys that do not exist
and by conditions that must fail; the guards are probed as a run probes them, on two objects below
the archive prefix that are removed again.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from anyio import to_thread
from msgspec import structs

from asyncagg.doctor.asking import ask, needs
from asyncagg.doctor.checks import CheckResult, Diagnosis, Examination
from asyncagg.doctor.permissions import Grant, grants, policy
from asyncagg.errors import AsyncaggError, NotFoundError, UsageError
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.store.guards import PROBE, GuardedStore
from asyncagg.store.opening import open_store, parse_bucket

if TYPE_CHECKING:
    from asyncagg.doctor.s3_checks import S3Checks

__all__ = ("diagnose",)

_ATTEMPTS = 2
_LATENCY_REQUESTS = 5
_SLOW_SECONDS = 0.2


def _now() -> datetime:
    return datetime.now(UTC)


async def diagnose(
    settings: Settings,
    *,
    environ: Mapping[str, str],
    now: Callable[[], datetime] = _now,
    monotonic: Callable[[], float] = time.monotonic,
) -> Diagnosis:
    """Examine the store that the settings name.

    Args:
        settings: Its name, and how the job would use it.
        environ: The environment, for ``AWS_CA_BUNDLE``.
        now: The clock of this machine.
        monotonic: The time in seconds, for latencies.

    Raises:
        UsageError: The name is none of a store.
    """
    exam = Examination()
    exam.add("prefixes", _prefixes(settings))
    if "://" in settings.store:
        return await _examine_s3(exam, settings, environ, now, monotonic)
    if not settings.store:
        raise UsageError("store '': expected s3://bucket[/prefix] or a directory")
    await _examine_directory(exam, settings)
    return Diagnosis(settings.store, exam.checks)


def _prefixes(settings: Settings) -> CheckResult:
    """Look for what the settings accept, and somebody may not have meant."""
    if settings.aggregate_prefix == settings.runs_prefix:
        return CheckResult(
            "warn",
            f"aggregates stand beside run files, in {settings.runs_prefix!r}",
            "give aggregates a prefix of their own: here every run lists them all again",
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
            f"below the inbox {settings.runs_prefix!r} lie {', '.join(nested)}",
            "keep them apart: here every run lists what is in them again",
        )
    return CheckResult("ok", "each has its own place")


# ------------------------------------------------------------------------------ a directory


async def _examine_directory(exam: Examination, settings: Settings) -> None:
    from asyncagg.doctor import directory_checks as checks  # noqa: PLC0415 - a bucket needs none

    root = Path(settings.store)

    async def check(name: str, look: Callable[[], CheckResult], *after: str) -> None:
        async def in_thread() -> CheckResult:
            try:
                return await to_thread.run_sync(look)
            except OSError as error:
                return CheckResult("fail", f"{error.strerror}: {str(error.filename or root)!r}")

        await exam.check(name, in_thread, needs=after)

    await check("directory", lambda: checks.root_folder(root))
    for prefix in dict.fromkeys(
        (
            settings.runs_prefix,
            settings.aggregate_prefix,
            settings.archive_prefix,
            settings.quarantine_prefix,
        )
    ):
        if prefix:
            await check(
                f"folder {prefix}",
                lambda prefix=prefix: checks.folder(root, prefix),  # type: ignore[misc] # bound now
                "directory",
            )
    await check("file system", lambda: checks.file_system(root), "directory")
    await check("space", lambda: checks.space(root), "directory")


# ------------------------------------------------------------------------------ a bucket


async def _examine_s3(
    exam: Examination,
    settings: Settings,
    environ: Mapping[str, str],
    now: Callable[[], datetime],
    monotonic: Callable[[], float],
) -> Diagnosis:
    # A directory needs no S3.
    from asyncagg.doctor.s3_checks import S3Checks  # noqa: PLC0415
    from asyncagg.store.s3.boto import open_control  # noqa: PLC0415

    bucket, root = parse_bucket(settings.store)
    try:
        async with open_control(endpoint_url=settings.endpoint_url, connections=2) as control:
            s3 = S3Checks(control, bucket, root, settings, environ, now)
            await s3.diagnose(exam)
            if exam.passed("bucket"):
                await _examine_use(exam, settings, s3, monotonic)
                await s3.hints(exam)
            else:
                for name in ("permissions", "guards", "latency"):
                    exam.skip(name, "needs bucket, which did not pass")
            region = control.region
    except AsyncaggError as error:  # of the opening: a check keeps its own
        exam.add("endpoint", CheckResult("fail", str(error)))
        return Diagnosis(settings.store, exam.checks)
    missing = [each.found.missing for each in exam.checks if each.found.missing is not None]
    granting = policy(missing, bucket=bucket, root=root, partition=_partition(region))
    return Diagnosis(settings.store, exam.checks, granting if missing else None)


def _partition(region: str) -> str:
    by_start = {"cn-": "aws-cn", "us-gov-": "aws-us-gov"}
    return next((name for start, name in by_start.items() if region.startswith(start)), "aws")


async def _examine_use(
    exam: Examination, settings: Settings, s3: S3Checks, monotonic: Callable[[], float]
) -> None:
    """Ask for everything that the job does, permission by permission."""
    impatient = structs.replace(settings, retry_attempts=_ATTEMPTS)
    archive = settings.archive_prefix
    *first, last = (
        Grant("s3:ListBucket", archive),
        Grant("s3:GetObject", archive),
        Grant("s3:DeleteObject", f"{archive}{PROBE}"),
        Grant("s3:PutObject", archive),
    )
    async with open_store(impatient) as guarded:
        store = guarded.unguarded if isinstance(guarded, GuardedStore) else guarded
        for grant in grants(settings):
            await exam.check(
                str(grant),
                lambda grant=grant: ask(store, grant, s3.question),  # type: ignore[misc] # bound now
                needs=needs(grant),
            )
            if grant == last:
                await exam.check(
                    "guards",
                    lambda: _guards(store, settings),
                    needs=[str(each) for each in (*first, last)],
                )
        await exam.check(
            "latency",
            lambda: _latency(store, settings, monotonic),
            needs=[str(Grant("s3:GetObject", settings.runs_prefix))],
        )


async def _guards(store: Store, settings: Settings) -> CheckResult:
    # As a run does it: more than once, where a lost answer might look like a missing guard.
    found = await GuardedStore(store, prefix=settings.archive_prefix, required=False).guards()
    if not found.missing:
        return CheckResult("ok", "conditional writes, copies and deletes are honoured")
    told = f"not honoured: {', '.join(found.missing)}"
    if not found.lacking:
        return CheckResult("warn", f"{told}; the archive is looked at before each copy instead")
    if settings.conditional_writes == "off":
        return CheckResult(
            "warn",
            f"{told}; conditional_writes is off",
            "run one at a time: see docs/explanation/guarantees.md",
        )
    return CheckResult(
        "fail",
        told,
        "use a store with conditional writes, copies and deletes, such as Amazon S3; or set "
        "conditional_writes=off and see docs/explanation/guarantees.md for what that costs",
    )


async def _latency(store: Store, settings: Settings, monotonic: Callable[[], float]) -> CheckResult:
    times = []
    for _ in range(_LATENCY_REQUESTS):
        before = monotonic()
        with suppress(NotFoundError):
            await store.get(f"{settings.runs_prefix}{PROBE}{uuid.uuid4().hex}")
        times.append(monotonic() - before)
    told = f"{median(times) * 1000:,.1f} ms a request (median of {len(times)})"
    if median(times) > _SLOW_SECONDS:
        return CheckResult("warn", told, "run it in the bucket's region, or raise the concurrency")
    return CheckResult("ok", told)
