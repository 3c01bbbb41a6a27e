"""Media type and metadata, which file systems do not store, in a hidden file next to each file.

A sidecar's name is derived from the file's name *and etag*. So the sidecar of new content can be
written before that content becomes visible, without touching the current one. And a file that its
producer rewrites does not inherit old metadata.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from contextlib import suppress

import msgspec

_log = logging.getLogger(__name__)

_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK  # opening a named pipe must not wait


class Sidecar(msgspec.Struct, frozen=True):
    """The content of a sidecar."""

    content_type: str = ""
    metadata: Mapping[str, str] = {}


def read(folder: int, name: bytes, etag: str) -> Sidecar:
    """Return the media type and metadata of a file in a folder, from its sidecar or its name."""
    try:
        descriptor = os.open(_name(name, etag), _FLAGS | os.O_RDONLY, dir_fd=folder)
    except FileNotFoundError:
        return _default(name)
    with os.fdopen(descriptor, "rb") as file:
        content = file.read()
    try:
        return msgspec.json.decode(content, type=Sidecar)
    except msgspec.DecodeError as error:
        # The file itself is intact: damaged metadata must not block it.
        _log.warning("ignoring the damaged metadata of %r: %s", os.fsdecode(name), error)
        return _default(name)


def write(folder: int, name: bytes, etag: str, sidecar: Sidecar) -> None:
    """Write a file's sidecar durably, unless the file's name implies all that it says."""
    if sidecar == _default(name):
        remove(folder, name, etag)
        return
    flags = _FLAGS | os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    descriptor = os.open(_name(name, etag), flags, 0o666, dir_fd=folder)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(sidecar))
        file.flush()
        os.fsync(descriptor)


def remove(folder: int, name: bytes, etag: str) -> None:
    """Remove a file's sidecar, if it has one."""
    with suppress(FileNotFoundError):
        os.unlink(_name(name, etag), dir_fd=folder)


def _name(name: bytes, etag: str) -> bytes:
    # A digest, because the file's name may already have the maximum length.
    digest = hashlib.sha256(name + b"/" + etag.encode()).hexdigest()
    return b".asyncagg-meta-" + digest[:32].encode()


def _default(name: bytes) -> Sidecar:
    is_json = name.endswith((b".json", b".json.gz"))
    return Sidecar("application/json" if is_json else "")
