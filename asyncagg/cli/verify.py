"""``asyncagg verify``: the self-proving report, and safe repairs of what it finds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from asyncagg.cli.base import (
    JsonOption,
    configure_logs,
    err,
    execute,
    out,
    print_json,
    spinner,
    time_option,
    with_settings,
)
from asyncagg.errors import UsageError
from asyncagg.job.context import JobContext
from asyncagg.model import Window
from asyncagg.settings import Settings
from asyncagg.store.opening import open_store
from asyncagg.verify import verify as verify_all
from asyncagg.verify.findings import FindingKind, Plan, RepairReport, VerifyReport
from asyncagg.verify.repair import repair as repair_found
from asyncagg.windows import check_interval

__all__ = ("verify",)

_SHOWN = 3
"""Examples of a kind in the table; --json has more."""


@with_settings
def verify(
    *,
    settings: Settings,
    since: Annotated[
        datetime | None, time_option("--since", "Only windows that start then or later.")
    ] = None,
    until: Annotated[
        datetime | None, time_option("--until", "Only windows that end by then.")
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Show what can be repaired safely, ask, and do it.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --repair: do not ask.")] = False,
    json: JsonOption = False,
) -> None:
    """Prove that the aggregates are right and that nothing is lost.

    Every aggregate is computed again from the files that it names, and what stands in the inbox,
    the archive and quarantine is held against what the aggregates name. Runs may go on meanwhile.
    The exit code is 0 when all holds, and 1 when anything was found.

    --repair finishes moves, replaces aggregates that differ from their files, and makes damaged
    ones anew from their files: only where nothing is lost by it, and what was repaired is verified
    again. The exit code is 0 if all holds then.

    Examples:
      asyncagg verify ./data

      asyncagg verify s3://matching-out-runs --since 2025-10-21T00:00:00Z --json

      asyncagg verify s3://matching-out-runs --repair
    """
    wanted = _wanted(since, until)
    _check(repair=repair, yes=yes)
    configure_logs(settings, json=json)

    async def look() -> VerifyReport:
        async with open_store(settings) as store:
            with spinner(_progress) as told:
                return await verify_all(JobContext(store, settings), wanted=wanted, progress=told)

    found = execute(look)
    if not json:
        _print(found, "what was found")
    if not repair or not found.plan:
        if json:
            print_json(found.as_dict())
        raise typer.Exit(found.exit_code)
    if not _agreed(found.plan, yes=yes, json=json):
        if json:
            print_json(found.as_dict())
        raise typer.Exit(1)

    async def mend() -> RepairReport:
        async with open_store(settings) as store:
            with spinner(_progress) as told:
                context = JobContext(store, settings)
                return await repair_found(context, found, wanted=wanted, progress=told)

    done = execute(mend)
    if json:
        print_json(done.as_dict())
    else:
        _print_repaired(done)
    raise typer.Exit(done.exit_code)


def _wanted(since: datetime | None, until: datetime | None) -> Callable[[Window], bool] | None:
    if since is None and until is None:
        return None
    return check_interval(since, until).holds


def _check(*, repair: bool, yes: bool) -> None:
    if yes and not repair:
        raise UsageError("--yes without --repair: expected both, or neither to only look")
    if repair and not yes and not sys.stdin.isatty():
        raise UsageError(
            "--repair asks before it changes anything, and nobody can answer here: expected --yes "
            "too, or a terminal"
        )


def _agreed(plan: Plan, *, yes: bool, json: bool) -> bool:
    """Show what is to be repaired, and ask."""
    shown = err if json else out
    for line in _planned(plan):
        shown.print(Text(line))
    return yes or typer.confirm("Repair this?", err=True)


def _planned(plan: Plan) -> Iterator[str]:
    if plan.moves:
        yield f"to repair: {plan.moves:,} files moved out of the inbox"
    for verb, windows in (("replaced", plan.rewrite), ("made anew", plan.rebuild)):
        if windows:
            more = f" and {len(windows) - 10:,} more" if len(windows) > 10 else ""
            yield f"to repair: aggregates {verb}: {', '.join(windows[:10])}{more}"


def _print(report: VerifyReport, title: str) -> None:
    counts = report.counts
    out.print(
        f"{counts.aggregates:,} aggregates count {counts.files:,} files; "
        f"{counts.archived:,} archived, {counts.quarantined:,} quarantined, "
        f"{counts.inbox:,} in the inbox"
    )
    table = Table(title=title)
    table.add_column("check", no_wrap=True)
    table.add_column("found", justify="right")
    table.add_column("such as", overflow="fold")
    for kind in FindingKind:
        name, finding = kind.replace("_", " "), report.findings.get(kind)
        if finding is not None:
            examples = finding.examples[:_SHOWN]
            told = "\n".join(f"{each.key!r}: {each.detail}" for each in examples)
            table.add_row(name, f"{finding.count:,}", Text(told, style="red"))
        elif kind in report.not_judged:
            table.add_row(name, "?", Text(f"not judged: {report.not_judged[kind]}"))
        else:
            table.add_row(name, "0", "")
    out.print(table)
    if not report.complete:
        out.print("time ran out before everything was looked at")
    if report.exit_code == 0:
        out.print("all is well: the aggregates say what their files say, and nothing is lost")


def _print_repaired(report: RepairReport) -> None:
    out.print(f"{report.moved:,} files moved out of the inbox")
    for verb, windows in (("replaced", report.rewritten), ("made anew", report.rebuilt)):
        if windows:
            out.print(Text(f"{len(windows):,} aggregates {verb}"))
    for name, reason in report.failures.items():
        out.print(Text(f"{name}: not repaired: {reason}", style="red"))
    _print(report.after, "what is found now, where something was repaired")
    if not report.before.repairable:
        out.print("what could not be repaired is left as it is")


def _progress(report: VerifyReport) -> str:
    return f"{report.counts.aggregates:,} aggregates, {report.counts.files:,} files read"
