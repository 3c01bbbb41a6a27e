"""Checks that are run one after the other, and what each of them found."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

import anyio

from asyncagg.doctor.permissions import Grant
from asyncagg.errors import AsyncaggError

__all__ = ("CHECK_SECONDS", "Check", "CheckResult", "CheckStatus", "Diagnosis", "Examination")

CheckStatus: TypeAlias = Literal["ok", "warn", "fail", "skipped"]

CHECK_SECONDS = 30.0
"""How long one check may take."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check found.

    Attributes:
        status: How it is.
        told: What was seen, in a few words.
        advice: What to do about it; empty where there is nothing to do.
        missing: The permission that is missing, if that is it.
    """

    status: CheckStatus
    told: str
    advice: str = ""
    missing: Grant | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One check and what it found.

    Attributes:
        name: What was checked.
        found: What it found.
    """

    name: str
    found: CheckResult


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What all checks of one store found.

    Attributes:
        store: Its name.
        checks: The checks, in the order in which they were run.
        policy: The IAM policy that grants what is missing, if anything is.
    """

    store: str
    checks: Sequence[Check]
    policy: dict[str, Any] | None = None

    @property
    def exit_code(self) -> int:
        """0 where nothing fails, 1 where something does."""
        return int(any(each.found.status == "fail" for each in self.checks))

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return {
            "store": self.store,
            "checks": [{"name": each.name, **asdict(each.found)} for each in self.checks],
            "policy": self.policy,
            "exit_code": self.exit_code,
        }


@dataclass(slots=True)
class Examination:
    """Runs checks, and keeps what they found.

    Attributes:
        checks: Those that are over.
    """

    checks: list[Check] = field(default_factory=list)

    def add(self, name: str, found: CheckResult) -> None:
        """Keep what was found."""
        self.checks.append(Check(name, found))

    def passed(self, name: str) -> bool:
        """Say whether a check was run, and did not fail."""
        return any(
            each.name == name and each.found.status in {"ok", "warn"} for each in self.checks
        )

    def skip(self, name: str, because: str) -> None:
        """Tell of a check that is not run."""
        self.add(name, CheckResult("skipped", because))

    async def check(
        self, name: str, look: Callable[[], Awaitable[CheckResult]], *, needs: Sequence[str] = ()
    ) -> None:
        """Run a check, unless another that it needs has not passed; an error fails it.

        Args:
            name: What is checked.
            look: Finds out.
            needs: The names of checks that have to pass before.
        """
        for each in needs:
            if not self.passed(each):
                self.skip(name, f"needs {each}, which did not pass")
                return
        found = CheckResult("fail", f"no answer within {CHECK_SECONDS:g} seconds")
        with anyio.move_on_after(CHECK_SECONDS):
            try:
                found = await look()
            except AsyncaggError as error:
                found = CheckResult("fail", str(error))
        self.add(name, found)
