"""Make a plan from contributors and a layout: group, choose M, weigh, create the uploads."""

import itertools
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import reduce
from typing import Final

from gradshard_core.aggregation import addition_order, sharding
from gradshard_core.aggregation.arithmetic import STEPS
from gradshard_core.aggregation.batchnorm_buffers import names_in
from gradshard_core.aggregation.block_sizes import ROW_BYTES
from gradshard_core.aggregation.masked_sum import ring_spans
from gradshard_core.aggregation.optimizer_step import state_layout
from gradshard_core.aggregation.reordered_reads import Disorder
from gradshard_core.aggregation.topologies import TOPOLOGIES
from gradshard_core.costs import memory_projection
from gradshard_core.costs.round_projection import Projection
from gradshard_core.costs.workload import Workload
from gradshard_core.costs.workload_from_spec import lists_of
from gradshard_core.errors import PlanError, SpecError
from gradshard_core.formats.compressed_updates import EncodedRuns, further_runs
from gradshard_core.formats.dtypes import DTYPES
from gradshard_core.formats.tensor_layout import Layout, Runs, encode_header
from gradshard_core.planning import shard_count
from gradshard_core.planning.client_weights import local_steps, weights_of
from gradshard_core.planning.grouping import Grouping, group, layer_ranges
from gradshard_core.planning.output_objects import (
    NO_HEADER,
    NextModel,
    StoredHeader,
    next_model_keys,
)
from gradshard_core.planning.plan import Plan
from gradshard_core.planning.plan_parts import (
    NOBODY,
    Computation,
    Contributor,
    Participants,
    PlannedLayerWeights,
    PlannedLayout,
    Stage,
)
from gradshard_core.privacy.private_sum import private_sums_bytes
from gradshard_core.records.layer_weights import weigh_layers
from gradshard_core.records.noise_key import write_noise_key
from gradshard_core.robust.inner_products import count_matrices
from gradshard_core.robust.measured_sample import LEAST_STRATA, Sample
from gradshard_core.rounds.plan_context import PlanContext
from gradshard_core.rounds.robust_measurement import Decided
from gradshard_core.s3.store import S3Store
from gradshard_core.specs.masking_options import with_masks
from gradshard_core.specs.round_spec import RoundSpec
from gradshard_core.specs.round_spec_checks import check_averaged, check_compared
from gradshard_core.stragglers.fednova import note_bounded_steps
from gradshard_core.stragglers.layers import Coverage
from gradshard_core.stragglers.salf import FEDAVG

HEADER_TYPE = "application/octet-stream"

SEED_BYTES: Final = 16


def write_layout(context: PlanContext, layout: Layout | None) -> PlannedLayout:
    """Write the headers of the average and of the optimizer's state; describe the layout.

    ``layout`` is None in an eager round while every update so far was rejected.
    """
    if layout is None:
        return PlannedLayout()
    store, keys, spec = context.store, context.keys, context.spec
    averaged = context.buffers(layout)
    integers = [t.name for t in layout.tensors if spec.dp and DTYPES[t.dtype].is_integer]
    try:
        check_averaged(spec, [*names_in(layout, averaged), *integers])
        check_compared(spec, layout, averaged)
    except SpecError as error:
        raise PlanError(str(error)) from None
    header = encode_header(layout, {})
    _store_header(store, keys.layout, header)
    state_header = NO_HEADER
    if spec.server_optimizer is not None and spec.server_optimizer.state:
        state_header = _store_header(
            store, keys.state_layout, encode_header(state_layout(layout), {})
        )
    return PlannedLayout.of(
        layout,
        header,
        layers=layer_ranges(spec, layout),
        state_header=state_header,
        buffers=averaged,
    )


def _store_header(store: S3Store, key: str, header: bytes) -> StoredHeader:
    """Describe a header, and write it if it is too large for the plan."""
    stored = StoredHeader.of(header)
    if stored.in_plan is None:
        store.put_bytes(key, header, content_type=HEADER_TYPE)
    return stored


def assemble(
    context: PlanContext,
    contributors: Sequence[Contributor],
    layout: PlannedLayout,
    coverage: dict[str, Coverage],
    decided: Decided | None = None,
) -> Plan:
    """Make a plan and create the uploads of its outputs.

    Under a robust rule that measures, it is a plan to measure, without outputs, until the rule has
    decided.

    Parameters
    ----------
    context
        The inputs of the planning.
    contributors
        Without weights.
    layout
        The result of :func:`write_layout`, or the layout of an earlier plan.
    coverage
        The layers that each contributor of partial updates has.
    decided
        The rule's decision.

    Raises
    ------
    PlanError
        The updates cannot be aggregated within the limits.
    """
    spec, keys = context.spec, context.keys
    if spec.is_drawn and not contributors:
        decided = Decided((_nobody(context),), (), None)
    measures = spec.measures and decided is None
    if spec.aggregator_noise is not None and not measures:
        write_noise_key(context.store, keys)
    sample, sample_notes = _sample(spec, layout)
    weights = weights_of(spec, is_decided=decided is not None)
    grouping = group(spec, contributors if decided is None else decided.kept, weights)
    projection, notes = _choose_shards(context, grouping, layout, sample)
    notes += sample_notes
    if spec.weights == STEPS:
        notes += note_bounded_steps(local_steps(grouping.contributors))
    layers = _weigh_layers(context, contributors, layout, coverage, decided)
    return Plan(
        round_id=keys.round_id,
        participants=Participants(
            grouping.contributors, left_out=() if decided is None else decided.left_out
        ),
        computation=replace(
            _computation(spec, grouping, weights),
            # Groups measure their own updates, and there is nothing to add up but that.
            levels=grouping.levels[:1] if measures else grouping.levels,
            shards=projection.shards,
            layers=layers,
            measures=measures,
            measured=None if decided is None else decided.measured,
            sample=sample if measures else None,
        ),
        layout=layout,
        attempt=context.request.attempt,
        stage=Stage(context.request.entered_at),
        upload_id="" if measures else _create_upload(context, keys.result),
        next_model=None if measures else _create_next_model(context),
        masking=context.masking(),
        assignments=spec.assignments and spec.assignments.to_json(),
        notes=tuple(notes),
        projected=projection.to_json(),
        opened_at=context.opened_at,
        planned_at=datetime.now(UTC).isoformat(),
    )


def _nobody(context: PlanContext) -> Contributor:
    """Return what a round of drawn clients adds if none of them came, so that noise is released."""
    layout, _ = context.model_layout()
    assert layout is not None  # noqa: S101 - for mypy: open_round wants a model for such rounds
    assert context.model is not None  # noqa: S101
    tensors = context.model.tensors
    runs = layout.runs_in(layout, tensors.data_offset)
    return Contributor(NOBODY, tensors.source, 0, 0.0, runs)


def _weigh_layers(
    context: PlanContext,
    contributors: Sequence[Contributor],
    layout: PlannedLayout,
    coverage: dict[str, Coverage],
    decided: Decided | None,
) -> tuple[PlannedLayerWeights, ...]:
    """Weigh each layer of partial updates among all that have it, also those that are left out."""
    ordered = sorted(contributors, key=lambda contributor: contributor.client)
    layers = weigh_layers(context.store, context.spec, ordered, layout.layers, coverage)
    if decided is None or not decided.left_out:
        return layers
    kept = {contributor.client for contributor in decided.kept}
    is_kept = [contributor.client in kept for contributor in ordered]
    return tuple(
        layer._replace(weights=tuple(itertools.compress(layer.weights, is_kept)))
        for layer in layers
    )


def _computation(spec: RoundSpec, grouping: Grouping, weights: str) -> Computation:
    """Return what the spec and the grouping say of a computation."""
    return Computation(
        levels=grouping.levels,
        topology=grouping.topology,
        order=addition_order.format_order(grouping.order),
        weights=weights,
        rule=FEDAVG if spec.rule is None else spec.rule.name,
        allow_nonfinite=spec.allow_nonfinite,
        robust=spec.robust_rule,
        dp=spec.aggregator_noise,
    )


def _sample(spec: RoundSpec, layout: PlannedLayout) -> tuple[Sample | None, list[str]]:
    """Draw the elements that are measured, and note if the layout is too small to leave out any.

    Updates are frozen by now, so no client can send one that fits the sample.
    """
    if spec.measure_one_in is None:
        return None, []
    seed = os.urandom(SEED_BYTES).hex()
    sample = Sample.of(layout.nbytes, spec.measure_one_in, seed)
    if sample is not None:
        return sample, []
    least = spec.measure_one_in * LEAST_STRATA * ROW_BYTES
    note = (
        f"all elements are measured, not one in {spec.measure_one_in}: the error of a sample can "
        f"be stated for updates of at least {least} bytes, and these have {layout.nbytes}"
    )
    return None, [note]


def _choose_shards(
    context: PlanContext, grouping: Grouping, layout: PlannedLayout, sample: Sample | None
) -> tuple[Projection, list[str]]:
    spec = context.spec
    runs = [contributor.runs for contributor in grouping.contributors]
    spans, sizes = layout.spans, grouping.sizes
    stored_bytes = _stored_bytes(runs)
    if spec.masked is not None:
        spans, sizes = ring_spans(spans, spec.masked.ring_bits), with_masks(sizes)
        masked_bytes = sharding.sums_bytes(spans, 0, layout.nbytes)
        stored_bytes = None if masked_bytes == layout.nbytes else masked_bytes
    load = Workload(
        nbytes=layout.nbytes,
        levels=sizes,
        is_cut=TOPOLOGIES[grouping.topology].is_cut,
        sums_bytes=(
            sharding.sums_bytes(spans, 0, layout.nbytes)
            if spec.aggregator_noise is None
            else private_sums_bytes(spans, 0, layout.nbytes)
        ),
        depth=max(1, *(len(level.order) for level in grouping.levels)),
        plan_bytes=memory_projection.plan_bytes(
            len(grouping.contributors),
            layers=len(layout.layers),
            spans=len(layout.spans) + len(layout.buffers),
            runs=further_runs(runs) * (2 if stored_bytes else 1),  # of five numbers, not of three
            headers=len(layout.header.text) + len(layout.state_header.text),
        ),
        widening=sharding.widening(spans),
        holds_all=spec.robust_rule is not None and spec.robust_rule.holds_all,
        measures=spec.measures,
        matrices=count_matrices(spans, len(layout.layers) if spec.compares_layers else 1),
        sample=sample,
        noises=0 if spec.aggregator_noise is None else 1 + len(spec.aggregator_noise.cancels),
        applied=None if spec.server_optimizer is None else len(spec.server_optimizer.state),
        disorder=_disorder_by_group(grouping, layout.nbytes),
        stored_bytes=stored_bytes,
        unit_bytes=max((r.largest_unit for r in runs), default=0),
        lists=lists_of(spec)._replace(stores_headers=layout.header.in_plan is None),
    )
    return shard_count.choose(
        load, context.aggregator, shards=spec.shards, time_budget=spec.time_budget
    )


def _stored_bytes(runs: Sequence[Runs]) -> float | None:
    """Return the mean size of the updates as they are stored; None if none is compressed."""
    if not any(isinstance(r, EncodedRuns) for r in runs):
        return None
    return sum(r.nbytes for r in runs) / len(runs)


def _disorder_by_group(grouping: Grouping, nbytes: int) -> tuple[Disorder, ...]:
    """Return what reading tensors in other orders costs; empty if all have the round's order."""
    costs = [Disorder.of(contributor.runs, nbytes) for contributor in grouping.contributors]
    if not any(cost.groups for cost in costs):
        return ()
    return tuple(
        reduce(Disorder.plus, costs[first:stop], Disorder())
        for first, stop in grouping.levels[0].groups
    )


def _create_upload(context: PlanContext, key: str) -> str:
    return context.store.create_upload(key, {"gradshard-round": context.round_id})


def _create_next_model(context: PlanContext) -> NextModel | None:
    """Create the uploads of the next version of the model, if the round makes one."""
    optimizer, current = context.spec.server_optimizer, context.model
    if optimizer is None or current is None:
        return None
    step, state = current.continued_by(optimizer)
    model_key, *state_keys = next_model_keys(optimizer, context.round_id)
    uploads = tuple(_create_upload(context, key) for key in (model_key, *state_keys))
    return NextModel(
        server_optimizer=optimizer,
        version=current.number + 1,
        step=step,
        model=current.tensors,
        state=state,
        uploads=uploads,
    )
