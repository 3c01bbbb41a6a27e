"""``asyncagg doctor``: checks a set-up, and says how to fix it."""

from __future__ import annotations

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

_STYLES: dict[CheckStatus, str] = {
    "ok": "green",
    "warn": "yellow",
    "fail": "bold red",
    "skipped": "dim",
}


@with_settings
def doctor(*, settings: Settings, json: JsonOption = False) -> None:
    """Check a set-up: credentials, permissions and the store.

    For a bucket, it also checks region, endpoint, clock, guards and prefixes; for a directory, the
    permissions and the features of the file system. It changes nothing; the two small objects that
    it creates below the archive prefix are removed. If permissions are missing, it prints the IAM
    policy that grants them.

    The exit code is 1 if a check fails, and 0 otherwise, warnings included.

    Examples:
      asyncagg doctor s3://matching-out-runs

      asyncagg doctor ./data --json
    """
    configure_logs(settings, json=json)

    async def work() -> Diagnosis:
        return await diagnose(settings)

    diagnosis = execute(work)
    if json:
        print_json(diagnosis.as_dict())
    else:
        _print(diagnosis)
    raise typer.Exit(diagnosis.exit_code)


def _print(diagnosis: Diagnosis) -> None:
    table = Table(title=Text(f"checks of {diagnosis.store}"))
    table.add_column("check", overflow="fold")
    table.add_column("result", no_wrap=True)
    table.add_column("finding", overflow="fold")
    for name, result in diagnosis.results.items():
        status = Text(result.status, style=_STYLES[result.status])
        table.add_row(Text(name), status, Text(visible(result.detail)))
    out.print(table)
    for name, result in diagnosis.results.items():
        if result.advice:
            line = Text(f"{name}: {visible(result.advice)}", style=_STYLES[result.status])
            out.print(line, soft_wrap=True)
    if diagnosis.policy is not None:
        out.print(Text("this policy grants the missing permissions:"))
        policy = orjson.dumps(diagnosis.policy, option=orjson.OPT_INDENT_2).decode()
        out.print(Text(policy), soft_wrap=True)
