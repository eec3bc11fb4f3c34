"""Tables on a terminal."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence


def aligned(rows: Iterable[Sequence[str]], left: Collection[int] | None = (0,)) -> list[str]:
    """Rows of cells as lines whose columns stand below each other, two spaces apart.

    Args:
      rows: of equally many cells each, the header first.
      left: places of the columns that are words, and begin below each other; the others are numbers, and end there.
        None: all are words.
    """
    whole = list(rows)
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.ljust(width) if left is None or place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    return [line(row) for row in whole]
