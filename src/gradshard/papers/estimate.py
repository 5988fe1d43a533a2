"""The setting by which every system is priced, and the result."""

from dataclasses import asdict, dataclass
from typing import Any, Final

from gradshard.papers import published_figures
from gradshard_core.costs.bandwidth_model import BURST, Bandwidth
from gradshard_core.costs.lambda_config import DEFAULT_MEMORY_MB, LambdaConfig
from gradshard_core.costs.round_cost import US_EAST_1, Bill, Prices

TITLES: Final = {
    "shards": "gradshard shards",
    "gradssharding": "GradsSharding",
    "lambda_fl": "λ-FL",
    "lifl": "LIFL",
    "lambda_fl_streamed": "λ-FL, streamed",
    "lifl_streamed": "LIFL, streamed",
}

PUBLISHED: Final = Bandwidth(
    "published",
    (
        published_figures.SLOWEST_READ_BYTES_PER_SECOND
        + published_figures.FASTEST_READ_BYTES_PER_SECOND
    )
    / 2,
    latency_seconds=0.05,
)
"""The bandwidth that the paper measured: the middle of 44 to 57 MiB/s.

The latency is assumed, and chosen to fit the published cells. It matters only where a function
reads twenty small objects one after another: ResNet-18's shards."""


@dataclass(frozen=True)
class Setting:
    """The setting of a comparison.

    Parameters
    ----------
    clients
        N.
    bandwidth
        The bandwidth of every function, in all systems.
    architecture
        ``arm64`` or ``x86_64``; decides the price.
    memory_mb
        The memory of gradshard's aggregators; the published systems follow their own rule.
    shards
        M; None for each system's own choice.
    time_budget
        Time budget of gradshard's own choice of M; None for the planner's.
    prices
        The prices, for all systems.
    """

    clients: int = published_figures.CLIENTS
    bandwidth: Bandwidth = BURST
    architecture: str = "arm64"
    memory_mb: int = DEFAULT_MEMORY_MB
    shards: int | None = None
    time_budget: float | None = None
    prices: Prices = US_EAST_1

    def aggregator(self, memory_mb: int | None = None) -> LambdaConfig:
        """Return what tasks run on, with another memory than gradshard's if need be."""
        return LambdaConfig(
            memory_mb or self.memory_mb, self.architecture, self.bandwidth, prices=self.prices
        )


@dataclass(frozen=True)
class Estimate:
    """The expected time and cost of a round.

    Parameters
    ----------
    system
        The name of the system in :data:`gradshard.papers.SYSTEMS`.
    nbytes
        Size of an update's tensors.
    shards
        M; 1 for trees.
    tasks
        Functions, over all levels.
    memory_mb
        The memory of each function, in MB.
    task_seconds
        The seconds of the longest task.
    seconds
        The seconds of the aggregation: one level after another.
    gb_seconds
        The GB-seconds of the aggregators.
    gets, puts
        S3 requests of the aggregators.
    bill
        Dollars.
    """

    system: str
    nbytes: int
    shards: int
    tasks: int
    memory_mb: int
    task_seconds: float
    seconds: float
    gb_seconds: float
    gets: int
    puts: int
    bill: Bill

    def to_json(self) -> dict[str, Any]:
        """Return the estimate as JSON."""
        return asdict(self) | {"bill": self.bill.to_json()}
