"""Conditional deletes, safe against producers that replace files without taking the store's lock.

No system call unlinks a file only if it is unchanged. So a file is first renamed into a hidden
trash folder next to it, where no producer writes. There its etag is checked again, and it is
removed or put back. The next listing or delete puts back what a crash leaves in that folder.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby

from asyncagg.errors import AsyncaggError, StoreError
from asyncagg.store.directory import sidecar
from asyncagg.store.directory.paths import TRASH_NAME, KeyPath, etag_of
from asyncagg.store.directory.tree import FOLDER_FLAGS, Tree, find
from asyncagg.store.directory.writing import NO_LINKS

_log = logging.getLogger(__name__)


def remove(tree: Tree, wanted: Sequence[tuple[KeyPath, str]]) -> dict[str, StoreError]:
    """Delete files, each only if it has the given etag; return the failures by key."""
    failures: dict[str, StoreError] = {}
    ordered = sorted(wanted, key=lambda pair: pair[0].parents)
    for parents, group in groupby(ordered, key=lambda pair: pair[0].parents):
        pairs = list(group)
        try:
            with _trash(tree, parents) as (folder, trash):
                for path, etag in pairs:
                    _record(failures, path, _remove(folder, trash, path, etag))
        except (FileNotFoundError, NotADirectoryError):
            continue  # the folder is gone, and its files with it
        except OSError as error:
            for path, _ in pairs:
                _record(failures, path, path.translate(error))
    return failures


def restore(tree: Tree, parents: Sequence[bytes]) -> None:
    """Put back the files that an interrupted delete left in a folder's trash."""
    try:
        with tree.open_folder(parents) as folder:
            if find(folder, TRASH_NAME) is None:
                return
        with _trash(tree, parents):
            pass
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        # A user without write permission, or on a full disk, can still list the other files.
        _log.warning("cannot restore the files of an interrupted delete: %s", error)


@contextmanager
def _trash(tree: Tree, parents: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Hold the lock, a folder, and its trash, which starts empty and is removed afterwards."""
    with tree.lock(), tree.open_folder(parents) as folder:
        with suppress(FileExistsError):
            os.mkdir(TRASH_NAME, dir_fd=folder)
        try:
            trash = os.open(TRASH_NAME, FOLDER_FLAGS, dir_fd=folder)
        except OSError as error:
            if error.errno not in {errno.ENOTDIR, errno.ELOOP}:
                raise
            raise tree.blocked(parents, TRASH_NAME, "a folder") from error
        try:
            with os.scandir(trash) as entries:
                leftovers = [os.fsencode(entry.name) for entry in entries]
            for name in leftovers:
                _put_back(folder, trash, name)
            yield folder, trash
        finally:
            os.close(trash)
            with suppress(OSError):  # a file that could not be put back stays in it
                os.rmdir(TRASH_NAME, dir_fd=folder)


def _remove(folder: int, trash: int, path: KeyPath, etag: str) -> AsyncaggError | None:
    present = find(folder, path.name)
    if present is None or not stat.S_ISREG(present.st_mode):
        return None
    if etag_of(present) != etag:
        return path.etag_mismatch(etag_of(present), etag)
    try:
        os.rename(path.name, path.name, src_dir_fd=folder, dst_dir_fd=trash)
        moved = os.stat(path.name, dir_fd=trash, follow_symlinks=False)
        if etag_of(moved) != etag:
            _put_back(folder, trash, path.name)
            return path.etag_mismatch(etag_of(moved), etag)
        os.unlink(path.name, dir_fd=trash)
        sidecar.remove(folder, path.name, etag)
    except FileNotFoundError:
        return None  # another runner deleted it first
    except OSError as error:
        return path.translate(error)
    return None


def _put_back(folder: int, trash: int, name: bytes) -> None:
    try:
        os.link(name, name, src_dir_fd=trash, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        pass  # its producer has written the file again: the new one stays
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if find(folder, name) is None:
            os.rename(name, name, src_dir_fd=trash, dst_dir_fd=folder)
            return
    os.unlink(name, dir_fd=trash)


def _record(failures: dict[str, StoreError], path: KeyPath, failure: AsyncaggError | None) -> None:
    if isinstance(failure, StoreError):
        failures[path.key] = failure
    elif failure is not None:
        raise failure
