"""What a run did, for people, machines and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from asyncagg.aggregate.accumulator import Accumulator

__all__ = ("STEPS", "RunReport", "Tally", "WindowReport")

STEPS = ("list", "load", "fetch", "commit", "archive")


@dataclass(slots=True)
class Tally:
    """What became of the files of one window, or of all of a run's.

    Attributes:
        counted: Folded into an aggregate by this run.
        archived: Moved to the archive, or found there already.
        quarantined: Refused and moved to quarantine.
        deferred: Left in place after trouble that passes; the next run takes them.
        left: Not taken, or counted but not yet archived, for want of time.
        late: CountedRow into an aggregate that already stood.
        gone: Moved by another runner meanwhile.
        changed: Overwritten meanwhile: the new version is the next run's.
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
        """Files whose fate is decided: moved, or staying for a reason that is tallied."""
        return self.archived + self.quarantined + self.deferred + self.gone + self.changed

    def add(self, other: Tally) -> None:
        """Add another's numbers."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    def take(self, value: Accumulator) -> None:
        """Add what a commit has counted."""
        self.counted += value.counted
        self.bytes += value.bytes
        self.opportunities += value.opportunities
        self.matches += value.matches
        self.no_matches += value.no_matches
        self.errors += value.errors
        self.processing_seconds += float(value.seconds)


@dataclass(slots=True)
class WindowReport:
    """What a run did with one window, chunk after chunk.

    Attributes:
        window: Its name.
        aggregate_key: Where its aggregate stands.
        revision: The revision committed last; 0 where none was.
        tally: What became of its files.
        failure: Why it was left alone, or empty.
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
        at: The moment up to which windows were settled, ISO 8601.
        dry_run: Whether it only looked.
        windows: Each window touched, by name.
        ignored: Keys below the inbox that are no run files.
        waiting: Run files whose window has not ended.
        complete: Whether the whole inbox was listed.
        oldest_seconds: Age of the oldest run file seen; 0 where there was none.
        seconds: Seconds spent in each step, summed over what ran side by side.
    """

    at: str
    dry_run: bool = False
    windows: dict[str, WindowReport] = field(default_factory=dict)
    ignored: int = 0
    waiting: int = 0
    complete: bool = True
    oldest_seconds: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))

    def add(self, other: RunReport) -> None:
        """Add what another run did, of the same windows or of others."""
        for each in other.windows.values():
            self.add_window(each)
        self.ignored += other.ignored
        self.waiting += other.waiting
        self.complete = self.complete and other.complete
        self.oldest_seconds = max(self.oldest_seconds, other.oldest_seconds)
        for step, spent in other.seconds.items():
            self.seconds[step] += spent

    def add_window(self, other: WindowReport) -> None:
        """Add what was done with one window."""
        report = self.windows.setdefault(
            other.window, WindowReport(other.window, other.aggregate_key)
        )
        report.revision = max(report.revision, other.revision)
        report.failure = report.failure or other.failure
        report.tally.add(other.tally)

    @property
    def total(self) -> Tally:
        """The numbers of all windows together."""
        total = Tally()
        for each in self.windows.values():
            total.add(each.tally)
        return total

    @property
    def failures(self) -> Mapping[str, str]:
        """The windows left alone, and why."""
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
        return everything | {"total": asdict(self.total), "exit_code": self.exit_code}
