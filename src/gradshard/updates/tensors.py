"""Conversion of clients' tensors to and from the bytes of an update."""

import sys
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gradshard_core.errors import UpdateError
from gradshard_core.formats.dtypes import DTYPES
from gradshard_core.formats.headers import header_length, parse_header
from gradshard_core.formats.tensor_layout import PREFIX_BYTES, Layout, check_not_empty, shorten

Array = npt.NDArray[Any]

_NAMES: Final = {dtype.storage: dtype.name for dtype in DTYPES.values() if dtype.name != "BF16"}
_BF16_BITS: Final = DTYPES["BF16"].storage
_METADATA: Final = "__metadata__"


def pack(tensors: Mapping[str, Any]) -> tuple[Layout, list[memoryview]]:
    """Return the layout of tensors and views of their memory, in its order.

    A tensor is copied only where its memory does not hold the bytes as they are sent: when it is
    not contiguous, not little-endian, or on another device.

    Parameters
    ----------
    tensors
        By name: numpy arrays and scalars (``ml_dtypes.bfloat16`` too), torch tensors, Python
        numbers as scalars, or whatever else numpy takes for an array by its ``__array__``.

    Returns
    -------
    Layout
        The tensors in the mapping's order, but wider types first, so that each is aligned.
    list of memoryview
        The bytes of each, in the layout's order.

    Raises
    ------
    UpdateError
        A tensor is of an unsupported type, or there is not one element.
    """
    arrays = [(check_name(name), *as_stored(name, tensor)) for name, tensor in tensors.items()]
    arrays.sort(key=lambda entry: -entry[2].itemsize)
    layout = Layout.pack((name, dtype, array.shape) for name, dtype, array in arrays)
    check_not_empty(layout)
    return layout, [memoryview(array.reshape(-1).view(np.uint8)) for _, _, array in arrays]


def unpack(data: bytearray) -> dict[str, Array]:
    """Return the arrays of a safetensors object, as views of ``data``.

    BF16 becomes ``ml_dtypes.bfloat16``.
    """
    end = PREFIX_BYTES + header_length(bytes(data[:PREFIX_BYTES]), len(data))
    layout, _, offset = parse_header(bytes(data[PREFIX_BYTES:end]), len(data))
    arrays: dict[str, Array] = {}
    for tensor in layout.tensors:
        dtype = _bfloat16() if tensor.dtype == "BF16" else DTYPES[tensor.dtype].storage
        array: Array = np.ndarray(tensor.shape, dtype, buffer=data, offset=offset + tensor.start)
        # Narrower tensors before it may have left it where some libraries cannot use it.
        arrays[tensor.name] = array if array.flags.aligned else array.copy()
    return arrays


def check_name(name: object) -> str:
    """Return the name of a tensor.

    Raises
    ------
    UpdateError
        A safetensors header cannot hold it.
    """
    if not isinstance(name, str):
        raise UpdateError(f"tensor name {name!r} is not text")
    if name == _METADATA:
        raise UpdateError(f"a tensor cannot be named {_METADATA}: safetensors keeps that name")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UpdateError(f"tensor name {name!r} cannot be written as UTF-8") from None
    return name


def as_stored(name: str, tensor: Any) -> tuple[str, Array]:
    """Return a tensor's dtype, and its elements as safetensors stores them.

    Raises
    ------
    UpdateError
        The tensor is of an unsupported type.
    """
    if _is_torch(tensor):
        array = _from_torch(name, tensor)
    elif isinstance(tensor, int | float) or hasattr(tensor, "__array__"):
        array = np.asarray(tensor)
    else:
        raise UpdateError(f"tensor {name!r} is a {type(tensor).__name__}, not an array")
    if array.dtype.name == "bfloat16":
        return "BF16", np.ascontiguousarray(array).view(_BF16_BITS).reshape(array.shape)
    stored = array.dtype.newbyteorder("<")
    if stored not in _NAMES:
        raise UpdateError(
            f"tensor {shorten(name)!r} has dtype {array.dtype}; supported: {', '.join(DTYPES)}"
        )
    # ascontiguousarray makes a scalar one-dimensional.
    return _NAMES[stored], np.ascontiguousarray(array, stored).reshape(array.shape)


def _is_torch(tensor: Any) -> bool:
    return any(base.__module__.partition(".")[0] == "torch" for base in type(tensor).__mro__)


def _from_torch(name: str, tensor: Any) -> Array:
    torch = sys.modules["torch"]
    try:
        if tensor.dtype == torch.bfloat16:
            # numpy has no such type: take the bits.
            bits: Array = tensor.detach().cpu().contiguous().view(torch.int16).numpy()
            return bits.view(_bfloat16())
        array: Array = tensor.numpy(force=True)
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise UpdateError(
            f"tensor {shorten(name)!r} ({tensor.dtype}) cannot be read: {shorten(str(error))}"
        ) from None
    return array


def _bfloat16() -> np.dtype[Any]:
    # Only updates that hold BF16 pay for the import.
    import ml_dtypes

    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype
