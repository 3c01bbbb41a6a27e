"""Check local files as a run would: their names, and their content."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from anyio import to_thread

from asyncagg.errors import ConfigurationError, InvalidRunFileError
from asyncagg.ingest.parsing import is_run_file
from asyncagg.job.run_files import RunFileReader
from asyncagg.model import RunFile
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.store.directory import DirectoryStore
from asyncagg.store.directory.paths import is_unfinished
from asyncagg.store.memory import MemoryStore
from asyncagg.windows import stamp_of, window_of, window_selector

_UPLOADED = "content.json"


class Verdict(StrEnum):
    """What would become of a file."""

    COUNTED = "counted"
    QUARANTINED = "quarantined"
    IGNORED = "ignored"


@dataclass(frozen=True, slots=True)
class Checked:
    """One file that was checked.

    Attributes:
        file: Its path.
        verdict: What would become of it.
        reason: Why it would not be counted.
        window: The window that it would be counted in; empty if the time of the upload decides.
    """

    file: str
    verdict: Verdict
    reason: str = ""
    window: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return asdict(self)


async def check(path: str, settings: Settings) -> AsyncIterator[Checked]:
    """Check a file, or all files in a folder and below it.

    Args:
        path: The file or the folder.
        settings: The window, and the largest size.

    Raises:
        ConfigurationError: It does not exist, or cannot be read.
    """
    place = await to_thread.run_sync(_resolve, path)
    if await to_thread.run_sync(place.is_dir):
        store = DirectoryStore(place)
        async for page in store.list_pages(""):
            for file in page:
                yield await _check(store, file, settings, str(Path(path) / file.key))
    elif not await to_thread.run_sync(place.is_file):
        raise ConfigurationError(f"{path!r} is not a regular file: pipe it to `asyncagg check -`")
    else:
        store = DirectoryStore(place.parent)
        file = (await store.head(place.name)).file
        yield await _check(store, file, settings, path)


async def check_content(data: bytes, settings: Settings) -> Checked:
    """Check the content of a file that has no name yet."""
    store = MemoryStore()
    await store.put(_UPLOADED, data)
    return await _check(store, (await store.head(_UPLOADED)).file, settings, "-")


def _resolve(path: str) -> Path:
    try:
        return Path(path).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise ConfigurationError(
            f"{path!r}: {getattr(error, 'strerror', None) or error}; expected a file or a "
            "folder of this machine, or - for standard input"
        ) from error


async def _check(store: Store, file: RunFile, settings: Settings, shown: str) -> Checked:
    name = file.key.rpartition("/")[2]
    if not is_run_file(name):
        reason = "the name does not end in .json or .json.gz"
        return Checked(shown, Verdict.IGNORED, reason)
    if is_unfinished(name.encode()):
        reason = "a hidden or temporary name: in a directory it is left to its writer"
        return Checked(shown, Verdict.IGNORED, reason)
    try:
        await RunFileReader(store, settings).check(file)
    except InvalidRunFileError as error:
        return Checked(shown, Verdict.QUARANTINED, error.reason)
    return Checked(shown, Verdict.COUNTED, window=_window(file, settings))


def _window(file: RunFile, settings: Settings) -> str:
    """Return the name of the window that the file's name decides; empty if it does not."""
    stamp = stamp_of(file.key) if settings.window_by == "name" else None
    if stamp is None:
        return ""
    named = window_of(stamp, settings.window_minutes)
    chosen = window_selector("name", settings.window_minutes)(file)
    return named.name if named == chosen else ""
