"""The command line: one module per command, on top of the library."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from asyncagg.errors import AsyncaggError, UsageError

__all__ = ("main",)


def main() -> None:
    """Run the command line; an error is one sentence, with a traceback only after ``--debug``."""
    try:
        _open_standard_streams()
        words, debug = _without_debug(sys.argv[1:])
        sys.exit(_exit_code(words, debug=debug))
    except BrokenPipeError:
        # The reader of the output is gone (`| head`). Without this, Python fails again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _open_standard_streams() -> None:
    """Open the standard streams that are closed (`>&-`): a socket must not get their number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - it stays open


def _without_debug(words: Sequence[str]) -> tuple[list[str], bool]:
    """Remove ``--debug`` before any ``--``; return the other words and whether it was there."""
    end = words.index("--") if "--" in words else len(words)
    kept = [word for word in words[:end] if word != "--debug"]
    return [*kept, *words[end:]], len(kept) < end


def _exit_code(words: list[str], *, debug: bool) -> int:
    # Imported here: the workers of a cluster import this package, but run no command.
    from typer import Abort  # noqa: PLC0415

    from asyncagg.cli.application import WrongUsage, application  # noqa: PLC0415

    try:
        code: int = application()(args=words, prog_name="asyncagg", standalone_mode=False) or 0
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except WrongUsage as error:
        code = 2
        error.show()
        _print_json_error(" ".join(error.format_message().split()), code, words)
    except Abort:
        code = 1
        _print_error("a question has no answer: nothing is changed", code, words, debug=debug)
    except AsyncaggError as error:
        code = 2 if isinstance(error, UsageError) else 1
        _print_error(f"{error}{_option(error)}", code, words, debug=debug)
    except Exception as error:  # noqa: BLE001 - people get a sentence, not a traceback
        code, hint = 1, "" if debug else "; --debug shows where"
        message = f"unexpected {type(error).__name__}: {error}{hint}"
        _print_error(message, code, words, debug=debug)
    return code


def _option(error: AsyncaggError) -> str:
    """Return the option of the setting that an error names, in parentheses; or empty."""
    setting = error.setting if isinstance(error, UsageError) else ""
    # The store is an argument, not an option.
    return f" (--{setting.replace('_', '-')})" if setting not in {"", "store"} else ""


def _print_error(message: str, code: int, words: Sequence[str], *, debug: bool) -> None:
    """Print an error for people; with ``--json`` also for programs."""
    from asyncagg.cli.base import err, print_text  # noqa: PLC0415 - as in `_exit_code`

    if debug:
        traceback.print_exc()
    print_text(f"error: {message}", to=err)
    _print_json_error(message, code, words)


def _print_json_error(message: str, code: int, words: Sequence[str]) -> None:
    from asyncagg.cli.base import print_json  # noqa: PLC0415 - as in `_exit_code`

    if "--json" in words:
        print_json({"error": message, "exit_code": code})
