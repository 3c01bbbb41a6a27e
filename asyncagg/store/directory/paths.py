"""Keys as paths below a root, and the system's errors as the package's. Nothing here does I/O."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from asyncagg.errors import (
    NO_SPACE,
    AccessDeniedError,
    AsyncaggError,
    ConfigurationError,
    NotFoundError,
    PreconditionFailedError,
    StoreError,
    TransientError,
)
from asyncagg.model import RunFile

_HIDDEN = b".asyncagg-"
LOCK_NAME = _HIDDEN + b"lock"
TRASH_NAME = _HIDDEN + b"aside"
_TEMP = _HIDDEN + b"tmp-"
_ACCEPTED = (
    "expected names joined by '/', each of 1 to 255 bytes of UTF-8, "
    "not '.' or '..', and not starting with '.asyncagg-'"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_BY_ERRNO: dict[int, type[AsyncaggError]] = {
    errno.ENOENT: NotFoundError,
    errno.ENOTDIR: NotFoundError,
    errno.EISDIR: NotFoundError,
    errno.ELOOP: NotFoundError,  # O_NOFOLLOW on a symbolic link
    errno.EEXIST: PreconditionFailedError,
    errno.EACCES: AccessDeniedError,
    errno.EPERM: AccessDeniedError,
    errno.EROFS: AccessDeniedError,
    **dict.fromkeys(NO_SPACE, ConfigurationError),
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
    ConfigurationError: "; nothing is lost: free some space, and run it again to continue",
}
_READ_ONLY = "; mount it for writing, or choose another directory"


@dataclass(frozen=True, slots=True)
class KeyPath:
    """A key split into names, with the operation and the store's URL for error messages.

    Attributes:
        parents: The names of the folders that lead to the file, from the root down.
        name: The last name; empty if a prefix ends in ``/``.
    """

    operation: str
    store: str
    key: str
    parents: tuple[bytes, ...]
    name: bytes

    def error(self, kind: type[AsyncaggError], detail: str) -> AsyncaggError:
        """Return an error of this kind that names the operation, the key and the store."""
        message = f"{self.operation} {self.key!r} in {self.store}: {detail}"
        if issubclass(kind, StoreError):
            return kind(message, operation=self.operation, key=self.key)
        return kind(message)

    def etag_mismatch(self, etag: str, expected: str) -> AsyncaggError:
        """Return the error for a file whose etag is not the expected one."""
        return self.error(PreconditionFailedError, f"its etag is {etag!r}, expected {expected!r}")

    def translate(self, error: OSError) -> AsyncaggError:
        """Return the error of this package for an error of the system."""
        kind = _BY_ERRNO.get(error.errno or 0, StoreError)
        is_link = error.errno == errno.ELOOP
        detail = "symbolic links are not followed" if is_link else error.strerror
        advice = _READ_ONLY if error.errno == errno.EROFS else _ADVICE.get(kind, "")
        return self.error(kind, f"{detail}{advice}")

    @contextmanager
    def translating(self) -> Iterator[None]:
        """Translate each `OSError` that is raised inside the context."""
        try:
            yield
        except OSError as error:
            raise self.translate(error) from error


def parse_key(operation: str, store: str, key: str, *, is_prefix: bool = False) -> KeyPath:
    """Split a key or a prefix into names; a name that could lead out of the root is an error."""
    try:
        *parents, name = key.encode().split(b"/")
        legal = all(map(_is_legal, parents)) and (is_prefix or _is_legal(name))
    except UnicodeEncodeError:  # a lone surrogate
        parents, name, legal = [], b"", False
    path = KeyPath(operation, store, key, tuple(parents), name)
    if not legal:
        raise path.error(StoreError, f"a directory cannot hold this key; {_ACCEPTED}")
    return path


def _is_legal(name: bytes) -> bool:
    return (
        0 < len(name) <= 255
        and name not in {b".", b".."}
        and b"\0" not in name
        and not is_hidden(name)
    )


def is_hidden(name: bytes) -> bool:
    """Whether a name belongs to the store's internal files."""
    return name.startswith(_HIDDEN)


def is_unfinished(name: bytes) -> bool:
    """Return whether a name is one that writers use for files that are not complete yet."""
    return name.startswith((b".", b"~", b"#")) or name.endswith((b"~", b".tmp", b".part"))


def is_temp(name: bytes) -> bool:
    """Whether a name is that of a temporary file."""
    return name.startswith(_TEMP)


def temp_name() -> bytes:
    """Return a new hidden name for a temporary file."""
    return _TEMP + secrets.token_hex(8).encode()


def etag_of(status: os.stat_result) -> str:
    """Return the etag of a file with this status: its modification time and size.

    The inode is left out, so that a copy with its source's time has its source's etag. Two cases go
    unnoticed: two writes of the same size within one tick of the file system's clock (4 ms on older
    kernels, some nanoseconds since Linux 6.13), and a writer that sets the time back.
    """
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def reference(key: str, status: os.stat_result) -> RunFile:
    """Return the reference of the file with this status."""
    modified = _EPOCH + timedelta(microseconds=status.st_mtime_ns // 1000)
    return RunFile(key, status.st_size, etag_of(status), modified)
