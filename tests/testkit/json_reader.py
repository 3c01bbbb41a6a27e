"""A slow, obvious reader of run files, written with `json` alone, to compare the real one with.

And a generator of files that are good, nearly good, and bad in the ways in which producers write
them.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import sys
from datetime import date
from typing import Any

__all__ = ("Invalid", "generated_file", "read")

COUNTS = ("total_opportunities", "matches_found", "no_matches", "errors")
NAMES = ("run_id", "timestamp", *COUNTS, "processing_time_seconds", "top_matches")
_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)([Tt ]"
    r"(([01]\d|2[0-3]):[0-5]\d(:([0-5]\d|60)(\.\d+)?)?|24:00(:00(\.0+)?)?)"
    r"([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)?)?",
    re.ASCII,
)


class Invalid(Exception):  # noqa: N818 - it is not an error here
    """The file is invalid."""


def read(data: bytes) -> dict[str, Any]:
    """Return the fields of a file, its matches as pairs of score and position."""
    try:
        run = _decoded(data)
    except (ValueError, EOFError, OSError) as error:
        raise Invalid(error) from None
    if not isinstance(run, dict) or not any(name in run for name in NAMES):
        raise Invalid("no run file")
    fields: dict[str, Any] = {name: _count(run.get(name)) for name in COUNTS}
    fields["run_id"] = _text(run.get("run_id"))
    fields["timestamp"] = _text(run.get("timestamp"))
    if fields["timestamp"] and not _is_time(fields["timestamp"]):
        raise Invalid("timestamp")
    fields["processing_time_seconds"] = _seconds(run.get("processing_time_seconds"))
    fields["top_matches"] = _scores(run.get("top_matches"))
    return fields


def _decoded(data: bytes) -> Any:
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    text = data.decode("utf-8-sig")

    def refuse(name: str) -> None:
        raise ValueError(name)

    value = json.loads(text, parse_constant=refuse)
    json.dumps(value, ensure_ascii=False).encode()  # fails for half a surrogate pair
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(value: Any) -> int:
    if value is None:
        return 0
    if not _is_number(value) or not 0 <= value < 2**53 or value != int(value):
        raise Invalid("count")
    return int(value)


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    if not _is_number(value) or not 0 <= value <= 1e12:
        raise Invalid("seconds")
    return float(value)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > 1024:
        raise Invalid("text")
    return value


def _is_time(text: str) -> bool:
    form = _TIME.fullmatch(text)
    try:
        return form is not None and bool(date(int(form[1]), int(form[2]), int(form[3])))
    except ValueError:
        return False


def _scores(matches: Any) -> list[tuple[float, int]]:
    if matches is None:
        return []
    if not isinstance(matches, list):
        raise Invalid("matches")
    scores: list[tuple[float, int]] = []
    for position, match in enumerate(matches):
        score: Any = match.get("match_score") if isinstance(match, dict) else "no object"
        score = 0 if score is None else score
        if not _is_number(score) or abs(score) > sys.float_info.max:
            raise Invalid("match")
        scores.append((score, position))
    return sorted(
        sorted(scores, key=lambda pair: (-pair[0], pair[1]))[:10], key=lambda pair: pair[1]
    )


_VALUES = (
    *("0", "1", "7", "3.5", "5.0", "5e0", "1E2", "-0", "-0.0", "-1", "1e400", "-1e400", "1e-400"),
    *("9007199254740991", "9007199254740992", "18446744073709551616", "9" * 400, "1e15", "0.1"),
    *("null", "true", "false", "NaN", "Infinity", "-Infinity", "nan", "None", "undefined"),
    *("01", "+1", ".5", "5.", "1_000", "0x10", "1,5", "", "{}", "[]", "[[]]", "[1]", "[null]"),
    *(
        '""',
        '"5"',
        '"a"',
        '"é🎉"',
        '"\\ud83c\\udf89"',
        '"\\ud83c"',
        '"\\u0000"',
        '"\\x41"',
        '"a\nb"',
    ),
    *("'a'", '"open', '{"errors":1}', '[{"match_score":1}]', '{"a":{"b":[1,{"c":null}]}}'),
    *('"2025-10-21T13:56:00Z"', '"2025-10-21t13:56:00.123456789z"', '"2016-12-31T23:59:60Z"'),
    *('"2025-10-21T24:00:00"', '"2025-10-21T24:00:01"', '"2025-02-29"', '"2024-02-29"', '"now"'),
    *(
        '"2025-10-21T13:56:61Z"',
        '"2025-10-21T13:56:00+25:00"',
        '"2025-10-21T13:56:00.5"'[:22] + '"',
    ),
)
_ORDINARY = {
    "run_id": ('"a"', '"20251021t1356Z-\\u00e9"', "null"),
    "timestamp": ('"2025-10-21T13:56:00Z"', '"2025-10-21T13:56:00.5+02:00"', "null"),
    "processing_time_seconds": ("1.5", "0", "null", "2e0"),
}


def generated_file(source: random.Random) -> bytes:
    """Return a file."""
    wildness = source.choice((0, 0, 0.05, 0.3))
    names = source.sample((*NAMES, "x", "Errors", "y"), source.randint(0, 8))
    names += names[: source.choice((0, 0, 0, 0, 1))]
    members = [f'"{name}"{_white(source)}:{_value(source, name, wildness)}' for name in names]
    text = f"{_white(source)}{{{','.join(members)}}}{_white(source)}"
    if source.random() < wildness / 3:
        at = source.randrange(len(text) + 1)
        text = text[:at] + source.choice(("", ",", '"', "}", "]", "{", "1", "\\")) + text[at + 1 :]
    data = text.encode(source.choice(("utf-8",) * 20 + ("utf-8-sig", "utf-16")), "replace")
    if source.random() < wildness / 6:
        data = data[: source.randrange(len(data) + 1)]
    return gzip.compress(data, 1) if source.random() < 0.1 else data


def _white(source: random.Random) -> str:
    return source.choice(("", "", "", " ", "\n\t"))


def _value(source: random.Random, name: str, wildness: float) -> str:
    if source.random() < wildness or name in {"x", "y", "Errors"}:
        return source.choice(_VALUES)
    if name != "top_matches":
        return source.choice(_ORDINARY.get(name, ("0", "3", "12345", "null", "4.0")))
    return f"[{','.join(_match(source, wildness) for _ in range(source.choice((0, 1, 3, 12))))}]"


def _match(source: random.Random, wildness: float) -> str:
    if source.random() < wildness / 10:
        return source.choice(_VALUES)
    score = str(source.choice((0, 1, 0.25, 0.5, 0.75, "null", 7, 1e300)))
    if source.random() < wildness / 5:
        score = source.choice(_VALUES)
    return source.choice(
        ('{"match_score":%s}', '{"t":"x","match_score":%s,"a":[1,{}]}', "{}")
    ).replace("%s", score)
