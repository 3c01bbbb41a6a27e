"""``asyncagg doctor``: checks a set-up, and says how to fix it."""

from __future__ import annotations

from typing import Annotated

import orjson
import typer
from rich.text import Text

from asyncagg.cli.base import (
    JsonOption,
    configure_logs,
    execute,
    out,
    print_json,
    print_table,
    print_wrapped,
    visible,
    with_settings,
)
from asyncagg.doctor import diagnose
from asyncagg.doctor.checks import CheckStatus, Diagnosis
from asyncagg.job.context import JobContext
from asyncagg.job.record import adopt_settings
from asyncagg.settings import Settings
from asyncagg.store.opening import open_store

_STYLES: dict[CheckStatus, str] = {
    "ok": "green",
    "warn": "yellow",
    "fail": "bold red",
    "skipped": "dim",
}


@with_settings
def doctor(
    *,
    settings: Settings,
    adopt: Annotated[
        bool,
        typer.Option(
            "--adopt", help="First make the given window and prefixes those of the store."
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Check a set-up: credentials, permissions and the store.

    For a bucket, it also checks region, endpoint, clock, guards and prefixes; for a directory, the
    permissions and the features of the file system. It changes nothing; the small objects that
    it creates below the archive prefix are removed. If permissions are missing, it prints the IAM
    policy that grants them.

    The store's record holds the window and the prefixes that its aggregates are made with. A run
    with others would count files twice, so it is refused. With --adopt the record is replaced,
    which needs an empty inbox and no unfinished backfill.

    The exit code is 1 if a check fails, and 0 otherwise, warnings included.

    Examples:
      asyncagg doctor s3://matching-out-runs

      asyncagg doctor ./data --json

      asyncagg doctor ./data --adopt --window-minutes 15
    """
    configure_logs(settings, json=json)

    async def work() -> Diagnosis:
        if adopt:
            async with open_store(settings) as store:
                await adopt_settings(JobContext(store, settings))
        return await diagnose(settings)

    diagnosis = execute(work)
    if json:
        print_json(diagnosis.as_dict())
    else:
        _print(diagnosis)
    raise typer.Exit(diagnosis.exit_code)


def _print(diagnosis: Diagnosis) -> None:
    print_table(
        [
            (name, Text(result.status, style=_STYLES[result.status]), visible(result.detail))
            for name, result in diagnosis.results.items()
        ],
        *("check", "result", "finding"),
        title=f"checks of {diagnosis.store}",
    )
    for name, result in diagnosis.results.items():
        if result.advice:
            print_wrapped(f"{name}: {visible(result.advice)}", style=_STYLES[result.status])
    if diagnosis.policy is not None:
        out.print(Text("this policy grants the missing permissions:"))
        policy = orjson.dumps(diagnosis.policy, option=orjson.OPT_INDENT_2).decode()
        out.print(Text(policy), soft_wrap=True)
