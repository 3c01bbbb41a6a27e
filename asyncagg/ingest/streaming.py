"""Parse a run file of any size in bounded memory, and say exactly why a bad one is invalid.

A value of up to 256 KiB is found by its brackets and decoded alone; fields that are not read are
decoded only to check them. A longer one that is not read is entered, and its parts are checked. So
memory depends neither on the size of the file nor on its structure. All decisions depend on the
bytes alone, not on how they are split.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import AsyncIterator, Generator, Iterable
from typing import Any, NamedTuple, NoReturn

import msgspec
import orjson

from asyncagg.errors import InvalidRunFileError
from asyncagg.ingest.gzipped import Unzipper
from asyncagg.ingest.shape import (
    ACCEPTED,
    MAX_MATCH_BYTES,
    MAX_MATCH_DEPTH,
    RunShape,
    field_value,
    result_of,
)
from asyncagg.model import TOP, Match, RunFile, RunResult

_MAX_VALUE_BYTES = MAX_MATCH_BYTES
"""A longer value is not decoded at once."""

_MAX_SKIPPED_BYTES = 64 * 1024
"""Likewise, if it is only checked."""

MAX_DEPTH = 1024
"""How deep a file may be nested, as for orjson; match objects less."""

_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_MAX_GROWTH = 4
"""How many times longer JSON can be when it is written again: 1e15 as 1000000000000000.0."""

_MIN_BLOCK = 64 * 1024  # shorter ones are joined: a value that is cut is looked at again
_MAX_EXCERPT = 40
_MAX_UNKNOWN = 100  # names of fields that are not read
_BULK = 16 * 1024
_LEAST_BULK = 16
_LONGEST_CHARACTER = len(r"\ud83d\ude00") + 4
_INT64_DIGITS = len(str(-(2**63)))
_QUOTE = ord('"')
_CUT_SHORT = "it is cut short"

_WHITE = re.compile(rb"[ \t\r\n]*+")
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_SCALAR = re.compile(_STRING + rb'|[^ \t\r\n,:\[\]{}"]++', re.DOTALL)
# Everything up to the next bracket, over strings and over containers that have no other in them.
_FLAT = rb'(?:[^"{}\[\]]++|' + _STRING + rb")*+"
_INSIDE = re.compile(rb'(?:[^"{}\[\]]++|' + _STRING + rb"|[\[{]" + _FLAT + rb"[\]}])*+", re.DOTALL)
# Whole characters of a string, as far as backslashes go: a surrogate pair is two escapes.
_STRING_PART = re.compile(
    rb'(?:[^"\\]++|\\[^u]|\\u[dD][89abAB]..\\u....|\\u(?![dD][89abAB])....)*+', re.DOTALL
)

_CONSTANT = re.compile(_STRING + rb"|NaN|-?Infinity", re.DOTALL)

_CLOSING = {b"[": b"]", b"{": b"}"}

_Steps = Generator[None, None, None]
"""A part of the parser: it yields whenever it needs more data."""


async def parse_stream(
    chunks: AsyncIterator[bytes],
    file: RunFile,
    *,
    max_bytes: int,
    unknown: Counter[str] | None = None,
) -> RunResult:
    """Return the result of a run file, reading it block by block.

    Args:
        chunks: Its content as stored; gzip is recognised by its first bytes.
        file: Its reference: its key and time replace missing ones.
        max_bytes: The largest size of the unzipped content.
        unknown: Counts the names of fields that are not read.

    Raises:
        InvalidRunFileError: It can never be counted.
    """
    parser = RunFileParser(file, unknown=unknown)
    unzipper = Unzipper(max_bytes)
    async for chunk in chunks:
        for block in unzipper.feed(chunk):
            parser.feed(block)
    for block in unzipper.finish():
        parser.feed(block)
    return parser.finish()


def best_matches(matches: Iterable[Match]) -> list[Match]:
    """Return the best matches, the best first."""
    return sorted(matches, key=lambda match: (-match.score, match.position))[:TOP]


class _Seen(NamedTuple):
    """The value of a field, and for messages its excerpt and its place in the file."""

    value: Any
    excerpt: str
    place: int


class RunFileParser:
    """Parses one run file, whose unzipped content arrives in blocks.

    Args:
        file: Its reference: its key and time replace missing ones.
        top_cutoff: Matches with a lower score are checked and left out.
        unknown: Counts the names of fields that are not read.
    """

    def __init__(
        self,
        file: RunFile,
        top_cutoff: float = -math.inf,
        unknown: Counter[str] | None = None,
    ) -> None:
        self._unknown = unknown
        self._file = file
        self._top_cutoff = top_cutoff
        self._data = b""
        self._pos = 0  # of the next byte to parse, in the data
        self._base = 0  # the place of the data in the file
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._complete = False
        self._path = ""  # what is being parsed, for messages
        self._fields: dict[str, _Seen] = {}
        self._best: list[Match] = []
        self._bad_match = ""  # why a match is invalid
        self._open: frozenset[int] = frozenset()  # brackets that close too late to look again
        self._bulk = _BULK  # how many bytes of elements to read at once
        self._steps = self._parse()

    def feed(self, data: bytes) -> None:
        """Parse the next block."""
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes >= _MIN_BLOCK:
            self._advance()

    def _advance(self) -> None:
        self._base += self._pos
        parts = [part for part in (self._data[self._pos :], *self._waiting) if part]
        self._data = parts[0] if len(parts) == 1 else b"".join(parts)  # a large one is not copied
        self._pos = 0
        self._waiting.clear()
        self._waiting_bytes = 0
        next(self._steps, None)

    def finish(self) -> RunResult:
        """Return the result, after the last block."""
        self._complete = True
        self._advance()
        if not self._fields:
            raise InvalidRunFileError(
                "none of the fields of a run file: expected at least one of " + ", ".join(ACCEPTED)
            )
        shape = RunShape(**{name: self._checked(name, seen) for name, seen in self._fields.items()})
        if self._bad_match:
            raise InvalidRunFileError(self._bad_match)
        return result_of(shape, self._file, sorted(self._best, key=lambda match: match.position))

    def _checked(self, name: str, seen: _Seen) -> Any:
        try:
            return field_value(name, seen.value)
        except (ValueError, msgspec.ValidationError):
            too_large = isinstance(seen.value, float) and math.isinf(seen.value)
            kind = "out of range: " if too_large else ""
            raise InvalidRunFileError(
                f"{name}: {kind}expected {ACCEPTED[name]}, got {seen.excerpt} at byte {seen.place}"
            ) from None

    # The grammar, from the whole file down.

    def _parse(self) -> _Steps:
        while len(self._data) < 4 and not self._complete:
            yield
        self._check_encoding()
        yield from self._skip_white()
        if self._data[self._pos : self._pos + 1] != b"{":
            yield from self._refuse()
        self._pos += 1
        yield from self._skip_white()
        more = not self._take(b"}")
        while more:
            name = yield from self._name()
            yield from self._field(name)
            self._path = ""
            more = yield from self._continues(b"}")
        yield from self._skip_white(at_end=True)
        if self._pos < len(self._data):
            self._fail("expected nothing after the object")

    def _check_encoding(self) -> None:
        start = self._data[:4]
        encoding = json.detect_encoding(start)
        if encoding == "utf-8-sig":
            self._pos = 3  # the byte order mark
        elif start[:1] == b"\0" == start[-1:]:
            self._fail("expected text, got zero bytes")
        elif encoding != "utf-8":
            self._fail(f"expected UTF-8, got {encoding[:6].upper()}")

    def _refuse(self) -> _Steps:
        """Raise the error for a file that is not an object."""
        if self._data[self._pos : self._pos + 1] == b"[":
            self._refuse_as("a list")
        end = yield from self._value_end()
        value = self._load(self._data[self._pos : end]) if end else ""
        kind = "a string" if isinstance(value, str) else self._excerpt(end)
        self._refuse_as(kind)

    def _refuse_as(self, kind: str) -> NoReturn:
        place = self._base + self._pos
        raise InvalidRunFileError(
            f"not an object: expected a JSON object, got {kind} at byte {place}"
        )

    def _field(self, name: str) -> _Steps:
        if name not in ACCEPTED:
            self._count_unknown(name)
            yield from self._skip_value()
            return
        place = self._base + self._pos
        opening = self._data[self._pos : self._pos + 1]
        if name == "top_matches":  # if a name occurs twice, the last value is the one
            self._best, self._bad_match = [], ""
            if opening == b"[":
                self._fields[name] = _Seen([], "a list", place)
                yield from self._matches()
                return
        end = yield from self._value_end()
        if opening in _CLOSING or not end:
            kind = {b"[": "a list", b"{": "an object"}.get(opening, "a long string")
            self._fields[name] = _Seen(object, kind, place)
            yield from self._skip_value()
            return
        value = self._load(self._data[self._pos : end])
        self._fields[name] = _Seen(value, self._excerpt(end), place)
        self._pos = end

    def _count_unknown(self, name: str) -> None:
        counts = self._unknown
        if counts is not None and (name in counts or len(counts) < _MAX_UNKNOWN):
            counts[_shortened(name.encode())] += 1

    def _matches(self) -> _Steps:
        self._pos += 1
        yield from self._skip_white()
        position = 0
        more = not self._take(b"]")
        while more:
            bodies, end = self._next_elements()
            if bodies and self._add_ordinary_matches(bodies, end, position):
                position += len(bodies)
                self._pos = end
                yield from self._skip_white()
            elif bodies:
                self._refuse_bulk()
            self._path = f"top_matches[{position}]"
            end = yield from self._value_end()
            if not end:
                self._invalid_match(position, f"expected at most {MAX_MATCH_BYTES} bytes, got more")
                raise InvalidRunFileError(self._bad_match)
            self._add_match(self._data[self._pos : end], position)
            self._pos = end
            position += 1
            more = yield from self._continues(b"]")

    def _add_match(self, data: bytes, position: int) -> None:
        body = self._load(data)
        if not isinstance(body, dict):
            kind = "a list" if isinstance(body, list) else _shortened(data)
            self._invalid_match(position, f"expected an object, got {kind}")
            return
        score = _score(body)
        if score is None:
            shown = _shortened(json.dumps(body["match_score"], ensure_ascii=False).encode())
            kind = "out of range: " if shown.endswith("Infinity") else ""
            problem = f"{kind}expected a number that a double can hold, got {shown}"
            self._invalid_match(position, problem, ".match_score")
        elif _may_be_too_large(data) and (problem := _size_problem(body)):
            self._invalid_match(position, problem)
        else:
            self._compete(score, position, body)

    def _add_ordinary_matches(self, bodies: list[Any], end: int, position: int) -> bool:
        """Add match objects, and return True; or return False, if one must be looked at alone."""
        if self._bad_match:
            return True
        scores = [_score(body) if isinstance(body, dict) else None for body in bodies]
        if None in scores or self._may_be_too_deep(bodies, end):
            return False
        for number, score in enumerate(scores):
            if score is not None:
                self._compete(score, position + number, bodies[number])
        return True

    def _may_be_too_deep(self, bodies: list[Any], end: int) -> bool:
        opened = sum(self._data.count(each, self._pos, end) for each in _CLOSING)
        if opened - len(bodies) < MAX_MATCH_DEPTH:  # each body has a bracket of its own
            return False
        try:
            orjson.dumps(bodies)
        except orjson.JSONEncodeError:
            return True
        return False

    def _compete(self, score: float, position: int, body: dict[str, Any]) -> None:
        if score >= self._top_cutoff and (len(self._best) < TOP or score > self._best[-1].score):
            # Decoded bodies are 30 times as large as their JSON.
            self._best = best_matches([*self._best, Match(score, position, orjson.dumps(body))])

    def _invalid_match(self, position: int, problem: str, field: str = "") -> None:
        # Not raised at once: another list may follow that replaces this one.
        place = self._base + self._pos
        self._bad_match = (
            self._bad_match or f"top_matches[{position}]{field}: {problem} at byte {place}"
        )

    # The parts of the grammar.

    def _skip_white(self, *, at_end: bool = False) -> _Steps:
        """Go to the next byte that is not white space; there must be one, unless ``at_end``."""
        while True:
            match = _WHITE.match(self._data, self._pos)
            self._pos = match.end() if match else self._pos
            if self._pos < len(self._data) or (at_end and self._complete):
                return
            if self._complete:
                self._fail(_CUT_SHORT)
            yield

    def _take(self, byte: bytes) -> bool:
        """Go past the next byte, if it is the given one."""
        found = self._data.startswith(byte, self._pos)
        self._pos += found
        return found

    def _continues(self, closing: bytes) -> Generator[None, None, bool]:
        """Go past the comma or the bracket after a value; return whether it was a comma."""
        yield from self._skip_white()
        if self._take(b","):
            yield from self._skip_white()
            return True
        if not self._take(closing):
            self._fail(f"expected a comma or {closing.decode()}, got {self._next()}")
        return False

    def _name(self) -> Generator[None, None, str]:
        """Go past a name and its colon; return the name."""
        if not self._data.startswith(b'"', self._pos):
            self._fail(f"expected a name in double quotes, got {self._next()}")
        end = yield from self._value_end()
        if not end:
            self._fail(f"expected a name of at most {_MAX_VALUE_BYTES} bytes, got a longer one")
        name: str = self._load(self._data[self._pos : end])
        self._pos = end
        yield from self._skip_white()
        if not self._take(b":"):
            self._fail(f"expected a colon, got {self._next()}")
        self._path = self._path or name
        yield from self._skip_white()
        return name

    def _value_end(self, limit: int = _MAX_VALUE_BYTES) -> Generator[None, None, int]:
        """Return where the value ends that begins here; 0 if it is not decoded at once."""
        opening = self._next()
        if opening in ",:]}":
            self._fail(f"expected {self._accepted()}, got {opening}")
        while True:
            if opening in "[{":
                end = self._container_end(limit)
            else:
                end = _scalar_end(self._data, self._pos, complete=self._complete)
            if end and end - self._pos <= limit:
                return end
            if end or len(self._data) - self._pos > limit:
                return 0
            if self._complete:
                self._pos = len(self._data)
                self._fail(_CUT_SHORT)
            yield

    def _container_end(self, limit: int) -> int:
        """Return where the container ends that begins here; 0 if that is not in the data.

        It looks no further than the longest value. Whether brackets match is left to the decoder.
        """
        data, pos = self._data, self._pos
        limit += pos + 1
        if self._base + pos in self._open:
            return 0
        opened: list[int] = []
        while pos < min(len(data), limit) and data[pos] != _QUOTE:
            if data[pos] in b"[{":
                opened.append(self._base + pos)
                if len(opened) > MAX_DEPTH:
                    self._fail(f"nested deeper than {MAX_DEPTH}")
            else:
                opened.pop()
            pos += 1
            if not opened:
                return pos
            inside = _INSIDE.match(data, pos, limit)
            pos = inside.end() if inside else pos
        if len(data) >= limit:
            self._open = frozenset(opened)
        return 0

    # Values that are not read.

    def _skip_value(self) -> _Steps:
        """Check the value that begins here, and go past it."""
        opened: list[bytes] = []  # the containers that are entered
        while True:
            if opened and opened[-1] == b"[":
                yield from self._skip_elements()
            follows = yield from self._check_or_enter(opened)
            while not follows:
                if not opened:
                    return
                follows = yield from self._continues(_CLOSING[opened[-1]])
                if not follows:
                    opened.pop()
            if opened[-1] == b"{":
                yield from self._name()

    def _check_or_enter(self, opened: list[bytes]) -> Generator[None, None, bool]:
        """Check a value, or enter it if it is too long; return whether a value follows in it."""
        end = yield from self._value_end(_MAX_SKIPPED_BYTES)
        opening = self._data[self._pos : self._pos + 1]
        if end:
            self._load(self._data[self._pos : end])
            self._pos = end
        elif opening == b'"':
            yield from self._skip_string()
        elif opening not in _CLOSING:
            self._fail(f"expected {self._accepted()}, got {self._excerpt(-1)}")
        else:
            opened.append(opening)
            if len(opened) > MAX_DEPTH:
                self._fail(f"nested deeper than {MAX_DEPTH}")
            self._pos += 1
            yield from self._skip_white()
            if not self._take(_CLOSING[opening]):
                return True
            opened.pop()
        return False

    def _skip_elements(self) -> _Steps:
        """Go past the elements of a list that are there already, if they are easily cut off."""
        elements, end = self._next_elements()
        if elements:
            self._pos = end
            yield from self._skip_white()

    def _next_elements(self) -> tuple[list[Any], int]:
        """Return elements of a list, and the place after their last comma; none if it is not easy.

        At least one more element follows.
        """
        last = _CLOSING.get(self._data[self._pos : self._pos + 1], b"") + b","
        comma = self._data.rfind(last, self._pos, self._pos + self._bulk) + len(last) - 1
        self._bulk = min(2 * self._bulk, _BULK)
        if comma <= self._pos:
            return [], 0
        try:
            return orjson.loads(b"[%b]" % self._data[self._pos : comma]), comma + 1
        except orjson.JSONDecodeError:
            self._refuse_bulk()
            return [], 0

    def _refuse_bulk(self) -> None:
        """Take half as many bytes next time, so that elements are not read again and again."""
        self._bulk = max(self._bulk // 4, _LEAST_BULK)

    def _skip_string(self) -> _Steps:
        """Go past a long string, and check it in parts."""
        self._pos += 1
        while not self._take(b'"'):
            part = _STRING_PART.match(self._data, self._pos, self._pos + _MAX_VALUE_BYTES)
            end = part.end() if part else self._pos
            if not self._data.startswith(b'"', end):
                end = _character_start(self._data, self._pos, end)
            if end > self._pos:
                self._load(b'"%b"' % self._data[self._pos : end])
                self._pos = end
            elif self._complete:
                self._pos = len(self._data)
                self._fail(_CUT_SHORT)
            elif len(self._data) - self._pos > _LONGEST_CHARACTER:
                self._fail("expected an escape sequence, got half a surrogate pair")
            else:
                yield

    # Values and messages.

    def _load(self, data: bytes) -> Any:
        """Return the value of complete JSON that begins at the position."""
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError:
            return self._load_slowly(data)

    def _load_slowly(self, data: bytes) -> Any:
        """Return the value of JSON that orjson does not read, or say why it is invalid.

        orjson reads no number that a double cannot hold. That is valid JSON; in a field that is not
        read it does not matter, and in a match it is written as null, as JavaScript does.
        """
        if _nesting(data) > MAX_DEPTH:  # what json accepts depends on the version of Python
            self._fail(f"nested deeper than {MAX_DEPTH}")
        try:
            text = data.decode()
            value = json.loads(text, parse_int=_integer, parse_constant=_refuse_constant)
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeDecodeError as error:
            self._fail("expected UTF-8, got another byte", error.start)
        except UnicodeEncodeError:
            self._fail("expected UTF-8, got half a surrogate pair")
        except RecursionError:
            self._fail(f"nested deeper than {MAX_DEPTH}")
        except _ConstantError as error:
            found = _CONSTANT.finditer(data)
            place = next(each.start() for each in found if each[0][:1] != b'"')
            self._fail(f"expected {self._accepted()}, got {error}", place)
        except json.JSONDecodeError as error:
            if _SCALAR.fullmatch(data) and data[:1] != b'"':
                self._fail(f"expected {self._accepted()}, got {_shortened(data)}")
            place = len(text[: error.pos].encode())
            word = _SCALAR.match(data, place)
            if error.msg == "Expecting value" and word:
                self._fail(f"expected a value, got {_shortened(word[0])}", place)
            what = error.msg.removesuffix(" at")
            self._fail(what[0].lower() + what[1:], place)
        return value

    def _next(self) -> str:
        """Return the next character."""
        return self._data[self._pos : self._pos + 4].decode("utf-8", "replace")[0]

    def _excerpt(self, end: int) -> str:
        return _shortened(self._data[self._pos : end])

    def _accepted(self) -> str:
        """Return what is accepted at this place."""
        return ACCEPTED.get(self._path, "a value" if self._path else "a JSON object")

    def _fail(self, problem: str, at: int = 0) -> NoReturn:
        place = f" at byte {self._base + self._pos + at}"
        within = f", in {_shortened(self._path.encode())}" if self._path else ""
        raise InvalidRunFileError(f"not JSON: {problem}{place}{within}")


class _ConstantError(ValueError):
    """A word that Python reads as a number, and JSON does not have."""


def _refuse_constant(name: str) -> NoReturn:
    raise _ConstantError(name)


def _score(body: dict[str, Any]) -> int | float | None:
    """Return the score of a match object; None if it is invalid."""
    score = body.get("match_score")
    if score is None:
        return 0
    valid = isinstance(score, int | float) and not isinstance(score, bool)
    return score if valid and not math.isinf(score) else None


def _nesting(data: bytes) -> int:
    """Return how deep lists and objects are nested."""
    depth = deepest = 0
    for found in _BRACKETS.finditer(data):
        if found[0] in {b"[", b"{"}:
            depth += 1
            deepest = max(deepest, depth)
        elif found[0] in {b"]", b"}"}:
            depth -= 1
    return deepest


def _integer(text: str) -> int | float:
    """Return an integer as orjson reads it: of 64 bits, or else a double."""
    if len(text) > _INT64_DIGITS:
        return float(text)
    number = int(text)
    return number if -(2**63) <= number < 2**64 else float(number)


def _shortened(data: bytes) -> str:
    text = data[: 4 * _MAX_EXCERPT].decode("utf-8", "replace")
    return text if len(text) <= _MAX_EXCERPT else f"{text[:_MAX_EXCERPT]}..."


def _may_be_too_large(match: bytes) -> bool:
    opened = match.count(b"[") + match.count(b"{")
    return len(match) > MAX_MATCH_BYTES // _MAX_GROWTH or opened > MAX_MATCH_DEPTH


def _size_problem(body: dict[str, Any]) -> str:
    """Return why a match object cannot be held; empty if it can."""
    try:
        size = len(orjson.dumps(body))
    except orjson.JSONEncodeError:
        return f"nested deeper than {MAX_MATCH_DEPTH}"
    if size > MAX_MATCH_BYTES:
        return f"expected at most {MAX_MATCH_BYTES} bytes, got {size}"
    return ""


def _scalar_end(data: bytes, start: int, *, complete: bool) -> int:
    found = _SCALAR.match(data, start)
    if found is None:  # a string without an end
        return 0
    may_go_on = found.end() == len(data) and data[start] != _QUOTE and not complete
    return 0 if may_go_on else found.end()


def _character_start(data: bytes, start: int, end: int) -> int:
    """Return the largest place up to ``end`` that is not within a character of UTF-8."""
    for place in range(end - 1, max(start, end - 4) - 1, -1):
        if data[place] >= 0xC0:
            return place
        if data[place] < 0x80:
            break
    return end
