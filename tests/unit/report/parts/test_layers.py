"""The part about the layers of partial updates."""

from gradshard.report.parts.layers import layers_part
from gradshard.report.parts.part import Part
from gradshard.report.row_limits import Detail
from tests.unit.report.html_page import Page
from tests.unit.report_rounds import sample

DETAIL = Detail.for_rounds(1)


def part_of(**options: int) -> Part:
    part = layers_part(sample(**options), DETAIL)  # type: ignore[arg-type]
    assert part is not None
    return part


def test_whole_updates_have_no_such_part() -> None:
    assert layers_part(sample(), DETAIL) is None


def test_the_summary_says_how_many_clients_cover_a_layer() -> None:
    assert part_of(clients=8, layers=5).summary == "5 layers · each covered by 0 to 8 clients"


def test_weights_are_written_by_client_and_layer() -> None:
    text = Page(part_of(clients=8, layers=5).content).words
    assert "client 1: block.0.conv 2: block.1.conv" in text
    assert "Weight by client and layer; empty if the client lacks the layer" in text


def test_many_weights_are_drawn() -> None:
    content = part_of(clients=40, layers=30).content
    assert ("<svg" in content, "1: block.0.conv" in content) == (True, False)


def test_a_long_name_is_not_repeated_in_every_cell() -> None:
    facts = sample(clients=8, layers=5)
    facts["layers"][0]["name"] = "x" * 5_000
    part = layers_part(facts, DETAIL)
    assert part is not None
    assert part.content.count("x" * 61) == 5_000 // 61
