"""The reports of a verification and of a repair, for people and machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from asyncagg.verify.database import Counts

MAX_EXAMPLES = 10
"""How many examples of one kind a report has."""


class FindingKind(StrEnum):
    """The kinds of problems that can be found."""

    DAMAGED = "damaged"
    """An aggregate cannot be read, or the object is not an aggregate."""
    DIFFERENT = "different"
    """An aggregate differs from what its files add up to."""
    MISPLACED = "counted_in_another_window"
    """The time of a counted file is not in the window of the aggregate that counts it."""
    COUNTED_TWICE = "counted_twice"
    """Two aggregates count the same file (key and etag)."""
    MISSING = "counted_but_missing"
    """A counted file is neither in the archive nor in the inbox."""
    BROKEN_PACK = "broken_pack"
    """A pack that an aggregate names is gone or has another size."""
    UNNAMED_PACK = "unnamed_pack"
    """No aggregate names a pack that is older than a day."""
    UNCOUNTED = "archived_but_counted_nowhere"
    """No aggregate counts an archived file."""
    CONFLICT = "different_in_runs_and_archive"
    """The inbox and the archive have different content for one key."""
    UNFINISHED = "unfinished_move"
    """A file is counted or quarantined, and still in the inbox: only its place is wrong."""
    WAITING = "waiting_for_long"
    """A run file is still in the inbox, long after its window was settled."""
    WITHOUT_ENTRY = "quarantined_without_an_entry"
    """No aggregate names a quarantined file."""
    ORPHAN_ENTRY = "quarantine_entry_without_a_file"
    """An aggregate names a quarantined file that does not exist and was not restored."""
    UNREAD = "could_not_be_read"
    """The store refuses an object or failed, or other runners kept committing."""


class Example(NamedTuple):
    """The key of a file or an aggregate, and what is wrong with it."""

    key: str
    detail: str


@dataclass(slots=True)
class Finding:
    """Everything found of one kind.

    Attributes:
        count: How many instances.
        examples: The first of them.
    """

    count: int = 0
    examples: list[Example] = field(default_factory=list)

    def add(self, key: str, detail: str) -> None:
        """Add an instance."""
        self.count += 1
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(Example(key, detail))

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        examples = [{"key": each.key, "told": each.detail} for each in self.examples]
        return {"count": self.count, "examples": examples}


@dataclass(slots=True)
class Plan:
    """What can be repaired without losing data.

    Attributes:
        moves: How many files are to be moved out of the inbox.
        rewrite: Windows whose aggregate is to be replaced by what its files add up to.
        rebuild: Windows whose damaged aggregate is to be rebuilt from its files.
        packs: How many packs are to be removed, whose files are all counted elsewhere.
    """

    moves: int = 0
    packs: int = 0
    rewrite: list[str] = field(default_factory=list)
    rebuild: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Return whether there is anything to repair."""
        return bool(self.moves or self.packs or self.rewrite or self.rebuild)


@dataclass(slots=True)
class VerifyReport:
    """What a verification found.

    Attributes:
        counts: How much was verified.
        findings: The problems, by kind.
        not_judged: The kinds that could not be checked, and why.
        ignored: The objects in the inbox that are not run files; no problem by themselves.
        plan: What can be repaired.
        complete: Whether it ended before its time limit.
    """

    counts: Counts = field(default_factory=Counts)
    findings: dict[FindingKind, Finding] = field(default_factory=dict)
    not_judged: dict[FindingKind, str] = field(default_factory=dict)
    ignored: Finding = field(default_factory=Finding)
    plan: Plan = field(default_factory=Plan)
    complete: bool = True

    def add(self, kind: FindingKind, key: str, detail: str) -> None:
        """Add an instance of a finding."""
        self.findings.setdefault(kind, Finding()).add(key, detail)

    @property
    def found(self) -> Mapping[FindingKind, int]:
        """How many instances of each kind were found."""
        return {kind: each.count for kind, each in self.findings.items()}

    @property
    def exit_code(self) -> int:
        """0 all is right, 1 there are findings or time ran out, 3 only some could not be read."""
        if self.findings.keys() - {FindingKind.UNREAD} or not self.complete:
            return 1
        return 3 if self.findings else 0

    @property
    def empty(self) -> bool:
        """Whether there was nothing to verify."""
        counts = self.counts
        made = counts.aggregates or counts.archived or counts.quarantined
        return self.complete and not made and not self.findings

    @property
    def repairable(self) -> bool:
        """Whether the plan covers all findings."""
        planned = {
            FindingKind.UNFINISHED: self.plan.moves,
            FindingKind.DIFFERENT: len(self.plan.rewrite),
            FindingKind.DAMAGED: len(self.plan.rebuild),
            FindingKind.UNNAMED_PACK: self.plan.packs,
        }
        return self.complete and all(
            planned.get(kind) == count for kind, count in self.found.items()
        )

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return {
            "counts": self.counts._asdict(),
            "findings": {kind.value: each.as_dict() for kind, each in self.findings.items()},
            "not_judged": {kind.value: why for kind, why in self.not_judged.items()},
            "ignored": {
                "count": self.ignored.count,
                "keys": [e.key for e in self.ignored.examples],
            },
            "plan": asdict(self.plan),
            "complete": self.complete,
            "exit_code": self.exit_code,
        }


@dataclass(slots=True)
class RepairReport:
    """What a repair did.

    Attributes:
        before: What was found before it.
        moved: How many files were moved out of the inbox.
        removed: How many packs were removed.
        rewritten: Windows whose aggregate was replaced by what its files add up to.
        rebuilt: Windows whose damaged aggregate was rebuilt.
        failures: What could not be repaired, by window or prefix, and why.
        after: What is found now in the repaired windows.
    """

    before: VerifyReport
    moved: int = 0
    removed: int = 0
    rewritten: list[str] = field(default_factory=list)
    rebuilt: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    after: VerifyReport = field(default_factory=VerifyReport)

    @property
    def exit_code(self) -> int:
        """0 if all is right now, else 1."""
        repaired = self.before.repairable and not self.failures
        return self.after.exit_code if repaired else 1

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        done = {
            "moved": self.moved,
            "removed": self.removed,
            "rewritten": self.rewritten,
            "rebuilt": self.rebuilt,
            "failures": self.failures,
            "after": self.after.as_dict(),
        }
        return self.before.as_dict() | {"repair": done, "exit_code": self.exit_code}
