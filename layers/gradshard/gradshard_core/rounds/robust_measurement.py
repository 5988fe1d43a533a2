"""The two passes of a round with a robust rule: measure all updates, then add with the weights.

``finalize_round`` adds up what tasks measured and writes the *measurement*, which no client may
read. ``plan_round`` makes the *decision* of it, the rule's weights, and plans the second pass. If
updates turn out to be bad in that pass, the rule decides anew from the same measurement: products
of two updates do not depend on a third.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gradshard_core.errors import PlanError
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.planning.plan import Plan
from gradshard_core.planning.plan_parts import Contributor, LayerRanges, Rejection
from gradshard_core.privacy.privacy_mechanism import PrivacyMechanism
from gradshard_core.records.plan_and_manifest import store_decided, stored
from gradshard_core.records.robust_decision import is_clipped, layers_left_out
from gradshard_core.robust.inner_products import WHOLE, ExactSum
from gradshard_core.robust.measured_sample import Sample, relative_errors
from gradshard_core.robust.rules import RobustRule
from gradshard_core.robust.whole_update_rules import Decision, Diagonal, Gram, norms_of
from gradshard_core.rounds.plan_context import PlanContext
from gradshard_core.rounds.robust_rejection_reasons import reason_of
from gradshard_core.s3.store import S3Store
from gradshard_core.stragglers.layers import Coverage
from gradshard_core.stragglers.staleness import staleness_discount


class Decided(NamedTuple):
    """The contributors of the second pass.

    Parameters
    ----------
    kept
        Those with a weight.
    left_out
        Those without.
    measured
        The attempt that measured; None if there was nothing to measure.
    """

    kept: tuple[Contributor, ...]
    left_out: tuple[Contributor, ...]
    measured: int | None


class Measured:
    """What the tasks of a plan have measured, added up.

    Parameters
    ----------
    plan
        The plan. If it makes weights of norms alone, each of its groups measures its own updates,
        and the reports have to come group by group.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._sizes = [stop - first for first, stop in plan.levels[0].groups]
        # By group and layer.
        self._sums: list[dict[int, ExactSum]] = [{} for _ in self._sizes]
        # Of a sample: the largest error so far, and the squared norms by stretch of one group.
        self._error, self._group = 0.0, 0
        self._squares: list[list[float]] = []

    def add(self, report: dict[str, Any]) -> None:
        """Take what a task has measured out of its report, if it has."""
        products, squares = report.pop("products", {}), report.pop("squares", ())
        if products or squares:
            group = report["task"] % len(self._sums)
            for layer, components in products.items():
                self._sum(group, int(layer)).add_json(components)
            if group != self._group:
                self._close_group()
                self._group = group
            self._squares.extend(squares)

    def _sum(self, group: int, layer: int = WHOLE) -> ExactSum:
        empty = ExactSum(self._sizes[group], pairs=self._plan.pairs)
        return self._sums[group].setdefault(layer, empty)

    def _close_group(self) -> None:
        """Take the errors of a group's sample, all of whose tasks have reported."""
        sample = self._plan.computation.sample
        if sample is not None and len(self._squares) > 1:  # fewer if updates were found bad
            self._error = max(self._error, *relative_errors(self._squares, sample.one_in))
        self._squares = []

    def to_json(self) -> dict[str, Any]:
        """Return the products of all updates, or their squared norms; and the error of a sample.

        Of partial updates that are compared, the products are by layer.
        """
        sample = self._plan.computation.sample
        factor = 1 if sample is None else sample.one_in
        found: dict[str, Any]
        if self._plan.decides_by_layer:
            # Rules that compare all updates have one group.
            found = {"layers": {n: total.rounded() for n, total in self._sums[0].items()}}
        elif self._plan.pairs:
            rows = self._sum(0).rounded()
            found = {"products": [[factor * p for p in row] for row in rows]}
        else:
            groups = map(self._sum, range(len(self._sums)))
            squares = (square for total in groups for square in total.rounded_diagonal())
            found = {"squares": [factor * square for square in squares]}
        clients = [contributor.client for contributor in self._plan.contributors]
        return {"clients": clients, **found, "sample": sample and self._stated(sample)}

    def _stated(self, sample: Sample) -> dict[str, Any]:
        """Return what the manifest says of a sample."""
        layout = self._plan.layout
        self._close_group()
        stretches = sample.stretches(layout.spans, layout.nbytes, 0, layout.nbytes)
        return {
            "one_in": sample.one_in,
            "stretches": len(stretches),
            "nbytes": sum(end - start for start, end in stretches),
            "error": self._error,
        }


def last_measurement(previous: Plan, rejected: Sequence[Rejection]) -> int | None:
    """Return the attempt whose measurement the next plan goes by; None to measure (again)."""
    if previous.computation.measures:
        # The products of an attempt that found bad updates were not added up.
        return None if rejected else previous.attempt
    return previous.computation.measured


def decide(
    context: PlanContext,
    contributors: Sequence[Contributor],
    measured: int,
    layers: Sequence[LayerRanges],
    coverage: Mapping[str, Coverage],
) -> Decided:
    """Have the rule decide on contributors that were measured; write the decision.

    Parameters
    ----------
    context
        The inputs of the planning.
    contributors
        Those on which the rule decides.
    measured
        The attempt that measured them.
    layers, coverage
        The layers of partial updates, and which of them each contributor has.

    Raises
    ------
    PlanError
        The measurement is missing.
    """
    store, keys, rule = context.store, context.keys, context.spec.weighing_rule
    key = keys.measurement(measured)
    measurement = store.get_json(key, _checked)
    if measurement is None or rule is None:
        raise PlanError(f"{key} is missing")
    numbers = {client: number for number, client in enumerate(measurement["clients"])}
    indices = [numbers[contributor.client] for contributor in contributors]
    robust = context.spec.robust_rule
    if robust is not None and context.spec.compares_layers:
        held = [coverage[contributor.client] for contributor in contributors]
        names = [layer.name for layer in layers]
        found = _decide_by_layer(robust, contributors, measurement["layers"], indices, names, held)
    else:
        found = _decide_on_all(context, rule, contributors, _gram(measurement, indices))
    is_kept = found.is_kept
    store.put_json(
        keys.decision(context.request.attempt),
        {
            "rule": {"name": rule.name, **rule.to_json()},
            "score": rule.score,
            "sample": measurement.get("sample"),
            **found.stated,
            "clients": store_decided(store, keys, found.entries),
        },
    )
    return Decided(
        tuple(itertools.compress(contributors, is_kept)),
        tuple(c for c, kept in zip(contributors, is_kept, strict=True) if not kept),
        measured,
    )


class _Found(NamedTuple):
    """What a rule has decided: what is stated of all updates, entries of each, who is kept."""

    stated: dict[str, Any]
    entries: Iterable[dict[str, Any]]
    is_kept: list[bool]


def _decide_on_all(
    context: PlanContext,
    rule: RobustRule | PrivacyMechanism,
    contributors: Sequence[Contributor],
    gram: Gram,
) -> _Found:
    """Have the rule decide on updates as a whole."""
    decision = rule.decide(gram, [contributor.samples for contributor in contributors])
    if context.spec.inbox is not None:
        exponent = context.spec.inbox.exponent
        discounts = [staleness_discount(found.staleness, exponent) for found in contributors]
        decision = decision.discounted(discounts)
    norms = norms_of(gram)
    return _Found(
        # Sums over all updates: with them, a task reads only the entries of its group.
        {
            "bound": decision.bound,
            "weights": math.fsum(decision.weights),
            "whole": decision.whole,
        },
        (
            {"client": contributor.client, **_figures(decision, norms, i)}
            for i, contributor in enumerate(contributors)
        ),
        [_is_kept(decision, i) for i in range(len(contributors))],
    )


def _figures(decision: Decision, norms: Sequence[float], index: int) -> dict[str, Any]:
    """Return what is written of an update, or of its part of a layer."""
    return {
        "weight": decision.weights[index],
        "full_weight": decision.full and decision.full[index],
        "norm": norms[index],
        "score": decision.scores[index],
    }


def _is_kept(decision: Decision, index: int) -> bool:
    return decision.weights[index] > 0 or decision.full is not None


def _decide_by_layer(
    rule: RobustRule,
    contributors: Sequence[Contributor],
    measured: Mapping[str, Gram],
    indices: Sequence[int],
    names: Sequence[str],
    coverage: Sequence[Coverage],
) -> _Found:
    """Have the rule decide in each layer by itself, on those that have it, if these are a quorum.

    Each layer is then a round of its own, with whole updates. Whatever a client leaves out, what it
    sends is measured, against at least a quorum of others; and what it leaves out counts nowhere.
    """
    bounds: dict[str, float | None] = {}
    entries: list[dict[str, Any]] = [
        {"client": contributor.client, "norm": 0.0, "layers": {}} for contributor in contributors
    ]
    squares: list[list[float]] = [[] for _ in contributors]
    is_kept, is_decided = [False] * len(contributors), [False] * len(contributors)
    for number, (name, covers) in enumerate(zip(names, zip(*coverage, strict=True), strict=True)):
        there = [i for i, held in enumerate(covers) if held]
        products = measured.get(str(number))
        if products is None:
            continue  # it has no elements
        gram = [[products[indices[i]][indices[j]] for j in there] for i in there]
        for place, i in enumerate(there):
            squares[i].append(gram[place][place])
        if len(there) < (rule.layer_quorum or 0):
            continue
        decision = rule.decide(gram, [contributors[i].samples for i in there])
        bounds[name], norms = decision.bound, norms_of(gram)
        for place, i in enumerate(there):
            entries[i]["layers"][name] = _figures(decision, norms, place)
            is_decided[i] = True
            is_kept[i] |= _is_kept(decision, place)
    for entry, found in zip(entries, squares, strict=True):
        entry["norm"] = math.sqrt(math.fsum(found))
    return _Found(
        {"bound": bounds},
        entries,
        # Whoever has sent no layer with its quorum is not left out by the rule.
        [kept or not decided for kept, decided in zip(is_kept, is_decided, strict=True)],
    )


def _gram(measurement: dict[str, Any], indices: Sequence[int]) -> Gram:
    """Return the Gram matrix of some of the measured updates."""
    if "squares" in measurement:
        return Diagonal([measurement["squares"][i] for i in indices])
    return [[measurement["products"][i][j] for j in indices] for i in indices]


def left_out(plan: Plan, decision: dict[str, Any]) -> list[Rejection]:
    """Tell each client that a rule left out what it went by; nobody reads that of others."""
    if not plan.participants.left_out:
        return []
    entries = {entry["client"]: entry for entry in decision["clients"]}
    return [
        Rejection(
            c.client, f"{c.source.key}: {reason_of(decision, entries[c.client])}", c.source.etag
        )
        for c in plan.participants.left_out
    ]


def summary(
    store: S3Store, keys: RoundKeys, plan: Plan, decision: dict[str, Any]
) -> dict[str, Any]:
    """Return what the manifest, which clients read, has of measuring: no norms and no weights.

    A private round hides which clients were clipped, because that depends on their updates.
    """
    clipped = None
    if plan.computation.dp is None:
        found = (entry["client"] for entry in decision["clients"] if is_clipped(entry))
        clipped = stored(store, keys, found)
    measurement = store.get_json(keys.measurement(plan.computation.measured or 0)) or {}
    by_layer = {}
    if plan.decides_by_layer:
        by_layer = {"left_out_by_layer": layers_left_out(decision["clients"])}
    return {
        **by_layer,
        "rule": decision["rule"],
        "decision": keys.decision(plan.attempt),
        "measured": len(decision["clients"]),
        "clipped": clipped,
        "sample": measurement.get("sample"),
        "tasks": measurement.get("tasks", []),
        "totals": measurement.get("totals", {}),
    }


def _checked(measurement: dict[str, Any]) -> dict[str, Any]:
    """Return a measurement if it has what a rule needs."""
    count = len(measurement["clients"])
    if "layers" in measurement:
        for products in measurement["layers"].values():
            _check_products(products, count)
        return measurement
    if "squares" in measurement:
        if len(measurement["squares"]) != count:
            raise ValueError(f"not {count} norms")
        return measurement
    _check_products(measurement["products"], count)
    return measurement


def _check_products(products: Gram, count: int) -> None:
    if [len(row) for row in products] != [count] * count:
        raise ValueError(f"not {count} by {count} products")
