"""What goes wrong on request: switches for errors, delays, lost responses, missing conditions."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from testkit.s3server.wire import Request

Guard = Literal["honour", "ignore", "refuse", "malformed", "always_fail"]
OnRequest = Callable[[Request], Awaitable[None] | None]


class DropError(Exception):
    """Raised to drop the connection; `reset` says whether with a TCP reset."""

    def __init__(self, *, reset: bool) -> None:
        super().__init__()
        self.reset = reset


@dataclass(slots=True)
class Guards:
    """How each condition is treated, to imitate stores that lack some.

    ``honour`` it, ``ignore`` it silently, ``refuse`` it (501 NotImplemented), call the whole
    request ``malformed`` (400), or ``always_fail`` (412).
    """

    get_if_match: Guard = "honour"
    put_if_absent: Guard = "honour"
    put_if_match: Guard = "honour"
    copy_source_if_match: Guard = "honour"
    copy_if_absent: Guard = "honour"
    copy_if_match: Guard = "honour"
    delete_etag: Guard = "honour"
    complete: Guard = "honour"


@dataclass(slots=True)
class Pause:
    """A request to stop at: wait for `reached`, inspect, then set `release`.

    Args:
        at: the ordinal of a request, or a predicate that chooses requests.
        executed: stop after executing, before answering.
    """

    at: int | Callable[[Request], bool]
    executed: bool = False
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self, request: Request, *, executed: bool) -> None:
        """Stop if this is the chosen request."""
        chosen = request.ordinal == self.at if isinstance(self.at, int) else self.at(request)
        if chosen and executed == self.executed:
            self.reached.set()
            await self.release.wait()


@dataclass(slots=True)
class Faults:
    """What goes wrong. The switches are independent, combine, and may change at any time.

    Probabilities are from 0 to 1 and drawn per request from `random`; seed that to repeat a run.
    """

    latency: float = 0.0
    """Seconds before each request is executed."""
    slow_keys: dict[str, float | None] = field(default_factory=dict)
    """Seconds before requests for a key; None hangs for ever."""
    operations: Collection[str] | None = None
    """If given, the probabilities below apply to these operations only."""
    slow_down: float = 0.0
    """Answered 503 SlowDown, not executed."""
    internal_error: float = 0.0
    """Answered 500 InternalError, not executed."""
    conflict: float = 0.0
    """Conditional writes answered 409 ConditionalRequestConflict, not executed."""
    reset: float = 0.0
    """Connection reset, not executed."""
    lose_response: float = 0.0
    """Executed, then the connection reset in place of the response."""
    truncate: float = 0.0
    """Executed, and half of the response's body sent before the connection is closed."""
    copy_error: float = 0.0
    """CopyObject answered 200 with an InternalError in its body, not executed."""
    delete_error: float = 0.0
    """Per key of DeleteObjects: an InternalError inside the 200, not deleted."""
    dies_at: int | None = None
    """From this ordinal on, connections are closed without a response."""
    dies_executing: bool = False
    """The request that it dies at is executed all the same."""
    pause_at: Pause | None = None
    redirect_region: str | None = None
    """Answer 301 PermanentRedirect, naming this region."""
    endless_listing: Literal["", "last page has a token", "same token", "empty pages"] = ""
    """A listing that does not end if the client believes its tokens."""
    denied: Callable[[str, str], bool] | None = None
    """Given operation and key, returns whether to answer 403 AccessDenied."""
    allow_small_parts: bool = False
    """Complete multipart uploads whose parts are below 5 MiB."""
    guards: Guards = field(default_factory=Guards)
    random: random.Random = field(default_factory=lambda: random.Random(0))

    def delays(self) -> bool:
        """Return whether any switch is on that needs more than an immediate answer."""
        return bool(
            self.latency
            or self.slow_keys
            or self.slow_down
            or self.internal_error
            or self.reset
            or self.lose_response
            or self.truncate
            or self.dies_at is not None
            or self.pause_at is not None
        )

    def strikes(self, request: Request, probability: float) -> bool:
        """Draw whether a fault of this probability strikes this request."""
        if not probability or (self.operations and request.operation not in self.operations):
            return False
        return self.random.random() < probability

    def update(self, switches: Mapping[str, Any]) -> None:
        """Set switches from JSON; ``guards`` is an object of its own, ``seed`` seeds the random.

        Raises:
            ValueError: if a name or value is not known.
        """
        for name, value in switches.items():
            match name:
                case "seed":
                    self.random.seed(value)
                case "guards":
                    self._update_guards(value)
                case "random" | "denied" | "pause_at":
                    raise ValueError(f"{name} can only be set in Python")
                case _ if name in self.__slots__:
                    setattr(self, name, value)
                case _:
                    raise ValueError(f"unknown switch {name!r}")

    def _update_guards(self, values: Mapping[str, Guard]) -> None:
        for name, value in values.items():
            if name not in Guards.__slots__ or value not in get_args(Guard):
                raise ValueError(f"unknown guard {name!r}: {value!r}")
            setattr(self.guards, name, value)
