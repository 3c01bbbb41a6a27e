"""Checks that run one after the other, and their results."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

import anyio

from asyncagg.doctor.permissions import Grant
from asyncagg.errors import AsyncaggError

CheckStatus: TypeAlias = Literal["ok", "warn", "fail", "skipped"]

_CHECK_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of a check.

    Attributes:
        detail: What was found, in a few words.
        advice: What to do about it, or empty.
        missing: The permission that is missing, if any.
    """

    status: CheckStatus
    detail: str
    advice: str = ""
    missing: Grant | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The results of all checks of one store.

    Attributes:
        results: The results by the names of the checks, in the order in which they ran.
        policy: The IAM policy that grants the missing permissions, if any.
    """

    store: str
    results: Mapping[str, CheckResult]
    policy: dict[str, Any] | None = None

    @property
    def exit_code(self) -> int:
        """1 if a check failed, otherwise 0."""
        return int(any(result.status == "fail" for result in self.results.values()))

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return {
            "store": self.store,
            "checks": [
                {
                    "name": name,
                    "status": result.status,
                    "told": result.detail,  # programs read this field
                    "advice": result.advice,
                    "missing": result.missing and asdict(result.missing),
                }
                for name, result in self.results.items()
            ],
            "policy": self.policy,
            "exit_code": self.exit_code,
        }


@dataclass(slots=True)
class Examination:
    """Runs checks and keeps their results, by the names of the checks."""

    results: dict[str, CheckResult] = field(default_factory=dict)

    def passed(self, name: str) -> bool:
        """Whether a check ran and did not fail."""
        return name in self.results and self.results[name].status in {"ok", "warn"}

    def skip(self, reason: str, *names: str) -> None:
        """Record checks that do not run."""
        for name in names:
            self.results[name] = CheckResult("skipped", reason)

    async def check(
        self, name: str, find: Callable[[], Awaitable[CheckResult]], *, needs: Sequence[str] = ()
    ) -> None:
        """Run a check, if those that it needs have passed; an error of ``find`` fails it."""
        for each in needs:
            if not self.passed(each):
                self.skip(f"needs {each}, which did not pass", name)
                return
        result = CheckResult("fail", f"no answer within {_CHECK_SECONDS:g} seconds")
        with anyio.move_on_after(_CHECK_SECONDS):
            try:
                result = await find()
            except AsyncaggError as error:
                result = CheckResult("fail", str(error))
        self.results[name] = result
