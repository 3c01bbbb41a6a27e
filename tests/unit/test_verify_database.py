"""The database of a verification: a full disk is one clear error, and no file is left behind."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from anyio import to_thread
from testkit.scenario import AT

from asyncagg.errors import ConfigurationError
from asyncagg.job.layout import Layout
from asyncagg.model import RunFile
from asyncagg.settings import Settings
from asyncagg.verify.database import Counts, Database, open_database

LAYOUT = Layout(Settings())


async def add(database: Database, window: str, files: int, etag: str = "e") -> None:
    """Add an aggregate that counts files, each of which is archived."""
    counted = [RunFile(f"runs/{n}", 1, etag, AT) for n in range(files)]
    archived = [RunFile(f"archive/{n}", 1, etag, AT) for n in range(files)]
    await database.add_aggregate(window, "1")
    await database.add_counted(window, counted)
    await database.add_listed("archived", archived)


async def test_a_full_disk_is_reported_in_one_sentence() -> None:
    """As a configuration error that says where to find room."""
    async with open_database(LAYOUT) as database:
        await database._run(lambda: database._connection.execute("PRAGMA max_page_count = 40"))
        with pytest.raises(ConfigurationError, match="TMPDIR names another folder"):
            await add(database, "w", 10_000)


async def test_an_aggregate_that_is_read_again_replaces_its_rows() -> None:
    """Its old rows are removed; so are all rows of one that is gone."""
    async with open_database(LAYOUT) as database:
        await add(database, "a", 5)
        await add(database, "b", 2, etag="f")
        await add(database, "a", 3)
        assert await database.etag("a") == "1"
        assert (await database.counts())[:3] == (2, 5, 5)
        await database.remove_aggregate("a")
        assert await database.etag("a") is None
        assert (await database.counts())[:3] == (1, 2, 2)


def test_it_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even while it is open: its temporary file has no name."""
    monkeypatch.setenv("SQLITE_TMPDIR", str(tmp_path))
    seen: list[Path] = []

    async def use() -> Counts:
        async with open_database(LAYOUT) as database:
            for number in range(40):
                await add(database, str(number), 2_000, etag=str(number))
            await database.build_indexes()
            seen.extend(await to_thread.run_sync(lambda: list(tmp_path.iterdir())))
            return await database.counts()

    assert anyio.run(use) == Counts(40, 80_000, 80_000, 80_000, 0, 0)
    assert not seen
