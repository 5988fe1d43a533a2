"""ε of a model's ledger, beside dp-accounting's composition of its rounds one by one."""

import itertools
import math

import pytest

from gradshard.client.accounting import budget_of, epsilon_of
from gradshard_core.aggregation.privacy import PrivacyMechanism
from gradshard_core.errors import SpecError

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
