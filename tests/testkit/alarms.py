"""Evaluates CloudWatch alarms as AWS documents it.

An alarm looks at more periods than it evaluates. If enough of them have data, it takes the most
recent of those; else it fills the rest by ``TreatMissingData``:
https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/alarms-and-missing-data.html
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import ge, lt
from typing import Any, Literal

__all__ = ("Metrics", "State", "alarm_states")

_EXTRA_PERIODS = 2
"""AWS: the exact number varies; its examples have two."""

_STATISTICS: dict[str, Callable[[list[float]], float]] = {
    "Sum": sum,
    "Maximum": max,
    "Minimum": min,
}
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "GreaterThanOrEqualToThreshold": ge,
    "LessThanThreshold": lt,
}

State = Literal["OK", "ALARM", "INSUFFICIENT_DATA"]
Metrics = Mapping[str, Sequence[tuple[float, float]]]
"""The data points (seconds, value) of each metric."""


@dataclass(frozen=True)
class _Query:
    """What an alarm watches: a statistic of a metric per period, perhaps compared with a limit."""

    metric: str
    statistic: str
    period: int
    limit: float | None = None

    def value(self, metrics: Metrics, start: float) -> float | None:
        """Return the value of the period that starts then, or None if it has no data."""
        end = start + self.period
        values = [value for at, value in metrics.get(self.metric, ()) if start <= at < end]
        if not values:
            return None
        value = float(_STATISTICS[self.statistic](values))
        return value if self.limit is None else float(value > self.limit)


def _query(alarm: Mapping[str, Any]) -> _Query:
    if "MetricName" in alarm:
        return _Query(alarm["MetricName"], alarm["Statistic"], int(alarm["Period"]))
    inner, outer = alarm["Metrics"]
    stat = inner["MetricStat"]
    found = re.fullmatch(rf"IF\({inner['Id']} > ([\d +*()]+), 1, 0\)", outer["Expression"])
    assert found is not None, outer
    limit = float(eval(found[1]))  # noqa: S307 - digits, + and * only
    return _Query(stat["Metric"]["MetricName"], stat["Stat"], int(stat["Period"]), limit)


def alarm_states(
    alarm: Mapping[str, Any], metrics: Metrics, ends: float
) -> Iterator[tuple[float, State]]:
    """Yield the state of an alarm at the end of each of its periods, from 0 to ``ends``."""
    query = _query(alarm)
    wanted, needed = alarm["EvaluationPeriods"], alarm.get("DatapointsToAlarm")
    breaches = _COMPARISONS[alarm["ComparisonOperator"]]
    state: State = "INSUFFICIENT_DATA"
    for now in range(query.period, int(ends) + 1, query.period):
        starts = (now - query.period * back for back in range(1, wanted + _EXTRA_PERIODS + 1))
        values = [query.value(metrics, start) for start in starts]
        real = [breaches(value, alarm["Threshold"]) for value in values if value is not None]
        state = _state(
            real[:wanted], wanted, needed or wanted, alarm.get("TreatMissingData", "missing"), state
        )
        yield now, state


def _state(real: Sequence[bool], wanted: int, needed: int, missing: str, before: State) -> State:
    """Return the state, given whether each real data point breaches, the most recent first."""
    if not real and missing == "missing":
        return "INSUFFICIENT_DATA"
    if not real and missing == "ignore":
        return before
    filled = [*real, *[missing == "breaching"] * (wanted - len(real))]
    return "ALARM" if sum(filled) >= needed else "OK"
