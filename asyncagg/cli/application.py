"""The application: every command there is."""

from __future__ import annotations

import typer

from asyncagg.cli import backfill, demo, rollup, run, sample, watch

__all__ = ("app",)

app = typer.Typer(
    help="Aggregate many small JSON run files on S3, or in a directory, and archive them: "
    "each counted once, none lost.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

for _command in (run.run, watch.watch, backfill.backfill, rollup.rollup, sample.sample, demo.demo):
    app.command()(_command)
