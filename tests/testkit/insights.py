"""Runs queries of CloudWatch Logs Insights on log lines: the few commands that the stack uses.

The language: https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/CWL_QuerySyntax.html
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from operator import eq, gt
from typing import Any, TypeAlias

__all__ = ("Row", "events", "query")

Row: TypeAlias = dict[str, Any]

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {"=": eq, ">": gt}
_FUNCTIONS: dict[str, Callable[[Sequence[Any]], Any]] = {
    "count": len,
    "sum": sum,
    "max": max,
    "latest": lambda values: values[-1],
}
_UNITS = {"m": 60, "h": 3600}


def events(lines: Iterable[str]) -> list[Row]:
    """Return the events of a log stream, with the fields that CloudWatch finds in JSON."""
    found: list[Row] = []
    for line in lines:
        fields = json.loads(line) if line.startswith("{") else {}
        row: Row = {"@message": line, **_flat(fields)}
        if "timestamp" in fields:
            row["@timestamp"] = datetime.fromisoformat(fields["timestamp"]).timestamp()
        found.append(row)
    return found


def _flat(value: Any, name: str = "") -> Row:
    """Name the inner fields as CloudWatch does: ``a.b``, and ``a.0`` in lists."""
    if not isinstance(value, dict | list):
        return {name: value}
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    return {
        path: each
        for key, part in inner
        for path, each in _flat(part, f"{name}.{key}" if name else str(key)).items()
    }


def query(text: str, rows: Iterable[Row]) -> list[Row]:
    """Return the result of a query."""
    result = list(rows)
    shown: list[str] = []
    for command in re.split(r"\n\s*\|\s*", text.strip()):
        name, _, rest = command.partition(" ")
        if name == "fields":
            shown = [each.strip() for each in rest.split(",")]
        elif name == "stats":
            shown = []
            result = _stats(result, rest)
        else:
            result = _COMMANDS[name](result, rest)
    return [{name: row.get(name) for name in shown} if shown else row for row in result]


def _filter(rows: list[Row], text: str) -> list[Row]:
    """Only what the stack uses: comparisons with a text or a number, joined by ``and``."""
    for condition in text.split(" and "):
        field, operator, value = condition.split(" ", 2)
        expected = json.loads(value)
        rows = [
            row for row in rows if field in row and _COMPARISONS[operator](row[field], expected)
        ]
    return rows


def _parse(rows: list[Row], text: str) -> list[Row]:
    """Add the named groups of a regular expression."""
    field, _, pattern = text.partition(" ")
    expression = re.compile(pattern.strip("/").replace("(?<", "(?P<"))
    matches = [expression.search(str(row.get(field, ""))) for row in rows]
    return [
        {**row, **(found.groupdict() if found else {})}
        for row, found in zip(rows, matches, strict=True)
    ]


def _stats(rows: list[Row], text: str) -> list[Row]:
    aggregates, _, group = " ".join(text.split()).rpartition(" by ")
    columns = re.findall(r"(\w+)\(([\w*]+)\) as (\w+)", aggregates)
    assert len(columns) == aggregates.count("(")
    groups: dict[Any, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.get("@timestamp", 0)):
        groups.setdefault(_group_of(row, group), []).append(row)
    return [
        {
            group: key,
            **{
                alias: _FUNCTIONS[function](
                    [row if field == "*" else row[field] for row in members]
                )
                for function, field, alias in columns
            },
        }
        for key, members in groups.items()
    ]


def _group_of(row: Row, group: str) -> Any:
    found = re.fullmatch(r"bin\((\d+)([mh])\)", group)
    if found is None:
        return row.get(group)
    width = int(found[1]) * _UNITS[found[2]]
    return row["@timestamp"] // width * width


def _sort(rows: list[Row], text: str) -> list[Row]:
    field, order = text.split()
    return sorted(rows, key=lambda row: row[field], reverse=order == "desc")


def _limit(rows: list[Row], text: str) -> list[Row]:
    return rows[: int(text)]


_COMMANDS: dict[str, Callable[[list[Row], str], list[Row]]] = {
    "filter": _filter,
    "parse": _parse,
    "sort": _sort,
    "limit": _limit,
}
