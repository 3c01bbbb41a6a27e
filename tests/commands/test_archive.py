"""Counted files are listed and restored from packs and from single objects."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread
from testkit.command import asyncagg
from testkit.hooked import HookedStore
from testkit.scenario import AT, FORMATS, Clock, moment, run_data

from asyncagg.archive.extract import Extracted, extract
from asyncagg.archive.listing import ArchivedFile, Wanted, list_archived
from asyncagg.archive.targets import Folder, Inbox
from asyncagg.errors import ConfigurationError
from asyncagg.job.context import JobContext
from asyncagg.job.pipeline import run
from asyncagg.model import Interval
from asyncagg.report import gather
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.store.memory import MemoryStore

DAY = Interval(moment(0, 0), moment(23, 59))

NAMES = (
    "plain.json",
    "with space.json",
    "ünï/日本.json",
    "a+b%20c.json",
    "line\nbreak.json",
    "../../escape.json",
    "/absolute.json",
    "back\\slash.json",
    "x.json/inner.json",
    "y" * 400 + "1.json",
    "y" * 400 + "2.json",
    "z/" + "ä" * 500 + ".json",
)

FILES = {f"runs/{name}": run_data(number) for number, name in enumerate(NAMES)}


async def settled(archive_format: Any, files: dict[str, bytes] = FILES) -> MemoryStore:
    """Return a store whose files are counted, in the window that ends at 14:00."""
    clock = Clock(moment(13, 57))
    store = MemoryStore(clock)
    for key, data in files.items():
        await store.put(key, data)
    clock.now = AT
    await run(store, Settings(archive_format=archive_format), at=AT)
    assert not [key for key in store._objects if key.startswith("runs/")]
    return store


async def listed(store: Store, *keys: str) -> list[ArchivedFile]:
    """Return the archived files of the day."""
    wanted = Wanted(DAY, frozenset(keys))
    context = JobContext(store, Settings())
    return [each async for page in list_archived(context, wanted) for each in page]


async def to_folder(store: Store, folder: Path, *keys: str) -> list[Extracted]:
    """Extract files to a folder."""
    results: list[Extracted] = []
    wanted = Wanted(DAY, frozenset(keys))
    target = Folder(folder, "runs/")
    await extract(JobContext(store, Settings()), wanted, target, results.append)
    return results


def contents(results: list[Extracted]) -> dict[str, bytes]:
    """Return what is at the targets of extracted files, by key."""
    return {each.key: Path(each.target).read_bytes() for each in results if each.target}


def files_below(folder: Path) -> list[Path]:
    """Return the files in a folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


async def to_inbox(store: Store, *, counted: bool = False) -> list[Extracted]:
    """Extract all files to the inbox."""
    results: list[Extracted] = []
    context = JobContext(store, Settings())
    target = Inbox(context)
    await extract(context, Wanted(DAY), target, results.append, counted=counted)
    return results


@pytest.mark.parametrize("archive_format", FORMATS)
async def test_the_list_has_every_counted_file(archive_format: str) -> None:
    """With its window, form and size; or only the files that are asked for."""
    store = await settled(archive_format)
    found = await listed(store)
    assert sorted(each.file.key for each in found) == sorted(FILES)
    assert {each.window.name for each in found} == {"20251021t1400Z"}
    assert {bool(each.pack) for each in found} == {archive_format == "packs"}
    assert [each.file.key for each in await listed(store, "runs/plain.json")] == ["runs/plain.json"]


@pytest.mark.parametrize("archive_format", FORMATS)
async def test_files_are_extracted_below_the_folder_whatever_their_names(
    archive_format: str, tmp_path: Path
) -> None:
    """Each file has its bytes; a second extraction finds them and changes nothing."""
    store, folder = await settled(archive_format), tmp_path / "a/b/c"
    for _ in range(2):
        results = await to_folder(store, folder)
        assert contents(results) == FILES
    assert files_below(tmp_path) == files_below(folder)
    assert len(files_below(folder)) == len(FILES)
    assert folder / "plain.json" in files_below(folder)


async def test_other_content_in_the_folder_is_not_overwritten(tmp_path: Path) -> None:
    """The extracted file gets a digest in its name."""
    (tmp_path / "plain.json").write_bytes(b"mine")
    results = await to_folder(await settled("packs"), tmp_path, "runs/plain.json")
    assert (tmp_path / "plain.json").read_bytes() == b"mine"
    assert contents(results) == {"runs/plain.json": FILES["runs/plain.json"]}


async def test_a_full_disk_is_one_error_and_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other file could be written either, so the command stops and says what to do."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "utime", full)
    with pytest.raises(ConfigurationError, match="No space left on device; expected a folder with"):
        await to_folder(await settled("packs"), tmp_path)
    assert not files_below(tmp_path)


async def test_a_link_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    """Neither a linked folder nor a linked file is followed."""
    folder, outside = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    outside.mkdir()
    (folder / "ünï").symlink_to(outside)
    (folder / "plain.json").symlink_to(outside / "made.json")
    results = await to_folder(
        await settled("packs"), folder, "runs/ünï/日本.json", "runs/plain.json"
    )
    assert list(outside.iterdir()) == []
    assert {each.key: bool(each.reason) for each in results} == {
        "runs/ünï/日本.json": True,
        "runs/plain.json": False,
    }


async def test_one_request_per_file_or_one_per_pack(tmp_path: Path) -> None:
    """A range of the pack for a file, and a stream for all."""
    calls: list[str] = []

    async def note(operation: str, key: str, moment: str) -> None:
        if key.endswith(".zip") and moment == "before":
            calls.append(operation)

    store = HookedStore(await settled("packs"), note)
    await to_folder(store, tmp_path / "1", "runs/plain.json")
    await to_folder(store, tmp_path / "2")
    assert calls == ["get", "stream"]


@pytest.mark.parametrize("archive_format", FORMATS)
async def test_counted_files_go_to_the_inbox_only_on_demand(archive_format: str) -> None:
    """And a run then recognises them: nothing is counted twice."""
    files = {f"runs/20251021t1357Z_{number}.json": run_data(number) for number in range(3)}
    store = await settled(archive_format, files)
    key = "aggregates/20251021t1400Z.json"
    before = json.loads(store._objects[key].data)["files"]
    assert {each.reason for each in await to_inbox(store)} == {
        "the aggregate of 20251021t1400Z still counts it"
    }
    assert not [key for key in store._objects if key.startswith("runs/")]
    assert all(each.target == each.key for each in await to_inbox(store, counted=True))
    assert {key: store._objects[key].data for key in files} == files
    await run(store, Settings(), at=AT)
    assert json.loads(store._objects[key].data)["files"] == before
    assert not [key for key in store._objects if key.startswith("runs/")]


async def test_files_of_a_window_without_aggregate_are_restored_from_its_packs() -> None:
    """They are counted by the next run; other content in the inbox is kept."""
    store = await settled("packs")
    del store._objects["aggregates/20251021t1400Z.json"]
    assert {each.file.key for each in await listed(store) if not each.counted} == set(FILES)
    await store.put("runs/plain.json", b"new")
    results = await to_inbox(store)
    assert [each.key for each in results if each.reason] == ["runs/plain.json"]
    assert {key: store._objects[key].data for key in FILES} == FILES | {"runs/plain.json": b"new"}


async def test_a_damaged_pack_names_its_files_and_does_not_stop_the_others(tmp_path: Path) -> None:
    """Only the file whose bytes changed is left."""
    store = await settled("packs")
    key = next(key for key in store._objects if key.endswith(".zip"))
    found = store._objects[key]
    changed = found.data.replace(b'"run-3"', b'"run-X"')
    store._objects[key] = type(found)(changed, found.info)
    results = await to_folder(store, tmp_path)
    assert [each.key for each in results if each.reason] == [f"runs/{NAMES[3]}"]
    assert len(results) == len(FILES)


async def test_the_report_has_the_packs() -> None:
    """How many, and their size."""
    store = await settled("packs")
    found = await gather(store, Settings())
    sizes = [len(each.data) for key, each in store._objects.items() if key.endswith(".zip")]
    assert found.as_dict()["packs"] == {"count": len(sizes), "bytes": sum(sizes)}


def run_tool(*words: str) -> str:
    """Return the output of a tool that succeeds."""
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(not shutil.which("unzip"), reason="unzip is not installed")
async def test_unzip_and_zipinfo_read_every_pack(tmp_path: Path) -> None:
    """All members are sound."""
    store, pack = await settled("packs"), tmp_path / "pack.zip"
    (data,) = (each.data for key, each in store._objects.items() if key.endswith(".zip"))
    await to_thread.run_sync(pack.write_bytes, data)
    tested = await to_thread.run_sync(run_tool, "unzip", "-t", str(pack))
    assert "No errors detected" in tested
    listed = await to_thread.run_sync(run_tool, "zipinfo", "-1", str(pack))
    assert len(listed.splitlines()) == len(FILES)


async def test_python_reads_every_pack() -> None:
    """All members are sound, and each has a name of its own."""
    store = await settled("packs")
    (data,) = (each.data for key, each in store._objects.items() if key.endswith(".zip"))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert sorted(map(archive.read, archive.namelist())) == sorted(FILES.values())


def test_the_commands(tmp_path: Path) -> None:
    """List and extract, for people and machines; unknown keys and wrong options are named."""
    store, folder = str(tmp_path / "store"), tmp_path / "restored"
    asyncagg("sample", store, "--files", "3", "--json")
    asyncagg("run", store, "--archive-format", "packs", "--json")
    done = asyncagg("archive", "list", store, "--json")
    keys = [json.loads(line)["key"] for line in done.stdout.splitlines()]
    assert len(keys) >= 1, done.stderr
    words = ("archive", "extract", store, "--to", str(folder))
    done = asyncagg(*words, keys[0], "runs/none.json", "--json")
    assert done.returncode == 3
    assert "runs/none.json: not found" in done.stderr
    *_, last = map(json.loads, done.stdout.splitlines())
    assert (last["extracted"], last["left"]) == (1, 0)
    assert asyncagg(*words).returncode == 2
