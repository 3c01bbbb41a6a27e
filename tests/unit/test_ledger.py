"""The ledger of a verification: what it says when the disk is full, and that it leaves nothing."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from anyio import to_thread
from testkit.scenario import AT

from asyncagg.errors import ConfigurationError
from asyncagg.model import RunFile
from asyncagg.verify.ledger import CountedRow, Counts, Ledger, Listing, open_ledger


async def note(ledger: Ledger, window: str, files: int, etag: str = "e") -> None:
    """Note an aggregate that counts files, each of which is archived."""
    rows = [
        CountedRow(RunFile(f"runs/{n}", 1, etag, AT), f"archive/{n}", f"archive/{n}.{etag}")
        for n in range(files)
    ]
    await ledger.note_aggregate(window, "1")
    await ledger.note_counted(window, rows)
    await ledger.note_listed(Listing.ARCHIVED, [RunFile(row.place, 1, etag, AT) for row in rows])


async def test_a_full_disk_is_told_in_one_sentence() -> None:
    """As trouble of the set-up, with where to find room."""
    async with open_ledger() as ledger:
        await ledger._do(lambda: ledger._database.execute("PRAGMA max_page_count = 40"))
        with pytest.raises(ConfigurationError, match="TMPDIR names another folder"):
            await note(ledger, "w", 10_000)


async def test_an_aggregate_that_is_read_again_replaces_what_was_noted() -> None:
    """Its old rows are forgotten; so are all of one that is gone."""
    async with open_ledger() as ledger:
        await note(ledger, "a", 5)
        await note(ledger, "b", 2, etag="f")
        await note(ledger, "a", 3)
        assert await ledger.etag("a") == "1"
        assert (await ledger.counts())[:3] == (2, 5, 5)
        await ledger.forget("a")
        assert await ledger.etag("a") is None
        assert (await ledger.counts())[:3] == (1, 2, 2)


def test_it_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even while it is open: its temporary file has no name."""
    monkeypatch.setenv("SQLITE_TMPDIR", str(tmp_path))
    seen: list[Path] = []

    async def use() -> Counts:
        async with open_ledger() as ledger:
            for number in range(40):
                await note(ledger, str(number), 2_000, etag=str(number))
            await ledger.index()
            seen.extend(await to_thread.run_sync(lambda: list(tmp_path.iterdir())))
            return await ledger.counts()

    assert anyio.run(use) == Counts(40, 80_000, 80_000, 80_000, 0, 0)
    assert not seen
