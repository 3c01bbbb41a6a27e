"""Files below one root: every step of the directory store that must happen in one worker thread.

Each folder on the way is opened relative to the one above it, without following symbolic links, and
files are named relative to their opened folder. So no path can leave the root, not even when
somebody swaps a folder for a link in the middle of an operation.
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
    ConfigurationError,
    NotFoundError,
    PreconditionFailedError,
    StoreError,
    TransientError,
)
from asyncagg.store.directory import sidecar
from asyncagg.store.directory.paths import LOCK, Spot, etag_of, reference
from asyncagg.store.protocol import Body, ObjectInfo

__all__ = ("Tree", "status_of")

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
# Opening a named pipe must not wait for its writer.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


class Tree:
    """The files below a root. Its methods block, and raise `OSError` beside the package's errors.

    Args:
        root: The directory; looked at when it is first used.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._resolved: Path | None = None

    @contextmanager
    def folder(self, names: Sequence[bytes], *, create: bool = False) -> Iterator[int]:
        """Open the folder with these names below the root.

        Args:
            names: The names from the root down.
            create: Make those that are missing.
        """
        descriptor = self._open_root()
        try:
            for name in names:
                below = _enter(descriptor, name, create=create)
                os.close(descriptor)
                descriptor = below
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def target_folder(self, spot: Spot) -> Iterator[int]:
        """Open the folder that a key is to be written to, made if it is missing."""
        with ExitStack() as stack:
            try:
                folder = stack.enter_context(self.folder(spot.folder, create=True))
            except NotADirectoryError as error:
                why = "a file or a symbolic link stands where a folder is needed"
                raise spot.error(StoreError, why) from error
            yield folder

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep every other thread and process that writes through a store out of this root."""
        with self.folder(()) as root:
            lock = os.open(LOCK, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666, dir_fd=root)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def open_file(self, spot: Spot) -> int:
        """Open a file for reading and return its descriptor.

        Raises:
            NotFoundError: What has that key is no regular file.
        """
        with self.folder(spot.folder) as folder:
            file = os.open(spot.name, _READ, dir_fd=folder)
        if stat.S_ISREG(os.fstat(file).st_mode):
            return file
        os.close(file)
        raise spot.error(NotFoundError, "what is there is not a file")

    def etag(self, spot: Spot, file: int, expected: str | None) -> str:
        """Return the etag of an open file.

        Raises:
            PreconditionFailedError: It is not the expected one.
        """
        etag = etag_of(os.fstat(file))
        if expected is not None and etag != expected:
            raise spot.changed(etag, expected)
        return etag

    def check_unchanged(self, spot: Spot, file: int, etag: str, if_match: str | None) -> None:
        """Make sure that what was read of an open file was all of one content.

        Raises:
            PreconditionFailedError: It has changed, and the caller had named its etag.
            TransientError: It has changed otherwise: reading it again gives the new content.
        """
        if etag_of(os.fstat(file)) != etag:
            kind = TransientError if if_match is None else PreconditionFailedError
            raise spot.error(kind, "it was rewritten while it was read")

    def head(self, spot: Spot) -> ObjectInfo:
        """Return what is known of a file."""
        with self.folder(spot.folder) as folder:
            status = os.stat(spot.name, dir_fd=folder, follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode):
                raise spot.error(NotFoundError, "what is there is not a file")
            known = sidecar.read(folder, spot.name, etag_of(status))
        file = reference(spot.key, status)
        return ObjectInfo(file, content_type=known.content_type, metadata=known.metadata)

    def read(self, spot: Spot, if_match: str | None) -> Body:
        """Return a file's whole content."""
        with io.FileIO(self.open_file(spot)) as file:
            etag = self.etag(spot, file.fileno(), if_match)
            data = file.readall()
            self.check_unchanged(spot, file.fileno(), etag, if_match)
        return Body(data, etag)

    def _open_root(self) -> int:
        try:
            if self._resolved is None:
                self._resolved = self._root.resolve(strict=True)
            return os.open(self._resolved, _FOLDER)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ConfigurationError(
                f"store {str(self._root)!r}: {error.strerror}; accepted is an existing directory"
            ) from error


def _enter(above: int, name: bytes, *, create: bool) -> int:
    if create:
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=above)
            os.fsync(above)
    try:
        return os.open(name, _FOLDER, dir_fd=above)
    except OSError as error:
        if error.errno != errno.ELOOP:  # what some systems say of a symbolic link, others ENOTDIR
            raise
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from error


def status_of(folder: int, name: bytes) -> os.stat_result | None:
    """Return the status of what has that name in a folder, itself where it is a link."""
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
