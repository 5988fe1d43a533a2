"""Local steps of clients: bounds around their median, and weights that allow for them (FedNova)."""

import math
from collections.abc import Mapping, Sequence
from typing import Final

from gradshard_core.aggregation.arithmetic import shares_of
from gradshard_core.errors import SpecError

STEPS_FACTOR: Final = 10
"""The factor around the median of a round's steps within which a client's steps count.

Assignments ask for at most 8 times the base's epochs (``MOST`` of
:mod:`~gradshard_core.stragglers.assignment_settings`), which is within it."""

NOTED: Final = 20
"""Clients that a note names."""


def plain_steps(steps: int, learning_rate_ratio: float = 1.0, momentum: float = 0.0) -> float:
    """Convert a client's local steps to plain steps of the base learning rate.

    FedNova's ‖a‖₁ (Wang et al., NeurIPS 2020, section 4): with momentum m a gradient works on in
    the steps after it, so τ steps make (τ - m (1 - m^τ) / (1 - m)) / (1 - m).

    Parameters
    ----------
    steps
        τ, above zero.
    learning_rate_ratio
        The client's learning rate by the base one.
    momentum
        m, from 0 to under 1; the velocity being zero when the round begins.
    """
    rest = 1.0 - momentum
    return learning_rate_ratio * (steps - momentum * (1.0 - momentum**steps) / rest) / rest


def bounded_steps(steps: Sequence[float]) -> list[float]:
    """Clip local steps to a factor F of 10 around their median, below and above.

    Reported steps cannot be checked. Without clipping, a client that claims 2**53 steps would
    scale up all other updates (τ'), and one that claims a single step its own update (1 / τ). With
    clipped steps, a normalised weight is at most F² = 100 times its client's share, and all weights
    together are at most (F + 1/F)² / 4 = 25.5 (Kantorovich's inequality); if all clients but one
    made equally many steps, at most (F + 1)² / 4F = 3.025.

    The median is the lower one, and each client counts once: as long as over half of the clients
    are honest, it is within the range of their steps.

    Parameters
    ----------
    steps
        τ of each client, above zero.

    Returns
    -------
    list of float
        The clipped steps in the same order.
    """
    if not steps:
        return []
    median = sorted(steps)[(len(steps) - 1) // 2]
    low, high = median / STEPS_FACTOR, median * STEPS_FACTOR
    return [low if tau < low else min(tau, high) for tau in steps]


def note_bounded_steps(steps: Mapping[str, int]) -> list[str]:
    """Return a note that names the clients whose steps are out of the bounds, if there are any."""
    bounded = bounded_steps(list(steps.values()))
    clipped = [
        f"{client} {stated} as {counted:g}"
        for (client, stated), counted in zip(steps.items(), bounded, strict=True)
        if counted != stated
    ]
    if not clipped:
        return []
    more = f" and {len(clipped) - NOTED} more" if len(clipped) > NOTED else ""
    shown = ", ".join(clipped[:NOTED]) + more
    return [f"steps count within a factor of {STEPS_FACTOR} of their median: {shown}"]


def normalised_weights(samples: Sequence[int], steps: Sequence[float]) -> list[float]:
    """Weigh updates of clients that have made unequal numbers of local steps.

    A plain mean favours clients with more steps: it minimises the sum of losses weighted by steps
    instead of the intended sum (objective inconsistency; Wang et al., NeurIPS 2020). FedNova
    averages updates per step, Δ / τ, and multiplies by the mean number of steps. The weights of Δ
    are therefore p · (τ' / τ) with p = n / Σn and τ' = Σ p τ, each operation rounded in float64 and
    the sum rounded once. The weights add up to one only if all steps are equal.

    Parameters
    ----------
    samples
        n of each client.
    steps
        τ of each client, above zero: its local steps, or the result of :func:`plain_steps`.

    Raises
    ------
    SpecError
        A client's steps are not a number above zero.
    """
    for index, tau in enumerate(steps):
        if not (math.isfinite(tau) and tau > 0):
            raise SpecError(
                f"contributor {index} made {tau!r} local steps; weights can be normalised only "
                "where all report theirs, a number above zero"
            )
    shares = shares_of(list(samples))
    mean = math.fsum(share * tau for share, tau in zip(shares, steps, strict=True))
    return [share * (mean / tau) for share, tau in zip(shares, steps, strict=True)]
