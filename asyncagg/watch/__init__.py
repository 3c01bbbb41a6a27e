"""Settle every window as it ends, on a machine that stays up, such as a container."""

from asyncagg.watch.schedule import DELAY_SECONDS, Schedule
from asyncagg.watch.watcher import WatchedRun, Watcher

__all__ = ("DELAY_SECONDS", "Schedule", "WatchedRun", "Watcher")
