"""Parsing of a run file: its result, or the reason why it is invalid."""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
from collections.abc import Iterator
from itertools import chain, product
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from testkit.corpus import CORPUS, MAX_BYTES, Case
from testkit.json_reader import Invalid, generated_file, read
from testkit.parsers import FILE, best_of, check, in_chunks, streamed, whole, without_matches
from testkit.strategies import chunkings, gzip_files, odd_run_objects, run_objects, scores, texts

from asyncagg.errors import InvalidRunFileError
from asyncagg.ingest.gzipped import Inflater, inflate, is_gzip
from asyncagg.ingest.parsing import is_run_file, parse
from asyncagg.ingest.shape import ACCEPTED, MAX_MATCH_BYTES
from asyncagg.ingest.timestamps import is_common_timestamp, is_timestamp, utc_of
from asyncagg.model import Match, RunFile, RunResult

MODIFIED = "2025-10-21T13:56:00+00:00"


class TestCorpus:
    def test_is_large_enough(self) -> None:
        """The corpus has at least sixty files with distinct names and keys."""
        assert len(CORPUS) >= 60
        assert len({case.key for case in CORPUS}) == len({case.name for case in CORPUS})
        assert len({case.key for case in CORPUS}) == len(CORPUS)

    @pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.name)
    def test_each_file_has_its_outcome(self, case: Case) -> None:
        """Each file is parsed to the right values, or is invalid for the right reason."""
        file = RunFile(case.key, len(case.data), "etag", FILE.last_modified)
        if not case.reason:
            result = whole(case.data, file=file)
            check(case, result)
            best_of(result)
            return
        with pytest.raises(InvalidRunFileError) as error:
            whole(case.data, file=file)
        assert case.reason in error.value.reason
        assert error.value.reason == str(error.value)
        assert len(error.value.reason) < 300

    @pytest.mark.parametrize(
        "case", [case for case in CORPUS if not is_gzip(case.data)], ids=lambda case: case.name
    )
    def test_the_verdict_does_not_depend_on_the_cutoff(self, case: Case) -> None:
        """A file is as valid when its matches are below the cutoff as when they are not."""
        if case.reason:
            with pytest.raises(InvalidRunFileError) as error:
                without_matches(case.data)
            with pytest.raises(InvalidRunFileError) as whole_error:
                whole(case.data)
            assert error.value.reason == whole_error.value.reason
        else:
            every = structs.replace(whole(case.data), top_matches=())
            assert structs.replace(without_matches(case.data), top_matches=()) == every

    def test_each_field_is_checked(self) -> None:
        """For each field that is read there is a file that is invalid because of it."""
        named = {case.reason.partition(":")[0].partition("[")[0] for case in CORPUS}
        assert named >= ACCEPTED.keys()


def expected(run: dict[str, Any]) -> RunResult:
    """Return the result of a run file's object, computed in another way than the parser does."""
    seconds = run.get("processing_time_seconds")
    return RunResult(
        run_id=run.get("run_id") or FILE.key,
        timestamp=run.get("timestamp") or "2025-10-21T13:56:00+00:00",
        opportunities=run.get("total_opportunities") or 0,
        matches=run.get("matches_found") or 0,
        no_matches=run.get("no_matches") or 0,
        errors=run.get("errors") or 0,
        processing_time=None if seconds is None else abs(float(seconds)),
        top_matches=tuple(
            [
                Match(body.get("match_score") or 0, position, orjson.dumps(body))
                for position, body in enumerate(run.get("top_matches") or [])
            ]
        ),
    )


class TestParse:
    @given(run_objects())
    def test_every_run_file_is_read(self, run: dict[str, Any]) -> None:
        """The result has every field of a good run file; unknown fields do not matter."""
        run |= {"errors": 1}
        assert whole(orjson.dumps(run)) == expected(orjson.loads(orjson.dumps(run)))

    @given(run=run_objects(), indent=st.sampled_from([None, 0, 3]), ascii_only=st.booleans())
    def test_layout_does_not_matter(
        self, run: dict[str, Any], indent: int | None, *, ascii_only: bool
    ) -> None:
        """White space, the order of names and the escaping of characters change nothing."""
        run |= {"errors": 1}
        backwards = dict(reversed(run.items()))
        text = json.dumps(backwards, indent=indent, ensure_ascii=ascii_only)
        assert whole(text.encode()) == whole(orjson.dumps(run))

    @given(odd_run_objects)
    def test_any_json_is_parsed_or_invalid(self, value: Any) -> None:
        """Any JSON gives a result, or a reason that names a field or says "not an object"."""
        try:
            result = whole(orjson.dumps(value))
        except InvalidRunFileError as error:
            named = error.reason.partition(":")[0].partition("[")[0]
            assert named in {*ACCEPTED, "not an object", "none of the fields of a run file"}
        else:
            assert result == expected(orjson.loads(orjson.dumps(value)))

    @given(st.binary(max_size=40) | st.text('{}[]":,0123456789.eE+-truefalsn \\u').map(str.encode))
    def test_any_bytes_are_parsed_or_invalid(self, data: bytes) -> None:
        """Any bytes give a result or a reason."""
        try:
            best_of(whole(data))
        except InvalidRunFileError as error:
            assert error.reason  # noqa: PT017 - either is right

    @pytest.mark.parametrize("top_cutoff", [2**53 - 1, 2**53, 2**53 + 1, 2.0**64, 1e300])
    @pytest.mark.parametrize("score", [b"9007199254740993", b"18446744073709551617", b"1e300"])
    def test_a_large_score_is_compared_as_reported(self, score: bytes, top_cutoff: float) -> None:
        """A score beyond 53 bits is compared with the cutoff by the value that is reported."""
        data = b'{"top_matches":[{"match_score":%b}]}' % score
        (match,) = parse(data, FILE).top_matches
        assert len(parse(data, FILE, top_cutoff).top_matches) == (match.score >= top_cutoff)

    @given(run_objects(), scores)
    def test_matches_below_a_score_are_left_out(
        self, run: dict[str, Any], top_cutoff: float
    ) -> None:
        """Matches below the cutoff are left out, and nothing else changes."""
        data = orjson.dumps(run | {"errors": 1})
        every = parse(data, FILE)
        rivals = tuple(match for match in every.top_matches if match.score >= top_cutoff)
        assert parse(data, FILE, top_cutoff) == structs.replace(every, top_matches=rivals)

    def test_missing_fields(self) -> None:
        """A missing name is the key, a missing time the file's, a missing count 0."""
        assert whole(b'{"errors":0}') == RunResult("runs/a.json", "2025-10-21T13:56:00+00:00")

    @pytest.mark.parametrize("zero", [b"-0", b"-0.0", b"0", b"-1e-400"])
    def test_minus_zero_seconds_are_zero(self, zero: bytes) -> None:
        """Minus zero seconds become zero seconds without a sign."""
        assert repr(whole(b'{"processing_time_seconds":%b}' % zero).processing_time) == "0.0"

    @given(run_objects(2), st.data())
    def test_a_prefix_is_never_accepted(self, run: dict[str, Any], data: st.DataObject) -> None:
        """A file that is truncated anywhere is invalid, never counted in part."""
        text = orjson.dumps(run)
        with pytest.raises(InvalidRunFileError, match=r"^not JSON: "):
            whole(text[: data.draw(st.integers(0, len(text) - 1))])

    @pytest.mark.parametrize("size", [MAX_MATCH_BYTES - 1, MAX_MATCH_BYTES, MAX_MATCH_BYTES + 1])
    @pytest.mark.parametrize("others", [0, 10])
    def test_longest_match(self, size: int, others: int) -> None:
        """A match of exactly the largest size is kept; with one byte more the file is invalid."""
        body = {"x": "x" * (size - len('{"x":""}'))}
        data = orjson.dumps({"top_matches": [{}] * others + [body]})
        if size <= MAX_MATCH_BYTES:
            assert len(whole(data).top_matches) == min(others + 1, 10)
            return
        reason = rf"top_matches\[{others}\]: expected at most {MAX_MATCH_BYTES} bytes, got "
        with pytest.raises(InvalidRunFileError, match=reason):
            whole(data)

    def test_the_size_of_a_match_is_its_written_size(self) -> None:
        """A match that is too long when it is written makes even a short file invalid."""
        match = b'{"x":[' + b"1e15," * 20_000 + b"1]}"
        assert len(match) < MAX_MATCH_BYTES // 2
        for rest in (b"", b',"y":"%b"' % (b"y" * MAX_MATCH_BYTES)):
            with pytest.raises(
                InvalidRunFileError,
                match=r"top_matches\[0\]: expected at most 262144 bytes, got 380",
            ):
                whole(b'{"top_matches":[%b]%b}' % (match, rest))


GOOD_TIMES = (
    "2025-10-21T13:56:00.123Z",
    "2025-10-21T13:56:00+02:00",
    "2025-10-21 13:56",
    "20251021T135600",
    "2025-10-21",
    "2025-W43-2",
    "0001-01-01T00:00:00+23:59",
    "0000-02-29T00:00:00Z",
    "9999-12-31T23:59:59.999999-23:59",
    "2016-12-31T23:59:60Z",
    "2016-12-31T15:59:60.25-08:00",
    "2025-10-21t13:56:00z",
    "2025-10-21T24:00:00",
    "2025-10-21T24:00:00.000Z",
    "2025-10-21T13:56:00.1234567890123456789012345678901234567890Z",
    "2025-10-21T13:56:00-00:00",
)
BAD_TIMES = (
    "2025-02-29",
    "2025-13-01T00:00:00Z",
    "2025-10-21T24:00:01Z",
    "2025-10-21T25:00:00Z",
    "2025-10-21T13:60:00Z",
    "2025-10-21T13:56:61Z",
    "2025-10-21T13:56:00+24:00",
    "2025-10-21x13:56:00Z",
    "2025-10-21T13:56:00Z ",
    "\uff12025-10-21",
    "1761055200",
    "Tue, 21 Oct 2025 13:56:00 GMT",
)


def one_edit_away(text: str) -> Iterator[str]:
    """Yield the texts with one character more, less, or replaced."""
    for at, odd in product(range(len(text) + 1), "019:-+.,TtZz W~\0é\uff11"):
        yield text[:at] + odd + text[at:]
        yield text[:at] + odd + text[at + 1 :]
        yield text[:at] + text[at + 1 :]


class TestTimestamps:
    @pytest.mark.parametrize("text", GOOD_TIMES)
    def test_kept_unchanged(self, text: str) -> None:
        """Any RFC 3339 time is accepted and kept unchanged, and so are other common forms."""
        assert whole(orjson.dumps({"timestamp": text})).timestamp == text

    @pytest.mark.parametrize("text", BAD_TIMES)
    def test_no_time(self, text: str) -> None:
        """What is no time is invalid."""
        with pytest.raises(InvalidRunFileError, match="timestamp: expected an RFC 3339 time such"):
            whole(orjson.dumps({"timestamp": text}))

    @given(texts | st.text("0123456789-T:Z+. W", max_size=30))
    def test_any_text(self, text: str) -> None:
        """Any text is a time or invalid; empty text counts as missing."""
        try:
            assert whole(orjson.dumps({"timestamp": text})).timestamp == text or not text
        except InvalidRunFileError as error:
            assert error.reason.startswith("timestamp: expected ")  # noqa: PT017 - either is right

    @pytest.mark.parametrize("text", [*GOOD_TIMES, "2025-10-21T13:56:00.12345678+02:00"])
    def test_the_quick_check_accepts_no_more(self, text: str) -> None:
        """Python's own parser accepts some texts that are no times, most of them one edit away."""
        for near in one_edit_away(text):
            assert is_timestamp(near) or not is_common_timestamp(near), near


class TestKinds:
    @pytest.mark.parametrize(
        ("key", "run_file"),
        [
            ("runs/a.json", True),
            ("runs/a.json.gz", True),
            ("runs/a.gz", False),
            ("runs/json", False),
            ("runs/", False),
            (".json", True),
        ],
    )
    def test_by_key(self, key: str, *, run_file: bool) -> None:
        """The ending says what is a run file."""
        assert is_run_file(key) is run_file


class TestAgainstJson:
    def test_ten_thousand_files_have_the_verdict_of_an_obvious_reader(self) -> None:
        """The reader agrees with one that is written with `json` alone, and so does the stream."""
        source = random.Random(18)
        valid = 0
        for _ in range(10_000):
            data = generated_file(source)
            result = outcome_of(data)
            valid += isinstance(result, RunResult)
            assert_same(data, result)
        assert 3000 < valid < 8000


def outcome_of(data: bytes) -> RunResult | str:
    """Return the result of a file, or the reason; the same for small, streamed and skimmed."""
    outcomes: list[RunResult | str] = []
    for way in (whole, without_matches, lambda data: streamed(in_chunks(data, 50))):
        try:
            outcomes.append(way(data))
        except InvalidRunFileError as error:
            outcomes.append(error.reason)
    result, skimmed, stream = outcomes
    assert stream == result, data
    if not isinstance(result, RunResult):
        assert skimmed == result, data
    else:
        assert isinstance(skimmed, RunResult), (data, skimmed)
        assert skimmed == structs.replace(result, top_matches=())
    return result


def assert_same(data: bytes, result: RunResult | str) -> None:
    """Check a result against that of the obvious reader."""
    try:
        fields = read(data)
    except Invalid:
        assert isinstance(result, str), data
        return
    assert isinstance(result, RunResult), (data, result)
    assert fields == {
        "run_id": "" if result.run_id == FILE.key else result.run_id,
        "timestamp": "" if result.timestamp == MODIFIED else result.timestamp,
        "total_opportunities": result.opportunities,
        "matches_found": result.matches,
        "no_matches": result.no_matches,
        "errors": result.errors,
        "processing_time_seconds": result.processing_time,
        "top_matches": [(match.score, match.position) for match in result.top_matches],
    }, data


class TestInflate:
    @given(st.data(), st.binary(max_size=300))
    def test_gives_the_content(self, data: st.DataObject, content: bytes) -> None:
        """Any members, padding, level and chunking unzip to the content."""
        packed = data.draw(gzip_files(content))
        assert b"".join(inflate(packed, len(content))) == content
        inflater = Inflater(len(content))
        chunks = data.draw(chunkings(packed))
        assert b"".join(b for chunk in chunks for b in inflater.feed(chunk)) == content
        inflater.finish()

    @given(st.data(), st.binary(min_size=1, max_size=300))
    def test_limit(self, data: st.DataObject, content: bytes) -> None:
        """Content of one byte more than the limit is too large, at any chunking."""
        limit = len(content) - 1
        inflater = Inflater(limit)
        chunks = data.draw(chunkings(data.draw(gzip_files(content))))
        with pytest.raises(
            InvalidRunFileError, match=f"^too large: more than {limit} bytes unzipped"
        ):
            list(chain.from_iterable(map(inflater.feed, chunks)))

    @given(st.binary(max_size=300), st.data())
    def test_cut_short(self, content: bytes, data: st.DataObject) -> None:
        """A member that is truncated anywhere is invalid."""
        packed = gzip.compress(content)
        cut = data.draw(st.integers(0, len(packed) - 1))
        with pytest.raises(InvalidRunFileError, match=r"^bad gzip: cut short"):
            list(inflate(packed[:cut], 1000))

    @given(st.sampled_from([b"", b"\x1f\x8b\x08"]), st.binary(max_size=60))
    def test_any_bytes(self, mark: bytes, data: bytes) -> None:
        """Any bytes are unzipped or invalid."""
        try:
            list(inflate(mark + data, 10_000))
        except InvalidRunFileError as error:
            assert error.reason.startswith(("bad gzip: ", "too large: "))  # noqa: PT017

    def test_a_bomb_is_never_held(self) -> None:
        """A gigabyte of zeros stops at the limit, with one block at a time in memory."""
        bomb = gzip.compress(bytes(64 * 1024 * 1024), 1) * 16
        sizes: list[int] = []
        tracemalloc.start()
        try:
            with pytest.raises(InvalidRunFileError, match="too large"):
                sizes.extend(map(len, inflate(bomb, MAX_BYTES)))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert sum(sizes) <= MAX_BYTES
        assert max(sizes) <= 256 * 1024
        assert peak < 2 * 1024 * 1024

    def test_work_grows_only_with_the_length(self) -> None:
        """Zlib copies little at each member, even if the file has 100,000 of them."""
        longest = 0

        class Watched(Inflater):
            def _feed(self, data: bytes) -> Iterator[bytes]:
                nonlocal longest
                longest = max(longest, len(data))
                return super()._feed(data)

        inflater = Watched(10)
        data = gzip.compress(b"", mtime=0) * 100_000 + gzip.compress(b"{}")
        assert list(inflater.feed(data)) == [b"{}"]
        inflater.finish()
        assert longest <= 16 * 1024

    def test_the_limit_itself_is_accepted(self) -> None:
        """Content of exactly the limit is not too large."""
        packed = gzip.compress(b"x" * 1000)
        assert sum(map(len, inflate(packed, 1000))) == 1000


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2025-10-21T13:56:00Z", "2025-10-21T13:56:00+00:00"),
        ("2025-10-21t13:56:00.5z", "2025-10-21T13:56:00.500000+00:00"),
        ("2025-10-21T13:56:00+05:30", "2025-10-21T08:26:00+00:00"),
        ("2025-10-21", "2025-10-21T00:00:00+00:00"),
        ("2025-10-21T13:56:00.123456789Z", "2025-10-21T13:56:00.123456+00:00"),
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00+00:00"),
        ("2017-01-01T05:29:60.25+05:30", "2017-01-01T00:00:00.250000+00:00"),
        ("2025-12-31T24:00:00Z", "2026-01-01T00:00:00+00:00"),
        ("20251231T24Z", "2026-01-01T00:00:00+00:00"),
        ("2025-W43-2T13:56Z", "2025-10-21T13:56:00+00:00"),
        ("0000-01-01T00:00:00Z", None),
        ("0001-01-01T00:00:00+01:00", None),
        ("9999-12-31T24:00:00Z", None),
    ],
)
def test_a_time_stamp_is_a_moment_in_utc(text: str, utc: str | None) -> None:
    """All that is accepted has a moment, the same on every Python, if `datetime` has that year."""
    moment = utc_of(text)
    assert is_timestamp(text)
    assert (moment and moment.isoformat()) == utc
