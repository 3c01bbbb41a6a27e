"""The one retry layer around the requests to a store."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

import anyio

from asyncagg.errors import ConnectionLostError, ThrottledError, TimedOutError, TransientError

T = TypeVar("T")

_REASONS: dict[str, type[TransientError]] = {
    "throttled": ThrottledError,
    "timed_out": TimedOutError,
    "reset": ConnectionLostError,
    "other": TransientError,
}

REASONS = tuple(_REASONS)
"""Why a request is sent again. *reset*: the connection was refused, reset or closed too early."""

_counts: ContextVar[dict[str, int] | None] = ContextVar("retries_of_run", default=None)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The limits of the retries of one request.

    Attributes:
        attempts: The most attempts, the first included.
        base_seconds: The longest first pause; it doubles with each further attempt.
        cap_seconds: The longest pause.
        budget_seconds: The most time from the first failure to the start of the last attempt.
    """

    attempts: int = 8
    base_seconds: float = 0.1
    cap_seconds: float = 10.0
    budget_seconds: float = 60.0


class Retry:
    """Retries with capped exponential backoff and full jitter.

    Only a `TransientError` is retried. After a `ThrottledError`, all requests that share this
    object wait, so that they do not overload the server together. If a pause would exceed the
    budget or the deadline of the surrounding cancel scope, the error is raised at once. Source of
    the jitter:
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/

    Args:
        policy: The limits.
        sleep: Waits for a number of seconds.
        uniform: Returns a random number between its two arguments.

    Attributes:
        requests: The number of requests sent, retries included, by operation.
        retries: The number of retries, by operation and by one of `REASONS`.
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
        self.retries: dict[tuple[str, str], int] = defaultdict(int)
        self._sleep = sleep
        self._uniform = uniform
        self._throttled_until: float | None = None

    async def call(self, operation: str, request: Callable[[], Awaitable[T]]) -> T:
        """Return the result of ``request``, and call it again after a `TransientError`.

        Raises:
            TransientError: The last attempt failed, too; its ``attempts`` is their number.
        """
        attempt = 0
        failed_at: float | None = None
        while True:
            if self._throttled_until is not None:
                await self._wait_out_throttling(self._throttled_until)
            attempt += 1
            self.requests[operation] += 1
            try:
                return await request()
            except TransientError as error:
                error.attempts = attempt
                failed_at = anyio.current_time() if failed_at is None else failed_at
                pause = self._pause(attempt)
                if attempt >= self.policy.attempts or self._is_too_late(failed_at, pause):
                    raise
                self._count_retry(operation, error)
                if isinstance(error, ThrottledError):
                    until = anyio.current_time() + pause / 2
                    self._throttled_until = max(self._throttled_until or until, until)
            await self._sleep(pause)

    def _count_retry(self, operation: str, error: TransientError) -> None:
        reason = next(name for name, kind in _REASONS.items() if isinstance(error, kind))
        self.retries[operation, reason] += 1
        counts = _counts.get()
        if counts is not None:
            counts[reason] += 1

    def _pause(self, attempt: int) -> float:
        longest = min(self.policy.cap_seconds, self.policy.base_seconds * 2 ** (attempt - 1))
        return self._uniform(0, longest)

    def _is_too_late(self, failed_at: float, pause: float) -> bool:
        next_attempt = anyio.current_time() + pause
        budget_ends = failed_at + self.policy.budget_seconds
        return next_attempt > min(budget_ends, anyio.current_effective_deadline())

    async def _wait_out_throttling(self, until: float) -> None:
        wait = until - anyio.current_time()
        if wait <= 0:
            self._throttled_until = None
        elif anyio.current_time() + wait <= anyio.current_effective_deadline():
            # Random, because all requests at once would be the next burst.
            await self._sleep(wait * self._uniform(1, 2))


@contextmanager
def counting_retries(counts: dict[str, int]) -> Iterator[None]:
    """Also add the retries that happen inside the context, and in its tasks, to these counts."""
    token = _counts.set(counts)
    try:
        yield
    finally:
        _counts.reset(token)
