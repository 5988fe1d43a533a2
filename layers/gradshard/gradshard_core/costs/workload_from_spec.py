"""The work of a round, from its spec and the size of its updates."""

from typing import Final

from gradshard_core.aggregation import addition_order
from gradshard_core.aggregation.topologies import TOPOLOGIES
from gradshard_core.costs import memory_projection
from gradshard_core.costs.request_counts import Lists
from gradshard_core.costs.workload import Workload
from gradshard_core.formats.codecs.registry import CODECS
from gradshard_core.formats.codecs.topk import UNIT, TopK
from gradshard_core.formats.long_lists import StoredList
from gradshard_core.robust.measured_sample import Sample
from gradshard_core.specs.masking_options import with_masks
from gradshard_core.specs.round_spec import RoundSpec

F32_BYTES: Final = 4


def workload_of(
    spec: RoundSpec,
    nbytes: int,
    clients: int,
    *,
    codec: str | None = None,
    ring_bits: int | None = None,
) -> Workload:
    """Return the work of a round of these clients, each with an update of ``nbytes``.

    If ``codec`` names one, the updates are F32 and compressed with it. With ``ring_bits``, or in a
    masked round, they are F32 and masked in a ring of 32 or 64 bits.
    """
    name, levels = spec.levels(clients)
    lists = lists_of(spec)
    if ring_bits is None and spec.masked is not None:
        ring_bits = spec.masked.ring_bits
    if ring_bits is not None:
        factor = ring_bits // (8 * F32_BYTES)
        return Workload(
            nbytes,
            with_masks(levels),
            is_cut=TOPOLOGIES[name].is_cut,
            sums_bytes=factor * nbytes,
            plan_bytes=memory_projection.plan_bytes(clients),
            widening=factor,
            applied=None if spec.server_optimizer is None else len(spec.server_optimizer.state),
            stored_bytes=None if factor == 1 else factor * nbytes,
            lists=lists,
        )
    order, one_in = spec.order or addition_order.natural_order(levels), spec.measure_one_in
    return Workload(
        nbytes,
        levels,
        is_cut=TOPOLOGIES[name].is_cut,
        sums_bytes=None if spec.aggregator_noise is None else 2 * nbytes,  # of float64
        depth=max(1, *map(len, addition_order.split_order(order, levels))),
        plan_bytes=memory_projection.plan_bytes(clients),
        widening=1,  # as in F32
        holds_all=spec.robust_rule is not None and spec.robust_rule.holds_all,
        measures=spec.measures,
        sample=None if one_in is None else Sample.of(nbytes, one_in, ""),
        noises=0 if spec.aggregator_noise is None else 1 + len(spec.aggregator_noise.cancels),
        applied=None if spec.server_optimizer is None else len(spec.server_optimizer.state),
        stored_bytes=None if codec is None else CODECS[codec].stored_bytes(nbytes // F32_BYTES),
        unit_bytes=CODECS[codec].stored_bytes(UNIT) if codec == TopK.name else 0,
        lists=lists,
    )


def lists_of(spec: RoundSpec) -> Lists:
    """Return what a round stores besides its plan and its result."""
    return Lists(
        is_named=not (isinstance(spec.clients, int) or spec.enough_clients or spec.eager),
        groups=tuple(map(len, spec.groups())) if spec.eager else (),
        ids_in_pieces=isinstance(spec.clients, StoredList),
        assigns=spec.assignments is not None,
        has_speeds=spec.assignments is not None and spec.assignments.after is not None,
        shows_clipped=spec.measures and spec.dp is None,
        rule=None if spec.compares_layers else spec.robust_rule,
        draws_noise=spec.aggregator_noise is not None,
        waits_again=spec.eager or spec.masked is not None,
    )
