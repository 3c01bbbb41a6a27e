"""What a directory's file system must do for `asyncagg.store.directory`. All of this blocks.

What the system raises is left to the caller.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path

from asyncagg.doctor.checks import CheckResult
from asyncagg.store.directory.writing import NO_LINKS

__all__ = ("file_system", "folder", "root_folder", "space")

_LITTLE_BYTES = 1024**3
_ACCESS = os.R_OK | os.W_OK | os.X_OK


def root_folder(root: Path) -> CheckResult:
    """Say whether the directory is one, and may be used."""
    if not root.exists():
        return CheckResult(
            "fail", f"{str(root)!r} does not exist", "create it, or correct its name"
        )
    if not root.is_dir():
        return CheckResult("fail", f"{str(root)!r} is not a directory", "name a directory")
    return _usable(root) or CheckResult("ok", str(root.resolve()))


def folder(root: Path, prefix: str) -> CheckResult:
    """Say whether the folder of a prefix may be used, or made."""
    path = root
    for name in prefix.rstrip("/").split("/"):
        path /= name
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            return _usable(path.parent) or CheckResult(
                "ok", "is not there yet, and made when needed"
            )
        if not stat.S_ISDIR(mode):
            kind = "a symbolic link, which is never followed" if stat.S_ISLNK(mode) else "a file"
            return CheckResult("fail", f"{str(path)!r} is {kind}", "put a folder in its place")
    elsewhere = path.stat().st_dev != root.stat().st_dev
    told = "is there, on a file system of its own" if elsewhere else "is there"
    return _usable(path) or CheckResult("ok", told)


def _usable(path: Path) -> CheckResult | None:
    if os.access(path, _ACCESS, effective_ids=os.access in os.supports_effective_ids):
        return None
    told = f"{str(path)!r}: this user may not read, write and search it"
    return CheckResult("fail", told, f"chown or chmod it for the user with id {os.geteuid()}")


def file_system(root: Path) -> CheckResult:
    """Try out in a folder of its own, which is removed, what writing relies on."""
    with tempfile.TemporaryDirectory(prefix=".asyncagg-probe-", dir=root) as name:
        return _tried(Path(name))


def _tried(within: Path) -> CheckResult:
    first, second = within / "probe", within / "probe-renamed"
    first.write_bytes(b"1")
    moment = 1_000_000_000_123_456_789
    os.utime(first, ns=(moment, moment))
    weak = []
    if first.stat().st_mtime_ns != moment:
        weak.append("keeps times coarsely, so that quick overwriting may go unnoticed")
    with first.open("rb") as file:
        os.fsync(file.fileno())
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            told = f"it has no file locks ({error.strerror})"
            return CheckResult("fail", told, "use a local disk, or mount it with locks")
    try:
        os.link(first, within / "probe-linked")
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        weak.append("has no hard links; a rename under the lock takes their place")
    first.rename(second)
    if (within / second.name.upper()).exists():
        weak.append("takes upper and lower case for the same, so that keys may collide")
    descriptor = os.open(within, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        weak.append("cannot make a folder durable")
    finally:
        os.close(descriptor)
    if weak:
        return CheckResult(
            "warn", "it " + "; it ".join(weak), "use a local disk where that matters"
        )
    return CheckResult("ok", "renames, hard links, locks and exact times")


def space(root: Path) -> CheckResult:
    """Say how much room there is: each file is copied before it is deleted."""
    usage = shutil.disk_usage(root)
    told = f"{usage.free / 1024**3:,.1f} GiB free of {usage.total / 1024**3:,.1f}"
    if usage.free < _LITTLE_BYTES:
        return CheckResult(
            "warn", told, "free some space: files are copied before they are deleted"
        )
    return CheckResult("ok", told)
