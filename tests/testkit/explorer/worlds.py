"""All objects at one moment, and what a request does to them."""

from __future__ import annotations

from collections.abc import (
    Coroutine,
)
from dataclasses import dataclass
from typing import Any

from asyncagg.errors import StoreError
from asyncagg.store.memory import MemoryStore
from testkit.explorer.store import Answer, Request
from testkit.promises import Original, Places, Snapshot, of_memory, unpacked

__all__ = ("World", "Worlds")


@dataclass(frozen=True, eq=False, slots=True)
class World:
    """All objects at one moment, and what their producers have done so far.

    Attributes:
        number: Unique in the exploration.
        store: The objects; never changed.
        written: Every version of every run file.
        lost: The versions that their own producer replaced or deleted before they were archived.
    """

    number: int
    store: MemoryStore
    written: frozenset[Original]
    lost: frozenset[tuple[str, str]]

    @property
    def seen(self) -> Snapshot:
        """The objects, as the checks of the promises expect them."""
        return of_memory(self.store)


class Worlds:
    """All worlds, each once."""

    def __init__(self) -> None:
        self.known: dict[object, World] = {}
        self._effects: dict[tuple[int, Request], tuple[World, Answer]] = {}

    def intern(
        self,
        store: MemoryStore,
        written: frozenset[Original],
        lost: frozenset[tuple[str, str]],
    ) -> World:
        """Return the world with this content."""
        objects = frozenset(
            (key, each.etag, each.info.file.last_modified, *sorted(each.info.metadata.items()))
            for key, each in store._objects.items()
        )
        new = World(len(self.known), store, written, lost)
        return self.known.setdefault((objects, written, lost), new)

    def execute(self, world: World, request: Request) -> tuple[World, Answer]:
        """Return the world after a request, and the answer to it."""
        effect = (world.number, request)
        if effect not in self._effects:
            self._effects[effect] = self._execute(world, request)
        return self._effects[effect]

    def _execute(self, world: World, request: Request) -> tuple[World, Answer]:
        store = MemoryStore(lambda: request.at)
        store._objects.update(world.store._objects)
        try:
            answer = Answer(_at_once(request.execute(store)))
        except StoreError as error:
            answer = Answer(error=error)
        if not request.writes:
            return world, answer
        written, lost = world.written, world.lost
        if request.producer:
            lost |= _lost(world, store, request.producer)
            written |= _written(store, request.producer)
        return self.intern(store, written, lost), answer


def _written(store: MemoryStore, key: str) -> set[Original]:
    new = store._objects.get(key)
    return {Original(key, new.data, new.etag, new.info.file.last_modified)} if new else set()


def _lost(world: World, after: MemoryStore, key: str) -> set[tuple[str, str]]:
    """Return the version that a producer replaces or deletes, unless it is archived."""
    old, new, places = world.store._objects.get(key), after._objects.get(key), Places()
    if old is None or (new is not None and new.data == old.data):
        return set()
    archived = any(
        each.data == old.data and places.moved(other, key, places.archive)
        for other, each in unpacked(of_memory(after), places).items()
    )
    return set() if archived else {(key, old.etag)}


def _at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as stopped:
        return stopped.value
    raise AssertionError("a request to the store in memory waits")
