"""Which key is what, also where the prefixes nest."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from testkit.strategies import PREFIXES, etags, prefixes, texts, windows

from asyncagg.job.layout import KeyKind, Layout
from asyncagg.model import RunFile, Window
from asyncagg.settings import Settings

RUN, IGNORED, OURS = KeyKind.RUN_FILE, KeyKind.IGNORED, KeyKind.INTERNAL
WINDOW = Window(datetime(2025, 10, 21, 14, tzinfo=UTC), 5)


def layout(runs: str, aggregates: str, archive: str, quarantine: str) -> Layout:
    """Return the layout of four prefixes."""
    return Layout(
        Settings(
            runs_prefix=runs,
            aggregate_prefix=aggregates,
            archive_prefix=archive,
            quarantine_prefix=quarantine,
        )
    )


DEFAULT = layout("runs/", "aggregates/", "archive/", "quarantine/")
SHARED = layout("runs/", "runs/", "archive/", "quarantine/")
NESTED = layout("runs/", "runs/agg/", "runs/archive/", "runs/bad/")
RAW = layout("runs/raw/", "runs/", "runs/archive/", "runs/quarantine/")
WHOLE = layout("", "", "archive/", "quarantine/")


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Return the layout of any accepted configuration; often its prefixes nest."""
    runs, aggregates = draw(prefixes), draw(prefixes)

    def outside(*inner: str) -> list[str]:
        return [each for each in PREFIXES if not any(key.startswith(each) for key in inner)]

    archive = draw(st.sampled_from(outside(runs, aggregates)))
    beyond = [each for each in outside(runs, aggregates, archive) if not each.startswith(archive)]
    return layout(runs, aggregates, archive, draw(st.sampled_from(beyond)))


stems = st.builds(
    "{}{}".format,
    prefixes,
    texts | windows.map(lambda window: window.name) | st.just("20251021t1302Z_a"),
)
run_names = st.builds(
    "{}{}".format, stems, st.sampled_from([".json", ".json.gz", ".json.json", ".JSON.Gz"])
)
names = run_names | st.builds("{}{}".format, stems, st.sampled_from(["", "/", ".txt", ".jso"]))


@pytest.mark.parametrize(
    ("where", "key", "kind"),
    [
        (DEFAULT, "runs/a.json", RUN),
        (DEFAULT, "runs/a.json.gz", RUN),
        (DEFAULT, "runs/deep/er/a.json", RUN),
        (DEFAULT, "runs/.json", RUN),
        (DEFAULT, "runs/20251021t1400Z.json", RUN),
        (DEFAULT, "runs/archive/a.json", RUN),
        (DEFAULT, "runs/", IGNORED),
        (DEFAULT, "runs/sub/", IGNORED),
        (DEFAULT, "runs/a.JSON", RUN),
        (DEFAULT, "runs/a.Json.GZ", RUN),
        (DEFAULT, "runs/a.jsonl", IGNORED),
        (DEFAULT, "runs/a.ndjson", IGNORED),
        (DEFAULT, "runs/a.json.bak", IGNORED),
        (DEFAULT, "runs/a.gz", IGNORED),
        (DEFAULT, "runs/a.json/", IGNORED),
        (DEFAULT, "runs/a.json\n", IGNORED),
        (SHARED, "runs/20251021t1400Z.json", OURS),
        (SHARED, "runs/20251021t1400Z_a.json", RUN),
        (SHARED, "runs/20251021t1400Z.json.gz", RUN),
        (SHARED, "runs/20251021t1400z.json", RUN),
        (SHARED, "runs/deep/20251021t1400Z.json", RUN),
        (SHARED, "runs/x20251021t1400Z.json", RUN),
        (SHARED, "runs/\u0662\u0660\u0662\u0665\u0661\u0660\u0662\u0661t1400Z.json", RUN),
        (NESTED, "runs/agg/20251021t1400Z.json", OURS),
        (NESTED, "runs/archive/a.json", OURS),
        (NESTED, "runs/bad/a.json", OURS),
        (NESTED, "runs/bad/", OURS),
        (NESTED, "runs/bad.json", RUN),
        (NESTED, "runs/archived/a.json", RUN),
        (NESTED, "runs/20251021t1400Z.json", RUN),
        (RAW, "runs/raw/a.json", RUN),
        (RAW, "runs/raw/20251021t1400Z.json", RUN),
        (WHOLE, "a.json", RUN),
        (WHOLE, "20251021t1400Z.json", OURS),
        (WHOLE, "archive/a.json", OURS),
        (WHOLE, "quarantine/a.json", OURS),
    ],
)
def test_kinds(where: Layout, key: str, kind: KeyKind) -> None:
    """A key below the inbox is a run file, ours, or ignored, by its prefix and its name."""
    assert where.kind(key) is kind


@pytest.mark.parametrize(
    ("where", "aggregate", "archived", "quarantined"),
    [
        (
            DEFAULT,
            "aggregates/20251021t1400Z.json",
            "archive/d/a.json",
            "quarantine/d/a.json",
        ),
        (SHARED, "runs/20251021t1400Z.json", "archive/d/a.json", "quarantine/d/a.json"),
        (NESTED, "runs/agg/20251021t1400Z.json", "runs/archive/d/a.json", "runs/bad/d/a.json"),
        (RAW, "runs/20251021t1400Z.json", "runs/archive/d/a.json", "runs/quarantine/d/a.json"),
        (WHOLE, "20251021t1400Z.json", "archive/d/a.json", "quarantine/d/a.json"),
    ],
)
def test_where_things_go(where: Layout, aggregate: str, archived: str, quarantined: str) -> None:
    """A file keeps its path below the inbox; an aggregate is named by its window."""
    key = f"{where.runs_prefix}d/a.json"
    assert where.aggregate_key(WINDOW) == aggregate
    assert where.archive_key(key) == archived
    assert where.quarantine_key(key) == quarantined


@given(layouts(), names, windows)
def test_what_is_ours_is_never_a_run_file(where: Layout, name: str, window: Window) -> None:
    """No archived, quarantined or aggregate key of any accepted layout is taken for a run file."""
    key = where.runs_prefix + name
    ours = (where.archive_key(key), where.quarantine_key(key), where.aggregate_key(window))
    for made in ours:
        if made.startswith(where.runs_prefix):
            assert where.kind(made) is OURS


@given(layouts(), names, names, windows)
def test_kinds_never_share_a_key(where: Layout, one: str, two: str, window: Window) -> None:
    """A run file, an archived one, a quarantined one and an aggregate never have the same key."""
    keys = [where.runs_prefix + one, where.runs_prefix + two]
    runs = {key for key in keys if where.kind(key) is RUN}
    archived = {where.archive_key(key) for key in runs}
    quarantined = {where.quarantine_key(key) for key in runs}
    aggregates = {where.aggregate_key(window)}
    everything = (runs, archived, quarantined, aggregates)
    assert len(runs | archived | quarantined | aggregates) == sum(map(len, everything))
    assert len(archived) == len(quarantined) == len(runs)


@given(layouts(), run_names, etags)
def test_the_key_beside_is_of_the_same_kind(where: Layout, name: str, etag: str) -> None:
    """Where an archived file steps aside, it stays in its folder, is ours, and keeps its ending."""
    key = where.runs_prefix + name
    assume(where.kind(key) is RUN)
    archived = where.archive_key(key)
    beside = where.conflict_key(archived, etag)
    assert beside != archived
    assert beside.rpartition("/")[0] == archived.rpartition("/")[0]
    assert beside.lower().endswith((".json", ".json.gz"))
    if beside.startswith(where.runs_prefix):
        assert where.kind(beside) is OURS


@given(layouts(), run_names, etags)
def test_an_archived_file_tells_where_it_came_from(where: Layout, name: str, etag: str) -> None:
    """From its place in the archive or in quarantine, plain or beside, follows its old key."""
    key = where.runs_prefix + name
    assume(where.kind(key) is RUN and f".{etag[:16]}" not in key)
    for place_of in (where.archive_key, where.quarantine_key):
        place = place_of(key)
        for stands in (place, where.conflict_key(place, etag)):
            file = RunFile(stands, 1, etag, datetime(2025, 10, 21, tzinfo=UTC))
            assert where.arrival_key(file, place_of) == key


def test_a_key_that_was_cut_does_not_tell_where_it_came_from() -> None:
    """What is not known is not guessed."""
    key = f"runs/{'x' * 1015}.json"
    file = RunFile(DEFAULT.archive_key(key), 1, "e", datetime(2025, 10, 21, tzinfo=UTC))
    assert file.key != f"archive/{'x' * 1015}.json"
    assert DEFAULT.arrival_key(file, DEFAULT.archive_key) is None


@pytest.mark.parametrize(
    ("key", "beside"),
    [
        ("archive/a.json", "archive/a.0123456789abcdef.json"),
        ("archive/d/a.json.gz", "archive/d/a.0123456789abcdef.json.gz"),
        ("archive/a.json/b.json", "archive/a.json/b.0123456789abcdef.json"),
        ("archive/a.json.json", "archive/a.0123456789abcdef.json.json"),
        ("archive/.json", "archive/.0123456789abcdef.json"),
        ("a.json", "a.0123456789abcdef.json"),
    ],
)
def test_the_key_beside_has_a_suffix_of_the_etag(key: str, beside: str) -> None:
    """A taken key gets the beginning of the etag before its ending: the same each time."""
    assert Layout.conflict_key(key, "0123456789abcdef0123456789abcdef") == beside


def test_the_longest_key_has_a_place() -> None:
    """A run file whose key has 1,024 bytes, the most that S3 takes, can be archived and refused."""
    key = f"runs/{'x' * 1014}.json"
    assert len(key) == 1024
    for place in (DEFAULT.archive_key(key), DEFAULT.quarantine_key(key)):
        assert len(place) <= 1024
        assert len(Layout.conflict_key(place, "0123456789abcdef")) <= 1024


@given(layouts(), run_names, etags, etags)
def test_a_key_to_come_back_under_is_its_own(
    where: Layout, name: str, etag: str, other: str
) -> None:
    """It is marked, keeps its ending and fits, however often a file comes back."""
    key, keys = where.quarantine_key(where.runs_prefix + name), set[str]()
    assume(where.kind(where.inbox_key(key)) is RUN)
    for _ in range(3):
        for tag in {etag, other}:
            back = where.restored_key(where.inbox_key(key), tag.encode(), WINDOW)
            assert where.was_restored(back)
            assert back not in keys
            assert back.endswith(".gz") == key.endswith(".gz")
            assert len(back.encode()) <= 1024
            assert len(back.rpartition("/")[2].encode()) <= 255
            starts = where.restored_prefixes(where.inbox_key(key))
            places = (back, where.archive_key(back), where.quarantine_key(back))
            assert all(place.startswith(start) for place, start in zip(places, starts, strict=True))
            keys.add(back)
        key = where.quarantine_key(back)


@pytest.mark.parametrize("folder", ["", "d/" * 480, "é" * 505 + "/"])
@pytest.mark.parametrize("stem", ["", "x" * 250, "é" * 120])
def test_the_longest_key_can_come_back(folder: str, stem: str) -> None:
    """Two of the same content, whose keys are alike where they are cut, come back apart."""
    keys = set[str]()
    for number in range(2):
        key = f"runs/{folder}{stem}{number}.json"
        back = DEFAULT.restored_key(key, b"e", WINDOW)
        assert DEFAULT.was_restored(back)
        assert len(back.encode()) <= 1024
        starts = DEFAULT.restored_prefixes(key)
        places = (back, DEFAULT.archive_key(back), DEFAULT.quarantine_key(back))
        assert all(place.startswith(start) for place, start in zip(places, starts, strict=True))
        keys.add(back)
    assert len(keys) == 2
