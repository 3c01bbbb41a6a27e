"""What bounds the work: workers, bytes in flight, time and retries. No test really waits."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import NamedTuple

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit.virtual import run_virtually

from asyncagg.errors import (
    AccessDeniedError,
    ConnectionLostError,
    NotFoundError,
    PreconditionFailedError,
    ThrottledError,
    TransientError,
)
from asyncagg.job.byte_limiter import ByteLimiter
from asyncagg.job.deadline import Deadline
from asyncagg.runtime.tasks import for_each, task_group
from asyncagg.store.retry import Retry, RetryPolicy


class Holder(NamedTuple):
    """A task that holds bytes: when it comes, how many, for how long, after what it gives up."""

    comes: int
    weight: int
    holds: int
    patience: int | None


holders = st.lists(
    st.builds(
        Holder,
        comes=st.integers(0, 5),
        weight=st.integers(0, 12),
        holds=st.integers(0, 5),
        patience=st.none() | st.integers(0, 4),
    ),
    max_size=15,
)


class Watch:
    """Follows the holders of one limiter from inside."""

    def __init__(self, capacity: int) -> None:
        self.limiter = ByteLimiter(capacity)
        self.held = 0
        self.waiting: dict[int, int] = {}  # weights in the order in which their tasks came
        self.entered: dict[int, float] = {}

    async def hold(self, number: int, holder: Holder) -> None:
        await anyio.sleep(holder.comes)
        weight = min(holder.weight, self.limiter.capacity)
        with anyio.move_on_after(holder.patience):
            self.waiting[number] = weight
            try:
                async with self.limiter.hold(holder.weight):
                    self.waiting.pop(number)
                    self.entered[number] = anyio.current_time()
                    self.held += weight
                    assert self.held <= self.limiter.in_flight <= self.limiter.capacity
                    try:
                        await anyio.sleep(holder.holds)
                    finally:
                        self.held -= weight
            finally:
                self.waiting.pop(number, None)

    async def check_at_rest(self, until: float) -> None:
        """Between any two moments: what is first in line does not fit, or there is no line."""
        await anyio.sleep(0.5)
        while anyio.current_time() < until:
            assert self.held == self.limiter.in_flight
            if self.waiting:
                first = next(iter(self.waiting.values()))
                assert self.held + first > self.limiter.capacity, "a lost wake-up"
            await anyio.sleep(1)


class TestByteLimiter:
    @given(st.integers(1, 10), holders)
    def test_any_schedule(self, capacity: int, schedule: list[Holder]) -> None:
        """Bounded, first come first served, no lost wake-up, no deadlock, nothing kept."""
        watch = Watch(capacity)

        async def work() -> None:
            async with task_group() as group:
                for number, holder in enumerate(schedule):
                    group.start_soon(watch.hold, number, holder)
                group.start_soon(watch.check_at_rest, 130.0)

        run_virtually(work)
        assert watch.limiter.in_flight == watch.held == 0
        assert not watch.limiter._waiting
        staying = {number for number, holder in enumerate(schedule) if holder.patience is None}
        assert staying <= set(watch.entered), "a task that nobody cancelled never had its turn"
        for number, other in [(a, b) for a in watch.entered for b in watch.entered]:
            if schedule[number].comes < schedule[other].comes:
                assert watch.entered[number] <= watch.entered[other], "one pushed in"

    def test_a_small_one_does_not_overtake(self) -> None:
        """What would fit still waits behind what does not: a large body is never starved."""
        order: list[str] = []

        async def hold(limiter: ByteLimiter, name: str, weight: int, seconds: float) -> None:
            async with limiter.hold(weight):
                order.append(name)
                await anyio.sleep(seconds)

        async def work() -> None:
            limiter = ByteLimiter(10)
            async with task_group() as group:
                for name, weight in (("half", 5), ("all", 10), ("small", 1), ("tiny", 0)):
                    group.start_soon(hold, limiter, name, weight, 1)

        run_virtually(work)
        assert order == ["half", "all", "small", "tiny"]

    def test_one_that_gives_up_lets_the_next_in(self) -> None:
        """Who leaves the line holds nobody up: the next has its turn at once, if it fits."""

        async def work() -> float:
            limiter = ByteLimiter(10)

            async def impatient() -> None:
                with anyio.move_on_after(1):
                    async with limiter.hold(10):
                        raise AssertionError("there was no room")

            async with limiter.hold(5), task_group() as group:
                group.start_soon(impatient)
                await anyio.lowlevel.checkpoint()
                async with limiter.hold(5):
                    return anyio.current_time()

        assert run_virtually(work) == 1

    def test_more_than_the_capacity_passes_alone(self) -> None:
        """A body larger than the whole budget waits until it is alone, then passes."""
        together: list[int] = []

        async def work() -> None:
            limiter = ByteLimiter(10)
            inside = 0

            async def hold(weight: int) -> None:
                nonlocal inside
                async with limiter.hold(weight):
                    inside += 1
                    await anyio.sleep(1)
                    together.append(inside)
                    inside -= 1

            async with task_group() as group:
                for weight in (3, 3, 1000, 3, 3):
                    group.start_soon(hold, weight)

        run_virtually(work)
        assert together == [2, 1, 1, 2, 1]

    def test_cancelled_in_the_moment_it_was_granted(self) -> None:
        """A turn that comes together with a cancellation of asyncio's own kind is handed on."""

        async def work() -> ByteLimiter:
            limiter = ByteLimiter(1)
            entered: list[str] = []

            async def hold(name: str) -> None:
                async with limiter.hold(1):
                    entered.append(name)

            async with limiter.hold(1):
                second = asyncio.create_task(hold("second"))
                await asyncio.sleep(0)
                third = asyncio.create_task(hold("third"))
                await asyncio.sleep(0)
            second.cancel()  # granted in the line above, not running yet
            await asyncio.wait([second, third])
            assert second.cancelled()
            assert entered == ["third"]
            return limiter

        assert run_virtually(work).in_flight == 0

    def test_an_error_inside_gives_the_bytes_back(self) -> None:
        """Whatever ends the context ends the hold."""

        async def work() -> ByteLimiter:
            limiter = ByteLimiter(1)
            with pytest.raises(ValueError, match="inside"):
                async with limiter.hold(1):
                    raise ValueError("inside")
            async with limiter.hold(1):
                pass
            return limiter

        assert run_virtually(work).in_flight == 0

    @pytest.mark.parametrize("capacity", [0, -1])
    def test_needs_a_capacity(self, capacity: int) -> None:
        """A limiter that nothing could pass is refused."""
        with pytest.raises(ValueError, match=f"capacity {capacity}: expected at least 1 byte"):
            ByteLimiter(capacity)


class TestForEach:
    @given(st.integers(1, 6), st.lists(st.integers(0, 4), max_size=20))
    def test_every_item_once_and_never_too_many(self, workers: int, pauses: list[int]) -> None:
        """Each item is worked on once; as many at a time as there are workers, and no more."""
        running = 0
        most = 0
        done: list[int] = []

        async def one(item: tuple[int, int]) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            assert running <= workers
            await anyio.sleep(item[1])
            running -= 1
            done.append(item[0])

        run_virtually(lambda: for_each(enumerate(pauses), one, workers=workers))
        assert sorted(done) == list(range(len(pauses)))
        assert running == 0
        if all(pauses):
            assert most == min(workers, len(pauses))

    def test_takes_an_item_only_when_a_worker_is_free(self) -> None:
        """The items are pulled one by one: a million of them need no million of anything."""
        pulled = 0

        def items() -> Iterator[int]:
            nonlocal pulled
            for number in range(100):
                pulled += 1
                yield number

        async def one(item: int) -> None:
            assert pulled <= item + 4
            await anyio.sleep(1)

        run_virtually(lambda: for_each(items(), one, workers=4))
        assert pulled == 100

    def test_the_first_error_comes_out_as_itself(self) -> None:
        """The first failure is raised, not a group of them, and the others are cancelled."""
        cancelled: list[int] = []

        async def one(item: int) -> None:
            try:
                await anyio.sleep(item)
            except anyio.get_cancelled_exc_class():
                cancelled.append(item)
                raise
            raise NotFoundError(f"item {item}", key=str(item))

        async def work() -> float:
            with pytest.raises(NotFoundError, match=r"^item 1$") as failure:
                await for_each([3, 1, 2, 9], one, workers=3)
            assert failure.value.__cause__ is None
            return anyio.current_time()

        assert run_virtually(work) == 1
        assert sorted(cancelled) == [2, 3]

    def test_two_errors_at_once(self) -> None:
        """Of several failures at the same moment the first is raised; the others are its notes."""

        async def one(item: int) -> None:
            raise NotFoundError(f"item {item}")

        async def work() -> None:
            with pytest.raises(NotFoundError) as failure:
                await for_each(range(5), one, workers=5)
            assert str(failure.value) == "item 0"
            assert failure.value.__notes__ == [
                f"another task failed too: NotFoundError: item {number}" for number in range(1, 5)
            ]

        run_virtually(work)

    def test_an_error_of_the_items_comes_out(self) -> None:
        """What the iterator itself raises is raised."""

        def items() -> Iterator[int]:
            yield 1
            raise LookupError("no more")

        async def one(_item: int) -> None:
            await anyio.sleep(1)

        async def work() -> None:
            with pytest.raises(LookupError, match="no more"):
                await for_each(items(), one, workers=2)

        run_virtually(work)

    def test_cancellation_reaches_every_worker(self) -> None:
        """Cancelled from outside, no worker goes on and no further item is taken."""
        begun: list[int] = []
        ended: list[int] = []

        async def one(item: int) -> None:
            begun.append(item)
            await anyio.sleep(10)
            ended.append(item)

        async def work() -> None:
            with anyio.move_on_after(15) as scope:
                await for_each(range(100), one, workers=3)
            assert scope.cancelled_caught
            assert anyio.current_time() == 15

        run_virtually(work)
        assert begun == [0, 1, 2, 3, 4, 5]
        assert ended == [0, 1, 2]


class TestTaskGroup:
    def test_a_group_in_a_group_is_one_error(self) -> None:
        """However deep the tree of failures, its first leaf comes out."""

        async def fail() -> None:
            raise ExceptionGroup("outer", [ExceptionGroup("inner", [KeyError("leaf")])])

        async def work() -> None:
            with pytest.raises(KeyError, match="leaf"):
                async with task_group() as group:
                    group.start_soon(fail)

        run_virtually(work)

    def test_an_error_of_the_host_ends_the_tasks(self) -> None:
        """What is raised inside the context cancels the tasks and comes out as itself."""

        async def work() -> float:
            with pytest.raises(OSError, match="host"):  # noqa: PT012 - the context is what raises
                async with task_group() as group:
                    group.start_soon(anyio.sleep_forever)
                    raise OSError("host")
            return anyio.current_time()

        assert run_virtually(work) == 0


class Requests:
    """A request that fails as told, then succeeds; notes when it was tried."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.tried: list[float] = []

    async def __call__(self) -> str:
        self.tried.append(anyio.current_time())
        await anyio.lowlevel.checkpoint()
        if self.failures:
            raise self.failures.pop(0)
        return "answer"


def longest(_least: float, most: float) -> float:
    """Return the longest pause: no jitter."""
    return most


def shortest(least: float, _most: float) -> float:
    """Return the shortest pause."""
    return least


class TestRetry:
    def test_success_is_not_retried(self) -> None:
        """What succeeds is asked for once."""
        retry, request = Retry(), Requests()
        assert run_virtually(lambda: retry.call("get", request)) == "answer"
        assert request.tried == [0]
        assert retry.retries == {}

    def test_backoff_doubles_up_to_a_cap(self) -> None:
        """The longest pauses are 1, 2, 4, 5, 5 seconds with a base of 1 and a cap of 5."""
        policy = RetryPolicy(attempts=6, base_seconds=1, cap_seconds=5, budget_seconds=100)
        retry = Retry(policy, uniform=longest)
        request = Requests(*[ConnectionLostError("reset") for _ in range(5)])
        assert run_virtually(lambda: retry.call("get", request)) == "answer"
        assert request.tried == [0, 1, 3, 7, 12, 17]
        assert retry.retries == {("get", "reset"): 5}

    def test_jitter_is_full(self) -> None:
        """A pause is drawn between nothing and the longest, each time, and slept."""
        drawn: list[tuple[float, float]] = []
        slept: list[float] = []

        def uniform(least: float, most: float) -> float:
            drawn.append((least, most))
            return most / 4

        async def sleep(pause: float) -> None:
            slept.append(pause)

        retry = Retry(RetryPolicy(base_seconds=0.5), uniform=uniform, sleep=sleep)
        request = Requests(*[TransientError("reset") for _ in range(3)])
        run_virtually(lambda: retry.call("get", request))
        assert drawn == [(0, 0.5), (0, 1), (0, 2)]
        assert slept == [0.125, 0.25, 0.5]

    @pytest.mark.parametrize("attempts", [1, 2, 7])
    def test_attempts_are_bounded(self, attempts: int) -> None:
        """The last failure is raised, the number of tries in it."""
        retry = Retry(RetryPolicy(attempts=attempts), uniform=shortest)
        failures = [TransientError(f"failure {number}") for number in range(10)]
        request = Requests(*failures)

        async def work() -> None:
            with pytest.raises(TransientError, match=f"failure {attempts - 1}") as failure:
                await retry.call("put", request)
            assert failure.value.attempts == attempts

        run_virtually(work)
        assert len(request.tried) == attempts
        assert sum(retry.retries.values()) == attempts - 1

    def test_the_budget_is_kept(self) -> None:
        """No try starts more than the budget after the first failure: better fail at once."""
        policy = RetryPolicy(attempts=50, base_seconds=1, cap_seconds=4, budget_seconds=10)
        retry = Retry(policy, uniform=longest)
        request = Requests(*[TransientError("reset") for _ in range(50)])

        async def work() -> None:
            with pytest.raises(TransientError):
                await retry.call("get", request)
            assert anyio.current_time() == 7  # the next pause of 4 seconds would end at 11

        run_virtually(work)
        assert request.tried == [0, 1, 3, 7]

    def test_the_budget_starts_with_the_first_failure(self) -> None:
        """A request that was slow before it failed is retried all the same."""
        policy = RetryPolicy(base_seconds=1, budget_seconds=10)
        tried: list[float] = []

        async def slow() -> str:
            tried.append(anyio.current_time())
            await anyio.sleep(60)
            if len(tried) == 1:
                raise TransientError("timeout")
            return "answer"

        retry = Retry(policy, uniform=longest)
        assert run_virtually(lambda: retry.call("get", slow)) == "answer"
        assert tried == [0, 61]

    def test_the_deadline_is_respected(self) -> None:
        """A pause that would pass the deadline of the scope is not begun."""
        retry = Retry(RetryPolicy(base_seconds=2), uniform=longest)
        request = Requests(*[TransientError("reset") for _ in range(9)])

        async def work() -> None:
            with anyio.move_on_after(5) as scope, pytest.raises(TransientError):
                await retry.call("get", request)
            assert anyio.current_time() == 2
            assert not scope.cancelled_caught

        run_virtually(work)
        assert request.tried == [0, 2]

    @pytest.mark.parametrize(
        "failure",
        [
            NotFoundError("gone"),
            PreconditionFailedError("changed"),
            AccessDeniedError("denied"),
            OSError("reset"),
            ValueError("ours"),
        ],
        ids=lambda failure: type(failure).__name__,
    )
    def test_only_what_passes_is_retried(self, failure: Exception) -> None:
        """An error that another try would not change is raised at once, unchanged."""
        retry, request = Retry(), Requests(failure)

        async def work() -> None:
            with pytest.raises(type(failure)) as raised:
                await retry.call("get", request)
            assert raised.value is failure

        run_virtually(work)
        assert len(request.tried) == 1
        assert retry.retries == {}

    def test_cancelled_in_a_pause(self) -> None:
        """A cancellation ends the pause at once."""

        async def work() -> None:
            retry = Retry(RetryPolicy(base_seconds=50), uniform=longest)
            async with task_group() as group:
                request = Requests(*[TransientError("reset") for _ in range(9)])
                group.start_soon(retry.call, "get", request)
                await anyio.sleep(3)
                group.cancel_scope.cancel()
            assert anyio.current_time() == 3
            assert request.tried == [0]

        run_virtually(work)

    @staticmethod
    def _others_start(
        uniform: Callable[[float, float], float], failure: Exception, comes: float
    ) -> list[float]:
        """Return when a request that comes later is sent, where another has failed at 0."""
        later = Requests()

        async def come(retry: Retry) -> None:
            await anyio.sleep(comes)
            await retry.call("get", later)

        async def work() -> None:
            retry = Retry(RetryPolicy(base_seconds=8), uniform=uniform)
            async with task_group() as group:
                group.start_soon(retry.call, "get", Requests(failure))
                group.start_soon(come, retry)

        run_virtually(work)
        return later.tried

    def test_a_throttled_request_slows_all_down(self) -> None:
        """After a 503, others wait for half of its pause, and up to twice what is left of that."""
        assert self._others_start(longest, ThrottledError("slow down"), 1) == [1 + 2 * 3]

        def middle(least: float, most: float) -> float:
            return most if least == 0 else least

        assert self._others_start(middle, ThrottledError("slow down"), 1) == [4]

    def test_after_the_slowdown_all_is_as_before(self) -> None:
        """Who comes after the slowdown does not wait."""
        assert self._others_start(longest, ThrottledError("slow down"), 4.5) == [4.5]

    def test_another_failure_slows_nobody_down(self) -> None:
        """A reset is the trouble of one request."""
        assert self._others_start(longest, TransientError("reset"), 1) == [1]

    def test_the_slowdown_does_not_pass_the_deadline(self) -> None:
        """Where the slowdown outlasts the deadline, the request is tried at once instead."""

        async def work() -> None:
            retry = Retry(RetryPolicy(base_seconds=60, cap_seconds=60), uniform=longest)
            async with task_group() as group:
                group.start_soon(retry.call, "get", Requests(ThrottledError("slow down")))
                await anyio.sleep(1)
                with anyio.move_on_after(5):
                    request = Requests()
                    assert await retry.call("get", request) == "answer"
                    assert request.tried == [1]
                group.cancel_scope.cancel()

        run_virtually(work)

    @given(
        st.lists(st.lists(st.booleans(), max_size=4), min_size=1, max_size=8),
        st.integers(0, 2**32),
    )
    def test_every_request_ends(self, workers: list[list[bool]], seed: int) -> None:
        """Whatever fails or is throttled, each request is answered in bounded time."""
        retry = Retry(uniform=random.Random(seed).uniform)

        def failures(throttled: list[bool]) -> list[Exception]:
            return [ThrottledError("503") if each else TransientError("500") for each in throttled]

        async def work() -> float:
            async with task_group() as group:
                for throttled in workers:
                    group.start_soon(retry.call, "get", Requests(*failures(throttled)))
            return anyio.current_time()

        assert run_virtually(work) <= 60
        assert sum(retry.retries.values()) == sum(map(len, workers))


class TestDeadline:
    @staticmethod
    def _at(seconds: float, work: Callable[[], Deadline]) -> Deadline:
        async def wait() -> Deadline:
            await anyio.sleep(seconds)
            return work()

        return run_virtually(wait)

    def test_none(self) -> None:
        """Without a deadline there is all the time in the world."""
        deadline = Deadline.after(None)
        assert deadline == Deadline()
        assert deadline.work_ends == math.inf

        async def work() -> float:
            return deadline.intake_ends()

        assert run_virtually(work) == math.inf

    @pytest.mark.parametrize(
        ("seconds", "reserve"), [(300, 5), (50, 5), (20, 2), (1, 0.1), (0, 0), (math.inf, 5)]
    )
    def test_keeps_a_reserve(self, seconds: float, reserve: float) -> None:
        """A tenth of the time, at most 5 seconds, is kept to say what is left."""
        deadline = self._at(100, lambda: Deadline.after(seconds))
        assert deadline.ends == 100 + seconds
        assert deadline.reserve == reserve
        assert deadline.work_ends == deadline.ends - reserve

    @given(st.floats(0, 1e6), st.floats(0, 2e6))
    def test_intake_ends_half_way(self, seconds: float, now: float) -> None:
        """Fetching stops half way to the end of the work, which keeps time to list on."""

        async def work() -> None:
            deadline = Deadline.after(seconds)
            await anyio.sleep(now)
            at = anyio.current_time()
            ends = deadline.intake_ends()
            assert ends >= at
            if at < deadline.work_ends - deadline.reserve:
                assert ends == at + (deadline.work_ends - deadline.reserve - at) / 2
                assert ends <= deadline.work_ends - deadline.reserve
            else:
                assert ends == at

        run_virtually(work)


def test_a_deadlock_fails_at_once() -> None:
    """The loop of these tests tells a deadlock, so that none of them would hang."""

    def forever() -> Awaitable[None]:
        return anyio.Event().wait()

    with pytest.raises(RuntimeError, match="deadlock"):
        run_virtually(lambda: forever())  # noqa: PLW0108 - the event needs the loop
