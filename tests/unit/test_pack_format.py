"""A pack is a plain ZIP archive, whatever the keys of its files are."""

from __future__ import annotations

import subprocess
import zipfile
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from shutil import which

import pytest

from asyncagg.model import RunFile
from asyncagg.packs.format import (
    END_RECORD,
    LOCAL_HEADER,
    Comment,
    DamagedPackError,
    content_offset,
    parse_directory,
    parse_end,
)
from asyncagg.packs.writer import PackWriter

TIME = datetime(2025, 10, 21, 13, 57, 12, tzinfo=UTC)

KEYS = [
    "plain.json",
    "2025/10/21/deep.json.gz",
    "with space.json",
    "plus+percent%2F.json",
    "ünïcode-文件-🙂.json",
    "line\nbreak.json",
    "nul\0.json",
    "../up.json",
    "a/../../up.json",
    "/absolute.json",
    "double//slash.json",
    "./dot.json",
    "back\\slash.json",
    "C:\\windows.json",
    "folder.json/inner.json",
    "folder.json",
    "x" * 1019 + ".json",
    "文" * 339 + ".json",
    "x" * 1010 + "y-other.json",
    "/".join(["d" * 60] * 16) + "/long.json",
    ".json",
]


def write(files: list[tuple[RunFile, bytes]]) -> tuple[bytes, list[int]]:
    """Return a pack of these files, and where their contents begin."""
    pack = PackWriter("runs/")
    offsets = [pack.add(file, data) for file, data in files]
    pack.finish()
    data = pack.take(pack.pending)
    assert pack.bytes == len(data)
    assert pack.files == len(files)
    return data, offsets


def entries(keys: list[str]) -> list[tuple[RunFile, bytes]]:
    """Return a file and its content for each key."""
    return [
        (RunFile(f"runs/{key}", number, f"etag-{number}", TIME), b"%d" % number * 3)
        for number, key in enumerate(keys)
    ]


def test_zipfile_reads_every_member_and_the_offset_is_where_its_bytes_are() -> None:
    """Names, contents, times, CRCs, keys and etags come back; the row's offset reads the bytes."""
    files = entries(KEYS)
    data, offsets = write(files)
    with zipfile.ZipFile(BytesIO(data)) as archive:
        assert archive.testzip() is None
        members = archive.infolist()
        assert [archive.read(member) for member in members] == [content for _, content in files]
    for member, (file, content), offset in zip(members, files, offsets, strict=True):
        assert data[offset : offset + len(content)] == content
        assert member.compress_type == zipfile.ZIP_STORED
        assert not member.flag_bits & 8, "no data descriptor"
        assert member.date_time == (2025, 10, 21, 13, 57, 12)
        assert str(Comment(file.key, file.etag).etag) in member.comment.decode()


def test_our_own_directory_is_read_back() -> None:
    """`parse_end`, `parse_directory` and `content_offset` find every member."""
    files = entries(KEYS)
    data, offsets = write(files)
    directory = parse_end(data[-END_RECORD.size :], len(data))
    found = list(parse_directory(data[directory.offset :][: directory.size]))
    assert directory.members == len(found) == len(files)
    for entry, (file, content), offset in zip(found, files, offsets, strict=True):
        assert entry.comment == Comment(file.key, file.etag)
        assert (entry.size, entry.modified) == (len(content), TIME.timestamp())
        header = data[entry.header : entry.header + LOCAL_HEADER.size]
        assert content_offset(header, entry) == offset


@pytest.mark.parametrize("key", KEYS)
def test_a_name_is_safe_to_unpack(key: str) -> None:
    """No name is absolute, leads upwards, has control characters, or is too long for a disk."""
    data, _ = write(entries([key]))
    (name,) = zipfile.ZipFile(BytesIO(data)).namelist()
    parts = name.split("/")
    assert not {"", ".", ".."}.intersection(parts)
    assert "\\" not in name
    assert name.isprintable()
    assert max(len(part.encode()) for part in parts) <= 255
    assert len(name.encode()) <= 1024
    if "\\" not in key and key.isprintable() and ".." not in key and len(key) < 200:
        assert name == key or key.startswith(("/", ".", "folder.json/")) or "//" in key


def test_names_are_unique() -> None:
    """Two versions of a key, and keys that are alike once they are cut, have different names."""
    keys = ["same.json"] * 3 + [
        "x" * 400 + "1.json",
        "x" * 400 + "2.json",
        "a\nb.json",
        "a\tb.json",
    ]
    data, _ = write(entries(keys))
    names = zipfile.ZipFile(BytesIO(data)).namelist()
    assert len(set(names)) == len(keys)
    assert names[0] == "same.json"


UNZIP = which("unzip") or ""


@pytest.mark.skipif(not UNZIP, reason="unzip is not installed")
def test_unzip_reads_a_pack(tmp_path: Path) -> None:
    """`unzip -t` finds no fault, and `unzip` restores every file below its folder."""
    data, _ = write(entries(KEYS))
    pack = tmp_path / "pack.zip"
    pack.write_bytes(data)
    subprocess.run([UNZIP, "-tq", pack], check=True, timeout=30, capture_output=True)
    target = tmp_path / "out"
    subprocess.run([UNZIP, "-q", pack, "-d", target], check=True, timeout=30)
    assert sum(path.is_file() for path in target.rglob("*")) == len(KEYS)


def test_a_pack_is_full_before_it_needs_zip64() -> None:
    """Members and bytes are bounded, the directory included."""
    pack = PackWriter("", max_members=2, max_bytes=60_000)
    assert pack.fits(1_000)
    assert not pack.fits(60_000)
    for number in range(2):
        pack.add(RunFile(f"{number}.json", 1, "e", TIME), b"1")
    assert not pack.fits(1)


@pytest.mark.parametrize("year", [1970, 1980, 2040, 2107, 9999])
def test_times_out_of_the_range_of_zip_are_moved_into_it(year: int) -> None:
    """A strange time of a file does not damage the pack."""
    file = RunFile("runs/a.json", 1, "e", datetime(year, 1, 1, tzinfo=UTC) + timedelta(seconds=1))
    data, _ = write([(file, b"1")])
    assert zipfile.ZipFile(BytesIO(data)).testzip() is None


@pytest.mark.parametrize("cut", [1, 22, 60])
def test_a_cut_pack_is_found_damaged(cut: int) -> None:
    """The end record says how long the pack is."""
    data, _ = write(entries(["a.json"]))
    with pytest.raises(DamagedPackError):
        parse_end(data[:-cut], len(data) - cut)
    directory = parse_end(data, len(data))
    with pytest.raises(DamagedPackError):
        list(parse_directory(data[directory.offset :][: directory.size - 1]))
