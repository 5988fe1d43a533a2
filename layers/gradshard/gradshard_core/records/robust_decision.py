"""A robust rule's decision: what was measured of each update, and what the rule made of it.

``decisions/ATTEMPT.json`` has the ``rule`` with its settings, ``score`` (what scores mean),
``bound``, ``sample``, the sum of the ``weights``, and for each of ``clients`` its ``norm``,
``score``, ``weight`` and, if the rule clips, ``full_weight``. If it decides by layer, ``bound`` has
a number for each layer, a client has these figures in ``layers``, and there is no sum of weights.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, overload

from gradshard_core.errors import PlanError
from gradshard_core.formats.long_lists import StoredList
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.records.plan_and_manifest import with_decided
from gradshard_core.s3.json_reads import JsonReads

if TYPE_CHECKING:
    # Commands that show a decision do without numpy, which plans import.
    from gradshard_core.planning.plan import Plan
    from gradshard_core.planning.plan_parts import Contributor


def layers_left_out(entries: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the clients that a robust rule leaves out of a layer, by layer."""
    found: dict[str, list[str]] = {}
    for entry in entries:
        for name, figures in entry["layers"].items():
            if is_left_out(figures):
                found.setdefault(name, []).append(entry["client"])
    return found


def is_left_out(entry: Mapping[str, Any]) -> bool:
    """Whether a robust rule that selects has not selected an update."""
    return entry["full_weight"] is None and not entry["weight"]


def is_clipped(entry: Mapping[str, Any]) -> bool:
    """Whether a robust rule gives an update less than its weight without the rule."""
    if "layers" in entry:
        return any(map(is_clipped, entry["layers"].values()))
    return entry["full_weight"] is not None and entry["weight"] < entry["full_weight"]


def read_decision(store: JsonReads, keys: RoundKeys, attempt: int) -> dict[str, Any]:
    """Read what a rule has decided on for an attempt; long lists load when needed.

    Raises
    ------
    PlanError
        It is missing.
    """
    key = keys.decision(attempt)
    decision = store.get_json(key, partial(with_decided, store, keys))
    if decision is None:
        raise PlanError(f"{key} is missing")
    return decision


def with_weights(plan: "Plan", decision: dict[str, Any]) -> "Plan":
    """Return a plan whose contributors have the weights of a decision, which are looked up.

    In each layer of partial updates, an update has the weight that was decided there; or, if the
    rule has decided on it as a whole, it loses as much of its share as in the whole.
    """
    if plan.decides_by_layer:
        return _with_weights_by_layer(plan, decision)
    contributors = _Weighed(plan.contributors, decision["clients"])
    participants = replace(
        plan.participants, contributors=contributors, weights=float(decision["weights"])
    )
    layers = plan.computation.layers
    if layers:  # so there are few contributors
        entries = {entry["client"]: entry for entry in decision["clients"]}
        found = [entries[contributor.client] for contributor in plan.contributors]
        factors = [entry["weight"] / entry["full_weight"] for entry in found]
        layers = tuple(
            layer._replace(
                weights=tuple(
                    None if share is None else share * factor
                    for share, factor in zip(layer.weights, factors, strict=True)
                )
            )
            for layer in layers
        )
    computation = replace(plan.computation, layers=layers)
    return replace(plan, participants=participants, computation=computation)


def _with_weights_by_layer(plan: "Plan", decision: dict[str, Any]) -> "Plan":
    """Return a plan with the weights that a rule has decided on layer by layer."""
    entries = {entry["client"]: entry["layers"] for entry in decision["clients"]}
    found = [entries[contributor.client] for contributor in plan.contributors]
    nothing = {"weight": 0.0}  # of a layer without its quorum
    layers = tuple(
        weighed._replace(
            weights=tuple(
                None if share is None else float(of_client.get(layer.name, nothing)["weight"])
                for share, of_client in zip(weighed.weights, found, strict=True)
            )
        )
        for layer, weighed in zip(plan.layout.layers, plan.computation.layers, strict=True)
    )
    return replace(plan, computation=replace(plan.computation, layers=layers))


class _Weighed(Sequence["Contributor"]):
    """Contributors with the weights of a decision, of which only those that are asked for load."""

    def __init__(
        self, contributors: Sequence["Contributor"], entries: Sequence[dict[str, Any]]
    ) -> None:
        self._contributors, self._entries = contributors, entries
        self._near: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._contributors)

    @overload
    def __getitem__(self, index: int) -> "Contributor": ...

    @overload
    def __getitem__(self, index: slice) -> list["Contributor"]: ...

    def __getitem__(self, index: int | slice) -> "Contributor | list[Contributor]":
        if isinstance(index, slice):
            return list(map(self._weighed, self._contributors[index]))
        return self._weighed(self._contributors[index])

    def _weighed(self, contributor: "Contributor") -> "Contributor":
        client, entries = contributor.client, self._entries
        if client not in self._near:
            near = entries.near(client) if isinstance(entries, StoredList) else entries
            self._near = {entry["client"]: float(entry["weight"]) for entry in near}
        if client not in self._near:
            raise PlanError(f"the decision has no weight of client {client!r}")
        return replace(contributor, weight=self._near[client])
