"""The cost of masks: the sum in a ring beside the weighted sum, and the keeper's key streams.

Run as a module, it prints CPU-seconds per GB of input, as medians of several turns. All inputs are
in memory, and the kernel is that of the functions, so the figures are of the arithmetic alone: what
a task spends on receiving and sending is the same with and without masks.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from gradshard_core.aggregation import kernel
from gradshard_core.aggregation.fixed_point import FixedPoint
from gradshard_core.aggregation.kernel import Addition, Reduction, Source, Zone
from gradshard_core.aggregation.ring_sum import ADDED, SUBTRACTED, Decoding, RingSum, ring_spans
from gradshard_core.formats.layout import Span
from gradshard_core.masking.key_stream import KeyStream

CLIENTS: Final = 20
NBYTES: Final = 43 * 1024**2
"""ResNet-18 in F32."""


class InMemory:
    """An input whose bytes are in memory."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    def read_into(self, buffer: memoryview) -> None:
        """Fill ``buffer`` with the next bytes."""
        buffer[:] = self._data[self._at : self._at + len(buffer)]
        self._at += len(buffer)


def cpu_seconds(
    sources: Sequence[Source], weights: list[float | None], reduction: Reduction, spans: list[Span]
) -> float:
    """Run the kernel over all inputs; return the CPU-seconds per GB of layout and input."""
    begun = time.process_time()
    zones = [Zone(0, NBYTES, weights)]
    kernel.aggregate(sources, zones, reduction, spans, lambda _: None)
    return (time.process_time() - begun) / (len(sources) * NBYTES / 1e9)


def rows() -> dict[str, Callable[[], float]]:
    """Return the measurements by name."""
    spans = [Span("F32", 0, NBYTES)]
    floats = np.random.default_rng(0).standard_normal(NBYTES // 4, np.float32)
    masked = np.random.default_rng(1).integers(0, 2**32, NBYTES // 4, np.uint32)
    fixed = FixedPoint(4.0, 16, 32, CLIENTS, 1000)
    shares: list[float | None] = [1 / CLIENTS] * CLIENTS

    def streams(data: np.ndarray[tuple[int], np.dtype[np.generic]], count: int) -> list[Source]:
        return [InMemory(memoryview(data.view(np.uint8))) for _ in range(count)]

    def plain() -> float:
        return cpu_seconds(streams(floats, CLIENTS), shares, Addition(), spans)

    def ring() -> float:
        weights: list[float | None] = [ADDED] * CLIENTS
        found = cpu_seconds(
            streams(masked, CLIENTS + 1),
            [*weights, SUBTRACTED],
            RingSum(Decoding(fixed, CLIENTS * 100)),
            list(ring_spans(spans, 32)),
        )
        # Per GB of updates: the sum of the masks is what masks cost.
        return found * (CLIENTS + 1) / CLIENTS

    def keeper() -> float:
        sources = [KeyStream(bytes([seed]) * 32, 0, NBYTES) for seed in range(CLIENTS)]
        weights: list[float | None] = [ADDED] * CLIENTS
        return cpu_seconds(sources, weights, RingSum(), list(ring_spans(spans, 32)))

    return {"weighted sum": plain, "masked sum": ring, "keeper": keeper}


def main() -> None:
    """Measure in turns, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    times = parser.parse_args().runs
    measured: dict[str, list[float]] = {}
    for name, measure in [pair for _ in range(times) for pair in rows().items()]:
        measured.setdefault(name, []).append(measure())
    plain = measured["weighted sum"]
    print(f"{CLIENTS} clients x {NBYTES / 1024**2:.0f} MiB of F32, {times} turns")
    for name, found in measured.items():
        ratio = statistics.median(a / b for a, b in zip(found, plain, strict=True))
        print(f"{name:13} {statistics.median(found):.3f} CPU-s/GB, {ratio:.2f} x the weighted sum")


if __name__ == "__main__":
    main()
