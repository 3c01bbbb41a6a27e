"""Reads docs/examples/terraform as Terraform does: the few expressions that it uses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from testkit.template import ROOT

__all__ = ("Terraform",)

FOLDER = ROOT / "docs" / "examples" / "terraform"
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    " && ": lambda left, right: left and right,
    " == ": lambda left, right: left == right,
    " != ": lambda left, right: left != right,
    " > ": lambda left, right: left > right,
    " * ": lambda left, right: left * right,
}


@cache
def _parsed(file: Path) -> dict[str, Any]:
    hcl2 = pytest.importorskip("hcl2")
    options = hcl2.SerializationOptions(
        with_comments=False,
        explicit_blocks=False,
        preserve_heredocs=False,
        strip_string_quotes=True,
    )
    loaded: dict[str, Any] = hcl2.loads(file.read_text("utf-8"), serialization_options=options)
    return loaded


def _blocks(kind: str) -> Iterator[dict[str, Any]]:
    for file in sorted(FOLDER.glob("*.tf")):
        yield from _parsed(file).get(kind, ())


@dataclass
class Terraform:
    """The configuration with values for its variables and references.

    Args:
        given: Values of variables, in place of their defaults.
        references: What other references stand for.
    """

    given: Mapping[str, Any]
    references: Mapping[str, str]
    variables: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        """Fill in the defaults."""
        declared = ((name, each) for block in _blocks("variable") for name, each in block.items())
        self.variables = {name: each.get("default") for name, each in declared} | dict(self.given)
        self._locals = {name: value for block in _blocks("locals") for name, value in block.items()}

    def kinds(self) -> set[str]:
        """Return the types of all resources."""
        return {kind for block in _blocks("resource") for kind in block}

    def block(self, kind: str, name: str, *, of: str = "resource") -> Any:
        """Return a resource or a data source, not resolved."""
        found = [block[kind][name] for block in _blocks(of) if name in block.get(kind, {})]
        (only,) = found
        return only

    def resolve(self, value: Any, each: Mapping[str, Any] | None = None) -> Any:
        """Return a value without expressions; ``each`` is the value of ``for_each``."""
        if isinstance(value, list):
            return [self.resolve(item, each) for item in value]
        if isinstance(value, dict):
            return {name: self.resolve(item, each) for name, item in value.items()}
        if not isinstance(value, str):
            return value
        whole = re.fullmatch(r"\$\{((?:[^{}]|\$\{[^{}]*\})*)\}", value)
        if whole:
            return self._evaluate(whole[1].strip(), each or {})
        text = re.sub(
            r"\$\{([^{}]*)\}", lambda found: str(self._evaluate(found[1], each or {})), value
        )
        return text.replace('\\"', '"')

    def local(self, name: str) -> Any:
        """Return a local value."""
        return self.resolve(self._locals[name])

    def _evaluate(self, text: str, each: Mapping[str, Any]) -> Any:
        if choice := re.fullmatch(r"(.+?) \? (.+?) : (.+)", text):
            return self._evaluate(choice[2 if self._evaluate(choice[1], each) else 3], each)
        for sign, operator in _OPERATORS.items():
            left, found, right = text.partition(sign)
            if found:
                return operator(self._evaluate(left, each), self._evaluate(right, each))
        if inner := re.fullmatch(r"length\((.+)\)", text):
            return len(self._evaluate(inner[1], each))
        if inner := re.fullmatch(r"\[(\w.+)\]", text):
            return [self._evaluate(inner[1], each)]
        return self._term(text, each)

    def _term(self, text: str, each: Mapping[str, Any]) -> Any:
        scope, _, name = text.partition(".")
        if text.startswith('"'):
            return self.resolve(text[1:-1], each)
        if scope == "var":
            return self.variables[name]
        if scope == "local":
            first, _, rest = name.partition(".")
            return self.references[text] if rest else self.local(first)
        if text.startswith("each.value."):
            return each[text.removeprefix("each.value.")]
        return self.references[text] if text in self.references else json.loads(text)
