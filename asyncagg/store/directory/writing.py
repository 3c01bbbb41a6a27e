"""Atomic, durable writes: a hidden temporary file, synced to disk, then renamed into place."""

from __future__ import annotations

import errno
import io
import os
import stat
import time
from collections.abc import Mapping
from contextlib import suppress

from asyncagg.errors import AsyncaggError, ConfigurationError, PreconditionFailedError, StoreError
from asyncagg.store.directory import sidecar
from asyncagg.store.directory.paths import KeyPath, etag_of, temp_name
from asyncagg.store.directory.sidecar import Sidecar
from asyncagg.store.directory.tree import Tree, find
from asyncagg.store.protocol import Absent, Condition, Matches

_CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_COPY_BLOCK = 256 * 1024
_COARSEST_TICK = 2_000_000_000
"""Nanoseconds: FAT keeps times to two seconds."""

NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})
"""The error numbers of a file system without hard links."""


def create_temp(tree: Tree, path: KeyPath, temp: bytes) -> io.BufferedWriter:
    """Create the temporary file ``temp`` in the folder of a path, and open it for writing."""
    with tree.open_target_folder(path) as folder:
        return io.BufferedWriter(
            io.FileIO(os.open(temp, _CREATE_FLAGS, 0o666, dir_fd=folder), "r+")
        )


def discard_temp(
    tree: Tree, path: KeyPath, temp: bytes, file: io.BufferedWriter | None = None
) -> None:
    """Close and remove a temporary file after a failure; never raises one of its own."""
    with suppress(OSError):
        if file is not None:
            file.close()
    with suppress(OSError, AsyncaggError), tree.open_folder(path.parents) as folder:
        os.unlink(temp, dir_fd=folder)


def publish(
    tree: Tree,
    path: KeyPath,
    temp: bytes,
    file: io.BufferedWriter,
    content: Sidecar,
    *,
    condition: Condition | None,
) -> str:
    """Rename a temporary file into place in one atomic step, durably, and return its etag."""
    with file, tree.open_folder(path.parents) as folder:
        file.flush()
        os.fsync(file.fileno())
        with tree.lock():
            replaced = _check_condition(path, folder, condition)
            etag = _set_time(file.fileno(), replaced)
            _rename(path, folder, temp, etag, content, condition=condition, replaced=replaced)
        os.fsync(folder)
    return etag


def copy(
    tree: Tree,
    source: KeyPath,
    target: KeyPath,
    *,
    if_match: str,
    condition: Absent | None,
    metadata: Mapping[str, str] | None,
) -> None:
    """Copy a file with its modification time, so that the copy has its etag.

    The bytes are copied. A hard link would be cheaper, but its two names would share one content: a
    producer that rewrites the file in place would also rewrite the archived one.
    """
    found = tree.head(source)
    content = Sidecar(found.content_type, found.metadata if metadata is None else metadata)
    original, _ = tree.open_file(source, if_match)
    temp = temp_name()
    with original, tree.open_target_folder(target) as folder:
        try:
            with io.FileIO(os.open(temp, _CREATE_FLAGS, 0o600, dir_fd=folder), "r+") as copied:
                _copy_content(source, original, copied, if_match)
            with tree.lock():
                replaced = _check_condition(target, folder, condition)
                _rename(
                    target, folder, temp, if_match, content, condition=condition, replaced=replaced
                )
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temp, dir_fd=folder)
        os.fsync(folder)


def _check_condition(
    path: KeyPath, folder: int, condition: Condition | None
) -> os.stat_result | None:
    """Check the condition of a write, as S3 does; return the status of the file to replace."""
    present = find(folder, path.name)
    if present is None:
        if isinstance(condition, Matches):
            detail = f"no such file, expected one with etag {condition.etag!r}"
            raise path.error(PreconditionFailedError, detail)
        return None
    if not stat.S_ISREG(present.st_mode):
        raise path.error(StoreError, "it is not a regular file, and is not replaced")
    if isinstance(condition, Absent):
        raise path.error(PreconditionFailedError, "the key already exists")
    if isinstance(condition, Matches) and etag_of(present) != condition.etag:
        raise path.etag_mismatch(etag_of(present), condition.etag)
    return present


def _set_time(file: int, replaced: os.stat_result | None) -> str:
    """Set a file's time to now, or later if needed for a new etag; return the etag."""
    now = time.time_ns()
    last = 0 if replaced is None else replaced.st_mtime_ns
    os.utime(file, ns=(now, max(now, last + 1)))
    if replaced is not None and etag_of(os.fstat(file)) == etag_of(replaced):
        os.utime(file, ns=(now, last + _COARSEST_TICK))
    return etag_of(os.fstat(file))


def _copy_content(source: KeyPath, original: io.FileIO, copied: io.FileIO, if_match: str) -> None:
    with io.BufferedWriter(copied) as writer:
        while block := original.read(_COPY_BLOCK):
            writer.write(block)
        writer.flush()
        status = os.fstat(original.fileno())
        if etag_of(status) != if_match:
            raise source.etag_mismatch(etag_of(status), if_match)
        os.fchmod(copied.fileno(), stat.S_IMODE(status.st_mode) & 0o777)
        os.utime(copied.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
        if etag_of(os.fstat(copied.fileno())) != if_match:
            detail = "the file system of the target rounds times, so the copy has another etag"
            raise source.error(ConfigurationError, detail)
        os.fsync(copied.fileno())


def _rename(
    path: KeyPath,
    folder: int,
    temp: bytes,
    etag: str,
    content: Sidecar,
    *,
    condition: Condition | None,
    replaced: os.stat_result | None,
) -> None:
    """Rename a temporary file into place. The caller holds the lock and has checked the condition.

    The sidecar is written first: a crash in between leaves one that no file refers to.
    """
    sidecar.write(folder, path.name, etag, content)
    if isinstance(condition, Absent):
        _link(folder, temp, path.name)
    else:
        os.rename(temp, path.name, src_dir_fd=folder, dst_dir_fd=folder)
    if replaced is not None and etag_of(replaced) != etag:
        sidecar.remove(folder, path.name, etag_of(replaced))


def _link(folder: int, temp: bytes, name: bytes) -> None:
    try:
        os.link(temp, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        # The name was free when the condition was checked, and the lock excludes other stores.
        os.rename(temp, name, src_dir_fd=folder, dst_dir_fd=folder)
    else:
        os.unlink(temp, dir_fd=folder)
