"""Visit every state that a few programs can reach.

Schedules that lead to the same objects and the same nodes have the same future. So each state is
visited once, and the schedules that lead to it are counted. Reads that commute lead to one state.

A crash needs no step of its own: a program that crashed is one that takes no further step. So in
every state, the programs in `Explorer.ends` are run on the objects that are left.
"""

from __future__ import annotations

from collections.abc import (
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from operator import attrgetter
from time import perf_counter
from typing import NamedTuple

from asyncagg.errors import TransientError
from asyncagg.store.memory import MemoryStore
from testkit.explorer.programs import Node, Nodes, Program
from testkit.explorer.store import Answer, Request
from testkit.explorer.worlds import World, Worlds
from testkit.promises import Original

__all__ = ("Explored", "Explorer")


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
        with Nodes() as nodes:
            return _Search(self, nodes).work()


class _Search:
    """One exploration."""

    def __init__(self, explorer: Explorer, nodes: Nodes) -> None:
        self._explorer = explorer
        self._nodes = nodes
        self._worlds = Worlds()
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
