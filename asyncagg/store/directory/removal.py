"""Deleting files that a producer, who knows nothing of our lock, may be replacing right now.

No system call unlinks a file only if it is a certain one. So it is first renamed into a hidden
folder beside it, where no producer writes, looked at there, and then removed or put back. What a
crash leaves in that folder is put back by the next listing or delete.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby

from asyncagg.errors import AsyncaggError, StoreError
from asyncagg.store.directory import sidecar
from asyncagg.store.directory.paths import ASIDE, Spot, etag_of
from asyncagg.store.directory.tree import Tree, status_of
from asyncagg.store.directory.writing import NO_LINKS

__all__ = ("remove", "restore")

_log = logging.getLogger(__name__)
_ASIDE_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def remove(tree: Tree, wanted: Sequence[tuple[Spot, str]]) -> dict[str, StoreError]:
    """Delete files, each only if it has its etag; return the failures by key.

    Args:
        tree: Where they are.
        wanted: The files and their etags.
    """
    failures: dict[str, StoreError] = {}
    ordered = sorted(wanted, key=lambda pair: pair[0].folder)
    for names, group in groupby(ordered, key=lambda pair: pair[0].folder):
        pairs = list(group)
        try:
            with _aside(tree, names) as (folder, aside):
                for spot, etag in pairs:
                    _note(failures, spot, _remove(folder, aside, spot, etag))
        except (FileNotFoundError, NotADirectoryError):
            continue  # the whole folder is gone, and the files with it
        except OSError as error:
            for spot, _ in pairs:
                _note(failures, spot, spot.failure(error))
    return failures


def restore(tree: Tree, names: Sequence[bytes]) -> None:
    """Put back what a crash in the middle of a delete left aside in a folder.

    Args:
        tree: Where the folder is.
        names: The folder's names from the root down.
    """
    try:
        with tree.folder(names) as folder:
            if status_of(folder, ASIDE) is None:
                return
        with _aside(tree, names):
            pass
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        # Whoever may only read, or finds the disk full, can still list the rest.
        _log.warning("files left aside by a crash are not put back: %s", error)


@contextmanager
def _aside(tree: Tree, names: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Hold the lock, a folder, and its emptied hidden folder, which is gone afterwards."""
    with tree.lock(), tree.folder(names) as folder:
        with suppress(FileExistsError):
            os.mkdir(ASIDE, dir_fd=folder)
        aside = os.open(ASIDE, _ASIDE_FLAGS, dir_fd=folder)
        try:
            with os.scandir(aside) as entries:
                left = [os.fsencode(entry.name) for entry in entries]
            for name in left:
                _put_back(folder, aside, name)
            yield folder, aside
        finally:
            os.close(aside)
            with suppress(OSError):  # what could not be put back is not lost
                os.rmdir(ASIDE, dir_fd=folder)


def _remove(folder: int, aside: int, spot: Spot, etag: str) -> AsyncaggError | None:
    present = status_of(folder, spot.name)
    if present is None or not stat.S_ISREG(present.st_mode):
        return None
    if etag_of(present) != etag:
        return spot.changed(etag_of(present), etag)
    try:
        os.rename(spot.name, spot.name, src_dir_fd=folder, dst_dir_fd=aside)
        moved = os.stat(spot.name, dir_fd=aside, follow_symlinks=False)
        if etag_of(moved) != etag:
            _put_back(folder, aside, spot.name)
            return spot.changed(etag_of(moved), etag)
        os.unlink(spot.name, dir_fd=aside)
        sidecar.remove(folder, spot.name, etag)
    except FileNotFoundError:
        return None  # another runner was faster
    except OSError as error:
        return spot.failure(error)
    return None


def _put_back(folder: int, aside: int, name: bytes) -> None:
    try:
        os.link(name, name, src_dir_fd=aside, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        pass  # its producer has written it once more: that is the file now
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if status_of(folder, name) is None:
            os.rename(name, name, src_dir_fd=aside, dst_dir_fd=folder)
            return
    os.unlink(name, dir_fd=aside)


def _note(failures: dict[str, StoreError], spot: Spot, failure: AsyncaggError | None) -> None:
    if isinstance(failure, StoreError):
        failures[spot.key] = failure
    elif failure is not None:
        raise failure
