"""From keys to names below a root, and from the system's errors to ours. Nothing here does I/O."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from asyncagg.errors import (
    AccessDeniedError,
    AsyncaggError,
    ConfigurationError,
    NotFoundError,
    PreconditionFailedError,
    StoreError,
    TransientError,
)
from asyncagg.model import RunFile

__all__ = ("ASIDE", "LOCK", "Spot", "draft_name", "etag_of", "is_work", "locate", "reference")

_WORK = b".asyncagg-"
LOCK = _WORK + b"lock"
ASIDE = _WORK + b"aside"
_ACCEPTED = (
    "accepted are names joined by '/', each of 1 to 255 bytes of UTF-8, "
    "none of them '.' or '..' or beginning with '.asyncagg-'"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_BY_ERRNO: dict[int, type[AsyncaggError]] = {
    errno.ENOENT: NotFoundError,
    errno.ENOTDIR: NotFoundError,
    errno.EISDIR: NotFoundError,
    errno.ELOOP: NotFoundError,  # what O_NOFOLLOW says of a symbolic link
    errno.EEXIST: PreconditionFailedError,
    errno.EACCES: AccessDeniedError,
    errno.EPERM: AccessDeniedError,
    errno.EROFS: AccessDeniedError,
    errno.ENOSPC: ConfigurationError,
    errno.EDQUOT: ConfigurationError,
    errno.EIO: TransientError,
    errno.ETIMEDOUT: TransientError,
    errno.ESTALE: TransientError,
    errno.EBUSY: TransientError,
    errno.EAGAIN: TransientError,
    errno.EMFILE: TransientError,
    errno.ENFILE: TransientError,
}

_ADVICE: dict[type[AsyncaggError], str] = {
    AccessDeniedError: "; this user needs to read, write and search it",
    ConfigurationError: "; nothing was changed: free some space and run again",
}


@dataclass(frozen=True, slots=True)
class Spot:
    """One key of one operation, taken apart into names.

    Attributes:
        operation: What is asked of the store, for messages.
        where: The store's URL, for messages.
        key: The key as the caller said it.
        folder: The names of the folders on the way, from the root down.
        name: The last name; empty where a prefix ends in ``/``.
    """

    operation: str
    where: str
    key: str
    folder: tuple[bytes, ...]
    name: bytes

    def error(self, kind: type[AsyncaggError], why: str) -> AsyncaggError:
        """Return an error of this kind that names the operation, the key and the store."""
        text = f"{self.operation} {self.key!r} in {self.where}: {why}"
        if issubclass(kind, StoreError):
            return kind(text, operation=self.operation, key=self.key)
        return kind(text)

    def changed(self, etag: str, expected: str) -> AsyncaggError:
        """Return the error for an object that has another etag than the one expected."""
        return self.error(PreconditionFailedError, f"its etag is {etag!r}, expected {expected!r}")

    def failure(self, error: OSError) -> AsyncaggError:
        """Return the error of this package that one of the system stands for."""
        kind = _BY_ERRNO.get(error.errno or 0, StoreError)
        why = "a symbolic link, never followed" if error.errno == errno.ELOOP else error.strerror
        return self.error(kind, f"{why}{_ADVICE.get(kind, '')}")

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Translate what the system raises inside the context."""
        try:
            yield
        except OSError as error:
            raise self.failure(error) from error


def locate(operation: str, where: str, key: str, *, prefix: bool = False) -> Spot:
    """Take a key apart, so that no name in it can lead out of the root.

    Args:
        operation: What is asked of the store, for messages.
        where: The store's URL, for messages.
        key: A key, or the beginning of keys.
        prefix: Whether it is only a beginning, which may end anywhere.

    Raises:
        StoreError: The key has a name that no file of this store can have.
    """
    try:
        *folder, name = key.encode().split(b"/")
    except UnicodeEncodeError:  # a lone surrogate
        folder, name = [], b""
        legal = False
    else:
        legal = all(map(_is_legal, folder)) and (prefix or _is_legal(name))
    spot = Spot(operation, where, key, tuple(folder), name)
    if not legal:
        raise spot.error(StoreError, f"no such key can be held in a directory; {_ACCEPTED}")
    return spot


def _is_legal(name: bytes) -> bool:
    return (
        0 < len(name) <= 255
        and name not in {b".", b".."}
        and b"\0" not in name
        and not is_work(name)
    )


def is_work(name: bytes) -> bool:
    """Whether a name is one of the store's own hidden work files."""
    return name.startswith(_WORK)


def draft_name() -> bytes:
    """Return a new hidden name, for a file that is not to be seen yet."""
    return _WORK + b"tmp-" + secrets.token_hex(8).encode()


def etag_of(status: os.stat_result) -> str:
    """Return the etag of a file with this status.

    It has no inode, so that a copy with its source's time is known to be the same content. What it
    cannot tell apart: two writes of the same size within one tick of the file system's clock (4 ms
    on older kernels, some nanoseconds from Linux 6.13 on), and a writer that sets the time back.
    """
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def reference(key: str, status: os.stat_result) -> RunFile:
    """Return the reference of the file with this status."""
    modified = _EPOCH + timedelta(microseconds=status.st_mtime_ns // 1000)
    return RunFile(key, status.st_size, etag_of(status), modified)
