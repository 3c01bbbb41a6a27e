"""A backfill is stopped by Ctrl-C in the middle: nothing is half done, the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from harness import environment
from testkit.promises import check_after_clean_run, check_at_any_moment, final_bytes, of_server
from testkit.s3server import Pause, Request, S3Server, ThreadedS3Server
from testkit.scenario import AT, BUCKET, fill_server, moment, prepared

SENTENCE = "stopping on SIGINT: nothing is lost, run it again to continue\n"


def started(url: str, *more: str) -> subprocess.Popen[str]:
    """Start a backfill of the scenario, as the leader of processes of its own."""
    between = ("--since", moment(13, 50).isoformat(), "--until", AT.isoformat())
    words = ("backfill", f"s3://{BUCKET}", "--endpoint-url", url, *between, "--chunk-files", "3")
    return subprocess.Popen(
        [sys.executable, "-m", "asyncagg", *words, *more],
        env=environment() | {"NO_COLOR": "1", "COLUMNS": "200", "ASYNCAGG_LOG_LEVEL": "error"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def is_(operation: str, prefix: str) -> Pause:
    """Stop at a request, before it is executed."""

    def chosen(request: Request) -> bool:
        return request.operation == operation and request.key.startswith(prefix)

    return Pause(chosen)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("operation", "prefix", "workers"),
    [
        ("ListObjectsV2", "", ()),
        ("GetObject", "runs/", ()),
        ("PutObject", "aggregates/", ("--workers", "1")),
    ],
)
def test_ctrl_c(operation: str, prefix: str, workers: tuple[str, ...]) -> None:
    """While the store does not answer: one sentence, and soon; then equal bytes."""
    with ThreadedS3Server(S3Server([BUCKET])) as threaded:
        server = threaded.server
        threaded.call(fill_server, server, prepared().store)
        pause = server.faults.pause_at = is_(operation, prefix)
        with started(threaded.url, *workers) as process:
            while not pause.reached.is_set():
                assert process.poll() is None, process.communicate()
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
            out, err = process.communicate(timeout=60)  # its workers have the pipes, too
        assert (process.returncode, out, err) == (130, "", SENTENCE)

        seen = threaded.call(of_server, server)
        at_rest = {key: each for key, each in seen.items() if not key.startswith("work/")}
        check_at_any_moment(at_rest, prepared().originals, foreign=prepared().foreign)
        server.faults.pause_at = None
        threaded.call(pause.release.set)

        with started(threaded.url, *workers) as process:
            out, err = process.communicate(timeout=60)
        assert process.returncode == 3, err  # some are quarantined
        seen = threaded.call(of_server, server)
        check_after_clean_run(seen, prepared().originals, at=AT, foreign=prepared().foreign)
        assert final_bytes(seen) == prepared().expected
        assert not [key for key in seen if key.startswith("work/")]
