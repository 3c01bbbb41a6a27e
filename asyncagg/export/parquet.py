"""Write rows as Parquet, with pyarrow."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, get_args, get_type_hints

from anyio import to_thread

from asyncagg.errors import ConfigurationError
from asyncagg.export.rows import DECIMALS, ROWS, Count, ExactSum, ExportTable, Moment, Seconds

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow import json as pajson
except ImportError as error:
    raise ConfigurationError(
        f"Parquet: {error}; expected the extra 'export' of asyncagg, or --format csv or ndjson"
    ) from error

_ROW_GROUP_BYTES = 8 * 1024 * 1024
"""The size of the JSON of the rows in a row group, at most: memory must not depend on the file."""

_ROW_GROUP = 65_536
"""The rows in a row group, at most."""

_SECONDS = pa.decimal128(38, DECIMALS)
_TYPES: dict[Any, pa.DataType] = {
    str: pa.string(),
    Moment: pa.timestamp("us", tz="UTC"),
    float: pa.float64(),
    Count: pa.int64(),
    Seconds: _SECONDS,
    ExactSum: _SECONDS,
}


def arrow_schema(table: ExportTable) -> pa.Schema:
    """Return the columns of a table."""
    hints = get_type_hints(ROWS[table], include_extras=True)
    return pa.schema([_field(name, hint) for name, hint in hints.items()])


def _field(name: str, hint: Any) -> pa.Field:
    optional = type(None) in get_args(hint)
    return pa.field(name, _TYPES[get_args(hint)[0] if optional else hint], nullable=optional)


async def encode_parquet(
    table: ExportTable,
    batches: AsyncIterator[list[bytes]],
    etags: Mapping[str, str],
) -> AsyncIterator[bytes]:
    """Yield the bytes of a file of rows, a row group at a time.

    The etags of the aggregates are in the metadata of its schema: ``asyncagg.aggregates``.
    """
    schema = arrow_schema(table).with_metadata({"asyncagg.aggregates": json.dumps(etags)})
    file = _Drained()
    writer = pq.ParquetWriter(file, schema, compression="zstd")

    def write(lines: list[bytes]) -> None:
        writer.write_table(_table(schema, lines), row_group_size=_ROW_GROUP)

    group: list[bytes] = []
    size = 0
    async for lines in batches:
        group += lines
        size += sum(map(len, lines))
        if size >= _ROW_GROUP_BYTES or len(group) >= _ROW_GROUP:
            await to_thread.run_sync(write, group)
            yield file.drain()
            group, size = [], 0
    if group:
        await to_thread.run_sync(write, group)
    await to_thread.run_sync(writer.close)
    yield file.drain()


def _table(schema: pa.Schema, lines: list[bytes]) -> pa.Table:
    data = b"\n".join(lines)
    return pajson.read_json(
        io.BytesIO(data),
        read_options=pajson.ReadOptions(use_threads=False, block_size=len(data) + 1),
        parse_options=pajson.ParseOptions(
            explicit_schema=schema, unexpected_field_behavior="error"
        ),
    ).cast(schema)


class _Drained(io.RawIOBase):
    """A file to be written, whose content is taken out as it comes."""

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._size = 0

    def writable(self) -> bool:
        """Return whether it can be written."""
        return True

    def tell(self) -> int:
        """Return how much was written."""
        return self._size

    def write(self, data: Any) -> int:
        """Append data."""
        self._blocks.append(bytes(data))
        self._size += len(self._blocks[-1])
        return len(self._blocks[-1])

    def drain(self) -> bytes:
        """Take out what was written since the last call."""
        data = b"".join(self._blocks)
        self._blocks.clear()
        return data
