"""The doctor reports each problem, and leaves the store unchanged."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args
from uuid import uuid4

import aioboto3
import anyio
import pytest
from anyio import to_thread
from testkit.certificates import Authority
from testkit.command import asyncagg
from testkit.iam import Judge
from testkit.moto_server import moto_endpoint
from testkit.promises import PROBE, of_server
from testkit.s3server import Guard, Pause, Request, S3Server
from testkit.scenario import AT, BUCKET, PLANES, fill_server, prepared, s3_settings
from testkit.template import role

from asyncagg.doctor import diagnose, directory_checks, s3_checks
from asyncagg.doctor.checks import CheckResult, Diagnosis
from asyncagg.doctor.permissions import Grant, grants, policy
from asyncagg.settings import Settings, settings_from
from asyncagg.store.s3.boto import open_control

# The examination imports these where it needs them: here, before the event loop is watched.
_IMPORTED = (directory_checks, s3_checks)

WRITES = {"PutObject", "CopyObject", "DeleteObjects", "DeleteObject", "CreateMultipartUpload"}


async def examined(
    server: S3Server, plane: str = PLANES[0], *, clock: timedelta = timedelta(), **more: Any
) -> Diagnosis:
    """Check the bucket of a test server."""
    settings = s3_settings(server.url, plane, **more)
    return await diagnose(settings, now=lambda: AT + clock)


def found(diagnosis: Diagnosis, name: str) -> CheckResult:
    """Return the result of a check."""
    return diagnosis.results[name]


def status(diagnosis: Diagnosis) -> dict[str, str]:
    """Return the status of each check that is not ok."""
    results = diagnosis.results.items()
    return {name: result.status for name, result in results if result.status != "ok"}


HINTS = {"versioning": "skipped", "lifecycle": "skipped"}
"""The checks that the test server does not support."""
UNKNOWN = {
    "s3:GetObjectTagging runs/": "skipped",
    "s3:PutObjectTagging archive/": "skipped",
    "s3:PutObjectTagging quarantine/": "skipped",
} | HINTS


# ------------------------------------------------------------------------------ permissions


def granting(some: Iterable[Grant]) -> list[dict[str, Any]]:
    """Return the statements that grant these."""
    statements: list[dict[str, Any]] = policy(some, bucket=BUCKET, root="", partition="aws")[
        "Statement"
    ]
    return statements


def test_what_is_asked_for_is_what_the_stack_grants() -> None:
    """The role of template.yaml and the doctor have the same permissions."""
    server = S3Server()
    assert Judge(server, granting(grants(Settings()))).granted() == Judge(server, role()).granted()


NAMES = {"names": "warn"}
"""The scenario has an object in the inbox that is no run file."""


@pytest.mark.parametrize("plane", PLANES)
async def test_following_the_advice_ends_with_the_role_of_the_stack(plane: str) -> None:
    """Starting without permissions, granting the printed policies is enough, and no more."""
    async with S3Server([BUCKET], clock=lambda: AT) as server:
        fill_server(server, prepared().store)
        before = of_server(server)
        judge = Judge(server)
        server.on_request = judge
        diagnosis = await examined(server, plane)
        assert diagnosis.exit_code == 1
        rounds = 0
        while diagnosis.policy is not None:
            judge.statements += diagnosis.policy["Statement"]
            diagnosis = await examined(server, plane)
            rounds += 1
        assert rounds <= 4
        assert status(diagnosis) == HINTS | NAMES
        assert judge.granted() == Judge(server, role()).granted()
        assert of_server(server) == before


@pytest.mark.parametrize("missing", grants(Settings()), ids=str)
async def test_a_missing_permission_is_named(missing: Grant) -> None:
    """The one missing permission is named, with the statement that grants it."""
    async with S3Server([BUCKET], clock=lambda: AT) as server:
        fill_server(server, prepared().store)
        before = of_server(server)
        rest = [grant for grant in grants(Settings()) if grant != missing]
        server.on_request = Judge(server, granting(rest))
        diagnosis = await examined(server, PLANES[1])
        assert of_server(server) == before
    (denied,) = [name for name, each in diagnosis.results.items() if each.missing is not None]
    assert (denied, found(diagnosis, denied).missing) == (str(missing), missing)
    mild = "Tagging" in missing.action or "Abort" in missing.action
    assert found(diagnosis, denied).status == ("warn" if mild else "fail")
    assert diagnosis.policy is not None
    assert diagnosis.policy["Statement"] == granting([missing])
    assert all(each.status != "fail" for name, each in diagnosis.results.items() if name != denied)


@pytest.mark.slow
async def test_the_policy_mends_what_another_judge_denies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The printed policies are also enough in moto's implementation of IAM."""
    endpoint = await to_thread.run_sync(moto_endpoint)
    bucket = f"doctor-{uuid4().hex}"
    async with (
        open_control(endpoint_url=endpoint, connections=1) as control,
        aioboto3.Session().client("iam", endpoint_url=endpoint) as iam,
    ):
        await control.client.create_bucket(Bucket=bucket)
        await iam.create_user(UserName=bucket)
        key = (await iam.create_access_key(UserName=bucket))["AccessKey"]

        async def attach(name: str, document: dict[str, Any]) -> None:
            await iam.put_user_policy(
                UserName=bucket, PolicyName=name, PolicyDocument=json.dumps(document)
            )

        async def judged() -> Diagnosis:
            with monkeypatch.context() as user:
                user.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
                user.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
                user.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0)
                settings = Settings(
                    store=f"s3://{bucket}", endpoint_url=endpoint, conditional_writes="off"
                )
                return await diagnose(settings)

        # S3 asks for DeleteObject on each key of a batch; moto asks for it on the bucket.
        whole = {
            "Effect": "Allow",
            "Action": "s3:DeleteObject",
            "Resource": f"arn:aws:s3:::{bucket}",
        }
        await attach("moto", {"Version": "2012-10-17", "Statement": [whole]})
        rounds = 0
        diagnosis = await judged()
        while diagnosis.policy is not None:
            rounds += 1
            assert rounds <= 4
            await attach(f"round-{rounds}", diagnosis.policy)
            diagnosis = await judged()
        assert (diagnosis.exit_code, rounds > 1) == (0, True)
        # Versioning and lifecycle are no business of the job's, and denied to it.
        assert status(diagnosis) == HINTS | {"guards": "warn"}
        assert (await control.client.list_objects_v2(Bucket=bucket))["KeyCount"] == 0


def test_a_policy_names_the_prefix_and_the_partition() -> None:
    """The policy of a store below a prefix, in China."""
    document = policy(
        [Grant("s3:PutObject", "archive/"), Grant("s3:ListBucket", "runs/")],
        bucket="b",
        root="a b/",
        partition="aws-cn",
    )
    put, listing = document["Statement"]
    assert put["Resource"] == ["arn:aws-cn:s3:::b/a b/archive/*"]
    assert listing["Resource"] == "arn:aws-cn:s3:::b"
    assert listing["Condition"] == {"StringLike": {"s3:prefix": ["a b/runs/*"]}}


# ------------------------------------------------------------------------------ the bucket


@pytest.mark.parametrize("plane", PLANES)
async def test_a_sound_bucket_is_found_so_and_left_so(plane: str) -> None:
    """Nothing fails; only objects of the probe were written, and they are removed."""
    async with S3Server([BUCKET], clock=lambda: AT) as server:
        fill_server(server, prepared().store)
        before = of_server(server)
        diagnosis = await examined(server, plane)
        assert (diagnosis.exit_code, status(diagnosis)) == (0, UNKNOWN | NAMES)
        assert "'runs/notes.txt'" in diagnosis.results["names"].detail
        assert of_server(server) == before
        assert server.buckets[BUCKET].uploads == {}
        written = [each for each in server.audit.log if each.operation in WRITES]
        # A batch of deletes has no key of its own; what was lost says which they were.
        assert all(PROBE in each.key for each in written if each.operation != "DeleteObjects")
        assert all(PROBE in loss.key for loss in server.audit.lost)
        json.dumps(diagnosis.as_dict())


@pytest.mark.parametrize("how", [guard for guard in get_args(Guard) if guard != "honour"])
@pytest.mark.parametrize(
    ("switch", "name"),
    [
        ("put_if_absent", "put_if_absent"),
        ("put_if_match", "put_if_match"),
        ("copy_source_if_match", "copy_if_match"),
        ("copy_if_absent", "copy_if_absent"),
        ("delete_etag", "delete_if_match"),
    ],
)
async def test_a_missing_guard_is_named(switch: str, name: str, how: Guard) -> None:
    """A guard is ignored, rejected or always fails; the bucket stays unchanged."""
    async with S3Server([BUCKET], clock=lambda: AT) as server:
        fill_server(server, prepared().store)
        before = of_server(server)
        setattr(server.faults.guards, switch, how)
        diagnosis = await examined(server, PLANES[1])
        assert of_server(server) == before
        guards = found(diagnosis, "guards")
        assert name in guards.detail
        assert guards.status == ("warn" if name == "copy_if_absent" else "fail")
        off = await examined(server, PLANES[1], conditional_writes="off")
        assert found(off, "guards").status == "warn"
        assert off.exit_code == 0


async def test_what_a_careless_store_keeps_is_told() -> None:
    """The store ignores the condition, and the role may not delete: the object is named."""
    async with S3Server([BUCKET], clock=lambda: AT) as server:
        server.faults.guards.put_if_match = "ignore"
        server.on_request = Judge(server, granting(grants(Settings())))
        diagnosis = await examined(server, PLANES[1])
        kept = server.keys(BUCKET)
    detail = found(diagnosis, "s3:PutObject aggregates/").detail
    assert next(key for key in kept if key.startswith("aggregates/")) in detail
    assert not [key for key in kept if key.startswith(("runs/", "archive/"))]


async def test_no_bucket() -> None:
    """A missing bucket is reported, and the checks that need it are skipped with the reason."""
    async with S3Server(["another"], clock=lambda: AT) as server:
        diagnosis = await examined(server)
    assert found(diagnosis, "bucket").status == "fail"
    assert f"no bucket {BUCKET!r}" in found(diagnosis, "bucket").detail
    assert found(diagnosis, "guards") == CheckResult("skipped", "needs bucket, which did not pass")


@pytest.mark.parametrize(
    ("secrets", "code"),
    [({"testing": "another"}, "SignatureDoesNotMatch"), ({"another": "x"}, "InvalidAccessKeyId")],
)
async def test_refused_credentials(secrets: dict[str, str], code: str) -> None:
    """Credentials are found, and the server rejects them."""
    async with S3Server([BUCKET], credentials=secrets) as server:
        diagnosis = await diagnose(s3_settings(server.url))
    assert "from env" in found(diagnosis, "credentials").detail
    assert "testing" not in found(diagnosis, "credentials").detail
    assert found(diagnosis, "accepted").status == "fail"
    assert code in found(diagnosis, "accepted").detail
    assert diagnosis.exit_code == 1


async def test_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent, and the advice says where to set credentials."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    async with S3Server([BUCKET], clock=lambda: AT) as server:
        diagnosis = await examined(server)
        assert server.ordinal == 0
    assert found(diagnosis, "credentials").status == "fail"
    assert "AWS_PROFILE" in found(diagnosis, "credentials").advice
    assert found(diagnosis, "endpoint").status == "skipped"


@pytest.mark.parametrize(
    ("skew", "expected"),
    [(0, "ok"), (59, "ok"), (-61, "warn"), (600, "warn"), (901, "fail"), (-1200, "fail")],
)
async def test_the_clock_is_compared_with_the_servers(skew: int, expected: str) -> None:
    """One minute is a warning, 15 minutes are a failure; the direction is reported."""
    async with S3Server([BUCKET], clock=lambda: AT) as server:
        diagnosis = await examined(server, clock=timedelta(seconds=skew))
    clock = found(diagnosis, "clock")
    assert clock.status == expected
    assert f"{abs(skew)} seconds {'ahead of' if skew > 0 else 'behind'}" in clock.detail


async def test_a_clock_that_the_server_refuses() -> None:
    """Signatures are rejected: the clock is reported, not the credentials."""
    async with S3Server([BUCKET], credentials={"testing": "testing"}, clock=lambda: AT) as server:
        diagnosis = await diagnose(s3_settings(server.url))
    assert found(diagnosis, "clock").status == "fail"
    assert "NTP" in found(diagnosis, "clock").advice


async def test_the_region_of_the_bucket() -> None:
    """Another region is a warning if S3 redirects, and a failure if it does not."""
    async with S3Server([BUCKET], clock=lambda: AT, region="eu-west-1") as server:
        region = found(await examined(server), "region")
        assert (region.status, region.advice) == ("warn", "set AWS_DEFAULT_REGION=eu-west-1")
    async with S3Server([BUCKET], clock=lambda: AT) as server:
        assert (
            found(await examined(server), "region").detail == "us-east-1, the same as the bucket's"
        )
        server.faults.redirect_region = "eu-central-1"
        region = found(await examined(server), "region")
        assert (region.status, region.advice) == ("fail", "set AWS_DEFAULT_REGION=eu-central-1")


async def test_an_endpoint_out_of_reach() -> None:
    """A closed port, an unknown host name, and a string that is not a URL."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{taken.getsockname()[1]}"
        for url, expected in {
            closed: "cannot connect",
            "http://nowhere.invalid:1": "cannot be resolved",
            "nonsense": "endpoint_url 'nonsense'",
        }.items():
            diagnosis = await diagnose(s3_settings(url))
            assert found(diagnosis, "endpoint").status == "fail"
            assert expected in found(diagnosis, "endpoint").detail
            assert diagnosis.exit_code == 1


@pytest.mark.parametrize("trusted", [True, False])
async def test_the_certificate_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, trusted: bool
) -> None:
    """A certificate of an unknown authority is rejected, unless AWS_CA_BUNDLE names it."""
    authority = Authority(tmp_path)
    context = authority.server_context("localhost")
    environ = {"AWS_CA_BUNDLE": str(authority.bundle)} if trusted else {}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    async with S3Server([BUCKET], ssl_context=context) as server:
        url = f"https://localhost:{server.port}"
        diagnosis = await diagnose(s3_settings(url, PLANES[1]))
    endpoint = found(diagnosis, "endpoint")
    assert endpoint.status == ("ok" if trusted else "fail")
    assert ("a trusted certificate" if trusted else "not trusted") in endpoint.detail
    assert diagnosis.exit_code == (not trusted)


@pytest.mark.slow
@pytest.mark.parametrize("executed", [False, True])
async def test_a_cancelled_examination_leaves_nothing(*, executed: bool) -> None:
    """It is cancelled while a write of the probe hangs, before or after its execution."""
    async with S3Server([BUCKET], clock=lambda: AT) as server:
        stopped = 0
        reached = True
        while reached:
            stopped += 1
            pause = _nth_write(stopped, executed=executed)
            server.faults.pause_at = pause
            async with anyio.create_task_group() as group:
                group.start_soon(_cancel_once, pause, group.cancel_scope)
                await examined(server, PLANES[1])
                group.cancel_scope.cancel()
            reached = pause.reached.is_set()
            server.faults.pause_at = None
            # What hangs is never executed: it is for its sender as if it were lost on the way.
            assert server.keys(BUCKET) == []
        assert stopped > 8


def _nth_write(number: int, *, executed: bool) -> Pause:
    writes: dict[int, int] = {}  # asked twice of each request

    def chosen(request: Request) -> bool:
        if request.method != "PUT" or PROBE not in request.key:
            return False
        return writes.setdefault(request.ordinal, len(writes) + 1) == number

    return Pause(chosen, executed=executed)


async def _cancel_once(pause: Pause, scope: anyio.CancelScope) -> None:
    await pause.reached.wait()
    scope.cancel()


# ------------------------------------------------------------------------------ the settings


@pytest.mark.parametrize(
    ("prefixes", "expected"),
    [
        ({"aggregate_prefix": "runs/"}, "share the prefix"),
        ({"archive_prefix": "runs/archive/"}, "archive_prefix 'runs/archive/'"),
        ({"runs_prefix": ""}, "below the inbox ''"),
    ],
)
async def test_prefixes_that_meet_are_told(
    prefixes: dict[str, str], expected: str, inbox: Path
) -> None:
    """Overlapping prefixes are accepted, with a warning about their cost."""
    diagnosis = await diagnose(settings_from({"store": str(inbox), **prefixes}))
    assert found(diagnosis, "prefixes").status == "warn"
    assert expected in found(diagnosis, "prefixes").detail
    assert diagnosis.exit_code == 0


# ------------------------------------------------------------------------------ a directory


async def test_a_sound_directory_is_left_as_it_is(inbox: Path) -> None:
    """Nothing fails, and no file or folder is created."""
    diagnosis = await diagnose(Settings(store=str(inbox)))
    assert (diagnosis.exit_code, os.listdir(inbox)) == (0, ["runs"])  # noqa: PTH208 - names
    assert found(diagnosis, "folder runs/").detail == "exists"
    assert "does not exist yet" in found(diagnosis, "folder archive/").detail
    assert found(diagnosis, "file system").status == "ok"


async def test_what_is_wrong_with_a_directory(inbox: Path) -> None:
    """The root is missing or a file; a link or a file has the name of a folder."""
    (inbox / "file").write_bytes(b"")
    wrong = {"no-such": "does not exist", "file": "is not a directory", "x" * 300: "too long"}
    for name, expected in wrong.items():
        diagnosis = await diagnose(Settings(store=str(inbox / name)))
        assert expected in found(diagnosis, "directory").detail
        assert found(diagnosis, "file system").status == "skipped"
        assert diagnosis.exit_code == 1
    (inbox / "archive").symlink_to(inbox / "runs")
    (inbox / "quarantine").write_bytes(b"")
    diagnosis = await diagnose(Settings(store=str(inbox)))
    assert "symbolic link" in found(diagnosis, "folder archive/").detail
    assert "is a file" in found(diagnosis, "folder quarantine/").detail


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
async def test_a_directory_without_permission(inbox: Path) -> None:
    """The folder without permission is named."""
    (inbox / "runs").chmod(0o500)
    diagnosis = await diagnose(Settings(store=str(inbox)))
    assert found(diagnosis, "folder runs/").status == "fail"


async def test_a_read_only_file_system(inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named as the cause, because no change of permissions helps."""
    read_only = SimpleNamespace(f_flag=os.ST_RDONLY)
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    monkeypatch.setattr(os, "statvfs", lambda _: read_only)
    result = found(await diagnose(Settings(store=str(inbox))), "directory")
    assert result.status == "fail"
    assert "read-only file system" in result.detail
    assert result.advice.startswith("mount it for writing")


# ------------------------------------------------------------------------------ the command


async def moto_bucket() -> str:
    """Create a bucket on moto's server, with versioning and a rule that expires run files."""
    bucket = f"doctor-{uuid4().hex}"
    async with open_control(endpoint_url=moto_endpoint(), connections=1) as control:
        client = control.client
        await client.create_bucket(Bucket=bucket)
        await client.put_bucket_versioning(
            Bucket=bucket, VersioningConfiguration={"Status": "Enabled"}
        )
        rule = {
            "ID": "x",
            "Status": "Enabled",
            "Filter": {"Prefix": ""},
            "Expiration": {"Days": 9},
        }
        await client.put_bucket_lifecycle_configuration(
            Bucket=bucket, LifecycleConfiguration={"Rules": [rule]}
        )
    return bucket


def test_on_moto_through_the_command_line() -> None:
    """Permissions are granted, guards are missing; configuration is reported; nothing is left."""
    bucket = anyio.run(moto_bucket)
    words = ("doctor", f"s3://{bucket}/below", "--endpoint-url", moto_endpoint())
    done = asyncagg(*words, "--json")
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    checks = {each["name"]: each for each in report["checks"]}
    assert {name for name, each in checks.items() if each["status"] == "fail"} == {"guards"}
    assert checks["versioning"]["told"].startswith("on")
    assert checks["lifecycle"]["status"] == "warn"
    assert report["policy"] is None
    done = asyncagg(*words, "--conditional-writes", "off")
    assert done.returncode == 0, done.stdout
    assert "run one at a time" in done.stdout

    async def keys() -> int:
        async with open_control(endpoint_url=moto_endpoint(), connections=1) as control:
            listed = await control.client.list_objects_v2(Bucket=bucket)
            return int(listed["KeyCount"])

    assert anyio.run(keys) == 0


def test_on_a_directory_through_the_command_line(tmp_path: Path) -> None:
    """It prints a table or JSON, and the exit code is 1 if a check fails."""
    done = asyncagg("doctor", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "file system" in done.stdout
    done = asyncagg("doctor", str(tmp_path / "no-such"), "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert report["exit_code"] == 1
    assert [each["name"] for each in report["checks"] if each["status"] == "fail"] == ["directory"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["doctor"], "store ''"),
        (["doctor", "ftp://x"], "store 'ftp://x'"),
        (["doctor", ".", "--archive-prefix", "runs/"], "lies in"),
    ],
)
def test_a_mistake_is_one_sentence(words: list[str], expected: str) -> None:
    """Wrong usage ends with 2 and one sentence, without a traceback."""
    done = asyncagg(*words)
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
