"""An export has every row of the aggregates, their exact sums, and writes only what changed."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from testkit.command import asyncagg
from testkit.documents import entry, written
from testkit.hooked import HookedStore
from testkit.reports import nth, stored
from testkit.s3server import S3Server
from testkit.scenario import Clock, moment, open_s3, run_data

from asyncagg.errors import ConfigurationError
from asyncagg.export import ExportFormat, ExportTable, export, parquet
from asyncagg.export.rows import ROWS
from asyncagg.export.writing import encoder
from asyncagg.job.pipeline import run
from asyncagg.model import Match
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.store.directory import DirectoryStore
from asyncagg.store.memory import MemoryStore

DAY = "date=2025-10-21"
FILES = 60
AWKWARD = {
    "processing_time": (0.1, 0.2, 0.30000000000000004, 1e-7, 1.2345678901234567e-7, 999999999999.9),
    "matches": (2**53 - 1,) * 6,
}
"""Numbers whose sums are wrong as soon as one step uses a float."""


async def filled(store: Store, clock: Clock) -> Settings:
    """Settle run files of two days, one of them bad; return the settings."""
    for number in range(FILES):
        clock.now = moment(22, 1) + timedelta(minutes=3 * number)
        more = {name: values[number % 6] for name, values in AWKWARD.items()}
        times = {"processing_time_seconds": more["processing_time"], "matches_found": number}
        data = b"{" if number == 7 else run_data(number, **times)
        await store.put(f"runs/{clock.now:%Y%m%dt%H%MZ}_{number}.json", data)
    settings = Settings(window_minutes=30)
    await run(store, settings, at=moment(22, 0) + timedelta(days=2))
    return settings


async def in_memory() -> tuple[MemoryStore, Settings]:
    """Return a filled store in memory."""
    clock = Clock()
    store = MemoryStore(clock)
    return store, await filled(store, clock)


@asynccontextmanager
async def opened(kind: str, folder: Path) -> AsyncIterator[Store]:
    """Open an empty store of a kind."""
    if kind == "memory":
        yield MemoryStore()
    elif kind == "directory":
        folder.mkdir()  # noqa: ASYNC240 - once
        yield DirectoryStore(folder)
    else:
        async with S3Server(["b"]) as server, open_s3(server) as (store, _):
            yield store


async def content(store: Store) -> dict[str, bytes]:
    """Return all objects of a store that are not hidden, by key."""
    return {
        file.key: (await store.get(file.key)).data
        async for page in store.list_pages("")
        for file in page
    }


async def saved(store: Store, folder: Path) -> Path:
    """Copy the objects of a store into a folder, for tools that read files."""
    for key, data in (await content(store)).items():
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


async def heads(store: Store) -> list[dict[str, Any]]:
    """Return all aggregates of a store, with exact numbers."""
    return [
        json.loads(data, parse_float=Decimal)
        for key, data in (await content(store)).items()
        if key.startswith("aggregates/2")
    ]


def query(columns: str, files: str) -> list[tuple[Any, ...]]:
    """Return what DuckDB reads from files."""
    with duckdb.connect() as connection:
        text = f"SELECT {columns} FROM '{files}'"  # noqa: S608 - own words
        return connection.sql(text).fetchall()


def exact(texts: Iterable[str]) -> Decimal:
    """Return the exact sum of numbers."""
    with localcontext(prec=100):
        return sum(map(Decimal, texts), Decimal(0))


@pytest.mark.parametrize("kind", ["memory", "directory", "s3"])
async def test_the_sums_of_an_export_are_those_of_the_aggregates(kind: str, tmp_path: Path) -> None:
    """DuckDB's sums over rows and over windows equal the exact sums, to the digit."""
    async with opened(kind, tmp_path / "in") as store, opened(kind, tmp_path / "out") as target:
        settings = await filled(store, Clock())
        report = await export(store, settings, target)
        folder = await saved(target, tmp_path / "tables")
        documents = await heads(store)
    assert report.exit_code == 0
    totals = [
        sum(each["files"]["counted"] for each in documents),
        sum(each["files"]["bytes"] for each in documents),
        *(
            sum(each[f"total_{name}"] for each in documents)
            for name in ("opportunities", "matches", "no_matches", "errors")
        ),
        exact(each["processing_time"]["exact_sum"] for each in documents),
    ]
    assert totals[0] == FILES - 1
    names = "sum(opportunities), sum(matches), sum(no_matches), sum(errors), sum(processing_time)"
    found = query(f"count(*), sum(size), {names}", f"{folder}/runs/**/*.parquet")
    assert [*found[0]] == totals
    names = "sum(total_opportunities), sum(total_matches), sum(total_no_matches), sum(total_errors)"
    summed = f"sum(files_counted), sum(files_bytes), {names}, sum(processing_time_sum)"
    found = query(summed, f"{folder}/windows/**/*.parquet")
    assert [*found[0]] == totals


async def test_every_row_of_the_aggregates_is_exported(tmp_path: Path) -> None:
    """Rows of runs are joined with their source file; matches and windows are those of the head."""
    store, settings = await in_memory()
    target = MemoryStore()
    await export(store, settings, target, file_format=ExportFormat.NDJSON)
    rows: dict[str, list[dict[str, Any]]] = {each: [] for each in ExportTable}
    for key, data in (await content(target)).items():
        rows[key.partition("/")[0]] += [json.loads(line) for line in data.splitlines()]
    documents = [json.loads(json.dumps(each, default=float)) for each in await heads(store)]
    summaries = [
        (source["key"], source["etag"], source["size"], each["run_id"], each["processing_time"])
        for document in documents
        for source, each in zip(document["source_files"], document["run_summaries"], strict=True)
    ]
    exported = [
        (each["key"], each["etag"], each["size"], each["run_id"], each["processing_time"])
        for each in rows["runs"]
    ]
    assert sorted(exported) == sorted(summaries)
    matches = [
        (document["window"]["name"], rank, match)
        for document in documents
        for rank, match in enumerate(document["top_matches"], 1)
    ]
    assert len(matches) > 20
    assert [
        (
            each["window_name"],
            each["rank"],
            json.loads(each["match"])
            | {name: each[name] for name in ("source_key", "source_position")},
        )
        for each in rows["matches"]
    ] == matches
    assert [each["window_name"] for each in rows["windows"]] == [
        each["window"]["name"] for each in documents
    ]
    await saved(target, tmp_path)
    assert query("count(DISTINCT date)", f"{tmp_path}/windows/*/*.ndjson") == [(2,)]


@pytest.mark.parametrize("table", ExportTable)
async def test_the_formats_have_the_same_rows(table: ExportTable, tmp_path: Path) -> None:
    """Parquet, CSV and NDJSON differ in types only, and have the columns in the same order."""
    store, settings = await in_memory()
    target = MemoryStore()
    for file_format in ExportFormat:
        await export(store, settings, target, tables=[table], file_format=file_format)
    await saved(target, tmp_path)
    paths = sorted(tmp_path.rglob("*.parquet"))  # noqa: ASYNC240 - nothing else runs
    assert paths
    for path in paths:
        parquet_rows = pq.ParquetFile(path).read().to_pylist()
        lines = [json.loads(line) for line in path.with_suffix(".ndjson").read_bytes().splitlines()]
        header, *cells = csv.reader(path.with_suffix(".csv").read_text("utf-8").splitlines())
        names = [*ROWS[table].__struct_fields__]
        assert header == names
        assert [[*line] for line in lines] == [names] * len(parquet_rows)
        for row, line, texts in zip(parquet_rows, lines, cells, strict=True):
            assert texts == ["" if each is None else str(each) for each in line.values()]
            for name, value in row.items():
                same = value.isoformat().replace("+00:00", "Z") if hasattr(value, "year") else value
                given = Decimal(str(line[name])) if isinstance(value, Decimal) else line[name]
                assert same == given, name


async def test_only_what_changed_is_written_again() -> None:
    """A second export writes nothing; after a late file, its window and its day are written."""
    store, settings = await in_memory()
    target = MemoryStore()
    first = await export(store, settings, target)
    assert (first.unchanged, len(first.written)) == (0, 6 + 2 + 2)
    before = dict(target._objects)
    counting = HookedStore(store, _nothing)
    again = await export(counting, settings, target)
    assert (again.written, again.unchanged) == ([], 10)
    assert "stream" not in counting.calls
    assert target._objects == before
    await store.put("runs/20251021t2205Z_late.json", run_data(99))
    await run(store, settings, at=moment(22, 0) + timedelta(days=2))
    late = await export(store, settings, target)
    assert [(each.key, each.rows, each.aggregates) for each in late.written] == [
        (f"matches/{DAY}/2025-10-21.parquet", 40, 4),
        (f"runs/{DAY}/20251021t2230Z.parquet", 10, 1),
        (f"windows/{DAY}/2025-10-21.parquet", 4, 4),
    ]


async def _nothing(_operation: str, _key: str, _when: str) -> None:
    pass


async def test_an_aggregate_that_changes_while_it_is_read(tmp_path: Path) -> None:
    """The etag that a file names is that of its rows, not the one that was listed."""
    store, settings = await in_memory()
    target = MemoryStore()
    key = "aggregates/20251021t2230Z.json"
    raced = False

    async def race(operation: str, touched: str, when: str) -> None:
        nonlocal raced
        if (operation, touched, when, raced) == ("stream", key, "before", False):
            raced = True
            await store.put("runs/20251021t2205Z_late.json", run_data(99))
            await run(store, settings, at=moment(22, 0) + timedelta(days=2))

    report = await export(HookedStore(store, race), settings, target, tables=[ExportTable.RUNS])
    assert raced
    assert f"runs/{DAY}/20251021t2230Z.parquet" in {each.key for each in report.written}
    await saved(target, tmp_path)
    file = pq.ParquetFile(tmp_path / f"runs/{DAY}/20251021t2230Z.parquet")
    named = json.loads(file.schema_arrow.metadata[b"asyncagg.aggregates"])
    assert named == {key: (await store.head(key)).file.etag}
    assert file.metadata.num_rows == 10
    again = await export(store, settings, target, tables=[ExportTable.RUNS])
    assert (again.written, again.exit_code) == ([], 0)


@pytest.mark.parametrize("damage", ["empty", "head", "row", "zone", "position", "huge"])
async def test_an_unreadable_aggregate_is_named_and_the_others_are_exported(damage: str) -> None:
    """Its rows are missing, its own file stays as it was, and nothing is reported as done."""
    match = Match(0.5, 0, b'{"match_score":0.5}')
    store = await stored(
        {number: [entry(f"runs/{number}.json", top_matches=(match,))] for number in range(3)}
    )
    target = MemoryStore()
    await export(store, Settings(), target)
    before = dict(target._objects)
    key = f"aggregates/{nth(1).name}.json"
    data = store._objects[key].data
    huge = await written([entry("runs/1.json", matches=2**63)], window=nth(1))
    bad = {
        "empty": b"",
        "head": data.replace(b'"revision":1', b'"revision":"x"'),
        "row": data.replace(b'"opportunities":3,"m', b'"opportunities":"3","m'),
        "zone": data.replace(b'+00:00"}', b'"}'),
        "position": data.replace(b'"source_position":0', b'"source_position":-1'),
        "huge": huge,
    }
    await store.put(key, bad[damage])
    in_rows = damage in {"row", "zone"}
    assert bad[damage] != data
    tables = [ExportTable.RUNS] if in_rows else [*ExportTable]
    for _ in range(2):
        report = await export(store, Settings(), target, tables=tables)
        assert [*report.failures] == [key]
        assert report.exit_code == 3
        own = f"runs/{DAY}/{nth(1).name}.parquet"
        # Its runs can be read if only its head is damaged.
        assert damage in {"head", "position"} or target._objects[own] == before[own]
        for name in {"matches", "windows"} & {*tables}:
            day = f"{name}/{DAY}/2025-10-21.parquet"
            assert target._objects[day] != before[day]
    await store.put(key, data)
    repaired = await export(store, Settings(), target)
    assert repaired.exit_code == 0


async def test_two_exports_at_once() -> None:
    """One is first; the other sees that the file is up to date."""
    store, settings = await in_memory()
    target = MemoryStore()
    raced = False

    async def race(operation: str, _key: str, when: str) -> None:
        nonlocal raced
        if (operation, when, raced) == ("put", "before", False):
            raced = True
            await export(store, settings, target)

    report = await export(store, settings, HookedStore(target, race))
    assert raced
    assert report.failures == {}
    assert len(report.written) + report.unchanged == 10
    assert report.unchanged > 0


async def test_an_interval_has_whole_windows_of_runs_and_whole_days_of_the_rest() -> None:
    """A file of a day is never cut by the interval."""
    store, settings = await in_memory()
    target = MemoryStore()
    await export(store, settings, target, since=moment(23, 0), until=moment(23, 59))
    assert [*await content(target)] == [
        f"matches/{DAY}/2025-10-21.parquet",
        f"runs/{DAY}/20251021t2330Z.parquet",
        f"windows/{DAY}/2025-10-21.parquet",
    ]
    await export(store, settings, target, tables=[ExportTable.RUNS])
    assert len(await content(target)) == 6 + 2


async def test_row_groups_are_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A group is written as soon as it is full, in rows or in bytes."""
    store = await stored({0: [entry(f"runs/{number:05}.json") for number in range(5000)]})
    for limit in ("_ROW_GROUP", "_ROW_GROUP_BYTES"):
        target = MemoryStore()
        monkeypatch.setattr(parquet, limit, 1000)
        await export(store, Settings(), target, tables=[ExportTable.RUNS])
        ((_, data),) = (await content(target)).items()
        (tmp_path / limit).write_bytes(data)
        file = pq.ParquetFile(tmp_path / limit)
        groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        assert sum(groups) == 5000
        assert len(groups) > 3
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"


async def test_a_window_without_counted_files_has_a_file_without_rows(tmp_path: Path) -> None:
    """Every window of the aggregates is there, and has its columns."""
    store = await stored({0: [entry("runs/bad.json")._replace(outcome="not JSON")]})
    target = MemoryStore()
    for file_format in ExportFormat:
        report = await export(store, Settings(), target, file_format=file_format)
        assert sum(each.rows for each in report.written) == 1
    await saved(target, tmp_path)
    assert query("count(*)", f"{tmp_path}/runs/**/*.parquet") == [(0,)]


async def test_times_that_are_too_small_for_a_decimal_are_rounded(tmp_path: Path) -> None:
    """Below 100 nanoseconds a time has 24 decimals."""
    times = (1.2345678901234567e-10, 5e-324, 0.0)
    entries = [
        entry(f"runs/{number}.json", processing_time=time, top_matches=(Match(1, 0, b"{}"),))
        for number, time in enumerate(times)
    ]
    target = MemoryStore()
    await export(await stored({0: entries}), Settings(), target, tables=[ExportTable.RUNS])
    await saved(target, tmp_path)
    found = query("processing_time", f"{tmp_path}/runs/**/*.parquet")
    assert found == [(Decimal("0.000000000123456789012346"),), (Decimal(0),), (Decimal(0),)]


def test_without_pyarrow_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """CSV and NDJSON need no pyarrow."""
    monkeypatch.delitem(sys.modules, "asyncagg.export.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    encoder(ExportFormat.CSV)
    with pytest.raises(ConfigurationError, match="expected the extra 'export' of asyncagg, or"):
        encoder(ExportFormat.PARQUET)


def test_the_command(tmp_path: Path) -> None:
    """It follows the record of the store, prints a report, and fails where there is nothing."""
    data, out = str(tmp_path / "data"), str(tmp_path / "out")
    assert asyncagg("sample", data, "--files", "20", "--windows", "1").returncode == 0
    done = asyncagg("export", data, "--to", out)
    assert done.returncode == 1
    assert f"nothing found: looked in {data!r} at 'totals/'" not in done.stderr
    assert f"nothing found: looked in {data!r} at 'aggregates/'" in done.stderr
    assert not Path(out).exists()
    assert asyncagg("export", data, "--to", out, "--allow-empty").returncode == 0
    assert asyncagg("run", data, "--aggregate-prefix", "totals/").returncode == 0
    done = asyncagg("export", data, "--to", out, "--table", "runs", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["rows"], report["exit_code"]) == (0, 20, 0)
    assert (tmp_path / "out" / report["written"][0]["key"]).is_file()
    done = asyncagg("export", data, "--to", out, "--format", "csv")
    assert done.stdout.endswith("rows, 0 files unchanged\n")
    since = ("--since", "2031-01-01")
    done = asyncagg("export", data, "--to", out, *since)
    assert done.returncode == 1
    assert "nothing found in this interval" in done.stderr
    next((tmp_path / "data" / "totals").glob("2*.json")).write_bytes(b"damaged")
    done = asyncagg("export", data, "--to", out)
    assert done.returncode == 3
    assert "totals/2" in done.stdout


@pytest.mark.parametrize("place", ["data", "data/runs", "data/archive/x", "data/../data/."])
def test_an_export_never_goes_among_the_objects_of_the_store(place: str, tmp_path: Path) -> None:
    """The table of runs is named like the inbox."""
    to = str(tmp_path / place)
    done = asyncagg("export", str(tmp_path / "data"), "--to", to)
    assert done.returncode == 1  # the store does not exist
    (tmp_path / "data").mkdir()
    done = asyncagg("export", str(tmp_path / "data"), "--to", to)
    assert done.returncode == 2
    assert "expected another place" in done.stderr
