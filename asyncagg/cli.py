"""The command line: a thin face over the pipeline."""

from __future__ import annotations

import inspect
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

import anyio
import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from asyncagg import logs
from asyncagg.errors import AsyncaggError, UsageError
from asyncagg.limits import Deadline
from asyncagg.outcome import RunReport
from asyncagg.pipeline import run as run_pipeline
from asyncagg.sample import last_windows, samples, write_samples
from asyncagg.settings import Settings, described, from_environment
from asyncagg.store.opening import open_store
from asyncagg.windows import parse_time

__all__ = ("app", "main")

T = TypeVar("T")

app = typer.Typer(
    help="Aggregate many small JSON run files on S3, or in a directory, and archive them: "
    "each counted once, none lost.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

StoreArgument = Annotated[
    str, typer.Argument(help="s3://bucket[/prefix] or a directory.", metavar="STORE")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document, for machines.")]


def _with_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command an option for every setting; it receives the `Settings` they make."""
    parameters = dict(inspect.signature(command).parameters)
    parameters.pop("settings")
    options = {setting.name: setting for setting in described() if setting.name != "store"}

    def wrapped(**given: Any) -> Any:
        values = {name: given.pop(name) for name in options}
        settings = from_environment(os.environ, store=given.get("store"), **values)
        return command(settings=settings, **given)

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
    wrapped.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]  # typer reads it
    wrapped.__doc__ = command.__doc__
    wrapped.__name__ = command.__name__
    return wrapped


def _execute(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run async work to its end; Ctrl-C and SIGTERM cancel it cleanly."""

    async def supervised() -> T:
        async with _cancelled_by_signals():
            return await work()
        raise typer.Exit(1)

    return anyio.run(supervised, backend_options={"use_uvloop": _has_uvloop()})


@asynccontextmanager
async def _cancelled_by_signals() -> AsyncIterator[None]:
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
                async for number in received:
                    print(f"stopping: {number.name}; nothing is lost", file=sys.stderr)
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
