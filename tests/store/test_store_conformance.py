"""The contract of `asyncagg.store.Store`, on every store."""

# ruff: noqa: ASYNC240 - a look at a few names of a local directory

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest
from testkit.servers import NotInstalledError
from testkit.stores import CAPABILITIES, STORES, Capabilities, put_all

from asyncagg.errors import NotFoundError, PreconditionFailedError, StoreError, TransientError
from asyncagg.model import RunFile
from asyncagg.runtime.tasks import for_each
from asyncagg.store import DELETE_BATCH, Absent, Matches, Store

BODY = b'{"run_id": "a"}'
WRONG = "0" * 32
BLOCK = bytes(range(256)) * 4096  # 1 MiB

WEIRD_KEYS = [
    "a space.json",
    " leading and trailing ",
    "plus+plus.json",
    "percent%.json",
    "percent%2Bencoded%2F.json",
    "ünïcödé/日本語.json",
    "emoji-🎉.json",
    "&<>\"'.json",
    "~tilde.json",
    "key=value/hour=14.json",
    "what?.json",
    "hash#tag.json",
    "semi;colon:comma,at@.json",
    "back\\slash|pipe^`{}[]$!*().json",
    ".hidden/.file",
    "...",
    "e\u0301-is-not-\u00e9.json",
]
CONTROL_KEYS = ["new\nline.json", "tab\tand\rreturn.json"]
KEYS_OF_S3_ONLY = ["../up.json", "a/../b.json", "a//b.json", "/slash.json", "./dot.json", "end/"]

# These take long: server and plane are tested apart from each other.
QUICK_STORES = sorted(STORES.keys() - {"s3-moto-boto", "s3-seaweedfs-boto"})


@pytest.fixture(params=sorted(STORES))
def kind(request: pytest.FixtureRequest) -> str:
    """Return the name of the store under test."""
    return str(request.param)


@pytest.fixture
def capabilities(kind: str) -> Capabilities:
    """Return the capabilities of the store under test."""
    return CAPABILITIES[kind]


@pytest.fixture
async def store(kind: str, tmp_path: Path) -> AsyncIterator[Store]:
    """Yield an empty store."""
    async with AsyncExitStack() as stack:
        try:
            store = await stack.enter_async_context(STORES[kind](tmp_path))
        except NotInstalledError as error:
            pytest.skip(str(error))
        yield store


@pytest.fixture
def no_tree(capabilities: Capabilities) -> None:
    """Skip a test of keys that are no paths, and of their order."""
    if capabilities.is_a_tree:
        pytest.skip("this server keeps its objects in a tree of folders")


async def pages(store: Store, prefix: str = "", start_after: str = "") -> list[Sequence[RunFile]]:
    """Return all pages of a listing."""
    return [page async for page in store.list_pages(prefix, start_after=start_after)]


async def keys(store: Store, prefix: str = "", start_after: str = "") -> list[str]:
    """Return all keys of a listing."""
    return [file.key for page in await pages(store, prefix, start_after) for file in page]


async def file_of(store: Store, key: str) -> RunFile:
    """Return the reference of an object."""
    return (await store.head(key)).file


async def read_stream(store: Store, key: str) -> bytes:
    """Return an object's content, read block by block."""
    async with store.stream(key) as body:
        return b"".join([block async for block in body.chunks])


async def blocks(count: int) -> AsyncIterator[bytes]:
    """Yield blocks of 1 MiB."""
    for _ in range(count):
        yield BLOCK


def test_is_a_store(store: Store) -> None:
    """Every store has the protocol's methods and a URL."""
    assert isinstance(store, Store)
    assert store.url


class TestListing:
    async def test_of_an_empty_store(self, store: Store) -> None:
        """An empty store and an unknown prefix list nothing."""
        assert await keys(store) == []
        assert await keys(store, "runs/nothing/") == []

    @pytest.mark.usefixtures("no_tree")
    async def test_order_is_of_utf8_bytes(self, store: Store) -> None:
        """Keys are in the order of their UTF-8 bytes; slashes are not special."""
        written = [
            "a/b.json",
            "a.json",
            "a-b/c",
            "a0",
            "B",
            "z",
            "é",
            "\uffee",
            "🎉",
            "a/b/c",
            "a/b-c",
        ]
        await for_each(written, lambda key: store.put(key, BODY), workers=4)
        assert await keys(store) == sorted(written, key=str.encode)

    @pytest.mark.usefixtures("no_tree")
    async def test_prefix_may_cut_a_name(self, store: Store) -> None:
        """A prefix can end anywhere in a key."""
        written = ["runs/2024/a", "runs/2025-x", "runs/2025/a", "runs/2025/b/c", "runs/2026", "run"]
        await for_each(written, lambda key: store.put(key, BODY), workers=4)
        assert await keys(store, "runs/2025") == ["runs/2025-x", "runs/2025/a", "runs/2025/b/c"]
        assert await keys(store, "runs/2025/") == ["runs/2025/a", "runs/2025/b/c"]
        assert await keys(store, "runs/2025/b/c") == ["runs/2025/b/c"]
        assert await keys(store, "runs/2025/b/cd") == []

    @pytest.mark.usefixtures("no_tree")
    @pytest.mark.parametrize("after", ["a", "a/", "a/b", "a/b/c", "a/b/cc", "a.json", "b", "~"])
    async def test_start_after_is_exclusive(self, store: Store, after: str) -> None:
        """``start_after`` excludes its own key and all before it, whether it exists or not."""
        written = ["a.json", "a/a", "a/b/b", "a/b/c", "a/b/d", "a/c", "b", "c/d"]
        await for_each(written, lambda key: store.put(key, BODY), workers=4)
        assert await keys(store, start_after=after) == [key for key in written if key > after]
        below = [key for key in written if key > after and key.startswith("a/")]
        assert await keys(store, "a/", after) == below

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", QUICK_STORES, indirect=True)
    async def test_pages_of_a_thousand(self, store: Store) -> None:
        """1,500 objects are listed once each, in order, in pages of at most 1,000."""
        written = [f"runs/{number % 3}/{number:04}.json" for number in range(1500)]
        await put_all(store, written, BODY)
        found = await pages(store, "runs/")
        assert [len(page) for page in found] == [1000, 500]
        assert [file.key for page in found for file in page] == sorted(written)
        assert await keys(store, "runs/", "runs/1/1498.json") == sorted(written)[1000:]

    async def test_references_are_those_of_head(self, store: Store) -> None:
        """A listing and ``head`` return the same reference, with the right size and a UTC time."""
        await store.put("a.json", BODY)
        [[listed]] = await pages(store)
        assert listed.size == len(BODY)
        assert listed.etag == (await file_of(store, "a.json")).etag
        assert listed.last_modified.utcoffset() == timedelta(0)
        assert abs(listed.last_modified - datetime.now(UTC)) < timedelta(minutes=1)


class TestReading:
    @pytest.mark.parametrize("data", [b"", b"x", BLOCK])
    async def test_get_and_stream_give_the_bytes(self, store: Store, data: bytes) -> None:
        """The content that is put is read, whole or block by block, with its etag."""
        etag = await store.put("a.json", data)
        body = await store.get("a.json")
        assert (body.data, body.etag) == (data, etag)
        assert await read_stream(store, "a.json") == data
        assert (await file_of(store, "a.json")).etag == etag

    async def test_condition_holds(self, store: Store) -> None:
        """Reading with the right etag returns the content."""
        etag = await store.put("a.json", BODY)
        assert (await store.get("a.json", if_match=etag)).data == BODY
        async with store.stream("a.json", if_match=etag) as body:
            assert body.etag == etag
            assert [block async for block in body.chunks] == [BODY]

    async def test_condition_fails(self, store: Store) -> None:
        """Reading with another etag fails."""
        await store.put("a.json", BODY)
        with pytest.raises(PreconditionFailedError):
            await store.get("a.json", if_match=WRONG)
        with pytest.raises(PreconditionFailedError):
            async with store.stream("a.json", if_match=WRONG):
                pass

    async def test_a_range(self, store: Store) -> None:
        """A range has exactly the bytes asked for, under the same condition as the whole."""
        data = bytes(range(200))
        etag = await store.put("a.json", data)
        for start, length in ((0, 1), (17, 100), (0, 200), (199, 1)):
            body = await store.get_range("a.json", start, length, if_match=etag)
            assert (body.data, body.etag) == (data[start : start + length], etag)
        assert (await store.get_range("a.json", 3, 4)).data == data[3:7]
        with pytest.raises(PreconditionFailedError):
            await store.get_range("a.json", 0, 1, if_match=WRONG)
        with pytest.raises(NotFoundError):
            await store.get_range("b.json", 0, 1)

    @pytest.mark.parametrize("start", [150, 200, 1000])
    async def test_a_range_beyond_the_end(self, store: Store, start: int) -> None:
        """A range that the object does not have is an error, never fewer bytes."""
        await store.put("a.json", bytes(200))
        with pytest.raises(StoreError) as failure:
            await store.get_range("a.json", start, 100)
        assert not isinstance(failure.value, TransientError)

    async def test_stream_may_be_left_early(self, store: Store) -> None:
        """After a reader stops early, the store still works."""
        await store.put("a.json", blocks(3))
        async with store.stream("a.json") as body:
            assert BLOCK.startswith((await anext(body.chunks))[:1000])
        assert (await file_of(store, "a.json")).size == 3 * len(BLOCK)

    async def test_an_error_of_the_reader_passes_through(self, store: Store) -> None:
        """An error that is raised inside ``stream`` propagates unchanged, even an OSError."""
        await store.put("a.json", BODY)
        with pytest.raises(FileNotFoundError, match="the reader's own"):
            async with store.stream("a.json"):
                raise FileNotFoundError("the reader's own")

    @pytest.mark.parametrize("key", ["nothing.json", "no/thing.json", "folder", "folder/x/y"])
    async def test_what_is_not_there(self, store: Store, key: str) -> None:
        """A key without an object is a NotFoundError that names the key."""
        await store.put("folder/x", BODY)
        with pytest.raises(NotFoundError) as failure:
            await store.get(key)
        assert failure.value.key == key
        assert key in str(failure.value)
        with pytest.raises(NotFoundError):
            await store.head(key)
        with pytest.raises(NotFoundError):
            async with store.stream(key):
                pass

    async def test_head_knows_type_and_metadata(self, store: Store) -> None:
        """``head`` returns the media type and metadata, with keys in lower case."""
        metadata = {"Reason": "not JSON", "x-from": "runs/a=1, b"}
        await store.put("bad.bin", b"\0", content_type="text/plain", metadata=metadata)
        await store.put("plain.json", BODY)
        info = await store.head("bad.bin")
        assert info.content_type == "text/plain"
        assert dict(info.metadata) == {"reason": "not JSON", "x-from": "runs/a=1, b"}
        assert info.content_encoding == ""
        plain = await store.head("plain.json")
        assert (plain.content_type, dict(plain.metadata)) == ("application/json", {})


class TestPut:
    async def test_if_absent(self, store: Store) -> None:
        """A second put with the condition Absent fails and changes nothing."""
        etag = await store.put("a.json", BODY, condition=Absent(), metadata={"by": "first"})
        with pytest.raises(PreconditionFailedError):
            await store.put("a.json", b"other", condition=Absent(), metadata={"by": "second"})
        assert await store.get("a.json", if_match=etag) == await store.get("a.json")
        assert dict((await store.head("a.json")).metadata) == {"by": "first"}

    async def test_if_match(self, store: Store) -> None:
        """A put with the condition Matches replaces content and metadata only of that etag."""
        first = await store.put("a.json", BODY, metadata={"revision": "1"})
        second = await store.put("a.json", b"second", condition=Matches(first))
        with pytest.raises(PreconditionFailedError):
            await store.put("a.json", b"third", condition=Matches(first))
        body = await store.get("a.json")
        assert (body.data, body.etag) == (b"second", second)
        assert dict((await store.head("a.json")).metadata) == {}

    async def test_if_match_where_nothing_is(self, store: Store) -> None:
        """A put with Matches fails if there is no object: S3 responds 404, some servers 412."""
        with pytest.raises(PreconditionFailedError):
            await store.put("a.json", BODY, condition=Matches(WRONG))
        assert await keys(store) == []

    async def test_unconditional(self, store: Store) -> None:
        """A put without a condition overwrites any object."""
        await store.put("a.json", BODY)
        await store.put("a.json", b"other")
        assert (await store.get("a.json")).data == b"other"

    async def test_etag_changes_with_content(self, store: Store) -> None:
        """Contents of the same size written one after the other never share an etag."""
        etags = [await store.put("a.json", f"{number:04}".encode()) for number in range(100)]
        assert len(set(etags)) == 100

    async def test_large_body_by_blocks(self, store: Store) -> None:
        """20 MB are written and read block by block."""
        etag = await store.put("large.json", blocks(20))
        assert (await file_of(store, "large.json")).size == 20 * len(BLOCK)
        async with store.stream("large.json", if_match=etag) as body:
            sizes = [len(block) async for block in body.chunks]
        assert sum(sizes) == 20 * len(BLOCK)
        assert max(sizes) <= len(BLOCK)
        assert await read_stream(store, "large.json") == BLOCK * 20

    async def test_an_iterable_may_be_empty(self, store: Store) -> None:
        """An iterable without blocks creates an empty object."""
        await store.put("empty.json", blocks(0))
        assert (await store.get("empty.json")).data == b""

    async def test_one_of_many_takes_a_free_key(self, store: Store) -> None:
        """Of 20 concurrent puts with Absent, exactly one succeeds, completely."""
        won: list[str] = []

        async def attempt(name: str) -> None:
            try:
                await store.put("a.json", name.encode(), condition=Absent(), metadata={"by": name})
            except PreconditionFailedError:
                return
            won.append(name)

        await for_each([f"contender-{number}" for number in range(20)], attempt, workers=20)
        assert len(won) == 1
        assert (await store.get("a.json")).data == won[0].encode()
        assert dict((await store.head("a.json")).metadata) == {"by": won[0]}

    async def test_one_of_many_swaps(self, store: Store) -> None:
        """Of 20 concurrent puts with Matches of one etag, exactly one succeeds."""
        etag = await store.put("a.json", BODY)
        won: list[str] = []

        async def attempt(name: str) -> None:
            try:
                won.append(await store.put("a.json", name.encode(), condition=Matches(etag)))
            except PreconditionFailedError:
                return

        await for_each([f"contender-{number}" for number in range(20)], attempt, workers=20)
        assert [(await store.get("a.json")).etag] == won

    async def test_cancelled_in_the_middle(self, store: Store, tmp_path: Path) -> None:
        """A put that is cancelled between two blocks leaves no object and no file."""
        started = anyio.Event()

        async def endless() -> AsyncIterator[bytes]:
            yield BLOCK
            started.set()
            await anyio.sleep_forever()

        async with anyio.create_task_group() as group:
            group.start_soon(store.put, "a/b.json", endless())
            await started.wait()
            group.cancel_scope.cancel()
        assert await keys(store) == []
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]

    async def test_a_body_that_fails(self, store: Store, tmp_path: Path) -> None:
        """An error of the body propagates unchanged, and the old object stays."""
        etag = await store.put("a.json", BODY)

        async def failing() -> AsyncIterator[bytes]:
            yield BLOCK
            raise TimeoutError("the body's own")

        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(TimeoutError, match="the body's own"):
            await store.put("a.json", failing())
        assert (await store.get("a.json")).etag == etag
        assert sorted(tmp_path.rglob("*")) == before


class TestCopy:
    async def test_content_type_and_metadata_follow(self, store: Store) -> None:
        """A copy has its source's content, media type and metadata."""
        etag = await store.put("a.json", BODY, content_type="text/plain", metadata={"by": "me"})
        await store.copy("a.json", "archive/a.json", if_match=etag)
        info = await store.head("archive/a.json")
        assert (await store.get("archive/a.json")).data == BODY
        assert (info.content_type, dict(info.metadata)) == ("text/plain", {"by": "me"})
        assert (await store.get("a.json")).etag == etag

    async def test_keeps_the_etag(self, store: Store) -> None:
        """A copy has its source's etag, which identifies an archived file."""
        etag = await store.put("a.json", BODY)
        await store.copy("a.json", "archive/a.json", if_match=etag)
        [[copied]] = await pages(store, "archive/")
        assert copied.etag == etag

    async def test_metadata_instead_of_the_sources(self, store: Store) -> None:
        """New metadata of a copy replaces the source's."""
        etag = await store.put("a.json", BODY, metadata={"by": "me"})
        await store.copy("a.json", "b.json", if_match=etag, metadata={"Reason": "not JSON"})
        assert dict((await store.head("b.json")).metadata) == {"reason": "not JSON"}
        assert dict((await store.head("a.json")).metadata) == {"by": "me"}

    async def test_source_has_changed(self, store: Store) -> None:
        """A source that was overwritten is not copied."""
        etag = await store.put("a.json", BODY)
        await store.put("a.json", b"other")
        with pytest.raises(PreconditionFailedError):
            await store.copy("a.json", "b.json", if_match=etag)
        assert await keys(store) == ["a.json"]

    async def test_source_is_gone(self, store: Store) -> None:
        """A missing source is a NotFoundError."""
        with pytest.raises(NotFoundError):
            await store.copy("a.json", "b.json", if_match=WRONG)
        assert await keys(store) == []

    async def test_target_is_taken(self, store: Store) -> None:
        """An existing target is overwritten only without a condition."""
        etag = await store.put("a.json", BODY)
        await store.put("b.json", b"other", metadata={"by": "other"})
        with pytest.raises(PreconditionFailedError):
            await store.copy("a.json", "b.json", if_match=etag)
        assert (await store.get("b.json")).data == b"other"
        assert dict((await store.head("b.json")).metadata) == {"by": "other"}
        await store.copy("a.json", "b.json", if_match=etag, condition=None)
        assert (await store.get("b.json")).data == BODY
        assert dict((await store.head("b.json")).metadata) == {}

    async def test_one_of_many_takes_the_target(
        self, store: Store, capabilities: Capabilities
    ) -> None:
        """Of 20 concurrent copies to one free key, exactly one succeeds."""
        if not capabilities.guards_copies:
            pytest.skip("this server does not look at a copy's conditions")
        etag = await store.put("a.json", BODY)
        won: list[int] = []

        async def attempt(number: int) -> None:
            try:
                await store.copy("a.json", "b.json", if_match=etag)
            except PreconditionFailedError:
                return
            won.append(number)

        await for_each(range(20), attempt, workers=20)
        assert len(won) == 1


class TestDelete:
    async def test_right_wrong_and_absent(self, store: Store) -> None:
        """In one batch, right etags are deleted, wrong ones are failures, missing keys are fine."""
        now = datetime.now(UTC)
        for key in ("right.json", "a/right.json", "wrong.json"):
            await store.put(key, BODY)
        right = [await file_of(store, "right.json"), await file_of(store, "a/right.json")]
        wrong = RunFile("wrong.json", len(BODY), WRONG, now)
        absent = [RunFile("no.json", 1, WRONG, now), RunFile("no/thing.json", 1, WRONG, now)]
        failures = await store.delete([*absent, right[0], wrong, right[1]])
        assert {key: type(error) for key, error in failures.items()} == {
            "wrong.json": PreconditionFailedError
        }
        assert await keys(store) == ["wrong.json"]

    async def test_overwritten_object_stays(self, store: Store) -> None:
        """An object that was overwritten since it was listed stays unchanged."""
        await store.put("a.json", BODY)
        listed = await file_of(store, "a.json")
        etag = await store.put("a.json", BODY[::-1], metadata={"by": "other"})
        assert set(await store.delete([listed])) == {"a.json"}
        assert (await store.get("a.json", if_match=etag)).data == BODY[::-1]
        assert dict((await store.head("a.json")).metadata) == {"by": "other"}

    async def test_twice(self, store: Store) -> None:
        """Deleting a deleted object is no failure."""
        await store.put("a.json", BODY, metadata={"by": "me"})
        listed = await file_of(store, "a.json")
        assert await store.delete([listed]) == {}
        assert await store.delete([listed]) == {}
        await store.put("a.json", BODY)
        assert dict((await store.head("a.json")).metadata) == {}

    async def test_nothing(self, store: Store) -> None:
        """An empty batch does nothing."""
        assert await store.delete([]) == {}

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "kind", [each for each in QUICK_STORES if "seaweedfs" not in each], indirect=True
    )
    async def test_a_full_batch(self, store: Store) -> None:
        """1,000 objects are deleted in one batch; more are an error."""
        written = [f"runs/{number % 7}/{number}.json" for number in range(DELETE_BATCH)]
        await put_all(store, written, BODY)
        [listed] = await pages(store)
        with pytest.raises(StoreError):
            await store.delete([*listed, listed[0]])
        assert await store.delete(listed) == {}
        assert await keys(store) == []


class TestKeys:
    @pytest.mark.parametrize("kind", QUICK_STORES, indirect=True)
    @pytest.mark.parametrize("key", WEIRD_KEYS)
    async def test_weird_keys(self, store: Store, key: str, capabilities: Capabilities) -> None:
        """Unusual keys can be written, listed, read, copied and deleted."""
        if capabilities.is_a_tree and "\\" in key:
            pytest.skip("this server takes a backslash for a slash")
        await self._goes_all_the_way(store, key)

    @pytest.mark.parametrize("key", CONTROL_KEYS)
    async def test_control_characters(
        self, store: Store, key: str, capabilities: Capabilities
    ) -> None:
        """Keys with control characters work if the store can hold them."""
        if not capabilities.holds_control_characters:
            pytest.skip("this store cannot hold them")
        await self._goes_all_the_way(store, key)

    @pytest.mark.usefixtures("no_tree")
    @pytest.mark.parametrize("key", KEYS_OF_S3_ONLY)
    async def test_keys_that_are_no_paths(
        self, store: Store, key: str, capabilities: Capabilities
    ) -> None:
        """A key that is not a path works as any other, or is a clear error."""
        if capabilities.holds_any_key:
            await self._goes_all_the_way(store, key)
            return
        with pytest.raises(StoreError, match="expected ") as failure:
            await store.put(key, BODY)
        assert repr(key) in str(failure.value)

    @pytest.mark.usefixtures("no_tree")
    @pytest.mark.parametrize("letter", ["a", "é", "日", "🎉"])
    async def test_longest_keys(self, store: Store, letter: str) -> None:
        """A key of 1,024 bytes of UTF-8, S3's maximum, works."""
        names = "/".join([letter * (200 // len(letter.encode()))] * 4)
        key = f"{'p' * (1023 - len(names.encode()))}/{names}"
        assert len(key.encode()) == 1024
        await self._goes_all_the_way(store, key, copy_to="copy")

    async def test_a_key_below_another(self, store: Store, capabilities: Capabilities) -> None:
        """A key below another works, or is an error that leaves the first unchanged."""
        await store.put("a", BODY)
        if capabilities.holds_any_key:
            await store.put("a/b", BODY)
            assert await keys(store) == ["a", "a/b"]
            return
        with pytest.raises(StoreError):
            await store.put("a/b", BODY)
        with pytest.raises(StoreError):
            await store.copy("a", "a/b", if_match=(await file_of(store, "a")).etag)
        assert await keys(store) == ["a"]

    @staticmethod
    async def _goes_all_the_way(store: Store, key: str, copy_to: str | None = None) -> None:
        copied = copy_to or f"archive/{key}"
        etag = await store.put(key, BODY, condition=Absent(), metadata={"by": "me"})
        assert await keys(store) == [key]
        assert await keys(store, key) == [key]
        assert (await store.get(key, if_match=etag)).data == BODY
        assert await read_stream(store, key) == BODY
        await store.copy(key, copied, if_match=etag)
        assert await store.delete([await file_of(store, key)]) == {}
        assert await keys(store) == [copied]
        assert dict((await store.head(copied)).metadata) == {"by": "me"}
