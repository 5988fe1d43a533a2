"""Rules that make weights of a Gram matrix: one function each.

A rule is a function (settings, Gram matrix, samples) → :class:`Decision`. The Gram matrix has the
inner products of all pairs of updates. The result of the round is the sum of updates x with the
rule's weights. p are shares: n / Σn of the samples.

Only Python's floats, correctly rounded operations and :func:`math.fsum` are used, so that the
weights are the same on every processor. Of equal scores the first by client id counts as smaller.
"""

import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from gradshard_core.aggregation.arithmetic import shares_of

Settings = Mapping[str, float]
Gram = Sequence[Sequence[float]]

ITERATIONS: Final = 1000
"""Weiszfeld's iterations at most; they end when no weight moves by more than :data:`SETTLED`.

They are slow if the median is beside an update, but their sum of distances is soon the least.
"""

SETTLED: Final = 1e-12

SMOOTHING: Final = 1e-6
"""The least distance from the geometric median, relative to the radius of over half of all."""


class Decision(NamedTuple):
    """A rule's decision on the measured updates; sequences are in the order of the contributors.

    Parameters
    ----------
    weights
        The factors of updates in the sum; zero for those that are left out.
    scores
        The scores by which the rule decided.
    full
        The weights without the rule, if it clips: an update with less was clipped, and none is left
        out. None if the rule weighs all updates anew.
    bound
        The number that scores were compared with; None if there is not one for all.
    """

    weights: tuple[float, ...]
    scores: tuple[float, ...]
    full: tuple[float, ...] | None = None
    bound: float | None = None

    @property
    def whole(self) -> int:
        """The number of updates that were not clipped."""
        full = self.weights if self.full is None else self.full
        return sum(weight >= most for weight, most in zip(self.weights, full, strict=True))

    def discounted(self, discounts: Sequence[float]) -> "Decision":
        """Return the decision with each weight times a factor, as it would be without the rule."""
        weights = tuple(w * d for w, d in zip(self.weights, discounts, strict=True))
        if self.full is None:
            return self._replace(weights=weights)
        full = tuple(w * d for w, d in zip(self.full, discounts, strict=True))
        return self._replace(weights=weights, full=full)


Rule = Callable[[Settings, Gram, Sequence[int]], Decision]


def norm_clip(settings: Settings, gram: Gram, samples: Sequence[int]) -> Decision:
    """Shorten updates that are longer than a bound to it (Sun et al. 2019, arXiv:1911.07963).

    wᵢ = pᵢ · min(1, C / ‖xᵢ‖). C is ``bound``, or else the ⌈qN⌉-th smallest norm for ``quantile``
    q; an adaptive bound is that of Andrew et al. 2021 (arXiv:1905.03871), here without noise.
    """
    norms, shares = norms_of(gram), shares_of(list(samples))
    bound = _bound(settings, norms)
    weights = tuple(p * _shortened(n, bound) for p, n in zip(shares, norms, strict=True))
    return Decision(weights, norms, tuple(shares), bound)


def krum(settings: Settings, gram: Gram, _samples: Sequence[int]) -> Decision:
    """Take the one update that is closest to its neighbours (Blanchard et al., NeurIPS 2017).

    An update's score is the sum of its squared distances to the N - f - 2 others that are closest.
    """
    scores = krum_scores(gram, int(settings["f"]))
    [best] = _lowest(scores, 1)
    return Decision(tuple(float(i == best) for i in range(len(scores))), scores)


def multi_krum(settings: Settings, gram: Gram, samples: Sequence[int]) -> Decision:
    """Average the m updates with the lowest Krum scores, by samples (Blanchard et al. 2017)."""
    f = int(settings["f"])
    scores = krum_scores(gram, f)
    chosen = _lowest(scores, int(settings.get("m", len(scores) - f)))
    return Decision(_among(samples, chosen), scores)


def bulyan(settings: Settings, gram: Gram, _samples: Sequence[int]) -> Decision:
    """Select the N - 2f updates with the lowest Krum scores (El Mhamdi et al., ICML 2018).

    The second pass takes the mean of each of their columns around its median. As in Flower's
    ``Bulyan``, all are selected by the scores among all N.
    """
    f = int(settings["f"])
    scores = krum_scores(gram, f)
    chosen = _lowest(scores, len(scores) - 2 * f)
    return Decision(_among([1] * len(scores), chosen), scores)


def geometric_median(_settings: Settings, gram: Gram, samples: Sequence[int]) -> Decision:
    """Take the point with the least sum of distances to all updates (Pillutla et al. 2022, RFA).

    Weiszfeld's iterations (arXiv:1912.13445, algorithm 2), with distances weighted by shares. They
    begin from the average of the smallest ball around an update that has over half of the samples,
    and each distance is taken to be at least 10⁻⁶ of its radius. So nothing depends on how far away
    a minority is.
    """
    squares, shares = squared_distances(gram), shares_of(list(samples))
    center, radius = _smallest_ball(squares, shares)
    inside = [i for i, square in enumerate(squares[center]) if square <= radius]
    weights = _among(samples, inside)
    products = _products_around(center, gram)
    distances = _distances_to(weights, products)
    least = SMOOTHING * math.sqrt(radius)
    if least == 0.0:  # over half are the same
        return Decision(weights, distances)
    for _ in range(ITERATIONS):
        pulls = [p / max(d, least) for p, d in zip(shares, distances, strict=True)]
        before, weights = weights, _normalised(pulls)
        distances = _distances_to(weights, products)
        if max(abs(a - b) for a, b in zip(before, weights, strict=True)) <= SETTLED:
            break
    return Decision(weights, distances)


def cosine_filter(settings: Settings, gram: Gram, samples: Sequence[int]) -> Decision:
    """Average the updates that point in the direction of the geometric median.

    Those whose cosine with it is under ``least`` are left out, as FLTrust (Cao et al. 2021,
    arXiv:2012.13995) does with the direction of a server's own update. If all would be, the one
    with the largest cosine remains. An update of zeros has cosine 0.
    """
    center = geometric_median({}, gram, samples).weights
    toward = [_dot(center, row) for row in gram]
    length = math.sqrt(max(0.0, _dot(center, toward)))
    norms = norms_of(gram)
    cosines = tuple(
        t / (n * length) if n * length else 0.0 for t, n in zip(toward, norms, strict=True)
    )
    chosen = [i for i, cosine in enumerate(cosines) if cosine >= settings["least"]]
    chosen = chosen or _lowest([-cosine for cosine in cosines], 1)
    return Decision(_among(samples, chosen), cosines, bound=settings["least"])


def centered_clip(settings: Settings, gram: Gram, samples: Sequence[int]) -> Decision:
    """Shorten what leads from a center to each update (Karimireddy et al., ICML 2021).

    v ← v + Σ pᵢ (xᵢ - v) · min(1, τ / ‖xᵢ - v‖), ``iterations`` times from zero
    (arXiv:2012.10333, algorithm 2). τ is ``bound``, or else the ⌈qN⌉-th smallest norm for
    ``quantile`` q. Every v is a weighted sum of the updates.
    """
    norms, shares = norms_of(gram), shares_of(list(samples))
    bound = _bound(settings, norms)
    weights = (0.0,) * len(norms)
    distances = norms
    for _ in range(int(settings["iterations"])):
        pulls = [p * _shortened(d, bound) for p, d in zip(shares, distances, strict=True)]
        kept = 1.0 - math.fsum(pulls)
        weights = tuple(kept * w + pull for w, pull in zip(weights, pulls, strict=True))
        distances = _distances_to(weights, gram)
    return Decision(weights, distances, tuple(shares), bound)


class Diagonal(Sequence[Sequence[float]]):
    """A Gram matrix of which only the norms were measured; other products are zero.

    Parameters
    ----------
    squares
        The squared norms.
    """

    def __init__(self, squares: Sequence[float]) -> None:
        self.squares = squares

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.squares)

    def __getitem__(self, index: Any) -> Any:
        """Return a row, made anew."""
        row = [0.0] * len(self.squares)
        row[index] = self.squares[index]
        return row


def norms_of(gram: Gram) -> tuple[float, ...]:
    """Return the length of each update."""
    squares = gram.squares if isinstance(gram, Diagonal) else (row[i] for i, row in enumerate(gram))
    return tuple(map(math.sqrt, squares))


def squared_distances(gram: Gram) -> list[list[float]]:
    """Return ‖xᵢ - xⱼ‖² of all pairs; rounding makes none negative."""
    count = range(len(gram))
    return [
        [max(0.0, math.fsum((gram[i][i], gram[j][j], -2.0 * gram[i][j]))) for j in count]
        for i in count
    ]


def krum_scores(gram: Gram, f: int) -> tuple[float, ...]:
    """Return each update's sum of squared distances to its N - f - 2 closest others."""
    squares = squared_distances(gram)
    closest = len(gram) - f - 2
    return tuple(
        math.fsum(sorted(row[:i] + row[i + 1 :])[:closest]) for i, row in enumerate(squares)
    )


def _bound(settings: Settings, norms: Sequence[float]) -> float:
    if "bound" in settings:
        return settings["bound"]
    return sorted(norms)[math.ceil(settings["quantile"] * len(norms)) - 1]


def _shortened(length: float, bound: float) -> float:
    return 1.0 if length <= bound else bound / length


def _lowest(scores: Sequence[float], count: int) -> list[int]:
    """Return the indices of the lowest scores."""
    return sorted(sorted(range(len(scores)), key=lambda i: scores[i])[:count])


def _among(samples: Sequence[int], chosen: Sequence[int]) -> tuple[float, ...]:
    """Return the shares of the chosen ones among themselves, and zero for the others."""
    shares = dict(zip(chosen, shares_of([samples[i] for i in chosen]), strict=True))
    return tuple(shares.get(i, 0.0) for i in range(len(samples)))


def _normalised(values: Sequence[float]) -> tuple[float, ...]:
    total = math.fsum(values)
    return tuple(value / total for value in values)


def _dot(first: Sequence[float], second: Sequence[float]) -> float:
    # Of a few, a generator takes eight times as long, and a rule may decide on many small layers.
    return math.fsum(map(operator.mul, first, second))


def _smallest_ball(squares: Gram, shares: Sequence[float]) -> tuple[int, float]:
    """Return the update around which over half of all shares are closest, and how close, squared.

    With fewer than half bad ones, this is at most the largest distance between two good ones.
    """
    radii = []
    for row in squares:
        by_distance = sorted(range(len(row)), key=row.__getitem__)
        inside = itertools.accumulate(shares[i] for i in by_distance)
        radii.append(
            next((row[i] for i, share in zip(by_distance, inside, strict=True) if share > 0.5), 0.0)
        )
    center = _lowest(radii, 1)[0]
    return center, radii[center]


def _products_around(center: int, gram: Gram) -> list[list[float]]:
    """Return the inner products of the differences from one update.

    They are more exact than those of the updates where these are long and alike, and more exact
    than squared distances where a few are very long.
    """
    count = range(len(gram))
    middle, own = gram[center], gram[center][center]
    return [[math.fsum((gram[i][j], -middle[i], -middle[j], own)) for j in count] for i in count]


def _distances_to(weights: Sequence[float], gram: Gram) -> tuple[float, ...]:
    """Return the distances of updates from their sum with any weights."""
    toward = [_dot(weights, row) for row in gram]
    square = _dot(weights, toward)
    return tuple(
        math.sqrt(max(0.0, math.fsum((gram[i][i], -2.0 * toward[i], square))))
        for i in range(len(gram))
    )
