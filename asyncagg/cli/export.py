"""``asyncagg export``: write aggregates as Parquet, CSV or NDJSON."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated

import anyio
import msgspec
import typer
from anyio import to_thread

from asyncagg.cli import base
from asyncagg.errors import UsageError
from asyncagg.export import ExportFormat, ExportReport, ExportTable
from asyncagg.export import export as export_all
from asyncagg.job.context import JobContext
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.store.opening import open_store


@base.with_settings
def export(
    *,
    settings: Settings,
    to: Annotated[
        str,
        typer.Option("--to", help="A directory or s3://bucket[/prefix].", metavar="PATH_OR_URL"),
    ],
    since: base.SinceOption = None,
    until: base.UntilOption = None,
    table: Annotated[
        list[ExportTable] | None, typer.Option(help="Only this table; may be given again.")
    ] = None,
    file_format: Annotated[
        ExportFormat,
        typer.Option("--format", help="parquet needs the extra 'export' (pyarrow)."),
    ] = ExportFormat.PARQUET,
    allow_empty: base.AllowEmptyOption = False,
    json: base.JsonOption = False,
) -> None:
    """Write aggregates as Parquet, CSV or NDJSON tables to query.

    There are three tables: runs has a row per counted file, matches the best ten of each window,
    windows their totals. A file is TABLE/date=YYYY-MM-DD/NAME: one per window of runs, one per day
    of the other tables, of which whole days are exported. Only what has changed is written again.
    The store is only read, and runs may be at work in it. An aggregate that cannot be read is left
    out and named, and the exit code is 3.

    Examples:
      asyncagg export ./data --to ./tables

      asyncagg export s3://matching-out-runs --to s3://analysts/matching --since 2025-10-21 --json
    """

    async def work(context: JobContext) -> ExportReport:
        await to_thread.run_sync(_check_apart, context.settings, to)
        async with (
            base.progress("files", json=json) as bar,
            _open_target(context.settings, to) as target,
        ):

            def note(report: ExportReport) -> None:
                bar.done = len(report.written) + report.unchanged
                bar.note = f"{report.rows:,} rows written"

            report = await export_all(
                context.store,
                context.settings,
                target,
                tables=tuple(dict.fromkeys(table or ExportTable)),
                file_format=file_format,
                since=since,
                until=until,
                progress=note,
            )
        base.check_found(
            context.settings,
            context.settings.aggregate_prefix,
            found=bool(report.written or report.unchanged or report.failures),
            allow_empty=allow_empty,
            filtered=bool(since or until),
        )
        return report

    base.finish(base.execute_with_store(settings, work, json=json), _print, json=json)


@asynccontextmanager
async def _open_target(settings: Settings, to: str) -> AsyncIterator[Store]:
    """Open the store to write to, as the settings access the one to read."""
    folder = None if "://" in to else anyio.Path(to)
    is_new = folder is not None and not await folder.exists()
    if folder is not None:
        await to_thread.run_sync(base.create_folder, to, "--to")
    async with open_store(msgspec.structs.replace(settings, store=to)) as target:
        yield target
    if folder is not None and is_new:
        with suppress(OSError):  # it is not empty
            await folder.rmdir()


def _check_apart(settings: Settings, to: str) -> None:
    """Refuse to write among the objects of the store: `runs/` is an inbox, too."""
    target = _place(to)
    for each in ExportTable:
        for name in settings.__struct_fields__:
            if not name.endswith("_prefix"):
                continue
            prefix = f"{_place(settings.store)}{getattr(settings, name)}"
            table = f"{target}{each}/"
            if table.startswith(prefix) or prefix.startswith(table):
                raise UsageError(
                    f"--to {to!r}: the table {each} would be in or around {name} "
                    f"{getattr(settings, name)!r} of the store; expected another place"
                )


def _place(store: str) -> str:
    """Return where a store is, in one spelling that ends with a slash."""
    return f"{store if '://' in store else Path(store).resolve()}".rstrip("/") + "/"


def _describe(report: ExportReport) -> str:
    written = f"{base.number_of(len(report.written), 'file')} written"
    unchanged = f"{base.number_of(report.unchanged, 'file')} unchanged"
    return f"{written}, {base.number_of(report.rows, 'row')}, {unchanged}"


def _print(report: ExportReport) -> None:
    base.out.print(_describe(report))
    for key, reason in report.failures.items():
        base.print_text(f"{key}: {reason}", style="red")
