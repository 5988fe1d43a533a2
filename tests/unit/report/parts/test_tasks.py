"""The part about a round's tasks."""

import itertools
import re
from datetime import timedelta

from gradshard.report.parts.part import ONE_BY_ONE
from gradshard.report.parts.tasks import tasks_part
from gradshard.report.row_limits import Detail
from tests.unit.report.html_page import Page
from tests.unit.report_rounds import PLANNED, sample, small

DETAIL = Detail.for_rounds(1)


def test_tasks_of_less_than_a_second_are_drawn_where_they_ran() -> None:
    """A clock of whole seconds would draw them one behind the other, in the same place."""
    one = {**sample()["tasks"][0], "seconds": 0.1}
    starts = [(PLANNED + timedelta(milliseconds=ms)).isoformat() for ms in (100, 300, 500)]
    tasks = [{**one, "task": n, "started_at": at} for n, at in enumerate(starts)]
    drawn = tasks_part(small(tasks=tasks), DETAIL).content
    cells = re.findall(r'data-label="ran[^>]*--a:([0-9.]+)%;--b:([0-9.]+)%', drawn)
    found = sorted((float(begin), float(end)) for begin, end in cells)
    assert len(found) == 3
    assert all(before[1] < after[0] for before, after in itertools.pairwise(found))


def test_the_numbers_of_a_bar_are_written_in_its_cell() -> None:
    started = (PLANNED + timedelta(seconds=0.25)).isoformat()
    record = {**sample(shards=1)["tasks"][0], "started_at": started, "seconds": 1.5}
    text = Page(tasks_part(small(tasks=[record]), DETAIL).content).words
    assert "level 0, task 0 0.25 to 1.75 s 1.50" in text


def test_few_tasks_are_listed_by_start_and_many_by_their_seconds() -> None:
    few = tasks_part(sample(shards=ONE_BY_ONE), DETAIL).content
    many = tasks_part(sample(shards=ONE_BY_ONE + 1), DETAIL).content
    assert ("Tasks by start" in few, "<svg" in few) == (True, False)
    assert ("Tasks, the slowest first" in many, "<svg" in many) == (True, True)


def test_a_failed_round_was_not_aggregated() -> None:
    summary = tasks_part(sample(state="failed", cause="x", done=0.5), DETAIL).summary
    assert "2 of 4 done · failed after " in summary


def test_a_round_without_plan_has_no_tasks() -> None:
    part = tasks_part(sample(state="awaiting"), DETAIL)
    assert part.summary == "none planned"
    assert "No task has reported." in part.content
