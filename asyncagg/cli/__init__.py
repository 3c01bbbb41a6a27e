"""The command line: a thin face over the library, one module a command."""

from __future__ import annotations

import sys

from asyncagg.errors import AsyncaggError, UsageError

__all__ = ("main",)


def main() -> None:
    """Run the command line; a user's mistake is one sentence, never a traceback."""
    # Imported here: the workers of a cluster import what started them, and run no command.
    from rich.text import Text  # noqa: PLC0415

    from asyncagg.cli.application import app  # noqa: PLC0415
    from asyncagg.cli.base import err  # noqa: PLC0415

    try:
        app()
    except AsyncaggError as error:
        err.print(Text(f"error: {error}"), soft_wrap=True)
        sys.exit(2 if isinstance(error, UsageError) else 1)
