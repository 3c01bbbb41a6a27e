"""``asyncagg verify``: check the aggregates against their files, and repair them safely."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Annotated

import typer
from rich.text import Text

from asyncagg.cli import base
from asyncagg.errors import UsageError
from asyncagg.job.context import JobContext
from asyncagg.settings import Settings
from asyncagg.verify import verify as verify_all
from asyncagg.verify.findings import FindingKind, Plan, RepairReport, VerifyReport
from asyncagg.verify.repair import repair as repair_found
from asyncagg.windows import check_interval

_SHOWN = 3
"""How many examples of a kind the table shows; --json has more."""


@base.with_settings
def verify(
    *,
    settings: Settings,
    since: base.SinceOption = None,
    until: base.UntilOption = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Show what can be repaired safely, ask, and do it.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --repair: do not ask.")] = False,
    allow_empty: base.AllowEmptyOption = False,
    json: base.JsonOption = False,
) -> None:
    """Check that every aggregate is right and no file is lost.

    Every aggregate is recomputed from the files that it names, and the files in the inbox, the
    archive and quarantine are compared with the aggregates. The job may run meanwhile. The exit
    code is 0 if there are no findings, 3 if the only finding is that some objects could not be
    read, else 1. It is also 1 if there is nothing to verify: the place may be mistyped.

    --repair finishes moves, replaces aggregates that differ from their files, and rebuilds damaged
    ones from their files, but only where nothing is lost by it. Then it checks again what it has
    repaired. The exit code is 0 if there are no findings left.

    Examples:
      asyncagg verify ./data

      asyncagg verify s3://matching-out-runs --since 2025-10-21T00:00:00Z --json

      asyncagg verify s3://matching-out-runs --repair
    """
    selected = None if since is None and until is None else check_interval(since, until).holds
    if yes and not repair:
        raise UsageError("--yes without --repair: expected both, or neither to only look")
    if repair and not yes and not sys.stdin.isatty():
        raise UsageError("--repair asks before it changes anything: expected --yes or a terminal")

    async def look(context: JobContext) -> VerifyReport:
        async with _progress(json=json) as note:
            return await verify_all(context, wanted=selected, progress=note)

    found = base.execute_with_store(settings, look, json=json)
    prefixes = ("aggregate_prefix", "archive_prefix", "quarantine_prefix")
    base.check_found(
        settings,
        *(getattr(settings, name) for name in prefixes),
        found=not found.empty,
        allow_empty=allow_empty,
        filtered=selected is not None,
    )
    if not json:
        _print(found, "findings")
    if not repair or not found.plan or not _confirmed(found.plan, yes=yes, json=json):
        if json:
            base.print_json(found.as_dict())
        raise typer.Exit(found.exit_code)

    async def fix(context: JobContext) -> RepairReport:
        async with _progress(json=json) as note:
            return await repair_found(context, found, wanted=selected, progress=note)

    base.finish(base.execute_with_store(settings, fix, json=json), _print_repaired, json=json)


def _confirmed(plan: Plan, *, yes: bool, json: bool) -> bool:
    """Print the plan, and ask whether to do it."""
    for line in _planned(plan):
        base.print_text(line, to=base.err if json else base.out)
    return yes or typer.confirm("Repair this?", err=True)


def _planned(plan: Plan) -> Iterator[str]:
    if plan.moves:
        yield f"to repair: {plan.moves:,} files moved out of the inbox"
    if plan.packs:
        yield f"to repair: {plan.packs:,} packs removed, whose files are all counted elsewhere"
    for verb, windows in (("replaced", plan.rewrite), ("rebuilt", plan.rebuild)):
        if windows:
            more = f" and {len(windows) - 10:,} more" if len(windows) > 10 else ""
            yield f"to repair: aggregates {verb}: {', '.join(windows[:10])}{more}"


def _print(report: VerifyReport, title: str) -> None:
    counts = report.counts
    base.out.print(
        f"{base.number_of(counts.aggregates, 'aggregate')} with "
        f"{base.number_of(counts.files, 'counted file')}; "
        f"{counts.archived:,} archived, {counts.quarantined:,} quarantined, "
        f"{counts.inbox:,} in the inbox"
    )
    base.print_table(
        [_row(report, kind) for kind in FindingKind],
        *("check", "found", "examples"),
        title=title,
        total=("total", sum(each.count for each in report.findings.values()), ""),
    )
    if report.ignored.count:
        keys = [each.key for each in report.ignored.examples[:_SHOWN]]
        base.print_text(base.describe_ignored(report.ignored.count, keys))
    if not report.complete:
        base.out.print("time ran out before everything was checked")
    if report.exit_code == 0:
        base.out.print("no problems found: every aggregate matches its files, and no file is lost")


def _row(report: VerifyReport, kind: FindingKind) -> tuple[str, int | str, Text]:
    name, finding = kind.replace("_", " "), report.findings.get(kind)
    if finding is not None:
        examples = "\n".join(f"{each.key!r}: {each.detail}" for each in finding.examples[:_SHOWN])
        return name, finding.count, Text(examples, style="red")
    if kind in report.not_judged:
        return name, "?", Text(f"not judged: {report.not_judged[kind]}")
    return name, 0, Text()


def _print_repaired(report: RepairReport) -> None:
    base.out.print(f"{report.moved:,} files moved out of the inbox")
    if report.removed:
        base.out.print(f"{report.removed:,} packs removed")
    for verb, windows in (("replaced", report.rewritten), ("rebuilt", report.rebuilt)):
        if windows:
            base.out.print(f"{len(windows):,} aggregates {verb}")
    for name, reason in report.failures.items():
        base.print_text(f"{name}: not repaired: {reason}", style="red")
    _print(report.after, "findings after the repair, in what was repaired")
    if not report.before.repairable:
        base.out.print("the other findings cannot be repaired safely and are unchanged")


@asynccontextmanager
async def _progress(*, json: bool) -> AsyncIterator[Callable[[VerifyReport], None]]:
    async with base.progress("files read", json=json) as bar:

        def note(report: VerifyReport) -> None:
            bar.done = report.counts.files
            bar.note = base.number_of(report.counts.aggregates, "aggregate")

        yield note
