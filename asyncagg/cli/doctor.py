"""``asyncagg doctor``: what is wrong with a set-up, and what would mend it."""

from __future__ import annotations

import os

import orjson
import typer
from rich.table import Table
from rich.text import Text

from asyncagg.cli.base import (
    JsonOption,
    configure_logs,
    execute,
    out,
    print_json,
    visible,
    with_settings,
)
from asyncagg.doctor import diagnose
from asyncagg.doctor.checks import CheckStatus, Diagnosis
from asyncagg.settings import Settings

__all__ = ("doctor",)

_STYLES: dict[CheckStatus, str] = {
    "ok": "green",
    "warn": "yellow",
    "fail": "bold red",
    "skipped": "dim",
}


@with_settings
def doctor(*, settings: Settings, json: JsonOption = False) -> None:
    """Check a set-up: credentials, permissions and the store.

    Also region, endpoint, clock, guards and prefixes. For a directory: whether it may be used, and
    whether its file system does what is relied on. It changes nothing; two small objects of its own
    below the archive prefix are removed again. For permissions that are missing it prints the IAM
    policy that grants them, as the role of template.yaml has it.

    The exit code is 0 where all is well, warnings allowed, and 1 where something fails.

    Examples:
      asyncagg doctor s3://matching-out-runs

      asyncagg doctor ./data --json
    """
    configure_logs(settings, json=json)

    async def work() -> Diagnosis:
        return await diagnose(settings, environ=os.environ)

    diagnosis = execute(work)
    if json:
        print_json(diagnosis.as_dict())
    else:
        _print(diagnosis)
    raise typer.Exit(diagnosis.exit_code)


def _print(diagnosis: Diagnosis) -> None:
    table = Table(title=Text(f"examination of {diagnosis.store}"))
    table.add_column("check", overflow="fold")
    table.add_column("result", no_wrap=True)
    table.add_column("what was seen", overflow="fold")
    for each in diagnosis.checks:
        found = each.found
        result = Text(found.status, style=_STYLES[found.status])
        table.add_row(Text(each.name), result, Text(visible(found.told)))
    out.print(table)
    for each in diagnosis.checks:
        if each.found.advice:
            line = Text(
                f"{each.name}: {visible(each.found.advice)}", style=_STYLES[each.found.status]
            )
            out.print(line, soft_wrap=True)
    if diagnosis.policy is not None:
        out.print(Text("this policy grants what is missing:"))
        told = orjson.dumps(diagnosis.policy, option=orjson.OPT_INDENT_2).decode()
        out.print(Text(told), soft_wrap=True)
