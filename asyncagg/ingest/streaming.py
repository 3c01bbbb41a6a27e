"""Parse a large run file as a stream, with the result of `asyncagg.ingest.parsing.parse`.

Fields that are not read are never built. Matches are built one by one, and the best are kept.
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import ijson

from asyncagg.errors import InvalidRunFileError
from asyncagg.ingest.gzipped import Inflater
from asyncagg.ingest.shape import (
    FIELDS,
    MAX_MATCH_BYTES,
    MAX_MATCH_DEPTH,
    check_match,
    match_score,
    result_of,
    shape_of,
)
from asyncagg.model import TOP, Match, RunFile, RunResult

MAX_VALUE_BYTES = 1024 * 1024
"""The size of the longest string of a streamed file: the parser holds it whole."""

_STEP = 64 * 1024
_WHITE = b" \t\r\n"
_MAX_DEPTH = 1024  # as orjson

# The depth of the containers of a run file: an object that has a list that has matches.
_RUN, _MATCHES = 1, 2

# What orjson accepts and yajl does not reject by itself: yajl takes a form feed for white space,
# and replaces half a surrogate pair with other text.
_ACCEPTED = re.compile(
    rb"(?:[^\\\v\f]++|\\[^u]|\\u[^dD]|\\u[dD][^89a-fA-F]|\\u[dD][89abAB]..\\u[dD][c-fC-F]..)*+",
    re.DOTALL,
)
_LONGEST_ESCAPE = len(rb"\ud83d\ude00")

_STARTS = frozenset({"start_map", "start_array"})
_ENDS = frozenset({"end_map", "end_array"})


async def parse_stream(
    chunks: AsyncIterator[bytes], file: RunFile, *, gzipped: bool, max_bytes: int
) -> RunResult:
    """Return the result of a run file, reading it block by block.

    Args:
        chunks: Its content as stored.
        file: Its reference: its key and time replace missing ones.
        gzipped: Whether the content is gzip.
        max_bytes: The largest size of the unzipped content.

    Raises:
        InvalidRunFileError: It can never be counted.
    """
    inflater = Inflater(max_bytes) if gzipped else None
    collector = _Collector(file)
    escapes = _EscapeCheck()
    events = ijson.sendable_list()
    parser = ijson.basic_parse_coro(events)
    async for chunk in chunks:
        for data in _steps(inflater.feed(chunk) if inflater else (chunk,)):
            escapes.check(data)
            if collector.ended and data.strip(_WHITE):
                raise InvalidRunFileError("not JSON: more after its end")
            with _translated():
                parser.send(data)
            collector.take(events, len(data))
            del events[:]
    if inflater:
        inflater.finish()
    with _translated():
        parser.close()
    escapes.finish()
    collector.take(events, 0)
    return collector.result()


@contextmanager
def _translated() -> Iterator[None]:
    """Translate the errors of the parser."""
    try:
        yield
    except ijson.JSONError as error:
        message = error.args[0]
        if isinstance(message, bytes):
            message = message.decode("utf-8", "replace")
        raise InvalidRunFileError(f"not JSON: {message.partition(chr(10))[0]}") from None
    except UnicodeDecodeError:
        raise InvalidRunFileError("not JSON: str is not valid UTF-8") from None
    except (ValueError, ArithmeticError, SystemError):
        # ijson builds each number as an int or a Decimal; both have limits.
        raise InvalidRunFileError("number out of range") from None


class _EscapeCheck:
    """Rejects what `_ACCEPTED` does not match, in data that arrives block by block."""

    def __init__(self) -> None:
        self._rest = b""

    def check(self, data: bytes) -> None:
        data = self._rest + data
        accepted = _ACCEPTED.match(data)
        self._rest = data[accepted.end() :] if accepted else data
        if len(self._rest) >= _LONGEST_ESCAPE or self._rest[:1] in {b"\v", b"\f"}:
            self.finish()

    def finish(self) -> None:
        if self._rest:
            raise InvalidRunFileError("not JSON: half a surrogate pair, or a control character")


def _steps(blocks: Iterable[bytes]) -> Iterator[bytes]:
    for block in blocks:
        for start in range(0, len(block), _STEP):
            step = block[start : start + _STEP]
            # yajl does not report a string that begins after the end of the object and is never
            # closed. So the last byte of a step, which may be that end, is passed on alone, and
            # `parse_stream` checks what follows it.
            last = max(0, len(step.rstrip(_WHITE)) - 1)
            if last:
                yield step[:last]
            yield step[last:]


class _Collector:
    """Collects the fields and the best matches of one run file from the parser's events.

    Attributes:
        ended: Whether the file's object is complete.
    """

    def __init__(self, file: RunFile) -> None:
        self.ended = False
        self._file = file
        self._fields: dict[str, Any] = {}
        self._best: list[Match] = []
        self._depth = 0  # the number of open containers
        self._key = ""  # of the field
        self._in_matches = False
        self._match: ijson.ObjectBuilder | None = None  # the match that is being built
        self._position = 0  # of the match
        self._match_bytes = 0  # at most: whole steps are counted
        self._bytes_without_event = 0

    def take(self, events: list[tuple[str, Any]], size: int) -> None:
        """Process the events of the next ``size`` bytes."""
        self._bytes_without_event = 0 if events else self._bytes_without_event + size
        if self._bytes_without_event > MAX_VALUE_BYTES:
            raise InvalidRunFileError(f"too large: a value of more than {MAX_VALUE_BYTES} bytes")
        for event, value in events:
            self._take(event, _double(value) if event == "number" else value)
        self._match_bytes += size if self._match else 0
        if self._match_bytes > MAX_MATCH_BYTES + _STEP:
            raise InvalidRunFileError(
                f"top_matches[{self._position}]: more than {MAX_MATCH_BYTES} bytes"
            )

    def _take(self, event: str, value: Any) -> None:
        container = self._depth  # the depth of the container that the value is in
        if event in _STARTS:
            self._depth += 1
            self._check_depth()
        elif event in _ENDS:
            self._depth -= 1
        if self._match:
            self._match.event(event, value)
            if self._depth == _MATCHES:
                self._finish_match(self._match.value)
        elif event == "map_key":
            self._key = value if container == _RUN else self._key
        elif event in _ENDS:
            self.ended = self._depth == 0
        elif container == 0 and event != "start_map":
            shape_of(_placeholder(event, value))
        elif container == _RUN:
            self._set_field(event, value)
        elif container == _MATCHES and self._in_matches:
            self._start_match(event, value)

    def _check_depth(self) -> None:
        if self._depth > _MAX_DEPTH:
            raise InvalidRunFileError(f"not JSON: nested deeper than {_MAX_DEPTH}")
        if self._match and self._depth - _MATCHES > MAX_MATCH_DEPTH:
            raise InvalidRunFileError(
                f"top_matches[{self._position}]: nested deeper than {MAX_MATCH_DEPTH}"
            )

    def _set_field(self, event: str, value: Any) -> None:
        if self._key in FIELDS:
            self._fields[self._key] = _placeholder(event, value)
        self._in_matches = self._key == "top_matches" and event == "start_array"
        if self._key == "top_matches":  # if a name occurs twice, the last value is the one
            self._best = []
            self._position = 0

    def _start_match(self, event: str, value: Any) -> None:
        match_score(_placeholder(event, value), self._position)  # raises unless it is an object
        self._match = ijson.ObjectBuilder()
        self._match.event(event, value)
        self._match_bytes = 0

    def _finish_match(self, body: dict[str, Any]) -> None:
        match = Match(match_score(body, self._position), self._position, body)
        if self._match_bytes:  # it arrived in more than one step, so it may be large
            check_match(body, self._position)
        self._match = None
        self._position += 1
        if len(self._best) < TOP or match.score > self._best[-1].score:
            self._best = heapq.nsmallest(
                TOP, [*self._best, match], key=lambda each: (-each.score, each.position)
            )

    def result(self) -> RunResult:
        """Return the result of the file, after its last event."""
        return result_of(shape_of(self._fields), self._file, self._best)


def _placeholder(event: str, value: Any) -> Any:
    """Return a value of the type that an event begins: empty for an object or a list."""
    return {} if event == "start_map" else [] if event == "start_array" else value


def _double(value: int | Decimal) -> int | float:
    """Return a number as orjson reads it: a 64-bit integer, or else a double."""
    if isinstance(value, int) and -(2**63) <= value < 2**64:
        return value
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isinf(number):
        raise InvalidRunFileError("number out of range: no double can hold it")
    return number
