"""The digits of one run: shared out over clients alike, or unevenly."""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

import data
from data import Samples

IID: Final = "IID"
NON_IID: Final = "non-IID"
SPLITS: Final = (IID, NON_IID)

ALPHA: Final = 0.3
"""The parameter of the Dirichlet distribution: a few clients have most images of a digit."""


class Digits(NamedTuple):
    """The images of each client, and the test images."""

    clients: dict[str, Samples]
    test: Samples


def load(
    split: str,
    clients: int,
    seed: int,
    source: Callable[[int], tuple[Samples, Samples]] = data.load,
) -> Digits:
    """Share the digits out over clients.

    Parameters
    ----------
    split
        ``IID``: at random, in shares that differ by one image at most; ``non-IID``: by
        :func:`data.split`.
    clients
        The number of clients.
    seed
        The same seed gives the same images to the same clients.
    source
        Returns the images to train on and those to test with, for a seed.
    """
    train, test = source(seed)
    if split == IID:
        order = np.random.default_rng(seed).permutation(len(train.labels))
        parts = np.array_split(order, clients)
    else:
        parts = data.split(train.labels, clients, ALPHA, seed)
    return Digits(
        {
            client: Samples(train.images[part], train.labels[part])
            for client, part in zip(names(clients), parts, strict=True)
        },
        test,
    )


def names(clients: int) -> list[str]:
    """Return ids in whose order, as text, the clients' numbers are."""
    return [f"client-{number:02}" for number in range(1, clients + 1)]
