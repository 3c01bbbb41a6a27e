"""What a program does after each sequence of answers; each sequence is executed once, alone.

What a program does next depends only on the answers that it got. So it is remembered as a `Node`,
and a schedule is a sequence of steps between nodes.
"""

from __future__ import annotations

import asyncio
import logging
import selectors
from collections.abc import (
    Awaitable,
    Callable,
    Iterator,
    Mapping,
)
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from types import SimpleNamespace
from typing import Any, NamedTuple, Self, TypeAlias

import anyio.lowlevel
import pytest

import asyncagg.job.pipeline as pipeline_module
import asyncagg.store.memory as memory_module
import asyncagg.verify.database as database_module
import asyncagg.verify.inventory as inventory_module
from testkit.explorer.store import Answer, Request, ScheduledStore

__all__ = ("Node", "Nodes", "Program", "deterministic")


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


class Nodes:
    """The nodes of all programs. Each sequence of answers is executed once."""

    def __init__(self) -> None:
        self._count = 0
        self._loop = _Loop()
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for session in self._sessions.values():
            session.close()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

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


async def _run_here(work: Callable[[], object], **_options: object) -> object:
    return work()


async def _no_checkpoint() -> None:
    return


@contextmanager
def deterministic(page: int = 1000, windows: int = 1) -> Iterator[pytest.MonkeyPatch]:
    """Run the package's code without threads, pauses and logs.

    Args:
        page: Objects of a page of a listing.
        windows: Windows that a run has in progress.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database_module, "to_thread", SimpleNamespace(run_sync=_run_here))
        patch.setattr(anyio.lowlevel, "checkpoint", _no_checkpoint)
        patch.setattr(memory_module, "_PAGE", page)
        patch.setattr(pipeline_module, "WINDOWS_AT_ONCE", windows)
        patch.setattr(inventory_module, "AGGREGATES_AT_ONCE", 1)
        logging.disable()
        try:
            yield patch
        finally:
            logging.disable(logging.NOTSET)
