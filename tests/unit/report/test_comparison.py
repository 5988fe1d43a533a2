"""The table that compares rounds."""

import re

from gradshard.report.comparison import comparison
from tests.unit.report.html_page import Page
from tests.unit.report_rounds import sample

SEVERAL = [
    sample("small", clients=4),
    sample("large", clients=8),
    sample("broken", state="failed", cause="x", done=0, is_planned=False),
]


def rows() -> list[str]:
    return re.findall("<tr.*?</tr>", comparison(SEVERAL))[1:]


def test_has_the_name_and_state_of_each_round() -> None:
    text = Page(comparison(SEVERAL)).words
    for words in ("small completed 4", "large completed 8", "broken ✕ failed"):
        assert words in text


def test_bars_are_relative_to_the_largest_number() -> None:
    small, large, _ = rows()
    assert 'data-label="counted" style="--b:50%"' in small
    assert 'data-label="counted" style="--b:100%"' in large


def test_failed_round_has_dashes_instead_of_zeros() -> None:
    _, _, broken = rows()
    assert broken.count("unknown") == 7
    assert re.findall('data-label="([a-z]+)" style', broken) == ["rejected"]


def test_is_one_table_without_drawings() -> None:
    found = Page(comparison(SEVERAL))
    assert (len(found.of("table")), found.of("svg")) == (1, [])
