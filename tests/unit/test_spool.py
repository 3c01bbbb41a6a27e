"""Bytes that wait their turn, in memory or in a temporary file that nobody else sees."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncagg.aggregate import spool as spool_module
from asyncagg.aggregate.spool import BLOCK, LONGEST_LINE, Spool, open_spool
from asyncagg.runtime.tasks import for_each

MEMORY = [1 << 30, 0, 1, 100, BLOCK]  # never, at once, at once, early, at the first block


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 64 bytes, so that little data has many borders."""
    monkeypatch.setattr(spool_module, "BLOCK", 64)


async def everything(spool: Spool, start: int = 0, end: int | None = None) -> bytes:
    """Return the bytes of a part of a spool."""
    return b"".join([block async for block in spool.blocks(start, end)])


async def lines_of(spool: Spool, start: int = 0, end: int | None = None) -> list[bytes]:
    """Return the lines of a part of a spool."""
    return [line async for lines in spool.lines(start, end) for line in lines]


def rolled(spool: Spool) -> bool:
    """Say whether the spool has come to a file."""
    return bool(spool._file._file._rolled)


@pytest.mark.parametrize("memory", MEMORY)
class TestContents:
    async def test_empty(self, memory: int) -> None:
        """An empty spool has no bytes and no lines."""
        async with open_spool(memory) as spool:
            assert spool.size == 0
            assert await everything(spool) == b""
            assert await lines_of(spool) == []

    async def test_what_goes_in_comes_out(self, memory: int) -> None:
        """All bytes come back in order, from any offset, in memory as from the disk."""
        data = bytes(range(256)) * 3000
        async with open_spool(memory) as spool:
            for start in range(0, len(data), 1000):
                await spool.append(data[start : start + 1000])
            assert spool.size == len(data)
            assert await everything(spool) == data
            assert await everything(spool, 1, BLOCK + 1) == data[1 : BLOCK + 1]
            assert await everything(spool, len(data) - 1) == data[-1:]
            assert await everything(spool, 5, 5) == b""
            assert rolled(spool) == (memory <= BLOCK)

    async def test_appending_after_reading(self, memory: int) -> None:
        """A reader does not move the place where the next bytes go."""
        async with open_spool(memory) as spool:
            await spool.append(b"one\n")
            assert await everything(spool) == b"one\n"
            await spool.append(b"two\n")
            assert await everything(spool, 0, 2) == b"on"
            await spool.append(b"three\n")
            assert await lines_of(spool) == [b"one", b"two", b"three"]

    async def test_appending_while_reading(self, memory: int) -> None:
        """A reader that has begun sees what was there when it began."""
        async with open_spool(memory) as spool:
            await spool.append(b"a" * (2 * BLOCK))
            reader = spool.blocks()
            seen = [await anext(reader)]
            await spool.append(b"b" * (2 * BLOCK))
            seen += [block async for block in reader]
            assert b"".join(seen) == b"a" * (2 * BLOCK)
            assert await everything(spool, 2 * BLOCK) == b"b" * (2 * BLOCK)

    async def test_two_readers_in_turns(self, memory: int) -> None:
        """Two readers of different parts, in turns, each get their own bytes."""
        data = b"".join(b"%07d\n" % number for number in range(200_000))
        half = len(data) // 2
        async with open_spool(memory) as spool:
            await spool.append(data)
            left, right = spool.lines(0, half), spool.lines(half)
            seen: list[list[bytes]] = [[], []]
            async for lines in left:
                seen[0] += lines
                seen[1] += await anext(right, [])
            async for lines in right:
                seen[1] += lines
        assert b"\n".join(seen[0]) + b"\n" == data[:half]
        assert b"\n".join(seen[1]) + b"\n" == data[half:]

    async def test_readers_in_tasks_of_their_own(self, memory: int) -> None:
        """Readers at the same time, while another task appends, each get the right bytes."""
        data = b"".join(b"%07d\n" % number for number in range(100_000))
        async with open_spool(memory) as spool:
            await spool.append(data)

            async def work(number: int) -> None:
                if number == 3:
                    for _ in range(5):
                        await spool.append(b"x" * BLOCK)
                        await anyio.lowlevel.checkpoint()
                    return
                assert await everything(spool, number, len(data)) == data[number:]

            await for_each(range(6), work, workers=6)
            assert await everything(spool, len(data)) == b"x" * (5 * BLOCK)


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("turns", range(8))
async def test_cancelled_at_any_moment(memory: int, turns: int) -> None:
    """An append that is cancelled, however far it had come, loses no byte and doubles none."""
    async with open_spool(memory) as spool:
        await spool.append(b"a" * (BLOCK + 1))
        async with anyio.create_task_group() as group:
            group.start_soon(spool.append, b"b" * BLOCK)
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        kept = spool.size
        assert kept in {BLOCK + 1, 2 * BLOCK + 1}
        await spool.append(b"c")
        assert await everything(spool) == (b"a" * (BLOCK + 1) + b"b" * BLOCK)[:kept] + b"c"


@pytest.mark.parametrize("turns", range(12))
async def test_a_task_that_asyncio_cancels_leaves_no_file_open(turns: int) -> None:
    """No shield of anyio holds off such a cancellation, as of a timeout around a run."""

    async def work() -> None:
        async with open_spool(1 << 30) as spool:
            await spool.append(b"a" * (BLOCK + 1))
            await everything(spool)

    task = asyncio.create_task(work())
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert not [each for each in gc.get_objects() if is_open(each)]


def is_open(found: object) -> bool:
    """Return whether an object is an open temporary file."""
    return isinstance(found, tempfile.SpooledTemporaryFile) and not found.closed


@given(
    st.lists(st.binary(max_size=200) | st.sampled_from([b"\n", b"\n\n", b"line\n"]), max_size=12),
    st.sampled_from([1, 2, 7, 64, 1 << 18]),
    st.sampled_from([0, 50, 1 << 30]),
)
async def test_any_appends_any_block_size(parts: list[bytes], block: int, memory: int) -> None:
    """Whatever is appended, however large the blocks: the same bytes, the lines of ``split``."""
    data = b"".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool_module, "BLOCK", block)
        async with open_spool(memory) as spool:
            for part in parts:
                await spool.append(part)
            assert await everything(spool) == data
            expected = data.split(b"\n")
            assert await lines_of(spool) == (expected if expected[-1] else expected[:-1])


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("length", [1, 62, 63, 64, 65, 127, 128, 129, 1000])
async def test_lines_across_block_borders(length: int) -> None:
    """A line that ends just before, at or behind a border of blocks, or spans many, is whole."""
    wanted = [bytes([65 + number]) * length for number in range(20)]
    async with open_spool(0) as spool:
        for line in wanted:
            await spool.append(line + b"\n")
        assert await lines_of(spool) == wanted
        assert await lines_of(spool, length + 1, 3 * (length + 1)) == wanted[1:3]


async def test_a_line_without_end() -> None:
    """A line that nobody of ours wrote is an error before it fills the memory."""
    async with open_spool(BLOCK) as spool:
        for _ in range(LONGEST_LINE // BLOCK + 2):
            await spool.append(b"x" * BLOCK)
        with pytest.raises(ValueError, match=f"a line is longer than {LONGEST_LINE} bytes"):
            await lines_of(spool)


async def test_memory_is_bounded_by_its_setting() -> None:
    """Up to the setting the bytes stay in memory; past it they go to the file."""
    async with open_spool(3 * BLOCK) as spool:
        await spool.append(b"x" * (3 * BLOCK))
        assert not rolled(spool)
        await spool.append(b"x" * BLOCK)
        assert rolled(spool)


class TestTheFile:
    @staticmethod
    def _names(folder: Path) -> list[str]:
        return [path.name for path in folder.iterdir()]

    async def test_has_no_name(self, tmp_path: Path) -> None:
        """While it is open, and afterwards, nothing stands in the folder: a kill leaves nothing."""
        async with open_spool(0, tmp_path) as spool:
            await spool.append(b"x" * BLOCK)
            assert rolled(spool)
            assert self._names(tmp_path) == []
            if sys.platform == "linux":
                number = spool._file._file.fileno()
                link = str(await anyio.Path(f"/proc/self/fd/{number}").readlink())
                assert link.startswith(str(tmp_path))
                assert link.endswith("(deleted)")
        assert self._names(tmp_path) == []

    async def test_is_closed_after_an_error(self, tmp_path: Path) -> None:
        """However the context ends, the file is closed, and its space given back."""

        async def failing() -> AsyncIterator[Spool]:
            async with open_spool(0, tmp_path) as spool:
                await spool.append(b"x" * BLOCK)
                yield spool
                raise LookupError("inside")

        steps = failing()
        spool = await anext(steps)
        with pytest.raises(LookupError, match="inside"):
            await anext(steps)
        assert spool._file.closed
        assert self._names(tmp_path) == []

    async def test_few_bytes_make_no_file(self, tmp_path: Path) -> None:
        """A folder that does not exist does no harm until there is something to put there."""
        async with open_spool(BLOCK, tmp_path / "nowhere") as spool:
            await spool.append(b"x")
            assert await everything(spool) == b"x"


_FULL = """
import asyncio, resource, sys
from pathlib import Path
from asyncagg.errors import ConfigurationError
from asyncagg.aggregate.spool import open_spool

resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

async def main() -> None:
    async with open_spool(int(sys.argv[1]), Path(sys.argv[2])) as spool:
        for _ in range(20):
            await spool.append(b"x" * 100_000)

try:
    asyncio.run(main())
except ConfigurationError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit on the size of files")
@pytest.mark.parametrize("memory", [0, 300_000, 450_000, 550_000])
def test_a_full_disk(memory: int, tmp_path: Path) -> None:
    """Where the disk takes no more, one sentence says so and what to do, and nothing stays."""
    command = [sys.executable, "-W", "error", "-c", _FULL, str(memory), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.stderr == ""
    assert done.stdout.startswith(f"temporary folder {str(tmp_path)!r}: full at ")
    assert "expected more ephemeral storage, or a smaller window" in done.stdout
    assert list(tmp_path.iterdir()) == []


async def test_another_error_of_the_disk(tmp_path: Path) -> None:
    """An error that is not a full disk comes out as it is."""
    async with open_spool(0, tmp_path / "nowhere") as spool:
        with pytest.raises(FileNotFoundError):
            await spool.append(b"x" * BLOCK)
