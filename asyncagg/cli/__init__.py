"""The command line: a thin face over the library, one module a command."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from asyncagg.errors import AsyncaggError, UsageError

__all__ = ("main",)


def main() -> None:
    """Run the command line; an error is one sentence, a traceback only where it is asked for."""
    _open_standard_streams()
    words, debug = _without_debug(sys.argv[1:])
    try:
        sys.exit(_exit_code(words, debug=debug))
    except BrokenPipeError:
        # Whoever read the output has gone (`| head`). Python would meet it again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _open_standard_streams() -> None:
    """Give what was closed (`>&-`) a place to go, or the next socket has its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - it stays open


def _without_debug(words: Sequence[str]) -> tuple[list[str], bool]:
    """Take ``--debug`` out, wherever it stands before a ``--``; tell whether it was there."""
    end = words.index("--") if "--" in words else len(words)
    kept = [word for word in words[:end] if word != "--debug"]
    return [*kept, *words[end:]], len(kept) < end


def _run(words: list[str]) -> None:
    # Imported here: the workers of a cluster import what started them, and run no command.
    from asyncagg.cli.application import application  # noqa: PLC0415

    try:
        application()(args=words, prog_name="asyncagg")
    finally:
        sys.stdout.flush()


def _exit_code(words: list[str], *, debug: bool) -> int:
    try:
        _run(words)
    except BrokenPipeError:
        raise
    except AsyncaggError as error:
        _tell(f"error: {error}{_option(error)}", debug=debug)
        return 2 if isinstance(error, UsageError) else 1
    except Exception as error:  # noqa: BLE001 - here a traceback would meet a person
        hint = "" if debug else "; --debug shows where"
        _tell(f"error: unexpected {type(error).__name__}: {error}{hint}", debug=debug)
        return 1
    return 0


def _option(error: AsyncaggError) -> str:
    """Return the option of the setting that an error names, in parentheses; or empty."""
    setting = error.setting if isinstance(error, UsageError) else ""
    # The store is an argument, not an option.
    return f" (--{setting.replace('_', '-')})" if setting not in {"", "store"} else ""


def _tell(sentence: str, *, debug: bool) -> None:
    from rich.text import Text  # noqa: PLC0415 - as in _run

    from asyncagg.cli.base import err  # noqa: PLC0415 - likewise

    if debug:
        traceback.print_exc()
    err.print(Text(sentence), soft_wrap=True)
