"""Averages of partial updates: SALF, and the rules it is compared with.

SALF (straggler-aware layer-wise federated learning; Lang, Cohen and Shlezinger, arXiv 2403.18375):
each layer is averaged over the clients that reached it, and divided by 1 - p, the probability that
anybody does. Where nobody did, the layer stays as it is. If all clients are as likely to reach a
layer and count alike, the expected average is that of full participation.

This module turns a rule and who covers what into *effective weights*, one float64 for each
contributor and layer. The aggregation then adds up as it always does.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gradshard_core.aggregation.arithmetic import shares_of
from gradshard_core.errors import SpecError, UpdateError
from gradshard_core.formats.tensor_layout import shorten
from gradshard_core.stragglers.layer_reach import (
    Client,
    GivenMisses,
    PastRounds,
    ReachModel,
    Stated,
    expected_shares,
    misses,
    parse_reach_model,
    reach_by_layer,
)
from gradshard_core.stragglers.layers import Coverage, Layer, check_depth

SALF: Final = "salf"
FEDAVG: Final = "fedavg"  # of whole updates, too
FILL: Final = "fill"
DROP: Final = "drop"
RULES: Final = (SALF, FEDAVG, FILL, DROP)

MAX_WEIGHT: Final = 1e200
"""The largest weight of a contributor in a layer.

4,096 times it, times any integer, is a finite float64."""

LEAST_REACH: Final = 1e-196
"""The least probability with which a client reaches a layer that it covers.

Its weight has the inverse. With up to 4,096 clients, no such weight is over :data:`MAX_WEIGHT`."""


@dataclass(frozen=True)
class PartialRule:
    """The rule by which partial updates are averaged.

    Parameters
    ----------
    name
        ``salf``; or ``fedavg``: the mean over those who cover a layer, weighted by samples, without
        any correction; ``fill``: the published code of SALF's authors, which fills a client's
        missing layers with the global model's and divides by the number of clients, so that as a
        change of the model a layer is its contributors' sum / U; ``drop``: only complete updates
        count, weighted by samples.
    reach_model
        The model that gives p; for ``salf`` only, and required there.
    by_samples
        For ``salf``: weigh clients by their samples.
    balanced
        For ``salf``: undo what favours some clients over others. The mean over those who are there
        gives clients that reach a layer more often more than their due, and, when weighted by
        samples, those with few samples; so the plain rule is unbiased only for clients alike in
        both. The balanced one is for any, and is the plain rule itself where they are alike.
    """

    name: str
    reach_model: Stated | None = None
    by_samples: bool = False
    balanced: bool = False

    def __post_init__(self) -> None:
        if self.name not in RULES:
            raise SpecError(f"rule is {self.name!r}, not one of {', '.join(RULES)}")
        if self.name == SALF and self.reach_model is None:
            raise SpecError("rule salf needs p, or a model that gives it")
        if self.name != SALF and (self.reach_model or self.by_samples or self.balanced):
            raise SpecError(f"p, by_samples and balanced are of rule salf, not of {self.name}")

    def to_json(self) -> dict[str, Any]:
        """Return what :func:`parse_rule` reads."""
        if self.reach_model is None:
            return {"name": self.name}
        fields: dict[str, Any] = {"name": self.name, "p": self.reach_model.to_json()}
        return fields | {
            name: True for name in ("by_samples", "balanced") if getattr(self, name) is True
        }


@dataclass(frozen=True)
class LayerWeights:
    """The effective weights of one layer.

    Parameters
    ----------
    layer
        The layer.
    missed
        p, the probability that nobody reaches it; None where the rule has none.
    weights
        One per contributor, in contributor order; None for those that do not count here. Where all
        are None the layer is zero.
    """

    layer: Layer
    missed: float | None
    weights: tuple[float | None, ...]


def parse_rule(fields: Mapping[str, Any]) -> PartialRule:
    """Read a rule from JSON.

    Parameters
    ----------
    fields
        ``name`` and, for ``salf``, ``p``
        (:func:`gradshard_core.stragglers.layer_reach.parse_reach_model`), ``by_samples`` and
        ``balanced``.

    Raises
    ------
    SpecError
        A field is unknown or no such thing.
    """
    known = {"name", "p", "by_samples", "balanced"}
    unknown = sorted(fields.keys() - known)
    if unknown:
        raise SpecError(f"unknown field {unknown[0]!r}; a rule has {', '.join(sorted(known))}")
    for flag in ("by_samples", "balanced"):
        if not isinstance(fields.get(flag, False), bool):
            raise SpecError(f"{flag} is {fields[flag]!r}, not true or false")
    stated = fields.get("p")
    return PartialRule(
        fields.get("name", SALF),
        None if stated is None else parse_reach_model(stated),
        fields.get("by_samples", False),
        fields.get("balanced", False),
    )


def check_usable(
    rule: PartialRule, layers: Sequence[Layer], client: str, covered: Coverage
) -> None:
    """Check that a rule has a use for a client's update that covers these layers.

    Raises
    ------
    UpdateError
        Under ``salf`` it covers a layer but not a later one, or, where that is balanced, one that
        the client never reaches; under ``drop`` not all layers.
    SpecError
        The rule does not say how likely the client is to reach the layers.
    """
    if rule.name == SALF:
        check_depth(layers, covered)
    if rule.balanced:
        _check_reach(rule, layers, client, covered)
    if rule.name == DROP and not all(covered):
        raise UpdateError(
            f"rule drop counts complete updates only, and {covered.count(False)} of "
            f"{len(covered)} layers are missing, "
            f"{shorten(layers[covered.index(False)].name)!r} the first"
        )


def _check_reach(
    rule: PartialRule, layers: Sequence[Layer], client: str, covered: Coverage
) -> None:
    """Check that a client has a finite weight in each layer that it covers."""
    if rule.reach_model is None or isinstance(rule.reach_model, GivenMisses | PastRounds):
        return  # no client is taken to reach a layer never
    reached = rule.reach_model.reach(client, layers)
    for layer, covers, reach in zip(layers, covered, reached, strict=True):
        if covers and reach < LEAST_REACH:
            raise UpdateError(
                f"the update holds layer {shorten(layer.name)!r}, which the round's terms say this "
                f"client reaches with probability {reach:g}; its weight would be the inverse: send "
                "the layers after it only, or have the round opened with a larger probability"
            )


def effective_weights(
    rule: PartialRule,
    layers: Sequence[Layer],
    clients: Sequence[Client],
    coverage: Mapping[str, Coverage],
    samples: Mapping[str, int],
) -> tuple[LayerWeights, ...]:
    """Weigh each layer of each contributor.

    With the k contributors that count in a layer, n their samples, U clients, each line one
    expression in float64, rounded after each operation:

    ====================  =============================================================
    ``salf``              (1 / k) / (1 - p), or (n / Σn) / (1 - p) by samples
    ``salf``, balanced    t / (k · e), t = 1 / U or, by samples, n / (U · mean n)
    ``fedavg``            n / Σn
    ``fill``              1 / U
    ``drop``              n / Σn, over those that cover every layer
    ====================  =============================================================

    Σn is over those that count in the layer. The mean of n is over all ``samples``, and t one
    division of whole numbers. e is the expectation of 1 / k if the client is there and 0 if not
    (:func:`gradshard_core.stragglers.layer_reach.expected_shares`).

    Parameters
    ----------
    rule
        The rule of the average.
    layers
        The layers from the input to the output.
    clients
        All that are expected, those that sent nothing included, sorted by id, unknown ones last.
    coverage
        The layers that each contributor holds.
    samples
        By client: at least the contributors' numbers of samples. Give those of clients that sent
        nothing, too, if they are known: the balanced rule needs their mean.

    Returns
    -------
    tuple of LayerWeights
        One per layer; weights in the order of the contributors' ids.

    Raises
    ------
    SpecError
        p cannot be had from the rule, or a contributor is none of the clients.
    UpdateError
        Under ``salf`` a contributor covers a layer but not a later one. The other rules take any
        set of whole layers.
    """
    contributors = sorted(coverage)
    _check_expected(contributors, clients)
    if rule.name == SALF:
        for client in contributors:
            check_depth(layers, coverage[client])
        return _weigh_salf(rule, layers, clients, coverage, samples)
    return _weigh_without_salf(rule, layers, len(clients), coverage, samples)


def _weigh_without_salf(
    rule: PartialRule,
    layers: Sequence[Layer],
    clients: int,
    coverage: Mapping[str, Coverage],
    samples: Mapping[str, int],
) -> tuple[LayerWeights, ...]:
    """Weigh as :func:`effective_weights`, under another rule than ``salf``."""
    contributors = sorted(coverage)
    by_layer = [_counted(rule, contributors, coverage, index) for index in range(len(layers))]
    if rule.name == FILL:
        weights = [dict.fromkeys(counted, 1 / clients) for counted in by_layer]
    else:
        weights = [_shares(counted, samples) for counted in by_layer]
    return tuple(
        LayerWeights(layer, None, tuple(map(weights_there.get, contributors)))
        for layer, weights_there in zip(layers, weights, strict=True)
    )


def _check_expected(contributors: Sequence[str], clients: Sequence[Client]) -> None:
    """Check that there is a client for each contributor; unknown ones may be any."""
    strangers = set(contributors).difference(clients)
    if len(strangers) > sum(client is None for client in clients):
        raise SpecError(f"contributor {min(strangers)!r} is none of the {len(clients)} clients")


def _counted(
    rule: PartialRule, contributors: Sequence[str], coverage: Mapping[str, Coverage], index: int
) -> list[str]:
    """Return the contributors that count in a layer, under any rule but ``salf``."""
    if rule.name == DROP:
        return [client for client in contributors if all(coverage[client])]
    return [client for client in contributors if coverage[client][index]]


def _weigh_salf(
    rule: PartialRule,
    layers: Sequence[Layer],
    clients: Sequence[Client],
    coverage: Mapping[str, Coverage],
    samples: Mapping[str, int],
) -> tuple[LayerWeights, ...]:
    if rule.reach_model is None or isinstance(rule.reach_model, PastRounds):
        raise SpecError("rule salf needs p, or a model that gives it")
    contributors = sorted(coverage)
    missed = misses(rule.reach_model, clients, layers)
    counted = samples if rule.by_samples else dict.fromkeys(contributors, 1)
    expected = _expected_by_layer(rule.reach_model, clients, layers, missed)
    targets = _targets(counted, len(clients))
    weighed = []
    for index, (layer, p) in enumerate(zip(layers, missed, strict=True)):
        there = [client for client in contributors if coverage[client][index]]
        if rule.balanced:
            weights = _balanced(layer, there, targets, next(expected))
        else:
            shares = _shares(there, counted)
            weights = {client: share / (1.0 - p) for client, share in shares.items()}
        weighed.append(LayerWeights(layer, p, tuple(map(weights.get, contributors))))
    return tuple(weighed)


def _expected_by_layer(
    reach_model: GivenMisses | ReachModel,
    clients: Sequence[Client],
    layers: Sequence[Layer],
    missed: Sequence[float],
) -> Iterator[dict[Client, float]]:
    """Yield e by client, layer by layer."""
    if isinstance(reach_model, GivenMisses):
        # All that is known is p: clients are taken to be alike.
        for p in missed:
            yield dict.fromkeys(clients, (1.0 - p) / len(clients))
    else:
        for reached in reach_by_layer(reach_model, clients, layers):
            yield dict(zip(clients, expected_shares(reached), strict=True))


def _balanced(
    layer: Layer,
    there: Sequence[str],
    targets: Mapping[str, float],
    expected: Mapping[Client, float],
) -> dict[str, float]:
    """Return t / (k · e) by contributor."""
    # A contributor that was not expected by name is one of those known by number only.
    shares = {client: expected[client if client in expected else None] for client in there}
    never = next((client for client in there if shares[client] == 0), None)
    if never is not None:
        raise SpecError(
            f"reach of client {never!r} is 0 for layer {layer.name!r}, which it has reached; "
            "give it a probability above zero"
        )
    weights = {client: targets[client] / (len(there) * shares[client]) for client in there}
    huge = next((client for client in there if weights[client] > MAX_WEIGHT), None)
    if huge is not None:
        raise SpecError(
            f"reach of client {huge!r} gives {shares[huge]:g} as its share of layer "
            f"{layer.name!r}, and its weight is the inverse: give it a larger probability"
        )
    return weights


def _targets(samples: Mapping[str, int], users: int) -> dict[str, float]:
    """Return each client's share under full participation: n / (U · mean n)."""
    known, total = len(samples), sum(samples.values())
    return {client: n * known / (total * users) for client, n in samples.items()}


def _shares(clients: Sequence[str], samples: Mapping[str, int]) -> dict[str, float]:
    shares = shares_of([samples[client] for client in clients])
    return dict(zip(clients, shares, strict=True))
