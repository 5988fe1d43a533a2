"""The expected result, computed by a plain numpy loop over all updates in memory."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Update(NamedTuple):
    """The update of one client."""

    tensors: dict[str, Array]
    samples: int


class Comparison(NamedTuple):
    """The comparison of an averaged update with the expected one, byte by byte."""

    tensors: int
    nbytes: int
    differing: list[str]

    @property
    def identical(self) -> bool:
        """Whether every bit is the same."""
        return not self.differing


def average(updates: Mapping[str, Update]) -> dict[str, Array]:
    """Return the mean of the updates, weighted by their samples, clients in order of their ids."""
    ordered = [updates[client] for client in sorted(updates)]
    total = sum(update.samples for update in ordered)
    weights = [update.samples / total for update in ordered]
    return {
        name: _weighted_sum([update.tensors[name] for update in ordered], weights)
        for name in ordered[0].tensors
    }


def compare(result: Mapping[str, Array], expected: Mapping[str, Array]) -> Comparison:
    """Compare names, types, shapes and every bit."""
    names = sorted(result.keys() | expected.keys())
    return Comparison(
        tensors=len(expected),
        nbytes=sum(array.nbytes for array in expected.values()),
        differing=[name for name in names if not _same(result.get(name), expected.get(name))],
    )


def _weighted_sum(arrays: list[Array], weights: list[float]) -> Array:
    is_integer = arrays[0].dtype.kind in "iu"
    accumulator = np.dtype(np.float64 if is_integer else np.float32)
    acc = accumulator.type(weights[0]) * arrays[0].astype(accumulator)
    for array, weight in zip(arrays[1:], weights[1:], strict=True):
        acc += accumulator.type(weight) * array.astype(accumulator)
    return np.rint(acc).astype(arrays[0].dtype) if is_integer else acc


def _same(one: Array | None, other: Array | None) -> bool:
    return (
        one is not None
        and other is not None
        and (one.dtype, one.shape) == (other.dtype, other.shape)
        and one.tobytes() == other.tobytes()
    )
