"""The means of clients' metrics, weighted by samples."""

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence


def average(sent: Iterable[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """Return the mean of each metric, weighted by samples, over the clients that sent it.

    Those that most clients have sent come first. The result depends on no order: sums are rounded
    once (:func:`math.fsum`).

    Parameters
    ----------
    sent
        The number of samples and the metrics of each client.
    """
    by_name: dict[str, tuple[array[int], array[float]]] = {}
    for samples, metrics in sent:
        for name, value in metrics.items():
            # Arrays: 100,000 clients may send 32 numbers each.
            counts, values = by_name.setdefault(name, (array("q"), array("d")))
            counts.append(samples)
            values.append(value)
    names = sorted(by_name, key=lambda name: (-len(by_name[name][0]), name))
    means = {name: _mean(*by_name[name]) for name in names}
    return {name: mean for name, mean in means.items() if math.isfinite(mean)}


def _mean(samples: Sequence[int], values: Sequence[float]) -> float:
    total = sum(samples)
    try:
        return math.fsum(n / total * value for n, value in zip(samples, values, strict=True))
    except OverflowError:
        # Rounded shares may add up to more than one, so the sum is over the largest float64.
        shares = (n / total * (value / 2) for n, value in zip(samples, values, strict=True))
        return min(max(2 * math.fsum(shares), min(values)), max(values))
