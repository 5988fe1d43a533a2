"""The summary at the top of the page."""

import pytest

from gradshard.report.round_facts import Facts
from tests.unit.report.html_page import read
from tests.unit.report_rounds import sample


def quiet(name: str, **options: object) -> Facts:
    """Return facts about a round with no rejected, late or missing client."""
    facts = sample(name, clients=4, missing=(), **options)  # type: ignore[arg-type]
    return {**facts, "rejected": [], "late": [], "expected": 4}


def failed(name: str, missing: list[str]) -> Facts:
    facts = quiet(name, state="failed", cause="1 good updates", is_planned=False)
    return {**facts, "missing": missing}


def top(*rounds: Facts) -> str:
    """Return the text above the list of contents, with single spaces."""
    text = read(*rounds).words
    return text.partition("· gradshard ")[2].partition(" gradshard report,")[0].replace(" ,", ",")


def test_counts_rounds_and_explains_the_failed_one() -> None:
    rounds = [quiet(f"night-{n}") for n in range(4)] + [failed("failed-1", ["bob", "carol"])]
    assert top(*rounds) == ("4 of 5 rounds completed failed-1 failed: bob and carol missing")


def test_is_one_line_if_every_round_averaged_every_client() -> None:
    assert top(quiet("a"), quiet("b")) == "2 of 2 rounds completed"


def test_completed_round_names_the_clients_it_did_without() -> None:
    assert top(sample()) == (
        "Round r1 completed averaged the updates of 8 of 12 clients; "
        "mallory rejected; tardy late; gone-1 and gone-2 missing"
    )


def test_failure_of_a_task_is_explained_by_its_cause() -> None:
    facts = {**quiet("r", state="failed", cause="out of memory"), "error": "States.TaskFailed"}
    assert top(facts) == "Round r failed failed: out of memory"


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ("awaiting", "Round r is waiting for updates waits for updates: 6 of 4 updates arrived"),
        ("aggregating", "Round r is aggregating aggregates: 2 of 4 tasks done"),
    ],
)
def test_round_that_goes_on_says_how_far_it_is(state: str, sentence: str) -> None:
    assert top(quiet("r", state=state, done=0.5)) == sentence


def test_many_clients_are_counted() -> None:
    text = top(failed("a", [f"c{n}" for n in range(40)]), quiet("b"))
    assert text.endswith("a failed: c0, c1, c2, c3, c4 and 35 others missing")


def test_many_rounds_are_counted() -> None:
    text = top(*(failed(f"r{n}", ["bob"]) for n in range(25)))
    assert text.startswith("0 of 25 rounds completed r0 failed: bob missing r1 failed")
    assert text.endswith("r9 failed: bob missing and 15 more rounds")


def test_failed_rounds_come_first_and_link_to_their_sections() -> None:
    rounds = [quiet("going", state="awaiting"), quiet("fine"), failed("broken", ["bob"])]
    links = [link["href"] for link in read(*rounds).of("a")]
    assert links[:2] == ["#round-3", "#round-1"]
