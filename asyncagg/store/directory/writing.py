"""Writing files below a root: a draft with a hidden name, made durable, then shown in one step."""

from __future__ import annotations

import errno
import io
import os
import stat
import time
from collections.abc import Mapping
from contextlib import suppress

from asyncagg.errors import (
    ConfigurationError,
    PreconditionFailedError,
    StoreError,
)
from asyncagg.store.directory import sidecar
from asyncagg.store.directory.paths import Spot, draft_name, etag_of
from asyncagg.store.directory.sidecar import Sidecar
from asyncagg.store.directory.tree import Tree, status_of
from asyncagg.store.protocol import Absent, Condition, Matches

__all__ = ("NO_LINKS", "copy", "create_draft", "discard", "publish")

_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_COPY_BLOCK = 256 * 1024
_COARSEST_TICK = 2_000_000_000
"""Nanoseconds: FAT keeps times to two seconds."""

NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})
"""What a file system says that has no hard links."""


def create_draft(tree: Tree, spot: Spot, draft: bytes) -> int:
    """Make a hidden file where the key is to be written, and return its descriptor."""
    with tree.target_folder(spot) as folder:
        return os.open(draft, _CREATE, 0o666, dir_fd=folder)


def discard(tree: Tree, spot: Spot, draft: bytes) -> None:
    """Remove a hidden file that is not wanted any more, if it is there."""
    with suppress(FileNotFoundError, NotADirectoryError), tree.folder(spot.folder) as folder:
        os.unlink(draft, dir_fd=folder)


def publish(
    tree: Tree,
    spot: Spot,
    draft: bytes,
    known: Sidecar,
    condition: Condition | None,
) -> str:
    """Show a draft under its key in one atomic step, durably, and return its etag."""
    with tree.folder(spot.folder) as folder:
        file = os.open(draft, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
        try:
            os.fsync(file)
            with tree.lock():
                present = _admit(spot, folder, condition)
                etag = _stamp(file, present)
                _show(spot, folder, draft, etag, known, condition=condition, present=present)
        finally:
            os.close(file)
        os.fsync(folder)
    return etag


def copy(
    tree: Tree,
    source: Spot,
    target: Spot,
    *,
    if_match: str,
    condition: Absent | None,
    metadata: Mapping[str, str] | None,
) -> None:
    """Copy a file together with its time, and with that its etag.

    It is a real copy. A hard link would move no bytes, but its two names would be one file: a
    producer that rewrites the file in place would rewrite what was counted and archived.
    """
    known = tree.head(source)
    kept = Sidecar(known.content_type, known.metadata if metadata is None else metadata)
    draft = draft_name()
    with (
        io.FileIO(tree.open_file(source)) as original,
        tree.target_folder(target) as folder,
    ):
        tree.etag(source, original.fileno(), if_match)
        try:
            with io.FileIO(os.open(draft, _CREATE, 0o600, dir_fd=folder), "r+") as copied:
                _copy_content(source, original, copied, if_match)
            with tree.lock():
                present = _admit(target, folder, condition)
                _show(target, folder, draft, if_match, kept, condition=condition, present=present)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(draft, dir_fd=folder)
        os.fsync(folder)


def _admit(spot: Spot, folder: int, condition: Condition | None) -> os.stat_result | None:
    """Check the conditions of a write, as S3 does; return the status of what it will replace."""
    present = status_of(folder, spot.name)
    if present is None:
        if isinstance(condition, Matches):
            raise spot.error(
                PreconditionFailedError, f"no file, expected one with etag {condition.etag!r}"
            )
        return None
    if not stat.S_ISREG(present.st_mode):
        raise spot.error(StoreError, "what is there is not a file, and is not replaced")
    if isinstance(condition, Absent):
        raise spot.error(PreconditionFailedError, "the key is taken")
    if isinstance(condition, Matches) and etag_of(present) != condition.etag:
        raise spot.changed(etag_of(present), condition.etag)
    return present


def _stamp(file: int, present: os.stat_result | None) -> str:
    """Give a draft the time of this moment, and one that its predecessor did not have."""
    now = time.time_ns()
    last = 0 if present is None else present.st_mtime_ns
    os.utime(file, ns=(now, max(now, last + 1)))
    if present is not None and etag_of(os.fstat(file)) == etag_of(present):
        os.utime(file, ns=(now, last + _COARSEST_TICK))
    return etag_of(os.fstat(file))


def _copy_content(source: Spot, original: io.FileIO, copied: io.FileIO, if_match: str) -> None:
    with io.BufferedWriter(copied) as writer:
        while block := original.read(_COPY_BLOCK):
            writer.write(block)
        writer.flush()
        status = os.fstat(original.fileno())
        if etag_of(status) != if_match:
            raise source.changed(etag_of(status), if_match)
        os.fchmod(copied.fileno(), stat.S_IMODE(status.st_mode) & 0o777)
        os.utime(copied.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
        if etag_of(os.fstat(copied.fileno())) != if_match:
            why = "the file system of the target keeps times too coarsely for a copy to be known by"
            raise source.error(ConfigurationError, why)
        os.fsync(copied.fileno())


def _show(
    spot: Spot,
    folder: int,
    draft: bytes,
    etag: str,
    known: Sidecar,
    *,
    condition: Condition | None,
    present: os.stat_result | None,
) -> None:
    """Give a draft its name. To be called under the lock, after `_admit`."""
    sidecar.write(folder, spot.name, etag, known)
    if isinstance(condition, Absent):
        _link(folder, draft, spot.name)
    else:
        os.rename(draft, spot.name, src_dir_fd=folder, dst_dir_fd=folder)
    if present is not None and etag_of(present) != etag:
        sidecar.remove(folder, spot.name, etag_of(present))


def _link(folder: int, draft: bytes, name: bytes) -> None:
    try:
        os.link(draft, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        # `_admit` saw the name free, and the lock keeps other stores from taking it since.
        os.rename(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
    else:
        os.unlink(draft, dir_fd=folder)
