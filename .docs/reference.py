"""Write the generated parts of the documents: the tables of settings and of document formats.

    python .docs/reference.py          # after a change of settings.py or of a schema

It replaces the text between ``<!-- NAME -->`` and ``<!-- end -->`` by the output of `SECTIONS`.
tests/docs/test_reference.py fails if a document is out of date.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa

from asyncagg.export.parquet import arrow_schema
from asyncagg.export.rows import ExportTable
from asyncagg.settings import all_settings

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    ROOT / "docs" / "reference" / "settings.md",
    ROOT / "docs" / "reference" / "aggregate.md",
    ROOT / "docs" / "reference" / "rollup.md",
    ROOT / "docs" / "reference" / "export.md",
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
