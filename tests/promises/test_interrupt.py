"""A backfill stopped by Ctrl-C leaves nothing half done; the same command continues."""

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
    """Start a backfill of the scenario in its own process group."""
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


def pause_before(operation: str, prefix: str) -> Pause:
    """Return a pause before the first request of this kind."""

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
    """Stopped while the store hangs, it prints one line and ends; a rerun gives equal bytes."""
    with ThreadedS3Server(S3Server([BUCKET])) as threaded:
        server = threaded.server
        threaded.call(fill_server, server, prepared().store)
        pause = server.faults.pause_at = pause_before(operation, prefix)
        with started(threaded.url, *workers) as process:
            while not pause.reached.is_set():
                assert process.poll() is None, process.communicate()
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers, too
            out, err = process.communicate(timeout=60)  # its workers hold the pipes, too
        assert (process.returncode, out, err) == (130, "", SENTENCE)

        seen = threaded.call(of_server, server)
        settled = {key: each for key, each in seen.items() if not key.startswith("work/")}
        check_at_any_moment(settled, prepared().originals, foreign=prepared().foreign)
        server.faults.pause_at = None
        threaded.call(pause.release.set)

        with started(threaded.url, *workers) as process:
            out, err = process.communicate(timeout=60)
        assert process.returncode == 3, err  # some files are quarantined
        seen = threaded.call(of_server, server)
        check_after_clean_run(seen, prepared().originals, at=AT, foreign=prepared().foreign)
        assert final_bytes(seen) == prepared().expected
        assert not [key for key in seen if key.startswith("work/")]
