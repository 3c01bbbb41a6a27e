"""The directory store: links, permissions, producers and crashes."""

# ruff: noqa: ASYNC240 - the tests play the producers, who know nothing of the event loop

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import anyio
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asyncagg.errors import (
    AccessDeniedError,
    AsyncaggError,
    ConfigurationError,
    NotFoundError,
    PreconditionFailedError,
    StoreError,
    TransientError,
)
from asyncagg.model import RunFile
from asyncagg.store import Absent
from asyncagg.store.directory import DirectoryStore, removal, walk, writing
from asyncagg.store.directory.paths import KeyPath
from asyncagg.store.directory.tree import Tree, find

BODY = b'{"run_id": "a"}'
SECRET = b"outside of the root"

needs_permissions = pytest.mark.skipif(
    os.geteuid() == 0, reason="permissions do not bind the superuser"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return an empty root, with a secret file in a folder outside of it."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(SECRET)
    root = tmp_path / "root"
    root.mkdir()
    return root


@pytest.fixture
def store(root: Path) -> DirectoryStore:
    """Return a store in that root."""
    return DirectoryStore(root)


async def keys(store: DirectoryStore, prefix: str = "") -> list[str]:
    """Return all keys of a listing."""
    return [file.key async for page in store.list_pages(prefix) for file in page]


async def listed(store: DirectoryStore, key: str) -> RunFile:
    """Return the reference of a file."""
    return (await store.head(key)).file


def left_over(root: Path) -> list[str]:
    """Return the store's internal files below a root, except its lock."""
    names = [path.name for path in root.rglob(".asyncagg-*")]
    return [name for name in names if name != ".asyncagg-lock"]


def failing(code: int) -> Callable[..., None]:
    """Return a function that raises an OSError with this error number."""

    def fail(*_args: object, **_options: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def python(script: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a script in another process, with the same modules."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen([sys.executable, "-c", script, *arguments], env=environment)


class TestRoot:
    async def test_missing(self, root: Path) -> None:
        """A root that does not exist is a configuration error that names it."""
        store = DirectoryStore(root / "nowhere")
        for operation in (keys(store), store.get("a"), store.put("a", BODY)):
            with pytest.raises(ConfigurationError, match=r"nowhere.*expected an existing"):
                await operation
        assert not (root / "nowhere").exists()

    async def test_not_a_directory(self, root: Path) -> None:
        """A root that is a file is a configuration error that names it."""
        (root / "file").write_bytes(BODY)
        with pytest.raises(ConfigurationError, match=r"file.*expected an existing directory"):
            await keys(DirectoryStore(root / "file"))

    async def test_reached_through_a_link(self, root: Path) -> None:
        """The root itself may be a symbolic link."""
        (root.parent / "link").symlink_to(root)
        store = DirectoryStore(root.parent / "link")
        await store.put("a/b.json", BODY)
        assert await keys(store) == ["a/b.json"]
        assert (root / "a" / "b.json").read_bytes() == BODY


class TestLinks:
    @pytest.fixture(autouse=True)
    def _links(self, root: Path) -> None:
        (root / "file-link").symlink_to(root.parent / "outside" / "secret")
        (root / "folder-link").symlink_to(root.parent / "outside")
        (root / "dangling").symlink_to(root / "nowhere")

    async def test_are_not_listed(self, store: DirectoryStore) -> None:
        """Links to files and folders are not listed, nor is what they lead to."""
        assert await keys(store) == []

    @pytest.mark.parametrize("prefix", ["folder-link/", "folder-link/x", "file/", "file/a/b"])
    async def test_no_folder_is_no_empty_listing(
        self, store: DirectoryStore, root: Path, prefix: str
    ) -> None:
        """A listing below a link or a file is an error that names it: it would never find any."""
        (root / "file").write_bytes(BODY)
        with pytest.raises(ConfigurationError, match=rf"list '{prefix}' .*: expected a folder"):
            await keys(store, prefix)
        assert await keys(store, "missing/") == []

    @pytest.mark.parametrize("key", ["file-link", "folder-link/secret", "folder-link", "dangling"])
    async def test_are_not_read(self, store: DirectoryStore, key: str) -> None:
        """A key whose path has a link has no object."""
        with pytest.raises(NotFoundError):
            await store.get(key)
        with pytest.raises(NotFoundError):
            await store.head(key)
        with pytest.raises(NotFoundError):
            async with store.stream(key):
                pass
        with pytest.raises(NotFoundError):
            await store.copy(key, "copy", if_match="x")

    @pytest.mark.parametrize("key", ["file-link", "folder-link", "dangling", "folder-link/new"])
    async def test_are_not_written(self, store: DirectoryStore, root: Path, key: str) -> None:
        """A put or copy neither follows nor replaces a link."""
        await store.put("a.json", BODY)
        source = await listed(store, "a.json")
        with pytest.raises(StoreError, match=r"link|not a regular file"):
            await store.put(key, BODY)
        with pytest.raises(StoreError, match=r"link|not a regular file"):
            await store.copy("a.json", key, if_match=source.etag, condition=None)
        assert {path.name for path in root.parent.rglob("*") if path.is_symlink()} == {
            "file-link",
            "folder-link",
            "dangling",
        }
        assert [path.name for path in (root.parent / "outside").iterdir()] == ["secret"]

    async def test_are_not_deleted(self, store: DirectoryStore, root: Path) -> None:
        """A delete does not touch links or what they lead to."""
        await store.put("a.json", BODY)
        file = await listed(store, "a.json")
        for key in ("file-link", "folder-link/secret", "folder-link"):
            assert await store.delete([RunFile(key, 1, file.etag, file.last_modified)]) == {}
        assert (root / "file-link").is_symlink()
        assert (root.parent / "outside" / "secret").read_bytes() == SECRET


class TestKeys:
    _name = st.one_of(
        st.sampled_from(["..", ".", "", "a", "link", "secret", "outside", "~", "\0", "\ud800"]),
        st.sampled_from(["root", "file-link", ".asyncagg-lock", ".asyncagg-aside", "x" * 256]),
        st.text(max_size=5),
    )
    _keys = st.lists(_name, min_size=1, max_size=6).map("/".join)

    @settings(max_examples=200, deadline=None)
    @given(key=_keys, target=_keys)
    @example(key="../outside/secret", target="../outside/new")
    @example(key="link/secret", target="link/new")
    @example(key="/etc/passwd", target="/tmp/asyncagg")  # noqa: S108 - it must be refused
    def test_never_leave_the_root(self, key: str, target: str) -> None:
        """For any key, nothing outside is read or changed, and every error is an AsyncaggError."""
        with tempfile.TemporaryDirectory() as base:
            outside, root = Path(base, "outside"), Path(base, "root")
            for folder in (outside, root):
                folder.mkdir()
            (outside / "secret").write_bytes(SECRET)
            (root / "link").symlink_to(outside)
            (root / "file-link").symlink_to(outside / "secret")
            anyio.run(self._try_everything, DirectoryStore(root), key, target)
            assert sorted(path.name for path in Path(base).iterdir()) == ["outside", "root"]
            assert [path.name for path in outside.iterdir()] == ["secret"]
            assert (outside / "secret").read_bytes() == SECRET

    @staticmethod
    async def _try_everything(store: DirectoryStore, key: str, target: str) -> None:
        with suppress(AsyncaggError):
            assert SECRET not in (await store.get(key)).data
        with suppress(AsyncaggError):
            await store.copy(key, target, if_match=await store.put(key, BODY))
        with suppress(AsyncaggError):
            files = [file async for page in store.list_pages(key) for file in page]
            assert all(file.key.startswith(key) for file in files)
            await store.delete(files)

    @pytest.mark.parametrize(
        "key", ["", "a/", "/a", "a//b", "..", "a/../b", "./a", "a\0b", "\ud800"]
    )
    async def test_refusal_names_key_and_rule(self, store: DirectoryStore, key: str) -> None:
        """The error for an illegal key names the key and what is expected."""
        for operation in (store.get(key), store.head(key), store.put(key, BODY)):
            with pytest.raises(StoreError, match="expected names") as failure:
                await operation
            assert repr(key) in str(failure.value)
            assert failure.value.key == key

    @pytest.mark.parametrize("key", [".asyncagg-lock", ".asyncagg-tmp-1/a", "a" * 256, "é" * 128])
    async def test_names_that_cannot_be(self, store: DirectoryStore, key: str) -> None:
        """Internal names, and names of more than 255 bytes, are errors."""
        with pytest.raises(StoreError, match="expected names"):
            await store.put(key, BODY)

    async def test_longest_name_with_metadata(self, store: DirectoryStore) -> None:
        """A name of 255 bytes can have metadata like any other."""
        await store.put("a" * 255, BODY, metadata={"by": "me"})
        assert dict((await store.head("a" * 255)).metadata) == {"by": "me"}

    async def test_illegal_prefix_is_refused(self, store: DirectoryStore) -> None:
        """A prefix that no key can have is an error, not an empty listing: it is a typo."""
        with pytest.raises(StoreError, match="expected names"):
            await keys(store, "../outside/")
        assert await keys(store, ".") == []


class TestListing:
    async def test_only_files(
        self, store: DirectoryStore, root: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Empty folders and pipes are not listed, nor names that are not UTF-8, with a warning."""
        (root / "empty" / "folder").mkdir(parents=True)
        os.mkfifo(root / "pipe")
        (root / "a.json").write_bytes(BODY)
        try:
            (root / os.fsdecode(b"latin-\xe9.json")).write_bytes(BODY)
        except OSError:
            pytest.skip("this file system takes only UTF-8")
        with caplog.at_level(logging.WARNING):
            assert await keys(store) == ["a.json"]
        assert "latin-" in caplog.text

    async def test_what_is_skipped_is_counted_and_named(
        self, root: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Hidden and temporary files of the inbox, links and pipes are named in one warning."""
        (root / "runs").mkdir()
        for name in ("a.json", ".b.json", "~c.json", "d.json.tmp", "e.json~", "f.json.part"):
            (root / "runs" / name).write_bytes(BODY)
        os.mkfifo(root / "runs" / "pipe.json")
        (root / "runs" / "link.json").symlink_to(root / "runs" / "a.json")
        with caplog.at_level(logging.WARNING):
            assert await keys(DirectoryStore(root, inbox="runs/")) == ["runs/a.json"]
        (message,) = caplog.messages
        assert (
            "not listed below 'runs/': 5 hidden or temporary, 1 not a file, 1 symbolic" in message
        )
        assert len(await keys(DirectoryStore(root))) == 6

    async def test_stale_temporary_files_are_removed(
        self, store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A listing removes the temporary files of killed processes, not those of live ones."""
        (root / "runs").mkdir()
        (root / "runs" / ".asyncagg-tmp-0123").write_bytes(BODY)
        await keys(store)
        assert left_over(root) == [".asyncagg-tmp-0123"]
        monkeypatch.setattr(walk, "_STALE_SECONDS", -1)
        await keys(store)
        assert left_over(root) == []

    @pytest.mark.parametrize("kind", ["pipe", "link", "file", "folder"])
    @pytest.mark.parametrize("name", [".asyncagg-lock", ".asyncagg-aside"])
    async def test_internal_files_in_the_way_are_named(
        self, store: DirectoryStore, root: Path, name: str, kind: str
    ) -> None:
        """What is in the place of an internal file is an error that names it, and never a hang."""
        await store.put("a.json", BODY)
        file = await listed(store, "a.json")
        place = root / name
        place.unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(place)
        elif kind == "link":
            place.symlink_to(root / "a.json")
        elif kind == "file":
            place.write_bytes(b"")
        else:
            place.mkdir()
        if (name, kind) in {(".asyncagg-lock", "file"), (".asyncagg-aside", "folder")}:
            assert await store.delete([file]) == {}
            return
        with pytest.raises(ConfigurationError, match=rf"{name}' is in the way: expected a"):
            await store.delete([file])
        assert (root / "a.json").read_bytes() == BODY

    async def test_a_pipe_is_not_waited_for(self, store: DirectoryStore, root: Path) -> None:
        """Reading a named pipe fails at once."""
        os.mkfifo(root / "pipe")
        with pytest.raises(NotFoundError):
            await store.get("pipe")

    async def test_a_folder_larger_than_a_scan(
        self, store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A folder with more names than one scan holds is listed in order, each name once."""
        monkeypatch.setattr(walk, "_MAX_SCANNED", 3)
        names = ["a", "b-c", "b.json", "b/1", "b/2", "b/3", "b/4", "b0", "c/x", "d", "e/y/z", "f"]
        for name in reversed(names):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(BODY)
        assert await keys(store) == names

    async def test_a_vanishing_file(
        self, store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file that is removed while its folder is listed is left out."""
        for name in ("a", "b"):
            (root / name).write_bytes(BODY)
        whole = walk._references

        def references(tree: Tree, base: bytes, names: list[bytes]) -> list[RunFile]:
            (root / "a").unlink(missing_ok=True)
            return whole(tree, base, names)

        monkeypatch.setattr(walk, "_references", references)
        assert await keys(store) == ["b"]


class TestErrors:
    @pytest.mark.parametrize(
        ("code", "kind"),
        [
            (errno.ENOENT, NotFoundError),
            (errno.EACCES, AccessDeniedError),
            (errno.EPERM, AccessDeniedError),
            (errno.EROFS, AccessDeniedError),
            (errno.ENOSPC, ConfigurationError),
            (errno.EIO, TransientError),
            (errno.ESTALE, TransientError),
            (errno.ETIMEDOUT, TransientError),
            (errno.EMFILE, TransientError),
            (errno.EINVAL, StoreError),
        ],
    )
    async def test_translation(
        self,
        store: DirectoryStore,
        monkeypatch: pytest.MonkeyPatch,
        code: int,
        kind: type[AsyncaggError],
    ) -> None:
        """Every OSError becomes an AsyncaggError that names the operation, key and store."""
        monkeypatch.setattr(Tree, "open_file", failing(code))
        with pytest.raises(AsyncaggError) as failure:
            await store.get("a/b.json")
        assert type(failure.value) is kind
        assert str(failure.value).startswith(f"get 'a/b.json' in {store.url}: ")
        assert isinstance(failure.value.__cause__, OSError)
        assert ("; mount it for writing" in str(failure.value)) == (code == errno.EROFS)

    async def test_a_full_disk_loses_nothing(
        self, store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A put or copy on a full disk is an error, and changes nothing."""
        etag = await store.put("a.json", BODY)
        monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
        with pytest.raises(ConfigurationError, match="nothing is lost: free some space"):
            await store.put("a.json", b"other", metadata={"by": "other"})
        with pytest.raises(ConfigurationError, match="nothing is lost: free some space"):
            await store.copy("a.json", "b.json", if_match=etag)
        monkeypatch.undo()
        assert (await store.get("a.json", if_match=etag)).data == BODY
        assert await keys(store) == ["a.json"]
        assert left_over(root) == []

    @needs_permissions
    async def test_a_read_only_root(self, store: DirectoryStore, root: Path) -> None:
        """In a read-only root, the error of each write names the missing permission."""
        await store.put("a.json", BODY)
        (root / ".asyncagg-lock").unlink()
        file = await listed(store, "a.json")
        root.chmod(0o500)
        try:
            with pytest.raises(AccessDeniedError, match="needs to read, write and search"):
                await store.put("b.json", BODY)
            with pytest.raises(AccessDeniedError, match="needs to read, write and search"):
                await store.copy("a.json", "b.json", if_match=file.etag)
            failures = await store.delete([file])
            assert isinstance(failures["a.json"], AccessDeniedError)
            assert await keys(store) == ["a.json"]
        finally:
            root.chmod(0o700)

    @needs_permissions
    async def test_an_unreadable_file_and_folder(self, store: DirectoryStore, root: Path) -> None:
        """An unreadable file or folder is an AccessDeniedError, in a listing too."""
        await store.put("folder/a.json", BODY)
        (root / "folder" / "a.json").chmod(0)
        with pytest.raises(AccessDeniedError):
            await store.get("folder/a.json")
        (root / "folder").chmod(0)
        try:
            with pytest.raises(AccessDeniedError):
                await keys(store)
        finally:
            (root / "folder").chmod(0o700)


class TestProducers:
    async def test_rewriting_in_place_changes_the_etag(
        self, store: DirectoryStore, root: Path
    ) -> None:
        """A file that its producer rewrites in place has another etag, so conditions fail."""
        (root / "a.json").write_bytes(BODY)
        file = await listed(store, "a.json")
        (root / "a.json").write_bytes(BODY + b" ")
        assert (await listed(store, "a.json")).etag != file.etag
        with pytest.raises(PreconditionFailedError):
            await store.copy("a.json", "archive/a.json", if_match=file.etag)
        assert set(await store.delete([file])) == {"a.json"}
        assert await keys(store) == ["a.json"]

    async def test_rewriting_does_not_reach_the_copy(
        self, store: DirectoryStore, root: Path
    ) -> None:
        """A producer that rewrites a file does not change its copy."""
        (root / "a.json").write_bytes(BODY)
        file = await listed(store, "a.json")
        await store.copy("a.json", "archive/a.json", if_match=file.etag)
        with (root / "a.json").open("r+b") as producer:
            producer.write(b"rewritten")
        assert (await store.get("archive/a.json", if_match=file.etag)).data == BODY

    async def test_rewriting_while_it_is_streamed(self, store: DirectoryStore, root: Path) -> None:
        """A file that changes while it is read is an error."""
        for conditional, kind in ((False, TransientError), (True, PreconditionFailedError)):
            (root / "a.json").write_bytes(BODY * 100_000)
            etag = (await listed(store, "a.json")).etag if conditional else None
            async with store.stream("a.json", if_match=etag) as body:
                await anext(body.chunks)
                with (root / "a.json").open("ab") as producer:
                    producer.write(b"more")
                with pytest.raises(kind, match="rewritten"):
                    [block async for block in body.chunks]

    async def test_rewriting_while_it_is_copied_or_read(
        self, store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file that changes after its etag was checked is neither copied nor returned."""
        (root / "a.json").write_bytes(BODY)
        open_file = Tree.open_file

        def open_and_rewrite(
            tree: Tree, path: KeyPath, if_match: str | None
        ) -> tuple[io.FileIO, str]:
            opened = open_file(tree, path, if_match)
            with (root / "a.json").open("ab") as producer:
                producer.write(b" ")  # one byte more, in case the clock is too coarse
            return opened

        monkeypatch.setattr(Tree, "open_file", open_and_rewrite)
        with pytest.raises(TransientError, match="rewritten"):
            await store.get("a.json")
        file = await listed(store, "a.json")
        with pytest.raises(PreconditionFailedError):
            await store.get("a.json", if_match=file.etag)
        file = await listed(store, "a.json")
        with pytest.raises(PreconditionFailedError):
            await store.copy("a.json", "b.json", if_match=file.etag)
        assert await keys(store) == ["a.json"]
        assert left_over(root) == []

    @pytest.fixture
    def replaced(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Return a file that its producer replaces right after a delete has checked it."""
        path = root / "a.json"
        path.write_bytes(BODY)

        def look_and_replace(folder: int, name: bytes) -> os.stat_result | None:
            status = find(folder, name)
            if status is not None and status.st_size == len(BODY):
                (root / "new").write_bytes(b"replaced in the meantime")
                (root / "new").rename(path)
            return status

        monkeypatch.setattr(removal, "find", look_and_replace)
        return path

    @pytest.mark.parametrize("links", [True, False], ids=["links", "no-links"])
    async def test_replaced_between_check_and_delete(
        self,
        store: DirectoryStore,
        root: Path,
        replaced: Path,
        monkeypatch: pytest.MonkeyPatch,
        links: bool,  # noqa: FBT001 - a parameter of the test
    ) -> None:
        """A file that is replaced after the check and before the delete is put back."""
        file = await listed(store, "a.json")
        if not links:
            monkeypatch.setattr(os, "link", failing(errno.EOPNOTSUPP))
        failures = await store.delete([file])
        assert isinstance(failures["a.json"], PreconditionFailedError)
        assert replaced.read_bytes() == b"replaced in the meantime"
        assert left_over(root) == []

    async def test_written_again_while_it_was_aside(
        self, store: DirectoryStore, root: Path, replaced: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file that is written while its predecessor is in the trash stays."""
        file = await listed(store, "a.json")
        original = removal._put_back

        def put_back(folder: int, trash: int, name: bytes) -> None:
            replaced.write_bytes(b"the third")
            original(folder, trash, name)

        monkeypatch.setattr(removal, "_put_back", put_back)
        assert set(await store.delete([file])) == {"a.json"}
        assert replaced.read_bytes() == b"the third"
        assert left_over(root) == []

    async def test_metadata_does_not_outlive_its_content(
        self, store: DirectoryStore, root: Path
    ) -> None:
        """A file that its producer rewrites does not inherit metadata."""
        await store.put("a.json", BODY, metadata={"by": "me"})
        (root / "a.json").write_bytes(BODY + b" ")
        assert dict((await store.head("a.json")).metadata) == {}

    async def test_copy_keeps_time_and_mode(self, store: DirectoryStore, root: Path) -> None:
        """A copy has its source's time and permissions."""
        (root / "a.json").write_bytes(BODY)
        (root / "a.json").chmod(0o600)
        os.utime(root / "a.json", ns=(1, 1_700_000_000_123_456_789))
        file = await listed(store, "a.json")
        await store.copy("a.json", "archive/a.json", if_match=file.etag)
        copied = (root / "archive" / "a.json").stat()
        assert copied.st_mtime_ns == 1_700_000_000_123_456_789
        assert stat.S_IMODE(copied.st_mode) == 0o600
        assert (await listed(store, "archive/a.json")).last_modified == file.last_modified


class TestLesserFileSystems:
    async def test_without_hard_links(
        self, store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Conditional writes also work without hard links."""
        monkeypatch.setattr(os, "link", failing(errno.EPERM))
        etag = await store.put("a.json", BODY, condition=Absent())
        with pytest.raises(PreconditionFailedError):
            await store.put("a.json", b"other", condition=Absent())
        await store.copy("a.json", "b.json", if_match=etag)
        with pytest.raises(PreconditionFailedError):
            await store.copy("a.json", "b.json", if_match=etag)
        assert await keys(store) == ["a.json", "b.json"]
        assert left_over(root) == []

    async def test_with_coarse_times(
        self, store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With times rounded to two seconds, etags still change, and an inexact copy fails."""
        utime = os.utime

        def coarse(file: int, ns: tuple[int, int]) -> None:
            utime(file, ns=(ns[0], ns[1] // 2_000_000_000 * 2_000_000_000))

        (root / "fine.json").write_bytes(BODY)
        utime(root / "fine.json", ns=(1, 1_700_000_000_123_456_789))
        monkeypatch.setattr(os, "utime", coarse)
        etags = [await store.put("a.json", BODY) for _ in range(10)]
        assert len(set(etags)) == 10
        fine = await listed(store, "fine.json")
        with pytest.raises(ConfigurationError, match="rounds times"):
            await store.copy("fine.json", "b.json", if_match=fine.etag)
        assert left_over(root) == []


class TestCrashes:
    async def test_leftovers_are_not_listed(self, store: DirectoryStore, root: Path) -> None:
        """Internal files that a crash leaves are not listed."""
        (root / "runs").mkdir()
        (root / "runs" / ".asyncagg-tmp-0123").write_bytes(BODY)
        await store.put("runs/a.json", BODY, metadata={"by": "me"})
        assert await keys(store) == ["runs/a.json"]
        assert await keys(store, "runs/.asyncagg") == []

    async def test_killed_in_a_put(self, store: DirectoryStore, root: Path) -> None:
        """A process that is killed during a put leaves no object."""
        with python(KILLED_IN_A_PUT, str(root)) as process:
            assert process.wait() == -signal.SIGKILL
        assert len(left_over(root)) == 1
        assert await keys(store) == []
        await store.put("a.json", BODY, condition=Absent())

    @pytest.mark.parametrize("rewritten", [None, b"the producer's next"])
    async def test_killed_in_a_delete(
        self, store: DirectoryStore, root: Path, rewritten: bytes | None
    ) -> None:
        """What a killed delete left in the trash is restored, unless its producer rewrote it."""
        await store.put("runs/a.json", BODY, metadata={"by": "me"})
        with python(KILLED_IN_A_DELETE, str(root)) as process:
            assert process.wait() == -signal.SIGKILL
        assert not (root / "runs" / "a.json").exists()
        if rewritten is not None:
            (root / "runs" / "a.json").write_bytes(rewritten)
        assert await keys(store) == ["runs/a.json"]
        assert (await store.get("runs/a.json")).data == (rewritten or BODY)
        by = {} if rewritten else {"by": "me"}
        assert dict((await store.head("runs/a.json")).metadata) == by
        assert not (root / "runs" / ".asyncagg-aside").exists()

    async def test_damaged_metadata(
        self, store: DirectoryStore, root: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Damaged metadata is ignored with a warning; the file itself is processed."""
        etag = await store.put("a.json", BODY, metadata={"by": "me"})
        [sidecar] = left_over(root)
        (root / sidecar).write_bytes(b"{")
        await store.copy("a.json", "b.json", if_match=etag)
        assert dict((await store.head("b.json")).metadata) == {}
        assert "damaged" in caplog.text

    async def test_nothing_is_left_of_a_deleted_object(
        self, store: DirectoryStore, root: Path
    ) -> None:
        """An object's metadata is deleted with it; its folder stays for its producers."""
        await store.put("runs/a.json", BODY, metadata={"by": "me"})
        assert await store.delete([await listed(store, "runs/a.json")]) == {}
        assert left_over(root) == []
        assert (root / "runs").is_dir()


def test_processes_swap_without_a_loss(root: Path) -> None:
    """Four processes that increment a counter by compare-and-swap lose no increment."""
    with ExitStack() as stack:
        processes = [stack.enter_context(python(COUNTING, str(root), "25")) for _ in range(4)]
        assert [process.wait() for process in processes] == [0] * 4
    assert (root / "count.json").read_bytes() == b"000100"
    assert left_over(root) == []


COUNTING = """
import sys, anyio
from pathlib import Path
from asyncagg.errors import NotFoundError, PreconditionFailedError
from asyncagg.store import Absent, Matches
from asyncagg.store.directory import DirectoryStore

async def increment(store):
    try:
        body = await store.get("count.json")
    except NotFoundError:
        return await store.put("count.json", b"%06d" % 1, condition=Absent())
    await store.put("count.json", b"%06d" % (int(body.data) + 1), condition=Matches(body.etag))

async def main():
    store, done = DirectoryStore(Path(sys.argv[1])), 0
    while done < int(sys.argv[2]):
        try:
            await increment(store)
        except PreconditionFailedError:
            continue
        done += 1

anyio.run(main)
"""

KILLED_IN_A_PUT = """
import os, signal, sys, anyio
from pathlib import Path
from asyncagg.store.directory import DirectoryStore

async def body():
    yield b"x" * 1_000_000
    os.kill(os.getpid(), signal.SIGKILL)

anyio.run(DirectoryStore(Path(sys.argv[1])).put, "a.json", body())
"""

KILLED_IN_A_DELETE = """
import os, signal, sys, anyio
from pathlib import Path
from asyncagg.store.directory import DirectoryStore

async def main():
    store = DirectoryStore(Path(sys.argv[1]))
    file = (await store.head("runs/a.json")).file
    os.unlink = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    await store.delete([file])

anyio.run(main)
"""


class TestLargeCopies:
    async def test_holes_stay_holes(self, store: DirectoryStore, root: Path) -> None:
        """A sparse file of 8 GB is copied in no time, with its content and its holes."""
        with (root / "sparse.json").open("wb") as file:
            file.write(b"start")
            file.seek(1 << 32)
            file.write(b"x" * 300_000)
            file.truncate(1 << 33)
        source = await listed(store, "sparse.json")
        await store.copy("sparse.json", "copy.json", if_match=source.etag)
        status = (root / "copy.json").stat()
        assert status.st_size == 1 << 33
        assert status.st_blocks * 512 < 10_000_000
        assert (await listed(store, "copy.json")).etag == source.etag
        with (root / "copy.json").open("rb") as file:
            assert file.read(6) == b"start\0"
            file.seek(1 << 32)
            assert file.read(300_001) == b"x" * 300_000 + b"\0"

    @pytest.mark.parametrize("supported", [True, False])
    async def test_a_deadline_ends_a_copy(
        self, store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch, *, supported: bool
    ) -> None:
        """A copy obeys cancellation after each part, and removes its temporary file."""
        monkeypatch.setattr(writing, "_COPY_PART", 4096)
        if not supported:
            monkeypatch.setattr(os, "copy_file_range", failing(errno.EXDEV))
        (root / "large.json").write_bytes(os.urandom(1_000_000))
        source = await listed(store, "large.json")
        parts = 0
        real = os.fdatasync
        with anyio.CancelScope() as scope:

            def synced(file: int) -> None:
                nonlocal parts
                parts += 1
                real(file)
                if parts == 3:
                    anyio.from_thread.run_sync(scope.cancel)

            monkeypatch.setattr(os, "fdatasync", synced)
            await store.copy("large.json", "copy.json", if_match=source.etag)
        assert scope.cancelled_caught
        assert parts == 3
        assert left_over(root) == []
        assert await keys(store) == ["large.json"]
        monkeypatch.setattr(os, "fdatasync", real)
        await store.copy("large.json", "copy.json", if_match=source.etag)
        assert (root / "copy.json").read_bytes() == (root / "large.json").read_bytes()
