"""What clients are told to do next round."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradshard_core.stragglers.assignment_settings import (
    AssignmentSettings,
    parse_assignment_settings,
)
from gradshard_core.stragglers.assignments import (
    FORGET_ROUNDS,
    Assigned,
    Assignment,
    Assignments,
    Speed,
    assign,
    find_target,
)
from gradshard_core.stragglers.client_report import Report, parse_report

TERMS = AssignmentSettings(batch_size=16, epochs=2, learning_rate=0.05)
SETTINGS = {"batch_size": "16", "epochs": "2", "steps": "14"}


def report(seconds: float, samples: int = 100, epochs: int = 2) -> Report:
    return Report(samples, seconds, 16, epochs)


def assigned(
    terms: AssignmentSettings, reports: dict[str, Report], history: Sequence[Assigned] = ()
) -> Assignments:
    """Return what a round leaves."""
    found = sorted(reports.items())
    target = find_target(terms, found, history)
    return Assignments(terms, list(assign(terms, target, found, history)))


def speeds(found: Assignments) -> dict[str, Speed | None]:
    return {entry.client: entry.speed for entry in found.clients}


def notes(found: Assignments) -> list[str]:
    return [f"{entry.client}: {note}" for entry in found.clients for note in entry.notes]


def test_the_slowest_keeps_the_base_and_the_others_work_while_they_would_wait() -> None:
    reports = {"slow": report(80.0), "fast": report(20.0), "middle": report(30.0)}

    found = assigned(TERMS, reports)

    assert find_target(TERMS, sorted(reports.items())) == 80.0
    assert found.of("slow") == Assignment(16, 2, 0.05, 80.0)
    assert found.of("fast") == Assignment(32, 8, 0.1, 80.0)
    # 2.67 times as fast: 5 epochs of 15 s each.
    assert found.of("middle") == Assignment(32, 5, 0.1, 75.0)
    assert notes(found) == []


def test_within_its_bounds_the_batch_grows_as_the_epochs_do_and_the_rate_with_it() -> None:
    terms = replace(TERMS, max_batch_size=128, max_learning_rate=0.15)
    reports = {"slow": report(80.0), "fast": report(20.0), "middle": report(30.0)}

    found = assigned(terms, reports)

    assert found.of("fast") == Assignment(64, 8, 0.15, 80.0)
    assert found.of("middle") == Assignment(40, 5, 0.05 * 40 / 16, 75.0)


def test_a_client_with_few_samples_has_time_for_more_epochs() -> None:
    found = assigned(TERMS, {"many": report(40.0, samples=400), "few": report(20.0, samples=200)})

    assert (found.of("few").epochs, found.of("many").epochs) == (4, 2)


def test_settings_stay_within_their_bounds() -> None:
    terms = replace(TERMS, max_epochs=6, max_batch_size=24, max_learning_rate=0.06)

    found = assigned(terms, {"slow": report(80.0), "fast": report(1.0)}).of("fast")

    assert (found.epochs, found.batch_size, found.learning_rate) == (6, 24, 0.06)


def test_settings_stay_near_the_base_unless_allowed() -> None:
    reports = {"slow": report(1000.0, samples=1000), "fast": report(1.0, samples=1000)}

    assert assigned(TERMS, reports).of("fast") == Assignment(32, 16, 0.1, 8.0)
    assert assigned(replace(TERMS, max_epochs=100), reports).of("fast").epochs == 100


def test_a_batch_does_not_outgrow_the_clients_samples() -> None:
    found = assigned(TERMS, {"slow": report(80.0), "fast": report(1.0, samples=20)})

    assert found.of("fast").batch_size == 20
    assert found.of("fast").learning_rate == 0.05 * 20 / 16


def test_a_batch_larger_than_the_clients_samples_is_kept_where_it_is_the_base() -> None:
    terms = replace(TERMS, min_batch_size=1)
    found = assigned(terms, {"slow": report(80.0), "few": report(1.0, samples=4)})
    assert found.of("few").batch_size == 16


def test_the_operators_target_wins_over_the_slowest_clients_time() -> None:
    found = assigned(
        replace(TERMS, target_seconds=160.0), {"slow": report(80.0), "fast": report(20.0)}
    )

    assert (found.of("slow").epochs, found.of("fast").epochs) == (4, 16)


def test_a_client_that_cannot_meet_the_target_keeps_the_base_with_a_note() -> None:
    reports = {"slow": report(80.0), "fast": report(20.0)}

    kept = assigned(replace(TERMS, target_seconds=50.0), reports)
    less = assigned(replace(TERMS, target_seconds=50.0, min_epochs=1, min_batch_size=8), reports)

    assert kept.of("slow").epochs == 2
    assert notes(kept) == [
        "slow: predicted to take 80 s at the least it may do, over the target of 50 s",
    ]
    assert less.of("slow") == Assignment(8, 1, 0.05, 40.0)
    assert notes(less) == []


def test_new_clients_and_those_without_a_speed_start_at_the_base() -> None:
    found = assigned(TERMS, {"slow": report(80.0), "mute": parse_report(50, {})})

    assert found.of("mute") == found.of("new") == Assignment(16, 2, 0.05)
    assert assigned(TERMS, {}).of("new") == Assignment(16, 2, 0.05)


def test_a_speed_is_smoothed_over_rounds() -> None:
    first = assigned(TERMS, {"a": report(80.0)})
    second = assigned(TERMS, {"a": report(40.0)}, first.clients)

    assert speeds(first) == {"a": Speed(80 / 200, 100)}
    assert speeds(second) == {"a": Speed(0.5 * (40 / 200) + 0.5 * (80 / 200), 100)}


def test_a_report_of_other_settings_gives_the_same_speed() -> None:
    found = assigned(TERMS, {"a": report(80.0, epochs=4), "b": report(40.0)})

    assert speeds(found)["a"] == speeds(found)["b"]


def test_a_client_that_is_away_does_not_hold_up_the_others_and_keeps_its_speed() -> None:
    first = assigned(TERMS, {"slow": report(80.0), "fast": report(20.0)})
    second = assigned(TERMS, {"fast": report(20.0)}, first.clients)

    assert find_target(TERMS, [("fast", report(20.0))], first.clients) == 20.0
    assert second.of("fast") == Assignment(16, 2, 0.05, 20.0)
    assert second.of("slow") == Assignment(16, 2, 0.05, 80.0)
    assert speeds(second)["slow"] == Speed(80 / 200, 100, unseen=1)


def test_a_client_that_is_away_for_long_is_forgotten() -> None:
    document = assigned(TERMS, {"a": report(80.0), "b": report(20.0)})
    for _ in range(FORGET_ROUNDS + 1):
        document = assigned(TERMS, {"b": report(20.0)}, document.clients)

    assert list(speeds(document)) == ["b"]


REPORTS = st.dictionaries(
    st.sampled_from("abcde"),
    st.builds(report, st.floats(1e-3, 1e5), st.integers(1, 10**6), st.integers(1, 50)),
    min_size=1,
)


@given(REPORTS, st.integers(1, 64), st.integers(1, 10))
def test_any_reports_give_bounded_settings_that_fit_the_slowest(
    reports: dict[str, Report], batch_size: int, epochs: int
) -> None:
    terms = AssignmentSettings(batch_size, epochs, 0.1)

    found = assigned(terms, reports)

    target = find_target(terms, sorted(reports.items()))
    assert target is not None
    assert [found.of(c).epochs for c in reports if found.of(c).seconds == target]
    for client in reports:
        assignment = found.of(client)
        assert assignment.seconds is not None
        assert assignment.seconds <= target * (1 + 1e-6)
        assert epochs <= assignment.epochs <= 8 * epochs
        assert batch_size <= assignment.batch_size <= 2 * batch_size
        growth = assignment.batch_size / batch_size
        assert assignment.learning_rate == pytest.approx(0.1 * growth)
        # One epoch more would be one too many.
        one_more = assignment.seconds / assignment.epochs * (assignment.epochs + 1)
        assert assignment.epochs == 8 * epochs or one_more > target


def test_what_a_round_leaves_of_a_client_is_read_back_as_it_was_written() -> None:
    terms = replace(TERMS, target_seconds=50.0)
    found = assigned(terms, {"a": report(80.0), "b": report(20.0), "c": parse_report(1, {})})

    written = json.loads(json.dumps(list(map(asdict, found.clients))))

    assert [entry["client"] for entry in written] == ["a", "b", "c"]
    assert list(map(Assigned.from_json, written)) == found.clients
    assert parse_assignment_settings(json.loads(json.dumps(terms.to_json()))) == terms


@pytest.mark.parametrize(
    ("metadata", "note"),
    [
        ({}, "train_seconds is missing"),
        ({"train_seconds": "soon"}, "train_seconds is 'soon', not a number"),
        ({"train_seconds": "0"}, "train_seconds is '0', not over 0"),
        ({"train_seconds": "-3"}, "train_seconds is '-3', not over 0"),
        ({"train_seconds": "nan"}, "train_seconds is 'nan'"),
        ({"train_seconds": "inf"}, "train_seconds is 'inf'"),
        ({"train_seconds": "1e9"}, "train_seconds is '1e9', not over 0 and at most 604800"),
        ({"train_seconds": "1e-9"}, "'1e-9' for 200 samples, under a nanosecond each"),
    ],
)
def test_an_absurd_time_is_ignored_with_a_note(metadata: dict[str, str], note: str) -> None:
    absurd = parse_report(100, SETTINGS | metadata)
    before = Assigned("a", Assignment(16, 2, 0.05), Speed(0.4, 100))

    found = assigned(TERMS, {"a": absurd, "b": report(20.0)}, [before])

    assert absurd.train_seconds is None
    [noted] = notes(found)
    assert noted.startswith("a: ")
    assert note in noted
    assert speeds(found)["a"] == Speed(0.4, 100)
