"""The Lambda functions that tasks run on, and the time that a task takes on them."""

from dataclasses import dataclass
from typing import Final

from gradshard_core.costs import assumed_speeds
from gradshard_core.costs.bandwidth_model import BURST, Bandwidth
from gradshard_core.costs.round_cost import US_EAST_1, Prices
from gradshard_core.limits import aws_limits

DEFAULT_MEMORY_MB: Final = 192
"""The default of the template. A function of 128 MB, the smallest, has too small a share of a
processor to add up what its network delivers. One of 192 MB waits for the network: it has the same
price and needs up to 30 % less time. More memory costs more and saves hardly any time
(docs/cost.md)."""

MEMORIES_MB: Final = (
    aws_limits.MIN_MEMORY_MB,
    192,
    256,
    384,
    512,
    1024,
    aws_limits.MB_PER_VCPU,
    3008,
)
"""Sizes worth comparing, from the smallest to the largest of a new account."""


@dataclass(frozen=True)
class LambdaConfig:
    """The configuration of the functions that tasks run on.

    Parameters
    ----------
    memory_mb
        Configured memory. It also decides the share of a processor.
    architecture
        ``arm64`` or ``x86_64``, which have different prices.
    bandwidth
        The network bandwidth of a function.
    concurrency
        The largest number of functions that may run at once; 0 for no limit.
    prices
        The prices of AWS.
    """

    memory_mb: int
    architecture: str
    bandwidth: Bandwidth = BURST
    concurrency: int = 0
    prices: Prices = US_EAST_1

    @property
    def batch(self) -> int:
        """The number of tasks in one child execution of the state machine's map."""
        return min(aws_limits.INLINE_ITERATIONS, self.concurrency or aws_limits.INLINE_ITERATIONS)

    def waves(self, tasks: int) -> int:
        """Return in how many waves, one after another, so many tasks run.

        All tasks of a batch run at once, so a wave has a whole number of batches.
        """
        at_once = self.concurrency // self.batch * self.batch
        return -(-tasks // at_once) if at_once else 1

    def task_seconds(self, nbytes: float, further_cpu_seconds: float = 0.0) -> float:
        """Return the duration of a task, all streams opened at once.

        Parameters
        ----------
        nbytes
            Bytes that it reads.
        further_cpu_seconds
            CPU seconds beyond those of receiving and adding them.
        """
        processor = min(1.0, self.memory_mb / aws_limits.MB_PER_VCPU)
        cpu_seconds = assumed_speeds.CPU_SECONDS_PER_GB * nbytes / 1e9 + further_cpu_seconds
        return (
            assumed_speeds.TASK_START_SECONDS
            + self.bandwidth.latency_seconds
            + max(self.bandwidth.seconds(nbytes), cpu_seconds / processor)
        )
