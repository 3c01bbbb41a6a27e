"""Lists files in the order of their whole keys, in bounded memory."""

from __future__ import annotations

import heapq
import logging
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice

from asyncagg.model import RunFile
from asyncagg.store.directory.paths import KeyPath, is_hidden, reference
from asyncagg.store.directory.removal import restore
from asyncagg.store.directory.tree import Tree, find

_log = logging.getLogger(__name__)

_MAX_SCANNED = 100_000
"""The most names of one folder in memory; a larger folder is scanned several times."""
_STATUS_BATCH = 1000


@dataclass(frozen=True, slots=True)
class _KeyRange:
    """The keys to list. Paths are keys as bytes; those of folders end in ``/``."""

    prefix: bytes
    start_after: bytes

    def overlaps(self, path: bytes) -> bool:
        if path.endswith(b"/"):
            related = path.startswith(self.prefix) or self.prefix.startswith(path)
            return related and path >= self.start_after[: len(path)]
        return path.startswith(self.prefix) and path > self.start_after


def walk(tree: Tree, prefix: KeyPath, start_after: str) -> Iterator[RunFile]:
    """Yield the files whose key starts with a prefix and is after another one, in key order.

    It blocks. No descriptor is open while it is suspended.
    """
    keys = _KeyRange(prefix.key.encode(), start_after.encode(errors="surrogatepass"))
    yield from _walk(tree, b"".join(name + b"/" for name in prefix.parents), keys)


def _walk(tree: Tree, base: bytes, keys: _KeyRange) -> Iterator[RunFile]:
    restore(tree, _names(base))
    for labels in _scans(tree, base, keys):
        for is_folder, group in groupby(labels, key=lambda label: label.endswith(b"/")):
            if is_folder:
                for label in group:
                    yield from _walk(tree, base + label, keys)
            else:
                while batch := list(islice(group, _STATUS_BATCH)):
                    yield from _references(tree, base, batch)


def _scans(tree: Tree, base: bytes, keys: _KeyRange) -> Iterator[list[bytes]]:
    """Yield the entries of a folder, in order, as labels: names, with a ``/`` after a folder's.

    Labels sort as whole keys do: ``a-b``, ``a.json``, then everything in the folder ``a/``.
    """
    last = b""
    while True:
        labels = _next_labels(tree, base, keys, last)
        yield labels
        if len(labels) < _MAX_SCANNED:
            return
        last = labels[-1]


def _next_labels(tree: Tree, base: bytes, keys: _KeyRange, last: bytes) -> list[bytes]:
    try:
        with tree.open_folder(_names(base)) as folder, os.scandir(folder) as entries:
            labels = _labels(entries)
            wanted = (each for each in labels if each > last and keys.overlaps(base + each))
            return heapq.nsmallest(_MAX_SCANNED, wanted)
    except (FileNotFoundError, NotADirectoryError):
        return []  # it does not exist (any more), or is a symbolic link


def _labels(entries: Iterable[os.DirEntry[str]]) -> Iterator[bytes]:
    for entry in entries:
        name = os.fsencode(entry.name)
        if is_hidden(name):
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
        _log.warning("not listing a name that is not UTF-8: %r", name)
        return False
    return True


def _references(tree: Tree, base: bytes, names: list[bytes]) -> list[RunFile]:
    """Return the references of those files of a folder that still exist."""
    try:
        with tree.open_folder(_names(base)) as folder:
            found = [(name, find(folder, name)) for name in names]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [
        reference((base + name).decode(), status)
        for name, status in found
        if status is not None and stat.S_ISREG(status.st_mode)
    ]


def _names(base: bytes) -> list[bytes]:
    return base.split(b"/")[:-1]
