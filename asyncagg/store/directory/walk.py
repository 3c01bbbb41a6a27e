"""Listing files in the order of their whole keys, in bounded memory."""

from __future__ import annotations

import heapq
import logging
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice

from asyncagg.model import RunFile
from asyncagg.store.directory.paths import Spot, is_work, reference
from asyncagg.store.directory.removal import restore
from asyncagg.store.directory.tree import Tree, status_of

__all__ = ("walk",)

_log = logging.getLogger(__name__)

_SCANNED = 100_000
"""The most names of one folder held at a time; a folder with more is scanned again for the rest."""
_STATUS_BATCH = 1000


@dataclass(frozen=True, slots=True)
class _Scope:
    """Which keys are wanted. Paths are keys as bytes; those of folders end in ``/``."""

    prefix: bytes
    start_after: bytes

    def touches(self, path: bytes) -> bool:
        if path.endswith(b"/"):
            related = path.startswith(self.prefix) or self.prefix.startswith(path)
            return related and path >= self.start_after[: len(path)]
        return path.startswith(self.prefix) and path > self.start_after


def walk(tree: Tree, start: Spot, start_after: str) -> Iterator[RunFile]:
    """Yield the files whose key starts with the prefix ``start``, in key order.

    It blocks. No descriptor is open while it waits for its next turn.

    Args:
        tree: Where they are.
        start: The prefix.
        start_after: Only keys behind this one.
    """
    scope = _Scope(start.key.encode(), start_after.encode(errors="surrogatepass"))
    yield from _walk(tree, b"".join(name + b"/" for name in start.folder), scope)


def _walk(tree: Tree, base: bytes, scope: _Scope) -> Iterator[RunFile]:
    restore(tree, _names(base))
    for labels in _scans(tree, base, scope):
        for is_folder, group in groupby(labels, key=lambda label: label.endswith(b"/")):
            if is_folder:
                for label in group:
                    yield from _walk(tree, base + label, scope)
            else:
                while batch := list(islice(group, _STATUS_BATCH)):
                    yield from _references(tree, base, batch)


def _scans(tree: Tree, base: bytes, scope: _Scope) -> Iterator[list[bytes]]:
    """Yield what a folder holds, in order, as labels: names, of folders with a ``/`` behind.

    Labels sort as the whole keys do: ``a-b``, ``a.json``, then all that is in the folder ``a/``.
    """
    last = b""
    while True:
        labels = _smallest(tree, base, scope, last)
        yield labels
        if len(labels) < _SCANNED:
            return
        last = labels[-1]


def _smallest(tree: Tree, base: bytes, scope: _Scope, last: bytes) -> list[bytes]:
    try:
        with tree.folder(_names(base)) as folder, os.scandir(folder) as entries:
            labels = _labels(entries)
            wanted = (each for each in labels if each > last and scope.touches(base + each))
            return heapq.nsmallest(_SCANNED, wanted)
    except (FileNotFoundError, NotADirectoryError):
        return []  # it is not there (any more), or a symbolic link


def _labels(entries: Iterable[os.DirEntry[str]]) -> Iterator[bytes]:
    for entry in entries:
        name = os.fsencode(entry.name)
        if is_work(name):
            continue
        if entry.is_dir(follow_symlinks=False):
            label = name + b"/"
        elif entry.is_file(follow_symlinks=False):
            label = name
        else:
            continue
        if _is_utf8(name):
            yield label


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        _log.warning("a name that is not UTF-8 is left out of the listing: %r", name)
        return False
    return True


def _references(tree: Tree, base: bytes, names: list[bytes]) -> list[RunFile]:
    """Return the references of those files of a folder that are still there."""
    try:
        with tree.folder(_names(base)) as folder:
            found = [(name, status_of(folder, name)) for name in names]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [
        reference((base + name).decode(), status)
        for name, status in found
        if status is not None and stat.S_ISREG(status.st_mode)
    ]


def _names(base: bytes) -> list[bytes]:
    return base.split(b"/")[:-1]
