"""Parse a large run file as a stream, with the same result as `asyncagg.ingest.parsing.parse`.

Fields that are not read are never built; matches are built one by one, and the best are kept.
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
import msgspec

from asyncagg.errors import InvalidRunFileError
from asyncagg.ingest.gzipped import Inflater
from asyncagg.ingest.parsing import (
    FIELDS,
    MAX_MATCH_BYTES,
    MAX_MATCH_DEPTH,
    check_match,
    infinite,
    match_score,
    validate,
)
from asyncagg.model import TOP, Match, RunFile, RunResult

__all__ = ("MAX_VALUE_BYTES", "parse_stream")

MAX_VALUE_BYTES = 1024 * 1024
"""A string longer than this refuses a file that is streamed: the parser has to hold it whole."""

_STEP = 64 * 1024
_WHITE = b" \t\r\n"
_MAX_DEPTH = 1024  # what the parser of small files takes

# The escapes and the white space that orjson takes. yajl takes a form feed too, and half a
# surrogate pair, for which it puts in other text.
_SOUND = re.compile(
    rb"(?:[^\\\v\f]++|\\[^u]|\\u[^dD]|\\u[dD][^89a-fA-F]|\\u[dD][89abAB]..\\u[dD][c-fC-F]..)*+",
    re.DOTALL,
)
_LONGEST_ESCAPE = len(rb"\ud83d\ude00")

_SCALARS = frozenset({"string", "number", "boolean", "null"})
_STARTS = frozenset({"start_map", "start_array"})
_ENDS = frozenset({"end_map", "end_array"})


async def parse_stream(
    chunks: AsyncIterator[bytes], file: RunFile, *, gzipped: bool, max_bytes: int
) -> RunResult:
    """Return what a run file says, reading it block by block.

    Args:
        chunks: Its content as stored.
        file: Its reference.
        gzipped: Whether the content is gzip.
        max_bytes: The most bytes of unzipped content.

    Raises:
        InvalidRunFileError: It can never be counted.
    """
    unzipper = Inflater(max_bytes) if gzipped else None
    machine = _Machine(file)
    proof = _Proof()
    events = ijson.sendable_list()
    parser = ijson.basic_parse_coro(events)
    async for chunk in chunks:
        for data in _steps(unzipper.feed(chunk) if unzipper else (chunk,)):
            proof.read(data)
            if machine.ended and data.strip(_WHITE):
                raise InvalidRunFileError("not JSON: more behind its end")
            with _refusing():
                parser.send(data)
            machine.take(events, len(data))
            del events[:]
    if unzipper:
        unzipper.finish()
    with _refusing():
        parser.close()
    proof.finish()
    machine.take(events, 0)
    return machine.result()


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn what the parser raises into a refusal."""
    try:
        yield
    except ijson.JSONError as error:
        told = error.args[0]
        if isinstance(told, bytes):
            told = told.decode("utf-8", "replace")
        raise InvalidRunFileError(f"not JSON: {told.partition(chr(10))[0]}") from None
    except UnicodeDecodeError:
        raise InvalidRunFileError("not JSON: str is not valid UTF-8") from None
    except (ValueError, ArithmeticError, SystemError):
        # ijson builds each number as an int or a Decimal, which have limits of their own.
        raise InvalidRunFileError("not JSON: number out of range") from None


class _Proof:
    """Refuses what `_SOUND` does not take, also across the borders of blocks."""

    def __init__(self) -> None:
        self._rest = b""

    def read(self, data: bytes) -> None:
        data = self._rest + data
        sound = _SOUND.match(data)
        self._rest = data[sound.end() :] if sound else data
        if len(self._rest) >= _LONGEST_ESCAPE or self._rest[:1] in {b"\v", b"\f"}:
            self.finish()

    def finish(self) -> None:
        if self._rest:
            raise InvalidRunFileError("not JSON: half a surrogate pair, or a control character")


def _steps(blocks: Iterable[bytes]) -> Iterator[bytes]:
    for block in blocks:
        for start in range(0, len(block), _STEP):
            step = block[start : start + _STEP]
            # What ends the object is a step of its own: yajl overlooks an open string behind it.
            last = max(0, len(step.rstrip(_WHITE)) - 1)
            if last:
                yield step[:last]
            yield step[last:]


class _Machine:
    """Follows the parser's events through one run file.

    Attributes:
        ended: Whether the file's object is closed.
    """

    def __init__(self, file: RunFile) -> None:
        self.ended = False
        self._file = file
        self._fields: dict[str, Any] = {}
        self._best: list[Match] = []
        self._depth = 0
        self._key = ""
        self._in_matches = False
        self._position = 0
        self._open: list[Any] = []  # the containers of the match being built
        self._keys: list[str] = []
        self._silent = 0
        self._match_bytes = 0

    def take(self, events: list[tuple[str, Any]], size: int) -> None:
        """Take the events that ``size`` more bytes gave."""
        self._silent = 0 if events else self._silent + size
        if self._silent > MAX_VALUE_BYTES:
            raise InvalidRunFileError(f"too large: a value of more than {MAX_VALUE_BYTES} bytes")
        for event, value in events:
            if event == "number":
                value = _number(value)  # noqa: PLW2901 - as orjson would have read it
            if self._open:
                self._build(event, value)
            else:
                self._walk(event, value)
        self._match_bytes += size if self._open else 0
        if self._match_bytes > MAX_MATCH_BYTES + _STEP:
            raise InvalidRunFileError(
                f"top_matches[{self._position}]: more than {MAX_MATCH_BYTES} bytes"
            )

    def _walk(self, event: str, value: Any) -> None:
        """Follow an event outside of a match."""
        if event == "map_key":
            if self._depth == 1:
                self._key = value
        elif event in _ENDS:
            self._depth -= 1
            self.ended = not self._depth
            self._in_matches = self._in_matches and self._depth > 1
        elif self._in_matches and self._depth == 2:
            self._start_match(event, value)
        else:
            self._note(event, value)

    def _note(self, event: str, value: Any) -> None:
        """Keep the value of a field, or the fact that it is a container."""
        if self._depth == 0 and event != "start_map":
            validate([] if event == "start_array" else value, self._file)
        if self._depth == 1 and self._key in FIELDS:
            self._fields[self._key] = value if event in _SCALARS else _empty(event)
            if self._key == "top_matches":  # said twice, the last one holds
                self._best.clear()
                self._position = 0
                self._in_matches = event == "start_array"
        if event in _STARTS:
            self._depth += 1
            self._check_depth()

    def _check_depth(self) -> None:
        if self._depth + len(self._open) > _MAX_DEPTH:
            raise InvalidRunFileError(f"not JSON: nested deeper than {_MAX_DEPTH}")

    def _start_match(self, event: str, value: Any) -> None:
        if event != "start_map":
            match_score([] if event == "start_array" else value, self._position)
        self._match_bytes = 0
        self._open.append({})

    def _build(self, event: str, value: Any) -> None:
        """Follow an event inside of a match."""
        if event == "map_key":
            self._keys.append(value)
            return
        if event in _ENDS:
            value = self._open.pop()
            if not self._open:
                self._finish_match(value)
                return
        elif event in _STARTS:
            self._open.append(_empty(event))
            self._check_depth()
            if len(self._open) > MAX_MATCH_DEPTH:
                raise InvalidRunFileError(
                    f"top_matches[{self._position}]: nested deeper than {MAX_MATCH_DEPTH}"
                )
            return
        container = self._open[-1]
        if isinstance(container, dict):
            container[self._keys.pop()] = value
        else:
            container.append(value)

    def _finish_match(self, body: dict[str, Any]) -> None:
        match = Match(match_score(body, self._position), self._position, body)
        if self._match_bytes:  # it came in more than one step
            check_match(match)
        self._position += 1
        if len(self._best) == TOP and match.score <= self._best[-1].score:
            return
        self._best = heapq.nsmallest(
            TOP, [*self._best, match], key=lambda each: (-each.score, each.position)
        )

    def result(self) -> RunResult:
        """Return what the file says, now that it is read."""
        return msgspec.structs.replace(
            validate(self._fields, self._file), top_matches=tuple(self._best)
        )


def _empty(event: str) -> Any:
    return {} if event == "start_map" else []


def _number(value: int | Decimal) -> int | float | str:
    """Return the number as `asyncagg.ingest.parsing` reads it: beyond 64 bits, a double."""
    if isinstance(value, int) and -(2**63) <= value < 2**64:
        return value
    try:
        number = float(value)
    except OverflowError:
        number = math.inf if value > 0 else -math.inf
    return infinite(number) if math.isinf(number) else number
