"""Run the installed command in a separate process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

__all__ = (
    "COMMAND",
    "Watched",
    "asyncagg",
    "sampled",
    "watched",
)


def asyncagg(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a separate process."""
    environ = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200", **environment}
    return subprocess.run(
        [sys.executable, "-m", "asyncagg", *words],
        capture_output=True,
        text=True,
        check=False,
        env=environ,
        timeout=100,
    )


def sampled(folder: Path, *words: str) -> dict[str, Any]:
    """Write sample files into a folder and return the totals."""
    done = asyncagg("sample", str(folder), "--json", *words)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


COMMAND = str(Path(sys.executable).with_name("asyncagg"))


@dataclass
class Watched:
    """A running watch.

    Attributes:
        process: Its process.
        url: The URL of its endpoint.
    """

    process: subprocess.Popen[str]
    url: str

    def next_run(self) -> dict[str, Any]:
        """Wait for a run and return its report."""
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.readline()))

    def get(self, path: str) -> tuple[int, str]:
        """Return the status and the body of an answer."""
        try:
            with urlopen(self.url + path, timeout=30) as answer:  # noqa: S310 - it is HTTP
                return answer.status, answer.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()

    def ended(self) -> tuple[int, str]:
        """Wait for its end; return the exit code and the rest of standard error."""
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


@contextmanager
def watched(*words: str) -> Iterator[Watched]:
    """Start a watch on a free port, and end it with the context."""
    environ = {**os.environ, "NO_COLOR": "1"}
    with subprocess.Popen(
        [COMMAND, "watch", *words, "--listen", "0", "--json", "--log-level", "warning"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
    ) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            assert '"listening"' in line, line + process.stderr.read()
            yield Watched(process, json.loads(line)["url"])
        finally:
            if process.poll() is None:
                process.kill()
