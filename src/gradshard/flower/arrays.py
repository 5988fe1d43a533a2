"""Models in Flower's messages, and the record that tells where they are."""

# Annotations stay unread, so that the documentation can be built without Flower.
from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord

from gradshard_core.formats.dtypes import DTYPES
from gradshard_core.formats.headers import Header, header_length, parse_header
from gradshard_core.formats.tensor_layout import PREFIX_BYTES, Layout

Numpy = npt.NDArray[Any]

RECORD: Final = "gradshard"
"""The ConfigRecord of a message that is between :class:`.S3FedAvg` and :func:`.s3_mod`."""

_NUMPY: Final = "numpy.ndarray"


def view(array: Array) -> Numpy:
    """Return a Flower array's elements where they are; ``Array.numpy`` copies them."""
    file = io.BytesIO(array.data)
    if array.stype != _NUMPY or np.lib.format.read_magic(file) != (1, 0):
        return np.asarray(array.numpy())
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elements: Numpy = np.frombuffer(array.data, dtype, offset=file.tell())
    return elements.reshape(shape, order="F" if is_fortran else "C")


def read_arrays(path: Path, names: Iterable[str]) -> tuple[ArrayRecord, Layout]:
    """Read a .safetensors file as Flower's arrays, one at a time, in this order."""
    with path.open("rb") as file:
        header = _read_header(file.read(PREFIX_BYTES), file, path.stat().st_size)
        tensors = {tensor.name: tensor for tensor in header.layout.tensors}
        arrays = {}
        for name in names:
            tensor = tensors[name]
            dtype = DTYPES[tensor.dtype].storage
            npy = io.BytesIO()
            np.lib.format.write_array_header_1_0(
                npy,
                {
                    "descr": np.lib.format.dtype_to_descr(dtype),
                    "fortran_order": False,
                    "shape": tensor.shape,
                },
            )
            file.seek(header.data_offset + tensor.start)
            npy.write(file.read(tensor.end - tensor.start))
            arrays[name] = Array(str(dtype), tensor.shape, _NUMPY, npy.getvalue())
    return ArrayRecord(arrays), header.layout


def _read_header(prefix: bytes, file: io.BufferedReader, nbytes: int) -> Header:
    return parse_header(file.read(header_length(prefix, nbytes)), nbytes)
