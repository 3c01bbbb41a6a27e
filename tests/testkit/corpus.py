"""Malformed and hostile run files, each with its expected result or reason."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from asyncagg.ingest.shape import ACCEPTED, MAX_MATCH_BYTES, MAX_MATCH_DEPTH

__all__ = ("CORPUS", "MAX_BYTES", "Case")

MAX_BYTES = 8 * 1024 * 1024
"""The limit of the unzipped size for which the outcomes are given."""


class Case(NamedTuple):
    """One file.

    Attributes:
        name: What is special about it.
        data: Its bytes as stored.
        reason: A part of the reason why it is invalid; empty if it is valid.
        counted: If it is valid: some fields of its result.
        gzipped: Whether its key says that it is gzip, which decides nothing.
    """

    name: str
    data: bytes
    reason: str = ""
    counted: Mapping[str, Any] = MappingProxyType({})
    gzipped: bool = False

    @property
    def key(self) -> str:
        """The key of such a file."""
        return f"runs/{self.name.replace(' ', '-')}.json{'.gz' if self.gzipped else ''}"


NOT_JSON = "not JSON: "
CUT_SHORT = "not JSON: it is cut short"
NO_FIELDS = "none of the fields of a run file: expected at least one of run_id, timestamp, "
WHOLE = "expected a whole number from 0 to 9007199254740991, got "


def _nested(depth: int, inner: bytes = b"") -> bytes:
    return b"[" * depth + inner + b"]" * depth


def _in_match(value: bytes) -> bytes:
    return b'{"top_matches":[{"x":' + value + b"}]}"


def _json(**fields: Any) -> bytes:
    return json.dumps(fields, ensure_ascii=False).encode()


def _flip(data: bytes, at: int) -> bytes:
    flipped = bytearray(data)
    flipped[at] ^= 0xFF
    return bytes(flipped)


GOOD = b'{"run_id":"a","errors":2}'
GZIP = gzip.compress(GOOD, mtime=0)
_RAW = zlib.compressobj(wbits=-15)
RAW_DEFLATE = _RAW.compress(GOOD) + _RAW.flush()
LONG = MAX_MATCH_BYTES + 1
ONE_MIB = 1024 * 1024

CORPUS: tuple[Case, ...] = (
    # Not JSON at all.
    Case("empty", b"", NOT_JSON),
    Case("white space only", b" \t\r\n", NOT_JSON),
    Case("a word", b"hello", NOT_JSON),
    Case("zero bytes", bytes(1000), NOT_JSON),
    Case("binary", bytes(range(256)), NOT_JSON),
    Case("html", b"<!DOCTYPE html><html><body>503</body></html>", NOT_JSON),
    Case("xml error", b"<Error><Code>SlowDown</Code></Error>", NOT_JSON),
    Case("yaml", b"run_id: a\nerrors: 2\n", NOT_JSON),
    Case("csv", b"run_id,errors\na,2\n", NOT_JSON),
    Case("python literal", b"{'run_id': 'a', 'errors': None}", NOT_JSON),
    Case("javascript", b"{run_id: 'a'}", NOT_JSON),
    # Nearly JSON.
    Case("cut short in a string", b'{"run_id":"a', NOT_JSON),
    Case("cut short behind a name", b'{"errors"', NOT_JSON),
    Case("cut short behind a number", b'{"errors":2', NOT_JSON),
    Case("cut short in a literal", b'{"x":tru', NOT_JSON),
    Case("cut short in an escape", b'{"x":"\\u00', NOT_JSON),
    Case("trailing comma", b'{"errors":2,}', NOT_JSON),
    Case("trailing comma in a list", b'{"top_matches":[{},]}', NOT_JSON),
    Case("missing comma", b'{"errors":2 "run_id":"a"}', NOT_JSON),
    Case("missing colon", b'{"errors" 2}', NOT_JSON),
    Case("comment", b'{/* none */"errors":2}', NOT_JSON),
    Case("two documents", b'{"errors":1}{"errors":2}', NOT_JSON),
    Case("two lines of json", b'{"errors":1}\n{"errors":2}\n', NOT_JSON),
    Case("garbage behind", GOOD + b"x", NOT_JSON),
    Case("zero byte behind", GOOD + b"\0", NOT_JSON),
    Case("open string behind", GOOD + b'"]}', NOT_JSON),
    Case("open escape behind", GOOD + b'\n"\\', NOT_JSON),
    Case("number behind", GOOD + b" 1", NOT_JSON),
    Case("half a literal behind", GOOD + b"tru", NOT_JSON),
    Case("white space behind", GOOD + b" \r\n\t", counted={"errors": 2}),
    Case("wrong bracket", b'{"top_matches":[}]', NOT_JSON),
    Case("record separator", b"\x1e" + GOOD, NOT_JSON),
    Case("form feed between", b'{\x0c"errors":2}', NOT_JSON),
    Case("no-break space between", b'{\xc2\xa0"errors":2}', NOT_JSON),
    Case("capital literal", b'{"x":True}', NOT_JSON),
    Case("undefined", b'{"x":undefined}', NOT_JSON),
    # Encodings.
    Case("byte order mark", b"\xef\xbb\xbf" + GOOD, counted={"errors": 2}),
    Case("two byte order marks", b"\xef\xbb\xbf" * 2 + GOOD, NOT_JSON),
    Case("only a byte order mark", b"\xef\xbb\xbf", CUT_SHORT),
    Case("utf-16", GOOD.decode().encode("utf-16"), "not JSON: expected UTF-8, got UTF-16"),
    Case("utf-16 unmarked", GOOD.decode().encode("utf-16-be"), "expected UTF-8, got UTF-16"),
    Case("utf-32", GOOD.decode().encode("utf-32"), "not JSON: expected UTF-8, got UTF-32"),
    Case("latin-1", '{"run_id":"é"}'.encode("latin-1"), NOT_JSON),
    Case("overlong utf-8", b'{"run_id":"\xc0\xaf"}', NOT_JSON),
    Case("surrogate in utf-8", b'{"x":"\xed\xa0\x80"}', NOT_JSON),
    Case("beyond unicode", b'{"x":"\xf4\x90\x80\x80"}', NOT_JSON),
    Case("cut utf-8", b'{"x":"\xe2\x82"}', NOT_JSON),
    Case("bad utf-8 in a name", b'{"\xff":1}', NOT_JSON),
    Case("high surrogate alone", b'{"run_id":"\\ud800"}', NOT_JSON),
    Case("low surrogate alone", b'{"x":"\\udc00"}', NOT_JSON),
    Case("surrogates the wrong way round", b'{"x":"\\ude00\\ud83d"}', NOT_JSON),
    Case("high surrogate then a letter", b'{"x":"\\ud83dA"}', NOT_JSON),
    Case("high surrogate then an escape", b'{"x":"\\ud83d\\u0041"}', NOT_JSON),
    Case("surrogate in a name", b'{"\\ud800":1}', NOT_JSON),
    Case("surrogate in a match", _in_match(b'"\\uD83D"'), NOT_JSON),
    Case("surrogate pair", b'{"run_id":"\\ud83c\\uDF89"}', counted={"run_id": "🎉"}),
    Case("escaped backslash before u", b'{"run_id":"\\\\ud800"}', counted={"run_id": "\\ud800"}),
    Case("control character", b'{"run_id":"a\nb"}', NOT_JSON),
    Case("zero byte in a string", b'{"x":"a\0b"}', NOT_JSON),
    Case("unknown escape", b'{"x":"\\x41"}', NOT_JSON),
    Case("escaped zero byte", b'{"run_id":"\\u0000"}', counted={"run_id": "\0"}),
    Case("delete character", b'{"run_id":"\x7f"}', counted={"run_id": "\x7f"}),
    # Numbers.
    Case(
        "NaN",
        b'{"processing_time_seconds":NaN}',
        "not JSON: expected a number from 0 to 1000000000000, got NaN at byte 27, "
        "in processing_time_seconds",
    ),
    Case("Infinity", b'{"errors":Infinity}', f"not JSON: {WHOLE}Infinity at byte 10, in errors"),
    Case(
        "minus Infinity in a match",
        _in_match(b'["NaN",-Infinity]'),
        "not JSON: expected a value, got -Infinity at byte 28, in top_matches[0]",
    ),
    Case("NaN unread", b'{"x":[NaN],"errors":1}', "got NaN at byte 6, in x"),
    Case(
        "beyond a double",
        b'{"processing_time_seconds":1e400}',
        "processing_time_seconds: out of range: expected a number from 0 to 1000000000000, "
        "got 1e400 at byte 27",
    ),
    Case(
        "count beyond a double",
        b'{"errors":-1e400}',
        f"errors: out of range: {WHOLE}-1e400 at byte 10",
    ),
    Case(
        "score beyond a double",
        b'{"top_matches":[{"match_score":-1e400}]}',
        "top_matches[0].match_score: out of range",
    ),
    Case("beyond a double unread", b'{"x":-1e400,"errors":1}', counted={"errors": 1}),
    Case("beyond a double in a match", _in_match(b"-1e400"), counted={"scores": [0]}),
    Case("barely beyond a double", _in_match(b"1.7976931348623159e308"), counted={"scores": [0]}),
    Case("greatest double", _in_match(b"1.7976931348623157e308"), counted={"scores": [0]}),
    Case("beyond a double in a text", b'{"run_id":"[1e400"}', counted={"run_id": "[1e400"}),
    Case("beyond a double and cut", b'{"x":1e400,"y":"', CUT_SHORT),
    Case("beyond a double as a name", b"{1e400:1}", NOT_JSON),
    Case("beyond a double, no number", b'{"x":1e400.5}', NOT_JSON),
    Case("beyond a double before an error", b'{"x":1e400,"y":-01e400}', NOT_JSON),
    Case("400 digits", b'{"x":' + b"9" * 400 + b',"errors":1}', counted={"errors": 1}),
    Case("5000 digits", b'{"x":[' + b"9" * 5000 + b'],"errors":1}', counted={"errors": 1}),
    Case("5000 digits read", b'{"errors":' + b"9" * 5000 + b"}", "errors: out of range: "),
    Case("5000 digits in a match", _in_match(b"9" * 5000), counted={"scores": [0]}),
    Case("5000 decimals", b'{"x":0.' + b"9" * 5000 + b',"errors":1}', counted={"errors": 1}),
    Case("exponent beyond all", b'{"x":1e99999999999999999999,"errors":1}', counted={"errors": 1}),
    Case("exponent below all", b'{"x":1e-99999999999999999999,"errors":1}', counted={"errors": 1}),
    Case("leading zero", b'{"errors":02}', NOT_JSON),
    Case("plus sign", b'{"errors":+2}', NOT_JSON),
    Case("bare point", b'{"processing_time_seconds":.5}', NOT_JSON),
    Case("point without digits", b'{"processing_time_seconds":5.}', NOT_JSON),
    Case("hexadecimal", b'{"errors":0x10}', NOT_JSON),
    Case("underscore", b'{"errors":1_000}', NOT_JSON),
    Case("minus zero", b'{"errors":-0}', counted={"errors": 0}),
    Case(
        "minus zero seconds",
        b'{"processing_time_seconds":-0.0}',
        counted={"processing_time": 0.0},
    ),
    Case(
        "least double",
        b'{"processing_time_seconds":5e-324}',
        counted={"processing_time": 5e-324},
    ),
    Case("below a double", b'{"processing_time_seconds":1e-400}', counted={"processing_time": 0.0}),
    # Shapes.
    Case("null", b"null", "not an object: expected a JSON object, got null at byte 0"),
    Case("true", b"true", "not an object: expected a JSON object, got true"),
    Case("a number", b" 42", "not an object: expected a JSON object, got 42 at byte 1"),
    Case("a string", b'"run"', "not an object: expected a JSON object, got a string"),
    Case("a list", b"[]", "not an object: expected a JSON object, got a list"),
    Case("a list of runs", b"[" + GOOD + b"]", "not an object: expected a JSON object, got a list"),
    Case("an empty object", b"{}", NO_FIELDS),
    Case("other fields only", b'{"x":1,"y":{"errors":5},"":[]}', NO_FIELDS),
    Case("renamed fields", b'{"matchesFound":9,"Errors":1,"run-id":"a"}', NO_FIELDS),
    Case("wrapped", b'{"data":{"run_id":"a","errors":1}}', NO_FIELDS),
    Case("one field among others", b'{"x":1,"errors":0}', counted={"errors": 0}),
    Case("a field with an escape", b'{"err\\u006frs":3}', counted={"errors": 3}),
    Case("only null", b'{"errors":null}', counted={"errors": 0}),
    Case("all null", _json(**dict.fromkeys(ACCEPTED)), counted={"processing_time": None}),
    Case(
        "a field within another",
        b'{"x":{"errors":5},"y":[{"errors":6}],"no_matches":0}',
        counted={"errors": 0},
    ),
    Case("said twice", b'{"errors":1,"errors":2}', counted={"errors": 2}),
    Case("said twice first badly", b'{"errors":"no","errors":2}', counted={"errors": 2}),
    Case("said twice last badly", b'{"errors":2,"errors":"no"}', f'errors: {WHOLE}"no" at byte 21'),
    Case(
        "matches said twice",
        b'{"top_matches":[{"match_score":9}],"top_matches":[{"match_score":1}]}',
        counted={"scores": [1]},
    ),
    Case(
        "matches said twice first badly",
        b'{"top_matches":[5],"top_matches":[]}',
        counted={"scores": []},
    ),
    Case("said twice then null", b'{"errors":2,"errors":null}', counted={"errors": 0}),
    # Wrong types and ranges, field by field.
    *[
        Case(
            f"{field} {kind}",
            b'{"%b":%b}' % (field.encode(), value),
            f"{field}: {WHOLE}{got} at byte {len(field) + 4}",
        )
        for field in ("total_opportunities", "matches_found", "no_matches", "errors")
        for kind, value, got in (
            ("negative", b"-1", "-1"),
            ("a fraction", b"1.5", "1.5"),
            ("text", b'"1"', '"1"'),
            ("true", b"true", "true"),
            ("a list", b"[1]", "a list"),
            ("an object", b'{"a":1}', "an object"),
            ("beyond 53 bits", b"9007199254740992", "9007199254740992"),
            ("beyond 64 bits", b"18446744073709551616", "18446744073709551616"),
            ("a large fraction", b"9007199254740992.0", "9007199254740992.0"),
        )
    ],
    *[
        Case(f"a count as {text}", b'{"errors":%b}' % text.encode(), counted={"errors": value})
        for text, value in (("5.0", 5), ("5e0", 5), ("0.5E1", 5), ("-0.0", 0), ("1e15", 10**15))
    ],
    Case(
        "errors in words",
        b'{"errors":"one, two, three, four, five, six, seven"}',
        f'errors: {WHOLE}"one, two, three, four, five, six, seven... at byte 10',
    ),
    Case("errors at the most", b'{"errors":9007199254740991}', counted={"errors": 2**53 - 1}),
    *[
        Case(f"{field} {kind}", b'{"%b":%b}' % (field.encode(), value), f"{field}: expected {told}")
        for field, kind, value, told in (
            ("run_id", "a number", b"5", "a string of at most 1024 characters, got 5 at byte 10"),
            ("run_id", "an object", b"{}", "a string of at most 1024 characters, got an object"),
            ("run_id", "too long", b'"%b"' % (b"x" * 1025), "a string of at most 1024 characters"),
            ("timestamp", "a number", b"1761055200", "an RFC 3339 time such as 2025-10-21T13:56"),
            ("timestamp", "words", b'"yesterday"', "an RFC 3339 time such as 2025-10-21T13:56:0"),
            ("timestamp", "no date", b'"2025-02-30"', "an RFC 3339 time"),
            ("timestamp", "too long", b'"%b"' % (b"2" * 1025), "an RFC 3339 time"),
            ("processing_time_seconds", "negative", b"-1", "a number from 0 to 1000000000000, got"),
            ("processing_time_seconds", "barely negative", b"-5e-324", "a number from 0"),
            ("processing_time_seconds", "too much", b"1000000000001", "a number from 0"),
            ("processing_time_seconds", "text", b'"1.5"', "a number from 0"),
            ("processing_time_seconds", "true", b"true", "a number from 0"),
            ("processing_time_seconds", "an object", b"{}", "a number from 0"),
            ("top_matches", "text", b'"[]"', 'a list of objects, got "[]" at byte 15'),
            ("top_matches", "an object", b'{"match_score":1}', "a list of objects, got an object"),
            ("top_matches", "a number", b"3", "a list of objects, got 3"),
        )
    ],
    *[
        Case(f"time {number}", b'{"timestamp":"%b"}' % text, counted={"timestamp": text.decode()})
        for number, text in enumerate(
            (
                b"2016-12-31T23:59:60Z",
                b"2016-12-31t23:59:60.5z",
                b"2025-10-21T24:00:00",
                b"2025-10-21t13:56:00z",
                b"2025-10-21T13:56:00." + b"1" * 200 + b"+02:00",
                b"2025-10-21T13:56:00.1-00:00",
            )
        )
    ],
    Case("seconds null", b'{"processing_time_seconds":null}', counted={"processing_time": None}),
    Case("seconds whole", b'{"processing_time_seconds":7}', counted={"processing_time": 7.0}),
    Case("run_id empty", b'{"run_id":""}', counted={"run_id": "runs/run_id-empty.json"}),
    Case("run_id long", _json(run_id="é" * 1024), counted={"run_id": "é" * 1024}),
    # Matches.
    Case(
        "a match is null",
        b'{"top_matches":[null]}',
        "top_matches[0]: expected an object, got null at byte 16",
    ),
    Case(
        "a match is text",
        b'{"top_matches":[{},"x"]}',
        'top_matches[1]: expected an object, got "x" at byte 19',
    ),
    Case(
        "a match is a list",
        b'{"top_matches":[{},{},[]]}',
        "top_matches[2]: expected an object, got a list at byte 22",
    ),
    Case(
        "a score is text",
        b'{"top_matches":[{"match_score":1},{"match_score":"9"}]}',
        'top_matches[1].match_score: expected a number that a double can hold, got "9" at byte 34',
    ),
    Case(
        "a score is null",
        b'{"top_matches":[{"match_score":null},{"match_score":-1}]}',
        counted={"scores": [0, -1]},
    ),
    Case(
        "a score is true",
        b'{"top_matches":[{"match_score":true}]}',
        "top_matches[0].match_score: expected a number that a double can hold, got true at byte 16",
    ),
    Case("a score is NaN", b'{"top_matches":[{"match_score":NaN}]}', NOT_JSON),
    Case(
        "a score beyond 64 bits",
        b'{"top_matches":[{"match_score":18446744073709551616}]}',
        counted={"scores": [2.0**64]},
    ),
    Case("a match without a score", b'{"top_matches":[{}]}', counted={"scores": [0]}),
    Case(
        "a score said twice",
        b'{"top_matches":[{"match_score":9,"match_score":1}]}',
        counted={"scores": [1]},
    ),
    Case(
        "a score further down",
        b'{"top_matches":[{"x":{"match_score":9},"y":[{"match_score":8}]}]}',
        counted={"scores": [0]},
    ),
    Case(
        "a match with our names",
        b'{"top_matches":[{"source_key":"x","source_position":"y","match_score":3}]}',
        counted={"scores": [3]},
    ),
    # Depth.
    Case("nested a little", b'{"x":' + _nested(1023) + b',"errors":1}', counted={"errors": 1}),
    Case("nested too deep", b'{"x":' + _nested(1025) + b"}", NOT_JSON),
    Case("nested without end", b'{"x":' + b"[" * 100_000, NOT_JSON),
    Case("objects without end", b'{"x":' * 100_000, NOT_JSON),
    Case("lists without end", b"[" * 100_000, "not "),
    Case(
        "a match as deep as may be",
        _in_match(_nested(MAX_MATCH_DEPTH - 1)),
        counted={"scores": [0]},
    ),
    Case(
        "a match too deep",
        b'{"top_matches":[{},{"x":' + _nested(MAX_MATCH_DEPTH) + b"}]}",
        f"top_matches[1]: nested deeper than {MAX_MATCH_DEPTH}",
    ),
    Case(
        "a match of objects too deep",
        _in_match(b'{"":' * MAX_MATCH_DEPTH + b"1" + b"}" * MAX_MATCH_DEPTH),
        f"top_matches[0]: nested deeper than {MAX_MATCH_DEPTH}",
    ),
    Case(
        "a match deeper than json",
        _in_match(_nested(1022)),
        "top_matches[0]: nested deeper than 254 at byte 16",
    ),
    # Size.
    Case(
        "a long text unread",
        _json(x="x" * (10 * ONE_MIB), errors=1),
        counted={"errors": 1},
    ),
    Case(
        "a long name",
        b'{"' + b"n" * (2 * ONE_MIB) + b'":1,"errors":1}',
        "not JSON: expected a name of at most 262144 bytes, got a longer one at byte 1",
    ),
    Case(
        "much white space",
        b'{"errors":' + b" " * (2 * ONE_MIB) + b"1}",
        counted={"errors": 1},
    ),
    Case(
        "a long run_id",
        _json(run_id="x" * (10 * ONE_MIB)),
        "run_id: expected a string of at most 1024 characters, got a long string at byte 11",
    ),
    Case(
        "a match too long",
        _json(top_matches=[{}, {"x": "x" * LONG}]),
        "top_matches[1]: ",
    ),
    Case(
        "a match of escapes",
        _in_match(b'"' + b"\\u0041" * (LONG // 3) + b'"'),
        "top_matches[0]: expected at most 262144 bytes, got more at byte 16",
    ),
    Case(
        "a match of numbers that are longer when written",
        _in_match(b"[" + b"1e15," * (LONG // 10) + b"1]"),
        "top_matches[0]: ",
    ),
    Case(
        "a long text of escapes",
        _json(x=['é\u2028\n"🎉' * 70_000], errors=1) + b" " * ONE_MIB,
        counted={"errors": 1},
    ),
    Case(
        "a long text with half a surrogate pair",
        b'{"errors":1,"x":"' + b"\\ud83d\\ude00" * 40_000 + b'\\ud83d"}',
        NOT_JSON,
    ),
    Case("a long text with bad utf-8", b'{"errors":1,"x":"' + b"x\xe2" * 200_000 + b'"}', NOT_JSON),
    Case("a long list cut", b'{"errors":1,"x":[' + b"1," * 200_000, CUT_SHORT),
    Case("a long list", b'{"x":[' + b"[]," * 100_000 + b'{}],"errors":1}', counted={"errors": 1}),
    Case("a long list badly", b'{"x":[' + b"[]," * 100_000 + b'}],"errors":1}', NOT_JSON),
    Case("a long object", _json(x={f"f{n}": {} for n in range(50_000)}, errors=1)),
    Case(
        "many long lists in lists",
        b'{"errors":1,"x":' + _nested(900, b"0," * 400_000 + b"[[],1]") + b"}",
        counted={"errors": 1},
    ),
    Case(
        "many fields", _json(**{f"f{n}": n for n in range(20_000)}, errors=3), counted={"errors": 3}
    ),
    Case(
        "many matches",
        _json(top_matches=[{"match_score": n} for n in range(20_000)]),
        counted={"scores": list(range(19_999, 19_989, -1))},
    ),
    # gzip.
    Case("gzip", GZIP, counted={"errors": 2}, gzipped=True),
    Case(
        "gzip members",
        gzip.compress(GOOD[:9]) + gzip.compress(GOOD[9:]),
        counted={"errors": 2},
        gzipped=True,
    ),
    Case("gzip padding", GZIP + bytes(512), counted={"errors": 2}, gzipped=True),
    Case(
        "gzip padding between",
        gzip.compress(GOOD[:9]) + bytes(5) + gzip.compress(GOOD[9:]),
        counted={"errors": 2},
        gzipped=True,
    ),
    Case("gzip of nothing", gzip.compress(b""), NOT_JSON, gzipped=True),
    Case("gzip of not json", gzip.compress(b"{"), NOT_JSON, gzipped=True),
    Case("gzip of gzip", gzip.compress(GZIP), NOT_JSON, gzipped=True),
    Case("gzip empty", b"", CUT_SHORT, gzipped=True),
    Case("gzip only padding", bytes(100), "expected text, got zero bytes", gzipped=True),
    Case("gzip that is plain", GOOD, counted={"errors": 2}, gzipped=True),
    Case("gzip not named so", GZIP, counted={"errors": 2}),
    Case("gzip cut short", GZIP[:-1], "bad gzip: cut short", gzipped=True),
    Case("gzip header only", GZIP[:10], "bad gzip: cut short", gzipped=True),
    Case(
        "gzip second member cut",
        GZIP + GZIP[:12],
        "bad gzip: cut short",
        gzipped=True,
    ),
    Case("gzip garbage behind", GZIP + b"garbage", "bad gzip: ", gzipped=True),
    Case("gzip wrong checksum", _flip(GZIP, -8), "bad gzip: ", gzipped=True),
    Case("gzip wrong length", _flip(GZIP, -1), "bad gzip: ", gzipped=True),
    Case("gzip wrong method", _flip(GZIP, 2), "bad gzip: ", gzipped=True),
    Case("zlib", zlib.compress(GOOD), NOT_JSON, gzipped=True),
    Case("raw deflate", RAW_DEFLATE, NOT_JSON, gzipped=True),
    Case(
        "gzip bomb",
        gzip.compress(b'{"x":"' + b"x" * 2 * MAX_BYTES),
        "too large: ",
        gzipped=True,
    ),
    Case(
        "gzip bomb of white space",
        gzip.compress(b" " * (2 * MAX_BYTES)),
        "too large: ",
        gzipped=True,
    ),
    Case(
        "gzip of many empty members",
        gzip.compress(b"", mtime=0) * 20_000 + GZIP,
        counted={"errors": 2},
        gzipped=True,
    ),
)
"""At least sixty files with distinct names and keys."""
