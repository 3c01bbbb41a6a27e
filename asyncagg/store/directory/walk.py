"""Lists files in the order of their whole keys, in bounded memory."""

from __future__ import annotations

import heapq
import logging
import os
import stat
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby, islice

from asyncagg.errors import ConfigurationError
from asyncagg.model import RunFile
from asyncagg.store.directory.paths import KeyPath, is_hidden, is_temp, is_unfinished, reference
from asyncagg.store.directory.removal import restore
from asyncagg.store.directory.tree import Tree, find

_log = logging.getLogger(__name__)

_MAX_SCANNED = 100_000
"""The most names of one folder in memory; a larger folder is scanned several times."""
_STATUS_BATCH = 1000
_MAX_EXAMPLES = 5
_STALE_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class _KeyRange:
    """The keys to list. Paths are keys as bytes; those of folders end in ``/``."""

    prefix: bytes
    start_after: bytes
    inbox: bytes | None = None

    def hides(self, path: bytes) -> bool:
        """Whether a path in the inbox has a name for files that are not complete yet."""
        unfinished = is_unfinished(path.rpartition(b"/")[2])
        return unfinished and self.inbox is not None and path.startswith(self.inbox)

    def overlaps(self, path: bytes) -> bool:
        if path.endswith(b"/"):
            related = path.startswith(self.prefix) or self.prefix.startswith(path)
            return related and path >= self.start_after[: len(path)]
        return path.startswith(self.prefix) and path > self.start_after


def walk(
    tree: Tree, prefix: KeyPath, start_after: str, *, inbox: str | None = None
) -> Iterator[RunFile]:
    """Yield the files whose key starts with a prefix and is after another one, in key order.

    It blocks. No descriptor is open while it is suspended.

    Args:
        tree: Where the files are.
        prefix: The prefix.
        start_after: The other key.
        inbox: Hidden and temporary names below this prefix are left to their writer.
    """
    keys = _KeyRange(
        prefix.key.encode(),
        start_after.encode(errors="surrogatepass"),
        None if inbox is None else inbox.encode(),
    )
    try:
        with tree.open_folder(prefix.parents):
            pass
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        detail = "one of its folders is a file or a symbolic link: expected a folder"
        raise prefix.error(ConfigurationError, detail) from error
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
            labels = _labels(folder, base, entries, keys)
            wanted = (each for each in labels if each > last and keys.overlaps(base + each))
            return heapq.nsmallest(_MAX_SCANNED, wanted)
    except (FileNotFoundError, NotADirectoryError):
        return []  # it does not exist (any more), or is a symbolic link


def _labels(
    folder: int, base: bytes, entries: Iterable[os.DirEntry[str]], keys: _KeyRange
) -> Iterator[bytes]:
    skipped = Counter[str]()
    examples: list[str] = []
    for entry in entries:
        name = os.fsencode(entry.name)
        if is_hidden(name):
            if is_temp(name):
                _remove_if_stale(folder, name)
            continue
        is_folder = entry.is_dir(follow_symlinks=False)
        reason = _reason_to_skip(entry, name, hidden=not is_folder and keys.hides(base + name))
        if not reason:
            yield name + b"/" if is_folder else name
            continue
        skipped[reason] += 1
        if len(examples) < _MAX_EXAMPLES:
            examples.append(repr(os.fsdecode(name)))
    if skipped:
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
        _log.warning(
            "not listed below %r: %s, such as %s", os.fsdecode(base), counts, ", ".join(examples)
        )


def _reason_to_skip(entry: os.DirEntry[str], name: bytes, *, hidden: bool) -> str:
    if hidden:
        return "hidden or temporary"
    if entry.is_symlink():
        return "symbolic link"
    if not (entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False)):
        return "not a file"
    try:
        name.decode()
    except UnicodeDecodeError:
        return "not UTF-8"
    return ""


def _remove_if_stale(folder: int, name: bytes) -> None:
    """Remove a temporary file that a killed process left; others are written all the time."""
    status = find(folder, name)
    if status is not None and status.st_ctime < time.time() - _STALE_SECONDS:
        with suppress(OSError):
            os.unlink(name, dir_fd=folder)


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
