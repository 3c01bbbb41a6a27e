"""Coverage-guided fuzzing of the parsers.

    python -m testkit.fuzz_parsing -max_total_time=30

For any bytes, each way to parse them returns a result or raises an `InvalidRunFileError`, and all
ways agree. It starts from the corpus of the tests; further arguments are libFuzzer's
(https://llvm.org/docs/LibFuzzer.html#options). It needs ``atheris``.
"""

from __future__ import annotations

import gzip
import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

__all__ = ("disagreement", "main", "one_input")

_LONGEST_SEED = 4096
_GZIP = b"\x1f\x8b"
_WORDS = (
    "run_id",
    "timestamp",
    "total_opportunities",
    "matches_found",
    "no_matches",
    "errors",
    "processing_time_seconds",
    "top_matches",
    "match_score",
)


def _outcome(way: Any, *given: Any, **options: Any) -> tuple[Any, ...] | str:
    """Return what a result adds to an aggregate, or the reason why the file is invalid."""
    from asyncagg.errors import InvalidRunFileError  # noqa: PLC0415 - likewise
    from testkit.parsers import best_of  # noqa: PLC0415 - after the instrumentation

    try:
        return tuple(best_of(way(*given, **options)))
    except InvalidRunFileError as error:
        if not error.reason:
            raise AssertionError("invalid without a reason") from None
        return error.reason


def disagreement(data: bytes, size: int) -> str | None:
    """Return how the ways to parse a file in chunks of a size differ; None if they agree.

    An exception other than `InvalidRunFileError` is raised.
    """
    from testkit.parsers import (  # noqa: PLC0415 - as above
        in_chunks,
        streamed,
        whole,
        without_matches,
    )

    whole_outcome = _outcome(whole, data)
    if not data.startswith(_GZIP):
        shared = whole_outcome if isinstance(whole_outcome, str) else whole_outcome[:-1]
        cut_outcome = _outcome(without_matches, data)
        if cut_outcome[: len(shared)] != shared:
            return f"{data!r}: {whole_outcome!r} whole, {cut_outcome!r} without matches"
    stream_outcome = _outcome(streamed, in_chunks(data, size))
    if whole_outcome == stream_outcome:
        return None
    return f"{data!r} by {size}: {whole_outcome!r} whole, {stream_outcome!r} as a stream"


def one_input(data: bytes) -> None:
    """Parse one input of the fuzzer; its first byte chooses the chunk size and gzip."""
    choice, content = data[0] if data else 0, data[1:]
    size = choice % 64 + 1
    if content.startswith(_GZIP):
        _outcome_of_gzip(content, size)
        return
    found = disagreement(content, size)
    if found is None and choice >= 128:
        found = disagreement(gzip.compress(content, 1, mtime=0), size)
    if found is not None:
        raise AssertionError(found)


def _outcome_of_gzip(data: bytes, size: int) -> None:
    """Parse hardly gzip; the ways may find different damage first."""
    from testkit.parsers import in_chunks, streamed, whole  # noqa: PLC0415 - after the instrumentation

    one = _outcome(whole, data)
    two = _outcome(streamed, in_chunks(data, size))
    if isinstance(one, str) != isinstance(two, str) and isinstance(one, str):
        raise AssertionError(f"{data!r}: {one!r} whole, {two!r} as a stream")


def _seed(folder: Path) -> None:
    from testkit.corpus import CORPUS  # noqa: PLC0415 - after the instrumentation

    for case in CORPUS:
        if len(case.data) <= _LONGEST_SEED:
            (folder / case.name.replace(" ", "-")).write_bytes(b"\0" + case.data)


def main(arguments: list[str]) -> None:
    """Fuzz with these arguments, the program's name first. It ends the process."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["asyncagg"]):
        importlib.import_module("testkit.parsers")
    with tempfile.TemporaryDirectory() as made:
        seeds = Path(made) / "seeds"
        seeds.mkdir()
        _seed(seeds)
        words = Path(made) / "words"
        words.write_text("".join(f'"\\"{word}\\":"\n' for word in _WORDS), encoding="ascii")
        options = [f"-dict={words}", "-max_len=4096", *arguments[1:], str(seeds)]
        atheris.Setup([arguments[0], *options], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
