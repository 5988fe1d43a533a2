"""ε of private rounds, by Google's dp-accounting: what a model's ledger adds up to.

It needs the extra ``gradshard[privacy]``. Functions do without: they add up costs 1/z² and compare
them with an allowance that is computed here, when a budget is set.
"""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from gradshard.utils.light_imports import show_unused_libraries
from gradshard_core.errors import SpecError
from gradshard_core.records.privacy_ledger import PrivacyBudget, PrivacyLedger

WHOLE_ORDERS: Final = (*range(2, 128), *range(128, 512, 8), *range(512, 2049, 64))
"""Orders α of Rényi divergence at which secret draws are accounted for: discrete noise has the
proof for whole ones alone."""

STEPS: Final = 200
"""Halvings of the interval in which an allowance is sought: to float64's last bit."""


def epsilon_of(spent: float, delta: float) -> float:
    """Return ε at δ of rounds whose costs 1/z² add up to ``spent``.

    In Rényi differential privacy, rounds with noise multipliers z reveal together what one with
    1/√(Σ 1/z²) does (Mironov 2017, https://arxiv.org/abs/1702.07476, proposition 1 and corollary
    3). So one event with that multiplier is accounted for.

    Raises
    ------
    SpecError
        dp-accounting is not installed.
    """
    if spent == 0:
        return 0.0
    if math.isinf(spent):
        return math.inf
    library = _library()
    accountant = library.rdp.RdpAccountant()
    accountant.compose(library.GaussianDpEvent(1 / math.sqrt(spent)))
    return float(accountant.get_epsilon(delta))


def epsilon_from_models(ledger: PrivacyLedger, delta: float) -> float:
    """Return ε at δ against an attacker who gets versions of the model, and knows nothing else.

    Such an attacker does not know which clients were drawn in secret: each draw is a
    Poisson-sampled Gaussian mechanism (:mod:`gradshard_core.privacy.secret_client_sampling`).
    Without secret draws this is :func:`epsilon_of` the ledger's sum.

    Raises
    ------
    SpecError
        dp-accounting is not installed.
    """
    parts = ledger.parts
    if not parts.drawn or not math.isfinite(ledger.spent):
        return epsilon_of(ledger.spent, delta)
    library = _library()
    accountant = library.rdp.RdpAccountant(
        WHOLE_ORDERS, neighboring_relation=library.NeighboringRelation.REPLACE_SPECIAL
    )
    if parts.in_full:
        accountant.compose(library.GaussianDpEvent(1 / math.sqrt(parts.in_full)))
    for (probability, cost), times in Counter(parts.drawn).items():
        event = library.GaussianDpEvent(1 / math.sqrt(cost))
        accountant.compose(library.PoissonSampledDpEvent(probability, event), times)
    found = float(accountant.get_epsilon(delta))
    # What an attacker knows less never helps it, so that both are bounds.
    return min(found, epsilon_of(ledger.spent, delta))


def budget_of(epsilon: float, delta: float) -> PrivacyBudget:
    """Return a budget with its allowance: the largest sum of costs that stays within ε at δ.

    Raises
    ------
    SpecError
        ε or δ is out of its bounds, or dp-accounting is not installed.
    """
    for name, value, high in (("epsilon", epsilon, 1000.0), ("delta", delta, 0.1)):
        if not 0 < value <= high:
            raise SpecError(f"{name} is {value!r}, not a number above 0 and at most {high:g}")
    low, high = 0.0, 1.0
    while epsilon_of(high, delta) <= epsilon:
        low, high = high, 2 * high
    for _ in range(STEPS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if epsilon_of(middle, delta) <= epsilon else (low, middle)
    return PrivacyBudget(epsilon, delta, low)


def privacy_in_words(privacy: Mapping[str, Any]) -> str:
    """Return what the manifest of a private round says of it, for people."""
    delta = privacy["delta"]
    words = (
        f"clip {privacy['clip']:g}, noise multiplier {privacy['noise_multiplier']:g}: a deviation "
        f"of {privacy['deviation']:.4g} in each element of the average of {privacy['clients']}"
    )
    if privacy.get("tree") is not None:
        place = privacy["tree"]
        words += f"; round {place['leaf']} of a tree"
        if place["cancels"]:
            words += f", which takes out the noise of {', '.join(place['cancels'])}"
    if privacy.get("draw") is not None:
        draw = privacy["draw"]
        words += f"; drawn in secret with the probability {draw['probability']:g}"
    if privacy.get("whole") is not None:
        words += (
            f"; about {privacy['whole']:.3g} were not clipped, so the next clip is "
            f"{privacy['next_clip']:.4g}"
        )
    if not is_installed():
        return f"{words}; 1/z² {privacy['cost']:.4g}"
    words += f"; ε {epsilon_of(privacy['cost'], delta):.4g} at δ {delta:g}"
    if privacy["spent"] is None:
        return f"{words}, and no bound with the rounds before it"
    if privacy["spent"] > privacy["cost"]:
        words += f", and {epsilon_of(privacy['spent'], delta):.4g} with the rounds before it"
    return words


def is_installed() -> bool:
    """Return whether dp-accounting can be imported."""
    try:
        _library()
    except SpecError:
        return False
    return True


def _library() -> Any:
    show_unused_libraries()  # it needs attrs, which the command hides from rich
    try:
        import dp_accounting
    except ImportError:
        raise SpecError(
            "dp-accounting is not installed, which computes ε: pip install 'gradshard[privacy]'"
        ) from None
    return dp_accounting
