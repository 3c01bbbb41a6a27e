"""Files below one root: every step of the directory store that must happen in one worker thread.

Each folder of a path is opened relative to its parent, without following symbolic links, and files
are opened relative to their folder. So no path can leave the root, even if somebody swaps a folder
for a link in the middle of an operation.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from asyncagg.errors import (
    AsyncaggError,
    ConfigurationError,
    NotFoundError,
    PreconditionFailedError,
    StoreError,
    TransientError,
)
from asyncagg.store.directory import sidecar
from asyncagg.store.directory.paths import LOCK_NAME, KeyPath, etag_of, reference
from asyncagg.store.protocol import Body, ObjectInfo

FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
# O_NONBLOCK: opening a named pipe must not wait for a writer.
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


class Tree:
    """The files below a root. Its methods block, and raise `OSError` as well as other errors."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._resolved: Path | None = None

    @contextmanager
    def open_folder(self, names: Sequence[bytes], *, create: bool = False) -> Iterator[int]:
        """Open the folder with these names below the root, and yield its descriptor."""
        descriptor = self._open_root()
        try:
            for name in names:
                child = _open_child(descriptor, name, create=create)
                os.close(descriptor)
                descriptor = child
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def open_target_folder(self, path: KeyPath) -> Iterator[int]:
        """Open the folder to write a file to, and create it if it does not exist."""
        with ExitStack() as stack:
            try:
                folder = stack.enter_context(self.open_folder(path.parents, create=True))
            except NotADirectoryError as error:
                detail = "a file or a symbolic link has the name of one of its folders"
                raise path.error(StoreError, detail) from error
            yield folder

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Exclude all other threads and processes that write to this root through a store."""
        lock = self._open_lock()
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _open_lock(self) -> int:
        with self.open_folder(()) as root:
            present = find(root, LOCK_NAME)
            if present is not None and not stat.S_ISREG(present.st_mode):
                raise self.blocked((), LOCK_NAME, "a plain file")
            return os.open(LOCK_NAME, _READ_FLAGS | os.O_CREAT, 0o666, dir_fd=root)

    def blocked(self, names: Sequence[bytes], name: bytes, expected: str) -> ConfigurationError:
        """Return the error for something else in the place of an internal file."""
        path = self._root.joinpath(*map(os.fsdecode, (*names, name)))
        return ConfigurationError(
            f"{str(path)!r} is in the way: expected {expected} made by asyncagg; remove it"
        )

    def open_file(self, path: KeyPath, if_match: str | None) -> tuple[io.FileIO, str]:
        """Open a regular file for reading, if its etag is ``if_match``; return it with its etag."""
        with self.open_folder(path.parents) as folder:
            file = io.FileIO(os.open(path.name, _READ_FLAGS, dir_fd=folder))
        try:
            return file, _checked_etag(path, os.fstat(file.fileno()), if_match)
        except AsyncaggError:
            file.close()
            raise

    def check_unchanged(
        self, path: KeyPath, file: io.FileIO, etag: str, if_match: str | None
    ) -> None:
        """Raise an error if an open file has changed since it was opened with this etag.

        The error is transient, and a new attempt reads the new content, unless the caller asked for
        the etag.
        """
        if etag_of(os.fstat(file.fileno())) != etag:
            kind = TransientError if if_match is None else PreconditionFailedError
            raise path.error(kind, "it was rewritten while it was read")

    def head(self, path: KeyPath) -> ObjectInfo:
        """Return a file's reference, media type and metadata."""
        with self.open_folder(path.parents) as folder:
            status = os.stat(path.name, dir_fd=folder, follow_symlinks=False)
            found = sidecar.read(folder, path.name, _checked_etag(path, status, None))
        file = reference(path.key, status)
        return ObjectInfo(file, content_type=found.content_type, metadata=found.metadata)

    def read(self, path: KeyPath, if_match: str | None) -> Body:
        """Return a file's whole content."""
        file, etag = self.open_file(path, if_match)
        with file:
            data = file.readall()
            self.check_unchanged(path, file, etag, if_match)
        return Body(data, etag)

    def read_range(self, path: KeyPath, if_match: str | None, start: int, length: int) -> Body:
        """Return a part of a file's content; less if the file ends before."""
        file, etag = self.open_file(path, if_match)
        with file:
            data = os.pread(file.fileno(), length, start)
            self.check_unchanged(path, file, etag, if_match)
        return Body(data, etag)

    def _open_root(self) -> int:
        try:
            if self._resolved is None:
                self._resolved = self._root.resolve(strict=True)
            return os.open(self._resolved, FOLDER_FLAGS)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ConfigurationError(
                f"store {str(self._root)!r}: {error.strerror}; expected an existing directory"
            ) from error


def _checked_etag(path: KeyPath, status: os.stat_result, if_match: str | None) -> str:
    if not stat.S_ISREG(status.st_mode):
        raise path.error(NotFoundError, "it is not a regular file")
    etag = etag_of(status)
    if if_match is not None and etag != if_match:
        raise path.etag_mismatch(etag, if_match)
    return etag


def _open_child(parent: int, name: bytes, *, create: bool) -> int:
    if create:
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=parent)
            os.fsync(parent)
    try:
        return os.open(name, FOLDER_FLAGS, dir_fd=parent)
    except OSError as error:
        if error.errno != errno.ELOOP:  # for a symbolic link: ELOOP on some systems, else ENOTDIR
            raise
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from error


def find(folder: int, name: bytes) -> os.stat_result | None:
    """Return the status of an entry of a folder, of the link itself if it is one."""
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
