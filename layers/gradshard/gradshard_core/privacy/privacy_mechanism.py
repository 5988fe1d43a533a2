"""Central differential privacy: clip each update, add in fixed point, add discrete Gaussian noise.

The *mechanism* is that of McMahan et al. 2018 (https://arxiv.org/abs/1710.06963) with noise of
Canonne, Kamath and Steinke 2020 (https://arxiv.org/abs/2004.00010). Of n updates x with factors

    sᵢ = min(1, C / (‖xᵢ‖ · (1 + 2⁻¹⁰)))

it computes (Σ trunc(sᵢxᵢ / g) + noise) · g / n. The *grid* g is such that the noise's σ is zC, with
z the noise multiplier. Sums of whole numbers are exact in float64, so the result depends on no
order.

**Sensitivity.** ‖xᵢ‖ is measured (:mod:`gradshard_core.robust.inner_products`) of elements that are
rounded by at most 2⁻¹⁸ of the largest one of their chunk. A chunk has at most 32,776 elements, so
the measured norm is short of the true one by at most √32776 · 2⁻¹⁸ < 7·10⁻⁴ of it, for which 2⁻¹⁰
makes up. Rounding toward zero lengthens no update. So what one client adds to the sum is at most C
long: this is the change of the sum if a client had sent zeros instead. If it had sent another
update, the change is at most 2C.

**The guarantee** is that of the Gaussian mechanism in Rényi and concentrated differential privacy
(Canonne et al., theorem 14): the release is α / 2z² Rényi-DP of every order α > 1. Several releases
add up: Σ 1/z² is all that an accountant needs of them.

**An adaptive clip** (Andrew et al. 2021, https://arxiv.org/abs/1905.03871, algorithm 1) follows a
quantile q of the lengths from round to round. A round also releases b, the share of the updates
that were not clipped, with noise of the deviation σ_b / n, and the next clip is C · exp(-η(b - q)).
A client changes the number of such updates by at most 1, so this is one more Gaussian mechanism,
with the noise multiplier σ_b. (The paper has ½, because there an absent client counts as half of
one. Here it counts as one that sent zeros.) The round costs 1/z² + 1/σ_b².
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np

from gradshard_core.aggregation import arithmetic
from gradshard_core.errors import SpecError
from gradshard_core.privacy import noise
from gradshard_core.privacy.noise_tree import Place, parse_place
from gradshard_core.privacy.secret_draw import SecretDraw, parse_secret_draw
from gradshard_core.robust.by_weight import Decision, Gram, norms_of

MARGIN: Final = 1 + 2.0**-10
"""The factor by which an update may be longer than it was measured."""

FINENESS: Final = 2**7
"""Grid steps that a typical element of an update of length C has, where three terms suffice.
Rounding toward zero then takes half of 1/128 of it."""

LEAST_CLIENTS: Final = 2

COUNT_ELEMENT: Final = 2**62
"""The number of the noise's element that is added to the number of updates that were not clipped:
no update has as many elements."""

DEFAULT_RATE: Final = 0.2
"""η of Andrew et al. 2021, section 3.1."""

COUNT_FACTOR: Final = 5
"""σ_b / z by default: the count then makes a round 4 % more costly."""

_CLIP_DIGITS: Final = 9
"""Significant digits of an adapted clip: the same on processors whose exp differs in the last."""

_BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    "clip": (2.0**-40, 2.0**40),
    "noise_multiplier": (0.01, 1000.0),
    "delta": (1e-15, 0.1),
}

_ADAPTIVE: Final[Mapping[str, tuple[float, float]]] = {
    "quantile": (0.01, 0.99),
    "clip_rate": (0.001, 10.0),
    "count_deviation": (0.01, 1e6),
}


class Grid(NamedTuple):
    """The whole numbers in which a private sum is computed.

    Parameters
    ----------
    step
        g, what one is worth.
    terms
        The terms of the noise.
    """

    step: float
    terms: int


def grid_of(length: float, multiplier: float, elements: int) -> Grid:
    """Return the grid for vectors of so many elements that are at most so long."""
    fitting = (
        terms
        for terms in range(1, noise.MAX_TERMS)
        if noise.deviation(terms) >= multiplier * FINENESS * math.sqrt(max(1, elements))
    )
    terms = next(fitting, noise.MAX_TERMS)
    return Grid(multiplier * length / noise.deviation(terms), terms)


class Adaptation(NamedTuple):
    """How the clip follows the lengths of updates.

    Parameters
    ----------
    quantile
        q, the share of updates that are to stay whole.
    clip_rate
        η, by which the clip moves.
    count_deviation
        σ_b, the deviation of the noise of the number of updates that were not clipped.
    """

    quantile: float
    clip_rate: float
    count_deviation: float


@dataclass(frozen=True)
class PrivacyMechanism:
    """Clip updates, and add noise to their sum.

    Parameters
    ----------
    clip
        C, the length to which updates are clipped.
    noise_multiplier
        z: the noise of the sum has the standard deviation zC.
    delta
        δ, at which ε is stated.
    adaptation
        How the clip of the next round follows; None if it stays.
    tree
        The round's place in a tree of noise; None outside of one.
    draw
        The secret draw of its clients; None if they were not drawn so.
    """

    clip: float
    noise_multiplier: float
    delta: float
    adaptation: Adaptation | None = None
    tree: Place | None = None
    draw: SecretDraw | None = None

    name: ClassVar[str] = "dp"
    score: ClassVar[str] = "norm"
    pairs: ClassVar[bool] = False

    @property
    def asked_for(self) -> Place | SecretDraw | None:
        """The place in a tree, or the secret draw; only a training may state one of them."""
        return self.draw if self.tree is None else self.tree

    @property
    def cancels(self) -> tuple[str, ...]:
        """The earlier rounds whose noise is taken out of the sum."""
        return () if self.tree is None else self.tree.cancels

    def divisor(self, contributors: int) -> int:
        """Return n, by which the sum of so many updates is divided."""
        stated = self.asked_for
        return contributors if stated is None else stated.divisor

    def deviation(self, contributors: int) -> float:
        """Return the standard deviation of the noise in each element of the average."""
        of_all = self.noise_multiplier * self.clip * math.sqrt(1 + len(self.cancels))
        return of_all / self.divisor(contributors)

    @property
    def cost(self) -> float:
        """1/z² + 1/σ_b²: what a round adds to a model's ledger; in a tree, what a level does."""
        return 1 / self.noise_multiplier**2 + self.count_cost

    @property
    def count_cost(self) -> float:
        """1/σ_b²: the part of the cost with which the clip adapts."""
        return 0.0 if self.adaptation is None else 1 / self.adaptation.count_deviation**2

    def with_cost(self, most: float) -> "PrivacyMechanism | None":
        """Return it with so much more noise that a round costs at most this.

        None if that is more noise than there may be. Deviations are rounded up to three digits
        after the point, for people.
        """
        more = math.sqrt(self.cost / most)
        multiplier, adaptation = _rounded_up(self.noise_multiplier * more), self.adaptation
        if adaptation is not None:
            deviation = _rounded_up(adaptation.count_deviation * more)
            if deviation > _ADAPTIVE["count_deviation"][1]:
                return None
            adaptation = adaptation._replace(count_deviation=deviation)
        if multiplier > _BOUNDS["noise_multiplier"][1]:
            return None
        return replace(self, noise_multiplier=multiplier, adaptation=adaptation)

    def grid(self, elements: int) -> Grid:
        """Return the grid for updates of so many elements."""
        return grid_of(self.clip, self.noise_multiplier, elements)

    def noisy_count(self, whole: int, key: bytes) -> float | None:
        """Return how many updates were not clipped, with noise; None if the clip stays.

        Parameters
        ----------
        whole
            How many were not clipped.
        key
            The key of the round's noise.
        """
        if self.adaptation is None:
            return None
        grid = grid_of(1.0, self.adaptation.count_deviation, 1)
        drawn = np.empty(1, np.int64)
        source = noise.NoiseSource(key, grid.terms, COUNT_ELEMENT)
        source.read_into(arithmetic.bytes_of(drawn))
        return float(whole * math.trunc(1 / grid.step) + int(drawn[0])) * grid.step

    def next_clip(self, count: float, contributors: int) -> float:
        """Return the clip of the next round, from the noisy count of this one."""
        if self.adaptation is None:
            return self.clip
        away = count / contributors - self.adaptation.quantile
        # exp must not overflow, however large the noise.
        moved = max(-50.0, min(50.0, -self.adaptation.clip_rate * away))
        low, high = _BOUNDS["clip"]
        return max(low, min(high, float(f"{self.clip * math.exp(moved):.{_CLIP_DIGITS}g}")))

    def decide(self, gram: Gram, samples: Sequence[int]) -> Decision:
        """Return the factors sᵢ; every client counts alike, whatever its number of samples."""
        norms = norms_of(gram)
        factors = tuple(
            1.0 if norm * MARGIN <= self.clip else self.clip / (norm * MARGIN) for norm in norms
        )
        return Decision(factors, norms, (1.0,) * len(samples), self.clip)

    def to_json(self) -> dict[str, Any]:
        """Return what :func:`parse_privacy` reads."""
        return {
            "clip": self.clip,
            "noise_multiplier": self.noise_multiplier,
            "delta": self.delta,
            **({} if self.adaptation is None else self.adaptation._asdict()),
            **({} if self.tree is None else {"tree": self.tree.to_json()}),
            **({} if self.draw is None else {"draw": self.draw.to_json()}),
        }


def _rounded_up(deviation: float) -> float:
    # Up also from a whole thousandth: its cost may be more by a last bit.
    return (math.floor(1000 * deviation) + 1) / 1000


def parse_privacy(stated: Any) -> PrivacyMechanism:
    """Read a mechanism from JSON: ``clip``, ``noise_multiplier``, ``delta``, maybe ``quantile``.

    A training also states ``tree``, the place of each round in its tree of noise, or ``draw``, the
    secret draw of its clients.

    Raises
    ------
    SpecError
        A field is unknown, missing or out of its bounds.
    """
    stated, tree, draw = _asked_for(stated)
    if not isinstance(stated, Mapping) or stated.keys() - _BOUNDS.keys() - _ADAPTIVE.keys():
        raise SpecError(
            f"dp is {stated!r}, not {{clip: …, noise_multiplier: …, delta: …}}, and for a clip "
            f"that adapts {', '.join(_ADAPTIVE)}"
        )
    for name in _BOUNDS:
        if stated.get(name) is None:
            raise SpecError(
                f"dp needs {name}, for example "
                '{"clip": 1.0, "noise_multiplier": 1.1, "delta": 1e-5}'
            )
    given = {name: value for name, value in stated.items() if value is not None}
    for name, value in given.items():
        low, high = {**_BOUNDS, **_ADAPTIVE}[name]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:
            raise SpecError(f"dp: {name} is {value!r}, not a number from {low:g} to {high:g}")
    clip, multiplier, delta = (float(given[name]) for name in _BOUNDS)
    adaptation = _adaptation(given)
    if tree is not None and adaptation is not None:
        raise SpecError(
            "dp: noise cancels in a tree only if all rounds have the same clip: leave out quantile"
        )
    if draw is not None and (adaptation is not None or tree is not None):
        raise SpecError(
            "dp: clients are drawn in secret for rounds with a fixed clip and noise of their own: "
            "leave out quantile and tree"
        )
    return PrivacyMechanism(clip, multiplier, delta, adaptation, tree, draw)


def _asked_for(stated: Any) -> tuple[Any, Place | None, SecretDraw | None]:
    """Take out of a mechanism what a training states of it."""
    if not isinstance(stated, Mapping):
        return stated, None, None
    rest = {name: value for name, value in stated.items() if name not in ("tree", "draw")}
    tree, draw = stated.get("tree"), stated.get("draw")
    return (
        rest,
        None if tree is None else parse_place(tree),
        None if draw is None else parse_secret_draw(draw),
    )


def _adaptation(given: Mapping[str, Any]) -> Adaptation | None:
    """Return how the clip adapts, by default with a count of :data:`COUNT_FACTOR` times z."""
    if "quantile" not in given:
        for name in given.keys() & _ADAPTIVE.keys():
            raise SpecError(
                f"dp: {name} is for a clip that adapts to a quantile of the norms: give "
                'quantile, too, for example "quantile": 0.5'
            )
        return None
    by_default = COUNT_FACTOR * float(given["noise_multiplier"])
    return Adaptation(
        float(given["quantile"]),
        float(given.get("clip_rate", DEFAULT_RATE)),
        float(given.get("count_deviation", by_default)),
    )
