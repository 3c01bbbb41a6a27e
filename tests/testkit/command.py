"""Run the command line: in this process, or as the installed command in a process of its own."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from asyncagg.cli import main

__all__ = (
    "COMMAND",
    "Watched",
    "asyncagg",
    "installed",
    "sampled",
    "watched",
)

_ENVIRONMENT = {"NO_COLOR": "1", "COLUMNS": "200"}


def asyncagg(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process, which saves the second that a process takes to start.

    It starts without the log of an earlier call, and its output is no terminal.
    """
    logger = logging.getLogger("asyncagg")
    printed = io.BytesIO(), io.BytesIO()
    out, err = (io.TextIOWrapper(each, "utf-8", write_through=True) for each in printed)
    with pytest.MonkeyPatch.context() as patch:
        for variable, text in (_ENVIRONMENT | environment).items():
            patch.setenv(variable, text)
        for name, value in {"handlers": [], "propagate": True, "level": logger.level}.items():
            patch.setattr(logger, name, value)
        for name, value in {"argv": ["asyncagg", *words], "stdout": out, "stderr": err}.items():
            patch.setattr(sys, name, value)
        with pytest.raises(SystemExit) as ended:
            copy_context().run(main)
    texts = (each.getvalue().decode() for each in printed)
    return subprocess.CompletedProcess(words, int(ended.value.code or 0), *texts)


def installed(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a process of its own."""
    return subprocess.run(
        [COMMAND, *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | _ENVIRONMENT | environment,
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
