"""ε of a model's ledger, beside dp-accounting's composition of its rounds one by one."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest

from gradshard.cli.model import _epsilon_from_models
from gradshard.client.model import Model
from gradshard.client.privacy_accounting import (
    WHOLE_ORDERS,
    budget_of,
    epsilon_from_models,
    epsilon_of,
)
from gradshard_core.errors import PrivacyBudgetError, SpecError
from gradshard_core.formats.object_keys import StoredTensors
from gradshard_core.privacy.noise_tree import Place
from gradshard_core.privacy.privacy_mechanism import PrivacyMechanism, parse_privacy
from gradshard_core.privacy.secret_client_sampling import SecretDraw, SecretSample
from gradshard_core.records import model_registry
from gradshard_core.records.model_registry import Version
from gradshard_core.records.privacy_ledger import Entry, PrivacyLedger, enter
from tests.unit.fakes import MemoryStack, MemoryStore

dp_accounting = pytest.importorskip(
    "dp_accounting", reason="dp-accounting is not installed: `make test-privacy`"
)

AT = "2026-01-01T00:00:00+00:00"
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


def drawn(
    probability: float, number: str, *, tries: int = 1, multiplier: float = 1.0
) -> Iterator[Entry]:
    """Yield the entries of one secret draw."""
    draw = SecretDraw("t", number, probability, 10)
    dp = PrivacyMechanism(1.0, multiplier, 1e-5, draw=draw)
    for again in range(tries):
        yield Entry(f"{number} {again}", dp.to_json(), 10, dp.cost, AT)


DRAWN = list(
    itertools.product(
        [(0.001, 0.6, 1000), (0.01, 1.0, 100), (0.05, 1.1, 200), (0.3, 4.0, 30), (0.9, 2.0, 5)],
        [1e-3, 1e-5, 1e-6, 1e-9],
    )
)


@pytest.mark.parametrize(("setting", "delta"), DRAWN)
def test_epsilon_from_models_is_that_of_dp_accountings_sampled_event(
    setting: tuple[float, float, int], delta: float
) -> None:
    probability, multiplier, rounds = setting
    entries = [
        entry
        for number in range(rounds)
        for entry in drawn(probability, str(number), multiplier=multiplier)
    ]
    event = dp_accounting.SelfComposedDpEvent(
        dp_accounting.PoissonSampledDpEvent(probability, dp_accounting.GaussianDpEvent(multiplier)),
        rounds,
    )
    accountant = dp_accounting.rdp.RdpAccountant(WHOLE_ORDERS)
    accountant.compose(event)
    ledger = PrivacyLedger(tuple(entries))
    found = epsilon_from_models(ledger, delta)
    in_full = epsilon_of(ledger.spent, delta)
    expected = min(accountant.get_epsilon(delta), in_full)
    assert found == pytest.approx(expected, abs=1e-6)
    # The loss itself, of Gaussian noise: a bound is above it.
    exact = dp_accounting.pld.PLDAccountant()
    exact.compose(event)
    assert exact.get_epsilon(delta) * (1 - 1e-3) <= found < in_full


def test_tries_of_a_draw_count_as_one_round_with_less_noise() -> None:
    once, twice = drawn(0.1, "1", multiplier=2.0), drawn(0.1, "2", tries=2, multiplier=2.0)
    full = Entry("r", PrivacyMechanism(1.0, 8.0, 1e-5).to_json(), 10, 1 / 64, AT)
    failed = [replace(entry, cost=0.0) for entry in drawn(0.1, "3")]
    accountant = dp_accounting.rdp.RdpAccountant(WHOLE_ORDERS)
    for multiplier in (2.0, 2 / math.sqrt(2)):
        event = dp_accounting.GaussianDpEvent(multiplier)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(0.1, event))
    accountant.compose(dp_accounting.GaussianDpEvent(8.0))
    ledger = PrivacyLedger((*once, full, *twice, *failed))
    expected = accountant.get_epsilon(1e-5)
    assert epsilon_from_models(ledger, 1e-5) == pytest.approx(expected, abs=1e-6)


def test_epsilon_from_models_is_the_other_one_without_draws_and_no_bound_without_noise() -> None:
    private = Entry("r", PrivacyMechanism(1.0, 2.0, 1e-5).to_json(), 10, 1 / 4, AT)
    assert epsilon_from_models(PrivacyLedger((private,)), 1e-5) == epsilon_of(1 / 4, 1e-5)
    plain = Entry("p", None, 10, None, AT)
    ledger = PrivacyLedger((plain, *drawn(0.1, "1")))
    assert epsilon_from_models(ledger, 1e-5) == math.inf
    assert epsilon_from_models(PrivacyLedger(), 1e-5) == 0.0


def test_the_figures_of_the_documentation() -> None:
    entries = [entry for number in range(100) for entry in drawn(0.05, str(number))]
    ledger = PrivacyLedger(tuple(entries))
    assert round(epsilon_of(ledger.spent, 1e-5)) == 96
    assert round(epsilon_from_models(ledger, 1e-5), 1) == 4.1
    assert (SecretSample(0.05, 2).fewest, SecretSample(0.4, 2).fewest) == (596, 61)
    assert _epsilon_from_models(ledger) == epsilon_from_models(ledger, 1e-5)
    assert _epsilon_from_models(PrivacyLedger()) is None
