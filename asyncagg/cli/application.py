"""The application: all commands, and the options that they share."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata
from typing import Annotated, Any

import typer

from asyncagg.cli import (
    archive,
    backfill,
    check,
    demo,
    doctor,
    export,
    quarantine,
    report,
    rollup,
    run,
    sample,
    verify,
    watch,
)
from asyncagg.cli.base import Command

EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but files were deferred, left or "
    "quarantined; 130 and 143 stopped by Ctrl-C and SIGTERM."
)
"""The last paragraph of the help of a command that has no exit codes of its own."""

# click's `UsageError`; typer brings a click of its own.
WrongUsage: Any = typer.BadParameter.__base__

app = typer.Typer(
    help="Aggregate many small JSON run files on S3 or in a directory, and archive them: "
    "each is counted once, and none is lost.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

for _command in (
    run.run,
    watch.watch,
    backfill.backfill,
    rollup.rollup,
    verify.verify,
    report.report,
    export.export,
    doctor.doctor,
    check.check,
    sample.sample,
    demo.demo,
):
    app.command(cls=Command)(_command)
app.add_typer(archive.archive, name="archive")
app.add_typer(quarantine.quarantine, name="quarantine")


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it so
    if wanted:
        typer.echo(f"asyncagg {metadata.version('asyncagg')}")
        raise typer.Exit


@app.callback()
def _common(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; also after a command.")
    ] = False,
) -> None:
    pass


def application() -> Any:
    """Return the application as a click command, with the help of all commands completed."""
    whole = typer.main.get_command(app)
    for _, command in commands(whole):
        command.help = _EXAMPLES.sub(_kept_as_lines, command.help or "")
        if "Exit codes:" not in command.help:
            command.epilog = EXIT_CODES
    return whole


def commands(command: Any, *names: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the names and the click command of every command, without the groups."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield names, command
        return
    for name, each in inner.items():
        yield from commands(each, *names, name)


_EXAMPLES = re.compile(r"^Examples:\n((?:[ ]+\S.*(?:\n|\Z)|\n)+)", re.MULTILINE)


def _kept_as_lines(found: re.Match[str]) -> str:
    """Mark the examples so that click does not wrap them: with a backspace on a line."""
    lines = [f"  {line.strip()}" for line in found[1].splitlines() if line.strip()]
    return "\n".join(["\b", "Examples:", *lines, "", ""])
