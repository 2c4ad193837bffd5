"""Tables as text: for a terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Table"]


@dataclass(frozen=True, slots=True)
class Table:
    """A table with a title.

    Attributes:
        title: one line above it.
        columns: heads of the columns. The first *words* hold text, the others numbers, which are set to the right.
        rows: a text for each column.
        words: how many columns hold text.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1

    def as_text(self) -> str:
        """For a terminal, in columns."""
        widths = self._widths()
        lines = ["  ".join(self._pad(row, widths)).rstrip() for row in (self.columns, *self.rows)]
        rule = "  ".join("-" * width for width in widths)
        return "\n".join([self.title, "", lines[0], rule, *lines[1:]])

    def as_markdown(self) -> str:
        """For a README; it reads well as it stands, too."""
        widths = self._widths()
        rule = ["-" * width if column < self.words else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
        rows = [self._pad(self.columns, widths), rule, *(self._pad(row, widths) for row in self.rows)]
        return "\n".join([f"**{self.title}**", "", *("| " + " | ".join(row) + " |" for row in rows)])

    def _widths(self) -> list[int]:
        return [max(3, *map(len, cells)) for cells in zip(self.columns, *self.rows, strict=True)]

    def _pad(self, row: Sequence[str], widths: Sequence[int]) -> list[str]:
        return [
            cell.ljust(width) if column < self.words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
