"""The public API is `asyncagg.__all__` and the names in docs/reference/api.md, and no other."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import asyncagg

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def shown(page: str) -> list[str]:
    """Return the dotted names whose docstrings a page shows."""
    text = (REFERENCE / page).read_text("utf-8")
    return re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)


API = shown("api.md")


def find(name: str) -> tuple[ModuleType, Any]:
    """Import a dotted name; return its module and its value."""
    module_name, _, attribute = name.rpartition(".")
    module = importlib.import_module(module_name)
    return module, getattr(module, attribute)


@pytest.mark.parametrize("name", API)
def test_every_name_in_the_reference_is_public(name: str) -> None:
    """It exists, is defined in that module or package, has a docstring, and is not private."""
    module, thing = find(name)
    short = name.rpartition(".")[2]
    assert not any(part.startswith("_") for part in name.split("."))
    assert short in getattr(module, "__all__", (short,)), f"{name} is not in __all__"
    assert f"{thing.__module__}.".startswith(f"{module.__name__}.")
    assert thing.__name__ == short
    assert thing.__doc__


def test_every_public_name_is_in_the_reference() -> None:
    """What `import asyncagg` gives is in api.md; errors.md has the whole tree of errors."""
    things = {name: getattr(asyncagg, name) for name in asyncagg.__all__}
    places = {f"{thing.__module__}.{name}" for name, thing in things.items()}
    assert shown("errors.md") == ["asyncagg.errors"]
    assert {
        place for place in places - set(API) if not place.startswith("asyncagg.errors.")
    } == set()


def test_the_package_itself_gives_nothing_else() -> None:
    """A name of `asyncagg` that is not in `__all__` is a module or private."""
    public = {
        name
        for name, thing in vars(asyncagg).items()
        if not name.startswith("_") and not isinstance(thing, ModuleType)
    }
    assert public == set(asyncagg.__all__)


def test_no_name_is_shown_twice() -> None:
    """Each public name has one place in the reference."""
    assert len(API) == len(set(API))
