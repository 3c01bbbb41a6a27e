"""Write the generated parts of the documents: the tables of settings and of document formats.

    python .docs/reference.py          # after a change of settings.py or of a schema

It replaces the text between ``<!-- NAME -->`` and ``<!-- end -->`` by the output of `SECTIONS`.
tests/docs/test_reference.py fails if a document is out of date.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import anyio
import pyarrow as pa

from asyncagg.check import check_content
from asyncagg.export.parquet import arrow_schema
from asyncagg.export.rows import ExportTable
from asyncagg.ingest.schema import schema as run_file_schema
from asyncagg.ingest.shape import ACCEPTED, MAX_MATCH_BYTES, MAX_MATCH_DEPTH, MAX_TEXT
from asyncagg.ingest.streaming import MAX_DEPTH
from asyncagg.model import TOP
from asyncagg.settings import Settings, all_settings

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    ROOT / "docs" / "reference" / "settings.md",
    ROOT / "docs" / "reference" / "aggregate.md",
    ROOT / "docs" / "reference" / "rollup.md",
    ROOT / "docs" / "reference" / "export.md",
    ROOT / "docs" / "reference" / "run-file.md",
    ROOT / "docs" / "how-to" / "query-the-results.md",
]
_PLACE = re.compile(r"(<!-- ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def settings() -> str:
    """Return the table of settings."""
    lines = ["| variable | default | accepted | what it is for |", "| --- | --- | --- | --- |"]
    for each in all_settings():
        default = "none" if each.default in (None, "") else f"`{each.default}`"
        accepted = f"{each.accepted}, {each.unit}" if each.unit else each.accepted
        lines.append(f"| `{each.variable}` | {default} | {accepted} | {each.description} |")
    return "\n".join(lines)


def schema(name: str) -> str:
    """Return the table of the fields of a document format."""
    whole = json.loads(
        resources.files(f"asyncagg.{name}").joinpath(f"{name}.schema.json").read_text()
    )
    rows = fields(whole, whole["$defs"], "")
    return "\n".join(["| field | value | meaning |", "| --- | --- | --- |", *rows])


def fields(node: dict[str, Any], definitions: dict[str, Any], path: str) -> Iterator[str]:
    """Yield a row for each field of an object, each followed by those of its own fields."""
    for name, given in node.get("properties", {}).items():
        field = resolved(given, definitions)
        inner = f"{path}{name}"
        yield f"| `{inner}` | {kind(field)} | {field.get('description', '')} |"
        if "items" in field:
            yield from fields(resolved(field["items"], definitions), definitions, f"{inner}[].")
        else:
            yield from fields(field, definitions, f"{inner}.")


def resolved(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return a node with its ``$ref`` resolved; its own keywords take precedence."""
    target = definitions[node["$ref"].rpartition("/")[2]] if "$ref" in node else {}
    return {**target, **node}


def kind(field: dict[str, Any]) -> str:
    """Describe the values of a field."""
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return " or ".join(f"`{each}`" for each in field["enum"])
    kinds = field["type"] if isinstance(field["type"], list) else [field["type"]]
    words = " or ".join(str(field.get("format", each)) for each in kinds)
    if "minimum" in field:
        words += f" from {field['minimum']}"
    if "maximum" in field:
        words += f" to {field['maximum']}"
    if "maxItems" in field:
        words += f", at most {field['maxItems']}"
    return words


def run_file() -> str:
    """Return the fields of a run file, with the words of its reader."""
    fields = run_file_schema()["properties"]
    score = fields["top_matches"]["anyOf"][0]["items"]["properties"]["match_score"]
    rows = [
        *((name, ACCEPTED[name], field["description"]) for name, field in fields.items()),
        ("top_matches[].match_score", "a number", score["description"]),
    ]
    lines = ["| field | accepted | meaning |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| `{name}` | {what} | {why} |" for name, what, why in rows)])


def run_file_limits() -> str:
    """Return the limits of a run file."""
    rows = {
        "the file": f"`max_file_bytes`, {Settings().max_file_bytes:,} bytes, also unzipped",
        "`run_id` and `timestamp`": f"{MAX_TEXT:,} characters",
        "a match object": f"{MAX_MATCH_BYTES:,} bytes, nested {MAX_MATCH_DEPTH} deep",
        "anything else": f"nested {MAX_DEPTH:,} deep",
        "matches in a file": f"any number; the best {TOP} of a window are kept",
    }
    lines = ["| what | at most |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| {what} | {most} |" for what, most in rows.items())])


_BAD = {
    "an object without any field of a run file": b'{"matchesFound": 9}',
    "a list": b'[{"errors": 1}]',
    "two objects, such as JSON lines": b'{"errors": 1}\n{"errors": 2}',
    "empty": b"",
    "cut short": b'{"errors": 1',
    "a comma too many": b'{"errors": 1,}',
    "UTF-16": '{"errors": 1}'.encode("utf-16"),
    "not UTF-8": '{"run_id": "é"}'.encode("latin-1"),
    "gzip that is cut short": b"\x1f\x8b\x08",
    "a string for a number": b'{"errors": "5"}',
    "a fraction for a count": b'{"errors": 5.5}',
    "a negative count": b'{"errors": -1}',
    "`NaN`": b'{"processing_time_seconds": NaN}',
    "a number that is out of range": b'{"errors": 1e400}',
    "a time that does not exist": b'{"timestamp": "2025-02-30T12:00:00Z"}',
    "a string that is too long": b'{"run_id": "%b"}' % (b"x" * (MAX_TEXT + 1)),
    "matches that are not a list": b'{"top_matches": {}}',
    "a match that is not an object": b'{"top_matches": [{}, "a"]}',
    "a score that is not a number": b'{"top_matches": [{"match_score": "high"}]}',
    "a match that is too large": b'{"top_matches": [{"x": "%b"}]}' % (b"x" * MAX_MATCH_BYTES),
    "nested too deep": b'{"x": %b}' % (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1)),
}


_LIMITED = Settings(max_file_bytes=1024)
_TOO_LARGE = {
    "larger than `max_file_bytes`, here 1,024": b" " * 1025,
    "larger when it is unzipped": gzip.compress(b" " * 1025, mtime=0),
}


def run_file_reasons() -> str:
    """Return the reasons that the reader gives for bad files."""

    async def reasons() -> list[tuple[str, str]]:
        found = [(what, await check_content(data, Settings())) for what, data in _BAD.items()]
        found += [(what, await check_content(data, _LIMITED)) for what, data in _TOO_LARGE.items()]
        return [(what, each.reason or each.verdict) for what, each in found]

    lines = ["| the file is or has | reason |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| {what} | `{why}` |" for what, why in anyio.run(reasons))])


def columns(table: ExportTable) -> str:
    """Return the columns of a table of an export."""
    rows = (
        f"| `{each.name}` | {each.type} | {'yes' if each.nullable else 'no'} |"
        for each in arrow_schema(table)
    )
    return "\n".join(["| column | type | null |", "| --- | --- | --- |", *rows])


_ATHENA_TYPES = {
    pa.string(): "string",
    pa.int64(): "bigint",
    pa.float64(): "double",
    pa.timestamp("us", tz="UTC"): "timestamp",
}

_ATHENA = """```sql
CREATE EXTERNAL TABLE matching_{table} (
{columns}
)
PARTITIONED BY (`date` string)
STORED AS PARQUET
LOCATION 's3://analysts/matching/{table}/'
TBLPROPERTIES (
  'projection.enabled' = 'true',
  'projection.date.type' = 'date',
  'projection.date.format' = 'yyyy-MM-dd',
  'projection.date.range' = '2025-01-01,NOW',
  'storage.location.template' = 's3://analysts/matching/{table}/date=${{date}}/'
);
```"""


def athena() -> str:
    """Return the statements that make the tables of an export known to Athena."""
    return "\n\n".join(
        _ATHENA.format(
            table=table,
            columns=",\n".join(
                f"  `{each.name}` {_ATHENA_TYPES.get(each.type) or 'decimal(38,24)'}"
                for each in arrow_schema(table)
            ),
        )
        for table in ExportTable
    )


SECTIONS: dict[str, Callable[[], str]] = {
    "settings": settings,
    "aggregate": lambda: schema("aggregate"),
    "rollup": lambda: schema("rollup"),
    "export-runs": lambda: columns(ExportTable.RUNS),
    "export-matches": lambda: columns(ExportTable.MATCHES),
    "export-windows": lambda: columns(ExportTable.WINDOWS),
    "athena": athena,
    "run-file": run_file,
    "run-file-limits": run_file_limits,
    "run-file-reasons": run_file_reasons,
}


def renewed(text: str) -> str:
    """Return a document with its sections up to date; marks with other names are not changed."""

    def section(place: re.Match[str]) -> str:
        write = SECTIONS.get(place[2])
        return place[0] if write is None else f"{place[1]}{write()}\n{place[3]}"

    return _PLACE.sub(section, text)


def main() -> None:
    """Update every document."""
    for document in DOCUMENTS:
        document.write_text(renewed(document.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
