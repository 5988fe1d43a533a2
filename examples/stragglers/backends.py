"""Two ways to average updates with the same bits: in memory, or in rounds of gradshard."""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

import numpy as np

import demo
from gradshard import Federation
from gradshard_core.aggregation.arithmetic import add, finish, shares_of
from gradshard_core.formats.dtypes import DTYPES
from gradshard_core.formats.tensor_layout import Layout
from gradshard_core.stragglers.layers import coverage_of, layers_of
from gradshard_core.stragglers.salf import PartialRule, effective_weights
from network import Array, Parameters
from screen import Screen

WAIT_SECONDS: Final = 180

_F32: Final = DTYPES["F32"]


class Backend(Protocol):
    """Averages updates."""

    def average(self, updates: Mapping[str, Parameters], samples: Mapping[str, int]) -> Parameters:
        """Return the mean of all clients' updates, weighted by their samples."""

    def average_partial(
        self,
        updates: Mapping[str, Parameters],
        samples: Mapping[str, int],
        rule: PartialRule,
        clients: Sequence[str],
        model: Parameters,
    ) -> Parameters:
        """Average updates of which some hold the last layers only.

        Parameters
        ----------
        updates, samples
            The updates and the numbers of samples, by contributor.
        rule
            The rule of the average.
        clients
            All that were expected, sorted.
        model
            Names and shapes of all tensors.
        """


class InMemory:
    """The arithmetic of gradshard's functions without the functions.

    Weights, their rounding and the order of additions are gradshard's own, so a round of the same
    updates gives the same bits.
    """

    def average(self, updates: Mapping[str, Parameters], samples: Mapping[str, int]) -> Parameters:
        """Return the mean of all clients' updates, weighted by their samples."""
        clients = sorted(updates)
        weights = shares_of([samples[client] for client in clients])
        return self.weighted(updates, dict(zip(clients, weights, strict=True)))

    def weighted(
        self, updates: Mapping[str, Parameters], weights: Mapping[str, float]
    ) -> Parameters:
        """Return the sum of complete updates, each times its weight."""
        clients = sorted(updates)
        factors = [weights[client] for client in clients]
        return {
            name: _weighted_sum([updates[client][name] for client in clients], factors)
            for name in updates[clients[0]]
        }

    def average_partial(
        self,
        updates: Mapping[str, Parameters],
        samples: Mapping[str, int],
        rule: PartialRule,
        clients: Sequence[str],
        model: Parameters,
    ) -> Parameters:
        """Average updates of which some hold the last layers only."""
        layout = Layout.pack((name, "F32", array.shape) for name, array in model.items())
        layers = layers_of(layout)
        coverage = {client: coverage_of(layers, update) for client, update in updates.items()}
        contributors = sorted(updates)
        result: Parameters = {}
        for weighed in effective_weights(rule, layers, clients, coverage, samples):
            counting = [
                (updates[client], weight)
                for client, weight in zip(contributors, weighed.weights, strict=True)
                if weight is not None
            ]
            for name in weighed.layer.tensors:
                result[name] = (
                    _weighted_sum([u[name] for u, _ in counting], [w for _, w in counting])
                    if counting
                    else np.zeros_like(model[name])
                )
        return result


class Engine:
    """Rounds of gradshard on this machine.

    Parameters
    ----------
    federation
        The application, deployed to a local engine.
    """

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._run = uuid.uuid4().hex[:8]
        self._rounds = 0

    def average(self, updates: Mapping[str, Parameters], samples: Mapping[str, int]) -> Parameters:
        """Return the mean of all clients' updates, weighted by their samples."""
        return self._round(updates, samples, list(updates), partial=False)

    def average_partial(
        self,
        updates: Mapping[str, Parameters],
        samples: Mapping[str, int],
        rule: PartialRule,
        clients: Sequence[str],
        model: Parameters,
    ) -> Parameters:
        """Average updates of which some hold the last layers only."""
        layout = {
            name: {"dtype": "F32", "shape": list(array.shape)} for name, array in model.items()
        }
        return self._round(
            updates, samples, clients, partial=True, rule=rule.to_json(), layout=layout
        )

    def _round(
        self,
        updates: Mapping[str, Parameters],
        samples: Mapping[str, int],
        clients: Sequence[str],
        *,
        partial: bool,
        **terms: Any,
    ) -> Parameters:
        self._rounds += 1
        name = f"stragglers-{self._run}-{self._rounds}"
        round_ = self._federation.open_round(name, clients, min_clients=1, **terms)
        for client, update in updates.items():
            round_.submit(client, update, samples[client], partial=partial)
        round_.wait(timeout=WAIT_SECONDS)
        average: dict[str, Any] = round_.fetch()
        return average


@contextmanager
def chosen(port: int | None) -> Iterator[Backend]:
    """Give what averages: memory, or an engine; one that ran before is left running.

    Parameters
    ----------
    port
        The port of the engine; 0 for a new engine on any free port; None to average in memory.
    """
    if port is None:
        yield InMemory()
        return
    port = port or demo.free_port()
    with demo.engine(port, Screen()):
        yield Engine(Federation(local=True, port=port))


def _weighted_sum(arrays: Sequence[Array], weights: Sequence[float]) -> Array:
    accumulator = np.empty(arrays[0].size, _F32.accumulator)
    scratch = np.empty_like(accumulator)
    for index, (array, weight) in enumerate(zip(arrays, weights, strict=True)):
        elements = np.ascontiguousarray(array, _F32.storage).reshape(-1)
        add(_F32, elements, weight, accumulator, scratch, first=index == 0)
    result = np.frombuffer(finish(_F32, accumulator, scratch), _F32.storage)
    return result.reshape(arrays[0].shape)
