"""Compressed updates read and written by hand, from docs/formats.md alone."""

import json
import math
import struct
from collections.abc import Collection, Mapping, Sequence
from functools import cache

import ml_dtypes
import numpy as np

from tests.reference import NAMES, NUMPY, Array

BLOCK = 32
UNIT_BYTES = {"int8": 34, "fp8": 34, "int4": 18}


def parts_of(codec: str, unit: bytes) -> tuple[float, Sequence[float]]:
    """Return the scale of a unit, and what it multiplies."""
    (bits,) = struct.unpack("<H", unit[:2])
    (scale,) = struct.unpack("<f", struct.pack("<I", bits << 16))
    if codec == "int8":
        return scale, struct.unpack("32b", unit[2:])
    if codec == "int4":
        nibbles = [nibble for byte in unit[2:] for nibble in (byte & 15, byte >> 4)]
        return scale, [nibble - 16 if nibble > 7 else nibble for nibble in nibbles]
    return scale, [e4m3(code) for code in unit[2:]]


def decode_units(codec: str, units: Sequence[bytes]) -> Array:
    """Return the elements of units, of shape (n, 32)."""
    found = [parts_of(codec, unit) for unit in units]
    scales = np.array([scale for scale, _ in found], np.float32).reshape(-1, 1)
    values = np.array([values for _, values in found], np.float32).reshape(-1, BLOCK)
    with np.errstate(all="ignore"):
        product: Array = scales * values
    return product


def decode_unit(codec: str, unit: bytes) -> Array:
    """Return the 32 elements of a unit."""
    elements: Array = decode_units(codec, [unit])[0]
    return elements


@cache
def e4m3(code: int) -> float:
    sign, exponent, mantissa = -1.0 if code >> 7 else 1.0, code >> 3 & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


def decode_tensor(codec: str, units: Array, dtype: str, shape: Sequence[int]) -> Array:
    """Return a tensor from its units, of shape (n, bytes of a unit)."""
    elements = decode_units(codec, [unit.tobytes() for unit in units]).ravel()[: math.prod(shape)]
    with np.errstate(all="ignore"):
        return elements.astype(NUMPY[dtype]).reshape(shape)


UNIT, CHUNK = 262_144, 65_536


def decode_entries(stored: bytes, dtype: str, shape: Sequence[int], units: Sequence[int]) -> Array:
    """Return a tensor from its units of entries, whose sizes are given."""
    elements = np.zeros(math.prod(shape), NUMPY[dtype])
    size = elements.itemsize
    for number, nbytes in enumerate(units):
        unit, stored = stored[:nbytes], stored[nbytes:]
        out = elements[number * UNIT : (number + 1) * UNIT]
        chunks = -(-len(out) // CHUNK)
        counts = struct.unpack(f"<{chunks}I", unit[: 4 * chunks])
        total = (nbytes - 4 * chunks) // (2 + size)
        if sum(counts) != total:
            out[:] = math.nan
            continue
        indices = struct.unpack(f"<{total}H", unit[4 * chunks : 4 * chunks + 2 * total])
        values = np.frombuffer(unit[4 * chunks + 2 * total :], NUMPY[dtype])
        places = [chunk * CHUNK for chunk, count in enumerate(counts) for _ in range(count)]
        places = [place + index for place, index in zip(places, indices, strict=True)]
        is_good = all(a < b for a, b in zip([-1, *places], [*places, len(out)], strict=True))
        if is_good:
            out[places] = values
        else:
            out[:] = math.nan
    return elements.reshape(shape)


def random_entries(rng: np.random.Generator, tensor: Array, fraction: float) -> list[bytes]:
    """Return units with random entries, at most one for eight elements of a unit."""
    units = []
    for start in range(0, tensor.size, UNIT):
        length = min(UNIT, tensor.size - start)
        count = rng.binomial(max(1, length // 8), min(1, 8 * fraction))
        places = np.sort(rng.choice(length, count, replace=False))
        counts = np.bincount(places // CHUNK, minlength=-(-length // CHUNK))
        values = (rng.standard_normal(count) * 1e3).astype(tensor.dtype)
        pieces = (counts.astype("<u4"), (places % CHUNK).astype("<u2"), values)
        units.append(b"".join(piece.tobytes() for piece in pieces))
    return units


def rows_of(tensor: Array) -> int:
    return -(-tensor.size // BLOCK)


def write(
    codec: str,
    tensors: Mapping[str, Array],
    units: Mapping[str, Array | list[bytes]],
    metadata: Mapping[str, str],
    order: Collection[str] = (),
) -> bytes:
    """Write an update whose tensors in ``units`` stand in them; the others stand as they are.

    ``tensors`` give dtypes and shapes, and the elements of the others.
    """
    header: dict[str, object] = {}
    data = b""
    for name in order or tensors:
        given = units.get(name, tensors[name])
        stored = np.frombuffer(b"".join(given), "u1") if isinstance(given, list) else given
        raw = np.ascontiguousarray(stored).tobytes()
        header[name] = {
            "dtype": NAMES[stored.dtype],
            "shape": list(stored.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    encoded: dict[str, dict[str, object]] = {
        name: {"dtype": NAMES[tensors[name].dtype], "shape": list(tensors[name].shape)}
        for name in units
    }
    for name, given in units.items():
        if isinstance(given, list):
            encoded[name]["units"] = [len(unit) for unit in given]
    header["__metadata__"] = {**metadata, "codec": codec, "encoded": json.dumps(encoded)}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def read(blob: bytes) -> dict[str, Array]:
    """Return the tensors of an update, decoded if it is compressed."""
    (length,) = struct.unpack("<Q", blob[:8])
    header, data = json.loads(blob[8 : 8 + length]), blob[8 + length :]
    metadata = header.pop("__metadata__")
    encoded = json.loads(metadata.get("encoded", "{}"))
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        stored = np.frombuffer(data[start:end], NUMPY[entry["dtype"]]).reshape(entry["shape"])
        if name in encoded and metadata["codec"] == "topk":
            stored = decode_entries(stored.tobytes(), **encoded[name])
        elif name in encoded:
            stored = decode_tensor(metadata["codec"], stored, **encoded[name])
        tensors[name] = stored
    return tensors


def random_units(rng: np.random.Generator, codec: str, rows: int) -> Array:
    """Return units with any values, and finite scales of any size that a sum survives."""
    units = rng.integers(0, 256, (rows, UNIT_BYTES[codec]), np.uint8)
    powers: Array = 10.0 ** rng.integers(-42, 15, rows)
    scales: Array = rng.standard_normal(rows) * powers
    scales[rng.random(rows) < 0.1] = 0
    units[:, :2] = scales.astype(ml_dtypes.bfloat16).view(np.uint8).reshape(rows, 2)
    if codec == "fp8":  # no NaN
        units[:, 2:][units[:, 2:] & 127 == 127] = 1
    return units
