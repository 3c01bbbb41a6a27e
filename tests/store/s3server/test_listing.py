"""Listings are ordered, complete and paged, and their keys are encoded as on S3."""

from __future__ import annotations

from typing import Any

from testkit.boto_client import (
    NOON,
    refusal,
    send_raw,
)
from testkit.s3server import (
    S3Server,
)
from testkit.s3server.objects import SortedKeys


async def test_listing_pages(server: S3Server, client: Any) -> None:
    """Pages are in order and complete, and say whether there are more."""
    keys = [f"runs/{number:03d}" for number in range(25)]
    for key in reversed(keys):
        server.put("b", key, key.encode())
    server.put("b", "runs0", b"")
    paginator = client.get_paginator("list_objects_v2")
    pages = [
        page
        async for page in paginator.paginate(
            Bucket="b", Prefix="runs/", PaginationConfig={"PageSize": 10}
        )
    ]
    assert [page["KeyCount"] for page in pages] == [10, 10, 5]
    assert [page["IsTruncated"] for page in pages] == [True, True, False]
    entries = [entry for page in pages for entry in page["Contents"]]
    assert [entry["Key"] for entry in entries] == keys
    assert entries[0]["LastModified"] == NOON
    assert entries[0]["ETag"] == server.get("b", keys[0]).etag
    assert (entries[0]["Size"], entries[0]["StorageClass"]) == (8, "STANDARD")


async def test_listing_options(server: S3Server, client: Any) -> None:
    """Start-after, delimiter and max-keys work, alone and together."""
    for key in ("a/1", "a/2", "b", "c/1", "c/x y/2", "d"):
        server.put("b", key, b"")
    listed = await client.list_objects_v2(Bucket="b", StartAfter="a/2")
    assert [entry["Key"] for entry in listed["Contents"]] == ["b", "c/1", "c/x y/2", "d"]
    seen: list[str] = []
    token: dict[str, str] = {}
    while True:
        page = await client.list_objects_v2(Bucket="b", Delimiter="/", MaxKeys=1, **token)
        seen += [entry["Key"] for entry in page.get("Contents", [])]
        seen += [entry["Prefix"] for entry in page.get("CommonPrefixes", [])]
        assert page["KeyCount"] == 1
        if not page["IsTruncated"]:
            break
        token = {"ContinuationToken": page["NextContinuationToken"]}
    assert seen == ["a/", "b", "c/", "d"]
    inner = await client.list_objects_v2(Bucket="b", Delimiter="/", Prefix="c/")
    assert [entry["Prefix"] for entry in inner["CommonPrefixes"]] == ["c/x y/"]
    none = await client.list_objects_v2(Bucket="b", MaxKeys=0)
    assert (none["KeyCount"], none["IsTruncated"]) == (0, False)
    wrong = client.list_objects_v2(Bucket="b", ContinuationToken="é")
    assert await refusal(wrong) == (400, "InvalidArgument")


async def test_listing_survives_changes_between_pages(server: S3Server, client: Any) -> None:
    """Keys that stay are listed once, though others come and go between the pages."""
    for number in range(50):
        server.put("b", f"stay/{number:02d}", b"")
    seen: list[str] = []
    token: dict[str, str] = {}
    while True:
        page = await client.list_objects_v2(Bucket="b", Prefix="stay/", MaxKeys=7, **token)
        seen += [entry["Key"] for entry in page["Contents"]]
        server.delete("b", seen[-1])
        server.put("b", "archive/" + seen[-1], b"")
        if not page["IsTruncated"]:
            break
        token = {"ContinuationToken": page["NextContinuationToken"]}
    assert seen == [f"stay/{number:02d}" for number in range(50)]


async def test_url_encoded_listing(server: S3Server) -> None:
    """With encoding-type=url a space is a plus, and control characters are percent codes."""
    server.put("b", "a b+c/\x01é", b"")
    request = b"GET /b?list-type=2%b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert b"<Key>a+b%2Bc/%01%C3%A9</Key>" in await send_raw(
        server, request % b"&encoding-type=url"
    )
    assert "<Key>a b+c/&#x1;é</Key>".encode() in await send_raw(server, request % b"")


def test_sorted_keys_stay_sorted() -> None:
    """Adding and removing in any order leaves the keys in order, across blocks."""
    keys = [f"{number * 7919 % 5000:04d}" for number in range(5000)]
    ordered = SortedKeys()
    for key in keys:
        ordered.add(key)
    assert list(ordered.since("")) == sorted(keys)
    for key in keys[::2]:
        ordered.remove(key)
    left = sorted(keys[1::2])
    assert list(ordered.since("2500")) == [key for key in left if key >= "2500"]
    for key in left:
        ordered.remove(key)
    assert list(ordered.since("")) == []
