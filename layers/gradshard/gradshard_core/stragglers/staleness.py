"""The discount of an update that began from an older version of the model."""

from typing import Final

DISCOUNT_DIGITS: Final = 40
"""Many more than float64 has, so that rounding to it is the only rounding that matters."""


def staleness_discount(staleness: int, exponent: float) -> float:
    """Return (1 + τ)^-a.

    Nguyen et al. 2022, "Federated Learning with Buffered Asynchronous Aggregation"
    (https://arxiv.org/abs/2106.06639), section 5.

    Parameters
    ----------
    staleness
        τ, the number of versions that were made since the one from which the client trained.
    exponent
        a, ``staleness_exponent``.
    """
    # Decimal arithmetic gives the same bits everywhere, which the pow of C libraries does not.
    from decimal import Context, Decimal

    return float(Context(prec=DISCOUNT_DIGITS).power(Decimal(1 + staleness), Decimal(-exponent)))
