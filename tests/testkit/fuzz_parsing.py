"""Coverage-guided fuzzing of the parsers.

    python -m testkit.fuzz_parsing -max_total_time=30

For any bytes as a run file, each way to parse them returns a result or raises an
`InvalidRunFileError`, and all ways agree. As a response of S3, they give a result or a
`TransientError`. It starts from the corpus of the tests; further arguments are libFuzzer's
(https://llvm.org/docs/LibFuzzer.html#options). It needs ``atheris``.
"""

from __future__ import annotations

import gzip
import importlib
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ("disagreement", "main", "one_input", "read_response")

_LONGEST_SEED = 4096
_GZIP = b"\x1f\x8b"
RESPONSES = (
    (
        b"<ListBucketResult><EncodingType>url</EncodingType><Contents><Key>a%2Fb</Key>"
        b"<LastModified>2025-10-21T12:00:00.000Z</LastModified><ETag>&quot;e&quot;</ETag>"
        b"<Size>1</Size><StorageClass>STANDARD</StorageClass></Contents>"
        b"<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>"
        b"</ListBucketResult>"
    ),
    b"<Error><Code>NoSuchKey</Code><Message>m</Message><Region>eu-west-1</Region></Error>",
    b"<DeleteResult><Error><Key>k</Key><Code>AccessDenied</Code></Error></DeleteResult>",
    b"<CopyObjectResult><ETag>e</ETag></CopyObjectResult>",
    (
        b'HTTP/1.1 200 OK\r\ncontent-length: 1\r\netag: "e"\r\nx-amz-meta-a: b\r\n'
        b"content-encoding: gzip,aws-chunked\r\nlast-modified: Tue, 21 Oct 2025 12:00:00 GMT"
    ),
)
"""Responses of S3 that the fuzzer starts from."""

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
    read_response(content)


def read_response(data: bytes) -> None:
    """Parse bytes as each body of S3 and as the head of a response; only damage may be raised."""
    from asyncagg.errors import TransientError  # noqa: PLC0415 - after the instrumentation
    from asyncagg.store.s3 import xml  # noqa: PLC0415 - likewise
    from asyncagg.store.s3.http import Response  # noqa: PLC0415 - likewise
    from asyncagg.store.s3.http_plane import _parse_info  # noqa: PLC0415 - likewise
    from asyncagg.store.s3.plane import s3_error  # noqa: PLC0415 - likewise
    from asyncagg.store.s3.sigv4 import S3Request  # noqa: PLC0415 - likewise

    error = xml.parse_error(data)
    shown = s3_error("get", "k", bucket="b", status=400, code=error.code, message=error.message)
    if not str(shown).isprintable():
        raise AssertionError(f"{data!r} is shown as {str(shown)!r}")
    for parse in (
        lambda: [file.last_modified.timestamp() for file in xml.parse_listing(data, "").files],
        lambda: xml.parse_copy_error(data),
        lambda: list(xml.parse_delete_errors(data)),
        lambda: _parse_info(S3Request("head", "k", "HEAD", "/"), Response(200, data)),
    ):
        with suppress(TransientError):
            parse()


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
            choice = 128 if case.gzipped else 0
            (folder / case.name.replace(" ", "-")).write_bytes(bytes([choice]) + case.data)
    for at, response in enumerate(RESPONSES):
        (folder / f"response-{at}").write_bytes(b"\0" + response)


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
