"""``asyncagg report``: one HTML page of the aggregates."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from asyncagg.cli import base
from asyncagg.errors import ConfigurationError, UsageError
from asyncagg.job.context import JobContext
from asyncagg.report import Report, build_page, gather
from asyncagg.settings import Settings

_STDOUT = "-"


@base.with_settings
def report(
    *,
    settings: Settings,
    to: Annotated[
        str | None,
        typer.Option(
            "--out",
            help="The file to write; - for standard output. Default: report.html; none with --json",
            metavar="FILE",
        ),
    ] = None,
    since: base.SinceOption = None,
    until: base.UntilOption = None,
    allow_empty: base.AllowEmptyOption = False,
    json: base.JsonOption = False,
) -> None:
    """Write one HTML page about the aggregates of an interval.

    It shows totals over time, matches and no matches, errors, processing times, late and
    quarantined files, the top matches, and the missing windows. The page needs no network. The
    store is only read.

    Examples:
      asyncagg report ./data --out report.html

      asyncagg report s3://matching-out-runs --since 2025-10-21 --until 2025-10-22 --json
    """
    if to is None and not json:
        to = "report.html"
    if to is not None:
        _check(to, json=json)

    async def work(context: JobContext) -> Report:
        async with base.progress("aggregates", json=json) as bar:

            def note(done: int, count: int) -> None:
                bar.done, bar.total, bar.is_final = done, count, True

            return await gather(
                context.store, context.settings, since=since, until=until, progress=note
            )

    made = base.execute_with_store(settings, work, json=json)
    base.check_found(
        settings,
        settings.aggregate_prefix,
        found=made.first is not None,
        allow_empty=allow_empty,
        filtered=bool(since or until),
    )
    data = made.as_dict()
    page = b"" if to is None else build_page(data)
    if to == _STDOUT:
        sys.stdout.buffer.write(page)
    elif to is not None:
        _write(Path(to), page)
    if json:
        base.print_json(data | {"out": to, "exit_code": made.exit_code})
    elif to is not None and to != _STDOUT:
        _print(made, to, len(page))
    raise typer.Exit(made.exit_code)


def _check(to: str, *, json: bool) -> None:
    """Check before the work that its output can be written."""
    if to == _STDOUT:
        if json:
            raise UsageError("--out - with --json: expected one of the two on standard output")
        return
    path = Path(to)
    with _translated(path):
        if path.exists() and not path.is_file():
            kind = "a directory" if path.is_dir() else "not a regular file"
            raise UsageError(
                f"--out {to!r} is {kind}: expected the name of a file, or - for standard output"
            )
        if not path.parent.is_dir():
            raise UsageError(f"--out {to!r}: expected a file in a directory that exists")


def _write(path: Path, page: bytes) -> None:
    """Replace a file in one step: a reader sees the old page or the new one, whole."""
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
            f"--out {str(path)!r}: {error.strerror}; expected a directory with free space that "
            "this user may write to"
        ) from error


def _print(made: Report, to: str, size: int) -> None:
    total = made.total
    title = "no aggregate in the interval"
    if made.first and made.last:
        title = f"{made.first:%Y-%m-%d %H:%M} to {made.last:%Y-%m-%d %H:%M} UTC"
    base.out.print(title)
    rows = {
        "aggregates": made.windows,
        "windows missing": made.gaps.windows,
        "files counted": total.counted,
        "files late": made.late,
        "packs": made.packs,
        "bytes of packs": made.packed_bytes,
        "files quarantined": total.quarantined,
        "opportunities": total.opportunities,
        "matches": total.matches,
        "no matches": total.no_matches,
        "errors": total.errors,
    }
    base.print_table(rows.items(), "field", "value")
    for each in made.unreadable:
        base.print_text(f"{each.key}: {each.reason}", style="red")
    base.print_text(f"wrote {to} ({size:,} bytes): open it in a browser")
