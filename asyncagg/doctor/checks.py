"""Checks that run one after the other, and their results."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

import anyio

from asyncagg.doctor.permissions import Grant
from asyncagg.errors import AsyncaggError

__all__ = ("Check", "CheckResult", "CheckStatus", "Diagnosis", "Examination")

CheckStatus: TypeAlias = Literal["ok", "warn", "fail", "skipped"]

_CHECK_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of a check.

    Attributes:
        status: Whether the check passed.
        detail: What was found, in a few words.
        advice: What to do about it, or empty.
        missing: The permission that is missing, if any.
    """

    status: CheckStatus
    detail: str
    advice: str = ""
    missing: Grant | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """A check and its result.

    Attributes:
        name: The name of the check.
        result: Its result.
    """

    name: str
    result: CheckResult

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        values = asdict(self.result)
        # The field keeps its first name: programs read it.
        return {"name": self.name, "status": values.pop("status"), "told": values.pop("detail")} | (
            values
        )


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The results of all checks of one store.

    Attributes:
        store: The store's URL.
        checks: The checks, in the order in which they ran.
        policy: The IAM policy that grants the missing permissions, if any.
    """

    store: str
    checks: Sequence[Check]
    policy: dict[str, Any] | None = None

    @property
    def exit_code(self) -> int:
        """1 if a check failed, otherwise 0."""
        return int(any(each.result.status == "fail" for each in self.checks))

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return {
            "store": self.store,
            "checks": [each.as_dict() for each in self.checks],
            "policy": self.policy,
            "exit_code": self.exit_code,
        }


@dataclass(slots=True)
class Examination:
    """Runs checks and keeps their results.

    Attributes:
        checks: The finished checks.
    """

    checks: list[Check] = field(default_factory=list)

    def add(self, name: str, result: CheckResult) -> None:
        """Keep the result of a check."""
        self.checks.append(Check(name, result))

    def passed(self, name: str) -> bool:
        """Whether a check ran and did not fail."""
        return any(
            each.name == name and each.result.status in {"ok", "warn"} for each in self.checks
        )

    def skip(self, name: str, reason: str) -> None:
        """Record a check that does not run."""
        self.add(name, CheckResult("skipped", reason))

    async def check(
        self, name: str, find: Callable[[], Awaitable[CheckResult]], *, needs: Sequence[str] = ()
    ) -> None:
        """Run a check if the checks that it needs have passed; an error fails it.

        Args:
            name: The name of the check.
            find: Returns its result.
            needs: The names of checks that must pass first.
        """
        for each in needs:
            if not self.passed(each):
                self.skip(name, f"needs {each}, which did not pass")
                return
        result = CheckResult("fail", f"no answer within {_CHECK_SECONDS:g} seconds")
        with anyio.move_on_after(_CHECK_SECONDS):
            try:
                result = await find()
            except AsyncaggError as error:
                result = CheckResult("fail", str(error))
        self.add(name, result)
