"""What the commands share: options, the settings, running the work, and output."""

from __future__ import annotations

import inspect
import logging
import os
import signal
import sys
import uuid
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn, Protocol, TypeVar

import anyio
import orjson
import typer
from anyio.abc import TaskStatus
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text
from typer.core import TyperCommand

from asyncagg.cli import tables
from asyncagg.cli.progress import Bar, shown
from asyncagg.errors import AsyncaggError, ConfigurationError, NotFoundError
from asyncagg.job.context import JobContext
from asyncagg.job.outcome import RunReport
from asyncagg.job.record import follow_record
from asyncagg.runtime import logs
from asyncagg.runtime.loops import loop_factory
from asyncagg.runtime.tasks import task_group
from asyncagg.settings import Settings, all_settings, from_environment, unknown_variables
from asyncagg.store.opening import open_store
from asyncagg.windows import parse_time

T = TypeVar("T")

_log = logging.getLogger(__name__)

_SETTINGS = "Settings (each is a variable too: --window-by is ASYNCAGG_WINDOW_BY)"

_PIPE_WIDTH = 10_000
"""The width of output that is not a terminal: tables are not cut."""

_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
"""Control characters that a key may contain and that a terminal must not get."""

# ------------------------------------------------------------------------------ options


def time_option(name: str, description: str) -> Any:
    """Return an option whose value is a time in UTC."""

    def parse(text: str) -> datetime:
        return parse_time(text, name)

    return typer.Option(name, help=description, metavar="TIME", parser=parse)


JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document, for machines.")]
SinceOption = Annotated[
    datetime | None, time_option("--since", "Only windows that start then or later.")
]
AllowEmptyOption = Annotated[
    bool, typer.Option("--allow-empty", help="Do not fail if there is nothing.")
]
UntilOption = Annotated[datetime | None, time_option("--until", "Only windows that end by then.")]
_StoreArgument = Annotated[
    str | None,
    typer.Argument(
        help="s3://bucket[/prefix] or a directory; default: ASYNCAGG_STORE.", metavar="STORE"
    ),
]


def with_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the store and an option per setting to a command, which is passed their `Settings`."""
    parameters = dict(inspect.signature(command, eval_str=True).parameters)
    store = parameters["settings"].replace(name="store", default=None, annotation=_StoreArgument)
    parameters = {"store": store} | {n: each for n, each in parameters.items() if n != "settings"}
    options = {setting.name: setting for setting in all_settings() if setting.name != "store"}

    def wrapped(**given: Any) -> Any:
        values = {name: given.pop(name) for name in ("store", *options)}
        for name in unknown_variables(os.environ):
            sentence = f"warning: {name} is not a setting and is ignored; see --help"
            notify("not a setting", sentence, variable=name)
        return command(settings=from_environment(os.environ, **values), **given)

    for setting in options.values():
        default = "none" if setting.default in (None, "") else setting.default
        accepted = "" if setting.kind is str else f"{setting.accepted}; "
        option = typer.Option(
            setting.option,
            help=f"{setting.description} [{accepted}default: {default}]",
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
    wrapped.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]  # PEP 362
    wrapped.__annotations__ = {each.name: each.annotation for each in ordered}
    wrapped.__doc__ = command.__doc__
    wrapped.__name__ = command.__name__
    return wrapped


class Command(TyperCommand):
    """A command whose help lists its own options before the settings of all commands."""

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


# ------------------------------------------------------------------------------ running


def run_async(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run async work, which handles signals by itself."""
    return anyio.run(work, backend_options={"loop_factory": loop_factory()})


def execute(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run async work; Ctrl-C and SIGTERM cancel it and exit with 130 or 143."""
    stopped_by: list[signal.Signals] = []

    async def supervised() -> T:
        try:
            async with _cancelled_by_signals(stopped_by):
                return await work()
        except AsyncaggError:
            # The signal may cancel the retry of a request that has just failed.
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
                    sentence = (
                        f"stopping on {number.name}: nothing is lost, run it again to continue"
                    )
                    notify("stopping", sentence, signal=number.name)
                    stopped_by.append(number)
                    group.cancel_scope.cancel()

        await group.start(watch)
        yield
        group.cancel_scope.cancel()


@asynccontextmanager
async def open_context(settings: Settings) -> AsyncIterator[JobContext]:
    """Open the store, and follow its record."""
    async with open_store(settings) as store:
        yield await follow_record(JobContext(store, settings))


def execute_with_store(
    settings: Settings, work: Callable[[JobContext], Awaitable[T]], *, json: bool
) -> T:
    """Configure the log, open the store, and run async work with it as `execute` does."""

    async def opened() -> T:
        async with open_context(settings) as context:
            return await work(context)

    configure_logs(settings, json=json)
    return execute(opened)


def configure_logs(settings: Settings, *, json: bool) -> None:
    """Send the log to standard error, with a new correlation id."""
    # People get a table instead of the summary lines for machines.
    quieter = "warning" if settings.log_level == "info" else settings.log_level
    logs.configure(settings.log_level if json else quieter, json=json)
    logs.correlation_id.set(uuid.uuid4().hex)


def create_folder(path: str, named: str) -> None:
    """Create a directory and those above it, unless they exist.

    Args:
        path: The directory.
        named: The argument or option that names it, for the error message.

    Raises:
        ConfigurationError: It cannot be created.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"{named} {path!r}: {error.strerror}; expected a directory that this user may write to"
        ) from error


def check_found(
    settings: Settings, *prefixes: str, found: bool, allow_empty: bool, filtered: bool
) -> None:
    """Fail if nothing was found: the store, a prefix or the interval may be mistyped.

    Raises:
        NotFoundError: Nothing was found, and that is not allowed.
    """
    if found or allow_empty:
        return
    places = ", ".join(map(repr, prefixes))
    if filtered:
        interval = " in this interval"
        expected = "--since and --until around windows that `asyncagg run` has settled"
    else:
        interval, expected = "", "a store that `asyncagg run` has filled, and its prefixes"
    raise NotFoundError(
        f"nothing found{interval}: looked in {settings.store!r} at {places}; expected {expected}; "
        "or pass --allow-empty"
    )


# ------------------------------------------------------------------------------ output


class _Console(Console):
    """A console that prints plain text: no markup, no control characters, no width in a pipe."""

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


def notify(message: str, sentence: str, **fields: str) -> None:
    """Log a message for machines, or print a sentence to standard error for people."""
    if logs.writes_json():
        _log.warning(message, extra=fields)
    else:
        err.print(sentence, soft_wrap=True)


class _Report(Protocol):
    @property
    def exit_code(self) -> int: ...

    def as_dict(self) -> dict[str, Any]: ...


R = TypeVar("R", bound=_Report)


def finish(report: R, show: Callable[[R], object], *, json: bool) -> NoReturn:
    """Print a report, as JSON or with ``show``, and exit with its code."""
    if json:
        print_json(report.as_dict())
    else:
        show(report)
    raise typer.Exit(report.exit_code)


def print_json(document: Any) -> None:
    """Print a document on one line, and flush it."""
    sys.stdout.write(orjson.dumps(document).decode() + "\n")
    sys.stdout.flush()


def print_text(text: str, *, style: str = "", to: Console = out) -> None:
    """Print text as one line, however wide the terminal."""
    to.print(Text(text, style), soft_wrap=True)


def print_table(
    rows: Iterable[Sequence[object]],
    *names: str,
    title: str = "",
    total: Sequence[object] | None = None,
) -> None:
    """Print a table that fits the terminal, with integers on the right; no rows, no table.

    Args:
        rows: The cells.
        names: The names of the columns.
        title: A line above.
        total: The cells of a last row, if there is more than one.
    """
    listed = list(rows)
    if title:
        print_wrapped(title)
    if not listed:
        return
    tables.print_table(
        out,
        names,
        [[_cell(each) for each in row] for row in listed],
        [_cell(each) for each in total] if total and len(listed) > 1 else None,
        numbers=[any(isinstance(row[at], int) for row in listed) for at in range(len(names))],
    )


def _cell(value: object) -> Text:
    if isinstance(value, Text):
        return value
    return Text(f"{value:,}" if isinstance(value, int) else str(value))


def print_wrapped(text: str, *, style: str = "", indent: str = "") -> None:
    """Print text in lines that fit the terminal, without breaking words."""
    for line in tables.wrap(text, out.width - len(indent)):
        print_text(f"{indent}{line}", style=style)


def print_entry(key: str, details: str) -> None:
    """Print an entry of a list: on one line if it fits, else with the details on the next."""
    name = visible(key)
    if cell_len(f"{name}  {details}") <= out.width:
        out.print(Text.assemble((name, "bold"), f"  {details}"), soft_wrap=True)
    else:
        print_wrapped(name, style="bold")
        print_wrapped(details, indent="    ")


def number_of(count: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is one."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def time_text(moment: datetime) -> str:
    """Return a time in UTC as people read it: to the second."""
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def visible(text: str) -> str:
    """Return text with every character that is not printable as an escape."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii")
        for each in text
    )


def print_report(report: RunReport) -> None:
    """Print what a run did, window by window."""
    names = ["counted", "late", "quarantined", "deferred", "left", "archived"]
    if report.total.failed:
        names.insert(3, "failed")
    ended = f"that ended by {time_text(datetime.fromisoformat(report.at))}"
    if report.windows:
        print_table(
            [
                (each.window, each.revision or "-", *(getattr(each.tally, name) for name in names))
                for each in report.windows.values()
            ],
            *("window", "rev.", *names),
            title=f"windows {ended}",
            total=("total", "", *(getattr(report.total, name) for name in names)),
        )
    else:
        print_wrapped(f"no window {ended} has new run files")
    for window, reason in report.failures.items():
        print_text(f"window {window} failed: {reason}", style="red")
    notes = []
    if report.waiting:
        notes.append(f"{number_of(report.waiting, 'file')} in windows that have not ended")
    if report.ignored:
        notes.append(describe_ignored(report.ignored, report.ignored_keys))
    if not report.complete:
        backlog = f"{'' if report.listed else 'at least '}{number_of(report.backlog, 'file')}"
        notes.append(f"time ran out, {backlog} left: run it again to continue")
    if retries := describe_retries(report.retries):
        notes.append(retries)
    if notes:
        print_wrapped("; ".join(notes))


def describe_retries(retries: Mapping[str, int]) -> str:
    """Say how many requests were sent again, and why; empty if there were none."""
    counts = {reason.replace("_", " "): count for reason, count in retries.items() if count}
    if not counts:
        return ""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
    return f"{number_of(sum(counts.values()), 'request')} sent again ({reasons})"


def describe_ignored(count: int, keys: Sequence[str]) -> str:
    """Say how many objects of the inbox are ignored, and name the first."""
    such = f", such as {', '.join(map(repr, keys))}" if keys else ""
    return f"{number_of(count, 'object')} ignored (not .json or .json.gz){such}"


def progress(unit: str, *, json: bool) -> AbstractAsyncContextManager[Bar]:
    """Return a context that shows on the terminal how far a command is, as its bar says."""
    return shown(Bar(unit), err, json=json)
