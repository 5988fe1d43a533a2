"""Averages of partial updates: SALF, and the rules it is compared with.

SALF (straggler-aware layer-wise federated learning; Lang, Cohen and Shlezinger, arXiv 2403.18375):
each layer is averaged over the clients that reached it, and divided by 1 - p, the probability that
anybody does. Where nobody did, the layer stays as it is. If all clients are as likely to reach a
layer and count alike, the expected average is that of full participation.

This module turns a rule and who covers what into *effective weights*, one float64 for each
contributor and layer. The aggregation then adds up as it always does.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import numpy as np

from gradshard.arithmetic import shares_of
from gradshard.errors import SpecError, UpdateError
from gradshard.keys import check_id
from gradshard.layers import Coverage, Layer, check_depth
from gradshard.layout import shorten

SALF: Final = "salf"
FEDAVG: Final = "fedavg"  # of whole updates, too
FILL: Final = "fill"
DROP: Final = "drop"
RULES: Final = (SALF, FEDAVG, FILL, DROP)

Client = str | None
"""An expected client's id, or None where only their number is known."""

T = TypeVar("T")


class Participation(Protocol):
    """How likely clients are to reach layers."""

    def reach(self, client: Client, layers: Sequence[Layer]) -> list[float]:
        """Return the client's probability of reaching each layer, from the input to the output."""

    def to_json(self) -> Any:
        """Return what :func:`parse_participation` reads."""


@dataclass(frozen=True)
class GivenMisses:
    """The probability that nobody reaches a layer, stated by the user.

    Parameters
    ----------
    p
        One for all layers, or by layer's name.
    """

    p: float | Mapping[str, float]

    def to_json(self) -> Any:
        """Return it as JSON."""
        return self.p if isinstance(self.p, float) else dict(self.p)


@dataclass(frozen=True)
class UniformDepth:
    """Every client gets through 1, 2, … or all L layers, each as likely.

    The layer that is l-th from the input is reached with probability l / L, and so missed by all U
    clients with p = (1 - l / L)^U (SALF's model).
    """

    def reach(self, client: Client, layers: Sequence[Layer]) -> list[float]:  # noqa: ARG002
        """Return l / L for each layer."""
        return [number / len(layers) for number in range(1, len(layers) + 1)]

    def to_json(self) -> Any:
        """Return it as JSON."""
        return {"model": "uniform"}


@dataclass(frozen=True)
class PoissonDepth:
    """A client gets through min(D, L) layers, D being Poisson with the client's mean.

    Parameters
    ----------
    mean
        The mean of D, one for all clients or by client.
    """

    mean: float | Mapping[str, float]

    def reach(self, client: Client, layers: Sequence[Layer]) -> list[float]:
        """Return Pr(D ≥ d) for each layer, d being its number from the output."""
        mean = self.mean
        if isinstance(mean, Mapping):
            mean = _of_client("mean", mean, client)
        # Pr(D < d), term by term: e^-λ λ^k / k!
        term = math.exp(-mean)
        missed, reached = 0.0, []
        for depth in range(1, len(layers) + 1):
            missed += term
            term *= mean / depth
            reached.append(max(0.0, 1.0 - missed))
        return reached[::-1]

    def to_json(self) -> Any:
        """Return it as JSON."""
        mean = self.mean if isinstance(self.mean, float) else dict(self.mean)
        return {"model": "poisson", "mean": mean}


@dataclass(frozen=True)
class ClientReach:
    """Each client's probability of reaching each layer, independently of the others.

    Parameters
    ----------
    probabilities
        By client: one for all layers, or by layer's name.
    """

    probabilities: Mapping[str, float | Mapping[str, float]]

    def reach(self, client: Client, layers: Sequence[Layer]) -> list[float]:
        """Return what was stated of the client."""
        stated = _of_client("reach", self.probabilities, client)
        return _by_layer(f"reach of client {client!r}", stated, layers)

    def to_json(self) -> Any:
        """Return it as JSON."""
        return {
            "model": "clients",
            "reach": {
                client: stated if isinstance(stated, float) else dict(stated)
                for client, stated in self.probabilities.items()
            },
        }


@dataclass(frozen=True)
class PastRounds:
    """Estimated from rounds that have ended: :func:`estimate_reach` makes a model of their records.

    Parameters
    ----------
    rounds
        Their ids.
    """

    rounds: tuple[str, ...]

    def to_json(self) -> Any:
        """Return it as JSON."""
        return {"model": "rounds", "rounds": list(self.rounds)}


Stated = GivenMisses | PastRounds | Participation
"""What a rule may say of p."""


@dataclass(frozen=True)
class PastRound:
    """Who reached what in a round that has ended.

    Parameters
    ----------
    expected
        The clients that were expected.
    covered
        By layer's name, those that covered it.
    """

    expected: frozenset[str]
    covered: Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class PartialRule:
    """How partial updates are averaged.

    Parameters
    ----------
    name
        ``salf``; or ``fedavg``: the mean over those who cover a layer, weighted by samples, without
        any correction; ``fill``: the published code of SALF's authors, which fills a client's
        missing layers with the global model's and divides by the number of clients, so that as a
        change of the model a layer is its contributors' sum / U; ``drop``: only complete updates
        count, weighted by samples.
    participation
        What gives p; for ``salf`` only, and required there.
    by_samples
        For ``salf``: weigh clients by their samples.
    balanced
        For ``salf``: undo what favours some clients over others. The mean over those who are there
        gives clients that reach a layer more often more than their due, and, when weighted by
        samples, those with few samples; so the plain rule is unbiased only for clients alike in
        both. The balanced one is for any, and is the plain rule itself where they are alike.
    """

    name: str
    participation: Stated | None = None
    by_samples: bool = False
    balanced: bool = False

    def __post_init__(self) -> None:
        if self.name not in RULES:
            raise SpecError(f"rule is {self.name!r}, not one of {', '.join(RULES)}")
        if self.name == SALF and self.participation is None:
            raise SpecError("rule salf needs p, or a model that gives it")
        if self.name != SALF and (self.participation or self.by_samples or self.balanced):
            raise SpecError(f"p, by_samples and balanced are of rule salf, not of {self.name}")

    def to_json(self) -> dict[str, Any]:
        """Return what :func:`parse_rule` reads."""
        if self.participation is None:
            return {"name": self.name}
        fields: dict[str, Any] = {"name": self.name, "p": self.participation.to_json()}
        return fields | {
            name: True for name in ("by_samples", "balanced") if getattr(self, name) is True
        }


@dataclass(frozen=True)
class LayerWeights:
    """The effective weights of one layer.

    Parameters
    ----------
    layer
        Which.
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
        ``name`` and, for ``salf``, ``p`` (see :func:`parse_participation`), ``by_samples`` and
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
        None if stated is None else parse_participation(stated),
        fields.get("by_samples", False),
        fields.get("balanced", False),
    )


def parse_participation(stated: Any) -> Stated:
    """Read what gives p from JSON.

    Parameters
    ----------
    stated
        A number from 0 to under 1, ``{layer: number}``, ``{"model": "uniform"}``,
        ``{"model": "poisson", "mean": number or {client: number}}``,
        ``{"model": "clients", "reach": {client: number or {layer: number}}}``, or
        ``{"model": "rounds", "rounds": [id, …]}``.

    Raises
    ------
    SpecError
        It is none of these, or a number is out of its bounds.
    """
    if not isinstance(stated, Mapping):
        return GivenMisses(_missed("p", stated))
    model = stated.get("model")
    if not isinstance(model, str):
        return GivenMisses(
            {layer: _missed(f"p of layer {layer!r}", p) for layer, p in stated.items()}
        )
    if model == "uniform" and stated.keys() == {"model"}:
        return UniformDepth()
    if model == "poisson" and stated.keys() == {"model", "mean"}:
        return PoissonDepth(_numbers("mean", stated["mean"], math.inf))
    if model == "clients" and stated.keys() == {"model", "reach"}:
        reach = stated["reach"]
        if not isinstance(reach, Mapping):
            raise SpecError(f"reach is {reach!r}, not {{client: probability}}")
        return ClientReach(
            {client: _numbers(f"reach of client {client!r}", q, 1.0) for client, q in reach.items()}
        )
    if model == "rounds" and stated.keys() == {"model", "rounds"}:
        rounds = stated["rounds"]
        if isinstance(rounds, str) or not isinstance(rounds, Sequence) or not rounds:
            raise SpecError(f"rounds is {rounds!r}, not a list of rounds that have ended")
        return PastRounds(tuple(check_id("round", name) for name in rounds))
    raise SpecError(
        f"the model of p is {model!r} with {', '.join(sorted(stated))}; it is uniform, poisson "
        "with mean, clients with reach, or rounds with rounds"
    )


def estimate_reach(
    past: Sequence[PastRound], clients: Sequence[str], layers: Sequence[Layer]
) -> ClientReach:
    """Estimate how likely clients are to reach layers from rounds that have ended.

    A client that was expected in R of them, and covered a layer in r, is given (r + 1) / (R + 2)
    (Laplace's rule), so 1/2 where nothing is known of it. No client is ever taken to be certain, so
    p is neither 0 nor 1; with few rounds it is too near to what 1/2 each would give.

    Parameters
    ----------
    past
        The rounds.
    clients
        Those of the next one.
    layers
        Its layers; one that a past round did not have counts as covered by nobody there.
    """
    probabilities: dict[str, float | Mapping[str, float]] = {}
    for client in clients:
        rounds = [round_ for round_ in past if client in round_.expected]
        probabilities[client] = {
            layer.name: (sum(client in r.covered.get(layer.name, ()) for r in rounds) + 1)
            / (len(rounds) + 2)
            for layer in layers
        }
    return ClientReach(probabilities)


def misses(
    participation: GivenMisses | Participation, clients: Sequence[Client], layers: Sequence[Layer]
) -> list[float]:
    """Return p of each layer, the probability that nobody reaches it.

    From a model it is the product over the clients, in the order given, of 1 - reach, multiplied
    from the left in float64, beginning with 1.

    Parameters
    ----------
    participation
        What gives it.
    clients
        All that are expected, those that sent nothing included.
    layers
        From the input to the output.

    Raises
    ------
    SpecError
        A layer or client is not provided for, or p is 1.
    """
    if isinstance(participation, GivenMisses):
        return _by_layer("p", participation.p, layers)
    reached = [participation.reach(client, layers) for client in clients]
    missed = [
        math.prod((1.0 - q[index] for q in reached), start=1.0) for index in range(len(layers))
    ]
    for layer, p in zip(layers, missed, strict=True):
        if p >= 1.0:
            raise SpecError(
                f"p of layer {shorten(layer.name)!r} is {p}: none of the {len(clients)} clients "
                "would ever reach it, so no average can stand for it; give them longer, or leave "
                "it out"
            )
    return missed


def check_usable(rule: PartialRule, layers: Sequence[Layer], covered: Coverage) -> None:
    """Check that a rule has a use for an update that covers these layers.

    Raises
    ------
    UpdateError
        Under ``salf`` it covers a layer but not a later one; under ``drop`` not all layers.
    """
    if rule.name == SALF:
        check_depth(layers, covered)
    if rule.name == DROP and not all(covered):
        raise UpdateError(
            f"rule drop counts complete updates only, and {covered.count(False)} of "
            f"{len(covered)} layers are missing, "
            f"{shorten(layers[covered.index(False)].name)!r} the first"
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
    (:func:`expected_shares`).

    Parameters
    ----------
    rule
        How.
    layers
        From the input to the output.
    clients
        All that are expected, those that sent nothing included, sorted by id, unknown ones last.
    coverage
        By contributor.
    samples
        By client: at least the contributors' numbers of samples. What is known of clients that sent
        nothing makes the balanced rule's mean right.

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
    strangers = set(contributors).difference(clients)
    if len(strangers) > sum(client is None for client in clients):
        raise SpecError(f"contributor {min(strangers)!r} is none of the {len(clients)} clients")
    if rule.name == SALF:
        for client in contributors:
            check_depth(layers, coverage[client])
        return _weigh_salf(rule, layers, clients, coverage, samples)
    weighed = []
    for index, layer in enumerate(layers):
        if rule.name == DROP:
            there = [client for client in contributors if all(coverage[client])]
        else:
            there = [client for client in contributors if coverage[client][index]]
        if rule.name == FILL:
            weights = dict.fromkeys(there, 1 / len(clients))
        else:
            weights = _shares(there, samples)
        weighed.append(LayerWeights(layer, None, tuple(map(weights.get, contributors))))
    return tuple(weighed)


def expected_shares(reached: Sequence[float]) -> list[float]:
    """Return each client's expected share of a plain mean over those who are there.

    That is E[1 / k if it is there, else 0], k being how many are, when client i is there with
    probability ``reached[i]``, independently of the others:
    reach · Σⱼ Pr(j others are there) / (j + 1). The shares add up to 1 - p.

    Parameters
    ----------
    reached
        By client.
    """
    users = len(reached)
    # others[i, j]: the probability that j of the clients besides i are there. Elementwise only: the
    # weights' bits must not depend on a machine's linear algebra.
    others = np.zeros((users, users))
    others[:, 0] = 1.0
    for index, q in enumerate(reached):
        one_more = others * (1.0 - q)
        one_more[:, 1:] += others[:, :-1] * q
        one_more[index] = others[index]
        others = one_more
    numbers = range(1, users + 1)
    return [
        q * math.fsum(chance / number for chance, number in zip(row.tolist(), numbers, strict=True))
        for q, row in zip(reached, others, strict=True)
    ]


def _weigh_salf(
    rule: PartialRule,
    layers: Sequence[Layer],
    clients: Sequence[Client],
    coverage: Mapping[str, Coverage],
    samples: Mapping[str, int],
) -> tuple[LayerWeights, ...]:
    if rule.participation is None or isinstance(rule.participation, PastRounds):
        raise SpecError("rule salf needs p, or a model that gives it")
    contributors = sorted(coverage)
    missed = misses(rule.participation, clients, layers)
    counted = samples if rule.by_samples else dict.fromkeys(contributors, 1)
    expected = _expected_by_layer(rule.participation, clients, layers, missed)
    weighed = []
    for index, (layer, p) in enumerate(zip(layers, missed, strict=True)):
        there = [client for client in contributors if coverage[client][index]]
        if rule.balanced:
            weights = _balanced(layer, there, counted, len(clients), next(expected))
        else:
            shares = _shares(there, counted)
            weights = {client: share / (1.0 - p) for client, share in shares.items()}
        weighed.append(LayerWeights(layer, p, tuple(map(weights.get, contributors))))
    return tuple(weighed)


def _expected_by_layer(
    participation: GivenMisses | Participation,
    clients: Sequence[Client],
    layers: Sequence[Layer],
    missed: Sequence[float],
) -> Iterator[dict[Client, float]]:
    """Yield e by client, layer by layer."""
    if isinstance(participation, GivenMisses):
        # All that is known is p: clients are taken to be alike.
        for p in missed:
            yield dict.fromkeys(clients, (1.0 - p) / len(clients))
    else:
        by_client = [participation.reach(client, layers) for client in clients]
        for reached in zip(*by_client, strict=True):
            yield dict(zip(clients, expected_shares(reached), strict=True))


def _balanced(
    layer: Layer,
    there: Sequence[str],
    samples: Mapping[str, int],
    users: int,
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
    return {
        client: _target(client, samples, users) / (len(there) * shares[client]) for client in there
    }


def _target(client: str, samples: Mapping[str, int], users: int) -> float:
    """Return the client's share under full participation: n / (U · mean n)."""
    return samples[client] * len(samples) / (sum(samples.values()) * users)


def _shares(clients: Sequence[str], samples: Mapping[str, int]) -> dict[str, float]:
    shares = shares_of([samples[client] for client in clients])
    return dict(zip(clients, shares, strict=True))


def _of_client(what: str, stated: Mapping[str, T], client: Client) -> T:
    if client is None:
        raise SpecError(f"{what} is given by client, but some clients' ids are not known; name all")
    if client not in stated:
        raise SpecError(f"{what} is missing for client {client!r}; it has {len(stated)} others")
    return stated[client]


def _by_layer(
    what: str, stated: float | Mapping[str, float], layers: Sequence[Layer]
) -> list[float]:
    if not isinstance(stated, Mapping):
        return [stated] * len(layers)
    names = [layer.name for layer in layers]
    unknown = sorted(stated.keys() - set(names))
    if unknown:
        raise SpecError(f"{what}: there is no layer {unknown[0]!r}; there are {', '.join(names)}")
    missing = next((name for name in names if name not in stated), None)
    if missing is not None:
        raise SpecError(f"{what} is missing for layer {missing!r}")
    return [stated[name] for name in names]


def _missed(what: str, p: Any) -> float:
    if not _is_number(p) or not 0 <= p < 1:
        raise SpecError(
            f"{what} is {p!r}, not a probability from 0 to under 1: a layer that nobody ever "
            "reaches has no average"
        )
    return float(p)


def _numbers(what: str, stated: Any, most: float) -> float | dict[str, float]:
    if isinstance(stated, Mapping):
        return {name: _number(f"{what}, {name!r}", value, most) for name, value in stated.items()}
    return _number(what, stated, most)


def _number(what: str, value: Any, most: float) -> float:
    if not _is_number(value) or not 0 <= value <= most or math.isinf(value):
        bound = f"from 0 to {most:g}" if most < math.inf else "of at least 0"
        raise SpecError(f"{what} is {value!r}, not a number {bound}")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
