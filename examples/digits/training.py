"""Clients who train a network together, and beside it each of them alone."""

from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np

import data
import network
from data import Samples
from network import Parameters, Training
from plain_numpy import Update

CLIENTS: Final = tuple(f"client-{number}" for number in range(1, 6))
SEED: Final = 0

_UNEVENNESS: Final = 0.2
_NETWORK_SIZES: Final = (64, 64, 32, 10)
_LOCAL: Final = Training(epochs=3, batch_size=16, learning_rate=0.05, momentum=0.9)


class Accuracies(NamedTuple):
    """Shares of the test images that are recognised: by the model of all, and by those alone."""

    together: float
    best_alone: float
    mean_alone: float


class FederatedTraining:
    """The clients' side of the training; averaging the updates is left to the caller.

    Attributes
    ----------
    clients
        Each client's images, which never leave it.
    test
        Images that nobody trains on.
    model
        The network trained together.
    """

    def __init__(self) -> None:
        train, self.test = data.load(SEED)
        parts = data.split(train.labels, len(CLIENTS), _UNEVENNESS, SEED)
        self.clients = {
            client: Samples(train.images[part], train.labels[part])
            for client, part in zip(CLIENTS, parts, strict=True)
        }
        self.model = network.initialise(_NETWORK_SIZES, SEED)
        self._alone = dict.fromkeys(CLIENTS, self.model)
        self._round = 0

    def images_by_digit(self) -> dict[str, list[int]]:
        """Count each client's images of 0, 1, …, 9."""
        return {
            client: np.bincount(labels, minlength=10).tolist()
            for client, (_, labels) in self.clients.items()
        }

    def train(self) -> dict[str, Update]:
        """Train one round at every client, and return how each would change the model.

        The clients alone train for as many epochs, on from where they were.
        """
        self._round += 1
        self._alone = {client: self._trained(client, self._alone[client]) for client in CLIENTS}
        return {client: self._update(client) for client in CLIENTS}

    def apply(self, average: Mapping[str, network.Array]) -> None:
        """Change the model as the averaged update says."""
        self.model = {name: array + average[name] for name, array in self.model.items()}

    def accuracies(self) -> Accuracies:
        """Test the model, and beside it those of the clients alone."""
        alone = [network.accuracy(model, *self.test) for model in self._alone.values()]
        together = network.accuracy(self.model, *self.test)
        return Accuracies(together, max(alone), float(np.mean(alone)))

    def _update(self, client: str) -> Update:
        trained = self._trained(client, self.model)
        delta = {name: array - self.model[name] for name, array in trained.items()}
        return Update(delta, samples=len(self.clients[client].labels))

    def _trained(self, client: str, model: Parameters) -> Parameters:
        # Every client and round shuffles otherwise, every run the same.
        seed = 1000 * self._round + CLIENTS.index(client)
        return network.train(model, *self.clients[client], _LOCAL, seed)
