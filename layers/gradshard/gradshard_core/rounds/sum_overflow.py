"""Reject the largest contributions to an element that overflows, where all updates are finite.

The contributor with the largest weighted contribution to the element, abs(weight · value), is
rejected, of equal ones the first by client id. Then the next largest is rejected, until the element
would be finite with the weights of this plan. The round is then planned again.

A task of any level reads the element of every contributor whose update is in its sum. That costs
one small request each, and only when a round has failed.
"""

import functools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from gradshard_core.aggregation import arithmetic
from gradshard_core.aggregation.arithmetic import Array
from gradshard_core.aggregation.batchnorm_buffers import is_in
from gradshard_core.aggregation.decoding import DecodedSource, DecodingMemory
from gradshard_core.aggregation.kernel import clip_ranges
from gradshard_core.aggregation.optimizer_step import take_step
from gradshard_core.aggregation.server_optimizers import MODELS
from gradshard_core.aggregation.sharding import clip, sums_bytes
from gradshard_core.errors import ChangedObjectError, PlanError
from gradshard_core.formats.compressed_updates import EncodedRuns
from gradshard_core.formats.dtypes import DTYPES, DType
from gradshard_core.formats.object_keys import ObjectVersion
from gradshard_core.formats.tensor_layout import Layout, shorten
from gradshard_core.planning.output_objects import NextModel
from gradshard_core.planning.plan import Plan
from gradshard_core.planning.plan_parts import Contributor, Rejection, Task
from gradshard_core.s3.range_streams import RangeStream
from gradshard_core.s3.task_client import TaskS3Client

READERS: Final = 8

MOST_LOOKED_AT: Final = 4096
"""Updates of which a task reads an element, in about 15 s of the 140 s that it may take."""

AreFinite = Callable[[Array], npt.NDArray[np.bool_]]
"""Returns for each of some sums whether the task's output would be finite with it."""


class _Contribution(NamedTuple):
    """The contribution of one update to one element.

    Parameters
    ----------
    contributor
        The contributor of the update.
    weight, value
        The two factors.
    product
        The addend, in the accumulator's type.
    """

    contributor: Contributor
    weight: float
    value: float
    product: float

    @property
    def size(self) -> tuple[bool, int, float]:
        """A key that sorts by abs(weight · value), even if the product overflows.

        Products that are not finite are the largest.
        """
        (weight, weight_exponent), (value, exponent) = map(math.frexp, (self.weight, self.value))
        mantissa, shift = math.frexp(abs(weight * value))
        # Zero has no exponent.
        magnitude = weight_exponent + exponent + shift if mantissa else -(2**31)
        return not math.isfinite(self.product), magnitude, mantissa


def reject_largest(s3: TaskS3Client, plan: Plan, task: Task, position: int) -> list[Rejection]:
    """Reject the largest contributions to an element whose sum overflows.

    Parameters
    ----------
    s3
        The bucket.
    plan, task
        The plan, and the task whose sum overflows.
    position
        The first byte of the element in the layout.

    Returns
    -------
    list of Rejection
        At least one. If some contributors' versions were deleted, these are rejected instead.
    """
    dtype = _dtype_at(plan, position)
    is_last = plan.is_last(task.level)
    bound = dtype.overflow if is_last else math.inf
    sums = "the averaged update" if is_last else "a partial sum"
    kind = dtype.name if is_last else _widest(dtype).name

    def are_finite(sums: Array) -> npt.NDArray[np.bool_]:
        return ~arithmetic.overflows(_divided(plan, dtype, sums) if is_last else sums, bound)

    def reason(tensor: str, element: int) -> str:
        return f"{sums} would overflow {kind} at element {element} of tensor {tensor!r}"

    return _reject(s3, plan, task, position, are_finite, reason, advice="")


def reject_largest_step(s3: TaskS3Client, plan: Plan, task: Task, position: int) -> list[Rejection]:
    """Reject the largest contributions to an element at which the server optimizer overflows.

    Parameters and return value are those of :func:`reject_largest`.

    Raises
    ------
    PlanError
        The optimizer would overflow without any contribution.
    """
    new, dtype = plan.next_model, _dtype_at(plan, position)
    if new is None:
        raise PlanError(f"round {plan.round_id!r} makes no version of a model")
    terms = new.server_optimizer
    step = f"{terms.optimizer} with learning_rate {terms.settings['learning_rate']:g}"
    model, *state = _read_model(s3, plan, new, position)

    def are_finite(sums: Array) -> npt.NDArray[np.bool_]:
        averages = _divided(plan, dtype, sums)
        return _steps_are_finite(plan, new, position, averages, model, state)

    def reason(tensor: str, element: int) -> str:
        return (
            f"{step} would make a NaN or an infinity of element {element} of the model's tensor "
            f"{tensor!r}, or of the optimizer's state there"
        )

    # The average of clients that change nothing: the model itself, or deltas of zero.
    unchanged = model if terms.updates == MODELS else np.zeros_like(model)
    if not _steps_are_finite(plan, new, position, unchanged, model, state)[0]:
        where = _element_at(s3, plan, position)
        raise PlanError(
            f"{reason(*where)}, whatever clients send: look at version {new.version - 1} of model "
            f"{terms.model!r}, and go back to one before it, or open a round with a lower learning "
            "rate"
        )
    advice = "; if honest clients are rejected so, open a round with a lower learning rate"
    return _reject(s3, plan, task, position, are_finite, reason, advice=advice)


def _reject(
    s3: TaskS3Client,
    plan: Plan,
    task: Task,
    position: int,
    are_finite: AreFinite,
    reason: Callable[[str, int], str],
    *,
    advice: str,
) -> list[Rejection]:
    """Reject the contributors whose version was deleted, or else the largest contributions."""
    dtype = _dtype_at(plan, position)
    read = _contributions(s3, plan, task, position, dtype)
    gone = [found for found in read if isinstance(found, Rejection)]
    if gone:
        return gone
    # The sort is stable, and clients are in the order of their ids.
    found = sorted(
        (c for c in read if isinstance(c, _Contribution)), key=lambda c: c.size, reverse=True
    )
    count = _count_to_reject([c.product for c in found], dtype, are_finite)
    tensor, element = _element_at(s3, plan, position)

    def size(c: _Contribution, rank: int) -> str:
        if plan.computation.dp is not None:  # all clients can read reasons
            return "this update is too large there"
        return (
            f"this update has {c.value:g} there with weight {c.weight:g}, {_ordinal(rank)} of "
            f"{len(found)} contributions"
        )

    return sorted(
        (
            Rejection(
                c.contributor.client,
                f"{c.contributor.source.key}: {reason(tensor, element)}: {size(c, rank)}{advice}",
                c.contributor.source.etag,
            )
            for rank, c in enumerate(found[:count])
        ),
        key=lambda rejection: rejection.client,
    )


def _count_to_reject(products: Sequence[float], dtype: DType, are_finite: AreFinite) -> int:
    """Return how many of the products, the largest first, must be rejected.

    It is at least one: the additions here are in another order than the round's, so their sum may
    be finite where the round's was not.
    """
    ascending = np.array([0.0, *reversed(products)]).astype(dtype.accumulator)
    with np.errstate(all="ignore"):
        # Element k is about the sum of the k smallest products.
        finite = are_finite(np.cumsum(ascending, dtype=dtype.accumulator))
    return next((out for out in range(1, len(products)) if finite[-1 - out]), len(products))


def _contributions(
    s3: TaskS3Client, plan: Plan, task: Task, position: int, dtype: DType
) -> list[_Contribution | Rejection]:
    """Read one element of every update in a task's sum that has it, sorted by client id."""
    weighed, groups = [], plan.groups_behind(task)
    if (count := sum(stop - first for first, stop in groups)) > MOST_LOOKED_AT:
        raise PlanError(
            f"byte {position} of the layout overflows in a sum of {count} updates, none of which "
            f"holds a NaN or an infinity there. One task looks at {MOST_LOOKED_AT} at most, so it "
            "cannot tell which are too large: have clients send smaller values, or allow_nonfinite"
        )
    for first, stop in groups:
        [weighted_range] = clip_ranges(
            plan.weighted_ranges(first, stop), position, position + dtype.size
        )
        weighed += [
            (contributor, weight)
            for contributor, weight in zip(
                plan.group(first, stop), weighted_range.weights, strict=True
            )
            if weight is not None
        ]
    # In an eager round contributors are sorted within each group only.
    weighed.sort(key=lambda pair: pair[0].client)
    read = functools.partial(_contribution, s3, position, dtype)
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(read, *zip(*weighed, strict=True)))


def _contribution(
    s3: TaskS3Client, position: int, dtype: DType, contributor: Contributor, weight: float
) -> _Contribution | Rejection:
    with np.errstate(all="ignore"):
        try:
            [value] = _update_element(s3, contributor, position, dtype)
        except ChangedObjectError as error:
            return Rejection(contributor.client, str(error), contributor.source.etag)
        product = value * dtype.accumulator.type(weight)
    return _Contribution(contributor, weight, float(value), float(product))


def _update_element(
    s3: TaskS3Client, contributor: Contributor, position: int, dtype: DType
) -> Array:
    """Read one element of an update, in its accumulator's type."""
    runs, end = contributor.runs, position + dtype.size
    if not isinstance(runs, EncodedRuns):
        return _element(s3, contributor.source, list(runs.ranges(position, end)), dtype)
    ranges = runs.read_from(position).ranges(position, end)
    stream = RangeStream(s3, contributor.source, ranges)
    data = memoryview(bytearray(dtype.size))
    try:
        DecodedSource(stream, runs, position, end, DecodingMemory()).read_into(data)
    finally:
        stream.close()
    return arithmetic.widened(dtype, data)


def _read_model(s3: TaskS3Client, plan: Plan, new: NextModel, position: int) -> list[Array]:
    """Read one element of the model and of the optimizer's state; a missing state is zero."""
    dtype = _dtype_at(plan, position)
    before = sums_bytes(plan.layout.spans, 0, position)
    places = [
        (new.model, dtype, position),
        *((kept, _widest(dtype), before) for kept in new.state),
    ]
    values = [
        _element(
            s3,
            kept.source,
            [(kept.data_offset + start, kept.data_offset + start + stored.size)],
            stored,
        )
        for kept, stored, start in places
    ]
    return values + [np.zeros_like(values[0]) for _ in new.server_optimizer.state[len(new.state) :]]


def _element(
    s3: TaskS3Client, source: ObjectVersion, ranges: list[tuple[int, int]], dtype: DType
) -> Array:
    """Read one element, in its accumulator's type."""
    data = memoryview(bytearray(dtype.size))
    stream = RangeStream(s3, source, ranges)
    try:
        stream.read_into(data)
    finally:
        stream.close()
    return arithmetic.widened(dtype, data)


def _divided(plan: Plan, dtype: DType, sums: Array) -> Array:
    averages = sums.copy()
    if plan.divisor != 1:
        arithmetic.divide(dtype, averages, plan.divisor)
    return averages


def _steps_are_finite(
    plan: Plan,
    new: NextModel,
    position: int,
    averages: Array,
    model: Array,
    state: Sequence[Array],
) -> npt.NDArray[np.bool_]:
    """Return for each of some averages whether its step gives a finite model and state."""
    dtype = _dtype_at(plan, position)
    with np.errstate(all="ignore"):
        bad = arithmetic.overflows(averages, dtype.overflow)
        narrow = arithmetic.finish(dtype, averages.copy(), np.empty_like(averages))
        stepped, after = take_step(
            new.server_optimizer,
            new.step,
            is_in(plan.layout.buffers, position),
            model.repeat(len(averages)),
            arithmetic.widened(dtype, narrow),
            [kept.repeat(len(averages)) for kept in state],
        )
        bad |= arithmetic.overflows(stepped, dtype.overflow)
        for kept in after:
            bad |= arithmetic.overflows(kept, math.inf)
    return ~bad


def _dtype_at(plan: Plan, position: int) -> DType:
    [span] = clip(plan.layout.spans, position, position + 1)
    return DTYPES[span.dtype]


def _widest(dtype: DType) -> DType:
    """Return the type of an accumulator as an element: F32 or F64."""
    return next(wide for wide in DTYPES.values() if wide.storage == dtype.accumulator)


def _element_at(s3: TaskS3Client, plan: Plan, position: int) -> tuple[str, int]:
    """Return the name of the tensor that has an element, and the element's index in it."""
    update = plan.outputs[0]
    return element_at(update.read_layout(s3), position)


def element_at(layout: Layout, position: int) -> tuple[str, int]:
    """Return the tensor and the index of the element at byte ``position`` of the layout."""
    tensor = layout.tensor_at(position)
    return shorten(tensor.name), (position - tensor.start) // DTYPES[tensor.dtype].size


def _ordinal(rank: int) -> str:
    return "the largest" if rank == 0 else f"number {rank + 1} by size"
