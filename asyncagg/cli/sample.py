"""``asyncagg sample``: write sample run files."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from asyncagg.cli import base
from asyncagg.job.context import JobContext
from asyncagg.sample import SampleTotals, last_windows, samples, write_samples
from asyncagg.settings import Settings


@base.with_settings
def sample(
    *,
    settings: Settings,
    files: Annotated[int, typer.Option(help="How many files.", min=1)] = 1000,
    windows: Annotated[int, typer.Option(help="Over how many past windows.", min=1)] = 1,
    bad_fraction: Annotated[
        float, typer.Option(help="Share of files that can never be counted.", min=0, max=1)
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="The same seed writes the same files.")] = 0,
    json: base.JsonOption = False,
) -> None:
    """Write realistic run files, to try things out.

    Their names start with times in windows that have just ended.

    Examples:
      asyncagg sample ./data --files 1000 --windows 3 --bad-fraction 0.01
    """
    if settings.store and "://" not in settings.store:
        base.create_folder(settings.store, "store")

    async def work(context: JobContext) -> SampleTotals:
        made = samples(
            files=files,
            windows=last_windows(windows, context.settings.window_minutes),
            prefix=context.settings.runs_prefix,
            bad_fraction=bad_fraction,
            seed=seed,
        )
        async with base.progress("files", json=json) as bar:
            bar.total, bar.is_final = files, True

            def note(totals: SampleTotals) -> None:
                bar.done = totals.files

            return await write_samples(
                context.store, made, workers=settings.concurrency, progress=note
            )

    totals = base.execute_with_store(settings, work, json=json)
    if json:
        base.print_json(msgspec.to_builtins(totals))
    else:
        base.print_text(
            f"wrote {base.number_of(totals.files, 'run file')}, {totals.bad:,} of them bad, "
            f"{totals.bytes:,} bytes; now: asyncagg run {settings.store}"
        )
