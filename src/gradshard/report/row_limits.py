"""How much of each round the page shows."""

from typing import NamedTuple, Self


class Detail(NamedTuple):
    """Amount of detail that the page shows of each round: less if there are many rounds.

    Parameters
    ----------
    rows
        The most rows of a table.
    cells
        Rows and columns of a heat map.
    """

    rows: int
    cells: int

    @classmethod
    def for_rounds(cls, number: int) -> Self:
        """Return the detail that keeps the page at a megabyte or two."""
        return cls(max(20, 2_000 // (number + 1)), max(30, 120 - 5 * number))
