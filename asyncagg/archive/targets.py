"""Where extracted files go: a folder, or the inbox."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Protocol

from anyio import CapacityLimiter, to_thread

from asyncagg.errors import NO_SPACE, ConfigurationError, PreconditionFailedError
from asyncagg.job.context import JobContext
from asyncagg.model import RunFile
from asyncagg.packs.format import safe_name, tagged_name
from asyncagg.store import Absent

_OF_THE_FOLDER = NO_SPACE | {errno.EROFS}
"""Errors that every other file would have, too."""


class RefusedError(Exception):
    """A file is not extracted; the message says why."""


class Target(Protocol):
    """Takes the content of files."""

    async def write(self, file: RunFile, data: bytes) -> str:
        """Write a file, unless it is there; return where it is.

        Raises:
            RefusedError: Other content is there, or the place cannot be written.
            ConfigurationError: No file can be written: the disk is full or read-only.
            StoreError: The store failed.
        """
        ...


class Folder:
    """A local folder: files keep their names below the inbox, made safe.

    A file whose name is taken by other content gets a digest of its key and etag.

    Args:
        root: The folder; it is made if needed.
        runs_prefix: The inbox.
    """

    def __init__(self, root: Path, runs_prefix: str) -> None:
        self._root = root
        self._runs_prefix = runs_prefix
        self._limiter = CapacityLimiter(1)  # a name is looked for and taken by one thread

    async def write(self, file: RunFile, data: bytes) -> str:
        """Write a file; see `Target`."""
        return await to_thread.run_sync(self._write, file, data, limiter=self._limiter)

    def _write(self, file: RunFile, data: bytes) -> str:
        key = file.key.removeprefix(self._runs_prefix)
        tagged = tagged_name(key, f"{file.key}\0{file.etag}")
        try:
            root = self._root.resolve()
            for name in (safe_name(key) or tagged, tagged):
                path = root / name
                if _is_written(root, path, data, file.last_modified.timestamp()):
                    return str(path)
        except OSError as error:
            if error.errno in _OF_THE_FOLDER:
                raise ConfigurationError(
                    f"{str(self._root)!r}: {error.strerror}; expected a folder with free space "
                    "that this user may write to; run it again to continue"
                ) from error
            raise RefusedError(f"cannot write {error.filename!r}: {error.strerror}") from error
        raise RefusedError(f"{str(path)!r} exists with other content")


class Inbox:
    """The inbox: files get their own keys, and nothing is overwritten."""

    def __init__(self, context: JobContext) -> None:
        self._store = context.store

    async def write(self, file: RunFile, data: bytes) -> str:
        """Write a file; see `Target`."""
        try:
            await self._store.put(file.key, data, condition=Absent())
        except PreconditionFailedError:
            found = await self._store.get(file.key)
            if found.data != data:
                raise RefusedError(f"{file.key!r} exists with other content") from None
        return file.key


def _is_written(root: Path, path: Path, data: bytes, modified: float) -> bool:
    if not path.parent.resolve().is_relative_to(root):
        raise RefusedError(f"{str(path.parent)!r} is a link that leads out of the folder")
    if path.exists() or path.is_symlink():
        return path.is_file() and not path.is_symlink() and path.read_bytes() == data
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = root / ".asyncagg-partial"
    partial.unlink(missing_ok=True)
    try:
        with partial.open("xb") as written:
            written.write(data)
        os.utime(partial, (modified, modified))
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    return True
