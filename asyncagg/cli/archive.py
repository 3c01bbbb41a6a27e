"""``asyncagg archive``: list and extract counted files, and put single ones into packs."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from asyncagg.archive.extract import Extracted, extract
from asyncagg.archive.listing import ArchivedFile, Wanted, list_archived
from asyncagg.archive.packing import PackReport, pack_archive
from asyncagg.archive.targets import Folder, Inbox
from asyncagg.cli import base
from asyncagg.errors import UsageError
from asyncagg.job.context import JobContext
from asyncagg.model import Interval
from asyncagg.settings import Settings
from asyncagg.windows import check_interval, parse_window

archive = typer.Typer(
    help="List, extract and pack counted files.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_KeysArgument = Annotated[
    list[str] | None,
    typer.Argument(
        help="Only files with these keys in the inbox.", metavar="KEY", show_default=False
    ),
]
_WindowOption = Annotated[
    str, typer.Option("--window", help="Only files of this window.", metavar="WINDOW")
]
_LinesOption = Annotated[
    bool, typer.Option("--json", help="Print one line of JSON per file, for machines.")
]


@archive.command("list", cls=base.Command)
@base.with_settings
def list_files(
    *,
    settings: Settings,
    keys: _KeysArgument = None,
    window: _WindowOption = "",
    since: base.SinceOption = None,
    until: base.UntilOption = None,
    json: _LinesOption = False,
) -> None:
    """List the counted files, as the aggregates name them.

    A line has the key, window, form (object or pack), size and time of a file. Of a window without
    an aggregate, the files in packs are listed, and marked as not counted. The exit code is 3 if a
    KEY is not found.

    Examples:
      asyncagg archive list ./data --window 20251021t1400Z

      asyncagg archive list s3://bucket --since 2025-10-21 --until 2025-10-22 --json
    """
    found: set[str] = set()
    number = size = 0

    async def work(context: JobContext) -> None:
        nonlocal number, size
        wanted = _wanted(context.settings, keys, window, since, until)
        async for page in list_archived(context, wanted):
            for each in page:
                found.update({each.file.key} & wanted.keys)
                number += 1
                size += each.file.size
                if json:
                    base.print_json(each.as_dict())
                else:
                    _print_file(each)

    base.execute_with_store(settings, work, json=json)
    if not json:
        base.out.print(f"total: {base.number_of(number, 'file')}, {size:,} bytes")
    raise typer.Exit(3 if _report_unknown(keys, found) else 0)


@archive.command("extract", cls=base.Command)
@base.with_settings
def extract_files(
    *,
    settings: Settings,
    keys: _KeysArgument = None,
    window: _WindowOption = "",
    since: base.SinceOption = None,
    until: base.UntilOption = None,
    to: Annotated[
        Path | None,
        typer.Option("--to", help="The folder to write to.", metavar="DIR", file_okay=False),
    ] = None,
    to_inbox: Annotated[
        bool, typer.Option("--to-inbox", help="Write to the inbox, under their own keys.")
    ] = False,
    count_again: Annotated[
        bool,
        typer.Option("--count-again", help="With --to-inbox: even files that are still counted."),
    ] = False,
    json: _LinesOption = False,
) -> None:
    """Write the bytes of counted files to a folder or back into the inbox.

    The archive is only read. Choose files by KEY, --window, or --since and --until. Nothing is
    overwritten: in a folder, a file whose name is taken by other content gets a digest in its
    name. Names that are not safe for a file system are changed, so no file is written outside the
    folder.

    To count the files of a window again, move its aggregate away, then use --to-inbox: the files
    in its packs are put into the inbox. Files that an aggregate still counts are refused there,
    unless --count-again is given. A run recognises those whose names have a time, and removes them
    again; the others are counted in the window in which they are put back.

    The exit code is 3 if a file is not extracted, or if a KEY is not found.

    Examples:
      asyncagg archive extract ./data --window 20251021t1400Z --to ./restored

      asyncagg archive extract s3://bucket runs/20251021t1357Z_run.json --to . --json
    """
    _check(
        to,
        to_inbox=to_inbox,
        count_again=count_again,
        chosen=bool(keys or window or since or until),
    )
    counts = {"extracted": 0, "bytes": 0, "left": 0}
    found: set[str] = set()

    async def work(context: JobContext) -> None:
        wanted = _wanted(context.settings, keys, window, since, until)
        target = Folder(to, context.layout.runs_prefix) if to else Inbox(context)

        async with base.progress("files", json=json) as bar:

            def note(result: Extracted) -> None:
                found.update({result.key} & wanted.keys)
                counts["left" if result.reason else "extracted"] += 1
                counts["bytes"] += 0 if result.reason else result.size
                if json:
                    base.print_json({"event": "file", **result.as_dict()})
                elif result.reason:
                    text = f"left  {base.visible(result.key)}: {base.visible(result.reason)}"
                    base.print_text(text, style="yellow")
                bar.done, bar.note = counts["extracted"], f"{counts['bytes']:,} bytes"

            await extract(context, wanted, target, note, counted=count_again or not to_inbox)

    base.execute_with_store(settings, work, json=json)
    code = 3 if _report_unknown(keys, found) or counts["left"] else 0
    if json:
        base.print_json({"event": "done", **counts, "exit_code": code})
    else:
        base.out.print(f"{_describe(counts)}, {counts['left']:,} left")
    raise typer.Exit(code)


@archive.command("pack", cls=base.Command)
@base.with_settings
def pack_files(
    *,
    settings: Settings,
    since: base.SinceOption = None,
    until: base.UntilOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read the aggregates, change nothing.")
    ] = False,
    json: base.JsonOption = False,
) -> None:
    """Put the single files of the archive into packs, window by window.

    A single file is deleted only after the aggregate of its window names the pack that it is in,
    and after that pack was read back. If the command is stopped, run it again to continue. Runs,
    with packs or without, may go on meanwhile.

    Large files (see --stream-bytes) and files restored from quarantine stay single, and so does a
    file whose copy in the archive has another etag or size than was counted: copies of encrypted
    objects have other etags.

    The exit code is 3 if a window could not be done, or if time ran out.

    Examples:
      asyncagg archive pack ./data --dry-run

      asyncagg archive pack s3://bucket --since 2025-10-01 --until 2025-11-01 --json
    """
    interval = check_interval(since, until)

    async def work(context: JobContext) -> PackReport:
        async with base.progress("files", json=json) as bar:

            def note(report: PackReport) -> None:
                windows = base.number_of(report.windows, "window")
                bar.done = report.packed
                bar.note = f"{windows}, {base.number_of(report.packs, 'pack')}"

            return await pack_archive(context, interval, dry_run=dry_run, progress=note)

    def show(report: PackReport) -> None:
        base.out.print(_describe_packed(report, dry_run=dry_run))
        for name, reason in report.failures.items():
            base.print_text(f"window {name}: {reason}", style="red")
        if not report.complete:
            base.out.print("time ran out: run it again to continue")

    base.finish(base.execute_with_store(settings, work, json=json), show, json=json)


def _describe_packed(report: PackReport, *, dry_run: bool) -> str:
    windows = base.number_of(report.windows, "window")
    files = f"{base.number_of(report.packed, 'file')} ({report.bytes:,} bytes)"
    if dry_run:
        return f"{windows}: {files} to pack, {report.kept:,} to keep"
    copies = "copy" if report.deleted == 1 else "copies"
    return (
        f"{windows}: {files} into {base.number_of(report.packs, 'pack')}, "
        f"{report.deleted:,} single {copies} deleted, {report.kept:,} kept"
    )


def _check(to: Path | None, *, to_inbox: bool, count_again: bool, chosen: bool) -> None:
    if (to is None) != to_inbox:
        raise UsageError("expected either --to DIR or --to-inbox")
    if not chosen:
        raise UsageError("expected a KEY, --window, --since or --until: which files to extract")
    if count_again and not to_inbox:
        raise UsageError("--count-again: expected with --to-inbox only")


def _wanted(
    settings: Settings,
    keys: list[str] | None,
    window: str,
    since: datetime | None,
    until: datetime | None,
) -> Wanted:
    interval = check_interval(since, until)
    if window:
        if since or until:
            raise UsageError("--window: expected without --since and --until")
        chosen = parse_window(window, settings.window_minutes)
        interval = Interval(chosen.start, chosen.end)
    return Wanted(interval, frozenset(keys or ()))


def _report_unknown(keys: list[str] | None, found: set[str]) -> bool:
    """Name the keys that no aggregate of the interval counts; return whether there are any."""
    unknown = [key for key in dict.fromkeys(keys or ()) if key not in found]
    for key in unknown:
        base.print_text(f"{base.visible(key)}: not found: no aggregate counts it", to=base.err)
    return bool(unknown)


def _describe(counts: dict[str, int]) -> str:
    return f"{counts['extracted']:,} files extracted, {counts['bytes']:,} bytes"


def _print_file(each: ArchivedFile) -> None:
    file = each.file
    place = f"pack {file.pack}" if file.pack else "object"
    written = base.time_text(file.last_modified)
    mark = "" if each.counted else "  not counted"
    base.print_entry(file.key, f"{each.window.name}  {place}  {file.size:,} bytes  {written}{mark}")
