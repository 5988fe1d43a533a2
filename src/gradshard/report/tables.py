"""Tables that scroll on their own and fold when they are long."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from gradshard.report.markup import Markup, joined, tag

NAME: Final = "name"
NUMBER: Final = "number"
TIME: Final = "time"

FOLD_AFTER: Final = 12
"""Longer tables are folded until they are asked for."""


class Column(NamedTuple):
    """A column's heading, and what is in it: a name, which may break, a number or a time."""

    heading: str
    kind: str = NAME


def table(
    caption: str,
    columns: Sequence[Column],
    rows: Sequence[Sequence[object]],
    *,
    most: int | None = None,
    fold_after: int = FOLD_AFTER,
) -> Markup:
    """Return a table.

    Parameters
    ----------
    caption
        What it has.
    columns
        Their headings.
    rows
        Cells, row by row.
    most
        How many rows to show; the table says if there are more.
    fold_after
        With more rows the table is folded.
    """
    shown = rows[:most]
    heads = (tag("th", column.heading, scope="col", class_=column.kind) for column in columns)
    body = (
        tag(
            "tr",
            *(tag("td", c, class_=col.kind) for c, col in zip(row, columns, strict=True)),
        )
        for row in shown
    )
    whole = _scrolling(caption, tag("thead", tag("tr", *heads)), tag("tbody", *body))
    if len(shown) < len(rows):
        note = f"The first {len(shown):,} of {len(rows):,}; gradshard report --json has them all."
        whole = joined(whole, tag("p", note, class_="dim small"))
    if len(shown) <= fold_after:
        return whole
    return tag("details", tag("summary", f"{caption}: {len(rows):,} rows"), whole)


def facts_table(caption: str, rows: Sequence[tuple[str, object]]) -> Markup:
    """Return a table of names and values."""
    body = (tag("tr", tag("th", name, scope="row"), tag("td", value)) for name, value in rows)
    return _scrolling(caption, tag("tbody", *body))


def _scrolling(caption: str, *groups: Markup) -> Markup:
    return tag(
        "div",
        tag("table", tag("caption", caption), *groups),
        class_="scroll",
        role="region",
        tabindex=0,
        aria_label=caption,
    )
