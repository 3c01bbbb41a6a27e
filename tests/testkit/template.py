"""Reads template.yaml as CloudFormation does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from testkit.scenario import BUCKET

__all__ = (
    "PARAMETERS",
    "ROOT",
    "TEMPLATE",
    "Resolver",
    "resources",
    "role",
    "template",
)

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "template.yaml"
PARAMETERS = {"CodeBucket": "code", "Version": "1", "BucketName": BUCKET}
_PSEUDO = {"AWS::Partition": "aws", "AWS::StackName": "stack", "AWS::Region": "us-east-1"}


class _Loader(yaml.SafeLoader):
    """Reads the short forms of CloudFormation's functions: ``!Ref X`` as ``{"Ref": "X"}``."""


def _function(loader: yaml.SafeLoader, name: str, node: yaml.Node) -> dict[str, Any]:
    value: Any
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        assert isinstance(node, yaml.MappingNode)
        value = loader.construct_mapping(node, deep=True)
    return {name if name == "Ref" else f"Fn::{name}": value}


_Loader.add_multi_constructor("!", _function)


@cache
def template() -> dict[str, Any]:
    """Return the template, its functions in their long form."""
    loaded: dict[str, Any] = yaml.load(TEMPLATE.read_text(), _Loader)  # noqa: S506 - a SafeLoader
    return loaded


@dataclass
class Resolver:
    """Resolves the functions of CloudFormation that the template uses.

    Args:
        given: Values of parameters, in place of their defaults.
    """

    given: dict[str, str]
    parameters: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        """Fill in the defaults."""
        declared = template()["Parameters"].items()
        defaults = {name: str(each["Default"]) for name, each in declared if "Default" in each}
        self.parameters = defaults | _PSEUDO | PARAMETERS | self.given

    def resolve(self, value: Any) -> Any:  # noqa: C901, PLR0911 (one case for each function)
        """Return a value without functions."""
        if isinstance(value, list):
            resolved = [self.resolve(each) for each in value]
            return [each for each in resolved if each is not None]
        if not isinstance(value, dict):
            return value
        match list(value.items()):
            case [("Ref", name)]:
                return self.reference(name)
            case [("Fn::GetAtt", name)]:
                return f"<{name}>"
            case [("Fn::FindInMap", [name, *keys])]:
                found = template()["Mappings"][name]
                for key in keys:
                    found = found[self.resolve(key)]
                return found
            case [("Fn::If", [name, first, second])]:
                condition = template()["Conditions"][name]
                return self.resolve(first if self.holds(condition) else second)
            case [("Fn::Join", [separator, parts])]:
                return separator.join(self.resolve(parts))
            case [("Fn::Sub", [text, names])]:
                return self.substitute(text, {n: self.resolve(each) for n, each in names.items()})
            case [("Fn::Sub", text)]:
                return self.substitute(text, {})
        return {name: self.resolve(each) for name, each in value.items()}

    def reference(self, name: str) -> Any:
        """Return the value of a parameter, or the name of a resource in angle brackets."""
        if name == "AWS::NoValue":
            return None
        value = self.parameters.get(name, f"<{name}>")
        declared = template()["Parameters"].get(name, {})
        return value.split(",") if declared.get("Type") == "CommaDelimitedList" else value

    def holds(self, condition: dict[str, Any]) -> bool:
        """Return whether a condition, or the condition or assertion of a rule, holds."""
        ((function, arguments),) = condition.items()
        match function:
            case "Fn::Equals":
                left, right = map(self.resolve, arguments)
                return bool(left == right)
            case "Fn::EachMemberEquals":
                members, value = map(self.resolve, arguments)
                return all(each == value for each in members)
            case "Fn::Not":
                return not self.holds(arguments[0])
            case "Fn::And":
                return all(map(self.holds, arguments))
        assert function == "Fn::Or"
        return any(map(self.holds, arguments))

    def refused(self) -> set[str]:
        """Return the parameters and rules that refuse the values."""
        rules = {
            name
            for name, rule in template()["Rules"].items()
            if "RuleCondition" not in rule or self.holds(rule["RuleCondition"])
            if not all(self.holds(each["Assert"]) for each in rule["Assertions"])
        }
        declared = template()["Parameters"].items()
        return rules | {name for name, each in declared if not self._accepts(name, each)}

    def _accepts(self, name: str, declared: dict[str, Any]) -> bool:
        value = self.parameters[name]
        if "AllowedValues" in declared and value not in map(str, declared["AllowedValues"]):
            return False
        if not re.fullmatch(declared.get("AllowedPattern", ".*"), value):
            return False
        least, most = declared.get("MinValue", "-inf"), declared.get("MaxValue", "inf")
        return declared["Type"] != "Number" or float(least) <= float(value) <= float(most)

    def substitute(self, text: str, names: dict[str, Any]) -> str:
        """Fill in ``${…}``."""
        known = self.parameters | names
        return re.sub(r"\$\{([\w:.]+)\}", lambda name: known.get(name[1], f"<{name[1]}>"), text)

    def properties(self, name: str) -> dict[str, Any]:
        """Return the properties of a resource."""
        resolved: dict[str, Any] = self.resolve(template()["Resources"][name]["Properties"])
        return resolved


def resources(kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the resources of a type, resolved."""
    for name, each in template()["Resources"].items():
        if each["Type"] == kind:
            yield name, Resolver({}).properties(name)


def role(**given: str) -> list[dict[str, Any]]:
    """Return the statements of the role about objects, with these parameters."""
    policies = Resolver(given).properties("Role")["Policies"]
    (statements,) = (
        each["PolicyDocument"]["Statement"] for each in policies if each["PolicyName"] == "objects"
    )
    return list(statements)
