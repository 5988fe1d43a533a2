"""The projected cost of a mask keeper's answer."""

from typing import Final, NamedTuple, Self

from gradshard_core.costs import assumed_speeds

KEEPER_MEMORY_MB: Final = 1769
"""Memory of `sum_masks` in keeper/template.yaml: that of one whole processor."""

KEEPER_SECONDS_PER_GB: Final = 0.3
"""Assumed of a keeper's processor, for a GB of key stream; 0.17 were measured (benchmarks.masked),
without the upload."""


class KeeperCost(NamedTuple):
    """The cost of an answer.

    Parameters
    ----------
    streamed_bytes
        The bytes of all key streams.
    cpu_seconds, noise_cpu_seconds
        A processor's time, and how much of it is for noise.
    dollars
        The price of that time.
    """

    streamed_bytes: int
    cpu_seconds: float
    noise_cpu_seconds: float
    dollars: float

    @classmethod
    def of(
        cls,
        nbytes: int,
        clients: int,
        ring_bits: int,
        dollars_per_gb_second: float,
        *,
        has_noise: bool,
    ) -> Self:
        """Project it for clients with updates of so many bytes of F32."""
        streamed = clients * nbytes * ring_bits // 32
        noise = nbytes / 1e9 * assumed_speeds.NOISE_CPU_SECONDS_PER_GB if has_noise else 0.0
        seconds = streamed / 1e9 * KEEPER_SECONDS_PER_GB + noise
        dollars = seconds * KEEPER_MEMORY_MB / 1024 * dollars_per_gb_second
        return cls(streamed, seconds, noise, dollars)
