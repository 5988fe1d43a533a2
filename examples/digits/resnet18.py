"""Updates of ResNet-18's size: the tensors of its state dict, filled with random numbers.

Names, shapes and order are torchvision's, for ten classes: 11,181,642 trained parameters, and
beside them what batch normalisation keeps: running means and variances, and counters (I64).
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Shapes = dict[str, tuple[int, ...]]

CLASSES = 10
PARAMETERS = 11_181_642

_COUNTER = "num_batches_tracked"
_BUFFERS = ("running_mean", "running_var", _COUNTER)


def shapes() -> Shapes:
    """Return the state dict's shapes by name."""
    result = dict(_convolution("conv1", "bn1", 3, 64, kernel=7))
    inputs = 64
    for layer, channels in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            prefix = f"layer{layer}.{block}"
            result |= _convolution(f"{prefix}.conv1", f"{prefix}.bn1", inputs, channels, kernel=3)
            result |= _convolution(f"{prefix}.conv2", f"{prefix}.bn2", channels, channels, kernel=3)
            if inputs != channels:
                shortcut = f"{prefix}.downsample"
                result |= _convolution(f"{shortcut}.0", f"{shortcut}.1", inputs, channels, kernel=1)
            inputs = channels
    return result | {"fc.weight": (CLASSES, inputs), "fc.bias": (CLASSES,)}


def trained_parameters() -> int:
    """Return the number of parameters that training changes by gradients."""
    return sum(math.prod(shape) for name, shape in shapes().items() if not name.endswith(_BUFFERS))


def random_update(seed: int, batches: int) -> dict[str, Array]:
    """Draw an update: float32 numbers of a plausible size, and the batches trained as counters."""
    rng = np.random.default_rng(seed)
    update: dict[str, Array] = {}
    for name, shape in shapes().items():
        if name.endswith(_COUNTER):
            update[name] = np.array(batches, np.int64)
        else:
            fan_in = math.prod(shape[1:])
            scale = np.float32(0.01 / math.sqrt(fan_in))
            update[name] = rng.standard_normal(shape, np.float32) * scale
    return update


def _convolution(
    name: str, norm: str, inputs: int, outputs: int, *, kernel: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (outputs, inputs, kernel, kernel)
    for tensor in ("weight", "bias", "running_mean", "running_var"):
        yield f"{norm}.{tensor}", (outputs,)
    yield f"{norm}.{_COUNTER}", ()
