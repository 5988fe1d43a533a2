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
from typing import Any, ClassVar, Final

from gradshard_core.errors import SpecError
from gradshard_core.privacy.adaptive_clip import CLIPS, SETTINGS, Adaptation, adaptation_of
from gradshard_core.privacy.noise_grid import Grid, grid_of
from gradshard_core.privacy.noise_tree import Place, parse_place
from gradshard_core.privacy.secret_client_sampling import SecretDraw, parse_secret_draw
from gradshard_core.robust.whole_update_rules import Decision, Gram, norms_of

_MARGIN: Final = 1 + 2.0**-10
"""The factor by which an update may be longer than it was measured."""

LEAST_CLIENTS: Final = 2

_BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    "clip": CLIPS,
    "noise_multiplier": (0.01, 1000.0),
    "delta": (1e-15, 0.1),
}


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
            if deviation > SETTINGS["count_deviation"][1]:
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
        return None if self.adaptation is None else self.adaptation.noisy_count(whole, key)

    def next_clip(self, count: float, contributors: int) -> float:
        """Return the clip of the next round, from the noisy count of this one."""
        if self.adaptation is None:
            return self.clip
        return self.adaptation.next_clip(self.clip, count, contributors)

    def clip_factor(self, norm: float) -> float:
        """Return the factor s by which an update of the length ``norm`` is shortened, 1 at most."""
        longest = norm * _MARGIN
        return 1.0 if longest <= self.clip else self.clip / longest

    def decide(self, gram: Gram, samples: Sequence[int]) -> Decision:
        """Return the factors sᵢ; every client counts alike, whatever its number of samples."""
        norms = norms_of(gram)
        factors = tuple(map(self.clip_factor, norms))
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
    if not isinstance(stated, Mapping) or stated.keys() - _BOUNDS.keys() - SETTINGS.keys():
        raise SpecError(
            f"dp is {stated!r}, not {{clip: …, noise_multiplier: …, delta: …}}, and for a clip "
            f"that adapts {', '.join(SETTINGS)}"
        )
    for name in _BOUNDS:
        if stated.get(name) is None:
            raise SpecError(
                f"dp needs {name}, for example "
                '{"clip": 1.0, "noise_multiplier": 1.1, "delta": 1e-5}'
            )
    given = {name: value for name, value in stated.items() if value is not None}
    for name, value in given.items():
        low, high = {**_BOUNDS, **SETTINGS}[name]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:
            raise SpecError(f"dp: {name} is {value!r}, not a number from {low:g} to {high:g}")
    clip, multiplier, delta = (float(given[name]) for name in _BOUNDS)
    adaptation = adaptation_of(given)
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
