"""What the README tells people to type, typed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from asyncagg.settings import described

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    """Return the README's code blocks in a language."""
    return re.findall(rf"```{language}\n(.*?)```", README.read_text("utf-8"), re.DOTALL)


def test_the_library_example_runs(tmp_path: Path) -> None:
    """The Python block runs as it stands, in an empty folder with sample files."""
    (example,) = blocks("python")
    command = [sys.executable, "-m", "asyncagg", "sample", "data", "--files", "20"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "20 run files counted" in done.stdout


def test_the_table_of_settings_is_the_declaration() -> None:
    """Every setting has its row, with its variable, default and what is accepted."""
    text = README.read_text("utf-8")
    for setting in described():
        default = "none" if setting.default in (None, "") else f"`{setting.default}`"
        accepted = f"{setting.accepted}, {setting.unit}" if setting.unit else setting.accepted
        row = f"| `{setting.variable}` | {default} | {accepted} | {setting.description} |"
        assert row in text, row
