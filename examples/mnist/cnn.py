"""A small convolutional network in PyTorch, for the clients of mnist.py."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from gradshard.torch import load
from gradshard_core.records.training_state import Invitation
from mnist import BATCH, Client

torch.set_num_threads(1)


def network() -> nn.Sequential:
    """Return a new network of 20,794 parameters, the same one whenever it is made."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 8, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Linear(144, 112),
        nn.ReLU(),
        nn.Linear(112, 10),
    )


def weights(of: nn.Module) -> dict[str, Any]:
    """Return a network's tensors as arrays."""
    return {name: tensor.numpy().copy() for name, tensor in of.state_dict().items()}


class TorchClient(Client):
    """A client that trains the network."""

    def train(self, model: Mapping[str, Any], invitation: Invitation) -> Any:
        """Train for the epochs and with the learning rate of the round."""
        net = network()
        net.load_state_dict(load(net.state_dict(), model))
        torch.manual_seed(hash_of(self.name, invitation.number))
        optimizer = torch.optim.SGD(
            net.parameters(), lr=float(invitation.settings["learning_rate"]), momentum=0.9
        )
        images, labels = torch.from_numpy(self.own.images), torch.from_numpy(self.own.labels)
        loss = torch.zeros(())
        for _ in range(int(invitation.settings["epochs"])):
            for batch in torch.randperm(len(labels)).split(BATCH):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(net(images[batch]), labels[batch])
                loss.backward()
                optimizer.step()
        return weights(net), len(labels), {"loss": float(loss.detach())}

    def evaluate(self, model: Mapping[str, Any], _invitation: Invitation) -> Any:
        """Return the share of the test images that are recognised."""
        net = network()
        net.load_state_dict(load(net.state_dict(), model))
        with torch.no_grad():
            found = net(torch.from_numpy(self.test.images)).argmax(dim=1).numpy()
        return {"accuracy": float(np.mean(found == self.test.labels))}, len(self.test.labels)


def hash_of(client: str, number: int) -> int:
    """Return a seed that depends on client and round alone."""
    return int(np.random.default_rng([number, *client.encode()]).integers(2**31))
