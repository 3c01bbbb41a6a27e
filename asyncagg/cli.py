"""The command line: a thin face over the pipeline."""

from __future__ import annotations

import inspect
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import anyio
import msgspec
import orjson
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from asyncagg import logs
from asyncagg.errors import AsyncaggError, UsageError
from asyncagg.limits import Deadline, task_group
from asyncagg.outcome import RunReport
from asyncagg.pipeline import run as run_pipeline
from asyncagg.sample import SampleTotals, last_windows, samples, write_samples
from asyncagg.settings import Settings, described, from_environment
from asyncagg.store.opening import open_store
from asyncagg.windows import parse_time

__all__ = ("app", "main")

T = TypeVar("T")

_out = Console()
_err = Console(stderr=True)

app = typer.Typer(
    help="Aggregate many small JSON run files on S3, or in a directory, and archive them: "
    "each counted once, none lost.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document, for machines.")]


def _with_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the store and an option for every setting; it receives their `Settings`."""
    parameters = dict(inspect.signature(command, eval_str=True).parameters)
    store = parameters["settings"].replace(name="store", default=None, annotation=_store_argument())
    parameters = {"store": store} | {n: each for n, each in parameters.items() if n != "settings"}
    options = {setting.name: setting for setting in described() if setting.name != "store"}

    def wrapped(**given: Any) -> Any:
        values = {name: given.pop(name) for name in ("store", *options)}
        return command(settings=from_environment(os.environ, **values), **given)

    for setting in options.values():
        help_text = f"{setting.description} [{setting.accepted}"
        help_text += f", {setting.unit}]" if setting.unit else "]"
        option = typer.Option(
            setting.option,
            help=help_text,
            show_default="none" if setting.default in (None, "") else str(setting.default),
            metavar=setting.unit.upper() or "TEXT",
            rich_help_panel="Settings",
        )
        parameters[setting.name] = inspect.Parameter(
            setting.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[str | None, option],
        )
    ordered = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters.values()]
    # Typer reads both.
    wrapped.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {each.name: each.annotation for each in ordered}
    wrapped.__doc__ = command.__doc__
    wrapped.__name__ = command.__name__
    return wrapped


def _store_argument() -> Any:
    told = "s3://bucket[/prefix] or a directory; default: of the environment."
    return Annotated[str | None, typer.Argument(help=told, metavar="STORE")]


def _execute(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run async work to its end; Ctrl-C and SIGTERM cancel it cleanly."""

    async def supervised() -> T:
        async with _cancelled_by_signals():
            return await work()
        raise typer.Exit(1)

    return anyio.run(supervised, backend_options={"use_uvloop": _has_uvloop()})


@asynccontextmanager
async def _cancelled_by_signals() -> AsyncIterator[None]:
    async with task_group() as group:

        async def watch() -> None:
            with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
                async for number in received:
                    _err.print(f"stopping on {number.name}: nothing is lost, run it again to go on")
                    group.cancel_scope.cancel()

        group.start_soon(watch)
        yield
        group.cancel_scope.cancel()


def _has_uvloop() -> bool:
    try:
        import uvloop  # noqa: F401, PLC0415 - an extra
    except ImportError:
        return False
    return True


@app.command()
@_with_settings
def run(
    *,
    settings: Settings,
    at: Annotated[
        str | None,
        typer.Option(help="Settle the windows that ended by then; default: now.", metavar="TIME"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only look, change nothing.")] = False,
    json: JsonOption = False,
) -> None:
    """Settle every window that has ended: count its new run files, then archive them.

    Examples:
      asyncagg run ./data --window-by name

      asyncagg run s3://matching-out-runs --at 2025-10-21T14:00:00Z --json
    """
    moment = None if at is None else parse_time(at, "--at")

    async def work() -> RunReport:
        async with open_store(settings) as opened:
            with _progress() as told:
                return await run_pipeline(
                    opened,
                    settings,
                    at=moment,
                    deadline=Deadline.after(settings.max_seconds),
                    dry_run=dry_run,
                    progress=told,
                )

    logs.configure(settings.log_level if json else _quieter(settings.log_level), json=json)
    logs.correlation_id.set(uuid.uuid4().hex)
    report = _execute(work)
    if json:
        _print_json(report.as_dict())
    else:
        _print_report(report)
    raise typer.Exit(report.exit_code)


def _quieter(level: str) -> str:
    """The table tells people what the summary lines tell machines."""
    return "warning" if level == "info" else level


@app.command()
@_with_settings
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

    totals = _execute(work)
    if json:
        _print_json(msgspec.to_builtins(totals))
    else:
        _out.print(
            f"wrote {totals.files} run files, {totals.bad} of them bad, {totals.bytes} bytes; "
            f"now: asyncagg run {settings.store} --window-by name"
        )


class Place(StrEnum):
    """Where the demo runs."""

    S3 = "s3"
    DIRECTORY = "directory"


@app.command()
def demo(
    *,
    on: Annotated[Place, typer.Option(help="A local S3 server (moto), or a directory.")] = Place.S3,
    files: Annotated[int, typer.Option(help="How many run files.", min=10)] = 1000,
    seed: Annotated[int, typer.Option(help="The same seed shows the same numbers.")] = 0,
    json: JsonOption = False,
) -> None:
    """Show the whole job on sample files, on a store of its own that is removed at the end.

    Examples:
      asyncagg demo

      asyncagg demo --on directory --json
    """
    from asyncagg.demo import run_demo  # noqa: PLC0415 - moto is an extra

    logs.configure("error", json=False)
    shown = _execute(lambda: run_demo(on_s3=on is Place.S3, files=files, seed=seed))
    if json:
        _print_json(shown.as_dict())
        return
    _out.print(shown.headline)
    _print_report(shown.first)
    _out.print("One file came late; the next run merges it into its own window:")
    _print_report(shown.second)
    _out.print(_totals_table(shown.totals))
    _out.print(_matches_table(shown.top_matches))
    _out.print(_counts_table(shown.objects))


def _print_json(document: Any) -> None:
    sys.stdout.write(orjson.dumps(document).decode() + "\n")


def _print_report(report: RunReport) -> None:
    table = Table(title=f"windows that ended by {report.at}")
    table.add_column("window", no_wrap=True)
    names = ("counted", "late", "quarantined", "deferred", "left", "archived")
    for name in ("rev.", *names):
        table.add_column(name, justify="right", overflow="fold")
    for each in report.windows.values():
        numbers = [str(getattr(each.tally, name)) for name in names]
        table.add_row(each.window, str(each.revision or "-"), *numbers)
    _out.print(table)
    for window, reason in report.failures.items():
        _out.print(Text(f"window {window} failed: {reason}", style="red"))
    notes = []
    if report.waiting:
        notes.append(f"{report.waiting} files wait for their window to end")
    if report.ignored:
        notes.append(f"{report.ignored} keys are no run files")
    if not report.complete:
        notes.append("time ran out before the whole inbox was listed: run again to go on")
    if notes:
        _out.print("; ".join(notes))


def _totals_table(totals: dict[str, Any]) -> Table:
    table = Table(title="totals of the aggregates")
    table.add_column("field")
    table.add_column("sum", justify="right")
    for name, value in totals.items():
        table.add_row(name, f"{value:,}")
    return table


def _matches_table(matches: list[dict[str, Any]]) -> Table:
    table = Table(title="top matches")
    for name in ("score", "title", "from"):
        table.add_column(name)
    for match in matches:
        cells = (match.get("match_score", 0), match.get("title", ""), match["source_key"])
        table.add_row(*(Text(str(cell)) for cell in cells))
    return table


def _counts_table(objects: dict[str, int]) -> Table:
    table = Table(title="objects in the store")
    table.add_column("prefix")
    table.add_column("objects", justify="right")
    for prefix, count in objects.items():
        table.add_row(prefix, f"{count:,}")
    return table


@contextmanager
def _progress() -> Iterator[Callable[[RunReport], None] | None]:
    """Show how far a run is, on a terminal."""
    if not _err.is_terminal:
        yield None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=_err, transient=True) as bar:
        task = bar.add_task("listing")

        def told(report: RunReport) -> None:
            total = report.total
            bar.update(task, description=f"{total.counted:,} counted, {total.archived:,} archived")

        yield told


def main() -> None:
    """Run the command line; a user's mistake is one sentence, never a traceback."""
    try:
        app()
    except AsyncaggError as error:
        _err.print(Text(f"error: {error}"), soft_wrap=True)
        sys.exit(2 if isinstance(error, UsageError) else 1)
