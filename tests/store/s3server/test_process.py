"""The server in a thread and as a process: filling, control over HTTP, TLS."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import sys
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import testkit
from testkit.boto_client import (
    body_of,
    connect,
)
from testkit.certificates import Authority
from testkit.s3server import (
    S3Server,
    ThreadedS3Server,
)


def control(url: str, name: str, **given: Any) -> dict[str, Any]:
    """Send a control request."""
    data = json.dumps(given).encode() if given else None
    with urllib.request.urlopen(f"{url}/_control/{name}", data, timeout=10) as response:  # noqa: S310
        answer: dict[str, Any] = json.load(response)
        return answer


def test_fill_is_exact() -> None:
    """Filled run files are valid, of the size and time asked for, and sum to the totals."""
    windows = ["2025-10-21T13:02:30Z", {"last_modified": "2025-10-21T13:07:00Z", "stamp": "S"}]
    with ThreadedS3Server(S3Server(["b"])) as threaded:
        given = {"bucket": "b", "prefix": "runs/", "count": 51, "windows": windows, "size": 2500}
        totals = control(threaded.url, "fill", **given)
        by_window = totals.pop("by_window")
        server = threaded.server
        assert server.keys("b")[0] == "runs/20251021t1302Z_DARPA-PS-25-32-000000.json"
        stored = [server.get("b", key) for key in server.keys("b")]
        runs = [json.loads(one.body) for one in stored]
        for name in ("total_opportunities", "matches_found", "no_matches", "errors"):
            assert sum(run[name] for run in runs) == totals[name] > 0
            assert sum(part[name] for part in by_window.values()) == totals[name]
        assert totals["files"] == len({run["run_id"] for run in runs}) == 51
        assert totals["bytes"] == sum(len(one.body) for one in stored)
        assert all(one.size == len(one.body) and 2450 < one.size < 2550 for one in stored)
        assert all(one.etag == f'"{hashlib.md5(one.body).hexdigest()}"' for one in stored)
        assert stored[0].last_modified == datetime(2025, 10, 21, 13, 2, 30, tzinfo=UTC)


def test_a_taken_port_is_an_error() -> None:
    """A threaded server that cannot listen raises the error."""
    with ThreadedS3Server() as first:
        second = ThreadedS3Server(S3Server(port=first.server.port))
        with pytest.raises(OSError, match=r"address"):
            second.__enter__()


def test_control() -> None:
    """Control requests audit, set faults and reset; an unknown switch is named in the error."""
    with ThreadedS3Server(S3Server(["b"])) as threaded:
        server = threaded.server
        threaded.call(server.put, "b", "runs/k", b"x")
        before = control(threaded.url, "audit")["buckets"]["b"]["runs/"]
        threaded.call(server.put, "b", "archive/k", b"x")
        threaded.call(server.delete, "b", "runs/k")
        audit = control(threaded.url, "audit")
        after = audit["buckets"]["b"]["archive/"]
        assert (after["keys"], after["content"]) == (before["keys"], before["content"])
        assert after["digest"] != before["digest"]
        assert audit["lost"] == []
        switches = {"slow_down": 0.5, "seed": 7, "guards": {"delete_etag": "ignore"}}
        control(threaded.url, "faults", **switches)
        assert server.faults.slow_down == 0.5
        assert server.faults.guards.delete_etag == "ignore"
        with pytest.raises(urllib.error.HTTPError) as caught:
            control(threaded.url, "faults", slow_dwon=1)
        with caught.value as response:
            assert b"slow_dwon" in response.read()
        control(threaded.url, "reset")
        assert server.keys("b") == []
        assert server.faults.slow_down == 0


async def test_as_a_process(tmp_path: Path) -> None:
    """The module runs as a process, with a bucket, faults and TLS, until SIGTERM."""
    authority = Authority(tmp_path)
    chain = str(authority.server_chain("127.0.0.1"))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "testkit.s3server", "--bucket", "b"),
        *("--tls-cert", chain, "--tls-key", chain, "--credentials", "AK:SK"),
        *("--faults", '{"latency": 0.001}'),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(testkit.__path__[0]).parent,
    )
    assert process.stdout is not None
    line = (await asyncio.wait_for(process.stdout.readline(), 10)).decode()
    assert line.startswith("listening on https://127.0.0.1:")
    async with connect(line.split()[-1], verify=str(authority.bundle)) as client:
        # Over TLS the client streams its body in chunks with a trailing checksum.
        await client.put_object(Bucket="b", Key="k", Body=b"x" * 300_000)
        assert await body_of(client, "k") == b"x" * 300_000
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 10) == 0
