"""The documents say what the code says: generated sections, metrics, log lines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from reference import DOCUMENTS, ROOT, SECTIONS, renewed

import asyncagg
from asyncagg.aws.metrics import OPERATIONS, Usage, measurements
from asyncagg.job.outcome import RunReport
from asyncagg.settings import all_settings

LOGS = ROOT / "docs" / "reference" / "logs-and-metrics.md"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_generated_sections_are_up_to_date(document: Path) -> None:
    """If this fails: python .docs/reference.py."""
    text = document.read_text("utf-8")
    assert renewed(text) == text
    assert any(f"<!-- {name} -->\n" in text for name in SECTIONS)


def test_every_setting_is_in_the_readme() -> None:
    """The README's table is not only unchanged, it is there."""
    text = (ROOT / "README.md").read_text("utf-8")
    assert all(f"| `{each.variable}` |" in text for each in all_settings())


def test_every_metric_is_explained() -> None:
    """What the Lambda emits, the page of metrics explains, with its unit."""
    text = LOGS.read_text("utf-8")
    usage = Usage(0.0, 0, dict.fromkeys(OPERATIONS, 1), dict.fromkeys(OPERATIONS, 1))
    report = RunReport(at="")
    for name, unit, _ in measurements(report, usage):
        general = re.sub("|".join(each.capitalize() for each in OPERATIONS), "*", name, count=1)
        assert f"| `{name}` | {unit} |" in text or f"| `{general}` | {unit} |" in text, name


def test_every_message_of_the_log_is_explained() -> None:
    """What is logged with fields, the page of logs lists by its message."""
    text = LOGS.read_text("utf-8")
    logged = re.compile(r"_log\.\w+\(\s*\"([^\"%]+)\",\s*extra=")
    messages = {
        message
        for module in (ROOT / "asyncagg").rglob("*.py")
        for message in logged.findall(module.read_text("utf-8"))
    }
    assert {"run", "window", "quarantined", "deferred"} <= messages
    assert not [each for each in sorted(messages) if f"| `{each}` |" not in text]


def test_every_public_name_is_in_the_reference() -> None:
    """What `import asyncagg` gives is documented from its docstring."""
    pages = [
        (ROOT / "docs" / "reference" / name).read_text("utf-8") for name in ("api.md", "errors.md")
    ]
    shown = set(re.findall(r"^::: asyncagg\.([\w.]+)$", "\n".join(pages), re.MULTILINE))
    places = {f"{getattr(asyncagg, name).__module__}.{name}" for name in asyncagg.__all__}
    absent = {place.removeprefix("asyncagg.") for place in places} - shown
    assert absent == {"errors.AsyncaggError"}  # its page shows the whole tree
