"""The keys of run files, and of everything made from them."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum, auto
from hashlib import sha256

from asyncagg.errors import UsageError
from asyncagg.ingest.parsing import is_run_file
from asyncagg.model import RunFile, Window
from asyncagg.settings import Settings
from asyncagg.windows import RESTORED, parse_window

_MAX_KEY_BYTES = 1024
"""The longest key that S3 accepts, in bytes of UTF-8."""

_MAX_NAME_BYTES = 255
"""The longest file name that file systems accept, in bytes of UTF-8."""

_DIGEST_LENGTH = 16

PACKS = "packs/"
"""The folder of packs in the archive."""

_WINDOW_LENGTH = len("20251021t1400Z-")

_JSON = re.compile(r"\.json", re.IGNORECASE)

_AGGREGATE_NAME = re.compile(r"\d{8}t\d{4}Z\.json", re.ASCII)


class KeyKind(Enum):
    """What a key below the inbox is."""

    RUN_FILE = auto()
    IGNORED = auto()
    """A folder marker, or a file of another type."""
    INTERNAL = auto()
    """An aggregate, an archived file or similar, if its prefix is inside the inbox prefix."""


class Layout:
    """The prefixes, and the keys that follow from them.

    Args:
        settings: The prefixes, which do not overlap, and the window.
    """

    def __init__(self, settings: Settings) -> None:
        self.runs_prefix = settings.runs_prefix
        self.aggregate_prefix = settings.aggregate_prefix
        self.rollup_prefix = settings.rollup_prefix
        self.work_prefix = settings.work_prefix
        self.archive_prefix = settings.archive_prefix
        self.quarantine_prefix = settings.quarantine_prefix
        self._minutes = settings.window_minutes
        self._aggregates_in_inbox = settings.aggregate_prefix == settings.runs_prefix
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
        """Return what a key below the inbox is."""
        if self._nested and key.startswith(self._nested):
            return KeyKind.INTERNAL
        if self._aggregates_in_inbox and (
            self.is_aggregate(key) or key in {self.record_key, self.journal_key}
        ):
            return KeyKind.INTERNAL
        return KeyKind.RUN_FILE if is_run_file(key) else KeyKind.IGNORED

    def aggregate_key(self, window: Window) -> str:
        """Return the key of a window's aggregate."""
        return f"{self.aggregate_prefix}{window.name}.json"

    @property
    def record_key(self) -> str:
        """The key of the store's record."""
        return f"{self.aggregate_prefix}asyncagg.json"

    @property
    def journal_key(self) -> str:
        """The key of the journal of runs. It does not end like a run file's."""
        return f"{self.aggregate_prefix}asyncagg.run"

    @property
    def record_copy_key(self) -> str:
        """The key of the record's copy in the archive. It does not end like a run file's."""
        return f"{self.archive_prefix}.asyncagg"

    def is_aggregate(self, key: str) -> bool:
        """Return whether a key looks like an aggregate's, for windows of some length."""
        return _AGGREGATE_NAME.fullmatch(key, len(self.aggregate_prefix)) is not None

    def aggregate_window(self, key: str) -> Window | None:
        """Return the window whose aggregate has this key, or None if it is not such a key."""
        if not self.is_aggregate(key):
            return None
        return self._window(key[len(self.aggregate_prefix) : -len(".json")])

    def is_misnamed_aggregate(self, key: str) -> bool:
        """Return whether a key looks like an aggregate's, but no window ends at its time."""
        return self.is_aggregate(key) and self.aggregate_window(key) is None

    def pack_key(self, window: Window, name: str) -> str:
        """Return the key of a pack of a window's files."""
        return f"{self.pack_prefix}{window.name}/{name}.zip"

    @property
    def pack_prefix(self) -> str:
        """The prefix of the keys of all packs. No key of a run file ends like theirs."""
        return f"{self.archive_prefix}{PACKS}"

    def pack_window(self, key: str) -> Window | None:
        """Return the window whose pack has this key, or None if it is not the key of a pack."""
        if not key.startswith(self.pack_prefix) or not key.endswith(".zip"):
            return None
        return self._window(key.removeprefix(self.pack_prefix).partition("/")[0])

    def partial_key(self, window: Window, name: str) -> str:
        """Return the key of a partial aggregate of a window, kept while a backfill runs."""
        return f"{self.work_folder(window)}{name}.json"

    def work_folder(self, window: Window) -> str:
        """Return the prefix of the keys of a window's partial aggregates."""
        return f"{self.work_prefix}{window.name}/"

    def work_window(self, key: str) -> Window | None:
        """Return the window whose partial aggregate has this key, or None if there is none."""
        return self._window(key.removeprefix(self.work_prefix).partition("/")[0])

    def _window(self, name: str) -> Window | None:
        try:
            return parse_window(name, self._minutes)
        except UsageError:
            return None

    def archive_key(self, key: str) -> str:
        """Return the key in the archive of a run file."""
        return _shorten(self.archive_prefix + key.removeprefix(self.runs_prefix))

    def quarantine_key(self, key: str) -> str:
        """Return the key in quarantine of a run file."""
        return _shorten(self.quarantine_prefix + key.removeprefix(self.runs_prefix))

    @staticmethod
    def conflict_key(key: str, etag: str) -> str:
        """Return the key to use instead of one that is taken by other content."""
        folder, slash, name = key.rpartition("/")
        stem, dot, ending = _partition(name)
        suffix = f".{etag[:16]}{dot}{ending}"
        stem = _cut(stem, _MAX_NAME_BYTES - len(suffix.encode()))
        return _shorten(f"{folder}{slash}{stem}{suffix}")

    def arrival_key(self, file: RunFile, place_of: Callable[[str], str]) -> str | None:
        """Return the key under which a file arrived that is now in the archive or in quarantine.

        Args:
            file: The file where it is now, with the etag that it arrived with.
            place_of: `archive_key` or `quarantine_key`.

        Returns:
            The original key, or None if it was shortened and so is lost.
        """
        if (
            len(file.key.encode()) > _MAX_KEY_BYTES - 4
        ):  # shortened: cutting a character loses up to 3
            return None
        key = self.runs_prefix + file.key.removeprefix(place_of(self.runs_prefix))
        # If its place was taken, the name contains the start of the etag: see `conflict_key`.
        folder, slash, name = key.rpartition("/")
        stem, suffix, ending = name.rpartition(f".{file.etag[:16]}")
        without_suffix = f"{folder}{slash}{stem}{ending}"
        if suffix and self.conflict_key(place_of(without_suffix), file.etag) == file.key:
            return without_suffix
        return key

    def inbox_key(self, key: str) -> str:
        """Return the key in the inbox for a key in quarantine."""
        return self.runs_prefix + key.removeprefix(self.quarantine_prefix)

    def restored_key(self, key: str, content: bytes, window: Window) -> str:
        """Return the key in the inbox under which a file in quarantine is restored.

        It depends on the former key and the content: no other file has it, and all copies of the
        file have the same. It contains the window, so the file is counted there whenever it is
        copied.

        Args:
            key: Its former key in the inbox.
            content: A digest of its content.
            window: The window that it is counted in.
        """
        digest = sha256(key.encode() + content).hexdigest()[:_DIGEST_LENGTH]
        start, ending = self._split_restored(key)
        return f"{start}{window.start_name}-{digest}{ending}"

    def restored_prefixes(self, key: str) -> tuple[str, ...]:
        """Return the prefixes of all keys that a restored file may have, by its former inbox key.

        The digest depends on the content at the time of the restore, so only the prefix is known.
        The file may now be in the inbox, the archive or quarantine.
        """
        start, _ = self._split_restored(key)
        name = start.removeprefix(self.runs_prefix)
        shortest = _MAX_KEY_BYTES - _DIGEST_LENGTH - len("..json.gz")  # what `_shorten` keeps
        return (
            start,
            _cut(self.archive_prefix + name, shortest),
            _cut(self.quarantine_prefix + name, shortest),
        )

    def _split_restored(self, key: str) -> tuple[str, str]:
        """Return what comes before and after the digest in the key of a restored file."""
        folder, slash, name = key.rpartition("/")
        stem, dot, ending = _partition(name)
        stem = stem.partition(RESTORED)[0]  # it may have been restored before
        reserved = len(RESTORED) + _WINDOW_LENGTH + _DIGEST_LENGTH
        reserved += len(f"{dot}{ending}".encode())
        start = f"{folder}{slash}{_cut(stem, _MAX_NAME_BYTES - reserved)}"
        return f"{_cut(start, _MAX_KEY_BYTES - reserved)}{RESTORED}", f"{dot}{ending}"

    @staticmethod
    def was_restored(key: str) -> bool:
        """Return whether a key in the inbox belongs to a file restored from quarantine."""
        return RESTORED in key


def _partition(name: str) -> tuple[str, str, str]:
    """Return what is before ``.json`` in a name, that ending as it is written, and the rest."""
    found = _JSON.search(name)
    if found is None:
        return name, "", ""
    return name[: found.start()], found[0], name[found.end() :]


def _shorten(key: str) -> str:
    """Return a key that S3 accepts: one that is too long is cut, and gets a digest."""
    if len(key) <= _MAX_KEY_BYTES // 4 or len(key.encode()) <= _MAX_KEY_BYTES:
        return key
    ending = ".json.gz" if key.lower().endswith(".gz") else ".json"
    suffix = f".{sha256(key.encode()).hexdigest()[:16]}{ending}"
    return _cut(key, _MAX_KEY_BYTES - len(suffix)) + suffix


def _cut(text: str, size: int) -> str:
    """Return as much of a text as fits into ``size`` bytes of UTF-8."""
    return text.encode()[:size].decode("utf-8", "ignore")
