"""``asyncagg report``: one HTML page that shows what the aggregates say."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from asyncagg.cli.base import (
    JsonOption,
    configure_logs,
    err,
    execute,
    out,
    print_json,
    time_option,
    with_settings,
)
from asyncagg.errors import ConfigurationError, UsageError
from asyncagg.report import Report, build_page, gather
from asyncagg.settings import Settings
from asyncagg.store.opening import open_store

__all__ = ("report",)

_STDOUT = "-"


@with_settings
def report(
    *,
    settings: Settings,
    to: Annotated[
        str,
        typer.Option("--out", help="Where to write it; - for standard output.", metavar="FILE"),
    ] = "report.html",
    since: Annotated[
        datetime | None, time_option("--since", "Windows that start then or later.")
    ] = None,
    until: Annotated[datetime | None, time_option("--until", "Windows that end by then.")] = None,
    json: JsonOption = False,
) -> None:
    """Write one HTML page that shows what the aggregates say.

    It needs no network to be read. Totals over time, matches against no matches, errors, processing
    times, late and quarantined files, the top matches, and the windows that are missing. It only
    reads.

    Examples:
      asyncagg report ./data --out report.html

      asyncagg report s3://matching-out-runs --since 2025-10-21 --until 2025-10-22 --json
    """
    _check(to, json=json)

    async def work() -> Report:
        async with open_store(settings) as store:
            with _progress() as told:
                return await gather(store, settings, since=since, until=until, progress=told)

    configure_logs(settings, json=json)
    made = execute(work)
    data = made.as_dict()
    page = build_page(data)
    if to == _STDOUT:
        sys.stdout.buffer.write(page)
    else:
        _write(Path(to), page)
    if json:
        print_json(data | {"out": to, "exit_code": made.exit_code})
    elif to != _STDOUT:
        _print(made, to, len(page))
    raise typer.Exit(made.exit_code)


def _check(to: str, *, json: bool) -> None:
    """See before the work that its outcome has a place to go."""
    if to == _STDOUT:
        if json:
            raise UsageError("--out - with --json: expected one of the two on standard output")
        return
    path = Path(to)
    with _translated(path):
        if path.exists() and not path.is_file():
            kind = "a directory" if path.is_dir() else "no regular file"
            raise UsageError(
                f"--out {to!r} is {kind}: expected the name of a file, or - for standard output"
            )
        if not path.parent.is_dir():
            raise UsageError(f"--out {to!r}: expected a file in a directory that exists")


def _write(path: Path, page: bytes) -> None:
    """Write a file in one step: who reads it sees the old page or the new one, whole."""
    draft = path.with_name(f".asyncagg-report-{secrets.token_hex(8)}")
    with _translated(path):
        try:
            draft.write_bytes(page)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"--out {str(path)!r}: {error.strerror}; expected a directory with room, in which this "
            "user may write"
        ) from error


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """Show how many aggregates were read, on a terminal."""
    if not err.is_terminal:
        yield None
        return
    columns = (TextColumn("aggregates"), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, count: bar.update(task, completed=done, total=count)


def _print(made: Report, to: str, size: int) -> None:
    total = made.total
    title = "no aggregate in the interval"
    if made.first and made.last:
        title = f"{made.first:%Y-%m-%d %H:%M} to {made.last:%Y-%m-%d %H:%M} UTC"
    out.print(title)
    table = Table()
    table.add_column("what")
    table.add_column("number", justify="right")
    rows = {
        "aggregates": made.windows,
        "windows missing": made.gaps.windows,
        "files counted": total.counted,
        "files late": made.late,
        "files quarantined": total.quarantined,
        "opportunities": total.opportunities,
        "matches": total.matches,
        "no matches": total.no_matches,
        "errors": total.errors,
    }
    for name, number in rows.items():
        table.add_row(name, f"{number:,}")
    out.print(table)
    for each in made.unreadable:
        out.print(Text(f"{each.key}: {each.reason}", style="red"))
    out.print(Text(f"wrote {to} ({size:,} bytes): open it in a browser"), soft_wrap=True)
