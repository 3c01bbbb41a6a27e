"""A large run file is parsed as a stream: with the result of a small one, and never held whole."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain, repeat
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit.corpus import CORPUS, Case
from testkit.fuzz_parsing import disagreement
from testkit.parsers import FILE, best_of, check, in_chunks, streamed, whole
from testkit.strategies import chunkings, gzip_files, odd_run_objects, run_objects

from asyncagg.errors import InvalidRunFileError
from asyncagg.ingest import streaming
from asyncagg.ingest.parsing import parse
from asyncagg.ingest.shape import MAX_MATCH_BYTES
from asyncagg.model import RunFile, RunResult

KIB = 1024
MIB = 1024 * 1024


def outcome(parse: Callable[[], RunResult]) -> tuple[Any, ...] | str:
    """Return everything that a result adds to an aggregate, or the reason it is invalid."""
    try:
        return best_of(parse())
    except InvalidRunFileError as error:
        return error.reason


class TestSameAsWhole:
    @given(run_objects(12), st.data())
    def test_at_every_chunking(self, run: dict[str, Any], data: st.DataObject) -> None:
        """The result of a good file is that of the whole, however it is split."""
        text = orjson.dumps(run)
        assert outcome(lambda: streamed(data.draw(chunkings(text)))) == outcome(lambda: whole(text))

    @given(odd_run_objects, st.data())
    def test_of_any_json(self, value: Any, data: st.DataObject) -> None:
        """Any JSON has the result of the whole, or is invalid in both ways."""
        text = orjson.dumps(value)
        chunks = data.draw(chunkings(text))
        assert outcome(lambda: streamed(chunks)) == outcome(lambda: whole(text))

    @given(run_objects(3), st.data())
    def test_of_gzip(self, run: dict[str, Any], data: st.DataObject) -> None:
        """With any members, padding, level and chunking, the result is that of the plain file."""
        text = orjson.dumps(run)
        chunks = data.draw(chunkings(data.draw(gzip_files(text))))
        assert outcome(lambda: streamed(chunks)) == outcome(lambda: whole(text))

    @given(run_objects(2), st.data())
    def test_of_damaged_json(self, run: dict[str, Any], data: st.DataObject) -> None:
        """With bytes changed, removed or inserted, both ways agree."""
        text = orjson.dumps(run)
        at = data.draw(st.integers(0, len(text)))
        new = data.draw(
            st.binary(max_size=2) | st.text('{}[]":,0.eE-tn \\u\f\v', max_size=3).map(str.encode)
        )
        damaged = text[:at] + new + text[at + data.draw(st.integers(0, 2)) :]
        assert disagreement(damaged, data.draw(st.integers(1, 20))) is None

    @given(st.text('\\uUdD89abcCeEfF0"xé', max_size=40), st.integers(1, 14))
    def test_of_any_escapes(self, inside: str, size: int) -> None:
        """Both ways agree on escapes and half surrogate pairs, across all block borders."""
        assert disagreement(b'{"run_id":"%b"}' % inside.encode(), size) is None

    @given(
        st.from_regex(r"\A-?[0-9]{1,3}([0-9]{305,310})?(\.[0-9]{1,9})?([eE][+-]?[0-9]{1,4})?\Z"),
        st.sampled_from(
            ['{"x":%s}', '{"errors":%s}', '{"top_matches":[{"match_score":%s,"x":%s}]}']
        ),
    )
    def test_of_any_number(self, number: str, file: str) -> None:
        """Both ways agree on numbers of any size, at any place."""
        assert disagreement(file.replace("%s", number).encode(), 7) is None

    @pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 4096])
    def test_fields_and_matches(self, size: int) -> None:
        """A file with every kind of field gives the same result at any chunk size."""
        text = orjson.dumps(
            {
                "x": {"top_matches": [1, {"errors": 5}], "errors": "no"},
                "run_id": "é\U0001f389",
                "timestamp": "2025-10-21T13:56:00Z",
                "total_opportunities": 2**53 - 1,
                "top_matches": [
                    {"match_score": n % 7 / 2, "deep": {"a": [[n, None], {"b": {"c": []}}], "": {}}}
                    for n in range(30)
                ],
                "errors": 3,
                "processing_time_seconds": 1e-9,
                "y": [{"top_matches": [{}]}],
            }
        )
        assert best_of(streamed(in_chunks(text, size))) == best_of(whole(text))

    def test_no_chunk_at_all(self) -> None:
        """A body without any chunk is an empty file."""
        with pytest.raises(InvalidRunFileError, match="not JSON"):
            streamed([])

    @pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.name)
    @pytest.mark.parametrize("size", [1, 100_000])
    def test_corpus(self, case: Case, size: int) -> None:
        """Each file of the corpus has its outcome: except for a few, that of the whole."""
        if size == 1 and len(case.data) > 20_000:
            pytest.skip("too long to parse byte by byte")
        file = RunFile(case.key, len(case.data), "etag", FILE.last_modified)
        chunks = in_chunks(case.data, size)
        if not case.reason:
            check(case, streamed(chunks, file=file))
            return
        with pytest.raises(InvalidRunFileError) as error:
            streamed(chunks, file=file)
        assert case.reason in error.value.reason
        assert len(error.value.reason) < 300
        assert "b'" not in error.value.reason

    @pytest.mark.parametrize("limit", [11, 12, 13])
    def test_limit_of_the_unzipped_size(self, limit: int) -> None:
        """The limit is that of the unzipped size, inclusive."""
        text = b'{"errors":1}'
        assert len(text) == 12
        packed = [gzip.compress(text)]
        if limit >= 12:
            assert streamed(packed, max_bytes=limit) == whole(text)
            return
        with pytest.raises(InvalidRunFileError, match=r"^too large: more than 11 bytes unzipped"):
            streamed(packed, max_bytes=limit)

    def test_an_error_of_the_body_is_raised(self) -> None:
        """An error that the store raises while the body arrives is not blamed on the file."""

        def arriving() -> Iterator[bytes]:
            yield b'{"errors":'
            raise ValueError("the store's own")

        with pytest.raises(ValueError, match="the store's own"):
            streamed(arriving())


class TestManyMatches:
    def test_top_of_fifty_thousand(self) -> None:
        """The ten best of 50,000 matches are those of the whole, with ties; no more are kept."""
        matches = [
            {"match_score": n * 7919 % 10_007 // 10, "id": n, "why": "x" * 20}
            for n in range(50_000)
        ]
        text = orjson.dumps({"errors": 1, "top_matches": matches, "matches_found": 50_000})
        result = streamed(in_chunks(text))
        assert best_of(result) == best_of(whole(text))
        assert [match.score for match in result.top_matches] == [1000] * 10
        assert len(result.top_matches) == 10

    def test_one_bad_match_of_many(self) -> None:
        """A bad match makes the file invalid and is named, even if it is the last of 20,000."""
        data = b'{"top_matches":[' + b'{"match_score":1},' * 20_000 + b'{"match_score":"1"}]}'
        reason = r"^top_matches\[20000\]\.match_score: expected a number that .* at byte 360016"
        with pytest.raises(InvalidRunFileError, match=reason):
            streamed(in_chunks(data))
        with pytest.raises(InvalidRunFileError, match=reason):
            whole(data)

    @pytest.mark.parametrize("size", [MAX_MATCH_BYTES - 1, MAX_MATCH_BYTES, MAX_MATCH_BYTES + 1])
    @pytest.mark.parametrize("before", [0, 1, 64 * KIB - 40, 64 * KIB - 1, 100_000])
    @pytest.mark.parametrize("chunk", [10_000, 64 * KIB, MIB])
    def test_longest_match(self, size: int, before: int, chunk: int) -> None:
        """A match of exactly the largest size is kept wherever it begins; one byte more is not."""
        body = b'{"x":"%b"}' % (b"x" * (size - len('{"x":""}')))
        data = b'{"%b":0,"top_matches":[{},%b]}' % (b"p" * before, body)
        if size <= MAX_MATCH_BYTES:
            assert best_of(streamed(in_chunks(data, chunk))) == best_of(whole(data))
            return
        with pytest.raises(InvalidRunFileError, match=r"^top_matches\[1\]: "):
            streamed(in_chunks(data, chunk))


def peak_of(work: Callable[[], object]) -> int:
    """Return the peak of the memory, in bytes, that Python allocated for some work."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class GeneratedBody:
    """A body that is generated as it is read: a start, a repeated part, an end."""

    def __init__(self, start: bytes, part: bytes, times: int, end: bytes) -> None:
        self.read = 0
        self._chunks = chain([start], repeat(part, times), [end])

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self.read += len(chunk)
            yield chunk


BLOCK = 64 * KIB
TEXT = b"x" * BLOCK
GIANTS = {
    "a string that is read": (b'{"run_id":"', TEXT, b'"}', "run_id: expected a string of at most"),
    "a string that is not read": (b'{"x":"', TEXT, b'"}', "none of the fields"),
    "a name": (b'{"', TEXT, b'":1}', "expected a name of at most"),
    "white space": (b'{"x":', b" " * BLOCK, b"1}", "none of the fields"),
    "a number": (b'{"x":1', b"0" * BLOCK, b"}", "not JSON: expected a value, got 1000"),
    "a string in a match": (
        b'{"top_matches":[{"x":"',
        TEXT,
        b'"}]}',
        r"top_matches\[0\]: expected at most 262144 bytes, got more",
    ),
    "a list in a match": (b'{"top_matches":[{"x":[', b"1," * (BLOCK // 2), b"1]}]}", "got more"),
    "a match of many names": (
        b'{"top_matches":[{',
        b"".join(b'"%05d":0,' % n for n in range(6000)),
        b'"x":0}]}',
        "got more",
    ),
    "empty lists in a match": (b'{"top_matches":[{"x":[', b"[]," * 20_000, b"1]}]}", "got more"),
    "lists in lists": (b'{"x":', b"[" * BLOCK, b"", "nested deeper than 1024"),
    "objects in objects": (b'{"x":', b'{"":' * (BLOCK // 4), b"", "nested deeper than 1024"),
    "lists in a list": (b'{"x":[', b"[],[]," * (BLOCK // 6), b"1]}", "none of the fields"),
    "objects in a list": (b'{"x":[', b'{"a":{}},' * (BLOCK // 9), b"1]}", "none of the fields"),
    "fields": (b"{", b'"x":{},' * (BLOCK // 7), b'"x":1}', "none of the fields"),
    "lists from the start": (b"", b"[" * BLOCK, b"", "not an object"),
}


class TestBoundedMemory:
    @pytest.mark.parametrize("name", GIANTS)
    def test_a_giant_needs_little(self, name: str) -> None:
        """A giant of 400 KB that is rejected needs little memory, whatever it is made of."""
        start, part, end, reason = GIANTS[name]
        body = GeneratedBody(start, part, 6, end)

        def parse() -> None:
            with pytest.raises(InvalidRunFileError, match=reason):
                streamed(body, max_bytes=1 << 40)

        assert peak_of(parse) < 10 * MIB

    @pytest.mark.parametrize(
        ("part", "field"),
        [
            (b'{"match_score":0.5,"title":"%b"},' % (b"t" * 100), b"top_matches"),
            (b'{"match_score":0.5,"title":"%b"},' % (b"t" * 100), b"unread"),
            (b"0.12345,", b"unread"),
            (b"[],", b"unread"),
        ],
    )
    def test_does_not_grow_with_the_file(self, part: bytes, field: bytes) -> None:
        """A file three times as long needs no more memory."""

        def parse(times: int) -> int:
            block = part * (BLOCK // len(part))
            body = GeneratedBody(
                b'{"%b":[' % field, block, times, b'{"match_score":1}],"errors":1}'
            )
            return peak_of(lambda: streamed(body))

        small, large = parse(3), parse(9)
        assert large < small + 128 * KIB
        assert large < 8 * MIB

    def test_ten_of_the_longest_matches(self) -> None:
        """At most ten matches of the largest size are held, however many there are."""
        match = b'{"match_score":1,"x":"%b"},' % (b"x" * (MAX_MATCH_BYTES - 30))

        def parse(times: int) -> int:
            body = GeneratedBody(b'{"top_matches":[', match, times, b"{}]}")
            return peak_of(lambda: streamed(body, max_bytes=1 << 30))

        assert parse(100) < parse(12) + 128 * KIB


DEEP = b'{"a":' + b"[" * 260 + b"]" * 260 + b"}"
LISTS = [
    (b'{"errors":1,"x":[', b"]}"),
    (b'{"errors":1,"x":{"y":[[', b"]]}}"),
    (b'{"errors":1,"top_matches":[', b"]}"),
]


@pytest.mark.parametrize(("start", "end"), LISTS)
@pytest.mark.parametrize("other", [b"1e999", b"[1e999]", b'{"match_score":"x"}', DEEP, b"[[1]]"])
@pytest.mark.parametrize("part", [b"0", b"[]", b"{}", b"[[]]", b'{"match_score":0.5,"r":["a"]}'])
def test_no_part_is_read_again_and_again(
    part: bytes, other: bytes, start: bytes, end: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parsing takes a time in proportion to the size, also where some elements are unusual."""
    read = 0

    def loads(data: bytes) -> Any:
        nonlocal read
        read += len(data)
        return orjson.loads(data)

    counting = SimpleNamespace(**{**vars(orjson), "loads": loads})
    monkeypatch.setattr(streaming, "orjson", counting)
    for every in (1, 100, 2000):
        unit = b",".join([*[part] * every, other])
        data = start + b",".join([unit] * (70_000 // len(unit) + 1)) + end
        read = 0
        with suppress(InvalidRunFileError):
            parse(data, FILE)
        assert read < 8 * len(data)


@pytest.mark.parametrize("before", [0, 1, 400])
@pytest.mark.parametrize(("depth", "reason"), [(254, ""), (255, "nested deeper than 254")])
def test_the_deepest_match_among_many(before: int, depth: int, reason: str) -> None:
    """The limit is the same for a match that is read alone and for one that is read with others."""
    deep = b'{"match_score":9,"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"
    matches = [*[b'{"match_score":1}'] * before, deep, *[b'{"match_score":1}'] * 5000]
    data = b'{"errors":1,"top_matches":[' + b",".join(matches) + b"]}"
    found = outcome(lambda: parse(data, FILE))
    assert (reason in found) if reason else not isinstance(found, str)
