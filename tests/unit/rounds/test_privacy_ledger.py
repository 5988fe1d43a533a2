"""A model's privacy ledger: nothing is lost, and nothing is refunded."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from gradshard_core.errors import PrivacyBudgetError
from gradshard_core.formats.object_keys import ModelKeys
from gradshard_core.privacy.noise_tree import Place
from gradshard_core.privacy.privacy_mechanism import PrivacyMechanism, parse_privacy
from gradshard_core.records.privacy_ledger import (
    PrivacyBudget,
    PrivacyLedger,
    change_ledger,
    enter,
    read_ledger,
    release,
)
from gradshard_core.s3.store import S3Store
from tests.unit.fakes import MemoryStore

DP = PrivacyMechanism(1.0, 2.0, 1e-5)  # costs 1/4
AT = "2026-01-01T00:00:00+00:00"
NAMED = re.compile(
    r"a noise_multiplier of at least (?P<noise_multiplier>[\d.]+)"
    r"( and a count_deviation of at least (?P<count_deviation>[\d.]+))?$"
)


@pytest.fixture
def store() -> S3Store:
    return MemoryStore()


def limit(store: S3Store, allowance: float) -> None:
    budget = PrivacyBudget(8.0, 1e-5, allowance)
    change_ledger(store, "m", lambda ledger: replace(ledger, budget=budget))


def test_costs_add_up_and_entering_twice_counts_once(store: S3Store) -> None:
    for name in ("r1", "r2", "r1", "r2"):
        enter(store, "m", name, AT, DP, 9)
    ledger = read_ledger(store, "m")
    assert [entry.round_id for entry in ledger.entries] == ["r1", "r2"]
    assert ledger.spent == 0.5
    assert ledger.entries[0].clients == 9
    assert PrivacyLedger.from_json(ledger.to_json()) == ledger


def in_tree(leaf: int, tree: str = "one") -> PrivacyMechanism:
    return PrivacyMechanism(1.0, 2.0, 1e-5, tree=Place("t", tree, leaf, (), 9))


def test_a_tree_costs_as_much_as_it_has_levels_whichever_rounds_pay(store: S3Store) -> None:
    costs: list[float | None] = []
    for leaf in (1, 1, 2, 3, 6, 7, 8):
        enter(store, "m", f"r{len(costs)}", AT, in_tree(leaf), 9)
        costs.append(read_ledger(store, "m").entries[-1].cost)
    assert costs == [0.25, 0, 0.25, 0, 0.25, 0, 0.25]
    enter(store, "m", "r", AT, in_tree(1, "another"), 9)
    assert read_ledger(store, "m").spent == 1.25


def test_a_refund_that_comes_late_takes_nothing_from_a_tree(store: S3Store) -> None:
    """The repetition has paid nothing, because the round that failed had."""
    enter(store, "m", "r1", AT, in_tree(1), 9)
    enter(store, "m", "r1-again1", AT, in_tree(1), 9)
    release(store, "m", "r1", AT)
    assert read_ledger(store, "m").spent == 0.25


def test_round_that_would_exceed_the_budget_is_refused_with_what_would_fit(store: S3Store) -> None:
    limit(store, 0.6)
    enter(store, "m", "r1", AT, DP, 9)
    enter(store, "m", "r2", AT, DP, 9)
    with pytest.raises(
        PrivacyBudgetError,
        match=r"ε 8 at δ 1e-05, allows .* of 0.6 over its rounds; 2 rounds have spent 0.5, and "
        "noise_multiplier 2 costs 0.25 more: one more round fits with a noise_multiplier of at "
        "least 3.163",
    ):
        enter(store, "m", "r3", AT, DP, 9)
    assert len(read_ledger(store, "m").entries) == 2
    enter(store, "m", "r3", AT, PrivacyMechanism(1.0, 3.163, 1e-5), 9)
    assert read_ledger(store, "m").spent <= 0.6


def test_spent_budget_allows_nothing(store: S3Store) -> None:
    limit(store, 0.25)
    enter(store, "m", "r1", AT, DP, 9)
    with pytest.raises(PrivacyBudgetError, match="the model takes no further rounds"):
        enter(store, "m", "r2", AT, PrivacyMechanism(1.0, 1000.0, 1e-5), 9)


@pytest.mark.parametrize("adaptive", [{}, {"quantile": 0.5}], ids=str)
@pytest.mark.parametrize("multiplier", [0.3, 1.1, 378.009])
def test_noise_that_a_refusal_names_fits(
    store: S3Store, multiplier: float, adaptive: dict[str, float]
) -> None:
    dp = {"clip": 1.0, "noise_multiplier": multiplier, "delta": 1e-5, **adaptive}
    refused = parse_privacy(dp)
    for number in range(1, 200):
        limit(store, refused.cost * 0.97**number)
        with pytest.raises(PrivacyBudgetError) as error:
            enter(store, "m", "refused", AT, refused, 9)
        found = NAMED.search(str(error.value))
        if found is None:
            assert "the model takes no further rounds" in str(error.value)
            assert refused.cost * 0.97**number < 1.1e-6  # 1 / 1000², of the most noise
            continue
        fitting = {name: float(value) for name, value in found.groupdict().items() if value}
        enter(store, "m", "fitting", AT, parse_privacy(dp | fitting), 9)
        store.delete(ModelKeys("m").ledger)


def test_budget_allows_no_round_without_noise(store: S3Store) -> None:
    limit(store, 1.0)
    with pytest.raises(PrivacyBudgetError, match="allows no round without noise: open it with dp"):
        enter(store, "m", "r1", AT, None, 9)


def test_round_without_noise_has_no_bound_and_starts_no_ledger(store: S3Store) -> None:
    enter(store, "m", "r0", AT, None, 9)
    assert read_ledger(store, "m") == PrivacyLedger()
    enter(store, "m", "r1", AT, DP, 9)
    enter(store, "m", "r2", AT, None, 9)
    assert read_ledger(store, "m").spent == math.inf
    assert read_ledger(store, "other") == PrivacyLedger()


def test_round_that_failed_before_noise_costs_nothing_but_stays(store: S3Store) -> None:
    enter(store, "m", "r1", AT, DP, 9)
    enter(store, "m", "r2", AT, DP, 9)
    for _ in range(2):
        release(store, "m", "r1", AT)
    ledger = read_ledger(store, "m")
    assert ledger.spent == 0.25
    assert [entry.cost for entry in ledger.entries] == [0.0, 0.25]


def test_another_round_of_the_same_name_costs_its_own(store: S3Store) -> None:
    limit(store, 0.6)
    later = "2026-07-01T00:00:00+00:00"
    enter(store, "m", "r1", AT, DP, 9)
    enter(store, "m", "r1", later, DP, 9)
    assert read_ledger(store, "m").spent == 0.5
    release(store, "m", "r1", later)
    assert [entry.cost for entry in read_ledger(store, "m").entries] == [0.25, 0.0]
    with pytest.raises(PrivacyBudgetError):
        enter(store, "m", "r1", "2026-12-01T00:00:00+00:00", PrivacyMechanism(1.0, 0.5, 1e-5), 9)


def test_going_back_takes_back_nothing(store: S3Store) -> None:
    for name in ("r2", "r3", "r5"):
        enter(store, "m", name, AT, DP, 9)
    # Version 1 was put there, version 4 goes back to version 1, and r3 made no version.
    versions = [(1, None), (2, "r2"), (3, "r3"), (4, None), (5, "r5"), (6, None)]
    spent = read_ledger(store, "m").by_version(versions)
    assert spent == {1: 0.0, 2: 0.25, 3: 0.5, 4: 0.5, 5: 0.75, 6: 0.75}


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have two other rounds entered between a round's reading of the ledger and its writing."""
    put_json: Callable[..., bool] = S3Store.put_json
    others = iter(["x1", "x2"])

    def put_after_another(self: S3Store, key: str, value: Any, **more: Any) -> bool:
        other = next(others, None)
        if other is not None:
            enter(self, "m", other, AT, DP, 9)
        return put_json(self, key, value, **more)

    monkeypatch.setattr(S3Store, "put_json", put_after_another)


@pytest.mark.usefixtures("others")
def test_no_entry_of_another_writer_is_lost(store: S3Store) -> None:
    enter(store, "m", "r1", AT, DP, 9)
    assert {e.round_id for e in read_ledger(store, "m").entries} == {"x1", "x2", "r1"}


def test_what_others_spend_meanwhile_counts(store: S3Store, request: pytest.FixtureRequest) -> None:
    limit(store, 0.5)
    request.getfixturevalue("others")
    with pytest.raises(PrivacyBudgetError, match=r"2 rounds have spent 0\.5"):
        enter(store, "m", "r1", AT, DP, 9)
    assert {e.round_id for e in read_ledger(store, "m").entries} == {"x1", "x2"}
