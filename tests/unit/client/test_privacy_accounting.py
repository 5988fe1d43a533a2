"""ε of a model's ledger, beside dp-accounting's composition of its rounds one by one."""

import itertools
import math
from dataclasses import replace

import pytest

from gradshard.client.model import Model
from gradshard.client.privacy_accounting import budget_of, epsilon_of
from gradshard_core.aggregation.noise_tree import Place
from gradshard_core.aggregation.privacy import PrivacyMechanism, parse_privacy
from gradshard_core.errors import PrivacyBudgetError, SpecError
from gradshard_core.formats.keys import StoredTensors
from gradshard_core.records import model_registry
from gradshard_core.records.model_registry import Version
from gradshard_core.records.privacy_ledger import Entry, PrivacyLedger, enter
from tests.unit.fakes import MemoryStack, MemoryStore

dp_accounting = pytest.importorskip(
    "dp_accounting", reason="dp-accounting is not installed: `make test-privacy`"
)

MULTIPLIERS = [[1.1], [0.5, 3.0], [1.0] * 100, [8.0] * 7, [0.7, 1.1, 2.5, 40.0] * 5]
SETTINGS = list(itertools.product(MULTIPLIERS, [1e-3, 1e-5, 1e-6, 1e-9]))


@pytest.mark.parametrize(("multipliers", "delta"), SETTINGS)
def test_epsilon_is_that_of_the_rounds_one_by_one(multipliers: list[float], delta: float) -> None:
    accountant = dp_accounting.rdp.RdpAccountant()
    for multiplier in multipliers:
        accountant.compose(dp_accounting.GaussianDpEvent(multiplier))
    spent = math.fsum(PrivacyMechanism(1.0, z, delta).cost for z in multipliers)
    assert epsilon_of(spent, delta) == pytest.approx(accountant.get_epsilon(delta), abs=1e-6)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0, 100.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
def test_allowance_is_the_most_that_stays_within_the_budget(epsilon: float, delta: float) -> None:
    budget = budget_of(epsilon, delta)
    assert epsilon_of(budget.allowance, delta) <= epsilon
    assert epsilon_of(budget.allowance * (1 + 1e-9), delta) > epsilon


def test_no_round_and_a_round_without_noise() -> None:
    assert epsilon_of(0.0, 1e-5) == 0
    assert epsilon_of(math.inf, 1e-5) == math.inf


@pytest.mark.parametrize(
    ("epsilon", "delta"), [(0, 1e-5), (-1, 1e-5), (1, 0), (1, 0.5), (1e9, 1e-5)]
)
def test_budgets_out_of_bounds_are_refused(epsilon: float, delta: float) -> None:
    with pytest.raises(SpecError, match="not a number above 0 and at most"):
        budget_of(epsilon, delta)


def test_epsilon_of_an_adaptive_clip_is_that_of_both_releases() -> None:
    adaptive = {"clip": 1.0, "noise_multiplier": 1.5, "delta": 1e-5, "quantile": 0.5}
    accountant = dp_accounting.rdp.RdpAccountant()
    for _ in range(10):
        accountant.compose(dp_accounting.GaussianDpEvent(1.5))
        accountant.compose(dp_accounting.GaussianDpEvent(7.5))
    spent = math.fsum([parse_privacy(adaptive).cost] * 10)
    assert epsilon_of(spent, 1e-5) == pytest.approx(accountant.get_epsilon(1e-5), abs=1e-6)


@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
@pytest.mark.parametrize(
    ("multiplier", "leaves", "trees"), [(1.1, 2, 1), (4.0, 64, 3), (9, 100, 7)]
)
def test_epsilon_of_trees_is_that_of_dp_accountings_event(
    multiplier: float, leaves: int, trees: int, delta: float
) -> None:
    ledger, at = PrivacyLedger(), "2026-01-01T00:00:00+00:00"
    for tree, leaf in itertools.product(range(trees), range(1, leaves + 1)):
        dp = PrivacyMechanism(1.0, multiplier, delta, tree=Place("t", f"{at} {tree}", leaf, (), 10))
        entry = Entry(f"{tree} {leaf}", dp.to_json(), 10, ledger.added(dp), at)
        ledger = replace(ledger, entries=(*ledger.entries, entry))
    # A client takes part in one round of each tree; one that is absent sends zeros.
    accountant = dp_accounting.rdp.RdpAccountant(
        neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_SPECIAL
    )
    event = dp_accounting.SingleEpochTreeAggregationDpEvent(multiplier, leaves)
    accountant.compose(dp_accounting.SelfComposedDpEvent(event, trees))
    expected = accountant.get_epsilon(delta)
    assert epsilon_of(ledger.spent, delta) == pytest.approx(expected, abs=1e-6)


def test_budget_after_a_round_without_noise_is_refused_with_its_name() -> None:
    store, at = MemoryStore(), "2026-01-01T00:00:00+00:00"
    store.put_bytes("models/m/first", b"{}")
    source = store.head("models/m/first")
    assert source is not None
    model_registry.reserve(store, Version("m", 1, StoredTensors(source, 0)))
    enter(store, "m", "private", at, PrivacyMechanism(1.0, 2.0, 1e-5), 9)
    enter(store, "m", "plain", at, None, 9)
    with pytest.raises(PrivacyBudgetError, match="round 'plain' of model 'm' has no noise"):
        Model(MemoryStack(store), "m").limit_privacy(8.0, 1e-5)
