"""A missing guard is detected before the first commit, in whichever way it is missing."""

from __future__ import annotations

from typing import get_args

import pytest
from testkit.promises import PROBE, Snapshot, check_after_clean_run, final_bytes, of_server
from testkit.s3server import Guard, Request, S3Error, S3Server
from testkit.scenario import AT, BUCKET, PLANES, fill_server, open_s3, prepared

import asyncagg.store.s3.store as s3_module
from asyncagg.errors import ConfigurationError
from asyncagg.job.aggregates import MAX_COMMIT_ATTEMPTS
from asyncagg.job.pipeline import run

REQUIRED = {
    "put_if_absent": "put_if_absent",
    "put_if_match": "put_if_match",
    "copy_source_if_match": "copy_if_match",
    "delete_etag": "delete_if_match",
}
"""The test server's switches, and the package's names of those guards."""

HOW_MISSING: list[Guard] = [guard for guard in get_args(Guard) if guard != "honour"]
pytestmark = pytest.mark.parametrize("plane", PLANES)


def without_probe(seen: Snapshot) -> Snapshot:
    """Leave out the probe's objects, which cannot be removed without the guard."""
    return {key: each for key, each in seen.items() if PROBE not in key}


def check_done(seen: Snapshot) -> None:
    """Check every promise on the scenario, and its aggregates to the byte."""
    scenario = prepared()
    check_after_clean_run(seen, scenario.originals, at=AT, foreign=scenario.foreign)
    assert final_bytes(seen) == scenario.expected


@pytest.mark.parametrize("how", HOW_MISSING)
@pytest.mark.parametrize("switch", REQUIRED)
async def test_a_missing_guard_is_found_before_the_first_commit(
    switch: str, how: Guard, plane: str
) -> None:
    """A guard is ignored, rejected or always fails: the error names it, and nothing changes."""
    written: list[str] = []

    def watch(request: Request) -> None:
        if request.method != "GET" and PROBE not in request.key:
            written.append(f"{request.operation} {request.key}")

    async with S3Server([BUCKET], clock=lambda: AT) as server:
        fill_server(server, prepared().store)
        before = of_server(server)
        setattr(server.faults.guards, switch, how)
        server.on_request = watch
        async with open_s3(server, plane) as (store, settings):
            named = f"not honour.* {REQUIRED[switch]}[:,].* --conditional-writes off .*ASYNCAGG_"
            with pytest.raises(ConfigurationError, match=named):
                await run(store, settings, at=AT)
        assert without_probe(of_server(server)) == before
        # HEADs of the job may have been sent.
        assert not [each for each in written if each.startswith(("PutObject", "CopyObject"))]


@pytest.mark.parametrize("how", HOW_MISSING)
@pytest.mark.parametrize("switch", REQUIRED)
async def test_without_required_guards_one_runner_still_is_right(
    switch: str, how: Guard, plane: str
) -> None:
    """With ``conditional_writes=off``, a single runner has the same result as with all guards."""
    async with S3Server([BUCKET], clock=lambda: AT) as server:
        fill_server(server, prepared().store)
        setattr(server.faults.guards, switch, how)
        async with open_s3(server, plane, conditional_writes="off") as (store, settings):
            report = await run(store, settings, at=AT)
        assert report.total.deferred == 0
        check_done(without_probe(of_server(server)))


@pytest.mark.parametrize("how", get_args(Guard))
async def test_the_guard_of_a_copys_target_may_be_missing(how: Guard, plane: str) -> None:
    """A store older than October 2025 needs no setting: the archive is checked first."""
    async with S3Server([BUCKET], clock=lambda: AT) as server:
        fill_server(server, prepared().store)
        server.faults.guards.copy_if_absent = how
        async with open_s3(server, plane) as (store, settings):
            report = await run(store, settings, at=AT)
        assert report.total.deferred == 0
        assert not report.failures
        check_done(without_probe(of_server(server)))


@pytest.mark.parametrize("guard", ["put_if_match", "put_if_absent"])
async def test_a_condition_that_always_fails_never_loops(guard: str, plane: str) -> None:
    """If a guard fails after the probe, the number of commit attempts is limited."""
    async with S3Server([BUCKET], clock=lambda: AT) as server:
        fill_server(server, prepared().store)
        async with open_s3(server, plane) as (store, settings):
            await store.guards()
            setattr(server.faults.guards, guard, "always_fail")
            before = server.audit.counts["PutObject"]
            report = await run(store, settings, at=AT)
            # One of the four windows has an aggregate already.
            windows = 1 if guard == "put_if_match" else 3
            assert (
                server.audit.counts["PutObject"]
                == before + 2 + (4 - windows) + windows * MAX_COMMIT_ATTEMPTS  # 2: the journal
            )
            assert report.total.deferred > 0
            setattr(server.faults.guards, guard, "honour")
            await run(store, settings, at=AT)
        check_done(of_server(server))


@pytest.mark.parametrize("how", ["ignore", "refuse", "malformed", "always_fail"])
async def test_a_probe_leaves_nothing(how: Guard, plane: str) -> None:
    """Whatever guard is missing, and if all are: the probe removes its objects."""
    async with S3Server([BUCKET]) as server:
        for switch in (*REQUIRED, "copy_if_absent", "delete_etag"):
            setattr(server.faults.guards, switch, how)
            async with open_s3(server, plane, conditional_writes="off") as (store, _):
                guards = await store.guards()
            assert set(guards.missing) >= {REQUIRED.get(switch, "copy_if_absent")}
            assert server.keys(BUCKET) == []


@pytest.mark.parametrize("mode", ["required", "off"])
@pytest.mark.parametrize("code", ["MethodNotAllowed", "NotImplemented", "InvalidRequest"])
async def test_a_server_without_bulk_deletes_is_found_before_any_write(
    code: str, mode: str, plane: str
) -> None:
    """No run could remove what it has counted: the error says so, and nothing is written."""

    def refuse(request: Request) -> None:
        if request.operation == "DeleteObjects":
            raise S3Error(code)

    async with S3Server([BUCKET], clock=lambda: AT, on_request=refuse) as server:
        fill_server(server, prepared().store)
        before = of_server(server)
        async with open_s3(server, plane, conditional_writes=mode) as (store, settings):
            with pytest.raises(ConfigurationError, match="refuses DeleteObjects"):
                await run(store, settings, at=AT)
        assert server.audit.counts["PutObject"] == 0
        assert of_server(server) == before


@pytest.mark.parametrize(("how", "missing"), [("ignore", ("get_if_match",)), ("honour", ())])
async def test_a_read_whose_condition_is_ignored_is_information(
    how: Guard, missing: tuple[str, ...], plane: str
) -> None:
    """The ETag of each response is compared anyway, so the guard is not required."""
    async with S3Server([BUCKET]) as server:
        server.faults.guards.get_if_match = how
        async with open_s3(server, plane) as (store, _):
            assert (await store.guards()).missing == missing


@pytest.mark.parametrize("how", ["refuse", "malformed", "always_fail"])
async def test_a_read_of_the_right_version_that_fails_is_found(how: Guard, plane: str) -> None:
    """Without it, no file could be read: no setting accepts that, and nothing stays."""
    async with S3Server([BUCKET]) as server:
        server.faults.guards.get_if_match = how
        async with open_s3(server, plane, conditional_writes="off") as (store, _):
            with pytest.raises(ConfigurationError, match="a GET with the object's own ETag"):
                await store.guards()
        assert server.keys(BUCKET) == []


async def test_all_guards_are_probed_with_few_requests(plane: str) -> None:
    """With all guards, the probe is short and leaves no objects."""
    async with S3Server([BUCKET]) as server, open_s3(server, plane) as (store, _):
        guards = await store.guards()
        assert guards.missing == ()
        assert server.keys(BUCKET) == []
        assert server.ordinal <= 16


async def test_commits_in_parts_are_guarded_too(
    plane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An aggregate that is written by a multipart upload is as conditional as a small one."""
    monkeypatch.setattr(s3_module, "PART_BYTES", 1000)
    raced = False

    async def race(request: Request) -> None:
        nonlocal raced
        if request.operation == "CompleteMultipartUpload" and not raced:
            raced = True
            async with open_s3(server, plane) as (store, settings):
                await run(store, settings, at=AT)

    async with S3Server([BUCKET], clock=lambda: AT) as server:
        server.faults.allow_small_parts = True
        fill_server(server, prepared().store)
        async with open_s3(server, plane) as (store, settings):
            server.on_request = race
            await run(store, settings, at=AT)
        assert raced
        assert server.buckets[BUCKET].uploads == {}
        check_done(of_server(server))
