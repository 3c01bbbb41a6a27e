"""One object that the store refuses, or that is damaged, never stops a command for the others."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
from testkit.hooked import HookedStore
from testkit.s3server import Faults, S3Server
from testkit.scenario import BUCKET, PLANES, Clock, fill_server, moment, open_s3, run_data

from asyncagg.backfill import LocalEngine, backfill, recompute_all
from asyncagg.errors import AccessDeniedError, StoreError
from asyncagg.job.context import JobContext
from asyncagg.job.pipeline import run
from asyncagg.model import Interval
from asyncagg.quarantine.listing import list_quarantined
from asyncagg.quarantine.restore import Restorer, RestoreResult
from asyncagg.report import gather
from asyncagg.rollup import Period, rollup
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.store.directory import DirectoryStore
from asyncagg.store.memory import MemoryStore
from asyncagg.store.s3.plane import s3_error
from asyncagg.verify import verify
from asyncagg.verify.findings import FindingKind

AT = moment(14, 5)
EVERYTHING = Interval(moment(13, 0), AT)
SETTINGS = Settings(window_by="name", concurrency=4)
NOBODY = 65534
WINDOW = "20251021t1355Z"
AGGREGATE = f"aggregates/{WINDOW}.json"
ARCHIVED = "archive/20251021t135200Z_0.json"
WAITING = "runs/20251021t135300Z_5.json"
QUARANTINED = "quarantine/20251021t135100Z_bad.json"

ANSWERS = {
    "another KMS key": (403, "AccessDenied", "not authorized to perform: kms:Decrypt"),
    "a disabled KMS key": (400, "KMS.DisabledException", "the key is disabled"),
    "Glacier": (403, "InvalidObjectState", "the operation is not valid for the storage class"),
    "legal hold": (403, "AccessDenied", "the object is WORM protected"),
    "no code": (400, "", ""),
    "a file of mode 600": (403, "", ""),
    "always throttled": (503, "SlowDown", ""),
}
"""The status, code and message of each kind of refusal."""


class Outcome(NamedTuple):
    """What a command says: its exit code, and what it names."""

    code: int
    named: str


Command = Callable[[Store], Awaitable[Outcome]]


async def _verify(store: Store) -> Outcome:
    report = await verify(JobContext(store, SETTINGS, now=Clock(AT)))
    assert report.found.keys() <= {FindingKind.UNREAD}
    return Outcome(report.exit_code, str(report.as_dict()["findings"]))


async def _report(store: Store) -> Outcome:
    report = await gather(store, SETTINGS)
    return Outcome(report.exit_code, str(report.unreadable))


async def _rollup(store: Store) -> Outcome:
    report = await rollup(store, SETTINGS, Period.HOUR)
    return Outcome(report.exit_code, str(report.failures))


async def _backfill(store: Store) -> Outcome:
    engine = LocalEngine(JobContext(store, SETTINGS))
    report = await backfill(engine, SETTINGS, EVERYTHING)
    deferred = [name for name, each in report.windows.items() if each.tally.deferred]
    return Outcome(report.exit_code, str(deferred))


async def _recompute(store: Store) -> Outcome:
    engine = LocalEngine(JobContext(store, SETTINGS))
    report = await recompute_all(engine, SETTINGS, EVERYTHING)
    failed = [each for each in report.windows if each.failure]
    return Outcome(report.exit_code, str(failed))


async def _list(store: Store) -> Outcome:
    found = [each async for each in list_quarantined(JobContext(store, SETTINGS))]
    assert len(found) == 3
    failed = [each for each in found if each.failure]
    return Outcome(3 if failed else 0, str(failed))


async def _retry(store: Store) -> Outcome:
    results: list[RestoreResult] = []
    restorer = Restorer(JobContext(store, SETTINGS), force=True)
    await restorer.restore_all(results.append)
    restorer.refusals.check()
    left = [each for each in results if each.status == "left"]
    return Outcome(3 if left else 0, str(left))


COMMANDS: dict[str, tuple[Command, str, frozenset[str]]] = {
    "verify, an aggregate": (_verify, AGGREGATE, frozenset({"stream"})),
    "verify, an archived file": (_verify, ARCHIVED, frozenset({"get"})),
    "report, an aggregate": (_report, AGGREGATE, frozenset({"stream"})),
    "rollup, an aggregate": (_rollup, AGGREGATE, frozenset({"stream"})),
    "backfill, a run file": (_backfill, WAITING, frozenset({"get"})),
    "backfill, a copy": (_backfill, WAITING, frozenset({"copy"})),
    "backfill, an aggregate": (_backfill, AGGREGATE, frozenset({"stream"})),
    "backfill, a commit": (_backfill, AGGREGATE, frozenset({"put"})),
    "backfill from the archive, an aggregate": (_recompute, AGGREGATE, frozenset({"stream"})),
    "backfill from the archive, a file": (_recompute, ARCHIVED, frozenset({"get"})),
    "quarantine list, a file": (_list, QUARANTINED, frozenset({"head"})),
    "quarantine retry, a file": (_retry, QUARANTINED, frozenset({"head"})),
    "quarantine retry, a copy": (_retry, QUARANTINED, frozenset({"copy"})),
}
"""Each command, the key of an object that it reads or writes, and the refused operations."""


async def settled() -> MemoryStore:
    """Return a store with three settled windows, a bad file in each, and a new file in each."""
    clock = Clock(moment(13, 49))
    store = MemoryStore(clock)
    for number in range(3):
        start = moment(13, 50) + timedelta(minutes=5 * number)
        for name, data in (("bad", b"["), (str(number), run_data(number))):
            stamp = start + timedelta(minutes=1 if name == "bad" else 2)
            await store.put(f"runs/{stamp:%Y%m%dt%H%M%SZ}_{name}.json", data)
    clock.now = AT
    await run(store, SETTINGS, at=AT)
    for number in range(3):
        stamp = moment(13, 53) + timedelta(minutes=5 * number)
        await store.put(f"runs/{stamp:%Y%m%dt%H%M%SZ}_{5 + number}.json", run_data(5 + number))
    return store


def refusing(
    store: Store, answer: tuple[int, str, str], wanted: Callable[[str, str], bool]
) -> HookedStore:
    """Return a store that answers the wanted requests with an error of S3."""
    status, code, message = answer

    async def refuse(operation: str, key: str, when: str) -> None:
        if when == "before" and wanted(operation, key):
            asked = "get" if operation == "stream" else operation
            raise s3_error(asked, key, bucket="b", status=status, code=code, message=message)

    return HookedStore(store, refuse)


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("name", COMMANDS)
async def test_one_refused_object_is_named_and_the_others_go_on(name: str, kind: str) -> None:
    """The exit code is 3; once the store answers again, nothing is left to do."""
    command, key, operations = COMMANDS[name]
    store = await settled()
    hooked = refusing(store, ANSWERS[kind], lambda asked, of: of == key and asked in operations)
    outcome = await command(hooked)
    assert outcome.code == 3
    assert key in outcome.named or WINDOW in outcome.named
    assert (await command(store)).code == 0


OPERATIONS = {
    "stream": "GetObject",
    "get": "GetObject",
    "head": "HeadObject",
    "put": "PutObject",
    "copy": "CopyObject",
}


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("name", COMMANDS)
async def test_over_http_one_refused_object_is_named_too(name: str, plane: str) -> None:
    """The server answers 403 to the requests for that object."""
    command, key, operations = COMMANDS[name]
    refused = {OPERATIONS[each] for each in operations}
    if "copy" in operations:  # the server names a copy by its target
        name_of_file = key.rpartition("/")[2]
        key = f"archive/{name_of_file}" if key == WAITING else "runs/20251021t135100Z_bad.putback"
    faults = Faults(denied=lambda asked, of: asked in refused and of.startswith(key))
    async with S3Server([BUCKET], clock=lambda: AT) as server:
        fill_server(server, await settled())
        server.faults = faults
        async with open_s3(server, plane, window_by="name") as (store, _):
            assert (await command(store)).code == 3
            faults.denied = None
            assert (await command(store)).code == 0


@contextmanager
def unprivileged() -> Iterator[Path]:
    """Yield a folder, and be a user whom permissions bind meanwhile."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        user = os.geteuid()
        if user == 0:
            os.seteuid(NOBODY)
        try:
            yield Path(folder)
        finally:
            os.seteuid(user)


@pytest.mark.parametrize(
    "name", [name for name in COMMANDS if COMMANDS[name][2] & {"get", "stream"}]
)
async def test_in_a_directory_one_file_of_another_user_is_named_too(name: str) -> None:
    """It cannot be read by this user."""
    command, key, _ = COMMANDS[name]
    store = await settled()
    with unprivileged() as root:
        for each, stored in store._objects.items():
            path = root / each
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(stored.data)
        (root / key).chmod(0)
        outcome = await command(DirectoryStore(root))
    assert outcome.code == 3
    assert key in outcome.named or WINDOW in outcome.named


OTHERWISE = {
    "verify, an archived file": 3,
    "backfill from the archive, an aggregate": 1,
    "backfill from the archive, a file": 1,
}
"""The exit codes where a refusal of every object of the folder is not an error."""


@pytest.mark.parametrize("name", COMMANDS)
async def test_a_refusal_of_every_object_is_an_error_of_the_set_up(name: str) -> None:
    """The error names the operation; it is none if aggregates can be read, or each is named."""
    command, key, operations = COMMANDS[name]
    folder = key.partition("/")[0]
    store = await settled()
    hooked = refusing(
        store,
        ANSWERS["another KMS key"],
        lambda asked, of: asked in operations and of.startswith(folder),
    )
    if name in OTHERWISE:
        assert (await command(hooked)).code == OTHERWISE[name]
    else:
        with pytest.raises(AccessDeniedError, match="kms:Decrypt"):
            await command(hooked)


@pytest.mark.parametrize("name", [name for name in COMMANDS if "aggregate" in name])
@pytest.mark.parametrize("damage", [b"", b"{}", b'{"schema_version": 1'])
async def test_a_damaged_aggregate_is_named_and_the_others_go_on(name: str, damage: bytes) -> None:
    """Its window is left as it is; `verify` has a finding, and so has a backfill a failure."""
    command, _, _ = COMMANDS[name]
    store = await settled()
    await store.put(AGGREGATE, damage)
    if command is _verify:
        report = await verify(JobContext(store, SETTINGS, now=Clock(AT)))
        assert report.found == {FindingKind.DAMAGED: 1}
        return
    outcome = await command(store)
    assert outcome.code == (1 if command is _backfill else 3)
    assert command is _backfill or WINDOW in outcome.named


@pytest.mark.parametrize("command", [_verify, _report, _rollup, _backfill, _list, _retry])
async def test_a_refused_listing_ends_the_command(command: Command) -> None:
    """It concerns every object."""
    store = await settled()
    hooked = refusing(store, ANSWERS["another KMS key"], lambda asked, _: asked == "list")
    with pytest.raises(StoreError, match="list"):
        await command(hooked)
