"""What bounds the work: workers, bytes in flight, time, and the retries of one request."""

from __future__ import annotations

import math
import random
from collections import OrderedDict, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import anyio
from anyio.abc import TaskGroup

from asyncagg.errors import ThrottledError, TransientError

__all__ = ("ByteLimiter", "Deadline", "Retry", "RetryPolicy", "for_each", "task_group")

T = TypeVar("T")


async def for_each(
    items: Iterable[T], work: Callable[[T], Awaitable[object]], *, workers: int
) -> None:
    """Do ``work`` on every item, at most ``workers`` at a time.

    The workers pull from one iterator: no task, stream or queue entry per item.

    Raises:
        Exception: The first failure of ``work`` itself, after the other workers are cancelled.
    """
    iterator = iter(items)

    async def worker() -> None:
        for item in iterator:
            await work(item)

    async with task_group() as group:
        for _ in range(workers):
            group.start_soon(worker)


@asynccontextmanager
async def task_group() -> AsyncIterator[TaskGroup]:
    """Open a task group whose failure is one error, the first, instead of a tree of them."""
    try:
        async with anyio.create_task_group() as group:
            yield group
    except BaseExceptionGroup as failures:
        first: BaseException = failures
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None


class _Held:
    """The context of `ByteLimiter.hold`; as a generator it would cost thrice as much per file."""

    __slots__ = ("_limiter", "_weight")

    def __init__(self, limiter: ByteLimiter, weight: int) -> None:
        self._limiter = limiter
        self._weight = weight

    async def __aenter__(self) -> None:
        if not self._limiter.take(self._weight):
            await self._limiter.turn(self._weight)

    async def __aexit__(self, *_: object) -> None:
        self._limiter.release(self._weight)


class ByteLimiter:
    """Bounds the bytes of bodies in flight: first come, first served.

    A weight above the capacity counts as the capacity, so one large body passes alone.

    Args:
        capacity: The most bytes in flight.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity {capacity!r}: at least 1 byte")
        self.capacity = capacity
        self.in_flight = 0
        self._waiting: OrderedDict[anyio.Event, int] = OrderedDict()

    def hold(self, weight: int) -> _Held:
        """Hold ``weight`` bytes of the capacity for as long as the context lasts."""
        return _Held(self, weight)

    # What `hold` does, for who holds once per file and has no room for its frames

    def take(self, weight: int) -> bool:
        """Take ``weight`` bytes and say True, if nobody has to wait for them."""
        weight = min(weight, self.capacity)
        if self._waiting or self.in_flight + weight > self.capacity:
            return False
        self.in_flight += weight
        return True

    async def turn(self, weight: int) -> None:
        """Wait for ``weight`` bytes that could not be taken, and take them."""
        weight = min(weight, self.capacity)
        turn = anyio.Event()
        self._waiting[turn] = weight
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():  # it was granted in the moment of the cancellation
                self.release(weight)
            else:
                del self._waiting[turn]
                self._grant()
            raise

    def release(self, weight: int) -> None:
        """Give back ``weight`` bytes that were taken."""
        self.in_flight -= min(weight, self.capacity)
        if self._waiting:
            self._grant()

    def _grant(self) -> None:
        while self._waiting:
            turn, weight = next(iter(self._waiting.items()))
            if self.in_flight + weight > self.capacity:
                return
            del self._waiting[turn]
            self.in_flight += weight
            turn.set()


@dataclass(frozen=True, slots=True)
class Deadline:
    """The moments by which a run must have done things, on the event loop's clock, in seconds.

    Attributes:
        ends: When the run must be over; infinity where there is no deadline.
        reserve: How long before that it ends its work, to say what is left.
    """

    ends: float = math.inf
    reserve: float = 0.0

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """Return the deadline that is ``seconds`` from now; ``None`` means no deadline."""
        if seconds is None:
            return cls()
        return cls(anyio.current_time() + seconds, min(5.0, seconds / 10))

    @property
    def work_ends(self) -> float:
        """When the last request must be over."""
        return self.ends - self.reserve

    def intake_ends(self) -> float:
        """When to stop fetching, from now: to archive takes about as long as to fetch."""
        now = anyio.current_time()
        return now + max(0.0, self.work_ends - now) / 2


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently one request is tried.

    Attributes:
        attempts: Tries in all, the first included.
        base_seconds: The longest first pause; it doubles with each further try.
        cap_seconds: The longest pause of all.
        budget_seconds: The most time from the first failure to the start of the last try.
    """

    attempts: int = 8
    base_seconds: float = 0.1
    cap_seconds: float = 10.0
    budget_seconds: float = 60.0


class Retry:
    """The one retry layer: capped exponential backoff with full jitter.

    Retried are `TransientError` and its kinds, nothing else. A throttled request slows down every
    request that shares this object, so that many workers do not hammer together. A pause that would
    pass the budget, or the deadline of the surrounding cancel scope, is not begun: the error is
    raised instead. Source of the jitter:
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/

    Args:
        policy: How often and how patiently.
        sleep: The pause, in seconds.
        uniform: Returns a number between its two arguments.

    Attributes:
        requests: How many requests were sent, tries included, by operation.
        retries: How many requests were tried again, by operation.
    """

    def __init__(
        self,
        policy: RetryPolicy | None = None,
        *,
        sleep: Callable[[float], Awaitable[object]] = anyio.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.policy = policy or RetryPolicy()
        self.requests: dict[str, int] = defaultdict(int)
        self.retries: dict[str, int] = defaultdict(int)
        self._sleep = sleep
        self._uniform = uniform
        self._resume_at: float | None = None

    async def call(self, operation: str, request: Callable[[], Awaitable[T]]) -> T:
        """Return what ``request`` returns, trying it again while its trouble is transient.

        Raises:
            TransientError: It was still in trouble at the last try; ``attempts`` says how many.
        """
        attempt = 0
        started: float | None = None
        while True:
            if self._resume_at is not None:
                await self._wait_for_the_others(self._resume_at)
            attempt += 1
            self.requests[operation] += 1
            try:
                return await request()
            except TransientError as error:
                error.attempts = attempt
                started = anyio.current_time() if started is None else started
                pause = self._pause(attempt)
                if attempt >= self.policy.attempts or self._too_late(started, pause):
                    raise
                self.retries[operation] += 1
                if isinstance(error, ThrottledError):
                    resume_at = anyio.current_time() + pause / 2
                    self._resume_at = max(self._resume_at or resume_at, resume_at)
            await self._sleep(pause)

    def _pause(self, attempt: int) -> float:
        longest = min(self.policy.cap_seconds, self.policy.base_seconds * 2 ** (attempt - 1))
        return self._uniform(0, longest)

    def _too_late(self, started: float, pause: float) -> bool:
        resumed = anyio.current_time() + pause
        budget_ends = started + self.policy.budget_seconds
        return resumed > min(budget_ends, anyio.current_effective_deadline())

    async def _wait_for_the_others(self, resume_at: float) -> None:
        wait = resume_at - anyio.current_time()
        if wait <= 0:
            self._resume_at = None
        elif anyio.current_time() + wait <= anyio.current_effective_deadline():
            # Spread the return: all at once would be the next burst.
            await self._sleep(wait * self._uniform(1, 2))
