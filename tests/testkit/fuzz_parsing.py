"""Coverage-guided fuzzing of the parser, through all of its ways.

    python -m testkit.fuzz_parsing -max_total_time=30

Whatever the bytes, each way gives a result or an `InvalidRunFileError`, nothing else, and all
agree. It starts from the corpus of the tests; further arguments are libFuzzer's
(https://llvm.org/docs/LibFuzzer.html#options). It needs ``atheris``.
"""

from __future__ import annotations

import gzip
import importlib
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

__all__ = ("disagreement", "main", "one_input")

_LONGEST_SEED = 4096
_HUGE_NUMBER = re.compile(rb"[eE][+-]?\d{18}|\d{4300}")
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
    """Return what a result adds to an aggregate, or the reason of the refusal."""
    from asyncagg.errors import InvalidRunFileError  # noqa: PLC0415 - likewise
    from testkit.parsers import best_of  # noqa: PLC0415 - after the instrumentation

    try:
        return tuple(best_of(way(*given, **options)))
    except InvalidRunFileError as refusal:
        if not refusal.reason:
            raise AssertionError("refused without a reason") from None
        return refusal.reason


def disagreement(data: bytes, size: int, *, gzipped: bool = False) -> str | None:
    """Say how the ways differ over a file in chunks of a size; None where they agree.

    Whatever one raises that is no `InvalidRunFileError` comes out.
    """
    from testkit.parsers import in_chunks, skimmed, streamed, whole  # noqa: PLC0415 - as above

    whole_outcome = _outcome(whole, data, gzipped=gzipped)
    if not gzipped:
        without_matches = whole_outcome if isinstance(whole_outcome, str) else whole_outcome[:-1]
        skimmed_outcome = _outcome(skimmed, data)
        if skimmed_outcome[: len(without_matches)] != without_matches:
            return f"{data!r}: {whole_outcome!r} whole, {skimmed_outcome!r} skimmed"
    stream_outcome = _outcome(streamed, in_chunks(data, size), gzipped=gzipped)
    if whole_outcome == stream_outcome:
        return None
    if isinstance(stream_outcome, str) and (isinstance(whole_outcome, str) or _may_differ(data)):
        return None  # other words for it, or one of the differences that test_streaming.py tells
    return f"{data!r} by {size}: {whole_outcome!r} whole, {stream_outcome!r} as a stream"


def _may_differ(data: bytes) -> bool:
    """Say whether a file that is counted as a whole may be refused as a stream."""
    said_twice = False

    def note(pairs: list[tuple[str, Any]]) -> None:
        nonlocal said_twice
        said_twice = said_twice or len(dict(pairs)) < len(pairs)

    json.loads(data, object_pairs_hook=note)
    return said_twice or _HUGE_NUMBER.search(data) is not None


def one_input(data: bytes) -> None:
    """Parse one input of the fuzzer; its first byte chooses the size of the chunks and gzip."""
    choice, content = data[0] if data else 0, data[1:]
    size = choice % 64 + 1
    found = disagreement(content, size)
    if found is None and choice >= 192:
        found = disagreement(gzip.compress(content, 1, mtime=0), size, gzipped=True)
    elif found is None and choice >= 128:
        _outcome_of_gzip(content, size)
    if found is not None:
        raise AssertionError(found)


def _outcome_of_gzip(data: bytes, size: int) -> None:
    """Read bytes that are hardly gzip as if they were; damage may be met in another place."""
    from testkit.parsers import in_chunks, streamed, whole  # noqa: PLC0415 - after the instrumentation

    one = _outcome(whole, data, gzipped=True)
    two = _outcome(streamed, in_chunks(data, size), gzipped=True)
    if isinstance(one, str) != isinstance(two, str) and isinstance(one, str):
        raise AssertionError(f"{data!r}: {one!r} whole, {two!r} as a stream")


def _seed(folder: Path) -> None:
    from testkit.corpus import CORPUS  # noqa: PLC0415 - after the instrumentation

    for case in CORPUS:
        if len(case.data) <= _LONGEST_SEED:
            choice = 128 if case.gzipped else 0
            (folder / case.name.replace(" ", "-")).write_bytes(bytes([choice]) + case.data)


def main(arguments: list[str]) -> None:
    """Fuzz with these arguments, the program's name first; ends the process."""
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
