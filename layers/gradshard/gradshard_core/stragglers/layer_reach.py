"""Probabilities that clients reach layers, and p, the probability that no client does.

Back-propagation reaches the last layer first, so a client that is cut off lacks the first layers. p
follows from a model of the clients, is stated, or is estimated from rounds that have ended.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from gradshard_core.errors import SpecError
from gradshard_core.formats.object_keys import check_id
from gradshard_core.formats.tensor_layout import shorten
from gradshard_core.stragglers.layers import Layer
from gradshard_core.stragglers.salf_integral import Floats, gauss_legendre

Client = str | None
"""An expected client's id, or None where only their number is known."""

T = TypeVar("T")


class ReachModel(Protocol):
    """A model of the probabilities that clients reach layers."""

    def reach(self, client: Client, layers: Sequence[Layer]) -> list[float]:
        """Return the client's probability of reaching each layer, from the input to the output."""

    def to_json(self) -> Any:
        """Return what :func:`parse_reach_model` reads."""


@dataclass(frozen=True)
class GivenMisses:
    """The probability that no client reaches a layer, stated by the user.

    Parameters
    ----------
    p
        One probability for all layers, or one by layer's name.
    """

    p: float | Mapping[str, float]

    def to_json(self) -> Any:
        """Return it as JSON."""
        return self.p if isinstance(self.p, float) else dict(self.p)


@dataclass(frozen=True)
class UniformDepth:
    """Every client gets through 1, 2, … or all L layers with equal probability.

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
        The probabilities by client: one for all layers, or by layer's name.
    """

    probabilities: Mapping[str, float | Mapping[str, float]]

    def reach(self, client: Client, layers: Sequence[Layer]) -> list[float]:
        """Return the stated probabilities of the client."""
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
        The ids of the rounds.
    """

    rounds: tuple[str, ...]

    def to_json(self) -> Any:
        """Return it as JSON."""
        return {"model": "rounds", "rounds": list(self.rounds)}


Stated = GivenMisses | PastRounds | ReachModel
"""The values that a rule may have for p."""


@dataclass(frozen=True)
class PastRound:
    """The layers that clients reached in a round that has ended.

    Parameters
    ----------
    expected
        The clients that were expected.
    covered
        The clients that covered each layer, by its name.
    """

    expected: frozenset[str]
    covered: Mapping[str, frozenset[str]]


def parse_reach_model(stated: Any) -> Stated:
    """Read the source of p from JSON.

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
        The value has none of these forms, or a number is out of its bounds.
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
    """Estimate the probabilities that clients reach layers, from rounds that have ended.

    A client that was expected in R of them, and covered a layer in r, gets (r + 1) / (R + 2)
    (Laplace's rule), and so 1/2 if it was never expected. p is therefore neither 0 nor 1. With few
    rounds the estimates are too near to 1/2.

    Parameters
    ----------
    past
        The rounds.
    clients
        The clients of the next round.
    layers
        The layers of the next round; no client covered a layer that a past round did not have.
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
    reach_model: GivenMisses | ReachModel, clients: Sequence[Client], layers: Sequence[Layer]
) -> list[float]:
    """Return p of each layer, the probability that no client reaches it.

    From a model it is the product over the clients, in the order given, of 1 - reach, multiplied
    from the left in float64, beginning with 1.

    Parameters
    ----------
    reach_model
        How likely each client reaches each layer, or the probability itself.
    clients
        All expected clients, also those that sent nothing.
    layers
        The layers from the input to the output.

    Raises
    ------
    SpecError
        There is no probability for a layer or client, or p is 1.
    """
    if isinstance(reach_model, GivenMisses):
        return _by_layer("p", reach_model.p, layers)
    product = np.ones(len(layers))
    for client in clients:
        product = product * (1.0 - np.array(reach_model.reach(client, layers)))
    missed = [float(p) for p in product]
    for layer, p in zip(layers, missed, strict=True):
        if p >= 1.0:
            raise SpecError(
                f"p of layer {shorten(layer.name)!r} is {p}: none of the {len(clients)} clients "
                "would ever reach it, so no average can stand for it; give them longer, or leave "
                "it out"
            )
    return missed


def reach_by_layer(
    reach_model: ReachModel, clients: Sequence[Client], layers: Sequence[Layer]
) -> Floats:
    """Return each client's probability of reaching each layer, of shape (layers, clients)."""
    by_client = np.empty((len(clients), len(layers)))
    for row, client in zip(by_client, clients, strict=True):
        row[:] = reach_model.reach(client, layers)
    return by_client.T


def expected_shares(reached: Sequence[float] | Floats) -> list[float]:
    """Return each client's expected share of a plain mean over the clients that are there.

    That is E[1 / k if it is there, else 0], k being how many are, when client i is there with
    probability ``reached[i]``, independently of the others. With qⱼ the probabilities and K the
    number of *others*, it is

        qᵢ · E[1 / (1 + K)] = qᵢ · ∫₀¹ Π_{j≠i} (1 - qⱼ + qⱼt) dt

    since 1 / (1 + K) is the integral of t^K, and the integrand a polynomial, for which
    Gauss-Legendre with ⌈U / 2⌉ nodes is exact. Each node's product over all clients is made once,
    and divided by the client's own factor: O(U²) for all clients together, in vectors of length U.
    Factors grow with t up to 1, where their product is 1; so a product that underflows at a small t
    is nothing beside the integral, which is at least 1 / U. The shares add up to 1 - p.

    Only elementwise operations in a fixed order: the bits, which are the weights', do not depend
    on a machine's linear algebra or threads.

    Parameters
    ----------
    reached
        The probabilities, by client.
    """
    users = len(reached)
    nodes, distances, weights = gauss_legendre(-(-users // 2))
    reach = np.array(reached, np.float64)
    missed = 1.0 - reach
    product = np.ones_like(nodes)
    for q in reach:
        product = product * _factor(q, 1.0 - q, nodes, distances)
    # One node after the other, the smallest terms first, with the rounding errors added up apart.
    integral, lost = np.zeros(users), np.zeros(users)
    for node, distance, height in zip(nodes, distances, weights * product, strict=True):
        term = height / _factor(reach, missed, node, distance)
        total = integral + term
        lost = lost + ((integral - total) + term)
        integral = total
    return [float(share) for share in reach * (integral + lost)]


def _factor(
    reach: Floats | float, missed: Floats | float, node: Floats | float, distance: Floats | float
) -> Floats:
    """Return 1 - q + q · t, in the form that cancels least: near t = 1 as 1 - q · (1 - t)."""
    return np.where(distance < 0.5, 1.0 - reach * distance, missed + reach * node)


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
