"""The schedule and the runs of a watch, on a virtual clock."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit.hooked import HookedStore
from testkit.s3server import S3Server
from testkit.scenario import BUCKET, moment, open_s3, run_data
from testkit.virtual import run_virtually

from asyncagg.errors import AccessDeniedError, ConfigurationError, TransientError, UsageError
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.store.memory import MemoryStore
from asyncagg.watch import Schedule, WatchedRun, Watcher
from asyncagg.watch.health import Health

START = moment(14, 2, 7)
WINDOW = 300.0
DELAY = 5.0
MAX_SLEEP = 15.0


class Began(NamedTuple):
    """The start of a run, by the wall clock and in seconds since the start of the test."""

    wall: datetime
    passed: float


@dataclass
class Machine:
    """A machine whose wall clock can be set, and the runs of a watch on it.

    Attributes:
        takes: How long each run takes, in seconds; the last value also for all later runs.
        store: The store.
        offset: By how much the wall clock was set, in seconds.
        unopened: The errors of the first openings of the store.
        openings: How often it was opened.
    """

    takes: Sequence[float] = (1.0,)
    store: MemoryStore = field(default_factory=MemoryStore)
    offset: float = 0.0
    began: list[Began] = field(default_factory=list)
    done: list[WatchedRun] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    failures: dict[int, Exception] = field(default_factory=dict)
    unopened: Sequence[Exception] = ()
    openings: int = 0
    also: Callable[[WatchedRun], object] = lambda _: None
    pauses: int = 0

    def now(self) -> datetime:
        """Return the time of the wall clock."""
        return START + timedelta(seconds=anyio.current_time() + self.offset)

    async def pause(self, seconds: float) -> None:
        """Sleep, and count the pause."""
        self.pauses += 1
        await anyio.sleep(seconds)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Store]:
        """Open the store, unless that is to fail."""
        self.openings += 1
        if self.openings <= len(self.unopened):
            raise self.unopened[self.openings - 1]
        yield HookedStore(self.store, self.work)

    async def work(self, operation: str, key: str, when: str) -> None:
        """When a run lists the inbox, sleep as long as it takes, or fail."""
        if (operation, key, when) != ("list", "runs/", "before"):
            return
        number = len(self.began)
        self.began.append(Began(self.now(), anyio.current_time()))
        if number in self.failures:
            raise self.failures[number]
        await anyio.sleep(self.takes[min(number, len(self.takes) - 1)])

    def note(self, done: WatchedRun) -> None:
        """Record a run."""
        self.done.append(done)
        self.also(done)
        self.ended.append(anyio.current_time())

    def watch(
        self,
        seconds: float,
        *others: Callable[[Watcher], Coroutine[Any, Any, None]],
        grace: float = math.inf,
        **settings: Any,
    ) -> None:
        """Watch for some seconds, and run other tasks meanwhile."""

        async def work() -> None:
            watching = Watcher(
                Settings(**settings), delay=DELAY, on_run=self.note, now=self.now, sleep=self.pause
            )
            async with anyio.create_task_group() as group:
                for other in others:
                    group.start_soon(other, watching)
                group.start_soon(self._stop, watching, seconds, grace)
                await watching.run(self.opened)
                group.cancel_scope.cancel()

        run_virtually(work)

    async def _stop(self, watching: Watcher, seconds: float, grace: float) -> None:
        await anyio.sleep(seconds)
        watching.stop(grace)


def ends_of(machine: Machine) -> list[datetime]:
    """Return the ends of the windows of the runs."""
    return [each.end for each in machine.done]


# ------------------------------------------------------------------------------ the schedule

MOMENTS = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
SCHEDULES = st.builds(
    Schedule, st.sampled_from([1, 5, 60, 1440]), st.floats(0, 59, allow_nan=False)
)


@given(SCHEDULES, MOMENTS)
def test_the_latest_is_due_and_the_one_after_it_is_not(schedule: Schedule, now: datetime) -> None:
    """The latest due window is aligned to the epoch, and the next one is not due."""
    end = schedule.latest(now)
    assert not end.timestamp() % (schedule.minutes * 60)
    assert schedule.due_at(end) <= now < schedule.due_at(end + schedule.length)


@given(SCHEDULES, MOMENTS, st.floats(-1e6, 1e6))
def test_the_next_is_near_and_never_the_same(
    schedule: Schedule, last: datetime, shift: float
) -> None:
    """However the clock is set, the next run is at most two windows away, and not the last one."""
    last = schedule.latest(last)
    now = last + timedelta(seconds=shift)
    end = schedule.next_after(last, now)
    assert end != last
    assert not end.timestamp() % (schedule.minutes * 60)
    assert end - now <= 2 * schedule.length
    if now >= last - schedule.length:
        assert end > last


@given(SCHEDULES, MOMENTS)
def test_a_run_may_take_until_the_next_is_due(schedule: Schedule, now: datetime) -> None:
    """The time limit is at least half a window, and ends when a run is due."""
    seconds = schedule.time_limit(now)
    length = schedule.length.total_seconds()
    assert length / 2 <= seconds <= length * 1.5
    ends = now + timedelta(seconds=seconds - schedule.delay)
    assert ends.timestamp() % (schedule.minutes * 60) == pytest.approx(0, abs=1e-3) or (
        ends.timestamp() % (schedule.minutes * 60) == pytest.approx(schedule.minutes * 60, abs=1e-3)
    )


@pytest.mark.parametrize("delay", [-1.0, 300.0, math.nan, math.inf])
def test_a_wrong_delay_is_an_error(delay: float) -> None:
    """The error has the value and what is accepted."""
    with pytest.raises(UsageError, match=r"delay .*: expected a number of seconds from 0 to below"):
        Schedule(5, delay)


# ------------------------------------------------------------------------------ the runs


def test_runs_start_on_time_however_long_they_take() -> None:
    """Each run starts at the end of its window plus the delay, without drift."""
    machine = Machine(takes=(100.0, 3.0, 250.0, 0.5, 299.0 - 60))
    machine.watch(3600)
    assert machine.began[0].wall == START
    assert ends_of(machine)[0] == moment(14, 0)
    for number, began in enumerate(machine.began[1:]):
        end = moment(14, 5) + number * timedelta(minutes=5)
        assert machine.done[number + 1].end == end
        assert abs(began.wall - end - timedelta(seconds=DELAY)) < timedelta(milliseconds=1)
    assert len(machine.began) == 13
    assert not any(each.missed for each in machine.done)


def test_a_run_longer_than_its_window_skips_the_missed_runs() -> None:
    """No second run starts meanwhile, and the next one reports the missed runs."""
    machine = Machine(takes=(1.0, 1000.0, 1.0))
    machine.watch(1800, max_seconds=3600.0)
    assert ends_of(machine)[:4] == [
        moment(14, 0),
        moment(14, 5),
        moment(14, 20),
        moment(14, 25),
    ]
    assert [each.missed for each in machine.done[:4]] == [0, 0, 2, 0]
    assert machine.began[2].passed >= machine.ended[1]


def test_a_run_that_hangs_ends_before_the_next_is_due() -> None:
    """The deadline of each run is the start of the next, and the rest is reported."""
    machine = Machine(takes=(math.inf,))
    machine.watch(1400)
    assert len(machine.done) == 6
    for number, done in enumerate(machine.done[:-1]):
        assert done.report is not None
        assert not done.report.complete
        assert done.trouble == "its time ran out before anything was done"
        assert machine.ended[number] < machine.began[number + 1].passed
    assert not any(each.missed for each in machine.done)


def test_max_seconds_is_the_time_of_each_run() -> None:
    """max_seconds limits a run to less than the window."""
    machine = Machine(takes=(math.inf,))
    machine.watch(700, max_seconds=20.0)
    assert all(each.seconds <= 20 for each in machine.done)


@given(
    takes=st.lists(st.floats(0, 2 * WINDOW), min_size=1, max_size=10),
    steps=st.lists(st.tuples(st.floats(1, 2000), st.floats(-4000, 4000)), max_size=6),
)
def test_no_overlap_no_double_run_no_busy_loop(
    takes: list[float], steps: list[tuple[float, float]]
) -> None:
    """The runs are right however long they take and however the clock jumps (NTP, suspend)."""
    total = 4 * 3600.0
    machine = Machine(takes=takes)

    async def set_clock(_: Watcher) -> None:
        for after, step in steps:
            await anyio.sleep(after)
            machine.offset += step

    machine.watch(total, set_clock, max_seconds=10_000.0)
    for before, after in zip(machine.ended, machine.began[1:], strict=False):
        assert after.passed >= before
    # Each step of the clock adds one run at most, and a run is never repeated at once.
    assert len(machine.began) <= total / WINDOW + 2 + len(steps)
    assert machine.pauses <= total / MAX_SLEEP + 3 * (len(machine.began) + len(steps))
    ends = ends_of(machine)
    assert all(one != other for one, other in pairwise(ends))
    if all(step >= 0 for _, step in steps) or sum(abs(step) for _, step in steps) < WINDOW:
        assert ends == sorted(set(ends))
    quiet = [each for each in machine.began if each.passed > sum(after for after, _ in steps)]
    gaps = [other.passed - one.passed for one, other in pairwise(quiet)]
    assert all(gap <= 2 * WINDOW + max(takes) + MAX_SLEEP for gap in gaps)


def test_after_a_suspend_a_due_run_starts_soon() -> None:
    """If the wall clock jumps ahead by hours, one run replaces all missed ones."""
    machine = Machine()

    async def suspend(_: Watcher) -> None:
        await anyio.sleep(200)
        machine.offset += 7200

    machine.watch(600, suspend)
    resumed = machine.began[2]
    assert 200 <= resumed.passed <= 200 + MAX_SLEEP
    assert machine.done[2].missed == 23


async def test_files_of_every_window_are_counted_by_the_run_after_it() -> None:
    """With a steady producer, each window is settled by one run, and no file is late."""
    now, written = START, 0
    done: list[WatchedRun] = []
    store = MemoryStore(lambda: now)

    async def produce(seconds: float) -> None:
        nonlocal now, written
        await store.put(f"runs/{written:03}.json", run_data(written))
        written += 1
        now += timedelta(seconds=seconds)
        if now > START + timedelta(hours=1):
            watching.stop()
        await anyio.lowlevel.checkpoint()

    watching = Watcher(Settings(), on_run=done.append, now=lambda: now, sleep=produce)
    await watching.run(lambda: nullcontext(store))
    reports = [each.report for each in done if each.report is not None]
    assert len(reports) == 13
    assert all(len(each.windows) == 1 for each in reports[1:])
    assert sum(each.total.counted for each in reports) + reports[-1].waiting <= written
    left = [key for key in store._objects if key.startswith("runs/")]
    assert sum(each.total.archived for each in reports) == written - len(left)
    assert not any(each.total.late or each.total.left for each in reports)


# ------------------------------------------------------------------------------ failures


def test_after_a_temporary_failure_the_next_run_tries_again() -> None:
    """A temporary failure is reported, and the watch continues, also at the start."""
    machine = Machine(failures={0: TransientError("reset"), 2: TransientError("timeout")})
    machine.watch(1000)
    assert [each.trouble for each in machine.done] == ["reset", "", "timeout", ""]
    assert machine.done[0].as_dict() == {
        "event": "failed",
        "missed": 0,
        "duration_seconds": 0.0,
        "at": moment(14, 0).isoformat(),
        "error": "TransientError",
        "reason": "reset",
    }
    assert machine.done[1].as_dict()["event"] == "run"


@pytest.mark.parametrize(
    "error",
    [
        AccessDeniedError("no permission"),
        ConfigurationError("no credentials"),
        TransientError("reset"),
        OSError("Temporary failure in name resolution"),
        RuntimeError("a bug"),
    ],
)
def test_the_watch_outlives_a_store_that_cannot_be_used(error: Exception) -> None:
    """It opens the store again for the next run, at the start and later, and is unhealthy."""
    machine = Machine(unopened=[error, error], failures={1: error})
    health = Health(5, DELAY)
    reasons: list[str] = []

    def note(done: WatchedRun) -> None:
        health.note(done)
        reasons.append(health.reason)

    machine.also = note
    machine.watch(1300)
    assert [each.trouble for each in machine.done] == [str(error), str(error), "", str(error), ""]
    assert reasons[0] == reasons[1] == str(error)
    assert reasons[2] == reasons[4] == ""
    assert machine.openings == 4
    assert not any(each.missed for each in machine.done)


def test_a_store_that_never_opens_is_given_up_before_the_next_run() -> None:
    """The watch continues at the next schedule."""

    @asynccontextmanager
    async def opening() -> AsyncIterator[Store]:
        await anyio.sleep(math.inf)
        yield MemoryStore()

    machine = Machine()
    machine.opened = opening  # type: ignore[method-assign]
    machine.watch(700)
    assert len(machine.done) == 3
    assert "the store could not be opened within" in machine.done[0].trouble


def test_wrong_usage_ends_the_watch() -> None:
    """No later run would meet anything else."""
    machine = Machine(unopened=[UsageError("store 'nonsense'")])
    with pytest.raises(UsageError, match="store 'nonsense'"):
        run_expecting(machine)
    assert machine.done == []


def run_expecting(machine: Machine) -> None:
    """Watch, and raise the only failure."""
    try:
        machine.watch(1000)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


def test_after_a_lost_permission_the_watch_continues() -> None:
    """The watch keeps its schedule until the permission is restored."""
    machine = Machine(failures={1: AccessDeniedError("lost"), 2: AccessDeniedError("lost")})
    machine.watch(1000)
    assert [each.trouble for each in machine.done] == ["", "lost", "lost", ""]
    assert not any(each.missed for each in machine.done)


# ------------------------------------------------------------------------------ the end


def test_stopping_between_two_runs_ends_at_once() -> None:
    """The pause is cancelled."""
    machine = Machine()

    async def look(_: Watcher) -> None:
        await anyio.sleep(100)
        machine.offset = 1  # marks that the time passed

    machine.watch(50, look)
    assert machine.offset == 0
    assert len(machine.done) == 1


@pytest.mark.parametrize(("takes", "reported"), [(12.0, 1), (100.0, 0)])
def test_the_current_run_has_a_grace_period(takes: float, reported: int) -> None:
    """A run that ends within it is reported; a longer one is cut short."""
    machine = Machine(takes=(takes,))
    machine.watch(10, grace=5)
    assert (len(machine.began), len(machine.done)) == (1, reported)


def test_stopping_before_the_start_starts_nothing() -> None:
    """A signal may come while the store is being opened."""
    machine = Machine()

    async def work() -> None:
        watching = Watcher(Settings(), on_run=machine.note, now=machine.now)
        watching.stop()
        await watching.run(machine.opened)

    run_virtually(work)
    assert machine.began == []


# ------------------------------------------------------------------------------ the connections


@pytest.mark.parametrize("plane", ["lean", "boto"])
async def test_connections_that_were_closed_meanwhile_are_replaced(plane: str) -> None:
    """Runs succeed even if the server closes every connection between them."""
    machine_now = START
    done: list[WatchedRun] = []
    async with (
        S3Server([BUCKET], clock=lambda: machine_now) as server,
        open_s3(server, plane) as (store, settings),
    ):

        async def five_minutes(seconds: float) -> None:
            nonlocal machine_now
            machine_now += timedelta(seconds=seconds)
            server.put(BUCKET, f"runs/{machine_now:%H%M%S}.json", run_data(len(done)))
            server.drop_connections()
            if len(done) == 3:
                watching.stop()
            await anyio.lowlevel.checkpoint()

        watching = Watcher(
            settings, on_run=done.append, now=lambda: machine_now, sleep=five_minutes
        )
        await watching.run(lambda: nullcontext(store))
    assert [each.trouble for each in done] == ["", "", ""]
    reports = [each.report for each in done if each.report is not None]
    assert all(each.total.counted for each in reports[1:])
    assert not any(each.total.deferred for each in reports)
