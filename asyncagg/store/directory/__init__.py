"""A local directory as a store."""

from asyncagg.store.directory.store import DirectoryStore

__all__ = ("DirectoryStore",)
