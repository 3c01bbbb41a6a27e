"""The one retry layer around the requests to a store."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import anyio

from asyncagg.errors import ThrottledError, TransientError

__all__ = ("Retry", "RetryPolicy")

T = TypeVar("T")


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
