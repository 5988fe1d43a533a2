"""Tables with small bars in their cells. On a phone each row of a wide one becomes a card."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from gradshard.report.markup import Markup, joined, tag

NAME: Final = None
NUMBER: Final = "number"
TIME: Final = "time"

FOLD_AFTER: Final = 12
"""A table with more rows is folded."""

MAX_COLUMNS: Final = 3
"""A table with more columns does not fit a phone, so its rows are drawn as cards there."""

MIN_BAR: Final = 0.8
"""Width of the narrowest bar, in percent of its cell: a narrower one could not be seen."""


class Column(NamedTuple):
    """A column.

    Parameters
    ----------
    heading
        Stands above the column, and on a phone beside each cell.
    kind
        A ``number`` or ``time``, which do not break; None for a name, which may break anywhere.
    """

    heading: str
    kind: str | None = NAME


class Cell(NamedTuple):
    """A cell with more than a text.

    Parameters
    ----------
    content
        The cell's text or element.
    bar
        Begin and end of the bar below the text, from 0 to 1; None draws no bar.
    style
        The class that colours the bar.
    """

    content: object
    bar: tuple[float, float] | None = None
    style: str = ""


def measured(content: object, value: float | None, most: float, style: str = "") -> Cell:
    """Return a cell whose bar is as long as ``value`` is large, up to the width for ``most``."""
    if value is None or most <= 0:
        return Cell(content)
    return Cell(content, (0.0, value / most), style)


def unknown() -> Markup:
    """Return a dash, which is read out as "unknown"."""
    return joined(tag("span", "–", aria_hidden="true"), tag("span", "unknown", class_="spoken"))


def table(
    caption: str,
    columns: Sequence[Column],
    rows: Sequence[Sequence[object]],
    *,
    most: int | None = None,
    of: int | None = None,
    fold_after: int = FOLD_AFTER,
) -> Markup:
    """Return a table; the first cell of each row is the heading of the row.

    Explicit roles keep it a table for screen readers, although on phones its rows are drawn as
    cards: some browsers forget the role of an element that is not drawn as a table.

    Parameters
    ----------
    caption
        The caption of the table.
    columns
        The columns, from the left.
    rows
        Texts, elements or :class:`Cell`, one for each column.
    most
        The most rows to show. The table says if there are more.
    of
        How many rows there are, if these are the first of more.
    fold_after
        A table with more rows is folded.
    """
    shown, total = rows[:most], of or len(rows)
    heads = (
        tag("th", column.heading, scope="col", role="columnheader", class_=column.kind)
        for column in columns
    )
    whole = _scrolling(
        caption,
        tag("thead", tag("tr", *heads, role="row"), role="rowgroup"),
        tag("tbody", *(_row(row, columns) for row in shown), role="rowgroup"),
        class_="cards" if len(columns) > MAX_COLUMNS else "narrow",
    )
    if len(shown) < total:
        note = f"The first {len(shown):,} of {total:,}; gradshard report --json has them all."
        whole = joined(whole, tag("p", note, class_="dim small"))
    if len(shown) <= fold_after:
        return whole
    return tag("details", tag("summary", f"{caption}: {total:,} rows"), whole, class_="listing")


def facts_table(caption: str, rows: Sequence[tuple[str, object]]) -> Markup:
    """Return a table of names and values."""
    body = (tag("tr", tag("th", name, scope="row"), tag("td", value)) for name, value in rows)
    return _scrolling(caption, tag("tbody", *body), class_="facts")


def _row(row: Sequence[object], columns: Sequence[Column]) -> Markup:
    cells = (
        _cell(cell, column, n) for n, (cell, column) in enumerate(zip(row, columns, strict=True))
    )
    return tag("tr", *cells, role="row")


def _cell(content: object, column: Column, number: int) -> Markup:
    cell = content if isinstance(content, Cell) else Cell(content)
    style, classes = None, column.kind
    if cell.bar:
        begin, end = (min(max(100 * edge, 0.0), 100.0) for edge in cell.bar)
        end = max(end, min(begin + MIN_BAR, 100.0)) if end > 0 else end
        style = f"--b:{end:.4g}%" if begin == 0 else f"--a:{begin:.4g}%;--b:{end:.4g}%"
        classes = " ".join(filter(None, (column.kind, "bar", cell.style)))
    if number == 0:
        return tag("th", cell.content, scope="row", role="rowheader", class_=classes, style=style)
    return tag(
        "td",
        cell.content,
        role="cell",
        class_=classes,
        data_label=None if cell.content == "" else column.heading,
        style=style,
    )


def _scrolling(caption: str, *groups: Markup, class_: str) -> Markup:
    """Return a table in a frame that the keyboard can reach and scroll."""
    return tag(
        "div",
        tag("table", tag("caption", caption), *groups, role="table", class_=class_),
        class_="scroll",
        role="group",
        tabindex=0,
        aria_label=caption,
    )
