"""Write the test vectors."""

from pathlib import Path

import ml_dtypes
import numpy as np

from tests import compressed, reference
from tests.compressed import UNIT_BYTES, random_entries, rows_of

HERE = Path(__file__).parent
SCALES = [1e30, 1.5, -0.75, 0.0, 2.0**-126, 2.0**-133]


def vector(codec: str) -> bytes:
    """Return a compressed update."""
    rng = np.random.default_rng(42)
    tensors = {
        "all": np.empty((8, 32) if codec != "int4" else (32,), "f4"),
        "scales": np.empty((3, 64), "f4"),
        "narrow": np.empty(41, ml_dtypes.bfloat16),
        "plain": np.array([0.5, -1, 2], "f4"),
    }
    units = {
        name: rng.integers(0, 256, (rows_of(tensors[name]), UNIT_BYTES[codec]), np.uint8)
        for name in ("all", "scales", "narrow")
    }
    for name, scales in (("all", [1.0]), ("scales", SCALES), ("narrow", [0.3, 7.7])):
        rows = np.resize(np.array(scales).astype(ml_dtypes.bfloat16), len(units[name]))
        units[name][:, :2] = rows.view(np.uint8).reshape(-1, 2)
    if codec == "int4":
        units["all"][0, 2:] = [low | (low + 8) % 16 << 4 for low in range(16)]
    else:
        units["all"][:, 2:] = np.arange(256, dtype=np.uint8).reshape(8, 32)
    if codec == "fp8":
        for name in ("scales", "narrow"):
            values = units[name][:, 2:]
            values[values & 127 == 127] = 0x80
    return compressed.write(codec, tensors, units, {"num_samples": "1"})


def entries() -> bytes:
    """Return an update whose tensors are in units of entries."""
    rng = np.random.default_rng(42)
    tensors = {
        "two.units": np.zeros((3, 87_400), "f4"),
        "narrow": np.zeros(200, ml_dtypes.bfloat16),
        "none": np.zeros(9, "f4"),
        "plain": np.array([0.5, -1, 2], "f4"),
    }
    units = {
        "two.units": random_entries(rng, tensors["two.units"], 0.0002),
        "narrow": random_entries(rng, tensors["narrow"], 0.05),
        "none": [bytes(4)],
    }
    return compressed.write("topk", tensors, units, {"num_samples": "1"})


def write() -> None:
    """Write all files."""
    for codec in (*UNIT_BYTES, "topk"):
        blob = vector(codec) if codec in UNIT_BYTES else entries()
        (HERE / f"{codec}.safetensors").write_bytes(blob)
        tensors = compressed.read(blob)
        if codec == "topk":  # The elements that are not zero: a million zeros are no vector.
            tensors = {name: t for name, t in tensors.items() if t.size < 1000} | {
                "two.units.places": np.flatnonzero(tensors["two.units"]),
                "two.units.values": tensors["two.units"][tensors["two.units"] != 0],
            }
        decoded = reference.encode(tensors, {"num_samples": "1"})
        (HERE / f"{codec}.decoded.safetensors").write_bytes(decoded)


if __name__ == "__main__":
    write()
