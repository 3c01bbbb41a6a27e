"""Checks of a directory and its file system. All of them block, and can raise `OSError`."""

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

_LOW_SPACE_BYTES = 1024**3
_ACCESS = os.R_OK | os.W_OK | os.X_OK


def root_folder(root: Path) -> CheckResult:
    """Check that the store is a directory with the necessary permissions."""
    if not root.exists():
        return CheckResult("fail", f"{str(root)!r} does not exist", "create it, or correct the URL")
    if not root.is_dir():
        return CheckResult("fail", f"{str(root)!r} is not a directory", "name a directory")
    return _permission_problem(root) or CheckResult("ok", str(root.resolve()))


def folder(root: Path, prefix: str) -> CheckResult:
    """Check that the folder of a prefix can be used or created."""
    path = root
    for name in prefix.rstrip("/").split("/"):
        path /= name
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            return _permission_problem(path.parent) or CheckResult(
                "ok", "does not exist yet; it is created when needed"
            )
        if not stat.S_ISDIR(mode):
            kind = "a symbolic link, which is not followed" if stat.S_ISLNK(mode) else "a file"
            return CheckResult("fail", f"{str(path)!r} is {kind}", "replace it by a folder")
    elsewhere = path.stat().st_dev != root.stat().st_dev
    detail = "exists, on another file system than the store" if elsewhere else "exists"
    return _permission_problem(path) or CheckResult("ok", detail)


def _permission_problem(path: Path) -> CheckResult | None:
    if os.access(path, _ACCESS, effective_ids=os.access in os.supports_effective_ids):
        return None
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        detail = f"{str(path)!r} is on a read-only file system"
        return CheckResult("fail", detail, "mount it for writing, or choose another directory")
    detail = f"{str(path)!r}: this user may not read, write and search it"
    return CheckResult("fail", detail, f"chown or chmod it for the user with id {os.geteuid()}")


def file_system(root: Path) -> CheckResult:
    """Try what atomic writes rely on, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix=".asyncagg-probe-", dir=root) as name:
        return _try_features(Path(name))


def _try_features(within: Path) -> CheckResult:
    first, second = within / "probe", within / "probe-renamed"
    first.write_bytes(b"1")
    exact_time = 1_000_000_000_123_456_789
    os.utime(first, ns=(exact_time, exact_time))
    weak = []
    if first.stat().st_mtime_ns != exact_time:
        weak.append("rounds times, so a quick overwrite may go unnoticed")
    with first.open("rb") as file:
        os.fsync(file.fileno())
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            detail = f"it has no file locks ({error.strerror})"
            return CheckResult("fail", detail, "use a local disk, or mount it with locks")
    try:
        os.link(first, within / "probe-linked")
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        weak.append("has no hard links, so a rename under the lock replaces them")
    first.rename(second)
    if (within / second.name.upper()).exists():
        weak.append("ignores case, so keys may collide")
    descriptor = os.open(within, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        weak.append("cannot sync a folder to disk")
    finally:
        os.close(descriptor)
    if weak:
        return CheckResult(
            "warn", "it " + "; it ".join(weak), "use a local disk where that matters"
        )
    return CheckResult("ok", "renames, hard links, locks and exact times work")


def space(root: Path) -> CheckResult:
    """Check the free space: each file is copied before it is deleted."""
    usage = shutil.disk_usage(root)
    detail = f"{usage.free / 1024**3:,.1f} GiB free of {usage.total / 1024**3:,.1f}"
    if usage.free < _LOW_SPACE_BYTES:
        return CheckResult(
            "warn", detail, "free some space: files are copied before they are deleted"
        )
    return CheckResult("ok", detail)
