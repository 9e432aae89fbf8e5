"""Plain-text tables for printing results."""

from collections.abc import Iterable, Sequence
from typing import Any


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], words: int = 1) -> str:
    """Format a table: the first `words` columns are left-aligned text, the others numbers to four digits.

    >>> print(table(["layer", "size"], [["hidden", 12], ["output", 3.14159]]))
    layer    size
    ------  -----
    hidden     12
    output  3.142
    """
    cells = [list(header)]
    cells += [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    sides = [str.ljust] * words + [str.rjust] * (len(header) - words)
    lines = [
        "  ".join(put(cell, width) for put, cell, width in zip(sides, row, widths, strict=True)).rstrip()
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
