"""The part about the cost of a round."""

from gradshard.report.parts.cost import ITEMS, cost_part
from tests.unit.report.html_page import Page
from tests.unit.report_rounds import sample


def test_every_item_has_a_row_and_the_heading_has_the_total() -> None:
    part = cost_part(sample())
    assert all(title in part.content for title in ITEMS.values())
    assert part.summary == "per 1,000 such rounds $0.41 measured, $0.37 projected"
    assert "in all $0.41 $0.37" in Page(part.content).words


def test_a_round_without_finished_tasks_has_projected_dollars_only() -> None:
    part = cost_part(sample(state="failed", cause="x", done=0))
    assert part.summary == "per 1,000 such rounds $0.37 projected"


def test_a_round_without_plan_has_no_bill() -> None:
    assert cost_part(sample(state="awaiting")).summary == "no tasks to pay for"
