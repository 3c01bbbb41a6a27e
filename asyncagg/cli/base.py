"""What the commands share: the options, and how work is run and shown."""

from __future__ import annotations

import inspect
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from typing import Annotated, Any, TypeVar

import anyio
import orjson
import typer
from anyio.abc import TaskStatus
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from asyncagg.errors import AsyncaggError
from asyncagg.job.outcome import RunReport
from asyncagg.runtime import logs
from asyncagg.runtime.loops import loop_factory
from asyncagg.runtime.tasks import task_group
from asyncagg.settings import Setting, Settings, all_settings, from_environment, unknown_variables
from asyncagg.windows import parse_time

__all__ = (
    "Command",
    "JsonOption",
    "configure_logs",
    "err",
    "execute",
    "out",
    "print_json",
    "print_report",
    "run_async",
    "spinner",
    "time_option",
    "visible",
    "with_settings",
)

T = TypeVar("T")

_SETTINGS = "Settings (each is a variable too: --window-by is ASYNCAGG_WINDOW_BY)"

_PIPE_WIDTH = 10_000
"""A pipe has no width: a table that goes into one is not cut to that of some terminal."""


_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
"""A key may hold them; a terminal would obey."""


class _Console(Console):
    """A console that takes what is printed for text: no markup, no escapes, no width in a pipe."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False)
        if not self.is_terminal:
            self.width = _PIPE_WIDTH

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment  # of a progress bar
            else:
                yield Segment(segment.text.translate(_CONTROLS), segment.style)


out = _Console()
err = _Console(stderr=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document, for machines.")]


def time_option(name: str, told: str) -> Any:
    """Return an option whose value is a moment in UTC; ``told`` is its help."""

    def moment(text: str) -> datetime:
        return parse_time(text, name)

    return typer.Option(name, help=told, metavar="TIME", parser=moment)


def with_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the store and an option for every setting; it receives their `Settings`."""
    parameters = dict(inspect.signature(command, eval_str=True).parameters)
    store = parameters["settings"].replace(name="store", default=None, annotation=_store_argument())
    parameters = {"store": store} | {n: each for n, each in parameters.items() if n != "settings"}
    options = {setting.name: setting for setting in all_settings() if setting.name != "store"}

    def wrapped(**given: Any) -> Any:
        values = {name: given.pop(name) for name in ("store", *options)}
        for name in unknown_variables(os.environ):
            err.print(f"warning: {name} is no setting, and does nothing; all are in --help")
        return command(settings=from_environment(os.environ, **values), **given)

    for setting in options.values():
        option = typer.Option(
            setting.option,
            help=_help_of(setting),
            show_default=False,
            metavar=setting.unit.upper() or "TEXT",
            rich_help_panel=_SETTINGS,
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


def _help_of(setting: Setting) -> str:
    default = "none" if setting.default in (None, "") else setting.default
    # That a text accepts any text goes without saying.
    accepted = "" if setting.kind is str else f"{setting.accepted}; "
    return f"{setting.description} [{accepted}default: {default}]"


class Command(TyperCommand):
    """A command whose help tells its own options first, then the settings that all have."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each kind of parameter, with those of the command first."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for each in self.get_params(ctx):
            record = each.get_help_record(ctx)
            if record is not None:
                panel = getattr(each, "rich_help_panel", None) or "Options"
                name = "Arguments" if each.param_type_name == "argument" else panel
                sections.setdefault(name, []).append(record)
        for name in sorted(sections, key=("Arguments", "Options", _SETTINGS).index):
            with formatter.section(name):
                formatter.write_dl(sections[name])


def _store_argument() -> Any:
    told = "s3://bucket[/prefix] or a directory; default: ASYNCAGG_STORE."
    return Annotated[str | None, typer.Argument(help=told, metavar="STORE")]


def run_async(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run async work to its end; what signals do to it is its own business."""
    return anyio.run(work, backend_options={"loop_factory": loop_factory()})


def execute(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run async work to its end; Ctrl-C and SIGTERM cancel it cleanly, with 130 or 143."""
    stopped_by: list[signal.Signals] = []

    async def supervised() -> T:
        try:
            async with _cancelled_by_signals(stopped_by):
                return await work()
        except AsyncaggError:
            # A request that fails in the moment of the signal is not tried again.
            if not stopped_by:
                raise
        raise typer.Exit(128 + stopped_by[0])

    return run_async(supervised)


@asynccontextmanager
async def _cancelled_by_signals(stopped_by: list[signal.Signals]) -> AsyncIterator[None]:
    async with task_group() as group:

        async def watch(*, task_status: TaskStatus[None]) -> None:
            with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
                task_status.started()
                async for number in received:
                    err.print(f"stopping on {number.name}: nothing is lost, run it again to go on")
                    stopped_by.append(number)
                    group.cancel_scope.cancel()

        await group.start(watch)
        yield
        group.cancel_scope.cancel()


def configure_logs(settings: Settings, *, json: bool) -> None:
    """Send the log to standard error, with an id for what is about to be done."""
    # The table tells people what the summary lines tell machines.
    quieter = "warning" if settings.log_level == "info" else settings.log_level
    logs.configure(settings.log_level if json else quieter, json=json)
    logs.correlation_id.set(uuid.uuid4().hex)


@contextmanager
def spinner(describe: Callable[[T], str]) -> Iterator[Callable[[T], None] | None]:
    """On a terminal, show how far it is, as ``describe`` says of what the work tells meanwhile."""
    if not err.is_terminal:
        yield None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("listing")
        yield lambda told: bar.update(task, description=describe(told))


def print_json(document: Any) -> None:
    """Print a document in one line, at once."""
    sys.stdout.write(orjson.dumps(document).decode() + "\n")
    sys.stdout.flush()


def visible(text: str) -> str:
    """Return a text whose every character shows as itself, or as an escape: none steers."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii")
        for each in text
    )


def print_report(report: RunReport) -> None:
    """Print what a run did, window by window."""
    if report.windows:
        out.print(_table(report))
    else:
        out.print(f"no window that ended by {report.at} has new run files")
    for window, reason in report.failures.items():
        out.print(Text(f"window {window} failed: {reason}", style="red"))
    notes = []
    if report.waiting:
        notes.append(f"{report.waiting} files wait for their window to end")
    if report.ignored:
        notes.append(f"{report.ignored} keys are no run files")
    if not report.complete:
        notes.append("time ran out before the whole inbox was listed: run again to go on")
    if notes:
        out.print("; ".join(notes))


def _table(report: RunReport) -> Table:
    table = Table(title=f"windows that ended by {report.at}")
    table.add_column("window", no_wrap=True)
    names = ("counted", "late", "quarantined", "deferred", "left", "archived")
    for name in ("rev.", *names):
        table.add_column(name, justify="right", overflow="fold")
    for each in report.windows.values():
        numbers = [str(getattr(each.tally, name)) for name in names]
        table.add_row(each.window, str(each.revision or "-"), *numbers)
    return table
