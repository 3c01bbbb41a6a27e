"""``asyncagg watch``: settle every window as it ends."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated

import anyio
import typer
from anyio.abc import TaskStatus

from asyncagg.cli import base
from asyncagg.errors import ConfigurationError
from asyncagg.runtime.tasks import task_group
from asyncagg.settings import Settings
from asyncagg.store.opening import open_store
from asyncagg.store.retry import Retry, RetryPolicy
from asyncagg.watch import DELAY_SECONDS, WatchedRun, Watcher

_GRACE_SECONDS = 5.0
"""The time for the current run after SIGTERM: less than the ten seconds that Docker gives."""


@base.with_settings
def watch(
    *,
    settings: Settings,
    delay: Annotated[
        float,
        typer.Option(
            help="Start this long after the end of a window; less than the window.",
            metavar="SECONDS",
        ),
    ] = DELAY_SECONDS,
    listen: Annotated[
        str | None,
        typer.Option(
            help="Serve /healthz and /metrics there; default HOST: 127.0.0.1. "
            "Needs the extra 'watch'.",
            metavar="[HOST:]PORT",
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON for each run, for machines.")
    ] = False,
) -> None:
    """Settle every window as it ends, until SIGTERM or Ctrl-C.

    This is the Lambda's job without Lambda: one run at the start, then one after the end of each
    window, one at a time. Without --max-seconds a run ends before the next is due. Missed runs are
    reported, and the next run settles their windows too.

    A failed run is reported, and the next one tries again, whatever the error: the network, the
    credentials or the bucket may be there again. /healthz answers 503 when the last success is two
    windows old, or at once if a permission is missing.

    Examples:
      asyncagg watch ./data

      asyncagg watch s3://matching-out-runs --listen 9464 --json

    Exit codes: 0 stopped by SIGTERM or Ctrl-C, 1 the directory or the address does not exist, 2
    wrong usage. The current run has 5 seconds to end, then it is cut short, and nothing is lost; a
    second signal stops it at once.
    """
    base.configure_logs(settings, json=json)
    if settings.store and "://" not in settings.store and not Path(settings.store).is_dir():
        # A bucket may be there again in a minute; a directory is mistyped.
        raise ConfigurationError(f"store {settings.store!r}: expected an existing directory")
    show = (lambda done: base.print_json(done.as_dict())) if json else _print
    base.run_async(lambda: _watch(settings, delay=delay, listen=listen, show=show))


_Listener = Callable[[WatchedRun], object]


async def _watch(settings: Settings, *, delay: float, listen: str | None, show: _Listener) -> None:
    retry = Retry(RetryPolicy(attempts=settings.retry_attempts))
    listeners = [show]
    watcher = Watcher(settings, delay=delay, on_run=lambda done: [each(done) for each in listeners])
    async with task_group() as group:
        await group.start(_stop_on_signals, watcher, group.cancel_scope)
        async with AsyncExitStack() as stack:
            if listen is not None:
                listeners += await _endpoint(stack, listen, settings, delay, retry)
            await watcher.run(lambda: open_store(settings, retry=retry))
        group.cancel_scope.cancel()


async def _stop_on_signals(
    watcher: Watcher, everything: anyio.CancelScope, *, task_status: TaskStatus[None]
) -> None:
    """Let the current run end on the first signal, and stop at once on the second."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
        task_status.started()
        first = await anext(received)
        base.notify("stopping", f"stopping on {first.name}", signal=first.name)
        watcher.stop(grace=_GRACE_SECONDS)
        await anext(received)
    everything.cancel()


async def _endpoint(
    stack: AsyncExitStack, listen: str, settings: Settings, delay: float, retry: Retry
) -> tuple[_Listener, ...]:
    """Serve /healthz and /metrics, and return their listeners."""
    try:
        from asyncagg.watch.endpoint import address_of, serve  # noqa: PLC0415 - an extra
        from asyncagg.watch.exporter import Exporter  # noqa: PLC0415 - likewise
        from asyncagg.watch.health import Health  # noqa: PLC0415 - only for these two
    except ImportError as error:
        raise ConfigurationError(
            f"--listen: {error}; expected the extra 'watch' of asyncagg, or no --listen"
        ) from error
    health, exporter = Health(settings.window_minutes, delay), Exporter(retry)
    url = await stack.enter_async_context(serve(address_of(listen), health, exporter))
    base.notify("listening", f"listening on {url}", url=url)
    return health.note, exporter.note


def _print(done: WatchedRun) -> None:
    """Print a run on one line, and its failures on others."""
    if done.report is None:
        base.print_text(f"{base.time_text(done.end)} failed: {done.trouble}", style="red")
        return
    total = done.report.total
    names = ("counted", "late", "archived", "quarantined", "deferred", "left")
    counts = ", ".join(f"{getattr(total, name):,} {name}" for name in names)
    base.print_text(f"{base.time_text(done.end)} {counts}; {done.seconds:.1f} s")
    for window, reason in done.report.failures.items():
        base.print_text(f"window {window} failed: {reason}", style="red")
    if done.trouble and not done.report.failures:
        base.print_text(done.trouble, style="red")
