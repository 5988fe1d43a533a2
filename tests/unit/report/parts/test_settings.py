"""The part about the settings of a round."""

from gradshard.report.parts.settings import settings_part
from tests.unit.report.html_page import Page
from tests.unit.report_rounds import sample


def test_a_plan_is_summarized() -> None:
    part = settings_part(sample(clients=9, groups=2, shards=3))
    assert part.summary == (
        "fedavg · topology grid · M = 3 · updates of 44.7 MB, 62 tensors · waited 7 min for updates"
    )
    assert "2 groups of 4 to 5; 1 group of 2" in part.content


def test_moments_have_date_and_time() -> None:
    text = Page(settings_part(sample()).content).words
    assert "opened at 2026-03-01 12:00:00 UTC" in text
    assert "deadline at 2026-03-01 12:30:00 UTC" in text


def test_a_version_of_a_model_and_its_updates_are_named() -> None:
    model = {"version": 3, "model": "resnet", "optimizer": {"optimizer": "fedadam"}}
    text = Page(settings_part({**sample(), "model": model, "updates_from": "before"}).content).words
    assert "version 3 of resnet, by fedadam" in text
    assert "round before" in text


def test_a_round_without_plan_says_so() -> None:
    assert "not planned" in settings_part(sample(state="awaiting")).content
