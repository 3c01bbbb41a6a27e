"""The outcome of a run, for people, machines and metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from time import perf_counter
from typing import Any

from asyncagg.aggregate.accumulator import Accumulator
from asyncagg.model import Window
from asyncagg.store.retry import REASONS

MAX_IGNORED = 5
"""How many keys of ignored objects a report has."""

STEPS = ("list", "load", "fetch", "commit", "archive")


@dataclass(slots=True)
class Tally:
    """The numbers of files by outcome, of one window or of all windows of a run.

    Attributes:
        counted: Folded into an aggregate by this run.
        archived: Moved to the archive, or found there already.
        quarantined: Moved to quarantine.
        failed: Left in the inbox because their window failed.
        deferred: Left in the inbox after an error; the next run takes them.
        left: Not taken, or counted but not archived: time ran out, or it was a dry run.
        late: Added to an aggregate that this run did not create.
        gone: Moved by another runner in the meantime.
        changed: Overwritten in the meantime; the next run takes the new version.
        bytes: Bytes of the files counted.
        opportunities: Sum over the runs counted.
        matches: Sum over the runs counted.
        no_matches: Sum over the runs counted.
        errors: Sum over the runs counted.
        processing_seconds: Sum over the runs counted.
    """

    counted: int = 0
    archived: int = 0
    quarantined: int = 0
    failed: int = 0
    deferred: int = 0
    left: int = 0
    late: int = 0
    gone: int = 0
    changed: int = 0
    bytes: int = 0
    opportunities: int = 0
    matches: int = 0
    no_matches: int = 0
    errors: int = 0
    processing_seconds: float = 0.0

    @property
    def resolved(self) -> int:
        """Files with a final outcome in this run: moved, or left in the inbox for a reason."""
        return self.archived + self.quarantined + self.deferred + self.gone + self.changed

    def add(self, other: Tally) -> None:
        """Add another tally."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    def add_counted(self, value: Accumulator) -> None:
        """Add what a commit counted."""
        self.counted += value.counted
        self.bytes += value.bytes
        self.opportunities += value.opportunities
        self.matches += value.matches
        self.no_matches += value.no_matches
        self.errors += value.errors
        self.processing_seconds += float(value.seconds)


@dataclass(slots=True)
class WindowReport:
    """What a run did with one window, over all chunks.

    Attributes:
        window: Its name.
        aggregate_key: The key of its aggregate.
        revision: The revision committed last; 0 if there was none.
        tally: The outcome of its files.
        failure: Why it was not settled, or empty.
    """

    window: str
    aggregate_key: str
    revision: int = 0
    tally: Tally = field(default_factory=Tally)
    failure: str = ""


@dataclass(slots=True)
class RunReport:
    """What one run did.

    Attributes:
        at: Windows that ended by this moment were settled, ISO 8601.
        dry_run: Whether the job only listed files and changed nothing.
        windows: The windows with files, by name.
        ignored: Objects in the inbox that are not run files.
        ignored_keys: The first of them, without folder markers.
        waiting: Run files whose window has not ended.
        untaken: Run files that were listed when it was too late to settle them.
        listed: Whether the whole inbox was listed, so that `waiting` and `backlog` are exact.
        complete: Whether the whole inbox was listed and worked on.
        oldest_seconds: Age of the oldest run file seen; 0 if there was none.
        oldest_deferred_seconds: Age of the oldest file that was deferred; 0 if there was none.
        seconds: Seconds spent in each step, summed over windows that are settled at once.
        retries: Requests that were sent again, by `asyncagg.store.retry.REASONS`.
    """

    at: str
    dry_run: bool = False
    windows: dict[str, WindowReport] = field(default_factory=dict)
    ignored: int = 0
    ignored_keys: list[str] = field(default_factory=list)
    waiting: int = 0
    untaken: int = 0
    listed: bool = False
    complete: bool = True
    oldest_seconds: float = 0.0
    oldest_deferred_seconds: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))
    retries: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))

    def ignore(self, key: str) -> None:
        """Note an object that is not a run file."""
        self.ignored += 1
        if len(self.ignored_keys) < MAX_IGNORED and not key.endswith("/"):
            self.ignored_keys.append(key)

    def window(self, window: Window, aggregate_key: str) -> WindowReport:
        """Return the report of a window, a new one if it has none yet."""
        return self.windows.setdefault(window.name, WindowReport(window.name, aggregate_key))

    def add(self, other: RunReport) -> None:
        """Add the report of another run, of the same windows or of others."""
        for each in other.windows.values():
            self.add_window(each)
        self.ignored += other.ignored
        self.ignored_keys = [*self.ignored_keys, *other.ignored_keys][:MAX_IGNORED]
        self.waiting += other.waiting
        self.untaken += other.untaken
        self.listed = self.listed and other.listed
        self.complete = self.complete and other.complete
        self.oldest_seconds = max(self.oldest_seconds, other.oldest_seconds)
        self.oldest_deferred_seconds = max(
            self.oldest_deferred_seconds, other.oldest_deferred_seconds
        )
        for step, spent in other.seconds.items():
            self.seconds[step] += spent
        for reason, count in other.retries.items():
            self.retries[reason] += count

    def add_window(self, other: WindowReport) -> None:
        """Add the report of one window."""
        report = self.windows.setdefault(
            other.window, WindowReport(other.window, other.aggregate_key)
        )
        report.revision = max(report.revision, other.revision)
        report.failure = report.failure or other.failure
        report.tally.add(other.tally)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Measure the ``with`` block and add its duration to a step."""
        before = perf_counter()
        try:
            yield
        finally:
            self.seconds[step] += perf_counter() - before

    @property
    def total(self) -> Tally:
        """The tally of all windows together."""
        total = Tally()
        for each in self.windows.values():
            total.add(each.tally)
        return total

    @property
    def backlog(self) -> int:
        """Files of windows that have ended, and that stay in the inbox; at least, if not listed."""
        total = self.total
        return total.left + total.deferred + total.failed + self.untaken

    @property
    def failures(self) -> Mapping[str, str]:
        """The windows that were not settled, and why."""
        return {name: each.failure for name, each in self.windows.items() if each.failure}

    @property
    def exit_code(self) -> int:
        """0 done, 1 a window failed, 3 done but files are deferred, left or quarantined."""
        if self.failures:
            return 1
        total = self.total
        pending = total.deferred or total.left or total.quarantined or not self.complete
        return 3 if pending else 0

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        everything = asdict(self)
        everything["windows"] = list(everything["windows"].values())
        numbers = {"backlog": self.backlog, "exit_code": self.exit_code}
        return everything | {"total": asdict(self.total)} | numbers
