"""The identity of a process, and whether another one has ended, where Linux shows it."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Self

import msgspec

PROC = Path("/proc")


class Process(msgspec.Struct, frozen=True):
    """A process. Its ID does not identify it: IDs are used again, and each container has its own.

    Attributes:
        host: The host name, boot and PID namespace: process IDs mean the same where all three do.
        pid: The process ID.
        started: When it started, in clock ticks since the boot.
    """

    host: str
    pid: int
    started: int

    @classmethod
    def current(cls, proc: Path = PROC) -> Self | None:
        """Return this process; None if the system does not show it, like macOS."""
        try:
            boot = (proc / "sys/kernel/random/boot_id").read_text().strip()
            namespace = (proc / "self/ns/pid").readlink()
            return cls(f"{socket.gethostname()} {boot} {namespace}", *_read(proc / "self/stat"))
        except OSError:
            return None

    def has_ended(self, proc: Path = PROC) -> bool | None:
        """Return whether it has ended; None if that cannot be seen from this process."""
        own = self.current(proc)
        if own is None or own.host != self.host:
            return None
        try:
            return _read(proc / f"{self.pid}/stat") != (self.pid, self.started)
        except (FileNotFoundError, ProcessLookupError):
            return True
        except OSError:
            return None


def _read(stat: Path) -> tuple[int, int]:
    """Return a process ID, and when the process started: -1 for one that only waits to be reaped.

    See proc_pid_stat(5): fields 1, 3 and 22. Field 2 is the command, which may hold any byte.
    """
    command, _, fields = stat.read_bytes().rpartition(b")")
    state, *numbers = fields.split()
    return int(command.partition(b" ")[0]), -1 if state in {b"Z", b"X"} else int(numbers[18])
