"""Tables, their bars and their cards for phones."""

import pytest

from gradshard.report.tables import NUMBER, Cell, Column, facts_table, measured, table
from tests.unit.report.html_page import Page

COLUMNS = [Column("name"), *(Column(heading, NUMBER) for heading in ("one", "two", "three"))]


def test_first_cell_of_a_row_is_its_heading() -> None:
    found = Page(table("t", COLUMNS, [["a", "1", "2", "3"]]))
    assert [heading["scope"] for heading in found.of("th")] == ["col"] * 4 + ["row"]


def test_cells_repeat_the_heading_for_phones() -> None:
    found = Page(table("t", COLUMNS, [["a", "1", "2", "3"]]))
    assert [cell["data-label"] for cell in found.of("td")] == ["one", "two", "three"]


def test_roles_remain_when_rows_are_drawn_as_cards() -> None:
    found = Page(table("t", COLUMNS, [["a", "1", "2", "3"]]))
    roles = [attributes.get("role") for name, attributes in found.elements if name != "caption"]
    assert roles == [
        "group", "table", "rowgroup", "row", *["columnheader"] * 4,
        "rowgroup", "row", "rowheader", *["cell"] * 3,
    ]  # fmt: skip


@pytest.mark.parametrize(("columns", "class_"), [(3, "narrow"), (4, "cards")])
def test_only_wide_tables_become_cards(columns: int, class_: str) -> None:
    [found] = Page(table("t", COLUMNS[:columns], [])).of("table")
    assert found["class"] == class_


@pytest.mark.parametrize(
    ("cell", "style"),
    [
        (measured("5", 5, 10), "--b:50%"),
        (measured("0", 0, 10), "--b:0%"),
        (measured("1", 1, 1e6), "--b:0.8%"),
        (measured("", None, 10), None),
        (measured("0", 0, 0), None),
        (Cell("", (0.25, 0.75)), "--a:25%;--b:75%"),
        (Cell("", (0.999, 1.5)), "--a:99.9%;--b:100%"),
    ],
)
def test_bar_of_a_cell(cell: Cell, style: str | None) -> None:
    [found] = Page(table("t", COLUMNS[:2], [["a", cell]])).of("td")
    assert found.get("style") == style


def test_long_tables_fold_and_name_the_left_out_rows() -> None:
    found = Page(table("t", COLUMNS[:2], [[f"r{n}", ""] for n in range(30)], most=20))
    assert len(found.of("details")) == 1
    assert "t: 30 rows" in found.text
    assert "The first 20 of 30" in found.text
    assert len(found.of("tr")) == 21


def test_facts_table_has_row_headings() -> None:
    found = Page(facts_table("t", [("size", "1 MB"), ("rule", "fedavg")]))
    assert [heading["scope"] for heading in found.of("th")] == ["row", "row"]
