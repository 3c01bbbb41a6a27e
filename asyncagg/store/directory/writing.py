"""Atomic, durable writes: a hidden temporary file, synced to disk, then renamed into place."""

from __future__ import annotations

import errno
import io
import os
import stat
import time
from collections.abc import Generator, Mapping
from contextlib import suppress

from asyncagg.errors import AsyncaggError, ConfigurationError, PreconditionFailedError, StoreError
from asyncagg.store.directory import sidecar
from asyncagg.store.directory.paths import KeyPath, etag_of, temp_name
from asyncagg.store.directory.sidecar import Sidecar
from asyncagg.store.directory.tree import Tree, find
from asyncagg.store.protocol import Absent, Condition, Matches

_CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_COPY_BLOCK = 256 * 1024
_COPY_PART = 16 * 1024 * 1024
_COARSEST_TICK = 2_000_000_000
"""Nanoseconds: FAT keeps times to two seconds."""

NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})
"""The error numbers of a file system without hard links."""

_NO_COPY_RANGE = frozenset({errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})


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
) -> Generator[None, None, None]:
    """Copy a file with its modification time, so that the copy has its etag.

    It yields after each part of a large file.

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
                yield from _copy_content(source, original, copied, if_match)
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


def _copy_content(
    source: KeyPath, original: io.FileIO, copied: io.FileIO, if_match: str
) -> Generator[None, None, None]:
    size = os.fstat(original.fileno()).st_size
    if size <= _COPY_BLOCK:
        with io.BufferedWriter(copied) as writer:
            writer.write(original.readall())
            writer.flush()
            _finish_copy(source, original.fileno(), copied.fileno(), if_match)
        return
    yield from _copy_data(original.fileno(), copied.fileno(), size)
    _finish_copy(source, original.fileno(), copied.fileno(), if_match)


def _copy_data(original: int, copied: int, size: int) -> Generator[None, None, None]:
    """Copy the parts of a file that are not holes, one by one, and sync them."""
    os.truncate(copied, size)
    end = 0
    while True:
        try:
            start = os.lseek(original, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # there is only a hole left
                return
            raise
        end = os.lseek(original, start, os.SEEK_HOLE)
        while start < end and (count := _copy_range(original, copied, start, end)):
            start += count
            os.fdatasync(copied)
            yield


def _copy_range(original: int, copied: int, start: int, end: int) -> int:
    """Copy a part of a file, in the kernel if it can; some file systems only share the blocks."""
    length = min(end - start, _COPY_PART)
    try:
        return os.copy_file_range(original, copied, length, start, start)
    except OSError as error:
        if error.errno not in _NO_COPY_RANGE:
            raise
    return os.pwrite(copied, os.pread(original, min(length, _COPY_BLOCK), start), start)


def _finish_copy(source: KeyPath, original: int, copied: int, if_match: str) -> None:
    """Check that the original is unchanged, and give the copy its mode and times."""
    status = os.fstat(original)
    if etag_of(status) != if_match:
        raise source.etag_mismatch(etag_of(status), if_match)
    os.fchmod(copied, stat.S_IMODE(status.st_mode) & 0o777)
    os.utime(copied, ns=(status.st_atime_ns, status.st_mtime_ns))
    if etag_of(os.fstat(copied)) != if_match:
        detail = "the file system of the target rounds times, so the copy has another etag"
        raise source.error(ConfigurationError, detail)
    os.fsync(copied)


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
