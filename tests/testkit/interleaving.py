"""Run every interleaving of a few programs that share one store in memory.

A program is async code of the package: a run, a restore from quarantine, a repair. It meets the
others only in the store, so a schedule is a sequence of store requests, and each request is atomic.

Two facts keep the exploration small, and nothing is left out:

* What a program does next depends only on the answers that it got. So each sequence of answers is
  executed once, alone, and kept as a `Node`; a schedule is a sequence of steps between nodes.
* Schedules that lead to the same objects and the same nodes have the same future. So each state is
  visited once, and the schedules that lead to it are counted. Reads that commute lead to one state.

A crash needs no step of its own: a program that crashed is one that takes no further step. So in
every state, the programs in `Explorer.ends` are run on the objects that are left.
"""

from __future__ import annotations

import asyncio
import logging
import selectors
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from operator import attrgetter
from time import perf_counter
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeAlias

import anyio.lowlevel
import pytest

import asyncagg.store.memory as memory_module
import asyncagg.verify.database as database_module
import asyncagg.verify.inventory as inventory_module
from asyncagg.errors import StoreError, TransientError
from asyncagg.model import RunFile
from asyncagg.store.memory import MemoryStore
from asyncagg.store.protocol import Absent, Body, Condition, ObjectInfo, StreamedBody
from testkit.promises import Original, Places, Snapshot, of_memory

__all__ = ("Explored", "Explorer", "Program", "ScheduledStore", "World", "deterministic")


# ------------------------------------------------------------------------------ requests

Execute: TypeAlias = Callable[[MemoryStore], Coroutine[Any, Any, Any]]


@dataclass(frozen=True, eq=False, slots=True)
class Request:
    """A request of a program to the store.

    Attributes:
        text: The operation and its keys.
        at: The time that written objects get.
        execute: Executes it on a store.
        writes: Whether it may change the store.
        producer: The key that a producer writes or deletes; empty for the package's requests.
    """

    text: str
    at: datetime
    execute: Execute
    writes: bool = False
    producer: str = ""


class Answer(NamedTuple):
    """The answer to a request: a value, or the error that it raises."""

    value: Any = None
    error: Exception | None = None


class ScheduledStore:
    """A store whose requests wait until `answer` is called for them.

    Args:
        loop: The loop of the program.
        at: The time that written objects get.

    Attributes:
        waiting: The requests that wait, by their number.
    """

    url = "memory://"

    def __init__(self, loop: asyncio.AbstractEventLoop, at: datetime) -> None:
        self.waiting: dict[int, Request] = {}
        self._futures: dict[int, asyncio.Future[Any]] = {}
        self._loop = loop
        self._at = at
        self._count = 0

    def answer(self, number: int, answer: Answer) -> None:
        """Answer the request with this number."""
        del self.waiting[number]
        future = self._futures.pop(number)
        if answer.error is None:
            future.set_result(answer.value)
        else:
            future.set_exception(answer.error.with_traceback(None))

    async def _request(
        self, text: str, execute: Execute, *, writes: bool = False, producer: str = ""
    ) -> Any:
        self._count += 1
        number = self._count
        self.waiting[number] = Request(text, self._at, execute, writes, producer)
        self._futures[number] = self._loop.create_future()
        try:
            return await self._futures[number]
        finally:
            self.waiting.pop(number, None)  # if the task was cancelled

    async def list_pages(
        self, prefix: str, *, start_after: str = ""
    ) -> AsyncIterator[Sequence[RunFile]]:
        """See `asyncagg.store.Store.list_pages`; as in S3, a page says whether more follow."""
        more = True
        while more:
            after = start_after

            async def execute(store: MemoryStore, after: str = after) -> tuple[Any, bool]:
                pages = [page async for page in store.list_pages(prefix, start_after=after)]
                return pages[0] if pages else [], len(pages) > 1

            page, more = await self._request(f"list {prefix} after {after!r}", execute)
            if page:
                yield page
                start_after = page[-1].key

    async def head(self, key: str) -> ObjectInfo:
        """See `asyncagg.store.Store.head`."""
        found: ObjectInfo = await self._request(f"head {key}", lambda store: store.head(key))
        return found

    async def get(self, key: str, *, if_match: str | None = None) -> Body:
        """See `asyncagg.store.Store.get`."""
        body: Body = await self._request(
            f"get {key}", lambda store: store.get(key, if_match=if_match)
        )
        return body

    async def get_range(
        self, key: str, start: int, length: int, *, if_match: str | None = None
    ) -> Body:
        """See `asyncagg.store.Store.get_range`."""
        body: Body = await self._request(
            f"get {length} bytes from {start} of {key}",
            lambda store: store.get_range(key, start, length, if_match=if_match),
        )
        return body

    @asynccontextmanager
    async def stream(self, key: str, *, if_match: str | None = None) -> AsyncIterator[StreamedBody]:
        """See `asyncagg.store.Store.stream`; the whole body is read at once."""
        body = await self.get(key, if_match=if_match)
        yield StreamedBody(_one_block(body.data), body.etag, body.content_encoding)

    async def put(
        self,
        key: str,
        body: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        content_type: str = "application/json",
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """See `asyncagg.store.Store.put`."""
        data = body if isinstance(body, bytes) else b"".join([block async for block in body])

        def execute(store: MemoryStore) -> Coroutine[Any, Any, str]:
            return store.put(
                key, data, condition=condition, content_type=content_type, metadata=metadata
            )

        etag: str = await self._request(f"put {key}", execute, writes=True)
        return etag

    async def copy(
        self,
        source: str,
        target: str,
        *,
        if_match: str,
        condition: Absent | None = Absent(),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """See `asyncagg.store.Store.copy`."""

        def execute(store: MemoryStore) -> Coroutine[Any, Any, None]:
            return store.copy(
                source, target, if_match=if_match, condition=condition, metadata=metadata
            )

        await self._request(f"copy {source} to {target}", execute, writes=True)

    async def delete(self, files: Sequence[RunFile]) -> Mapping[str, StoreError]:
        """See `asyncagg.store.Store.delete`; as in S3, only each key by itself is atomic."""
        failures: dict[str, StoreError] = {}
        for file in files:
            failures |= await self._delete(file)
        return failures

    async def _delete(self, file: RunFile) -> Mapping[str, StoreError]:
        failures: Mapping[str, StoreError] = await self._request(
            f"delete {file.key}", lambda store: store.delete([file]), writes=True
        )
        return failures

    async def deliver(self, key: str, data: bytes) -> None:
        """Write a run file as its producer does, whatever has its key."""
        await self._request(
            f"deliver {key}", lambda store: store.put(key, data), writes=True, producer=key
        )

    async def remove(self, key: str, *, producer: bool = False) -> None:
        """Delete an object without a condition."""

        async def execute(store: MemoryStore) -> None:
            store._objects.pop(key, None)

        await self._request(f"remove {key}", execute, writes=True, producer=key if producer else "")


async def _one_block(data: bytes) -> AsyncIterator[bytes]:
    yield data


# ------------------------------------------------------------------------------ programs

Work: TypeAlias = Callable[[ScheduledStore], Awaitable[object]]


class Program(NamedTuple):
    """A program to be interleaved with others.

    Attributes:
        name: Its name in schedules.
        work: What it does.
        at: The time that its written objects get.
    """

    name: str
    work: Work
    at: datetime


class _IdleSelector(selectors.SelectSelector):
    """Calls a function where the loop would wait."""

    def __init__(self, idle: Callable[[], None]) -> None:
        super().__init__()
        self._idle = idle

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return at once: nothing from outside is waited for."""
        if timeout != 0:
            self._idle()
        return []


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that stops when all its tasks wait, and uses no threads."""

    def __init__(self) -> None:
        super().__init__(_IdleSelector(self.stop))

    def run_in_executor(  # type: ignore[override]  # its arguments have no types here
        self,
        executor: object,  # noqa: ARG002 - there are no threads
        func: Callable[..., Any],
        *args: Any,
    ) -> asyncio.Future[Any]:
        """Call a function at once."""
        future = self.create_future()
        future.set_result(func(*args))
        return future


class _Session:
    """A program that runs, alone, up to its next requests."""

    def __init__(self, loop: _Loop, program: Program) -> None:
        async def main() -> object:
            return await program.work(self.store)

        self.store = ScheduledStore(loop, program.at)
        self._loop = loop
        self.task = loop.create_task(main())
        loop.run_forever()

    def answer(self, number: int, answer: Answer) -> None:
        """Answer a request, and run on up to the next ones."""
        self.store.answer(number, answer)
        self._loop.run_forever()

    def close(self) -> None:
        """Cancel what still runs."""
        while not self.task.done():
            self.task.cancel()
            self._loop.run_forever()
        if not self.task.cancelled():
            self.task.exception()  # retrieved, or asyncio complains


@dataclass(eq=False, slots=True)
class Node:
    """What a program has done after one sequence of answers.

    Attributes:
        program: The program.
        number: Unique in the exploration.
        path: The answers, each with the number of its request.
        requests: The requests that wait, by their number; none if the program has ended.
        result: What it returned.
        error: What it raised.
        children: The nodes after one more answer.
    """

    program: Program
    number: int
    path: tuple[tuple[int, Answer], ...]
    requests: Mapping[int, Request]
    result: object = None
    error: BaseException | None = None
    children: dict[str, Node] = field(default_factory=dict)


class _Nodes:
    """The nodes of all programs. Each sequence of answers is executed once."""

    def __init__(self, loop: _Loop) -> None:
        self._count = 0
        self._loop = loop
        self._sessions: dict[int, _Session] = {}  # at the node with this number
        self._roots: dict[Program, Node] = {}

    def root(self, program: Program) -> Node:
        """Return the node of a program that has got no answer yet."""
        if program not in self._roots:
            self._roots[program] = self._add(program, (), _Session(self._loop, program))
        return self._roots[program]

    def following(self, node: Node, number: int, answer: Answer) -> Node:
        """Return the node that an answer leads to."""
        key = f"{number} {answer!r}"
        if key not in node.children:
            session = self._sessions.pop(node.number, None) or self._replay(node)
            session.answer(number, answer)
            path = (*node.path, (number, answer))
            node.children[key] = self._add(node.program, path, session)
        return node.children[key]

    def close(self) -> None:
        """End every session."""
        for session in self._sessions.values():
            session.close()

    def _replay(self, node: Node) -> _Session:
        session = _Session(self._loop, node.program)
        for number, answer in node.path:
            session.answer(number, answer)
        texts = [each.text for each in session.store.waiting.values()]
        expected = [each.text for each in node.requests.values()]
        assert texts == expected, f"not deterministic: {texts}, the first time {expected}"
        return session

    def _add(
        self, program: Program, path: tuple[tuple[int, Answer], ...], session: _Session
    ) -> Node:
        self._count += 1
        task = session.task
        node = Node(program, self._count, path, dict(session.store.waiting))
        if task.done():
            node.error = task.exception()
            node.result = None if node.error else task.result()
        else:
            assert node.requests, f"deadlock: {program.name} waits, but for no answer"
            self._sessions[node.number] = session
            if len(self._sessions) > _MOST_SESSIONS:
                self._sessions.pop(next(iter(self._sessions))).close()
        return node


_MOST_SESSIONS = 500
"""Programs kept at their node, to go on from there without a replay."""


# ------------------------------------------------------------------------------ worlds


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


class _Worlds:
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
        for other, each in after._objects.items()
    )
    return set() if archived else {(key, old.etag)}


def _at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as stopped:
        return stopped.value
    raise AssertionError("a request to the store in memory waits")


# ------------------------------------------------------------------------------ exploration


@dataclass(slots=True)
class Explored:
    """What an exploration has seen.

    Attributes:
        schedules: Sequences of steps, each of which ends with a crash of all that still runs.
        states: Different states that they lead through.
        worlds: Different contents of the store.
        steps: The length of the longest schedule.
        seconds: Time that it took.
        broken: The first broken promise, which ends the exploration; empty if all hold.
        schedule: The steps that lead there; no schedule with fewer steps breaks a promise.
    """

    schedules: int = 0
    states: int = 0
    worlds: int = 0
    steps: int = 0
    seconds: float = 0.0
    broken: str = ""
    schedule: Sequence[str] = ()

    def __str__(self) -> str:
        return "\n    ".join([self.broken, *self.schedule])


class _State(NamedTuple):
    """What the future depends on.

    Attributes:
        world: The objects.
        faults: How many answers were lost so far.
        late: The requests that were sent, but have not arrived yet; perhaps they never do.
        nodes: The node of each program, by number: equal programs are interchangeable.
    """

    world: World
    faults: int
    late: tuple[Request, ...]
    nodes: tuple[Node, ...]


class _Step(NamedTuple):
    """What leads from one state to another: a request, and its program's place if it went on."""

    request: Request
    position: int | None = None
    outcome: str = ""


def _sorted(nodes: Iterable[Node]) -> tuple[Node, ...]:
    return tuple(sorted(nodes, key=attrgetter("number")))


_NO_ANSWER = Answer(error=TransientError("no answer"))


@dataclass(frozen=True)
class Explorer:
    """Visits every state that the programs can reach.

    Attributes:
        store: The objects at the start.
        written: The run files at the start, those that were settled before included.
        programs: What is interleaved.
        ends: What is run, one after the other, when all programs have ended or crashed.
        faults: The most answers that are lost in a schedule. The request of a lost answer is
            executed at any later moment, or never; the program sends it again, as the retry layer
            does, or gets an error.
        check_now: Raises if a promise is broken that holds at any moment.
        check_end: Raises if a promise is broken after the ends, whose results it gets.
        check_results: Raises if the results of the programs, of which all have ended, are wrong;
            those of programs that gave up are missing. It also gets how many answers were lost.
    """

    store: MemoryStore
    written: frozenset[Original]
    programs: Sequence[Program]
    ends: Sequence[Program]
    faults: int
    check_now: Callable[[World], object]
    check_end: Callable[[World, Sequence[object]], object]
    check_results: Callable[[World, Sequence[object], int], object]

    def explore(self) -> Explored:
        """Visit every state, those of fewer steps first."""
        loop = _Loop()
        nodes = _Nodes(loop)
        try:
            return _Search(self, nodes).work()
        finally:
            nodes.close()
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()


class _Search:
    """One exploration."""

    def __init__(self, explorer: Explorer, nodes: _Nodes) -> None:
        self._explorer = explorer
        self._nodes = nodes
        self._worlds = _Worlds()
        self._checked: set[int] = set()
        self._parents: dict[_State, tuple[_State, _Step]] = {}

    def work(self) -> Explored:
        started, explored = perf_counter(), Explored()
        world = self._worlds.intern(self._explorer.store, self._explorer.written, frozenset())
        roots = _sorted(map(self._nodes.root, self._explorer.programs))
        # Every schedule that leads to a state has the same length: the levels are disjoint.
        level = {_State(world, 0, (), roots): 1}
        while level and not explored.broken:
            level = self._visit(level, explored)
            explored.steps += bool(level)
        explored.worlds = len(self._worlds.known)
        explored.seconds = perf_counter() - started
        return explored

    def _visit(self, level: Mapping[_State, int], explored: Explored) -> dict[_State, int]:
        """Check the states of a level, and return those of the next."""
        following: dict[_State, int] = {}
        for state, schedules in level.items():
            explored.states += 1
            explored.schedules += schedules
            try:
                self._check(state)
            except Exception as error:  # noqa: BLE001 - whatever the package raises is a finding
                explored.broken = f"{type(error).__name__}: {error}"
                explored.schedule = self._schedule(state)
                return {}
            for step, child in self._steps(state):
                following[child] = following.get(child, 0) + schedules
                self._parents.setdefault(child, (state, step))
        return following

    def _steps(self, state: _State) -> Iterator[tuple[_Step, _State]]:
        """Yield every step that is possible in a state, and where it leads."""
        world, faults, late, nodes = state
        for place, request in enumerate(late):
            after, _ = self._worlds.execute(world, request)
            rest = (*late[:place], *late[place + 1 :])
            yield _Step(request, outcome="arrives late"), _State(after, faults, rest, nodes)
        for position, node in enumerate(nodes):
            for number, request in node.requests.items():
                after, answer = self._worlds.execute(world, request)
                moved = self._move(nodes, position, number, answer)
                yield _Step(request, position), _State(after, faults, late, moved)
                if faults < self._explorer.faults and not request.producer:
                    sent = (*late, request) if request.writes else late
                    moved = self._move(nodes, position, number, _NO_ANSWER)
                    step = _Step(request, position, "no answer")
                    yield step, _State(world, faults + 1, sent, moved)
                    if request.writes:
                        step = _Step(request, None, "no answer, sent again")
                        yield step, _State(world, faults + 1, sent, nodes)

    def _move(
        self, nodes: tuple[Node, ...], position: int, number: int, answer: Answer
    ) -> tuple[Node, ...]:
        child = self._nodes.following(nodes[position], number, answer)
        return _sorted((*nodes[:position], child, *nodes[position + 1 :]))

    def _check(self, state: _State) -> None:
        for node in state.nodes:
            gave_up = state.faults and isinstance(node.error, TransientError)
            if node.error and not gave_up:
                raise node.error
        if state.world.number not in self._checked:
            self._checked.add(state.world.number)
            self._explorer.check_now(state.world)
            self._explorer.check_end(*self._end(state.world))
        if not any(node.requests for node in state.nodes):
            results = [node.result for node in state.nodes if not node.error]
            self._explorer.check_results(state.world, results, state.faults)

    def _end(self, world: World) -> tuple[World, list[object]]:
        """Let everything crash, run the ends, and return what is left and their results."""
        results = []
        for program in self._explorer.ends:
            node = self._nodes.root(program)
            while node.requests:
                number, request = next(iter(node.requests.items()))
                world, answer = self._worlds.execute(world, request)
                node = self._nodes.following(node, number, answer)
            if node.error:
                raise node.error
            results.append(node.result)
        return world, results

    def _schedule(self, state: _State) -> list[str]:
        """Return the steps that lead to a state, in words."""
        lines: list[str] = []
        while state in self._parents:
            state, step = self._parents[state]
            _, answer = self._worlds.execute(state.world, step.request)
            outcome = step.outcome or (type(answer.error).__name__ if answer.error else "done")
            place = step.position
            name = "the network" if place is None else state.nodes[place].program.name
            lines.append(f"{name}: {step.request.text}: {outcome}")
        return lines[::-1]


# ------------------------------------------------------------------------------ determinism


async def _run_here(work: Callable[[], object], **_options: object) -> object:
    return work()


async def _no_checkpoint() -> None:
    return


@contextmanager
def deterministic(page: int = 1000) -> Iterator[pytest.MonkeyPatch]:
    """Run the package's code without threads, pauses and logs.

    Args:
        page: Objects of a page of a listing.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database_module, "to_thread", SimpleNamespace(run_sync=_run_here))
        patch.setattr(anyio.lowlevel, "checkpoint", _no_checkpoint)
        patch.setattr(memory_module, "_PAGE", page)
        patch.setattr(inventory_module, "AGGREGATES_AT_ONCE", 1)
        logging.disable()
        try:
            yield patch
        finally:
            logging.disable(logging.NOTSET)
