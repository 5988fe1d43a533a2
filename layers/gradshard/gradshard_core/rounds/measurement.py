"""The two passes of a round with a robust rule: measure all updates, then add with the weights.

``finalize_round`` adds up what tasks measured and writes the *measurement*, which no client may
read. ``plan_round`` makes the *decision* of it, the rule's weights, and plans the second pass. If
updates turn out to be bad in that pass, the rule decides anew from the same measurement: products
of two updates do not depend on a third.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from gradshard_core.aggregation.gram import ExactSum
from gradshard_core.aggregation.gram_sample import Sample, relative_errors
from gradshard_core.aggregation.robust_by_weight import Diagonal, Gram, norms_of
from gradshard_core.errors import PlanError
from gradshard_core.formats.keys import RoundKeys
from gradshard_core.planning.plan import Plan
from gradshard_core.planning.plan_parts import Contributor, Rejection
from gradshard_core.records.decision import is_clipped
from gradshard_core.records.stored_lists import store_decided, stored
from gradshard_core.rounds.plan_context import PlanContext
from gradshard_core.s3.store import S3Store


class Decided(NamedTuple):
    """The contributors of the second pass.

    Parameters
    ----------
    kept
        Those with a weight.
    left_out
        Those without.
    measured
        The attempt that measured.
    """

    kept: tuple[Contributor, ...]
    left_out: tuple[Contributor, ...]
    measured: int


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
        self._sums = [
            ExactSum(stop - first, pairs=plan.pairs) for first, stop in plan.levels[0].groups
        ]
        # Of a sample: the largest error so far, and the squared norms by stretch of one group.
        self._error, self._group = 0.0, 0
        self._squares: list[list[float]] = []

    def add(self, report: dict[str, Any]) -> None:
        """Take what a task has measured out of its report, if it has."""
        products, squares = report.pop("products", ()), report.pop("squares", ())
        if products or squares:
            group = report["task"] % len(self._sums)
            self._sums[group].add_json(products)
            if group != self._group:
                self._close_group()
                self._group = group
            self._squares.extend(squares)

    def _close_group(self) -> None:
        """Take the errors of a group's sample, all of whose tasks have reported."""
        sample = self._plan.computation.sample
        if sample is not None and len(self._squares) > 1:  # fewer if updates were found bad
            self._error = max(self._error, *relative_errors(self._squares, sample.one_in))
        self._squares = []

    def to_json(self) -> dict[str, Any]:
        """Return the products of all updates, or their squared norms; and the error of a sample."""
        sample = self._plan.computation.sample
        factor = 1 if sample is None else sample.one_in
        if self._plan.pairs:
            [products] = self._sums  # rules that compare all updates have one group
            rows = products.rounded()
            found: dict[str, Any] = {"products": [[factor * p for p in row] for row in rows]}
        else:
            squares = (square for group in self._sums for square in group.rounded_diagonal())
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


def decide(context: PlanContext, contributors: Sequence[Contributor], measured: int) -> Decided:
    """Have the rule decide on contributors that were measured; write the decision.

    Raises
    ------
    PlanError
        The measurement is missing.
    """
    store, keys, rule = context.store, context.keys, context.spec.decider
    key = keys.measurement(measured)
    measurement = store.get_json(key, _checked)
    if measurement is None or rule is None:
        raise PlanError(f"{key} is missing")
    numbers = {client: number for number, client in enumerate(measurement["clients"])}
    indices = [numbers[contributor.client] for contributor in contributors]
    gram = _gram(measurement, indices)
    decision = rule.decide(gram, [contributor.samples for contributor in contributors])
    if context.spec.inbox is not None:
        discounts = [context.spec.inbox.discount(found.staleness) for found in contributors]
        decision = decision.discounted(discounts)
    is_kept = [weight > 0 or decision.full is not None for weight in decision.weights]
    entries = (
        {
            "client": contributor.client,
            "weight": decision.weights[i],
            "full_weight": decision.full and decision.full[i],
            "norm": norm,
            "score": decision.scores[i],
        }
        for i, (contributor, norm) in enumerate(zip(contributors, norms_of(gram), strict=True))
    )
    store.put_json(
        keys.decision(context.request.attempt),
        {
            "rule": {"name": rule.name, **rule.to_json()},
            "score": rule.score,
            "bound": decision.bound,
            "sample": measurement.get("sample"),
            # Sums over all updates: with them, a task reads only the entries of its group.
            "weights": math.fsum(decision.weights),
            "whole": decision.whole,
            "clients": store_decided(store, keys, entries),
        },
    )
    return Decided(
        tuple(c for c, kept in zip(contributors, is_kept, strict=True) if kept),
        tuple(c for c, kept in zip(contributors, is_kept, strict=True) if not kept),
        measured,
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
    name, score = decision["rule"]["name"], decision["score"]
    return [
        Rejection(
            c.client,
            f"{c.source.key}: rule {name} left this update out of the average: its {score} is "
            f"{entries[c.client]['score']:.6g}, and its norm {entries[c.client]['norm']:.6g}",
            c.source.etag,
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
    return {
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
    if "squares" in measurement:
        if len(measurement["squares"]) != count:
            raise ValueError(f"not {count} norms")
        return measurement
    if [len(row) for row in measurement["products"]] != [count] * count:
        raise ValueError(f"not {count} by {count} products")
    return measurement
