"""The part about a round's clients."""

import re
from datetime import timedelta

from gradshard.report.parts.clients import clients_part
from gradshard.report.row_limits import Detail
from tests.unit.report.html_page import Page
from tests.unit.report_rounds import OPENED, arrival, sample, small

DETAIL = Detail.for_rounds(1)


def test_every_client_has_a_row_with_its_outcome_as_text() -> None:
    text = Page(clients_part(sample(clients=2), DETAIL).content).words
    for words in (
        "mallory rejected 3 min", "tardy late 7 min 02 s", "gone-1 missing",
        "gone-2 missing", "client-0000 counted", "client-0001 counted",
    ):  # fmt: skip
        assert words in text, words


def test_clients_that_need_attention_come_first() -> None:
    content = clients_part(sample(clients=1), DETAIL).content
    rows = re.findall('<th scope="row"[^>]*><bdi>(.*?)</bdi>', content)
    assert rows == ["mallory", "tardy", "gone-1", "gone-2", "client-0000"]


def test_columns_without_content_are_left_out() -> None:
    text = Page(clients_part(small(arrived=[arrival("a")]), DETAIL).content).words
    assert "weight" in text
    assert "reason" not in text


def test_uploads_that_wait_are_listed() -> None:
    facts = sample(state="awaiting", clients=3)
    part = clients_part(facts, DETAIL)
    assert "3 waiting" in part.summary
    assert "client-0002 waiting" in Page(part.content).words


def test_a_replaced_upload_has_an_unknown_time() -> None:
    facts = small(arrived=[arrival("a", etag="newer")], contributors={"a": "planned"})
    assert "counted unknown" in Page(clients_part(facts, DETAIL).content).words


def test_the_date_is_written_if_it_is_another_day() -> None:
    later = {**arrival("a"), "arrived_at": (OPENED + timedelta(days=1)).isoformat()}
    assert "2026-03-02 12:00:00 UTC" in clients_part(small(arrived=[later]), DETAIL).content
    same = clients_part(small(arrived=[arrival("a")]), DETAIL).content
    assert re.search(r"[^ ]12:00:00 UTC", same)


def test_updates_of_another_round_have_no_waiting_time() -> None:
    facts = {**sample(), "updates_from": "before"}
    content = clients_part(facts, DETAIL).content
    assert "arrived after" not in content
    assert "The updates were sent to round before" in Page(content).words


def test_no_update_of_a_failed_round_counts() -> None:
    part = clients_part(sample(state="failed", cause="x", clients=3), DETAIL)
    assert part.summary.startswith("3 of 7 planned · 1 rejected")
    assert "counted" not in part.content


def test_codecs_of_compressed_updates_stand_beside_their_errors() -> None:
    facts = sample(clients=2)
    assert "codec" not in Page(clients_part(facts, DETAIL).content).words
    facts["contributors"][0] |= {"codec": "int8", "codec_error": 0.00512}
    facts["contributors"][1] |= {"codec": "topk", "codec_error": None}
    words = Page(clients_part(facts, DETAIL).content).words
    assert "int8, error 0.0051" in words
    assert "topk" in words
