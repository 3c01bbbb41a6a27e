"""Quarantine: files are listed with their reason; fixed files are restored and counted once."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import msgspec
import pytest
from testkit.command import asyncagg, sampled
from testkit.hooked import HookedStore
from testkit.moto_server import moto_endpoint
from testkit.promises import PROBE, of_directory, of_memory, of_server
from testkit.quarantined import BAD, BY_NAME, SMALL, counted, holders, settled
from testkit.s3server import S3Server
from testkit.scenario import (
    AT,
    BUCKET,
    FORMATS,
    PLANES,
    Clock,
    memory_of,
    moment,
    open_s3,
    run_data,
)

from asyncagg.errors import UsageError
from asyncagg.job.context import JobContext
from asyncagg.job.pipeline import run
from asyncagg.quarantine.details import EXCERPT_BYTES, FileDetails, file_details
from asyncagg.quarantine.listing import QuarantinedFile, list_quarantined
from asyncagg.quarantine.restore import Restorer, RestoreResult
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.store.memory import MemoryStore
from asyncagg.store.s3.boto import open_control

LATER = moment(14, 30)


async def listing(store: Store, **filters: Any) -> list[QuarantinedFile]:
    """Return the files in quarantine."""
    return [each async for each in list_quarantined(JobContext(store, BY_NAME), **filters)]


async def details(store: Store, key: str) -> FileDetails:
    """Return the details of a file in quarantine."""
    return await file_details(JobContext(store, BY_NAME), key)


def restorer(store: Store, settings: Settings = BY_NAME, *, force: bool = False) -> Restorer:
    """Return what restores files of a store."""
    return Restorer(JobContext(store, settings), force=force)


# ------------------------------------------------------------------------------ list and details


async def test_the_list_has_reason_window_and_size() -> None:
    """From the metadata of the quarantined files, in key order."""
    store = await settled({BAD: b"{no", "b.json": b"[]", "good.json": run_data(1)})
    first, second = await listing(store)
    assert [first.file.key, second.file.key] == [f"quarantine/{BAD}", "quarantine/b.json"]
    assert first.window is not None
    assert second.window is not None
    assert (first.window.name, second.window.name) == ("20251021t1305Z", "20251021t1400Z")
    assert first.reason.startswith("not JSON")
    assert first.file.size == 3


async def test_the_reason_of_an_overwritten_file_is_from_the_aggregate() -> None:
    """Its metadata is lost; its name determines the window, whose aggregate has the reason."""
    store = await settled({BAD: b"{no"})
    await store.put(f"quarantine/{BAD}", run_data(1))
    (found,) = await listing(store)
    assert found.reason.startswith("not JSON")
    shown = await details(store, f"quarantine/{BAD}")
    assert shown.entry is not None
    assert shown.entry["etag"] != shown.quarantined.file.etag
    assert (shown.reason_now, shown.original_key) == ("", f"runs/{BAD}")


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, 2),
        ({"since": moment(13, 55)}, 1),
        ({"until": moment(13, 5)}, 1),
        ({"since": moment(13, 1)}, 1),
        ({"reason": "OBJECT"}, 1),
        ({"reason": "nonsense"}, 0),
        ({"since": moment(15, 0)}, 0),
    ],
)
async def test_the_list_can_be_filtered(filters: dict[str, Any], found: int) -> None:
    """By an interval of windows, and by a part of the reason."""
    store = await settled({BAD: b"{no", "b.json": b"[]"})
    assert len(await listing(store, **filters)) == found


async def test_the_list_reads_one_page_at_a_time() -> None:
    """The first file is yielded before the second page is requested."""
    store = await settled({})
    for number in range(1500):
        await store.put(f"quarantine/{number:04}.json", b"")
    pages: list[str] = []

    async def note(operation: str, key: str, when: str) -> None:
        if (operation, when) == ("list", "before"):
            pages.append(key)

    found = list_quarantined(JobContext(HookedStore(store, note), BY_NAME))
    assert (await anext(found)).file.key == "quarantine/0000.json"
    assert len(pages) == 1


@pytest.mark.parametrize("name", ["x.json", "x.json.gz"])
@pytest.mark.parametrize(
    "data",
    [b"", b"\x00\xff\x1b[2J", b"a" * 5000, gzip.compress(b"b" * 5000)],
    ids=["empty", "binary", "long", "gzip"],
)
async def test_the_content_shown_is_bounded(name: str, data: bytes) -> None:
    """At most `EXCERPT_BYTES` of any content, gzip or not, complete or not."""
    store = await settled({})
    await store.put(f"quarantine/{name}", data)
    shown = await details(store, f"quarantine/{name}")
    assert shown.reason_now
    assert shown.unzipped == (data[:2] == b"\x1f\x8b")
    expected = b"b" * 5000 if shown.unzipped else data
    assert shown.excerpt == expected[:EXCERPT_BYTES]
    json.dumps(shown.as_dict(), default=str)


@pytest.mark.parametrize("key", ["quarantine/", "runs/x.json", "", "quarantine"])
async def test_a_key_outside_of_quarantine_is_an_error(key: str) -> None:
    """Only keys below the quarantine prefix are accepted."""
    store = await settled({})
    with pytest.raises(UsageError, match="expected one below 'quarantine/'"):
        await details(store, key)
    with pytest.raises(UsageError):
        await restorer(store).restore(key)


# ------------------------------------------------------------------------------ retry


async def test_a_file_fixed_in_place_is_counted_in_its_window() -> None:
    """Overwritten, restored, settled: the aggregate of its window has one more file."""
    store = await settled({BAD: b"{no"})
    await store.put(f"quarantine/{BAD}", run_data(1))
    outcome = await restorer(store).restore(f"quarantine/{BAD}")
    assert outcome.status == "put_back"
    report = await run(store, BY_NAME, at=AT)
    assert report.total.counted == report.total.archived == 1
    assert list(report.windows) != []
    seen = of_memory(store)
    assert counted(seen) == {run_data(1): 1}
    assert not [key for key in seen if key.startswith(("quarantine/", "runs/"))]


async def test_a_file_that_is_still_invalid_stays_unless_forced() -> None:
    """It is read before it is moved; with `force` it is moved anyway."""
    store = await settled({BAD: b"{no"})
    before = of_memory(store)
    outcome = await restorer(store).restore(f"quarantine/{BAD}")
    assert (outcome.status, "not JSON" in outcome.reason) == ("left", True)
    assert of_memory(store) == before
    outcome = await restorer(store, force=True).restore(f"quarantine/{BAD}")
    assert outcome.status == "put_back"
    await run(store, BY_NAME, at=AT)
    (again,) = await listing(store)
    assert again.reason.startswith("not JSON")


async def test_unchanged_content_is_counted_after_a_change_of_settings() -> None:
    """The aggregate names the old key and etag as quarantined, but not the new key."""
    store = await settled({BAD: run_data(1)}, SMALL)
    assert (await restorer(store, SMALL).restore(f"quarantine/{BAD}")).status == "left"
    assert (await restorer(store).restore(f"quarantine/{BAD}")).status == "put_back"
    for settings in (SMALL, BY_NAME, BY_NAME):  # a runner of the old settings may be faster
        await run(store, settings, at=AT)
        await restorer(store).restore_all(lambda _: None)
    await run(store, BY_NAME, at=AT)
    assert counted(of_memory(store)) == {run_data(1): 1}


async def test_the_metadata_of_a_producer_is_kept() -> None:
    """A quarantined copy has it beside the reason, and the file that is put back has it alone."""
    store = await settled({})
    own = {"producer": "matcher-7", "trace": "x" * 300}
    await store.put(f"runs/{BAD}", b"{no", metadata=own)
    await store.put("runs/large.json", b"{no", metadata={"x": "y" * 1900})
    await run(store, BY_NAME, at=LATER)
    quarantined = (await store.head(f"quarantine/{BAD}")).metadata
    assert quarantined.items() > own.items()
    assert quarantined["asyncagg-reason"].startswith("not JSON")
    assert "x" not in (await store.head("quarantine/large.json")).metadata  # S3 keeps 2 KB
    found = await restorer(store, force=True).restore(f"quarantine/{BAD}")
    assert (await store.head(found.inbox_key)).metadata == own


async def test_a_file_that_is_still_in_the_inbox_is_left_to_the_next_run() -> None:
    """Quarantined but not yet deleted from the inbox, it would be counted twice."""
    store = await settled({BAD: run_data(1)}, SMALL)
    await store.put(f"runs/{BAD}", run_data(1))
    outcome = await restorer(store).restore(f"quarantine/{BAD}")
    assert (outcome.status, "still in the inbox" in outcome.reason) == ("left", True)


@pytest.mark.parametrize("archive_format", FORMATS)
async def test_a_file_that_was_counted_after_all_is_not_restored(archive_format: Any) -> None:
    """A run copied it to quarantine and stopped; another one, with other limits, counted it."""
    store = MemoryStore(Clock(moment(13, 57)))
    await store.put(f"runs/{BAD}", run_data(1))

    async def stop(operation: str, key: str, when: str) -> None:
        if (operation, key, when) == ("put", "aggregates/20251021t1305Z.json", "before"):
            raise Stop

    with pytest.raises(Stop):
        await run(HookedStore(store, stop), SMALL, at=AT)
    settings = msgspec.structs.replace(BY_NAME, archive_format=archive_format)
    assert (await run(store, settings, at=AT)).total.archived == 1
    assert (await restorer(store, settings).restore(f"quarantine/{BAD}")).status == "counted"
    assert (await run(store, settings, at=AT)).total.counted == 0
    document = json.loads(store._objects["aggregates/20251021t1305Z.json"].data)
    assert document["files"]["counted"] == 1
    assert not [key for key in store._objects if key.startswith(("quarantine/", "runs/"))]


async def test_the_key_in_the_inbox_is_never_overwritten() -> None:
    """If the producer has written the old key again, both files are counted."""
    store = await settled({BAD: b"{no"})
    await store.put(f"quarantine/{BAD}", run_data(1))
    await store.put(f"runs/{BAD}", run_data(2))
    assert (await restorer(store).restore(f"quarantine/{BAD}")).status == "put_back"
    await run(store, BY_NAME, at=AT)
    assert counted(of_memory(store)) == {run_data(1): 1, run_data(2): 1}


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("quarantine/no-such.json", "no object"),
        ("quarantine/notes.txt", "not the key of a run file"),
    ],
)
async def test_a_file_that_cannot_be_restored_has_a_reason(key: str, reason: str) -> None:
    """No such object, not a run file."""
    store = await settled({})
    await store.put("quarantine/notes.txt", b"")
    outcome = await restorer(store).restore(key)
    assert outcome.status == "left"
    assert reason in outcome.reason


async def test_a_prefix_that_nests_is_never_entered() -> None:
    """A key that would be inside the archive prefix is not that of a run file."""
    settings = Settings(archive_prefix="runs/archive/", quarantine_prefix="runs/quarantine/")
    store = MemoryStore(Clock())
    await store.put("runs/quarantine/archive/x.json", run_data(1))
    outcome = await restorer(store, settings).restore("runs/quarantine/archive/x.json")
    assert (outcome.status, "not the key of a run file" in outcome.reason) == ("left", True)


async def test_a_replacement_is_restored() -> None:
    """The file is overwritten in quarantine with fixed content, and then restored."""
    source = MemoryStore()
    await source.put("bad.json", b"[]")
    await source.put("fixed.json", run_data(1))
    store = await settled({BAD: b"{no"})
    subject = restorer(store)
    left = await subject.replace(f"quarantine/{BAD}", source, "bad.json")
    assert (left.status, "'bad.json' would be quarantined" in left.reason) == ("left", True)
    assert (await subject.replace(f"quarantine/{BAD}", source, "fixed.json")).status == "put_back"
    await run(store, BY_NAME, at=AT)
    assert counted(of_memory(store)) == {run_data(1): 1}


class Stop(Exception):  # noqa: N818 - not an error: the process ends here
    """The process ends."""


@pytest.mark.parametrize("settings", [BY_NAME, Settings()], ids=["name", "last_modified"])
@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("runs_between", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_stopped_at_every_request(
    when: str, *, runs_between: bool, replaced: bool, settings: Settings
) -> None:
    """Its content exists after any stop; retried, with or without a run, it counts once."""
    source = MemoryStore()
    await source.put("fixed.json", run_data(1))
    template = await settled({BAD: b"{no"}, settings)
    if not replaced:
        await template.put(f"quarantine/{BAD}", run_data(1))
    steps = stopped = 0
    while steps == stopped:
        store = memory_of(of_memory(template))
        store._clock = Clock(AT)
        steps, stopped = 0, stopped + 1

        async def stop(_operation: str, _key: str, at: str, last: int = stopped) -> None:
            nonlocal steps
            steps += at == when
            if at == when and steps == last:
                raise Stop

        hooked = HookedStore(store, stop)

        async def retried(on: Any) -> RestoreResult | None:
            subject = restorer(on, settings)
            if replaced:
                return await subject.replace(f"quarantine/{BAD}", source, "fixed.json")
            return await subject.restore(f"quarantine/{BAD}")

        try:
            outcome = await retried(hooked)
        except Stop:
            outcome = None
        seen = of_memory(store)
        assert holders(seen, run_data(1)) or (replaced and holders(seen, b"{no"))
        if runs_between:
            await run(store, settings, at=LATER)
        if outcome is None and f"quarantine/{BAD}" in of_memory(store):
            assert (await retried(store)).status in {"put_back", "counted"}  # type: ignore[union-attr]
        await run(store, settings, at=LATER)
        seen = of_memory(store)
        assert counted(seen) == {run_data(1): 1}, f"stopped {when} request {stopped}"
        assert not [key for key in seen if key.startswith(("quarantine/", "runs/"))]


@pytest.mark.parametrize("settings", [BY_NAME, SMALL], ids=["accepting", "rejecting"])
async def test_a_run_at_any_moment_of_a_retry(settings: Settings) -> None:
    """A run between any two requests, even with older settings, loses no content."""
    template = await settled({BAD: run_data(1)}, SMALL)
    steps = moment_of = 0
    while steps == moment_of:
        store = memory_of(of_memory(template))
        store._clock = Clock(AT)
        steps, moment_of = 0, moment_of + 1

        async def race(
            _operation: str, _key: str, _at: str, now: int = moment_of, within: Any = store
        ) -> None:
            nonlocal steps
            steps += 1
            if steps == now:
                await run(within, settings, at=AT + timedelta(hours=1))
            assert holders(of_memory(within), run_data(1))

        await restorer(HookedStore(store, race)).restore(f"quarantine/{BAD}")
        await run(store, BY_NAME, at=AT)
        assert holders(of_memory(store), run_data(1))
        assert counted(of_memory(store)).total() <= 1
        steps = min(steps, moment_of)


@pytest.mark.parametrize("plane", PLANES)
async def test_all_valid_files_are_restored_on_s3(plane: str) -> None:
    """Every valid file of several pages is restored; the others stay, with a reason."""
    async with S3Server([BUCKET], clock=lambda: AT) as server:
        for number in range(30):
            data = run_data(number) if number % 3 else b"{no"
            headers = {"x-amz-meta-asyncagg-reason": "why"}
            server.put(BUCKET, f"quarantine/{number:02} ünï.json", data, headers=headers)
        async with open_s3(server, plane, window_by="name") as (store, settings):
            outcomes: list[RestoreResult] = []
            await restorer(store, settings).restore_all(outcomes.append)
            assert Counter(each.status for each in outcomes) == {"put_back": 20, "left": 10}
            assert len(server.keys(BUCKET, "runs/")) == 20
            assert not server.get(BUCKET, server.keys(BUCKET, "runs/")[0]).headers.get(
                "x-amz-meta-asyncagg-reason"
            )
            await run(store, settings, at=AT + timedelta(hours=1))
        assert counted(of_server(server)) == {run_data(n): 1 for n in range(30) if n % 3}
        overwritten = [loss.key for loss in server.audit.lost if PROBE not in loss.key]
        assert set(overwritten) <= {"aggregates/asyncagg.run"}


# ------------------------------------------------------------------------------ the command


def quarantined(folder: Path) -> list[str]:
    """Settle sample files in a folder; return the keys in quarantine."""
    sampled(folder, "--files", "40", "--bad-fraction", "0.1")
    assert asyncagg("run", str(folder), "--window-by", "name").returncode == 3
    return sorted(f"quarantine/{path.name}" for path in (folder / "quarantine").glob("*.json"))


def test_list_show_fix_retry_run(tmp_path: Path) -> None:
    """The life of a quarantined file, on the command line, on a directory."""
    keys = quarantined(tmp_path)
    words = (str(tmp_path), "--window-by", "name")
    done = asyncagg("quarantine", "list", *words, "--json")
    assert done.returncode == 0, done.stderr
    listed = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["key"] for each in listed] == keys
    assert all(each["reason"] and each["window"] for each in listed)
    assert keys[0] in asyncagg("quarantine", "list", *words).stdout

    done = asyncagg("quarantine", "show", words[0], keys[0], *words[1:])
    assert "accepted now  no" in done.stdout
    fixed = tmp_path / "fixed.json"
    fixed.write_bytes(run_data(1))
    done = asyncagg("quarantine", "retry", *words[:1], keys[0], *words[1:], "--replace", str(fixed))
    assert done.returncode == 0, done.stderr
    (tmp_path / keys[1]).write_bytes(run_data(2))
    done = asyncagg("quarantine", "retry", *words, "--all", "--json")
    assert done.returncode == 3
    *files, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert (last["put_back"], last["left"], last["exit_code"]) == (1, len(keys) - 2, 3)
    assert {each["status"] for each in files} == {"put_back", "left"}
    done = asyncagg("run", *words, "--json")
    assert json.loads(done.stdout)["total"]["counted"] == 2
    assert {run_data(1), run_data(2)} <= set(counted(of_directory(tmp_path)))


def test_the_commands_on_moto(tmp_path: Path) -> None:
    """The same in a bucket, with a replacement of one file."""
    bucket = f"quarantine-{uuid4().hex}"

    async def prepare() -> None:
        async with open_control(endpoint_url=moto_endpoint(), connections=1) as control:
            await control.client.create_bucket(Bucket=bucket)
            for name in ("a.json", "b.json"):
                key = f"runs/20251021t1302Z_{name}"
                await control.client.put_object(Bucket=bucket, Key=key, Body=b"{no")

    anyio.run(prepare)
    more = ("--endpoint-url", moto_endpoint(), "--conditional-writes", "off", "--window-by", "name")
    store = f"s3://{bucket}"
    assert asyncagg("run", store, *more).returncode == 3
    done = asyncagg("quarantine", "list", store, *more, "--json", "--since", "20251021t1300Z")
    listed = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["window"] for each in listed] == ["20251021t1305Z"] * 2
    key = listed[0]["key"]
    done = asyncagg("quarantine", "show", store, key, *more, "--json")
    shown = json.loads(done.stdout)
    assert (shown["accepted"], shown["excerpt"]) == (False, "{no")
    assert shown["entry"]["moved_to"] == key
    fixed = tmp_path / "fixed"
    fixed.write_bytes(run_data(1))
    done = asyncagg("quarantine", "retry", store, key, *more, "--replace", str(fixed))
    assert done.returncode == 0, done.stderr
    assert asyncagg("quarantine", "retry", store, *more, "--all").returncode == 3
    done = asyncagg("run", store, *more, "--json")
    report = json.loads(done.stdout)
    assert (report["total"]["counted"], report["windows"][0]["revision"]) == (1, 2)


def test_nothing_in_a_file_steers_the_terminal(tmp_path: Path) -> None:
    """Escapes and markup in a name, a reason or the content are shown, not obeyed."""
    (tmp_path / "quarantine").mkdir()
    name = "\x1b[31m[bold]\u202ex.json"
    (tmp_path / "quarantine" / name).write_bytes(b'{"\x1b]0;x\x07[red]": \xff')
    for words in (["list", str(tmp_path)], ["show", str(tmp_path), f"quarantine/{name}"]):
        done = asyncagg("quarantine", *words)
        assert done.returncode == 0, done.stderr
        assert "[bold]" in done.stdout
        assert "\\x1b[31m" in done.stdout
        assert not {"\x1b", "\x07", "\u202e"} & set(done.stdout)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["retry", "."], 2, "name at least one key, or pass --all"),
        (["retry", ".", "quarantine/x.json", "--all"], 2, "name keys or pass --all, not both"),
        (["retry", ".", "quarantine/x.json", "--replace", "no-such"], 2, "no-such"),
        (["retry", ".", "--all", "--replace", __file__], 2, "expected one key"),
        (["retry", ".", "x.json"], 2, "key 'x.json': expected one below"),
        (["retry", ".", "quarantine/no-such.json"], 3, ""),
        (["show", ".", "x.json"], 2, "key 'x.json': expected one below"),
        (["show", ".", "quarantine/no-such.json"], 1, "quarantine/no-such.json"),
        (["list", ".", "--since", "noon"], 2, "--since 'noon'"),
        (["list", "/no/such/folder"], 1, "/no/such/folder"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_a_mistake_is_one_sentence(words: list[str], code: int, message: str) -> None:
    """Wrong usage exits with 2, a wrong set-up with 1, files left with 3; no traceback."""
    done = asyncagg("quarantine", *words)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
