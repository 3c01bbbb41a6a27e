"""The aggregate document: written as a stream, read back, merged; damage is always noticed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import timedelta
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for
from testkit.documents import (
    IN_MEMORY,
    ON_DISK,
    WINDOW,
    Entry,
    document,
    entry,
    in_order,
    loaded,
    rows_of,
    without_history,
    written,
)
from testkit.strategies import (
    chunkings,
    etags,
    keys,
    match_objects,
    plain_results,
    run_files,
    run_results,
    texts,
    windows,
)

from asyncagg.aggregate import spool as spool_module
from asyncagg.aggregate import writer as writing_module
from asyncagg.aggregate.format import SCHEMA_VERSION, schema, window_member
from asyncagg.aggregate.head import accumulator_of
from asyncagg.aggregate.reader import read_head
from asyncagg.aggregate.spool import LONGEST_LINE
from asyncagg.errors import AggregateError
from asyncagg.model import Match, RunFile, RunResult, Window

VALIDATOR = Draft202012Validator(schema(), format_checker=Draft202012Validator.FORMAT_CHECKER)


def distinct(entries: list[Entry]) -> list[Entry]:
    """Return entries in order, one for each key: a listing has no more."""
    return in_order({each.file.key: each for each in entries}.values())


def some(results: st.SearchStrategy[RunResult], most: int = 6) -> st.SearchStrategy[list[Entry]]:
    """Return a strategy for the entries of one document."""
    return st.lists(st.builds(Entry, run_files, results | texts), max_size=most).map(distinct)


SMALL = distinct(
    [
        entry('runs/a "quoted".json', matches=2, processing_time=1.25),
        entry(
            "runs/b\nline.json",
            top_matches=(Match(0.5, 0, orjson.dumps({"match_score": 0.5, "t": "é\n"})),),
        ),
        entry("runs/c.json", etag="f", processing_time=0.0),
        Entry(RunFile("runs/d.json", 3, "e", WINDOW.start), "not JSON: \n"),
        Entry(RunFile("runs/e.json", 3, "e", WINDOW.start), "too large"),
    ]
)
"""Three counted files and two refused ones."""


def tied(number: int) -> Match:
    """Return a match that has the same score as every third other."""
    return Match(number % 3, 0, orjson.dumps({"match_score": number % 3, "n": number}))


class TestWriting:
    @given(some(run_results), windows, st.sampled_from([IN_MEMORY, ON_DISK]))
    async def test_is_valid(self, entries: list[Entry], window: Window, memory: int) -> None:
        """Whatever is in it, the document is JSON that the shipped schema accepts."""
        data = await written(entries, window=window, memory=memory)
        VALIDATOR.validate(json.loads(data))

    def test_the_schema_is_one(self) -> None:
        """The shipped schema is a valid schema of its dialect, and strict about names."""
        validator_for(schema()).check_schema(schema())
        assert schema()["additionalProperties"] is False
        assert sorted([*schema()["required"], "packs"]) == sorted(schema()["properties"])

    @pytest.mark.parametrize("member", sorted(schema()["required"]))
    async def test_the_schema_notices_what_is_missing(self, member: str) -> None:
        """A document without one of its members, or with another, is not valid."""
        told = json.loads(await written(SMALL))
        assert VALIDATOR.is_valid(told)
        assert not VALIDATOR.is_valid(told | {"more": 1})
        del told[member]
        assert not VALIDATOR.is_valid(told)

    async def test_what_it_says(self) -> None:
        """The members are those that readers know, with the sums of the counted files."""
        told = json.loads(await written(SMALL))
        assert told["schema_version"] == SCHEMA_VERSION
        assert told["window"] == {
            "name": "20251021t1400Z",
            "start": "2025-10-21T13:55:00+00:00",
            "end": "2025-10-21T14:00:00+00:00",
            "minutes": 5,
        }
        assert told["aggregation_window_minutes"] == 5
        assert (told["total_opportunities"], told["total_matches"]) == (9, 2)
        assert told["processing_time_seconds"] == 1.25
        assert told["files"] == {"counted": 3, "quarantined": 2, "late": 0, "bytes": 300}
        assert told["top_matches"] == [
            {
                "match_score": 0.5,
                "t": "é\n",
                "source_key": "runs/b\nline.json",
                "source_position": 0,
            }
        ]
        assert told["run_summaries"][0] == {
            "run_id": 'runs/a "quoted".json',
            "timestamp": "2025-10-21T13:56:00",
            "opportunities": 3,
            "matches": 2,
            "no_matches": 0,
            "errors": 0,
            "processing_time": 1.25,
        }
        assert told["source_files"][2] == {
            "key": "runs/c.json",
            "timestamp": "2025-10-21T13:56:00",
            "size": 100,
            "etag": "f",
            "last_modified": "2025-10-21T13:56:00+00:00",
        }
        assert told["quarantined_files"][0] == {
            "key": "runs/d.json",
            "reason": "not JSON: \n",
            "moved_to": "quarantine/runs/d.json",
            "etag": "e",
        }

    async def test_of_nothing(self) -> None:
        """A document of no files is valid, reads back, and has no rows."""
        data = await written([])
        VALIDATOR.validate(json.loads(data))
        async with loaded(data) as existing:
            assert await rows_of(existing) == ([], [])

    @given(some(run_results, 4))
    async def test_iterates_again(self, entries: list[Entry]) -> None:
        """Iterated again, for another attempt to write it, it gives the same bytes."""
        async with document(entries) as made:
            first = b"".join([block async for block in made])
            assert b"".join([block async for block in made]) == first

    async def test_goes_out_in_blocks(self) -> None:
        """Rows go out in blocks of bounded size, not as a whole and not one by one."""
        many = [entry(f"runs/{number:05}.json") for number in range(5000)]
        async with document(many) as made:
            sizes = [len(block) async for block in made]
        assert max(sizes) < 2 * spool_module.BLOCK
        assert len(sizes) < 30
        assert sum(sizes) > 1_000_000


class TestReadingBack:
    @given(some(run_results), windows, st.sampled_from([1, 13, 1 << 16]))
    async def test_same_accumulator_and_rows(
        self, entries: list[Entry], window: Window, chunk: int
    ) -> None:
        """What was written is what is read, and written again it is the same to the byte."""
        data = await written(entries, window=window, late=2)
        async with loaded(data, window=window, chunk=chunk) as existing:
            assert (existing.revision, existing.late) == (1, 2)
            counted, quarantined = await rows_of(existing)
            assert [row[:2] for row in counted] == [
                (each.file.key, each.file.etag)
                for each in entries
                if isinstance(each.outcome, RunResult)
            ]
            assert [orjson.loads(row.row)["reason"] for row in quarantined] == [
                each.outcome for each in entries if isinstance(each.outcome, str)
            ]
            again = await written([], window=window, existing=existing)
        assert without_history(again) == without_history(data)
        assert json.loads(again)["revision"] == 2

    @given(some(plain_results, 8), st.data())
    async def test_knows_what_it_names(self, entries: list[Entry], data: st.DataObject) -> None:
        """It knows a file by key and etag, counted or refused; another version it does not."""
        listed = [each.file for each in entries]
        asked = data.draw(st.lists(st.sampled_from(listed), unique=True)) if listed else []
        changed = [RunFile(each.key, each.size, "changed", each.last_modified) for each in asked]
        async with loaded(await written(entries)) as existing:
            counted, _, refused, _ = await existing.known(asked)
            assert counted | refused == {file.key for file in asked}
            assert counted == {
                each.file.key
                for each in entries
                if each.file in asked and isinstance(each.outcome, RunResult)
            }
            known = await existing.known(changed)
            assert (known.counted, known.quarantined) == (set(), set())

    async def test_sums_above_64_bits(self) -> None:
        """Sums that no 64-bit integer holds are written, valid, and read back exactly."""
        most = 2**53 - 1
        async with document(
            [entry("runs/a.json", opportunities=most, processing_time=1e12)]
        ) as made:
            for _ in range(20):
                made.accumulator.merge(made.accumulator)
            made.accumulator.counted = 1  # it has one row all the same
            data = b"".join([block async for block in made])
        VALIDATOR.validate(json.loads(data))
        async with loaded(data) as existing:
            assert existing.accumulator.opportunities == most * 2**20 > 2**64
            assert existing.accumulator.seconds == 10**12 * 2**20
            assert existing.accumulator.timed == existing.accumulator.sketch.count == 2**20

    @given(st.lists(st.tuples(keys, etags), max_size=6), match_objects)
    async def test_any_key(self, named: list[tuple[str, str]], body: dict[str, Any]) -> None:
        """Keys with quotes, line breaks, marks of the document and unicode come back unchanged."""
        matches = (Match(body.get("match_score", 0), 0, orjson.dumps(body)),)
        entries = distinct([entry(key, etag, top_matches=matches) for key, etag in named])
        async with loaded(await written(entries)) as existing:
            counted, _ = await rows_of(existing)
            top = existing.accumulator.top
        assert [(row.key, row.etag) for row in counted] == [
            (each.file.key, each.file.etag) for each in entries
        ]
        assert {match[1] for match in top} <= {each.file.key for each in entries}


async def arriving(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    """Yield the chunks of a body."""
    for chunk in chunks:
        yield chunk


class TestReadingTheHead:
    @given(some(plain_results, 4), st.data())
    async def test_at_every_chunking(self, entries: list[Entry], data: st.DataObject) -> None:
        """The head is read however it arrives, and gives the accumulator of the whole."""
        text = await written(entries)
        head = await read_head("a", WINDOW, arriving(data.draw(chunkings(text))))
        told = json.loads(text)
        assert head == {name: told[name] for name in head}
        assert set(told) - set(head) == {"run_summaries", "source_files", "quarantined_files"}
        async with loaded(text) as existing:
            assert accumulator_of(head).top == existing.accumulator.top

    async def test_no_further(self) -> None:
        """What comes behind the head is not asked for."""
        text = await written(SMALL)
        end = text.index(b'"run_summaries":[\n') + len(b'"run_summaries":[\n')

        async def body() -> AsyncIterator[bytes]:
            for start in range(end):
                yield text[start : start + 1]
            raise AssertionError("asked for more than the head")

        assert (await read_head("a", WINDOW, body()))["total_matches"] == 2

    @pytest.mark.parametrize(
        "damage",
        [
            lambda text: text[:0],
            lambda text: text[:0] + b"{}",
            lambda text: text[: text.index(b'"run_summaries"')],
            lambda text: text.replace(b'"schema_version":1', b'"schema_version":2'),
            lambda text: text.replace(b"20251021t1400Z", b"20251021t1405Z"),
            lambda text: text.replace(b'"revision":1', b'"revision":'),
            lambda text: text.replace(b'"revision":1', b'"revision":"\xff"'),
            lambda text: text.replace(b'"revision":1', b'"revision":' + b"[" * 5000),
            lambda text: b"[" * 100_000 + text,
            lambda text: b'"run_summaries":[\n' + text,
        ],
    )
    async def test_damage(self, damage: Callable[[bytes], bytes]) -> None:
        """A head that is missing, not ours, garbled or of another window is an AggregateError."""
        text = damage(await written(SMALL))
        with pytest.raises(AggregateError, match=r"^aggregate 'a': .*move it away"):
            await read_head("a", WINDOW, arriving([text]))

    async def test_a_head_without_end(self) -> None:
        """A foreign object is given up on before it fills the memory."""
        asked = 0

        async def body() -> AsyncIterator[bytes]:
            nonlocal asked
            for _ in range(1000):
                asked += 1
                yield b"x" * (1 << 20)

        with pytest.raises(AggregateError, match="its parts are not where they belong"):
            await read_head("a", WINDOW, body())
        assert asked <= 17


class TestMerging:
    @given(some(plain_results, 8), st.lists(st.booleans(), min_size=8, max_size=8))
    async def test_two_documents_are_one_of_both(
        self, entries: list[Entry], late: list[bool]
    ) -> None:
        """What is merged into a document that stands gives the bytes of one document of both."""
        first = [each for each, is_late in zip(entries, late, strict=False) if not is_late]
        second = [each for each, is_late in zip(entries, late, strict=False) if is_late]
        async with loaded(await written(first)) as existing:
            merged = await written(second, existing=existing, late=len(second))
        whole = await written(entries)
        assert without_history(merged) == without_history(whole)
        assert json.loads(merged)["files"]["late"] == len(second)
        VALIDATOR.validate(json.loads(merged))

    @given(st.lists(st.sampled_from(range(6)), min_size=12, max_size=12))
    @settings(max_examples=50)
    async def test_any_number_of_times(self, turns: list[int]) -> None:
        """However many times the work was interrupted, the document is the same."""
        entries = [
            entry(f"runs/{n}.json", processing_time=n / 10, top_matches=(tied(n),))
            for n in range(12)
        ]
        data = await written([])
        for turn in range(6):
            part = [each for each, its in zip(entries, turns, strict=True) if its == turn]
            async with loaded(data) as existing:
                data = await written(part, existing=existing)
        assert without_history(data) == without_history(await written(entries))
        assert json.loads(data)["revision"] == 7

    @given(some(plain_results, 8), st.lists(st.booleans(), min_size=8, max_size=8))
    async def test_rows_are_in_key_order(self, entries: list[Entry], late: list[bool]) -> None:
        """Every table is in the order of the keys, and the first two speak of the same files."""
        first = [each for each, is_late in zip(entries, late, strict=False) if not is_late]
        second = [each for each, is_late in zip(entries, late, strict=False) if is_late]
        async with loaded(await written(first)) as existing:
            told = json.loads(await written(second, existing=existing))
        for table in ("source_files", "quarantined_files"):
            named = [(row["key"], row["etag"]) for row in told[table]]
            assert named == sorted(named)
        by_key = {each.file.key: each.outcome for each in entries}
        for source, summary in zip(told["source_files"], told["run_summaries"], strict=True):
            outcome = by_key[source["key"]]
            assert isinstance(outcome, RunResult)
            assert summary["run_id"] == outcome.run_id
            assert summary["opportunities"] == outcome.opportunities

    @given(some(plain_results, 8), st.integers(0, 8))
    async def test_appended_rows_are_copied_unchanged(
        self, entries: list[Entry], border: int
    ) -> None:
        """Where all new keys follow the existing ones, rows are copied, with the same result."""
        first, second = entries[:border], entries[border:]
        async with loaded(await written(first)) as existing:
            assert existing.last_key == max((each.file.key for each in first), default="")
            merged = await written(second, existing=existing)
        assert without_history(merged) == without_history(await written(entries))

    async def test_two_versions_of_one_key(self) -> None:
        """A key that was overwritten after it was counted is there twice, in the order of etags."""
        async with loaded(await written([entry("runs/a.json", "f")])) as existing:
            merged = await written([entry("runs/a.json", "e")], existing=existing)
        assert [row["etag"] for row in json.loads(merged)["source_files"]] == ["e", "f"]
        async with loaded(merged) as existing:
            assert existing.accumulator.counted == 2


@pytest.mark.parametrize("block", [16, 100, 1000, 1 << 18])
@pytest.mark.parametrize("memory", [IN_MEMORY, ON_DISK, 1000])
async def test_spooled_is_as_in_memory(
    block: int, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On disk or in memory, in blocks of any size, writing, reading and merging give the same."""
    entries = [
        entry(f"runs/{n}.json", run_id="x" * (n * 7 % 50), processing_time=n / 7) for n in range(40)
    ]
    entries += [Entry(RunFile(f"runs/{n}.txt", 1, "e", WINDOW.end), "bad" * n) for n in range(40)]
    whole = await written(entries)
    monkeypatch.setattr(spool_module, "BLOCK", block)
    monkeypatch.setattr(writing_module, "BLOCK", block)
    async with loaded(await written(entries[::2], memory=memory), memory=memory) as existing:
        counted, _, refused, _ = await existing.known([each.file for each in entries])
        assert len(counted) == len(refused) == 20
        merged = await written(entries[1::2], existing=existing, memory=memory)
    assert without_history(merged) == without_history(whole)


async def survives(data: bytes, window: Window = WINDOW) -> bool:
    """Say whether a document is accepted; then all of it can be read, merged and read again.

    Whatever is raised that is no `AggregateError` comes out.
    """
    try:
        async with loaded(data, window=window) as existing:
            await existing.known([each.file for each in SMALL])
            again = await written([entry("runs/z.json")], existing=existing, window=window)
    except AggregateError as error:
        assert str(error).startswith("aggregate 'aggregates/a.json': ")  # noqa: PT017 - see above
        assert "expected a document that asyncagg wrote" in str(error)  # noqa: PT017
        return False
    async with loaded(again, window=window) as existing:
        await rows_of(existing)
    return True


def reformatted(**options: Any) -> bytes:
    """Return a document's content in the layout of another writer."""
    told = {"schema_version": 1, "window": window_member(WINDOW), "run_summaries": []}
    return json.dumps(told, **options).encode()


class TestDamage:
    async def test_a_sound_one_is_accepted(self) -> None:
        """The document that the following tests damage is a sound one."""
        assert await survives(await written(SMALL))

    async def test_cut_short_at_every_byte(self) -> None:
        """A document cut short anywhere is never accepted."""
        data = await written(SMALL)
        for end in range(len(data)):
            assert not await survives(data[:end]), f"cut short at {end}"

    async def test_cut_off_at_its_beginning(self) -> None:
        """A document whose first bytes or lines are lost is never accepted."""
        data = await written(SMALL)
        for start in range(1, len(data)):
            assert not await survives(data[start:]), f"without the first {start}"

    async def test_a_line_lost_or_doubled(self) -> None:
        """A document with a row or another line too few or too many is never accepted.

        But for members of the head that are written anew each time and never read, a member said
        twice, which says nothing new, and a match of the top, of which nothing tells how many
        there were: that would take a digest of the whole.
        """
        derived = (
            b'{"match_score"',
            b'"commit_id"',
            b'"aggregation_timestamp"',
            b'"aggregation_window_minutes"',
            b'"processing_time_seconds"',
        )
        lines = (await written(SMALL)).splitlines(keepends=True)
        tables = lines.index(b'"run_summaries":[\n')
        for at, line in enumerate(lines):
            lost = lines[:at] + lines[at + 1 :]
            assert await survives(b"".join(lost)) == line.startswith(derived), f"without {line!r}"
            doubled = [*lines[:at], line, *lines[at:]]
            harmless = line.startswith(b'"') and line.endswith(b",\n")
            assert await survives(b"".join(doubled)) == harmless, f"twice {line!r}"
            blank = [*lines[:at], b"\n", *lines[at:]]
            assert await survives(b"".join(blank)) == (at < tables), f"blank before {line!r}"

    @given(st.data())
    @settings(max_examples=300)
    async def test_any_bytes_changed(self, data: st.DataObject) -> None:
        """Bytes changed, put in or taken out anywhere: accepted whole or an AggregateError."""
        sound = await written(SMALL)
        start = data.draw(st.integers(0, len(sound)))
        end = data.draw(st.integers(start, min(start + 3, len(sound))))
        other = data.draw(
            st.binary(max_size=3)
            | st.sampled_from([b"0", b"1", b"-", b"null", b"{}", b"[]", b"\n", b'"', b"NaN", b"e9"])
        )
        await survives(sound[:start] + other + sound[end:])

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ('"schema_version":1', '"schema_version":2'),
            ('"schema_version":1', '"schema_version":null'),
            ('"revision":1', '"revision":null'),
            ('"revision":1', '"revision":[]'),
            ('"revision":1', '"revision":Infinity'),
            ('"revision":1', '"revision":' + "9" * 5000),
            ('"revision":1', '"revision":' + "[" * 5000 + "]" * 5000),
            ('"total_errors":0', '"total_errors":"no"'),
            ('"total_errors":0', '"total_error":0'),
            ('"counted":3', '"counted":4'),
            ('"counted":3', '"counted":2'),
            ('"quarantined":2', '"quarantined":3'),
            ('"processing_time":{', '"processing_time":{},"was":{'),
            ('"count":2', '"count":0'),
            ('"count":2', '"count":3'),
            ('"min":0.0', '"min":null'),
            ('"max":1.25', '"max":{}'),
            ('"min":0.0', '"min":-1e999'),
            ('"max":1.25', '"max":Infinity'),
            ('"max":1.25', '"max":"Infinity"'),
            ('"exact_sum":"1.25"', '"exact_sum":"much"'),
            ('"exact_sum":"1.25"', '"exact_sum":"NaN"'),
            ('"exact_sum":"1.25"', '"exact_sum":"Infinity"'),
            ('"exact_sum":"1.25"', '"exact_sum":1e400'),
            ('"exact_sum":"1.25"', '"exact_sum":"1e399"'),
            ('"exact_sum":"1.25"', '"exact_sum":"1.7e308"'),
            ('"accuracy":0.01', '"accuracy":0.02'),
            ('"zeros":1', '"zeros":2'),
            ('"bins":[[', '"bins":[5,['),
            ('"bins":[[', '"bins":[["a",1],['),
            ('"bins":[[', '"bins":[[1000000000,7],[1000000000,0],['),
            ('"bins":[[', '"bins":[[1000000000,0],['),
            ('{"match_score":0.5', '5,{"match_score":0.5'),
            ('{"match_score":0.5', '[],{"match_score":0.5'),
            ('{"match_score":0.5', 'null,{"match_score":0.5'),
            ('"match_score":0.5', '"match_score":"0.5"'),
            ('"match_score":0.5', '"match_score":null'),
            ('"source_key":"runs/b\\nline.json"', '"source_key":5'),
            ('"source_key":"runs/b\\nline.json"', '"source_key":"\\ud800"'),
            ('"source_position":0', '"source_position":"0"'),
            ('"source_position":0', f'"source_position":{10**30}'),
            ('"source_position":0', '"position":0'),
            ('"top_matches":[', '"top_matches":{"a":['),
            ('"key":"runs/c.json"', '"key":5'),
            ('"key":"runs/c.json"', '"key":["runs/c.json"]'),
            ('"key":"runs/c.json"', '"name":"runs/c.json"'),
            ('"etag":"f"', '"etag":null'),
            ('"key":"runs/d.json"', '"key":null'),
            ('{"key":"runs/c.json"', '["key":"runs/c.json"'),
            ('{"key":"runs/c.json"', '5,{"key":"runs/c.json"'),
            ('],\n"run_summaries":[', ' ],\n"run_summaries":['),
            ('],\n"source_files":[', ']  ,\n"source_files":['),
            ('],\n"quarantined_files":[', ']  ,\n"quarantined_files":['),
            ('"source_files":[', '"source_files": ['),
            ('{"run_id"', '\n{"run_id"'),
            ('{"run_id":"runs/c.json"', '"run_id":"runs/c.json"'),
            ('"processing_time":1.25}', '"processing_time":1.25'),
            ('"processing_time":0.0}\n', '"processing_time":0.0},,\n'),
            ("]\n}\n", "}\n]\n"),
            ("]\n}\n", "]\n}"),
            ("]\n}\n", "]\n}\n\n"),
            ("]\n}\n", "]\n}\n}\n"),
            ("]\n}\n", "]\n},\n"),
            ("\n", "\r\n"),
            (",\n", ", \n"),
        ],
    )
    async def test_one_thing_wrong(self, old: str, new: str) -> None:
        """A member missing, garbled or of another kind: an AggregateError, no other."""
        data = (await written(SMALL)).decode()
        assert old in data
        assert not await survives(data.replace(old, new).encode())

    @pytest.mark.parametrize(
        "window",
        [
            Window(WINDOW.end, 10),
            Window(WINDOW.end + timedelta(minutes=5), 5),
            Window(WINDOW.end - timedelta(days=1), 5),
        ],
    )
    async def test_of_another_window(self, window: Window) -> None:
        """A document that was copied to another window's key is not merged into."""
        data = await written(SMALL)
        assert not await survives(data, window)

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\n",
            b"{}",
            b"{}\n",
            b"null",
            b"[]",
            b"not JSON",
            b'{"totals": {"runs": 3}}',
            b"\x1f\x8b\x08\x00" + bytes(100),
            b"\xff\xfe" + "{}".encode("utf-16-le"),
            b"]\n}\n",
            b'"run_summaries":[\n"source_files":[\n"quarantined_files":[\n]\n}\n',
            b'],\n"run_summaries":[\n],\n"source_files":[\n],\n"quarantined_files":[\n]\n}\n',
            b'{\n],\n"run_summaries":[\n],\n"source_files":[\n],\n"quarantined_files":[\n]\n}\n',
            b'{"a":[\n],\n"run_summaries":[\n],\n"source_files":[\n],\n"quarantined_files":[\n]\n}\n',
            b"[" * 100_000,
            b'"run_summaries":[\n' * 1000,
            b"x" * (LONGEST_LINE + (1 << 19)),
            reformatted(),
            reformatted(indent=2),
            reformatted(separators=(",", ":")),
        ],
        ids=lambda data: repr(data[:24]),
    )
    async def test_what_is_no_document_of_ours(self, data: bytes) -> None:
        """Whatever else stands at the key, it is an AggregateError."""
        assert not await survives(data)

    @pytest.mark.parametrize("indent", [None, 0, 1, 4])
    async def test_written_anew_by_another_tool(self, indent: int | None) -> None:
        """The same JSON in another tool's layout is refused: nothing is read into the wrong row."""
        told = json.loads(await written(SMALL))
        assert not await survives(json.dumps(told, indent=indent).encode())
        assert not await survives(orjson.dumps(told, option=orjson.OPT_INDENT_2))
        assert not await survives(orjson.dumps(told))

    async def test_every_sentence_names_the_key(self) -> None:
        """The error says which aggregate, what is wrong with it, and what to do."""
        with pytest.raises(AggregateError) as failure:
            async with loaded(b"{}"):
                pass
        assert str(failure.value) == (
            "aggregate 'aggregates/a.json': its parts are not where they belong; expected a "
            "document that asyncagg wrote. It is not changed: move it away, and the next run "
            "settles its window"
        )
