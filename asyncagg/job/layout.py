"""Which key is what: where run files and all that is made of them stand."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum, auto
from hashlib import sha256

from asyncagg.errors import UsageError
from asyncagg.ingest.parsing import is_run_file
from asyncagg.model import RunFile, Window
from asyncagg.settings import Settings
from asyncagg.windows import parse_window

__all__ = ("KeyKind", "Layout")

_LONGEST_KEY = 1024
"""Bytes of a key that S3 takes, in UTF-8."""

_LONGEST_NAME = 255
"""Bytes of a name that file systems take."""

_DIGEST = 16
"""Letters of a digest that tells keys apart."""

_PUT_BACK = ".putback-"
"""What marks the key of a file that was put back from quarantine; a digest follows."""

_AGGREGATE_NAME = re.compile(r"\d{8}t\d{4}Z\.json", re.ASCII)


class KeyKind(Enum):
    """What a key below the inbox names."""

    RUN_FILE = auto()
    IGNORED = auto()
    """Neither ours nor a run file: a folder marker, another kind of file."""
    OURS = auto()
    """An aggregate, an archived file or the like, where their prefixes nest in the inbox."""


class Layout:
    """The prefixes, and the keys that follow from them.

    Args:
        settings: The prefixes; checked already to be told apart.
    """

    def __init__(self, settings: Settings) -> None:
        self.runs_prefix = settings.runs_prefix
        self.aggregate_prefix = settings.aggregate_prefix
        self.rollup_prefix = settings.rollup_prefix
        self.work_prefix = settings.work_prefix
        self.archive_prefix = settings.archive_prefix
        self.quarantine_prefix = settings.quarantine_prefix
        self._shared_inbox = settings.aggregate_prefix == settings.runs_prefix
        self._nested = tuple(
            prefix
            for prefix in (
                settings.aggregate_prefix,
                settings.archive_prefix,
                settings.quarantine_prefix,
                settings.rollup_prefix,
                settings.work_prefix,
            )
            if prefix.startswith(settings.runs_prefix) and prefix != settings.runs_prefix
        )

    def kind(self, key: str) -> KeyKind:
        """Say what a key below the inbox is."""
        if self._nested and key.startswith(self._nested):
            return KeyKind.OURS
        if not is_run_file(key):
            return KeyKind.IGNORED
        if self._shared_inbox and _AGGREGATE_NAME.fullmatch(key, len(self.runs_prefix)):
            return KeyKind.OURS
        return KeyKind.RUN_FILE

    def aggregate_key(self, window: Window) -> str:
        """Return the key of a window's aggregate."""
        return f"{self.aggregate_prefix}{window.name}.json"

    def aggregate_window(self, key: str, minutes: int) -> Window | None:
        """Return the window whose aggregate has this key, or None if it is no aggregate's."""
        if not _AGGREGATE_NAME.fullmatch(key, len(self.aggregate_prefix)):
            return None
        return _window(key[len(self.aggregate_prefix) : -len(".json")], minutes)

    def misnamed_aggregate(self, key: str, minutes: int) -> bool:
        """Say whether a key is like an aggregate's, but no window of this length ends then."""
        alike = _AGGREGATE_NAME.fullmatch(key, len(self.aggregate_prefix))
        return alike is not None and self.aggregate_window(key, minutes) is None

    def partial_key(self, window: Window, name: str) -> str:
        """Return where a partial aggregate of a window stands while a backfill runs."""
        return f"{self.work_folder(window)}{name}.json"

    def work_folder(self, window: Window) -> str:
        """Return what the keys of a window's partial aggregates start with."""
        return f"{self.work_prefix}{window.name}/"

    def work_window(self, key: str, minutes: int) -> Window | None:
        """Return the window whose partial aggregate has this key, or None if it is none."""
        return _window(key.removeprefix(self.work_prefix).partition("/")[0], minutes)

    def archive_key(self, key: str) -> str:
        """Return where a run file goes once it is counted."""
        return _fitted(self.archive_prefix + key.removeprefix(self.runs_prefix))

    def quarantine_key(self, key: str) -> str:
        """Return where a file goes that can never be counted."""
        return _fitted(self.quarantine_prefix + key.removeprefix(self.runs_prefix))

    def arrival_key(self, file: RunFile, place_of: Callable[[str], str]) -> str | None:
        """Return the key under which a file arrived that stands in the archive or in quarantine.

        Args:
            file: It, as it stands there, under the etag that it arrived with.
            place_of: `archive_key` or `quarantine_key`.

        Returns:
            The key, or None where it may have been cut.
        """
        if len(file.key.encode()) > _LONGEST_KEY - 4:  # so long is what was cut, between characters
            return None
        plain = self.runs_prefix + file.key.removeprefix(place_of(self.runs_prefix))
        folder, slash, name = plain.rpartition("/")
        stem, suffix, ending = name.rpartition(f".{file.etag[:16]}")
        arrived = f"{folder}{slash}{stem}{ending}"
        if suffix and self.conflict_key(place_of(arrived), file.etag) == file.key:
            return arrived
        return plain

    def inbox_key(self, key: str) -> str:
        """Return the key in the inbox that a key in quarantine stands for."""
        return self.runs_prefix + key.removeprefix(self.quarantine_prefix)

    def put_back_key(self, file: RunFile) -> str:
        """Return the key in the inbox under which a file in quarantine comes back.

        It follows from the key there and the etag, and no other file has it.
        """
        digest = sha256(f"{file.key}\0{file.etag}".encode()).hexdigest()[:_DIGEST]
        start, ending = self._put_back(file.key)
        return f"{start}{digest}{ending}"

    def put_back_keys(self, moved_to: str) -> tuple[str, ...]:
        """Return what the keys start with of a file that was put back from this key in quarantine.

        The rest follows from its content by then: nobody else knows it. It is in the inbox, in the
        archive, or refused again.
        """
        start, _ = self._put_back(moved_to)
        moved = start.removeprefix(self.runs_prefix)
        most = _LONGEST_KEY - _DIGEST - len("..json.gz")  # as much is left of one that is cut
        return (
            start,
            _cut(self.archive_prefix + moved, most),
            _cut(self.quarantine_prefix + moved, most),
        )

    def _put_back(self, key: str) -> tuple[str, str]:
        """Return what stands before and after the digest in the key of a file that comes back."""
        folder, slash, name = self.inbox_key(key).rpartition("/")
        stem, dot, ending = name.partition(".json")
        stem = stem.partition(_PUT_BACK)[0]  # it came back before, and was refused again
        more = len(_PUT_BACK) + _DIGEST + len(f"{dot}{ending}".encode())
        start = f"{folder}{slash}{_cut(stem, _LONGEST_NAME - more)}"
        return f"{_cut(start, _LONGEST_KEY - more)}{_PUT_BACK}", f"{dot}{ending}"

    @staticmethod
    def was_put_back(key: str) -> bool:
        """Say whether a key in the inbox is that of a file that came back from quarantine."""
        return _PUT_BACK in key

    @staticmethod
    def conflict_key(key: str, etag: str) -> str:
        """Return the key to take where ``key`` is taken by other content: a suffix of its own."""
        folder, slash, name = key.rpartition("/")
        stem, dot, ending = name.partition(".json")
        suffix = f".{etag[:16]}{dot}{ending}"
        stem = _cut(stem, _LONGEST_NAME - len(suffix.encode()))
        return _fitted(f"{folder}{slash}{stem}{suffix}")


def _fitted(key: str) -> str:
    """Return a key that S3 takes: one that is too long is cut, and told apart by a digest."""
    if len(key) <= _LONGEST_KEY // 4 or len(key.encode()) <= _LONGEST_KEY:
        return key
    ending = ".json.gz" if key.endswith(".gz") else ".json"
    suffix = f".{sha256(key.encode()).hexdigest()[:16]}{ending}"
    return _cut(key, _LONGEST_KEY - len(suffix)) + suffix


def _cut(text: str, size: int) -> str:
    """Return as much of a text as fits into ``size`` bytes of UTF-8."""
    return text.encode()[:size].decode("utf-8", "ignore")


def _window(name: str, minutes: int) -> Window | None:
    try:
        return parse_window(name, minutes)
    except UsageError:
        return None
