"""What a file system does not know of a file: media type and metadata, in a hidden file beside it.

A sidecar's name is made of the file's name *and etag*. So the next content's sidecar is written
before that content is shown, without touching the one in force; and a file that its producer
rewrites has none of its predecessor's metadata.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from contextlib import suppress

import msgspec

__all__ = ("Sidecar", "read", "remove", "write")

_log = logging.getLogger(__name__)


class Sidecar(msgspec.Struct, frozen=True):
    """The content of a sidecar.

    Attributes:
        content_type: The file's media type.
        metadata: Its writer's own pairs.
    """

    content_type: str = ""
    metadata: Mapping[str, str] = {}


def read(folder: int, name: bytes, etag: str) -> Sidecar:
    """Return what is known of a file, if only from its name.

    Args:
        folder: A descriptor of the directory that holds it.
        name: The file's name.
        etag: The file's etag.
    """
    try:
        sidecar = os.open(_name(name, etag), os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
    except FileNotFoundError:
        return _default(name)
    with os.fdopen(sidecar, "rb") as file:
        content = file.read()
    try:
        return msgspec.json.decode(content, type=Sidecar)
    except msgspec.DecodeError as error:
        # The file itself is whole: it must not wait for ever for the sake of its metadata.
        _log.warning("the metadata of %r is damaged and left out: %s", os.fsdecode(name), error)
        return _default(name)


def write(folder: int, name: bytes, etag: str, sidecar: Sidecar) -> None:
    """Keep what is known of a file, durably; nothing where its name says it all."""
    if sidecar == _default(name):
        remove(folder, name, etag)
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
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
    # A digest: a file's name may itself be as long as a name can be.
    digest = hashlib.sha256(name + b"/" + etag.encode()).hexdigest()
    return b".asyncagg-meta-" + digest[:32].encode()


def _default(name: bytes) -> Sidecar:
    is_json = name.endswith((b".json", b".json.gz"))
    return Sidecar("application/json" if is_json else "")
