"""``asyncagg quarantine``: what could not be counted, why, and back into the inbox once mended."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.text import Text

from asyncagg.cli.base import (
    Command,
    JsonOption,
    configure_logs,
    execute,
    out,
    print_json,
    time_option,
    visible,
    with_settings,
)
from asyncagg.errors import UsageError
from asyncagg.job.context import JobContext
from asyncagg.quarantine.details import FileDetails, file_details
from asyncagg.quarantine.listing import QuarantinedFile, check_key, list_quarantined
from asyncagg.quarantine.restore import Restorer, RestoreResult
from asyncagg.settings import Settings
from asyncagg.store.opening import open_store
from asyncagg.windows import check_interval

__all__ = ("list_files", "quarantine", "retry", "show")

quarantine = typer.Typer(
    help="List, show and put back files that could not be counted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@quarantine.command("list", cls=Command)
@with_settings
def list_files(
    *,
    settings: Settings,
    since: Annotated[
        datetime | None, time_option("--since", "Only files of windows that start then or later.")
    ] = None,
    until: Annotated[
        datetime | None, time_option("--until", "Only files of windows that end by then.")
    ] = None,
    reason: Annotated[
        str, typer.Option(help="Only files whose reason contains this.", metavar="TEXT")
    ] = "",
    json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON per file, for machines.")
    ] = False,
) -> None:
    """List what is in quarantine, and why.

    A line has key, time, window and size; below it is the reason.

    A file that was overwritten in quarantine has lost the time that it came at: its window is
    known from its name alone (with --window-by name), and else it is told as "-" and --since and
    --until look at the time of the overwriting.

    Examples:
      asyncagg quarantine list ./data

      asyncagg quarantine list s3://bucket --since 2025-10-21T00:00:00Z --reason gzip --json
    """
    check_interval(since, until)

    async def work() -> int:
        number = 0
        async with open_store(settings) as store:
            context = JobContext(store, settings)
            async for each in list_quarantined(context, since=since, until=until, reason=reason):
                number += 1
                if json:
                    print_json(each.as_dict())
                else:
                    _print_held(each)
        return number

    configure_logs(settings, json=json)
    if not execute(work) and not json:
        filtered = since or until or reason
        out.print("nothing of that is there" if filtered else "nothing is in quarantine")


@quarantine.command("show", cls=Command)
@with_settings
def show(
    *,
    settings: Settings,
    key: Annotated[
        str, typer.Argument(help="Its key, as `list` prints it.", metavar="KEY", show_default=False)
    ],
    json: JsonOption = False,
) -> None:
    """Show one file: why it was refused, and what is in it.

    Also where it came from, and whether it would be accepted now: it is read again by today's rules
    and settings. Of its content the first bytes are shown, unzipped where it is gzip.

    Examples:
      asyncagg quarantine show ./data quarantine/20251021t1302Z_run.json
    """

    async def work() -> FileDetails:
        async with open_store(settings) as store:
            return await file_details(JobContext(store, settings), key)

    configure_logs(settings, json=json)
    shown = execute(work)
    if json:
        print_json(shown.as_dict())
    else:
        _print_shown(shown)


@quarantine.command("retry", cls=Command)
@with_settings
def retry(
    *,
    settings: Settings,
    keys: Annotated[
        list[str] | None,
        typer.Argument(help="Keys, as `list` prints them.", metavar="KEY", show_default=False),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every file in quarantine that would be accepted now.")
    ] = False,
    replacement: Annotated[
        Path | None,
        typer.Option(
            "--replace",
            help="Overwrite the one KEY with this local file first.",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            resolve_path=True,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Put back even what would be refused again.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON per file, then the sums.")
    ] = False,
) -> None:
    """Put mended files back into the inbox.

    The next run counts them. Mended is a file that was overwritten in quarantine, one that
    --replace mends, or one that today's rules and settings accept as it is. Each is read first, and
    left where it is if it would be refused again. It goes back under a name of its own (x.json
    comes back as x.putback-0123456789abcdef.json), and is counted in the window of that name's time
    with --window-by name, else in the window of the moment (in a directory: of the file's own
    time). Stopped half way, run it again: no file is lost, and none is counted twice. On S3 it
    needs PutObject below the inbox and DeleteObject below quarantine, which the job itself has not.

    The exit code is 3 where a file is left in quarantine.

    Examples:
      asyncagg quarantine retry ./data quarantine/20251021t1302Z_run.json --replace mended.json

      asyncagg quarantine retry s3://bucket --all --max-file-bytes 1000000000 --json
    """
    chosen = list(dict.fromkeys(keys or ()))
    _check(settings, chosen, everything=everything, replacement=replacement)
    told = Counter[str]()

    def tell(outcome: RestoreResult) -> None:
        told[outcome.status] += 1
        if json:
            print_json({"event": "file", **outcome.as_dict()})
        else:
            _print_outcome(outcome)

    async def work() -> None:
        async with open_store(settings) as store:
            putter = Restorer(JobContext(store, settings), force=force)
            if everything:
                await putter.restore_all(tell)
            elif replacement is not None:
                local = msgspec.structs.replace(settings, store=str(replacement.parent))
                async with open_store(local) as source:
                    tell(await putter.replace(chosen[0], source, replacement.name))
            else:
                for key in chosen:
                    tell(await putter.restore(key))

    configure_logs(settings, json=json)
    execute(work)
    code = 3 if told["left"] else 0
    sums = {name: told[name] for name in ("put_back", "counted", "left")}
    if json:
        print_json({"event": "done", **sums, "exit_code": code})
    else:
        out.print(
            f"{sums['put_back']:,} put back, {sums['counted']:,} counted before, "
            f"{sums['left']:,} left in quarantine"
        )
    raise typer.Exit(code)


def _check(
    settings: Settings, keys: list[str], *, everything: bool, replacement: Path | None
) -> None:
    if everything == bool(keys):
        raise UsageError(
            f"{len(keys)} keys {'with' if everything else 'without'} --all: expected keys, or --all"
        )
    if replacement is not None and len(keys) != 1:
        raise UsageError(f"--replace with {len(keys)} keys: expected one key")
    for key in keys:
        check_key(settings, key)


def _print_held(each: QuarantinedFile) -> None:
    window = each.window.name if each.window else "-"
    line = Text(visible(each.file.key), style="bold")
    line.append(
        f"  {each.file.last_modified:%Y-%m-%dT%H:%M:%SZ}  window {window}", style="not bold"
    )
    line.append(f"  {each.file.size:,} bytes", style="not bold")
    out.print(line, soft_wrap=True)
    out.print(Text(f"    {visible(each.reason) or 'no reason is known'}"), soft_wrap=True)


def _print_shown(shown: FileDetails) -> None:
    _print_held(shown.quarantined)
    lines = [f"came from     {visible(shown.original_key)}"]
    if shown.entry is None:
        lines.append("aggregate     does not name it, or its window is not known")
    else:
        changed = shown.entry.get("etag") != shown.quarantined.file.etag
        told = "another version of it" if changed else "it"
        lines.append(f"aggregate     names {told}: {visible(str(shown.entry.get('reason', '')))}")
    judged = (
        f"no: {visible(shown.reason_now)}" if shown.reason_now else "yes: put it back with `retry`"
    )
    lines.append(f"accepted now  {judged}")
    of = "unzipped content" if shown.unzipped else "content"
    more = len(shown.excerpt) < shown.quarantined.file.size and not shown.unzipped
    lines.append(f"first bytes of its {of}:")
    lines += [
        f"    {visible(line)}"
        for line in shown.excerpt.decode("utf-8", "backslashreplace").split("\n")
    ]
    if more:
        lines.append("    …")
    for line in lines:
        out.print(Text(line), soft_wrap=True)


def _print_outcome(outcome: RestoreResult) -> None:
    key = visible(outcome.key)
    match outcome.status:
        case "put_back":
            out.print(Text(f"put back  {key}  as {visible(outcome.inbox_key)}"), soft_wrap=True)
        case "counted":
            out.print(Text(f"counted   {key}  before: no more to do"), soft_wrap=True)
        case "left":
            line = Text(f"left      {key}: {visible(outcome.reason)}", style="yellow")
            out.print(line, soft_wrap=True)
