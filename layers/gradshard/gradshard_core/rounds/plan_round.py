"""Freeze who contributes, plan the sums, and start the upload of the result."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import reduce
from typing import Any, NamedTuple

from gradshard_core.aggregation import addition_order, buffers, sharding
from gradshard_core.aggregation.addition_order import Order
from gradshard_core.aggregation.arithmetic import STEPS
from gradshard_core.aggregation.buffers import Stretches
from gradshard_core.aggregation.gathering import Disorder
from gradshard_core.aggregation.optimizer_step import state_layout
from gradshard_core.aggregation.topologies import TOPOLOGIES, Levels
from gradshard_core.errors import ModelStateError, PlanError, StoreError
from gradshard_core.formats.digests import encode_parts
from gradshard_core.formats.keys import RoundKeys
from gradshard_core.formats.layout import Layout, Span, encode_header
from gradshard_core.planning import history_limits, planner
from gradshard_core.planning.plan import (
    Contributor,
    Level,
    NextModel,
    Plan,
    PlannedLayer,
    Rejection,
    digest_of,
    level_of,
    next_keys,
    weigh,
)
from gradshard_core.planning.planner import LambdaConfig, Projection, Workload
from gradshard_core.records import model_registry
from gradshard_core.records.model_registry import Version
from gradshard_core.records.round_spec import read_spec
from gradshard_core.rounds import admission, arrivals
from gradshard_core.rounds.admission import Admission
from gradshard_core.s3.store import S3Store
from gradshard_core.stragglers.assignments import (
    bounded_steps,
    normalised_weights,
    note_bounded_steps,
)
from gradshard_core.stragglers.layers import Coverage, Layer, layers_of
from gradshard_core.stragglers.participation import PastRound, PastRounds, estimate_reach
from gradshard_core.stragglers.salf import FEDAVG, effective_weights


class Call(NamedTuple):
    """What the state machine plans for.

    Parameters
    ----------
    visit
        When it came to planning, ISO 8601: a call with the same time is a repetition.
    reason
        Why the round goes on.
    attempt
        0 the first time; one more each time contributors were rejected while they were read.
    """

    visit: str
    reason: str
    attempt: int


def plan_round(
    store: S3Store, round_id: str, call: Call, *, aggregator: LambdaConfig
) -> dict[str, Any]:
    """Plan a round, or the next groups of an eager one; safe to repeat.

    Parameters
    ----------
    store
        The bucket.
    round_id
        The round.
    call
        What to plan for.
    aggregator
        What the tasks will run on.

    Returns
    -------
    dict
        ``attempt``, M, and for each level the object that lists its tasks.

    Raises
    ------
    QuorumError
        There are too few good updates.
    PlanError
        They cannot be aggregated within the limits, or the round was given up meanwhile.
    """
    keys = RoundKeys(round_id)
    # Looked at before it is read: if another planning replaces it meanwhile, writing ours fails.
    head = store.head(keys.plan)
    previous = store.get_json(keys.plan, Plan.from_json) if head else None
    if previous is not None and _is_answered(previous, call):
        return _planned(store, keys, previous, aggregator)
    plan = _Planning(store, keys, call, aggregator, previous).plan()
    if not store.put_json(keys.plan, plan.to_json(), replaces=head.etag if head else None):
        # A planning that runs twice at once is settled here; the loser leaves nothing behind.
        if previous is None or previous.upload_id != plan.upload_id:
            _abort_uploads(store, plan)
        plan = _read(store, keys)
    elif previous is not None and previous.upload_id != plan.upload_id:
        _abort_uploads(store, previous)
    # Who gives a round up writes the manifest and then looks for uploads; here it is the other way
    # round, so that the later one sees what the other did.
    if store.head(keys.manifest) is not None:
        _abort_uploads(store, plan)
        raise PlanError(f"round {round_id!r} has ended: there is nothing to plan")
    return _planned(store, keys, plan, aggregator)


def _read(store: S3Store, keys: RoundKeys) -> Plan:
    plan = store.get_json(keys.plan, Plan.from_json)
    if plan is None:
        raise StoreError(f"{keys.plan} is missing, and was there a moment ago")
    return plan


def _is_answered(plan: Plan, call: Call) -> bool:
    """Whether a plan is what a call asks for, or later."""
    if plan.attempt == call.attempt:
        # Times in ISO 8601: an earlier one is a belated repetition.
        return plan.is_sealed or plan.visit >= call.visit
    return plan.attempt > call.attempt


def _abort_uploads(store: S3Store, plan: Plan) -> None:
    for output in plan.outputs:
        store.abort_upload(output.key, output.upload_id)


def _planned(
    store: S3Store, keys: RoundKeys, plan: Plan, aggregator: LambdaConfig
) -> dict[str, Any]:
    """Write each level's tasks; return the first level with the next one in it, and so on."""
    written: list[dict[str, Any]] = []
    # Always those of the plan in force, whoever made it and whatever was killed since.
    for level, tasks in enumerate(plan.next_tasks()):
        items = [
            {"round": plan.round_id, "attempt": plan.attempt, "task": task._asdict()}
            for task in tasks
        ]
        batches = [
            {"tasks": items[first : first + aggregator.batch]}
            for first in range(0, len(items), aggregator.batch)
        ]
        store.put_json(keys.tasks(level), batches)
        written.append({"bucket": store.bucket, "key": keys.tasks(level)})
    # Nested, so that the machine goes on to the next level without a counter.
    following: dict[str, Any] = {}
    for tasks in reversed(written):
        following = {
            "tasks": tasks,
            "concurrency": aggregator.concurrency // aggregator.batch,
            "next": following,
        }
    return {"attempt": plan.attempt, "shards": plan.shards, **following}


class _Settled(NamedTuple):
    """What of a layout the plan needs, once it is settled; of no bytes while it is not.

    ``layers`` are those of partial updates, and where they stand; ``buffers`` is where those of the
    model do.
    """

    spans: tuple[Span, ...] = ()
    nbytes: int = 0
    tensors: int = 0
    header_bytes: int = 0
    header_sha256: str = ""
    layers: tuple[tuple[Layer, tuple[tuple[int, int], ...]], ...] = ()
    state_header_bytes: int = 0
    state_header_sha256: str = ""
    buffers: Stretches = ()


class _Grouping(NamedTuple):
    """Who adds up whose updates.

    Parameters
    ----------
    topology
        Its name.
    sizes
        The groups' sizes, those of an eager round as if everybody came.
    order
        Of the additions.
    levels
        The groups.
    contributors
        In their order, with their weights.
    """

    topology: str
    sizes: Levels
    order: Order
    levels: tuple[Level, ...]
    contributors: tuple[Contributor, ...]


def _disorder(grouping: _Grouping, nbytes: int) -> tuple[Disorder, ...]:
    """Return what the orders of tensors cost, by group; empty where all have the round's."""
    costs = [Disorder.of(contributor.runs, nbytes) for contributor in grouping.contributors]
    if not any(cost.groups for cost in costs):
        return ()
    return tuple(
        reduce(Disorder.plus, costs[first:stop], Disorder())
        for first, stop in grouping.levels[0].groups
    )


class _Planning:
    """One planning.

    Parameters
    ----------
    store, keys
        The bucket, and the names in it.
    call, aggregator
        As for :func:`plan_round`.
    previous
        The plan to go on from, if there is one.
    """

    def __init__(
        self,
        store: S3Store,
        keys: RoundKeys,
        call: Call,
        aggregator: LambdaConfig,
        previous: Plan | None,
    ) -> None:
        self._store, self._keys, self._call = store, keys, call
        self._aggregator, self._previous = aggregator, previous
        opened = read_spec(store, keys)
        if opened is None:
            raise PlanError(f"round {keys.round_id!r} was never opened: {keys.spec} is missing")
        self._spec, record = opened
        self._opened_at = record["opened_at"]
        self._model = self._model_before(record.get("model_version"))

    def plan(self) -> Plan:
        """Make the plan; nothing but the layout and an upload is written yet.

        Raises
        ------
        QuorumError
            There are too few good updates.
        PlanError
            They cannot be aggregated within the limits.
        """
        previous = self._previous
        if previous is not None and self._call.attempt > previous.attempt:
            return self._replanned(previous)
        waves = 1 if previous is None else previous.waves + 1
        if waves > history_limits.MAX_WAVES:
            raise PlanError(
                f"round {self._keys.round_id!r} was resumed {history_limits.MAX_WAVES} times, and "
                f"{len(previous.awaited) if previous else 0} groups are still awaited; its "
                "execution's history would become too long. Average what was sent with another "
                "round (--updates-from)"
            )
        there = self._there()
        wave, awaited = self._wave(there)
        settled, whose = self._settled_layout()
        admission_result = admission.admit(
            self._store,
            self._keys,
            self._spec,
            self._members(there, wave) if self._spec.eager else there,
            settled=settled,
            whose=whose,
            held=previous.contributors if previous is not None else (),
        )
        if previous is not None:
            admission_result = admission_result._replace(
                contributors=previous.contributors + admission_result.contributors,
                rejected=previous.rejected + admission_result.rejected,
            )
        if not awaited:
            admission.check_quorum(admission_result, self._spec, self._spec.missing(there))
        if previous is not None and previous.nbytes:
            plan = self._extended(previous, wave, admission_result)
        else:
            grouping = self._grouped(admission_result.contributors)
            plan = self._assembled(
                grouping, self._settle(admission_result), admission_result.coverage
            )
        return replace(
            plan,
            wave=tuple(wave) if self._spec.eager else plan.wave,
            waves=waves,
            awaited=tuple(awaited),
            rejected=admission_result.rejected,
            missing=() if awaited else self._spec.missing(there),
        )

    def _extended(self, previous: Plan, wave: list[int], admission_result: Admission) -> Plan:
        """Append a wave's contributors to an eager round's plan.

        Those before stay where they are: a task that runs twice finds its own.
        """
        groups, level = self._spec.groups(), list(previous.levels[0].groups)
        first = len(previous.contributors)
        for number in wave:
            stop = first + sum(
                c.client in groups[number] for c in admission_result.contributors[first:]
            )
            level[number] = (first, stop)
            first = stop
        return replace(
            previous,
            visit=self._call.visit,
            levels=(replace(previous.levels[0], groups=tuple(level)), *previous.levels[1:]),
            contributors=self._weighed(admission_result.contributors),
        )

    def _replanned(self, previous: Plan) -> Plan:
        """Leave out who was rejected; versions frozen once stay frozen, and nobody is added."""
        rejected = self._rejected_by(previous)
        self._check_attempts(previous, rejected)
        out = {rejection.client for rejection in rejected}
        admission_result = Admission(
            tuple(c for c in previous.contributors if c.client not in out),
            None,
            previous.rejected + rejected,
            {
                contributor.client: tuple(layer.weights[i] is not None for layer in previous.layers)
                for i, contributor in enumerate(previous.contributors)
                if contributor.client not in out
            },
        )
        admission.check_quorum(admission_result, self._spec, previous.missing)
        settled = _Settled(
            previous.spans,
            previous.nbytes,
            previous.tensors,
            previous.header_bytes,
            previous.header_sha256,
            tuple((Layer(layer.name, ()), layer.ranges) for layer in previous.layers),
            *(
                (
                    previous.next_model.state_header_bytes,
                    previous.next_model.state_header_sha256,
                    previous.next_model.buffers,
                )
                if previous.next_model
                else ()
            ),
        )
        grouping = self._grouped(admission_result.contributors)
        plan = self._assembled(grouping, settled, admission_result.coverage)
        return replace(plan, rejected=admission_result.rejected, missing=previous.missing)

    def _check_attempts(self, previous: Plan, rejected: Sequence[Rejection]) -> None:
        """Fail a round that rejected clients have had planned again too often."""
        if self._call.attempt < history_limits.MAX_ATTEMPTS:
            return
        everybody = previous.rejected + tuple(rejected)
        names = admission.first_of([rejection.client for rejection in everybody], ", ")
        others = len(previous.contributors) - len(rejected)
        raise PlanError(
            f"round {self._keys.round_id!r} was planned {history_limits.MAX_ATTEMPTS} times, and "
            f"each time updates were rejected while they were read, {len(everybody)} in all: "
            f"{names}; the last: {rejected[0].reason}. Average the {others} others with another "
            "round, opened for them by their ids (--client, --updates-from)"
        )

    def _rejected_by(self, plan: Plan) -> tuple[Rejection, ...]:
        """Read whom a plan's tasks found to be bad, in the versions that it froze.

        What stands in the rejections that clients read is of any upload, an older or a later one.
        """
        key = self._keys.replan(plan.attempt)
        rejected = self._store.get_json(key, lambda written: tuple(Rejection(**r) for r in written))
        if rejected is None:
            raise PlanError(f"{key} is missing")
        return rejected

    def _there(self) -> list[str]:
        """List the clients of which there is an update, or some of it where that counts."""
        sent = arrivals.sent_to(self._keys, self._spec)
        there = arrivals.arrived(self._store, sent)
        if self._spec.rule is None:
            return there
        return sorted({*there, *arrivals.progressed(self._store, sent)})

    def _wave(self, there: list[str]) -> tuple[list[int], list[int]]:
        """Return an eager round's groups to plan now, and those still awaited after that."""
        if not self._spec.eager:
            return [], []
        awaited: Sequence[int] = range(len(self._spec.groups()))
        if self._previous is not None:
            awaited = self._previous.awaited
        if self._call.reason == arrivals.DEADLINE:
            return list(awaited), []
        ready = arrivals.ready_groups(self._spec, there, awaited)
        return ready, [number for number in awaited if number not in ready]

    def _members(self, there: list[str], wave: list[int]) -> list[str]:
        groups, answered = self._spec.groups(), set(there)
        return [client for number in wave for client in groups[number] if client in answered]

    def _model_before(self, began_from: int | None) -> Version | None:
        """Return the version of the model that the update is applied to."""
        optimizer = self._spec.server_optimizer
        if optimizer is None:
            return None
        newest = model_registry.read_current(self._store, optimizer.model)
        if newest.number != began_from:
            raise ModelStateError(
                f"round {self._keys.round_id!r} began from version {began_from} of model "
                f"{optimizer.model!r}, but version {newest.number} is current; open a new round"
            )
        return newest

    def _settled_layout(self) -> tuple[Layout | None, str]:
        """Return the model's layout, where the round is applied to one."""
        if self._model is None:
            return None, ""
        whose = f"that of version {self._model.number} of model {self._model.model!r}"
        return model_registry.layout_of(self._store, self._model.tensors), whose

    def _settle(self, admission_result: Admission) -> _Settled:
        """Keep the layout, as the header of the result."""
        layout = admission_result.layout
        if layout is None:
            # The only clients of an eager round that have answered were rejected.
            return _Settled()
        header = encode_header(layout, {})
        self._store.put_bytes(self._keys.layout, header, content_type="application/octet-stream")
        state_header = b""
        if self._spec.server_optimizer is not None and self._spec.server_optimizer.state:
            state_header = encode_header(state_layout(layout), {})
            self._store.put_bytes(
                self._keys.state_layout, state_header, content_type="application/octet-stream"
            )
        layers = layers_of(layout, self._spec.layers) if self._spec.rule is not None else ()
        stand = {tensor.name: (tensor.start, tensor.end) for tensor in layout.tensors}
        return _Settled(
            layout.spans,
            layout.nbytes,
            len(layout.tensors),
            len(header),
            digest_of(header),
            tuple(
                (layer, tuple(stand[t] for t in layer.tensors if stand[t][0] < stand[t][1]))
                for layer in layers
            ),
            len(state_header),
            digest_of(state_header),
            self._buffers(layout),
        )

    def _buffers(self, layout: Layout) -> Stretches:
        """Return where the model's buffers stand: as the round names them, or the version does."""
        optimizer, before = self._spec.server_optimizer, self._model
        if optimizer is None or before is None:
            return ()
        patterns = optimizer.buffers
        names = before.buffers if patterns is None else buffers.named(layout, patterns)
        return buffers.stretches_of(layout, names)

    def _grouped(self, contributors: Sequence[Contributor]) -> _Grouping:
        spec = self._spec
        ordered = sorted(contributors, key=lambda contributor: contributor.client)
        name, sizes = spec.levels(spec.expected if spec.eager else len(ordered))
        order = addition_order.natural_order(sizes) if spec.order is None else spec.order
        parts = addition_order.split_order(order, sizes)
        first_level = list(sizes[0])
        if spec.eager:
            # Groups are of those who were expected, whoever came.
            there = {contributor.client for contributor in ordered}
            first_level = [len(there.intersection(group)) for group in spec.groups()]
        levels = tuple(map(level_of, (first_level, *sizes[1:]), parts))
        return _Grouping(name, sizes, order, levels, self._weighed(ordered))

    def _weighed(self, contributors: Sequence[Contributor]) -> tuple[Contributor, ...]:
        if self._spec.weights != STEPS:
            return weigh(contributors, self._spec.weights)
        steps = bounded_steps(list(_steps_of(contributors).values()))
        weights = normalised_weights([c.samples for c in contributors], steps)
        return tuple(
            replace(contributor, weight=weight)
            for contributor, weight in zip(contributors, weights, strict=True)
        )

    def _layers(
        self, grouping: _Grouping, settled: _Settled, coverage: dict[str, Coverage]
    ) -> tuple[PlannedLayer, ...]:
        """Weigh each layer of partial updates."""
        rule, names = self._spec.rule, [c.client for c in grouping.contributors]
        if rule is None or not names:
            return ()
        layers = [layer for layer, _ in settled.layers]
        expected: list[str | None]
        if isinstance(self._spec.clients, int):
            expected = [*names, *[None] * (self._spec.clients - len(names))]
        else:
            expected = list(self._spec.clients)
        if isinstance(rule.participation, PastRounds):
            known = [client for client in expected if client is not None]
            past = [self._past_round(name) for name in rule.participation.rounds]
            rule = replace(rule, participation=estimate_reach(past, known, layers))
        samples = {contributor.client: contributor.samples for contributor in grouping.contributors}
        weighed = effective_weights(rule, layers, expected, coverage, samples)
        return tuple(
            PlannedLayer(layer.name, ranges, found.missed, found.weights)
            for (layer, ranges), found in zip(settled.layers, weighed, strict=True)
        )

    def _past_round(self, name: str) -> PastRound:
        manifest = self._store.get_json(RoundKeys(name).manifest) or {}
        if "layers" not in manifest:
            raise PlanError(
                f"p cannot be estimated from round {name!r}: it is no completed round of partial "
                "updates; name others, or give p"
            )
        covered = {layer["name"]: frozenset(layer["weights"]) for layer in manifest["layers"]}
        return PastRound(frozenset(manifest["expected"]), covered)

    def _choose(self, grouping: _Grouping, settled: _Settled) -> tuple[Projection, list[str]]:
        spans, nbytes = settled.spans, settled.nbytes
        further_runs = sum(len(c.runs) - 1 for c in grouping.contributors)
        load = Workload(
            nbytes=nbytes,
            levels=grouping.sizes,
            is_cut=TOPOLOGIES[grouping.topology].is_cut,
            sums_bytes=sharding.sums_bytes(spans, 0, nbytes),
            depth=max(1, *(len(level.order) for level in grouping.levels)),
            plan_bytes=planner.plan_bytes(
                len(grouping.contributors),
                layers=len(settled.layers),
                spans=len(spans) + len(settled.buffers),
                runs=further_runs,
            ),
            applied=None
            if self._spec.server_optimizer is None
            else len(self._spec.server_optimizer.state),
            disorder=_disorder(grouping, nbytes),
        )
        return planner.choose(
            load, self._aggregator, shards=self._spec.shards, time_budget=self._spec.time_budget
        )

    def _assembled(
        self, grouping: _Grouping, settled: _Settled, coverage: dict[str, Coverage]
    ) -> Plan:
        """Put a plan together, with an upload of its own."""
        spec, call, keys = self._spec, self._call, self._keys
        projection, notes = self._choose(grouping, settled)
        if spec.weights == STEPS:
            notes += note_bounded_steps(_steps_of(grouping.contributors))
        shards = sharding.cut_shards(settled.spans, settled.nbytes, projection.shards)
        sizes = [shard.end - shard.start for shard in shards]
        # The first one has the header.
        parts = encode_parts([settled.header_bytes + sizes[0], *sizes[1:]])
        return Plan(
            round_id=keys.round_id,
            attempt=call.attempt,
            visit=call.visit,
            wave=tuple(range(len(grouping.levels[0].groups))),
            waves=1,
            awaited=(),
            topology=grouping.topology,
            order=addition_order.format_order(grouping.order),
            weights=spec.weights,
            rule=FEDAVG if spec.rule is None else spec.rule.name,
            layers=self._layers(grouping, settled, coverage),
            assignments=spec.assignments and spec.assignments.to_json(),
            levels=grouping.levels,
            contributors=grouping.contributors,
            spans=settled.spans,
            nbytes=settled.nbytes,
            tensors=settled.tensors,
            header_bytes=settled.header_bytes,
            header_sha256=settled.header_sha256,
            upload_id=self._create_upload(keys.result, parts),
            next_model=self._next_model(settled, parts),
            shards=projection.shards,
            allow_nonfinite=spec.allow_nonfinite,
            rejected=(),
            missing=(),
            notes=tuple(notes),
            projected=projection.to_json(),
            opened_at=self._opened_at,
            planned_at=datetime.now(UTC).isoformat(),
        )

    def _create_upload(self, key: str, parts: dict[str, str]) -> str:
        return self._store.create_upload(key, {"gradshard-round": self._keys.round_id, **parts})

    def _next_model(self, settled: _Settled, parts: dict[str, str]) -> NextModel | None:
        """Begin the uploads of the model and of the optimizer's state, if there shall be any."""
        optimizer, before = self._spec.server_optimizer, self._model
        if optimizer is None or before is None:
            return None
        # Another optimizer's state would be of no use.
        goes_on = (before.optimizer or {}).get("optimizer") == optimizer.optimizer
        # The state, which only functions read, has parts of other sizes.
        model_key, *state_keys = next_keys(optimizer, self._keys.round_id)
        uploads = (
            self._create_upload(model_key, parts),
            *(self._create_upload(key, {}) for key in state_keys),
        )
        return NextModel(
            server_optimizer=optimizer,
            version=before.number + 1,
            step=before.steps + 1 if goes_on else 1,
            model=before.tensors,
            state=tuple(before.state[name] for name in optimizer.state) if goes_on else (),
            uploads=uploads,
            state_header_bytes=settled.state_header_bytes,
            state_header_sha256=settled.state_header_sha256,
            buffers=settled.buffers,
        )


def _steps_of(contributors: Sequence[Contributor]) -> dict[str, int]:
    """Return the local steps by client; whoever reported none was rejected."""
    return {c.client: (c.report or {})["steps"] for c in contributors}
