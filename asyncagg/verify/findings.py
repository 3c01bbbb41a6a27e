"""What a verification finds, and what was done about it: for people and machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from asyncagg.verify.ledger import Counts

__all__ = ("SHOWN", "Example", "Finding", "FindingKind", "Plan", "RepairReport", "VerifyReport")

SHOWN = 10
"""The most examples of a kind of finding."""


class FindingKind(StrEnum):
    """What can be found."""

    DAMAGED = "damaged"
    """An aggregate cannot be read, or is something else."""
    DIFFERENT = "different"
    """An aggregate says something else than the files that it names."""
    COUNTED_TWICE = "counted_twice"
    """Two aggregates count the same file (key and etag)."""
    MISSING = "counted_but_missing"
    """A counted file stands neither in the archive nor in the inbox."""
    UNCOUNTED = "archived_but_counted_nowhere"
    """No aggregate names an archived file."""
    CONFLICT = "different_in_runs_and_archive"
    """A key stands in the inbox and in the archive with different content."""
    UNFINISHED = "unfinished_move"
    """A file is counted, or refused, and still in the inbox: nothing is wrong but its place."""
    UNENTERED = "quarantined_without_an_entry"
    """No aggregate names a quarantined file."""
    VANISHED = "quarantine_entry_without_a_file"
    """An aggregate names a quarantined file that is nowhere, and was not put back either."""
    UNREAD = "could_not_be_read"
    """The store stayed in trouble, or others kept being faster: verify again."""


@dataclass(frozen=True, slots=True)
class Example:
    """One of what was found.

    Attributes:
        key: The key of the file or of the aggregate.
        told: What is to be said of it.
    """

    key: str
    told: str


@dataclass(slots=True)
class Finding:
    """All that was found of one kind.

    Attributes:
        count: How many there are.
        examples: The first few of them.
    """

    count: int = 0
    examples: list[Example] = field(default_factory=list)

    def add(self, key: str, told: str) -> None:
        """Add one."""
        self.count += 1
        if len(self.examples) < SHOWN:
            self.examples.append(Example(key, told))


@dataclass(slots=True)
class Plan:
    """What can be repaired without a loss.

    Attributes:
        moves: Files to be moved to the archive, or out of the inbox where they are quarantined.
        rewrite: Windows whose aggregate is replaced by what its files say.
        rebuild: Windows whose damaged aggregate is made anew from its files.
    """

    moves: int = 0
    rewrite: list[str] = field(default_factory=list)
    rebuild: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether there is anything to be done."""
        return bool(self.moves or self.rewrite or self.rebuild)


@dataclass(slots=True)
class VerifyReport:
    """What was found.

    Attributes:
        counts: How much was looked at.
        findings: What is not as it should be, by its kind.
        not_judged: Kinds that could not be judged, and why.
        plan: What of it can be repaired.
        complete: Whether time was enough.
    """

    counts: Counts = field(default_factory=Counts)
    findings: dict[FindingKind, Finding] = field(default_factory=dict)
    not_judged: dict[FindingKind, str] = field(default_factory=dict)
    plan: Plan = field(default_factory=Plan)
    complete: bool = True

    def add(self, kind: FindingKind, key: str, told: str) -> None:
        """Add a finding."""
        self.findings.setdefault(kind, Finding()).add(key, told)

    @property
    def found(self) -> Mapping[FindingKind, int]:
        """How many there are of each kind that was found."""
        return {kind: each.count for kind, each in self.findings.items()}

    @property
    def exit_code(self) -> int:
        """0 all holds, 1 something was found, or time was not enough to say."""
        return 1 if self.findings or not self.complete else 0

    @property
    def mendable(self) -> bool:
        """Whether the plan takes care of all that was found."""
        planned = {
            FindingKind.UNFINISHED: self.plan.moves,
            FindingKind.DIFFERENT: len(self.plan.rewrite),
            FindingKind.DAMAGED: len(self.plan.rebuild),
        }
        return self.complete and all(
            planned.get(kind) == count for kind, count in self.found.items()
        )

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return {
            "counts": self.counts._asdict(),
            "findings": {kind.value: asdict(each) for kind, each in self.findings.items()},
            "not_judged": {kind.value: why for kind, why in self.not_judged.items()},
            "plan": asdict(self.plan),
            "complete": self.complete,
            "exit_code": self.exit_code,
        }


@dataclass(slots=True)
class RepairReport:
    """What was repaired.

    Attributes:
        before: What was found.
        moved: Files moved out of the inbox.
        rewritten: Windows whose aggregate was replaced by what its files say.
        rebuilt: Windows whose damaged aggregate was made anew.
        failures: What of the plan was not done, by window or prefix, and why.
        after: What is found now where something was repaired.
    """

    before: VerifyReport
    moved: int = 0
    rewritten: list[str] = field(default_factory=list)
    rebuilt: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    after: VerifyReport = field(default_factory=VerifyReport)

    @property
    def exit_code(self) -> int:
        """0 all holds now, 1 something is left."""
        mended = self.before.mendable and not self.failures
        return self.after.exit_code if mended else 1

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        done = {
            "moved": self.moved,
            "rewritten": self.rewritten,
            "rebuilt": self.rebuilt,
            "failures": self.failures,
            "after": self.after.as_dict(),
        }
        return self.before.as_dict() | {"repair": done, "exit_code": self.exit_code}
