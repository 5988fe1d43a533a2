"""The change that training made to a model."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from gradshard.updates.tensors import Array, as_stored
from gradshard_core.errors import UpdateError
from gradshard_core.formats.dtypes import DTYPES
from gradshard_core.formats.tensor_layout import shorten

_BF16: Final = "BF16"


def change_of(before: Mapping[str, Array], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return trained tensors less the model, in the model's types.

    Parameters
    ----------
    before
        The model.
    after
        The trained tensors, all or some of the model's: numpy arrays or torch tensors.

    Returns
    -------
    dict
        For each of the trained tensors its difference.

    Raises
    ------
    UpdateError
        There is no such tensor in the model, it has another type or shape, or it is unsigned and
        fell.
    """
    changes: dict[str, Any] = {}
    for name, tensor in after.items():
        if name not in before:
            raise UpdateError(f"tensor {shorten(str(name))!r} is not in the model")
        old = before[name]
        dtype, stored = as_stored(name, tensor)
        old_dtype, _ = as_stored(name, old)
        if (dtype, stored.shape) != (old_dtype, old.shape):
            raise UpdateError(
                f"tensor {shorten(name)!r} is {dtype} {list(stored.shape)} after training, and "
                f"{old_dtype} {list(old.shape)} in the model"
            )
        new = stored.view(old.dtype) if dtype == _BF16 else stored
        if DTYPES[dtype].storage.kind == "u" and dtype != _BF16 and bool(np.any(new < old)):
            raise UpdateError(
                f"tensor {shorten(name)!r} is {dtype} and decreased in training, and its change "
                'cannot be below 0: train with "updates": "models" in server_optimizer'
            )
        changes[name] = np.subtract(new, old)
    return changes
