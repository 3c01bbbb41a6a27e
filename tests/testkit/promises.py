"""Checks the promises of DESIGN.md section 4 from outside: plain JSON, own sums, own calendar.

Nothing here uses the package's own reading, summing or naming, so that a bug in them is found. A
test takes a snapshot of a store (`of_server`, `of_memory`, `of_directory`), lists every run file
that was ever written (`Original`), and calls

* `check_at_any_moment`: promises 1 to 3, which hold at every instant, also in mid-crash;
* `check_after_clean_run`: all of them, after a run has ended;
* `final_bytes`: the aggregates without their history, to be compared byte for byte.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from zipfile import ZipFile

from asyncagg.store.memory import MemoryStore
from testkit.s3server import S3Server

__all__ = (
    "Original",
    "Places",
    "Seen",
    "Snapshot",
    "check_after_clean_run",
    "check_at_any_moment",
    "final_bytes",
    "of_directory",
    "of_memory",
    "of_server",
    "originals_of",
    "unpacked",
    "window_end",
)

PROBE = "asyncagg-probe-"
"""In the names of the objects of the guards' probe, which a crash may leave."""

RECORD = ("asyncagg.json", ".asyncagg", "asyncagg.run")
"""The ends of the keys of the store's record, its copy, and the journal: left out of snapshots."""

_ASIDE = ".asyncagg-aside"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_AGGREGATE = re.compile(r"\d{8}t\d{4}Z\.json")
_SUMS = {
    "total_opportunities": "total_opportunities",
    "total_matches": "matches_found",
    "total_no_matches": "no_matches",
    "total_errors": "errors",
}
_SUMMARY = {
    "opportunities": "total_opportunities",
    "matches": "matches_found",
    "no_matches": "no_matches",
    "errors": "errors",
}


class Seen(NamedTuple):
    """One object as it is in the store."""

    data: bytes
    etag: str
    last_modified: datetime
    metadata: Mapping[str, str] = {}


Snapshot: TypeAlias = dict[str, Seen]


class Original(NamedTuple):
    """One version of a run file as its producer wrote it; ``good`` says whether it can count."""

    key: str
    data: bytes
    etag: str
    last_modified: datetime
    good: bool = True

    @property
    def identity(self) -> tuple[str, str]:
        """The key and etag that identify a run file."""
        return self.key, self.etag


@dataclass(frozen=True)
class Places:
    """The four prefixes, and the length of a window in minutes."""

    runs: str = "runs/"
    aggregates: str = "aggregates/"
    archive: str = "archive/"
    quarantine: str = "quarantine/"
    minutes: int = 5

    def is_aggregate(self, key: str) -> bool:
        """Return whether a key is that of an aggregate."""
        return key.startswith(self.aggregates) and bool(
            _AGGREGATE.fullmatch(key, len(self.aggregates))
        )

    def is_archived(self, key: str) -> bool:
        """Return whether a key is that of an archived file."""
        return key.startswith(self.archive) and PROBE not in key

    def is_pack(self, key: str) -> bool:
        """Return whether a key is that of a pack."""
        return key.startswith(f"{self.archive}packs/") and key.endswith(".zip")

    def is_quarantined(self, key: str) -> bool:
        """Return whether a key is that of a quarantined file."""
        return key.startswith(self.quarantine)

    def is_waiting(self, key: str) -> bool:
        """Return whether a key is that of a run file in the inbox."""
        elsewhere = [self.archive, self.quarantine]
        elsewhere += [self.aggregates] if self.aggregates != self.runs else []
        return (
            key.startswith(self.runs)
            and key.endswith((".json", ".json.gz"))
            and not self.is_aggregate(key)
            and not key.startswith(tuple(each for each in elsewhere if len(each) > len(self.runs)))
        )

    def moved(self, key: str, original: str, prefix: str) -> bool:
        """Return whether a run file's place below ``prefix`` is ``key``, suffix allowed."""
        plain = prefix + original.removeprefix(self.runs)
        folder, slash, name = plain.rpartition("/")
        stem, dot, ending = name.partition(".json")
        suffixed = key.startswith(f"{folder}{slash}{stem}.") and key.endswith(f"{dot}{ending}")
        return key == plain or (suffixed and key.count("/") == plain.count("/"))

    def aggregate_key(self, original: Original) -> str:
        """Return the key of the aggregate of a run file's window."""
        return f"{self.aggregates}{window_end(original, self.minutes):%Y%m%dt%H%MZ}.json"


def window_end(original: Original, minutes: int = 5) -> datetime:
    """Return the end of the window that a run file belongs to."""
    seconds = math.floor((original.last_modified - _EPOCH).total_seconds())
    return _EPOCH + timedelta(seconds=(seconds // (60 * minutes) + 1) * 60 * minutes)


# ------------------------------------------------------------------------------ snapshots


def of_server(server: S3Server, bucket: str = "b") -> Snapshot:
    """Return all objects in a bucket of the test server."""
    return {
        key: Seen(
            stored.body,
            stored.etag.strip('"'),
            stored.last_modified,
            {
                name.removeprefix("x-amz-meta-"): value
                for name, value in stored.headers.items()
                if name.startswith("x-amz-meta-")
            },
        )
        for key, stored in server.buckets[bucket].objects.items()
        if not key.endswith(RECORD)
    }


def of_memory(store: MemoryStore) -> Snapshot:
    """Return all objects in a store in memory."""
    return {
        key: Seen(each.data, each.etag, each.info.file.last_modified, each.info.metadata)
        for key, each in store._objects.items()
        if not key.endswith(RECORD)
    }


def of_directory(root: Path) -> Snapshot:
    """Return all files below a directory, by key.

    A file that a killed process was about to delete is in a hidden folder next to its place, and
    the next listing moves it back: it is returned under its original key.
    """
    found: Snapshot = {}
    # Hidden folders come last: a newer file in the original place wins.
    for path in sorted(root.rglob("*"), key=lambda path: path.parent.name == _ASIDE):
        aside = path.parent.name == _ASIDE
        if not path.is_file() or path.name.startswith(".asyncagg-") or path.name in RECORD:
            continue
        place = path.parent.parent / path.name if aside else path
        key = place.relative_to(root).as_posix()
        status = path.stat()
        etag = f"{status.st_mtime_ns:x}-{status.st_size:x}"
        modified = _EPOCH + timedelta(microseconds=status.st_mtime_ns // 1000)
        found.setdefault(
            key, Seen(path.read_bytes(), etag, modified, _sidecar(place.parent, path.name, etag))
        )
    return found


def _sidecar(folder: Path, name: str, etag: str) -> dict[str, str]:
    digest = hashlib.sha256(f"{name}/{etag}".encode()).hexdigest()[:32]
    path = folder / f".asyncagg-meta-{digest}"
    return dict(json.loads(path.read_bytes())["metadata"]) if path.exists() else {}


def unpacked(seen: Snapshot, places: Places, foreign: Collection[str] = ()) -> Snapshot:
    """Return a snapshot in which each packed file that an aggregate names is an archived object.

    The packs are read by the rows, and are checked by Python's own `zipfile`. A pack that no
    aggregate names is no archive: it is left out.
    """
    found = {key: each for key, each in seen.items() if not places.is_pack(key)}
    for key in [key for key in found if places.is_aggregate(key) and key not in foreign]:
        document = json.loads(seen[key].data)
        packs = {each["id"]: each for each in document.get("packs", ())}
        rows = [row for row in document["source_files"] if "pack" in row]
        for pack in packs.values():
            _check_pack(key, pack, seen, sum(row["pack"] == pack["id"] for row in rows))
        for row in rows:
            whole = seen[packs[row["pack"]]["key"]]
            data = whole.data[row["offset"] : row["offset"] + row["size"]]
            target = places.archive + row["key"].removeprefix(places.runs)
            stem, dot, ending = target.partition(".json")
            if target in found:
                target = f"{stem}.{row['etag'][:16]}{dot}{ending}"
            found[target] = Seen(data, row["etag"], whole.last_modified)
    return found


def _check_pack(key: str, pack: Mapping[str, Any], seen: Snapshot, rows: int) -> None:
    assert pack["key"] in seen, f"promise 2: {key} names {pack}, which is gone"
    stored = seen[pack["key"]]
    assert (pack["etag"], pack["bytes"]) == (stored.etag, len(stored.data)), f"{key}: {pack}"
    with ZipFile(BytesIO(stored.data)) as archive:
        assert archive.testzip() is None, f"{pack['key']} is damaged"
        assert len(archive.namelist()) == pack["files"], f"{key}: {pack}"
        assert len(set(archive.namelist())) == pack["files"], f"{pack['key']}: duplicate names"
    assert rows == pack["files"], f"{key}: {rows} rows name a pack with {pack['files']} files"


def originals_of(
    seen: Snapshot, places: Places | None = None, bad: Collection[str] = ()
) -> list[Original]:
    """Return the run files in the inbox; those whose key is in ``bad`` cannot be counted."""
    places = places or Places()
    return [
        Original(key, each.data, each.etag, each.last_modified, key not in bad)
        for key, each in sorted(seen.items())
        if places.is_waiting(key)
    ]


# ------------------------------------------------------------------------------ aggregates


@dataclass
class _Books:
    """Every aggregate, and the versions of run files that it names."""

    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    counted: dict[tuple[str, str], str] = field(default_factory=dict)
    quarantined: dict[tuple[str, str], str] = field(default_factory=dict)


def _books(seen: Snapshot, places: Places, foreign: Mapping[str, bytes]) -> _Books:
    """Read the aggregates, and check that no run file is named twice (promise 1)."""
    books = _Books()
    for key in sorted(seen):
        if not places.is_aggregate(key) or key in foreign:
            continue
        document = json.loads(seen[key].data)
        books.documents[key] = document
        for table, named in (
            ("source_files", books.counted),
            ("quarantined_files", books.quarantined),
        ):
            for row in document[table]:
                identity = (row["key"], row["etag"])
                other = books.counted.get(identity) or books.quarantined.get(identity)
                assert other is None, (
                    f"promise 1: {identity} is in {table} of {key}, and already in {other}"
                )
                named[identity] = key
    return books


def _content(original: Original) -> dict[str, Any]:
    data = gzip.decompress(original.data) if original.key.endswith(".gz") else original.data
    content: dict[str, Any] = json.loads(data, parse_float=Decimal)
    return content


def _check_sums(
    key: str, document: Mapping[str, Any], by_identity: Mapping[tuple[str, str], Original]
) -> None:
    """Check that an aggregate has the sums of the run files that it names (promise 1)."""
    rows = document["source_files"]
    named: list[Original] = []
    for row in rows:
        original = by_identity.get((row["key"], row["etag"]))
        assert original is not None, f"{key} counts {row}, which no producer wrote"
        named.append(original)
    listed = [(row["key"], row["size"], row["last_modified"]) for row in rows]
    true = [(each.key, len(each.data), each.last_modified.isoformat()) for each in named]
    assert listed == true, f"{key}: source_files lists {listed}, the files are {true}"
    in_order = sorted((row["key"], row["etag"]) for row in rows)
    assert in_order == [(row["key"], row["etag"]) for row in rows], f"{key}: rows out of order"

    contents = [_content(each) for each in named]
    for total, part in _SUMS.items():
        expected = sum(each.get(part, 0) for each in contents)
        assert document[total] == expected, f"{key}: {total} {document[total]}, sum {expected}"
    files = document["files"]
    counts = {
        "counted": len(named),
        "quarantined": len(document["quarantined_files"]),
        "bytes": sum(len(each.data) for each in named),
    }
    for name, expected in counts.items():
        assert files[name] == expected, f"{key}: files.{name} {files[name]}, expected {expected}"
    assert 0 <= files["late"] <= files["counted"], f"{key}: files.late {files['late']}"
    _check_summaries(key, document, named, contents)
    _check_times(key, document, contents)
    _check_top(key, document, named, contents)


def _check_summaries(
    key: str,
    document: Mapping[str, Any],
    named: Sequence[Original],
    contents: Sequence[Mapping[str, Any]],
) -> None:
    summaries = document["run_summaries"]
    assert len(summaries) == len(named), f"{key}: {len(summaries)} summaries, {len(named)} files"
    for summary, original, content in zip(summaries, named, contents, strict=True):
        given = {name: summary[name] for name in _SUMMARY} | {"run_id": summary["run_id"]}
        true = {name: content.get(part, 0) for name, part in _SUMMARY.items()}
        true["run_id"] = content.get("run_id") or original.key
        assert given == true, f"{key}: the summary of {original.key} is {given}, expected {true}"


def _check_times(
    key: str, document: Mapping[str, Any], contents: Sequence[Mapping[str, Any]]
) -> None:
    times = sorted(
        Decimal(each["processing_time_seconds"])
        for each in contents
        if each.get("processing_time_seconds") is not None
    )
    with localcontext(prec=1000):
        total = sum(times, Decimal(0))
    given = document["processing_time"]
    assert Decimal(given["exact_sum"]) == total, f"{key}: seconds {given['exact_sum']}, sum {total}"
    assert document["processing_time_seconds"] == float(total), f"{key}: processing_time_seconds"
    assert given["count"] == len(times), f"{key}: processing_time.count {given['count']}"
    if not times:
        return
    assert (given["min"], given["max"]) == (float(times[0]), float(times[-1])), f"{key}: extremes"
    assert math.isclose(given["mean"], float(total / len(times))), f"{key}: mean {given['mean']}"
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        exact = float(times[math.floor(share * (len(times) - 1))])
        assert math.isclose(given[name], exact, rel_tol=0.0101), f"{key}: {name} {given[name]}"


def _check_top(
    key: str,
    document: Mapping[str, Any],
    named: Sequence[Original],
    contents: Sequence[Mapping[str, Any]],
) -> None:
    rivals = [
        (-match.get("match_score", 0), original.key, position, match)
        for original, content in zip(named, contents, strict=True)
        for position, match in enumerate(content.get("top_matches", ()))
    ]
    best = sorted(rivals, key=lambda rival: rival[:3])[:10]
    expected = [
        {**match, "source_key": source, "source_position": position}
        for _, source, position, match in best
    ]
    # Compared as JSON: decimal fractions are floats in the document. The order of versions of one
    # file that tie in everything is that of their content.
    exact = json.loads(json.dumps(expected, default=float))
    found = document["top_matches"]
    assert list(map(_rank, found)) == list(map(_rank, exact)), f"{key}: top_matches, not {exact}"
    assert sorted(found, key=json.dumps) == sorted(exact, key=json.dumps), f"{key}: not {exact}"


def _rank(match: Mapping[str, Any]) -> tuple[float, str, int]:
    return -match.get("match_score", 0), match["source_key"], match["source_position"]


# ------------------------------------------------------------------------------ the promises


def check_at_any_moment(
    seen: Snapshot,
    originals: Iterable[Original],
    places: Places | None = None,
    *,
    foreign: Mapping[str, bytes] | None = None,
    overwritten: Collection[tuple[str, str]] = (),
) -> None:
    """Check promises 1 to 3, which hold at every instant.

    Args:
        seen: The objects in the store.
        originals: Every version of every run file that was ever written.
        places: The prefixes.
        foreign: Objects of others, by key: they must be unchanged, and are not read.
        overwritten: The versions that their producer replaced before they could be archived.
    """
    places = places or Places()
    seen = unpacked(seen, places, foreign or {})
    _check_now(seen, list(originals), places, foreign or {}, overwritten)


def _check_now(
    seen: Snapshot,
    originals: Sequence[Original],
    places: Places,
    foreign: Mapping[str, bytes],
    overwritten: Collection[tuple[str, str]],
) -> _Books:
    for key, data in foreign.items():
        assert key in seen, f"{key!r} of others is gone"
        assert seen[key].data == data, f"{key!r} of others was overwritten"
    books = _books(seen, places, foreign)
    by_identity = {each.identity: each for each in originals}
    for key, document in books.documents.items():
        _check_sums(key, document, by_identity)
    _check_never_nowhere(seen, originals, places, overwritten)
    _check_archive(seen, books, by_identity, places, foreign)
    return books


def _by_content(seen: Snapshot) -> dict[bytes, list[str]]:
    found: defaultdict[bytes, list[str]] = defaultdict(list)
    for key, each in seen.items():
        found[each.data].append(key)
    return found


def _check_never_nowhere(
    seen: Snapshot,
    originals: Sequence[Original],
    places: Places,
    overwritten: Collection[tuple[str, str]],
) -> None:
    by_content = _by_content(seen)
    for original in originals:
        found = any(
            key == original.key
            or places.moved(key, original.key, places.archive)
            or places.moved(key, original.key, places.quarantine)
            for key in by_content.get(original.data, ())
        )
        assert found or original.identity in overwritten, (
            f"promise 2: the bytes of {original.identity} are nowhere"
        )


def _check_archive(
    seen: Snapshot,
    books: _Books,
    by_identity: Mapping[tuple[str, str], Original],
    places: Places,
    foreign: Mapping[str, bytes],
) -> None:
    counted: defaultdict[bytes, list[str]] = defaultdict(list)
    for identity in books.counted:
        counted[by_identity[identity].data].append(identity[0])
    for key, each in seen.items():
        if places.is_archived(key) and key not in foreign:
            assert any(
                places.moved(key, source, places.archive) for source in counted.get(each.data, ())
            ), f"promise 3: {key!r} is archived, but no aggregate counts it"


def check_after_clean_run(
    seen: Snapshot,
    originals: Iterable[Original],
    places: Places | None = None,
    *,
    at: datetime,
    foreign: Mapping[str, bytes] | None = None,
    overwritten: Collection[tuple[str, str]] = (),
    left_alone: Collection[str] = (),
) -> None:
    """Check every promise that can be checked after a run has ended.

    Args:
        seen: The objects in the store.
        originals: Every version of every run file that was ever written.
        places: The prefixes.
        at: The time of the run: files of windows that end later wait.
        foreign: As for `check_at_any_moment`.
        overwritten: As for `check_at_any_moment`; they may be counted or not.
        left_alone: Keys of aggregates that are damaged or foreign: their files wait.
    """
    places = places or Places()
    seen = unpacked(seen, places, foreign or {})
    everything = list(originals)
    books = _check_now(seen, everything, places, foreign or {}, overwritten)
    waiting = {
        each.identity
        for each in everything
        if window_end(each, places.minutes) > at or places.aggregate_key(each) in left_alone
    }
    _check_inbox(seen, waiting, overwritten, places)
    by_content = _by_content(seen)
    for original in everything:
        identity = original.identity
        if identity in waiting:
            assert identity not in books.counted, f"{identity} is counted too early"
        elif identity in overwritten:
            continue
        elif original.good:
            _check_counted(by_content, original, books, places)
        else:
            _check_quarantined(seen, original, books, places)
    bad = [each for each in everything if not each.good]
    for key in filter(places.is_quarantined, seen):
        known = key in (foreign or {}) or any(
            places.moved(key, each.key, places.quarantine) for each in bad
        )
        assert known, f"{key!r} is in quarantine, but not bad"
    _check_totals(books, [each for each in everything if each.identity in books.counted])


def _check_inbox(
    seen: Snapshot,
    waiting: Collection[tuple[str, str]],
    overwritten: Collection[tuple[str, str]],
    places: Places,
) -> None:
    present = {(key, each.etag) for key, each in seen.items() if places.is_waiting(key)}
    left = present - set(waiting)
    assert not left, f"promise 4: left in the inbox: {sorted(left)}"
    gone = set(waiting) - present - set(overwritten)
    assert not gone, f"not yet due, but missing from the inbox: {sorted(gone)}"


def _check_counted(
    by_content: Mapping[bytes, Sequence[str]], original: Original, books: _Books, places: Places
) -> None:
    identity, window = original.identity, places.aggregate_key(original)
    assert identity in books.counted, f"promise 1: {identity} is in no aggregate"
    found = books.counted[identity]
    assert found == window, f"promise 4: {identity} belongs to {window}, is counted in {found}"
    assert any(
        places.moved(key, original.key, places.archive) for key in by_content.get(original.data, ())
    ), f"{identity} is counted, but not in the archive"


def _check_quarantined(seen: Snapshot, original: Original, books: _Books, places: Places) -> None:
    identity, window = original.identity, places.aggregate_key(original)
    found = books.quarantined.get(identity)
    assert found == window, f"promise 4: {identity} belongs to {window}, is quarantined in {found}"
    rows = books.documents[window]["quarantined_files"]
    row = next(each for each in rows if (each["key"], each["etag"]) == identity)
    assert row["reason"], f"{identity}: no reason"
    target = row["moved_to"]
    assert places.moved(target, original.key, places.quarantine), f"{identity}: {target!r}"
    assert target in seen, f"{identity}: moved_to {target!r} does not exist"
    assert seen[target].data == original.data, f"{identity}: {target!r} has other bytes"
    assert seen[target].metadata.get("asyncagg-reason"), f"{target!r} does not say its reason"


def _check_totals(books: _Books, counted: Sequence[Original]) -> None:
    contents = [_content(each) for each in counted]
    for total, part in _SUMS.items():
        total_given = sum(document[total] for document in books.documents.values())
        expected = sum(each.get(part, 0) for each in contents)
        assert total_given == expected, f"all aggregates: {total} {total_given}, sum {expected}"


# ------------------------------------------------------------------------------ bytes


_HISTORY = (
    re.compile(rb'^"aggregation_timestamp":"[^"]*",\n', re.MULTILINE),
    re.compile(rb'^"revision":\d+,\n', re.MULTILINE),
    re.compile(rb'^"commit_id":"[0-9a-f]{16}",\n', re.MULTILINE),
    re.compile(rb'(?<=,)"late":\d+,(?="bytes":)'),
)

_PACKS = re.compile(rb'^"packs":.*,\n', re.MULTILINE)
_PLACE = re.compile(rb',"pack":"[0-9a-f]{16}","offset":\d+(?=}(?:,\n|\n]))')


def final_bytes(seen: Snapshot, places: Places | None = None) -> dict[str, bytes]:
    """Return the bytes of the aggregates, without their history fields and the packs."""
    return dict(_without_history(seen, places or Places()))


def _without_history(seen: Snapshot, places: Places) -> Iterator[tuple[str, bytes]]:
    for key, each in sorted(seen.items()):
        if not places.is_aggregate(key):
            continue
        head, mark, rows = each.data.partition(b'"top_matches":[')
        for pattern in _HISTORY:
            head, found = pattern.subn(b"", head)
            assert found == 1, f"{key}: {pattern.pattern!r} is {found} times in its head"
        yield key, _PACKS.sub(b"", head) + mark + _PLACE.sub(b"", rows)
