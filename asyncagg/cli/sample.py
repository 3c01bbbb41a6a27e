"""``asyncagg sample``: run files to try things out on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from asyncagg.cli.base import JsonOption, execute, out, print_json, with_settings
from asyncagg.sample import SampleTotals, last_windows, samples, write_samples
from asyncagg.settings import Settings
from asyncagg.store.opening import open_store

__all__ = ("sample",)


@with_settings
def sample(
    *,
    settings: Settings,
    files: Annotated[int, typer.Option(help="How many files.", min=1)] = 1000,
    windows: Annotated[int, typer.Option(help="Spread over so many past windows.", min=1)] = 1,
    bad_fraction: Annotated[
        float, typer.Option(help="Share of files that can never be counted.", min=0, max=1)
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="The same seed writes the same files.")] = 0,
    json: JsonOption = False,
) -> None:
    """Write realistic run files, to try things out.

    Their names say that they are of windows that have just ended, so settle them with
    --window-by name.

    Examples:
      asyncagg sample ./data --files 1000 --windows 3 --bad-fraction 0.01
    """
    if settings.store and "://" not in settings.store:
        Path(settings.store).mkdir(parents=True, exist_ok=True)

    async def work() -> SampleTotals:
        spread = last_windows(windows, settings.window_minutes)
        made = samples(
            files=files,
            windows=spread,
            prefix=settings.runs_prefix,
            bad_fraction=bad_fraction,
            seed=seed,
        )
        async with open_store(settings) as opened:
            return await write_samples(opened, made, workers=settings.concurrency)

    totals = execute(work)
    if json:
        print_json(msgspec.to_builtins(totals))
    else:
        out.print(
            f"wrote {totals.files} run files, {totals.bad} of them bad, {totals.bytes} bytes; "
            f"now: asyncagg run {settings.store} --window-by name"
        )
