"""The claim of a completed round: these updates, by these rules, make this result.

A claim is read from the round's spec and manifest, and from the headers of the objects that the
manifest names. The plan is not read. Groups, order of additions and weights are derived from the
spec and from what the updates state. The manifest is trusted only for who contributed, with which
version of which object.
"""

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, NamedTuple

from gradshard.utils.parallel import run_parallel
from gradshard.utils.text import pluralize
from gradshard.verification.masked_round_claim import NOT_PROVED, read_masking
from gradshard.verification.round_provenance import NamedContributor, StatedRound
from gradshard_core.aggregation.addition_order import format_order
from gradshard_core.aggregation.arithmetic import STEPS
from gradshard_core.aggregation.batchnorm_buffers import names_in
from gradshard_core.aggregation.optimizer_step import state_layout
from gradshard_core.errors import (
    ChangedObjectError,
    ModelNotFoundError,
    PlanError,
    SpecError,
    UpdateError,
)
from gradshard_core.formats.compressed_updates import parse_update
from gradshard_core.formats.headers import FIRST_READ_BYTES, Header, header_length, parse_samples
from gradshard_core.formats.masked_updates import Share, masked_layout
from gradshard_core.formats.object_keys import (
    ObjectVersion,
    RoundKeys,
    StoredTensors,
    TrainingKeys,
    base_version,
    sender_of,
)
from gradshard_core.formats.tensor_layout import PREFIX_BYTES, Layout
from gradshard_core.planning.client_weights import weights_of
from gradshard_core.planning.grouping import Grouping, group, layer_ranges
from gradshard_core.planning.output_objects import NextModel
from gradshard_core.planning.plan import Plan
from gradshard_core.planning.plan_parts import (
    Computation,
    Contributor,
    LayerRanges,
    Participants,
    PlannedLayerWeights,
    PlannedLayout,
)
from gradshard_core.records import model_registry
from gradshard_core.records.layer_weights import weigh_layers
from gradshard_core.records.model_registry import Version
from gradshard_core.s3.store import S3Store
from gradshard_core.specs.inbox_spec import InboxSpec
from gradshard_core.specs.masking_options import Masking
from gradshard_core.specs.round_spec import RoundSpec
from gradshard_core.stragglers.client_report import parse_report
from gradshard_core.stragglers.layers import Coverage, Layer, coverage_of, layers_of
from gradshard_core.stragglers.salf import FEDAVG

THREADS: Final = 16
"""Headers read at once: enough to hide the requests' latency."""

NAMED: Final = 5
"""Clients that an error names."""


@dataclass(frozen=True)
class Claim:
    """A round's claim, and what speaks against it before a byte is recomputed.

    Parameters
    ----------
    plan
        The plan that makes the result from the updates, as one shard.
    layout
        The layout of the result.
    result
        The published average.
    next_model, state
        The published version of the model and the optimizer's state; None if the round made none,
        or if the version that it began from is gone.
    contradictions
        Statements of the manifest that are not true.
    notes
        Statements about what could not be checked, with the reasons.
    """

    plan: Plan
    layout: Layout
    result: StoredTensors
    next_model: StoredTensors | None
    state: tuple[StoredTensors, ...]
    contradictions: tuple[str, ...]
    notes: tuple[str, ...]


def read_claim(
    store: S3Store,
    keys: RoundKeys,
    spec: RoundSpec,
    model_version: int | None,
    stated: StatedRound,
) -> Claim:
    """Read what a completed round claims.

    Parameters
    ----------
    store, keys
        The round.
    spec, model_version
        The options of the round, and the version of the model from which it began.
    stated
        The statements of its manifest.

    Raises
    ------
    ChangedObjectError
        The result, or an update, is gone in the version that the manifest names; the text says
        which ones.
    UpdateError
        An object is no safetensors object.
    SpecError
        The round's rule measured the updates, and only the functions can read its weights.
    """
    if spec.aggregator_noise is not None:
        raise SpecError(
            f"round {keys.round_id!r} cannot be verified: it is private, and the key of its noise "
            "was deleted"
        )
    if spec.weighing_rule is not None:
        raise SpecError(
            f"round {keys.round_id!r} cannot be verified: its rule {spec.weighing_rule.name} "
            "decided on weights from measurements that only the functions can read"
        )
    return _Reader(store, keys, spec, model_version, stated).read()


class _Sent(NamedTuple):
    """The facts that are kept of an update's header."""

    contributor: Contributor
    coverage: Coverage | None
    contradictions: tuple[str, ...]


class _Reader:
    """Reads one claim; contradictions and notes are collected on the way."""

    def __init__(
        self,
        store: S3Store,
        keys: RoundKeys,
        spec: RoundSpec,
        model_version: int | None,
        stated: StatedRound,
    ) -> None:
        self._store, self._keys, self._spec = store, keys, spec
        self._model_version, self._stated = model_version, stated
        self._contradictions: list[str] = []
        self._notes: list[str] = []

    def read(self) -> Claim:
        """Read the claim."""
        result, named = self._stated.result, self._stated.contributors
        self._expect("the result's key", result.key, self._keys.result)
        header = _read_header(self._store, result)
        layout = header.layout
        self._check_who(named)
        sent = self._read_updates(named, layout)
        weights = weights_of(self._spec)
        grouping = group(self._spec, [s.contributor for s in sent], weights)
        self._check_grouping(grouping, named)
        planned = self._plan(grouping, layout, sent)
        plan, version = self._apply(planned, layout)
        return Claim(
            plan,
            layout,
            StoredTensors(result, header.data_offset),
            None if version is None else version.tensors,
            () if version is None else tuple(version.state[n] for n in _state_names(plan)),
            tuple(self._contradictions),
            tuple(self._notes),
        )

    def _expect(self, what: str, stated: object, derived: object) -> None:
        if stated != derived:
            self._contradictions.append(f"{what} is {stated!r} in the manifest, not {derived!r}")

    def _check_who(self, named: Sequence[NamedContributor]) -> None:
        """Check who contributes, as far as the spec decides it."""
        names = [c.client for c in named]
        for name, count in Counter((*names, *(c.source.key for c in named))).items():
            if count > 1:
                self._contradictions.append(f"{name}: the manifest names it {count} times")
        for client in dict.fromkeys(names):
            if not self._spec.expects(client):
                self._contradictions.append(f"{client}: the round does not expect it")
        if len(named) < self._spec.min_clients:
            self._contradictions.append(
                f"{pluralize(len(named), 'contributor')}, but min_clients is "
                f"{self._spec.min_clients}"
            )
        sent_to = RoundKeys(self._spec.updates_from) if self._spec.updates_from else self._keys
        for contributor in named:
            sender = contributor.client
            if self._spec.inbox is not None:
                sent_to = self._inbox_of(self._spec.inbox, contributor.source.key)
                sender = sender_of(contributor.client)
            own = {sent_to.update(sender)}
            if self._spec.takes_partial:
                own.add(sent_to.partial_update(contributor.client))
            if contributor.source.key not in own:
                self._contradictions.append(
                    f"{contributor.client}: {contributor.source.key} is not the key of its update"
                )

    def _inbox_of(self, inbox: InboxSpec, key: str) -> RoundKeys:
        """Return the inbox that an update of a buffered training may have been sent to."""
        version, newest = base_version(key), self._model_version or inbox.oldest
        is_taken = version is not None and inbox.oldest <= version <= newest
        return TrainingKeys(inbox.training).inbox(version if version and is_taken else newest)

    def _read_updates(self, named: Sequence[NamedContributor], layout: Layout) -> list[_Sent]:
        """Read the headers of the updates."""
        layers = layers_of(layout, self._spec.layers) if self._spec.takes_partial else ()
        # Parsed, a header may take 150 MB.
        one_at_a_time = threading.Lock()
        read = partial(self._read_update, layout=layout, layers=layers, lock=one_at_a_time)
        jobs = [partial(read, contributor) for contributor in named]
        sent: list[_Sent] = []
        gone: list[str] = []
        for found in run_parallel(jobs, THREADS, threading.Event()):
            if isinstance(found, _Sent):
                sent.append(found)
                self._contradictions += found.contradictions
            else:
                gone.append(found)
        if gone:
            raise _gone(self._keys, sorted(gone), len(named))
        return sent

    def _read_update(
        self,
        named: NamedContributor,
        *,
        layout: Layout,
        layers: Sequence[Layer],
        lock: threading.Lock,
    ) -> _Sent | str:
        """Read the header of an update; return what is kept of it, or that it is gone."""
        client, source = named.client, named.source
        terms = self._spec.masked
        try:
            header = _read_header(self._store, source, lock)
            share = None if terms is None else Share.of_metadata(header.metadata, terms.ring_bits)
            stated = parse_samples(header.metadata) if share is None else 0
        except ChangedObjectError as error:
            return f"{client} ({error})"
        except UpdateError as error:
            raise UpdateError(f"{source.key}: {error}") from None
        contradictions = []
        samples = self._spec.counted(stated)
        if share is None and samples != named.samples:
            counted = "" if samples == stated else f", which count as {samples}"
            contradictions.append(
                f"{client}: samples is {named.samples} in the manifest, but its update states "
                f"{stated}{counted}"
            )
        if terms is not None:
            layout = masked_layout(layout, terms.ring_bits)
        difference = layout.difference(header.layout, partial=self._spec.takes_partial)
        if difference is not None:
            raise UpdateError(f"{source.key} does not have the layout of the result: {difference}")
        report = None
        if self._spec.weights == STEPS:
            report = parse_report(stated, header.metadata)
        coverage = coverage_of(layers, header.layout.shapes) if layers else None
        runs = layout.runs_in(header.layout, header.data_offset)
        version = base_version(source.key)
        staleness = 0 if version is None else (self._model_version or version) - version
        contributor = Contributor(
            client, source, samples, 0.0, runs, report, staleness, share=share
        )
        return _Sent(contributor, coverage, tuple(contradictions))

    def _check_grouping(self, grouping: Grouping, named: Sequence[NamedContributor]) -> None:
        spec = self._spec
        derived = {
            "topology": grouping.topology,
            "order": format_order(grouping.order),
            "weights": weights_of(spec),
            "rule": FEDAVG if spec.rule is None else spec.rule.name,
            "groups": [[stop - first for first, stop in level.groups] for level in grouping.levels],
        }
        for name, value in derived.items():
            self._expect(name, self._stated.computation[name], value)
        # The manifest has no weights of contributors under a rule, and all masked ones are added.
        if self._spec.rule is None and self._spec.masked is None:
            weights = {c.client: c.weight for c in grouping.contributors}
            for contributor in named:
                self._expect(
                    f"{contributor.client}: weight",
                    contributor.weight,
                    weights[contributor.client],
                )

    def _plan(self, grouping: Grouping, layout: Layout, sent: Sequence[_Sent]) -> Plan:
        spec = self._spec
        ranges = layer_ranges(spec, layout)
        computation = Computation(
            levels=grouping.levels,
            topology=grouping.topology,
            order=format_order(grouping.order),
            weights=weights_of(spec),
            rule=FEDAVG if spec.rule is None else spec.rule.name,
            robust=spec.robust_rule,
            layers=self._layer_weights(grouping.contributors, ranges, sent),
            allow_nonfinite=spec.allow_nonfinite,
        )
        return Plan(
            self._keys.round_id,
            Participants(grouping.contributors),
            computation,
            PlannedLayout.of(layout, layers=ranges),
            masking=self._masking(grouping.contributors, layout),
        )

    def _masking(self, contributors: Sequence[Contributor], layout: Layout) -> Masking | None:
        """Derive how a masked round was unmasked."""
        if self._spec.masked is None:
            return None
        self._notes.append(NOT_PROVED.format(self._keys.round_id))
        return read_masking(
            self._store,
            self._keys,
            self._spec,
            self._stated,
            contributors,
            layout,
            self._contradictions.append,
        )

    def _layer_weights(
        self,
        contributors: Sequence[Contributor],
        ranges: Sequence[LayerRanges],
        sent: Sequence[_Sent],
    ) -> tuple[PlannedLayerWeights, ...]:
        """Derive the weights of each layer; take the manifest's if past rounds are gone."""
        if not self._spec.takes_partial:
            return ()
        coverage = {s.contributor.client: s.coverage for s in sent if s.coverage is not None}
        stated = tuple(
            PlannedLayerWeights(missed, tuple(weights.get(c.client) for c in contributors))
            for missed, weights in self._stated.layers
        )
        try:
            derived = weigh_layers(self._store, self._spec, contributors, ranges, coverage)
        except PlanError as error:
            self._notes.append(f"the weights of layers are the manifest's: {error}")
            return stated
        self._expect("the number of layers", len(stated), len(derived))
        for layer, ours, theirs in zip(ranges, derived, stated, strict=False):
            self._expect(f"layer {layer.name}: p and weights", tuple(theirs), tuple(ours))
        return derived

    def _apply(self, plan: Plan, layout: Layout) -> tuple[Plan, Version | None]:
        """Add to the plan how the round's model follows, if the round made one."""
        optimizer = self._spec.server_optimizer
        if optimizer is None:
            return plan, None
        made, number = self._stated.model, self._model_version
        if made is None or number is None:
            self._contradictions.append(
                "the manifest names no version of the model, but the round makes one"
            )
            return plan, None
        try:
            base = model_registry.read_version(self._store, optimizer.model, number)
        except ModelNotFoundError as error:
            self._notes.append(f"the model was not checked: {error}")
            return plan, None
        self._check_record(made)
        step, state = base.continued_by(optimizer)
        buffers = base.buffers_in(layout, optimizer)
        self._expect("the model's version", made.number, number + 1)
        self._expect("the model's optimizer", made.optimizer, optimizer.to_json())
        self._expect("the optimizer's steps", made.steps, step)
        self._expect("the model's name", made.model, optimizer.model)
        self._expect("the model's round", made.round_id, self._keys.round_id)
        self._expect("the model's buffers", made.buffers, names_in(layout, buffers))
        self._expect("the optimizer's state", {*made.state}, {*optimizer.state})
        if not self._check_headers(made, layout) or made.state.keys() != {*optimizer.state}:
            return plan, None
        new = NextModel(optimizer, number + 1, step, base.tensors, state, ())
        planned = replace(plan, layout=replace(plan.layout, buffers=buffers), next_model=new)
        return planned, made

    def _check_headers(self, made: Version, layout: Layout) -> bool:
        """Check that who reads the model by its header finds the tensors that are compared."""
        state = state_layout(layout)
        wrong = []
        for stored, expected in (
            (made.tensors, layout),
            *((kept, state) for kept in made.state.values()),
        ):
            try:
                header = _read_header(self._store, stored.source)
                is_expected = (header.layout, header.data_offset) == (expected, stored.data_offset)
            except UpdateError:
                is_expected = False
            if not is_expected:
                wrong.append(f"{stored.source.key}: its header is not that of the round's tensors")
        self._contradictions += wrong
        return not wrong

    def _check_record(self, made: Version) -> None:
        """Check that clients who read the model get what the manifest says."""
        try:
            recorded = model_registry.read_version(self._store, made.model, made.number)
        except ModelNotFoundError as error:
            self._notes.append(f"the record of the model's version was not checked: {error}")
            return
        if recorded != made:
            self._contradictions.append(
                f"the record of version {made.number} of model {made.model!r} is not the one in "
                "the manifest"
            )


def _state_names(plan: Plan) -> tuple[str, ...]:
    return () if plan.next_model is None else plan.next_model.server_optimizer.state


def _read_header(
    store: S3Store, source: ObjectVersion, lock: "threading.Lock | None" = None
) -> Header:
    """Read and parse the header of an object version."""
    first = store.get_range(source, 0, min(source.nbytes, FIRST_READ_BYTES))
    end = PREFIX_BYTES + header_length(first, source.nbytes)
    with lock or threading.Lock():
        text = first if end <= len(first) else store.get_range(source, 0, end)
        return parse_update(text[PREFIX_BYTES:end], source.nbytes)


def _gone(keys: RoundKeys, gone: Sequence[str], contributors: int) -> ChangedObjectError:
    more = f" and {len(gone) - NAMED} more" if len(gone) > NAMED else ""
    return ChangedObjectError(
        f"round {keys.round_id!r} cannot be verified any more: {len(gone)} of its "
        f"{pluralize(contributors, 'update')} cannot be read in the version that the manifest "
        f"names: {'; '.join(gone[:NAMED])}{more}"
    )
