"""The right alarm of the stack fires within two schedules, and a healthy stack is quiet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import anyio
import pytest
from testkit.alarms import Metrics, alarm_states
from testkit.backlog import cut_off
from testkit.hooked import Hook, HookedStore
from testkit.scenario import AT, moment
from testkit.template import Resolver, template

from asyncagg.aws.metrics import Usage, measurements
from asyncagg.errors import ThrottledError
from asyncagg.job.outcome import RunReport
from asyncagg.job.pipeline import run
from asyncagg.settings import Settings
from asyncagg.store.memory import MemoryStore

Run: TypeAlias = Mapping[str, float | None]
"""What a run publishes instead of a healthy one; None is nothing."""

AGGREGATE = "aggregates/20251021t1400Z.json"
RUNS = 24
DELAY = 40.0
"""Seconds after the start of a period at which a run reports."""

HEALTHY = {
    "Errors": 0,
    "Throttles": 0,
    "WindowsFailed": 0,
    "Complete": 1,
    "Backlog": 0,
    "FilesQuarantined": 0,
    "FilesDeferred": 0,
}
"""What a run publishes, but for the age of its oldest file."""

SCENARIOS: dict[str, tuple[Run, str]] = {
    "an error": ({"Errors": 1}, "ErrorsAlarm"),
    "throttled": ({"Throttles": 1}, "ThrottlesAlarm"),
    "a failed window": ({"WindowsFailed": 1}, "FailedWindowsAlarm"),
    "a backlog of 60,000": ({"Complete": 0, "Backlog": 60_000}, "BacklogAlarm"),
    "quarantined files": ({"FilesQuarantined": 3}, "QuarantinedAlarm"),
}

LAMBDA_ONLY = ("an error", "throttled")
"""Scenarios in which no run finishes, so that it publishes nothing of its own."""

SCHEDULES = (1, 5, 10, 15, 30, 60)


def alarms(minutes: int, **given: str) -> dict[str, dict[str, Any]]:
    """Return the properties of the alarms for a schedule."""
    resolver = Resolver({"ScheduleMinutes": str(minutes)} | given)
    names = [
        name
        for name, each in template()["Resources"].items()
        if each["Type"] == "AWS::CloudWatch::Alarm"
    ]
    return {name: resolver.properties(name) for name in names}


def published(minutes: int, runs: Mapping[int, Run]) -> Metrics:
    """Return the data of a stack whose runs are healthy, or as given by their number."""
    points: dict[str, list[tuple[float, float]]] = {}
    for number in range(RUNS):
        values = {**HEALTHY, "OldestFileAge": 60.0 * (minutes + 5), **runs.get(number, {})}
        for name, value in values.items():
            if value is not None:
                points.setdefault(name, []).append((number * minutes * 60 + DELAY, float(value)))
    return points


def raised(minutes: int, metrics: Metrics, *, after: int = 0, **given: str) -> dict[str, float]:
    """Return which alarms go off after a run, and after how many schedules."""
    found: dict[str, float] = {}
    for name, alarm in alarms(minutes, **given).items():
        for at, state in alarm_states(alarm, metrics, RUNS * minutes * 60):
            if state == "ALARM" and at > after * minutes * 60:
                found.setdefault(name, at / (minutes * 60) - after)
    return found


@pytest.mark.parametrize("minutes", SCHEDULES)
@pytest.mark.parametrize("window", ["1", "5", "60", "1440"])
def test_a_healthy_stack_is_quiet(minutes: int, window: str) -> None:
    """Whatever the schedule and the window: a file waits for both."""
    ages = {number: {"OldestFileAge": 60.0 * (minutes + int(window))} for number in range(RUNS)}
    assert raised(minutes, published(minutes, ages), WindowMinutes=window) == {}


@pytest.mark.parametrize("minutes", SCHEDULES)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_right_alarm_fires_within_two_schedules(minutes: int, scenario: str) -> None:
    """And no other."""
    trouble, expected = SCENARIOS[scenario]
    if scenario in LAMBDA_ONLY:
        trouble = {**dict.fromkeys([*HEALTHY, "OldestFileAge"], None), **trouble}
    runs = dict.fromkeys((10, 11), trouble)
    found = raised(minutes, published(minutes, runs), after=10)
    assert set(found) == {expected}
    assert found[expected] <= 2


async def report_of(hook: Hook, **objects: bytes) -> RunReport:
    """Run over three run files, and what else there is."""
    store = MemoryStore(clock=lambda: moment(13, 57))
    files = {f"runs/{number}.json": b'{"run_id": "a"}' for number in range(3)}
    for key, data in {**files, **objects}.items():
        await store.put(key, data)
    return await run(HookedStore(store, hook), Settings(), at=AT)


async def no_trouble(*_: str) -> None:
    """Let everything succeed."""


async def throttle(operation: str, key: str, _when: str) -> None:
    """Answer 503 for each run file, whatever the retries."""
    if operation == "get" and key.startswith("runs/"):
        raise ThrottledError("503 SlowDown", operation=operation, key=key)


@pytest.mark.parametrize(
    ("happens", "expected"),
    [
        (lambda: anyio.run(report_of, no_trouble), set()),
        (
            lambda: anyio.run(partial(report_of, no_trouble, **{AGGREGATE: b"somebody else's"})),
            {"FailedWindowsAlarm"},
        ),
        (lambda: anyio.run(report_of, throttle), {"DeferredAlarm"}),
        (lambda: cut_off(30, page_seconds=0.005).report, {"BacklogAlarm"}),
    ],
    ids=["healthy", "a failed window", "throttled by S3", "a backlog of 60,000"],
)
def test_what_a_real_run_publishes_raises_the_right_alarm(
    happens: Callable[[], RunReport], expected: set[str]
) -> None:
    """If it happens twice in a row: within two schedules, whatever they are, and no other."""
    nothing = Usage(0.0, 0, {}, {})
    trouble = {name: value for name, _, value in measurements(happens(), nothing)}
    for minutes in SCHEDULES:
        runs = dict.fromkeys((10, 11), trouble)
        found = raised(minutes, published(minutes, runs), after=10)
        assert set(found) == expected
        assert all(after <= 2 for after in found.values())


@pytest.mark.parametrize("minutes", SCHEDULES)
def test_a_stack_that_falls_silent_is_noticed(minutes: int) -> None:
    """No run finishes any more: the missing data are the alarm."""
    silent: Run = dict.fromkeys([*HEALTHY, "OldestFileAge"], None)
    runs = dict.fromkeys(range(10, RUNS), silent)
    found = raised(minutes, published(minutes, runs), after=10)
    assert set(found) == {"OldestFileAlarm"}
    assert found["OldestFileAlarm"] <= 5


@pytest.mark.parametrize("minutes", SCHEDULES)
def test_files_that_wait_for_long_are_noticed(minutes: int) -> None:
    """A file that is older than its window and six runs is too old."""
    old = {number: {"OldestFileAge": 60.0 * (5 + 7 * minutes)} for number in range(10, RUNS)}
    found = raised(minutes, published(minutes, old), after=10)
    assert set(found) == {"OldestFileAlarm"}


@pytest.mark.parametrize("minutes", SCHEDULES)
def test_a_first_deploy_does_not_page(minutes: int) -> None:
    """It is deployed with the schedule disabled: there are no runs, and there should be none."""
    assert raised(minutes, {}, ScheduleState="DISABLED") == {}
