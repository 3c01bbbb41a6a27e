"""The command line: a thin face over the library, one module a command."""

from __future__ import annotations

import sys

import typer
from rich.text import Text

from asyncagg.cli import backfill, demo, rollup, run, sample
from asyncagg.cli.base import err
from asyncagg.errors import AsyncaggError, UsageError

__all__ = ("app", "main")

app = typer.Typer(
    help="Aggregate many small JSON run files on S3, or in a directory, and archive them: "
    "each counted once, none lost.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

for _command in (run.run, backfill.backfill, rollup.rollup, sample.sample, demo.demo):
    app.command()(_command)


def main() -> None:
    """Run the command line; a user's mistake is one sentence, never a traceback."""
    try:
        app()
    except AsyncaggError as error:
        err.print(Text(f"error: {error}"), soft_wrap=True)
        sys.exit(2 if isinstance(error, UsageError) else 1)
