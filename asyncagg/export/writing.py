"""The formats of an export: lines of JSON in, the bytes of a file out, in bounded memory."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from enum import StrEnum
from typing import TypeAlias

import orjson

from asyncagg.export.rows import ROWS, ExportTable

Batches: TypeAlias = AsyncIterator[list[bytes]]
"""The rows of a file, each a line of JSON, many at a time."""

_Encoder: TypeAlias = Callable[[ExportTable, Batches, Mapping[str, str]], AsyncIterator[bytes]]


class ExportFormat(StrEnum):
    """The format of an export's files."""

    PARQUET = "parquet"
    CSV = "csv"
    NDJSON = "ndjson"

    @property
    def content_type(self) -> str:
        """Its media type."""
        return _CONTENT_TYPES[self]


_CONTENT_TYPES = {
    ExportFormat.PARQUET: "application/vnd.apache.parquet",
    ExportFormat.CSV: "text/csv",
    ExportFormat.NDJSON: "application/x-ndjson",
}


def encoder(kind: ExportFormat) -> _Encoder:
    """Return the function that encodes the rows of a table, given the etags of their aggregates.

    Raises:
        ConfigurationError: It is Parquet, and pyarrow is not installed.
    """
    if kind is ExportFormat.PARQUET:
        from asyncagg.export.parquet import encode_parquet  # noqa: PLC0415 - an extra

        return encode_parquet
    return _encode_csv if kind is ExportFormat.CSV else _encode_ndjson


async def _encode_ndjson(
    _table: ExportTable, batches: Batches, _etags: Mapping[str, str]
) -> AsyncIterator[bytes]:
    async for lines in batches:
        if lines:
            yield b"\n".join(lines) + b"\n"


async def _encode_csv(
    table: ExportTable, batches: Batches, _etags: Mapping[str, str]
) -> AsyncIterator[bytes]:
    yield _csv([ROWS[table].__struct_fields__])
    async for lines in batches:
        yield _csv([list(orjson.loads(line).values()) for line in lines])


def _csv(rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
