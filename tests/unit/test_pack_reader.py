"""Files are read out of packs by their place, and a pack that is not as written is noticed."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest

from asyncagg.errors import NotFoundError
from asyncagg.model import CountedFile, Pack, RunFile
from asyncagg.packs.format import DamagedPackError
from asyncagg.packs.reader import PackReader, read_entries, stream_files
from asyncagg.packs.writer import PackWriter
from asyncagg.store.memory import MemoryStore

MODIFIED = datetime(2025, 10, 21, 13, 57, tzinfo=UTC)

NAMES = (
    "plain.json",
    "with space.json",
    "ünï/日本.json",
    "a+b%20c.json",
    "line\nbreak.json",
    "../../escape.json",
    "/absolute.json",
    "x" * 1019 + ".json",
    "back\\slash.json",
    "holds PK\3\4.json",
)


async def packed() -> tuple[MemoryStore, Pack, dict[CountedFile, bytes]]:
    """Return a store with a pack of files whose names and contents are awkward."""
    seed, writer, contents = random.Random(1), PackWriter("runs/"), {}
    for number, name in enumerate(NAMES):
        data = b"PK\3\4" * 20 + seed.randbytes(number * 50)
        file = RunFile(f"runs/{name}", len(data), f"etag{number}", MODIFIED)
        offset = writer.add(file, data)
        contents[CountedFile(file.key, file.size, file.etag, MODIFIED, pack="p", offset=offset)] = (
            data
        )
    writer.finish()
    store = MemoryStore()
    etag = await store.put("p.zip", writer.take(writer.pending))
    return store, Pack("p", "p.zip", etag, writer.files, writer.bytes), contents


@pytest.mark.parametrize("block", [0, 1, 7, 100, 1 << 20])
async def test_every_file_is_read_from_its_place(block: int) -> None:
    """However many bytes a request has, and in any order."""
    store, pack, contents = await packed()
    reader = PackReader(store, [pack], block=block)
    for file, data in reversed(contents.items()):
        assert await reader.read(file) == (data, True)


async def test_a_stream_of_the_pack_has_the_files() -> None:
    """All of them, or the ones that are wanted."""
    store, pack, contents = await packed()
    for wanted in (list(contents), list(contents)[3:8:2]):
        found = {file: data async for file, data in stream_files(store, pack, wanted)}
        assert found == {file: contents[file] for file in wanted}


async def test_the_directory_names_every_key() -> None:
    """The exact key and etag of each file, whatever the member is called."""
    store, pack, contents = await packed()
    entries = await read_entries(store, pack.key, pack.bytes, pack.etag)
    found = [(entry.comment.key, entry.comment.etag) for entry in entries if entry.comment]
    assert found == [(file.key, file.etag) for file in contents]


@pytest.mark.parametrize("change", ["content", "place", "size"])
async def test_a_file_that_is_not_there_is_refused(change: str) -> None:
    """A byte changed in the pack, or a row with a wrong place or size."""
    store, pack, contents = await packed()
    file = list(contents)[4]
    offset, size = file.offset, file.size
    if change == "content":
        whole = bytearray((await store.get(pack.key)).data)
        whole[offset + size // 2] ^= 1
        await store.put(pack.key, bytes(whole))
    offset += change == "place"
    size -= change == "size"
    wrong = CountedFile(file.key, size, file.etag, MODIFIED, pack="p", offset=offset)
    with pytest.raises(DamagedPackError, match=r"p\.zip"):
        await PackReader(store, [pack]).read(wrong)
    with pytest.raises(DamagedPackError, match=r"p\.zip"):
        [each async for each in stream_files(store, pack, [wrong])]


async def test_a_copy_of_a_pack_proves_nothing_by_its_etag() -> None:
    """The content is right by its CRC, but the pack is not the one that was counted."""
    store, pack, contents = await packed()
    other = Pack(pack.id, pack.key, "other", pack.files, pack.bytes)
    file, data = next(iter(contents.items()))
    assert await PackReader(store, [other]).read(file) == (data, False)


async def test_a_pack_that_is_not_named_is_not_found() -> None:
    """The row names a pack that the head does not."""
    store, _, contents = await packed()
    with pytest.raises(NotFoundError, match="does not name it"):
        await PackReader(store, []).read(next(iter(contents)))
