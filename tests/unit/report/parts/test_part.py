"""What several parts of a round's section write alike."""

from gradshard.report.parts.part import format_dollars, format_moment, shorten
from gradshard.report.row_limits import Detail


def test_many_rounds_have_less_detail() -> None:
    one, many = Detail.for_rounds(1), Detail.for_rounds(200)
    assert one > many
    assert (many.rows, many.cells) == (20, 30)


def test_a_long_reason_says_how_much_is_missing() -> None:
    assert shorten("short") == "short"
    assert shorten("x" * 12, 10) == "xxxxxxxxxx… (2 more characters)"


def test_dollars_are_those_of_a_thousand_rounds() -> None:
    assert format_dollars(0.00123) == "$1.23"
    assert format_dollars(0.00000123) == "$0.0012"


def test_a_moment_of_the_same_day_has_no_date() -> None:
    written = "2026-03-01T12:00:05+00:00"
    assert format_moment(written) == "2026-03-01 12:00:05 UTC"
    assert format_moment(written, since="2026-03-01T00:00:00+00:00") == "12:00:05 UTC"
    assert format_moment(written, since="2026-02-28T00:00:00+00:00").startswith("2026-03-01 ")
