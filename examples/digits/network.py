"""A small neural network in numpy: fully connected layers with ReLU between them.

Its parameters are a plain dict of arrays by name, which is what a federated round takes and gives:
``layer0.weight``, ``layer0.bias``, ``layer1.weight``, … from the input to the output.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Parameters = dict[str, Array]


@dataclass(frozen=True)
class Training:
    """The settings of the training: stochastic gradient descent with momentum.

    Attributes
    ----------
    epochs
        Passes over the samples.
    batch_size
        Samples per step.
    learning_rate
        Size of a step.
    momentum
        The share of the previous step that is kept.
    """

    epochs: int = 3
    batch_size: int = 16
    learning_rate: float = 0.05
    momentum: float = 0.9


def initialise(sizes: Sequence[int], seed: int) -> Parameters:
    """Draw the parameters of a new network (He initialisation, float32).

    Parameters
    ----------
    sizes
        Numbers of inputs, of units in each hidden layer, and of classes.
    seed
        The same seed draws the same parameters.
    """
    rng = np.random.default_rng(seed)
    parameters: Parameters = {}
    for layer, (inputs, outputs) in enumerate(pairwise(sizes)):
        weight = rng.standard_normal((outputs, inputs)) * np.sqrt(2 / inputs)
        parameters[f"layer{layer}.weight"] = weight.astype(np.float32)
        parameters[f"layer{layer}.bias"] = np.zeros(outputs, np.float32)
    return parameters


def train(
    parameters: Parameters, images: Array, labels: Array, training: Training, seed: int
) -> Parameters:
    """Return the parameters after training; those given stay as they are."""
    rng = np.random.default_rng(seed)
    trained = {name: array.copy() for name, array in parameters.items()}
    velocity = {name: np.zeros_like(array) for name, array in parameters.items()}
    for _ in range(training.epochs):
        order = rng.permutation(len(labels))
        for start in range(0, len(order), training.batch_size):
            batch = order[start : start + training.batch_size]
            for name, gradient in backpropagate(trained, images[batch], labels[batch]):
                velocity[name] *= training.momentum
                velocity[name] -= training.learning_rate * gradient
                trained[name] += velocity[name]
    return trained


def backpropagate(
    parameters: Parameters, images: Array, labels: Array
) -> Iterator[tuple[str, Array]]:
    """Yield the loss's gradient by parameter, layer by layer from the output to the input.

    A layer's parameters may be changed as soon as its gradients are out: what the layers below
    need of it has been worked out by then.
    """
    inputs, logits = _forward(parameters, images)
    error = _softmax(logits)
    error[np.arange(len(labels)), labels] -= 1
    error /= len(labels)
    for layer in reversed(range(len(inputs))):
        weight_gradient = error.T @ inputs[layer]
        bias_gradient = error.sum(axis=0)
        if layer > 0:
            error = (error @ parameters[f"layer{layer}.weight"]) * (inputs[layer] > 0)
        yield f"layer{layer}.weight", weight_gradient
        yield f"layer{layer}.bias", bias_gradient


def loss(parameters: Parameters, images: Array, labels: Array) -> float:
    """Return the mean cross-entropy."""
    _, logits = _forward(parameters, images)
    likelihoods = _softmax(logits)[np.arange(len(labels)), labels]
    return float(-np.log(likelihoods).mean())


def accuracy(parameters: Parameters, images: Array, labels: Array) -> float:
    """Return the share of the images that are recognised."""
    _, logits = _forward(parameters, images)
    return float((logits.argmax(axis=1) == labels).mean())


def _forward(parameters: Parameters, images: Array) -> tuple[list[Array], Array]:
    """Return what went into each layer, and what came out of the last."""
    layers = len(parameters) // 2
    inputs = [images]
    for layer in range(layers):
        outputs = inputs[layer] @ parameters[f"layer{layer}.weight"].T
        outputs += parameters[f"layer{layer}.bias"]
        if layer < layers - 1:
            inputs.append(np.maximum(outputs, 0))
    return inputs, outputs


def _softmax(logits: Array) -> Array:
    # Less the largest, which cancels out, so that no exponential overflows.
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    likelihoods: Array = exponentials / exponentials.sum(axis=1, keepdims=True)
    return likelihoods
