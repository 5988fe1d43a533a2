"""What clients are told to do next round."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradshard_core.errors import SpecError
from gradshard_core.stragglers.assignments import (
    FORGET_ROUNDS,
    Assigned,
    Assignment,
    Assignments,
    AssignmentSettings,
    Report,
    Speed,
    assign,
    bounded_steps,
    find_target,
    normalised_weights,
    note_bounded_steps,
    parse_assignment_settings,
    parse_report,
    progress,
)

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


def test_a_report_is_read_from_an_updates_metadata() -> None:
    assert parse_report(100, SETTINGS | {"train_seconds": "1.5", "num_samples": "100"}) == Report(
        100, 1.5, 16, 2, 14
    )


def test_work_is_known_from_steps_where_epochs_are_missing() -> None:
    known = parse_report(100, {"train_seconds": "8", "batch_size": "16", "steps": "5"})
    unknown = parse_report(100, {"train_seconds": "8", "steps": "5"})

    assert (known.processed, known.train_seconds) == (80, 8.0)
    assert unknown.train_seconds is None
    assert "its speed is not known" in unknown.notes[0]


@pytest.mark.parametrize(
    "text",
    [
        "0" * 19 + "1" + "9" * 5000,
        "0" * 19 + "1" + "9" * 400,
        "0",
        "-1",
        "1.5",
        "x",
        "",
        "9" * 400,
        "²",
    ],
)
def test_counts_that_are_none_are_not_believed(text: str) -> None:
    found = parse_report(100, {"train_seconds": "8", "epochs": text})

    assert found.epochs is None
    assert found.notes[0].startswith("epochs is ")


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
    ("stated", "text"),
    [
        ({"batch_size": 0}, "batch_size is 0, not a whole number above zero"),
        ({"epochs": 1.5}, r"epochs is 1\.5, not a whole number"),
        ({"epochs": True}, "epochs is True"),
        ({"learning_rate": math.nan}, "learning_rate is nan, not a number above zero"),
        ({"learning_rate": None}, "learning_rate of the base settings is missing"),
        ({"target_seconds": -1}, "target_seconds is -1"),
        ({"smoothing": 2}, "smoothing is 2, not over 0 and at most 1"),
        ({"max_epochs": 1}, "epochs is 2 in the base settings, out of its bounds 2 to 1"),
        ({"min_batch_size": 32}, "batch_size is 16 in the base settings, out of its bounds 32"),
        ({"momentum": 0.5}, "unknown field 'momentum'"),
    ],
)
def test_terms_that_make_no_sense_are_rejected(stated: dict[str, Any], text: str) -> None:
    with pytest.raises(SpecError, match=text):
        parse_assignment_settings(TERMS.to_json() | stated)


def test_base_settings_are_required() -> None:
    with pytest.raises(SpecError, match="epochs of the base settings is missing"):
        parse_assignment_settings({"batch_size": 16, "learning_rate": 0.1})


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_progress_is_how_far_constant_gradients_carry(momentum: float) -> None:
    velocity = position = 0.0
    for _ in range(7):
        velocity = momentum * velocity + 1.0
        position += velocity

    assert progress(7, 0.5, momentum) == pytest.approx(0.5 * position, rel=1e-12)


@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 1000)), min_size=1, max_size=8))
def test_normalised_weights_are_fednovas(clients: Sequence[tuple[int, int]]) -> None:
    samples, steps = zip(*clients, strict=True)
    updates = [float(index + 1) for index in range(len(clients))]

    weights = normalised_weights(samples, steps)

    # x - τ' Σ p d with d = Δ / τ, as the paper has it.
    shares = [n / sum(samples) for n in samples]
    mean_steps = sum(p * tau for p, tau in zip(shares, steps, strict=True))
    direction = sum(p * x / tau for p, x, tau in zip(shares, updates, steps, strict=True))
    result = sum(w * x for w, x in zip(weights, updates, strict=True))
    assert result == pytest.approx(mean_steps * direction, rel=1e-9)


def test_normalised_weights_of_equal_steps_are_the_plain_ones() -> None:
    assert normalised_weights([1, 3], [5, 5]) == [0.25, 0.75]


def test_normalising_ends_at_the_optimum_that_was_meant() -> None:
    """Two quadratic losses, one client taking ten steps for each of the other's."""

    def end(normalised: bool) -> float:
        x, optima, steps = 0.0, (0.0, 1.0), (1, 10)
        for _ in range(2000):
            moved = [
                (1 - 0.01) ** tau * (x - o) + o - x for tau, o in zip(steps, optima, strict=True)
            ]
            weights = normalised_weights([1, 1], steps) if normalised else [0.5, 0.5]
            x += sum(w * delta for w, delta in zip(weights, moved, strict=True))
        return x

    assert end(normalised=True) == pytest.approx(0.5, abs=0.02)
    assert end(normalised=False) > 0.9


@given(
    honest=st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 30)), min_size=2, max_size=12),
    claim=st.tuples(st.integers(1, 2**53), st.integers(1, 2**53)),
    place=st.integers(0, 12),
)
def test_one_client_cannot_scale_the_average_by_the_steps_it_claims(
    honest: list[tuple[int, int]], claim: tuple[int, int], place: int
) -> None:
    clients = [*honest[:place], claim, *honest[place:]]
    samples, steps = zip(*clients, strict=True)
    rng = np.random.default_rng(place)
    updates = rng.standard_normal((len(clients), 5))
    updates /= np.linalg.norm(updates, axis=1, keepdims=True)

    counted = bounded_steps(steps)
    weights = np.array(normalised_weights(samples, counted))

    least, most = min(tau for _, tau in honest), max(tau for _, tau in honest)
    assert all(least / 10 <= tau <= most * 10 for tau in counted)
    shares = np.array(samples) / sum(samples)
    assert (weights <= 100 * shares * (1 + 1e-9)).all()
    assert weights.sum() <= (10 + 1 / 10) ** 2 / 4 * (1 + 1e-9)
    assert np.linalg.norm(weights @ updates) <= 25.6
    if least == most:
        assert weights.sum() <= 11**2 / 40 * (1 + 1e-9)


def test_steps_near_their_median_are_not_clipped() -> None:
    assert bounded_steps([100, 10, 1000]) == [100, 10, 1000]
    assert bounded_steps([100, 9, 1001, 100]) == [100, 10, 1000, 100]
    assert bounded_steps([3]) == [3]
    # The lower median of two is the smaller one.
    assert bounded_steps([1, 2**53]) == [1, 10]
    assert bounded_steps([]) == []


def test_a_client_with_clipped_steps_is_noted() -> None:
    assert note_bounded_steps({"a": 5, "b": 50, "c": 7}) == []
    assert note_bounded_steps({"a": 5, "eve": 2**53, "z": 7}) == [
        "steps count within a factor of 10 of their median: eve 9007199254740992 as 70"
    ]
    [note] = note_bounded_steps({f"c{i:02}": 1 if i < 30 else 100 for i in range(60 - 1)})
    assert note.endswith("c49 100 as 10 and 9 more")


@pytest.mark.parametrize("steps", [0, -1, math.inf, math.nan])
def test_steps_that_are_none_cannot_be_normalised(steps: float) -> None:
    with pytest.raises(SpecError, match="contributor 1 made"):
        normalised_weights([1, 1], [1, steps])
