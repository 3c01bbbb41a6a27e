"""``asyncagg quarantine``: list, show and put back quarantined files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from asyncagg.cli import base
from asyncagg.errors import NotFoundError, UsageError
from asyncagg.job.context import JobContext
from asyncagg.quarantine.details import FileDetails, file_details
from asyncagg.quarantine.listing import QuarantinedFile, check_key, list_quarantined
from asyncagg.quarantine.restore import Restorer, RestoreResult
from asyncagg.settings import Settings
from asyncagg.store.opening import open_store
from asyncagg.windows import check_interval

quarantine = typer.Typer(
    help="List, show and put back files that could not be counted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@quarantine.command("list", cls=base.Command)
@base.with_settings
def list_files(
    *,
    settings: Settings,
    since: base.SinceOption = None,
    until: base.UntilOption = None,
    reason: Annotated[
        str, typer.Option(help="Only files whose reason contains this.", metavar="TEXT")
    ] = "",
    json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON per file, for machines.")
    ] = False,
) -> None:
    """List the quarantined files and the reasons.

    A line has the key, time, window and size of a file; the next line has the reason.

    A file that was overwritten in quarantine has lost its original time: only its name can give its
    window (with --window-by name). Else its window is shown as "-", and --since and --until are
    compared with the time of the overwriting.

    A file that cannot be read is listed with the error, whatever the filters; the exit code is
    then 3.

    Examples:
      asyncagg quarantine list ./data

      asyncagg quarantine list s3://bucket --since 2025-10-21T00:00:00Z --reason gzip --json
    """
    check_interval(since, until)
    unread = size = 0

    async def work(context: JobContext) -> int:
        nonlocal unread, size
        number = 0
        async for each in list_quarantined(context, since=since, until=until, reason=reason):
            number += 1
            size += each.file.size
            unread += bool(each.failure)
            if json:
                base.print_json(each.as_dict())
            else:
                _print_held(each)
        return number

    number = base.execute_with_store(settings, work, json=json)
    if not json:
        nothing = "no file matches" if since or until or reason else "no file is quarantined"
        base.out.print(
            f"total: {base.number_of(number, 'file')}, {size:,} bytes" if number else nothing
        )
    raise typer.Exit(3 if unread else 0)


@quarantine.command("show", cls=base.Command)
@base.with_settings
def show(
    *,
    settings: Settings,
    key: Annotated[
        str, typer.Argument(help="Its key, as `list` prints it.", metavar="KEY", show_default=False)
    ],
    json: base.JsonOption = False,
) -> None:
    """Show one file: why it is quarantined, and its content.

    Also its original key, and whether it would be accepted now: it is read again with today's
    version and settings. Only the first bytes of the content are shown, unzipped if it is gzip.

    Examples:
      asyncagg quarantine show ./data quarantine/20251021t1302Z_run.json
    """

    async def work(context: JobContext) -> FileDetails:
        try:
            return await file_details(context, key)
        except NotFoundError as error:
            raise NotFoundError(f"{error}; `asyncagg quarantine list` shows the keys") from error

    shown = base.execute_with_store(settings, work, json=json)
    if json:
        base.print_json(shown.as_dict())
    else:
        _print_shown(shown)


@quarantine.command("retry", cls=base.Command)
@base.with_settings
def retry(
    *,
    settings: Settings,
    keys: Annotated[
        list[str] | None,
        typer.Argument(help="Keys, as `list` prints them.", metavar="KEY", show_default=False),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every quarantined file that would be accepted now.")
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
        bool, typer.Option("--force", help="Put back even files that would not be accepted.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON per file, then the sums.")
    ] = False,
) -> None:
    """Put corrected files back into the inbox.

    The next run counts them. Correct a file with --replace, or overwrite it in quarantine; or it
    is accepted as it is by today's version and settings. Each file is read first, and stays in
    quarantine if it would not be accepted. It gets a new name in the inbox (x.json becomes
    x.putback-20251021t1300Z-0123456789abcdef.json), and is counted in the window in which it
    arrived. If it is stopped, run it again: no file is lost, and none is counted twice. On S3 it
    needs PutObject for the inbox and DeleteObject for quarantine, which the job itself does not
    have.

    The exit code is 3 if a file stays in quarantine.

    Examples:
      asyncagg quarantine retry ./data quarantine/20251021t1302Z_run.json --replace fixed.json

      asyncagg quarantine retry s3://bucket --all --max-file-bytes 1000000000 --json
    """
    chosen = list(dict.fromkeys(keys or ()))
    _check(settings, chosen, everything=everything, replacement=replacement)
    counts = Counter[str]()

    def note(result: RestoreResult) -> None:
        counts[result.status] += 1
        if json:
            base.print_json({"event": "file", **result.as_dict()})
        else:
            _print_outcome(result)

    async def work(context: JobContext) -> None:
        restorer = Restorer(context, force=force)
        if everything:
            await restorer.restore_all(note)
        elif replacement is not None:
            local = msgspec.structs.replace(settings, store=str(replacement.parent))
            async with open_store(local) as source:
                note(await restorer.replace(chosen[0], source, replacement.name))
        else:
            for key in chosen:
                note(await restorer.restore(key))
        restorer.refusals.check()

    base.execute_with_store(settings, work, json=json)
    code = 3 if counts["left"] else 0
    sums = {name: counts[name] for name in ("put_back", "counted", "left")}
    if json:
        base.print_json({"event": "done", **sums, "exit_code": code})
    else:
        base.out.print(
            f"{sums['put_back']:,} put back, {sums['counted']:,} counted before, "
            f"{sums['left']:,} not put back"
        )
    raise typer.Exit(code)


def _check(
    settings: Settings, keys: list[str], *, everything: bool, replacement: Path | None
) -> None:
    if not keys and not everything:
        raise UsageError("name at least one key, or pass --all")
    if keys and everything:
        raise UsageError(f"{len(keys)} keys and --all: name keys or pass --all, not both")
    if replacement is not None and len(keys) != 1:
        raise UsageError(f"--replace with {len(keys)} keys: expected one key")
    for key in keys:
        check_key(settings, key)


def _print_held(each: QuarantinedFile) -> None:
    window = each.window.name if each.window else "-"
    time = base.time_text(each.file.last_modified)
    base.print_entry(each.file.key, f"{time}  window {window}  {each.file.size:,} bytes")
    if each.failure:
        base.print_wrapped(f"not read: {base.visible(each.failure)}", style="red", indent="    ")
    else:
        base.print_wrapped(base.visible(each.reason) or "no reason is known", indent="    ")


def _print_shown(shown: FileDetails) -> None:
    _print_held(shown.quarantined)
    base.print_text(f"came from     {base.visible(shown.original_key)}")
    if shown.entry is None:
        base.print_text("aggregate     does not name it, or its window is not known")
    else:
        changed = shown.entry.get("etag") != shown.quarantined.file.etag
        version = "another version of it" if changed else "it"
        reason = base.visible(str(shown.entry.get("reason", "")))
        base.print_text(f"aggregate     names {version}: {reason}")
    answer = f"no: {base.visible(shown.reason_now)}" if shown.reason_now else "yes: use `retry`"
    base.print_text(f"accepted now  {answer}")
    base.print_text(f"first bytes of its {'unzipped ' if shown.unzipped else ''}content:")
    for line in shown.excerpt.decode("utf-8", "backslashreplace").rstrip("\n").split("\n"):
        base.print_text(f"    {base.visible(line)}")
    if len(shown.excerpt) < shown.quarantined.file.size and not shown.unzipped:
        base.print_text("    …")


def _print_outcome(outcome: RestoreResult) -> None:
    key = base.visible(outcome.key)
    match outcome.status:
        case "put_back":
            base.print_text(f"put back  {key}  as {base.visible(outcome.inbox_key)}")
        case "counted":
            base.print_text(f"counted   {key}  before: nothing to do")
        case "left":
            base.print_text(f"left      {key}: {base.visible(outcome.reason)}", style="yellow")
