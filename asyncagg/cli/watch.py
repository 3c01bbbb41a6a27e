"""``asyncagg watch``: settle every window as it ends."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Annotated

import anyio
import typer
from anyio.abc import TaskStatus
from rich.text import Text

from asyncagg.cli.base import (
    configure_logs,
    err,
    out,
    print_json,
    run_async,
    with_settings,
)
from asyncagg.errors import ConfigurationError
from asyncagg.runtime.tasks import task_group
from asyncagg.settings import Settings
from asyncagg.store.opening import open_store
from asyncagg.store.retry import Retry, RetryPolicy
from asyncagg.watch import DELAY_SECONDS, Watch, WatchedRun

__all__ = ("watch",)

_GRACE_SECONDS = 5.0
"""What a run may still take after SIGTERM: less than the ten seconds that Docker gives."""


@with_settings
def watch(
    *,
    settings: Settings,
    delay: Annotated[
        float,
        typer.Option(
            help="Start so long after the end of a window; less than the window.",
            metavar="SECONDS",
        ),
    ] = DELAY_SECONDS,
    listen: Annotated[
        str | None,
        typer.Option(
            help="Answer /healthz and /metrics there; without HOST: on 127.0.0.1. "
            'Needs the extra "watch".',
            metavar="[HOST:]PORT",
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON for each run, for machines.")
    ] = False,
) -> None:
    """Settle every window as it ends, until SIGTERM or Ctrl-C.

    The Lambda's job without Lambda: it runs once at the start, then after the end of each window,
    one run at a time. Without --max-seconds a run ends before the next is due. Runs that were due
    and not made are told, and the next one settles their windows too.

    A run that fails is told, and the next one tries again; /healthz turns to 503 when the last
    success is two windows old, or at once for want of a permission. Only the first run must not
    fail so.

    Examples:
      asyncagg watch ./data --window-by name

      asyncagg watch s3://matching-out-runs --listen 9464 --json

    Exit codes: 0 stopped by SIGTERM or Ctrl-C, 1 failed at the start, 2 wrong usage. The run under
    way has 5 seconds to end, then it is cut short, and nothing is lost; a second signal does not
    wait.
    """
    configure_logs(settings, json=json)
    told = _print_line if json else _print
    run_async(lambda: _watch(settings, delay=delay, listen=listen, told=told))


_Told = Callable[[WatchedRun], object]


async def _watch(settings: Settings, *, delay: float, listen: str | None, told: _Told) -> None:
    retry = Retry(RetryPolicy(attempts=settings.retry_attempts))
    listeners = [told]
    watching = Watch(settings, delay=delay, told=lambda done: [each(done) for each in listeners])
    async with task_group() as group:
        await group.start(_stop_on_signals, watching, group.cancel_scope)
        async with AsyncExitStack() as stack:
            if listen is not None:
                listeners += await _endpoint(stack, listen, settings, delay, retry)
            store = await stack.enter_async_context(open_store(settings, retry=retry))
            await watching.run(store)
        group.cancel_scope.cancel()


async def _stop_on_signals(
    watching: Watch, everything: anyio.CancelScope, *, task_status: TaskStatus[None]
) -> None:
    """Stop in peace on the first signal, at once on the second; a third kills."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
        task_status.started()
        first = await anext(received)
        err.print(f"stopping on {first.name}")
        watching.stop(grace=_GRACE_SECONDS)
        await anext(received)
    everything.cancel()


async def _endpoint(
    stack: AsyncExitStack, listen: str, settings: Settings, delay: float, retry: Retry
) -> tuple[_Told, ...]:
    """Answer over HTTP, and return what is to be told of the runs for it."""
    try:
        from asyncagg.watch.endpoint import address_of, serve  # noqa: PLC0415 - an extra
        from asyncagg.watch.exporter import Exporter  # noqa: PLC0415 - likewise
        from asyncagg.watch.health import Health  # noqa: PLC0415 - for the two of them only
    except ImportError as error:
        raise ConfigurationError(
            f"--listen: {error}; expected the extra: pip install 'asyncagg[watch]', or no --listen"
        ) from error
    health, exporter = Health(settings.window_minutes, delay), Exporter(retry)
    url = await stack.enter_async_context(serve(address_of(listen), health, exporter))
    err.print(f"listening on {url}", soft_wrap=True)
    return health.note, exporter.note


def _print_line(done: WatchedRun) -> None:
    print_json(done.as_dict())


def _print(done: WatchedRun) -> None:
    """Print a run in one line, and what is wrong with it in others."""
    if done.report is None:
        out.print(Text(f"{done.end.isoformat()} failed: {done.trouble}", style="red"))
        return
    total = done.report.total
    names = ("counted", "late", "archived", "quarantined", "deferred", "left")
    told = ", ".join(f"{getattr(total, name):,} {name}" for name in names)
    out.print(f"{done.end.isoformat()} {told}; {done.seconds:.1f} s")
    for window, reason in done.report.failures.items():
        out.print(Text(f"window {window} failed: {reason}", style="red"))
    if done.trouble and not done.report.failures:
        out.print(Text(done.trouble, style="red"))
