"""The stack of template.yaml, read as CloudFormation reads it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from testkit.scenario import BUCKET

__all__ = (
    "PARAMETERS",
    "PSEUDO",
    "TEMPLATE",
    "Resolver",
    "role",
    "template",
)


TEMPLATE = Path(__file__).parents[2] / "template.yaml"


PARAMETERS = {"CodeBucket": "code", "Version": "1", "BucketName": BUCKET}


PSEUDO = {"AWS::Partition": "aws", "AWS::StackName": "stack", "AWS::Region": "us-east-1"}


class _Loader(yaml.SafeLoader):
    """Reads the short forms of CloudFormation's functions: ``!Ref X`` as ``{"Ref": "X"}``."""


@cache
def template() -> dict[str, Any]:
    """Return the template, its functions in their long form."""
    loaded: dict[str, Any] = yaml.load(TEMPLATE.read_text(), _Loader)  # noqa: S506 - a SafeLoader
    return loaded


@dataclass
class Resolver:
    """Does what CloudFormation does with functions, as far as this template goes."""

    given: dict[str, str]
    parameters: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        """Fill in the defaults."""
        declared = template()["Parameters"].items()
        defaults = {name: str(each["Default"]) for name, each in declared if "Default" in each}
        self.parameters = defaults | PSEUDO | PARAMETERS | self.given

    def resolve(self, value: Any) -> Any:
        """Return a value without functions."""
        if isinstance(value, list):
            resolved = [self.resolve(each) for each in value]
            return [each for each in resolved if each is not None]
        if not isinstance(value, dict):
            return value
        match list(value.items()):
            case [("Ref", name)]:
                return None if name == "AWS::NoValue" else self.parameters.get(name, f"<{name}>")
            case [("Fn::GetAtt", name)]:
                return f"<{name}>"
            case [("Fn::If", [name, first, second])]:
                return self.resolve(first if self.condition(name) else second)
            case [("Fn::Sub", [text, names])]:
                return self.substitute(text, {n: self.resolve(each) for n, each in names.items()})
            case [("Fn::Sub", text)]:
                return self.substitute(text, {})
        return {name: self.resolve(each) for name, each in value.items()}

    def condition(self, name: str) -> bool:
        """Tell whether a condition holds: all are comparisons of a parameter, negated or not."""
        told = template()["Conditions"][name]
        negated = "Fn::Not" in told
        left, right = (told["Fn::Not"][0] if negated else told)["Fn::Equals"]
        return bool((self.resolve(left) == right) != negated)

    def substitute(self, text: str, names: dict[str, Any]) -> str:
        """Fill in ``${…}``."""
        known = self.parameters | names
        return re.sub(r"\$\{([\w:.]+)\}", lambda name: known.get(name[1], f"<{name[1]}>"), text)

    def properties(self, name: str) -> dict[str, Any]:
        """Return the properties of a resource."""
        resolved: dict[str, Any] = self.resolve(template()["Resources"][name]["Properties"])
        return resolved


def role(**given: str) -> list[dict[str, Any]]:
    """Return what the role may do with objects, where these parameters are given."""
    policies = Resolver(given).properties("Role")["Policies"]
    (statements,) = (
        each["PolicyDocument"]["Statement"] for each in policies if each["PolicyName"] == "objects"
    )
    return list(statements)
