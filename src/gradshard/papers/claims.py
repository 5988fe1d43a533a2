"""Claims about gradshard's cost, computed: crossovers, ratios, and their assumptions.

Everything is computed from :mod:`gradshard.papers`; nothing here is a typed-in result.

gradshard's clients send a very large update and fetch a large result in a few requests, the
published systems' in one.
Where like is counted with like, the trees' clients are given gradshard's requests: that is the same
as leaving clients out of the difference.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final, Literal

from gradshard.papers import SYSTEMS, gradshard_systems, published_figures
from gradshard.papers.estimate import PUBLISHED, Estimate, Setting
from gradshard.papers.published_figures import MODELS, Model
from gradshard_core.costs import aws_prices
from gradshard_core.costs.bandwidth_model import BURST, Bandwidth
from gradshard_core.costs.lambda_config import DEFAULT_MEMORY_MB
from gradshard_core.costs.request_counts import Requests
from gradshard_core.costs.round_cost import Bill
from gradshard_core.errors import PlanError
from gradshard_core.limits import aws_limits

Column = Literal["full", "total"]
"""``full`` counts what the paper's column of that name counts, ``total`` everything."""

SMALLEST_BYTES: Final = 10**6
LARGEST_BYTES: Final = 10**10
STEPS_PER_DECADE: Final = 12

VARIED: Final = (0.5, 1.0, 1.5)
"""The published bandwidth, 50 % to either side."""

BANDWIDTHS: Final = (BURST, *(PUBLISHED.scaled(factor) for factor in VARIED))


@dataclass(frozen=True)
class Crossover:
    """A size at which the cheaper of two systems changes.

    Parameters
    ----------
    nbytes
        The size of an update in bytes.
    cheaper_above
        The system that is cheaper from there on.
    difference
        First less second, in dollars a round, just above: what decides.
    """

    nbytes: int
    cheaper_above: str
    difference: Bill

    def to_json(self) -> dict[str, Any]:
        """Return the crossover as JSON."""
        return {
            "nbytes": self.nbytes,
            "cheaper_above": self.cheaper_above,
            "difference": self.difference.to_json(),
        }


@dataclass(frozen=True)
class Comparison:
    """Two systems over all sizes that both can average.

    Parameters
    ----------
    first, second
        The systems.
    column
        The column of the bill: ``full`` or ``total``.
    smallest, largest
        The sizes compared.
    cheaper_first
        The system that is cheaper at the smallest size.
    crossovers
        The sizes at which that changes, in order.
    worst_ratio
        The first's dollars over the second's, at its greatest.
    """

    first: str
    second: str
    column: Column
    smallest: int
    largest: int
    cheaper_first: str
    crossovers: tuple[Crossover, ...]
    worst_ratio: float


@lru_cache(maxsize=4096)
def estimate(system: str, nbytes: int, setting: Setting) -> Estimate | None:
    """Return a system's estimate, or None where it cannot average updates of this size."""
    try:
        return SYSTEMS[system](nbytes, setting)
    except PlanError:
        return None


def sizes(smallest: int) -> list[int]:
    """Return sizes up to 10 GB, evenly apart on a logarithmic scale, both ends among them."""
    ratio = LARGEST_BYTES / smallest
    steps = math.ceil(STEPS_PER_DECADE * math.log10(ratio))
    return [round(smallest * ratio ** (step / steps)) for step in range(steps + 1)]


def compare(
    first: str,
    second: str,
    setting: Setting,
    column: Column,
    *,
    smallest: int = SMALLEST_BYTES,
    alike: bool = False,
) -> Comparison:
    """Compare two systems over sizes; find where the cheaper one changes, within 1 %.

    Sizes are scanned, twelve to a decade, and each change of sign is bisected: two crossovers
    between neighbouring sizes go unseen.

    Parameters
    ----------
    first, second
        The systems.
    setting
        The setting of both systems.
    column
        The column of the bill: ``full`` or ``total``.
    smallest
        The size from which on.
    alike
        Whether the second's clients are given the requests of the first's.

    Raises
    ------
    PlanError
        There is no size that both can average.
    """

    def bills(nbytes: int) -> tuple[Bill, Bill] | None:
        ours, theirs = (estimate(system, nbytes, setting) for system in (first, second))
        if ours is None or theirs is None:
            return None
        if alike:
            return ours.bill, replace(theirs.bill, s3_clients=ours.bill.s3_clients)
        return ours.bill, theirs.bill

    scanned = [(nbytes, pair) for nbytes in sizes(smallest) if (pair := bills(nbytes))]
    if not scanned:
        raise PlanError(f"no size can be averaged by both {first} and {second} in this setting")

    def difference(nbytes: int) -> Bill:
        pair = bills(nbytes)
        assert pair is not None  # noqa: S101 - between two sizes that both can average
        return pair[0].minus(pair[1])

    tried = [nbytes for nbytes, _ in scanned]
    ratios = [getattr(ours, column) / getattr(theirs, column) for _, (ours, theirs) in scanned]
    cheaper = [first if ratio <= 1 else second for ratio in ratios]
    crossovers = []
    for (low, high), (before, after) in zip(pairwise(tried), pairwise(cheaper), strict=True):
        if before != after:
            nbytes = _bisect(difference, column, low, high)
            crossovers.append(Crossover(nbytes, after, difference(nbytes)))
    ends = tried[0], tried[-1]
    return Comparison(first, second, column, *ends, cheaper[0], tuple(crossovers), max(ratios))


def _bisect(difference: Callable[[int], Bill], column: Column, low: int, high: int) -> int:
    """Return a size just above that at which the difference changes its sign."""
    below = getattr(difference(low), column) <= 0
    while high > 1.01 * low:
        middle = round(math.sqrt(low * high))
        if (getattr(difference(middle), column) <= 0) == below:
            low = middle
        else:
            high = middle
    return high


def deciding(crossover: Crossover, column: Column) -> list[tuple[str, float]]:
    """Return the parts of a crossover's difference that are not small, the largest first."""
    counted = fields(Bill)[:3] if column == "full" else fields(Bill)
    parts = [
        (part.name.rstrip("_"), float(getattr(crossover.difference, part.name))) for part in counted
    ]
    most = max(abs(amount) for _, amount in parts)
    return sorted(
        (part for part in parts if abs(part[1]) > most / 20), key=lambda part: -abs(part[1])
    )


@dataclass(frozen=True)
class Verdict:
    """The result of a claim under one assumption; it holds if the value is at most the bound."""

    value: float
    bound: float

    @property
    def holds(self) -> bool:
        """Whether the claim holds."""
        return self.value <= self.bound


@dataclass(frozen=True)
class Variant:
    """A way to run gradshard's round, or to count it.

    Parameters
    ----------
    label
        The name of the variant.
    setting
        The setting, without the bandwidth.
    one_request
        Whether clients are counted as the paper counts: one PUT and one GET each.
    warm
        Whether no function starts cold.
    """

    label: str
    setting: Setting
    one_request: bool = False
    warm: bool = False


DEFAULT: Final = Variant(f"{DEFAULT_MEMORY_MB} MB, the default", Setting())
SMALLEST: Final = Variant("128 MB", Setting(memory_mb=aws_limits.MIN_MEMORY_MB))
DOUBLE: Final = Variant("256 MB", Setting(memory_mb=256))
VARIANTS: Final = (
    DEFAULT,
    replace(DEFAULT, label=f"{DEFAULT.label}; no function starts cold", warm=True),
    Variant(f"{DEFAULT_MEMORY_MB} MB, x86-64", Setting(architecture="x86_64")),
    Variant(f"{DEFAULT_MEMORY_MB} MB, no hurry", Setting(time_budget=math.inf)),
    SMALLEST,
    DOUBLE,
    *(
        replace(variant, label=f"{variant.label}; clients as the paper counts", one_request=True)
        for variant in (DEFAULT, SMALLEST, DOUBLE)
    ),
)


@dataclass(frozen=True)
class RoundClaim:
    """A whole round of a model, everything counted, costs at most a fraction of a published one."""

    model: Model
    rival: str
    fraction: int

    @property
    def bound(self) -> float:
        """Dollars of one round."""
        measurement = published_figures.measured(self.model, self.rival)
        assert measurement is not None  # noqa: S101 - of the claims below, all were measured
        return measurement.full_dollars / 1000 / self.fraction

    def verdict(self, variant: Variant, bandwidth: Bandwidth) -> Verdict:
        """Return whether it holds."""
        setting = replace(variant.setting, bandwidth=bandwidth)
        ours = estimate("shards", self.model.nbytes, setting)
        if ours is None:
            return Verdict(math.inf, self.bound)
        bill = ours.bill
        if variant.one_request:
            requests = Requests(setting.clients, setting.clients)
            bill = replace(bill, s3_clients=setting.prices.s3(requests))
        if variant.warm:
            bill = replace(bill, starts=0.0)
        return Verdict(bill.total, self.bound)


ROUND_CLAIMS: Final = (
    RoundClaim(published_figures.VGG16, "lambda_fl", 10),
    RoundClaim(published_figures.GPT2_LARGE, "gradssharding", 15),
    RoundClaim(published_figures.SYNTHETIC_5GB, "gradssharding", 15),
)

RIVALS: Final = ("lambda_fl", "lifl", "lambda_fl_streamed", "lifl_streamed")
FROM_BYTES: Final = 43_000_000


def no_crossover(
    rival: str,
    bandwidth: Bandwidth,
    column: Column,
    *,
    memory_mb: int = DEFAULT.setting.memory_mb,
    alike: bool = True,
) -> Verdict:
    """Return whether sharding costs no more than a rival at every size from 43 MB.

    The same prices, bandwidth and orchestration for both, and the same clients' requests unless
    they are not to be alike. The value is the worst ratio over the sizes that both can average.
    """
    setting = Setting(
        bandwidth=bandwidth, architecture=published_figures.ARCHITECTURE, memory_mb=memory_mb
    )
    result = compare("shards", rival, setting, column, smallest=FROM_BYTES, alike=alike)
    return Verdict(result.worst_ratio, 1.0)


@dataclass(frozen=True)
class Budget:
    """The cheapest choice that keeps a time budget.

    Parameters
    ----------
    time_budget
        Seconds.
    choice
        The cheapest memory and M; None if there is none.
    """

    time_budget: float
    choice: Estimate | None


BUDGETS: Final = (120.0, 60.0, 30.0, 15.0, 10.0, 5.0, 3.0)


def budgets(model: Model, bandwidth: Bandwidth) -> list[Budget]:
    """Return what each time budget costs."""
    choices = gradshard_systems.frontier(model.nbytes, Setting(bandwidth=bandwidth))

    def cheapest(time_budget: float) -> Estimate | None:
        quick = (choice for choice in choices if choice.seconds <= time_budget)
        return min(quick, key=lambda choice: choice.bill.total, default=None)

    return [Budget(time_budget, cheapest(time_budget)) for time_budget in BUDGETS]


@dataclass(frozen=True)
class FanOut:
    """A way to start M tasks, and the dollars it costs beside the round's other transitions."""

    label: str
    dollars: tuple[float, ...]


FAN_OUT_SHARDS: Final = (1, 4, 16, 36, 200)
EXPRESS_EACH: Final = 1
AS_DEPLOYED: Final = 3
"""Places in the list of :func:`fan_outs`: one Express execution per task, and one for 40 tasks."""


def fan_outs(seconds: float, shards: Sequence[int] = FAN_OUT_SHARDS) -> list[FanOut]:
    """Return what starting tasks of ``seconds`` each costs, by way and M.

    A distributed Map pays a transition for each child it starts; a Standard child pays its own
    transitions, an Express one its request and its seconds in 64 MB. An inline Map pays the
    transitions of its iterations in a Standard machine, and nothing in an Express one, which runs
    at most 40 side by side.
    """
    transition = aws_prices.DOLLARS_PER_TRANSITION

    def express(children: int) -> float:
        each = aws_prices.EXPRESS_MEMORY_GB * aws_prices.DOLLARS_PER_EXPRESS_GB_SECOND * seconds
        return children * (aws_prices.DOLLARS_PER_EXPRESS_REQUEST + each)

    def forties(m: int) -> int:
        return math.ceil(m / aws_limits.INLINE_ITERATIONS)

    ways: dict[str, Callable[[int], float]] = {
        "distributed Map, Standard children": lambda m: m * 2 * transition,
        "distributed Map, Express children": lambda m: m * transition + express(m),
        "inline Map in the Standard machine": lambda m: m * transition,
        "distributed Map, Express children of 40 tasks in an inline Map (as deployed)": lambda m: (
            forties(m) * transition + express(forties(m))
        ),
    }
    return [FanOut(label, tuple(way(m) for m in shards)) for label, way in ways.items()]


def published_crossover() -> float:
    """Return the size at which the paper's own two cells would cross, its ``full`` column.

    GradsSharding's and λ-FL's dollars, each a line through what was measured at ResNet-18 and
    VGG-16: the paper draws its 500 MB from assumed costs of 50 clients.
    """

    def line(system: str) -> tuple[float, float]:
        cells = [published_figures.measured(model, system) for model in MODELS[:2]]
        (x1, y1), (x2, y2) = [(c.model.nbytes, c.full_dollars) for c in cells if c]
        slope = (y2 - y1) / (x2 - x1)
        return slope, y1 - slope * x1

    (a1, b1), (a2, b2) = line("gradssharding"), line("lambda_fl")
    return (b1 - b2) / (a2 - a1)
