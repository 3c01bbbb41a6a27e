"""``asyncagg check``: check run files before they are uploaded."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import AsyncIterator
from typing import Annotated

import typer
from anyio import to_thread

from asyncagg.check import Checked, Verdict, check_content
from asyncagg.check import check as check_path
from asyncagg.cli import base
from asyncagg.errors import NotFoundError
from asyncagg.settings import Settings, from_environment

_STDIN = "-"


def check(
    *,
    paths: Annotated[
        list[str],
        typer.Argument(help="Files, folders, or - for standard input.", metavar="FILE..."),
    ],
    json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON per file, for machines.")
    ] = False,
) -> None:
    """Check run files before they are uploaded.

    A file is read as a run reads it, and what would become of it is printed: counted, and in which
    window, if its name says that; quarantined, or ignored, and why. Nothing is changed. The exit
    code is 3 if a file would not be counted. The window and the limits are those of the variables
    ASYNCAGG_WINDOW_MINUTES, ASYNCAGG_WINDOW_BY and ASYNCAGG_MAX_FILE_BYTES.

    Examples:
      asyncagg check 20251021t1356Z_run-1.json ./outbox

      asyncagg check - --json < run-1.json
    """
    settings = from_environment(os.environ)
    base.configure_logs(settings, json=json)
    counts = Counter[Verdict]()

    async def work() -> None:
        for path in paths:
            async for each in _checked(path, settings):
                counts[each.verdict] += 1
                if json:
                    base.print_json({"event": "file", **each.as_dict()})
                else:
                    _print(each)

    base.execute(work)
    if not counts:
        looked = ", ".join(map(repr, paths))
        raise NotFoundError(f"nothing found: looked in {looked}; expected folders with files")
    code = 0 if counts.keys() == {Verdict.COUNTED} else 3
    numbers = {each.value: counts[each] for each in Verdict}
    if json:
        base.print_json({"event": "done", **numbers, "exit_code": code})
    else:
        base.out.print(", ".join(f"{number:,} {name}" for name, number in numbers.items()))
    raise typer.Exit(code)


async def _checked(path: str, settings: Settings) -> AsyncIterator[Checked]:
    if path != _STDIN:
        async for each in check_path(path, settings):
            yield each
        return
    # One byte more than may be: enough to see that it is too large.
    data = await to_thread.run_sync(sys.stdin.buffer.read, settings.max_file_bytes + 1)
    yield await check_content(data, settings)


def _print(each: Checked) -> None:
    if each.verdict is Verdict.COUNTED:
        window = f"in window {each.window}" if each.window else "in the window of its upload"
        base.print_text(f"counted      {base.visible(each.file)}  {window}")
    else:
        text = f"{each.verdict:11}  {base.visible(each.file)}: {base.visible(each.reason)}"
        base.print_text(text, style="red")
