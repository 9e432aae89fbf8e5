"""Tables of text, as the results of this package print themselves."""

from collections.abc import Iterable, Sequence
from typing import Any


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Lay out a table: its first column holds words, the others numbers to four digits.

    >>> print(table(["layer", "size"], [["hidden", 12], ["output", 3.14159]]))
    layer    size
    ------  -----
    hidden     12
    output  3.142
    """
    cells = [list(header)]
    cells += [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
