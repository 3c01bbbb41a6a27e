"""The command line: one module per command, on top of the library."""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from asyncagg.errors import NO_SPACE, AsyncaggError, UsageError

__all__ = ("main",)

_log = logging.getLogger(__name__)


def main() -> None:
    """Run the command line; an error is one sentence, with a traceback only after ``--debug``."""
    try:
        _open_standard_streams()
        words, debug = _without_debug(sys.argv[1:])
        sys.exit(_exit_code(words, debug=debug))
    except OSError as error:
        if error.errno not in {errno.EPIPE, *NO_SPACE}:
            raise
        # The reader of the output is gone (`| head`), or its disk is full, which `_report` has
        # said on standard error. Without this, Python fails again at exit.
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
    # Imported here: Ctrl-C is handled at once, and the workers of a cluster run no command.
    from typer import Abort  # noqa: PLC0415 - see above

    from asyncagg.cli.application import WrongUsage, application  # noqa: PLC0415 - see above
    from asyncagg.runtime import logs  # noqa: PLC0415 - see above

    if "--json" in words:  # from the first line on, also before the settings are read
        logs.configure("info", json=True)
    code: int
    try:
        code = application()(args=words, prog_name="asyncagg", standalone_mode=False) or 0
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except WrongUsage as error:
        code = 2
        if "--json" in words:
            message = " ".join(error.format_message().split())
            _report(error, message, code, words, debug=debug)
        else:
            error.show()
    except Abort as error:
        code = 1
        _report(error, "no answer: nothing is changed", code, words, debug=debug)
    except AsyncaggError as error:
        code = 2 if isinstance(error, UsageError) else 1
        _report(error, f"{error}{_option(error)}", code, words, debug=debug)
    except Exception as error:  # noqa: BLE001 - people get a sentence, not a traceback
        code = 1
        _report(error, _sentence(error, debug=debug), code, words, debug=debug)
    sys.stdout.flush()  # it fails here, not at exit, if the output finds no space
    return code


def _sentence(error: Exception, *, debug: bool) -> str:
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        place = f"{error.filename!r}" if error.filename else "the output or temporary files"
        return f"{error.strerror}: free some space for {place}, and run it again"
    return f"unexpected {type(error).__name__}: {error}{'' if debug else '; --debug shows where'}"


def _option(error: AsyncaggError) -> str:
    """Return the option of the setting that an error names, in parentheses; or empty."""
    setting = error.setting if isinstance(error, UsageError) else ""
    # The store is an argument, not an option.
    return f" (--{setting.replace('_', '-')})" if setting not in {"", "store"} else ""


def _report(
    error: Exception, message: str, code: int, words: Sequence[str], *, debug: bool
) -> None:
    """Print an error; with ``--json`` as a line of the log and a document on standard output."""
    from asyncagg.cli.base import err, print_json, print_text  # noqa: PLC0415 - as in `_exit_code`

    if "--json" in words:
        fields = {"error": type(error).__name__, "reason": message}
        _log.error("failed", extra=fields, exc_info=error if debug else None)
        print_json({"error": message, "exit_code": code})
        return
    if debug:
        traceback.print_exc()
    print_text(f"error: {message}", to=err)
