"""The documents match the code: generated sections, metrics, log lines."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest
from reference import DOCUMENTS, ROOT, SECTIONS, renewed

from asyncagg.aws.metrics import OPERATIONS, Usage, measurements
from asyncagg.job.outcome import RunReport
from asyncagg.settings import all_settings
from asyncagg.store.retry import REASONS

LOGS = ROOT / "docs" / "reference" / "logs-and-metrics.md"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_generated_sections_are_up_to_date(document: Path) -> None:
    """If this fails, run: python .docs/reference.py."""
    text = document.read_text("utf-8")
    assert renewed(text) == text
    assert any(f"<!-- {name} -->\n" in text for name in SECTIONS)


def test_every_setting_is_explained() -> None:
    """The page of settings has every setting."""
    text = (ROOT / "docs" / "reference" / "settings.md").read_text("utf-8")
    assert all(f"| `{each.variable}` |" in text for each in all_settings())


def test_every_metric_is_explained() -> None:
    """The page of metrics has every metric of the Lambda, with its unit."""
    text = LOGS.read_text("utf-8")
    usage = Usage(0.0, 0, {}, dict.fromkeys(product(OPERATIONS, REASONS), 1))
    report = RunReport(at="")
    for name, unit, _ in measurements(report, usage):
        general = re.sub("|".join(each.capitalize() for each in OPERATIONS), "*", name, count=1)
        assert f"| `{name}` | {unit} |" in text or f"| `{general}` | {unit} |" in text, name


def test_every_message_of_the_log_is_explained() -> None:
    """The page of logs has every message that is logged with fields."""
    text = LOGS.read_text("utf-8")
    logged = re.compile(r"(?:_log\.\w+|notify)\(\s*\"([^\"%]+)\",")
    messages = {
        message
        for module in (ROOT / "asyncagg").rglob("*.py")
        for message in logged.findall(module.read_text("utf-8"))
    }
    assert {"run", "window", "quarantined", "deferred"} <= messages
    assert not [each for each in sorted(messages) if f"| `{each}` |" not in text]


def test_every_path_in_the_documents_exists() -> None:
    """A file or folder that a page names in backticks is in the repository."""
    paths = re.compile(r"`((?:asyncagg|benchmarks|docs|tests|\.docs|\.lambda)/[\w./*-]*)[` ]")
    pages = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *ROOT.glob("docs/**/*.md")]
    named = {(page.name, path) for page in pages for path in paths.findall(page.read_text("utf-8"))}
    assert len(named) > 10
    assert not [each for each in sorted(named) if not any(ROOT.glob(each[1].rstrip("/")))]
