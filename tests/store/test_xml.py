"""S3's XML: every form of a listing is read the same, and a batch names its objects."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from random import Random
from urllib.parse import quote_plus
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit.fuzz_parsing import RESPONSES, read_response
from testkit.strategies import etags, run_files, texts

from asyncagg.errors import TransientError
from asyncagg.model import RunFile
from asyncagg.store.s3 import xml as s3xml

DAMAGE = (
    b"",
    b"<",
    b"&",
    b"\x00",
    b"\x85",
    b"&#10;",
    b"9" * 20,
    b"\r\n",
    b"9999-",
    b"</Contents>",
    b"%",
)

XMLNS = "http://s3.amazonaws.com/doc/2006-03-01/"


def as_s3_writes(file: RunFile, key: str) -> str:
    """Return an entry as Amazon S3 writes it."""
    return (
        f"<Contents><Key>{key}</Key><LastModified>{file.last_modified.isoformat()}</LastModified>"
        f"<ETag>&quot;{file.etag}&quot;</ETag><Size>{file.size}</Size>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
    )


def with_checksums(file: RunFile, key: str) -> str:
    """Return the entry of an object that was uploaded with checksums."""
    checksums = "<ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm><ChecksumType>FULL</ChecksumType>"
    return as_s3_writes(file, key).replace("<Size>", f"{checksums}<Size>")


def with_owner(file: RunFile, key: str) -> str:
    """Return an entry with the object's owner, as other servers write it."""
    return as_s3_writes(file, key).replace("</Contents>", "<Owner><ID>1</ID></Owner></Contents>")


def indented(file: RunFile, key: str) -> str:
    """Return an entry with white space between its elements."""
    return as_s3_writes(file, key).replace("><", ">\n  <")


def in_another_order(file: RunFile, key: str) -> str:
    """Return an entry whose size comes first."""
    size = f"<Size>{file.size}</Size>"
    return as_s3_writes(file, key).replace(size, "").replace("<Key>", f"{size}<Key>")


FORMS = (as_s3_writes, with_checksums, with_owner, indented, in_another_order)


def listing(entries: str, more: str = "<EncodingType>url</EncodingType>") -> bytes:
    """Return a page with these entries."""
    inside = f"<Name>b</Name><IsTruncated>false</IsTruncated>{more}{entries}"
    return f'<ListBucketResult xmlns="{XMLNS}">{inside}</ListBucketResult>'.encode()


class TestListing:
    @given(st.lists(st.tuples(run_files, st.sampled_from(FORMS)), max_size=6))
    def test_is_read_the_same_in_every_form(
        self, entries: list[tuple[RunFile, Callable[[RunFile, str], str]]]
    ) -> None:
        """Entries of every form, mixed and with any keys, are parsed to the same files."""
        text = "".join(form(file, quote_plus(file.key, safe="/")) for file, form in entries)
        page = s3xml.parse_listing(listing(text), "")
        assert page.files == [file for file, _ in entries]

    @given(st.lists(run_files, max_size=4), st.sampled_from(FORMS))
    def test_without_encoding(
        self, files: list[RunFile], form: Callable[[RunFile, str], str]
    ) -> None:
        """If a server does not encode keys, nothing is decoded."""
        files = [file for file in files if s3xml.fits_xml(file.key) and "\r" not in file.key]
        text = "".join(form(file, escape(file.key)) for file in files)
        assert s3xml.parse_listing(listing(text, more=""), "").files == files

    @pytest.mark.parametrize("form", FORMS)
    def test_what_is_cut_off_is_no_listing(self, form: Callable[[RunFile, str], str]) -> None:
        """A truncated page is never accepted, wherever it ends."""
        file = RunFile("runs/a.json", 1, "e", datetime(2025, 10, 21, tzinfo=UTC))
        page = listing(form(file, file.key) * 2)
        for end in range(len(page)):
            with pytest.raises(TransientError):
                s3xml.parse_listing(page[:end], "")

    @pytest.mark.parametrize("wrong", ["<Size>x</Size>", "<Size></Size>", ""])
    def test_a_damaged_entry(self, wrong: str) -> None:
        """An entry without a size is an error, not an empty file."""
        file = RunFile("runs/a.json", 7, "e", datetime(2025, 10, 21, tzinfo=UTC))
        page = listing(as_s3_writes(file, file.key).replace("<Size>7</Size>", wrong))
        with pytest.raises(TransientError, match="damaged entry"):
            s3xml.parse_listing(page, "")


@given(st.lists(st.tuples(texts.filter(s3xml.fits_xml), etags | st.just("")), max_size=5))
def test_a_batch_says_what_it_was_given(objects: list[tuple[str, str]]) -> None:
    """A parser reads the same keys and etags from a batch that were put into it."""
    root = ET.fromstring(s3xml.delete_body(objects))  # noqa: S314 - made here
    parsed = [
        (entry.findtext("{*}Key"), (entry.findtext("{*}ETag") or "").strip('"'))
        for entry in root.iterfind("{*}Object")
    ]
    assert parsed == objects


def test_a_damaged_response_is_an_error_of_the_store() -> None:
    """Whatever a server sends is parsed, or is a transient error; `tox -e fuzz` goes on."""
    random = Random(0)
    for at in range(3000):
        response = bytearray(RESPONSES[at % len(RESPONSES)])
        for _ in range(random.randrange(1, 6)):
            start = random.randrange(len(response))
            length = random.choice((0, 1, 1, 8))
            response[start : start + length] = random.choice(DAMAGE)
        read_response(bytes(response))
