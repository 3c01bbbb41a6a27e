"""Write docs/reference/cli.md from the help of the commands: ``python .docs/cli_reference.py``.

`tests/commands/test_cli_help.py` fails if the page is out of date.
"""

from __future__ import annotations

from pathlib import Path

import typer

from asyncagg.cli.application import application, commands

__all__ = ("TARGET", "reference")

TARGET = Path(__file__).parents[1] / "docs" / "reference" / "cli.md"

_WIDTH = 88

_HEAD = """# Command line

<!-- Made by `tox -e cli-reference` from the commands' own help: edit that instead. -->

Every command tells the same with `--help`. Each setting is an environment variable too:
`--window-by` is `ASYNCAGG_WINDOW_BY`. `asyncagg --install-completion` lets the shell complete
commands and options. `--debug`, before or after a command, shows where an error comes from.
`NO_COLOR` is honoured, and output that goes into a pipe or a file has no colours, no progress bars
and no width.
"""


def reference() -> str:
    """Return the whole page, which does not depend on the terminal."""
    whole = application()
    parts = [_HEAD, _section("asyncagg", whole)]
    parts += [_section(" ".join(("asyncagg", *names)), each) for names, each in commands(whole)]
    return "\n".join(parts)


def _section(name: str, command: typer.core.TyperCommand | typer.core.TyperGroup) -> str:
    context = typer.Context(command, info_name=name, terminal_width=_WIDTH, color=False)
    lines = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    return f"## `{name}`\n\n```text\n{lines}\n```\n"


if __name__ == "__main__":
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(reference(), encoding="utf-8")
