"""Tables and lists that fit the terminal: words are not broken."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

_PIECE = re.compile(r"\s+|[^\s/]*/+|[^\s/]+")
"""A line ends between words, or after a slash in a key."""

_GAP = 2

Row = Sequence[Text]


def print_table(
    console: Console,
    names: Sequence[str],
    rows: Sequence[Row],
    total: Row | None,
    *,
    numbers: Sequence[bool],
) -> None:
    """Print a table; if it is too wide for the console, a block per row with a line per value.

    Args:
        console: Where to print.
        names: The names of the columns.
        rows: The cells.
        total: The cells of the last row, below a line.
        numbers: Which columns have numbers, which are on the right.
    """
    everything = [[Text(name) for name in names], *rows, *([total] if total else [])]
    columns = [[cell.plain for cell in column] for column in zip(*everything, strict=True)]
    widths = _widths(columns, console.width - _GAP * (len(names) - 1))
    if widths is None:
        _print_blocks(console, names, [*rows, *([total] if total else [])])
        return

    def wrapped(row: Row) -> list[Text]:
        cells = zip(row, widths, strict=True)
        return [Text("\n".join(wrap(cell.plain, width)), cell.style) for cell, width in cells]

    footers = wrapped(total) if total else [Text() for _ in names]
    heads = zip(wrapped([Text(name) for name in names]), footers, numbers, strict=True)
    table = Table(
        *(
            Column(name, footer, justify="right" if number else "left", no_wrap=True)
            for name, footer, number in heads
        ),
        box=box.SIMPLE,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        show_footer=total is not None,
    )
    for row in rows:
        table.add_row(*wrapped(row))
    console.print(table)


def _widths(columns: Sequence[Sequence[str]], available: int) -> list[int] | None:
    """Return widths of the columns that fit, or None if not even their longest words do."""
    least = [
        _longest(piece.strip() for each in cells for piece in _PIECE.findall(each))
        for cells in columns
    ]
    wanted = [_longest(line for each in cells for line in each.split("\n")) for cells in columns]
    spare = available - sum(least)
    if spare < 0:
        return None
    widths = least
    # Columns that want little get it; the others share the rest.
    by_want = sorted(range(len(columns)), key=lambda index: wanted[index] - least[index])
    for place, index in enumerate(by_want):
        more = min(wanted[index] - least[index], spare // (len(columns) - place))
        widths[index] += more
        spare -= more
    return widths


def _longest(texts: Iterable[str]) -> int:
    return max(map(cell_len, texts), default=0)


def _print_blocks(console: Console, names: Sequence[str], rows: Sequence[Row]) -> None:
    margin = max(map(cell_len, names)) + _GAP
    for row in rows:
        for name, cell in zip(names, row, strict=True):
            lines = wrap(cell.plain, max(1, console.width - margin))
            text = f"\n{' ' * margin}".join(lines)
            console.print(Text.assemble(f"{name:{margin}}", (text, cell.style)), soft_wrap=True)
        console.print()


def wrap(text: str, width: int) -> list[str]:
    """Break text into lines of at most this width; only a word that is longer is cut."""
    return [line for paragraph in text.split("\n") for line in _wrap_paragraph(paragraph, width)]


def _wrap_paragraph(text: str, width: int) -> Iterator[str]:
    line = ""
    for piece in _PIECE.findall(text.rstrip()):
        if line.strip() and cell_len(line + piece) > width:
            yield line.rstrip()
            line = ""
            if piece.isspace():
                continue
        *full, rest = chop_cells(line + piece, width)
        yield from full
        line = rest
    yield line.rstrip()
