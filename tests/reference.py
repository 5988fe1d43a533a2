"""What the project is measured against, written without it: a plain numpy loop and plain files."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

NUMPY = {
    "F64": np.dtype("f8"),
    "F32": np.dtype("f4"),
    "F16": np.dtype("f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("i8"),
    "I32": np.dtype("i4"),
    "I16": np.dtype("i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("u8"),
    "U32": np.dtype("u4"),
    "U16": np.dtype("u2"),
    "U8": np.dtype("u1"),
}
NAMES = {dtype: name for name, dtype in NUMPY.items()}


def average(
    updates: Sequence[Mapping[str, Array]],
    samples: Sequence[int],
    *,
    tree: Sequence[int] = (),
    counts: bool = False,
) -> dict[str, Array]:
    """Average updates, given in client order, tensor by tensor, in a plain loop.

    With ``tree``, consecutive groups of these sizes are added first, level by level; with
    ``counts``, updates are weighted by samples and the sum is divided in the end.
    """
    total = sum(samples)
    result = {}
    for name, model in updates[0].items():
        integer = model.dtype.kind in "iu"
        wide = np.dtype("f8" if integer or model.dtype.itemsize == 8 else "f4")
        weights = [np.array(n if counts else n / total).astype(wide) for n in samples]
        with np.errstate(all="ignore"):
            sums: list[Array] = [
                update[name].astype(wide) * weight
                for update, weight in zip(updates, weights, strict=True)
            ]
            for size in [*tree, len(sums)]:
                sums = [add_up(sums[at : at + size]) for at in range(0, len(sums), size)]
            [acc] = sums
            if counts:
                acc = acc / np.array(total).astype(wide)
            if integer:
                acc = np.rint(acc)
            result[name] = np.asarray(acc).astype(model.dtype)
    return result


def weighted(updates: Sequence[Mapping[str, Array]], weights: Sequence[float]) -> dict[str, Array]:
    """Add updates with any weights, tensor by tensor, in a plain loop."""
    result = {}
    for name, model in updates[0].items():
        integer = model.dtype.kind in "iu"
        wide = np.dtype("f8" if integer or model.dtype.itemsize == 8 else "f4")
        acc = add_up(
            [u[name].astype(wide) * wide.type(w) for u, w in zip(updates, weights, strict=True)]
        )
        result[name] = np.asarray(np.rint(acc) if integer else acc).astype(model.dtype)
    return result


def step(
    optimizer: str,
    settings: Mapping[str, float],
    number: int,
    model: Mapping[str, Array],
    update: Mapping[str, Array],
    state: Mapping[str, Mapping[str, Array]],
    *,
    models: bool = False,
    buffers: Collection[str] = (),
) -> tuple[dict[str, Array], dict[str, dict[str, Array]]]:
    """Take a server optimizer's step, tensor by tensor; ``state`` is empty before the first.

    Sums are formed as :func:`average` forms them; with ``models`` the update is the average model.
    Integers and ``buffers`` are averaged, whatever the optimizer.
    """
    result: dict[str, Array] = {}
    kept: dict[str, dict[str, Array]] = {"momentum": {}, "variance": {}}
    for name, tensor in model.items():
        integer = tensor.dtype.kind in "iu"
        wide = np.dtype("f8" if integer or tensor.dtype.itemsize == 8 else "f4")
        x: Array = tensor.astype(wide)
        u: Array = update[name].astype(wide)
        d: Array = u - x if models else u
        none: Array = np.zeros(x.shape, wide)
        m: Array = state["momentum"][name] if state else none
        v: Array = state["variance"][name] if state and name in state["variance"] else none
        new: Array
        rate = settings["learning_rate"]
        if integer or name in buffers:
            new, m, v = u if models else x + d, none, none
        elif optimizer == "fedavg":
            new = u if models and rate == 1 else x + rate * d
        elif optimizer == "fedavgm":
            m = settings["momentum"] * m + d
            new = x + rate * m
        elif optimizer == "fedadagrad":
            v = v + d * d
            root: Array = np.sqrt(v) + settings["tau"]
            new = x + rate * d / root
        else:
            first, second = settings["beta_1"], settings["beta_2"]
            m = first * m + (1 - first) * d
            if optimizer == "fedyogi":
                v = v - (1 - second) * (d * d) * np.sign(v - d * d)
                root = np.sqrt(v) + settings["tau"]
                new = x + rate * m / root
            else:
                v = second * v + (1 - second) * (d * d)
                grown = number + 1.0
                wider = rate * np.sqrt(1 - np.power(second, grown)) / (1 - np.power(first, grown))
                root = np.sqrt(v) + settings["tau"]
                new = x + np.float64(wider) * m / root
        new = np.asarray(new).astype(wide)
        kept["momentum"][name], kept["variance"][name] = m, v
        if integer:
            bounds = np.iinfo(tensor.dtype)
            new = np.clip(np.rint(new), float(bounds.min), float(bounds.max))
        result[name] = new.astype(tensor.dtype)
    return result, kept


def add_up(addends: Sequence[Array]) -> Array:
    """Add one after another."""
    acc = addends[0]
    for addend in addends[1:]:
        acc = acc + addend
    return acc


def encode(
    tensors: Mapping[str, Array],
    metadata: Mapping[str, str] | None = None,
    *,
    order: Sequence[str] | None = None,
) -> bytes:
    """Write a safetensors object by hand, in the given order of tensors."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata is not None else {}
    data = b""
    for name in order or list(tensors):
        raw = np.ascontiguousarray(tensors[name]).tobytes()
        header[name] = {
            "dtype": NAMES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def decode(blob: bytes) -> dict[str, Array]:
    """Read a safetensors object by hand."""
    length = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + length])
    header.pop("__metadata__", None)
    data = blob[8 + length :]
    tensors: dict[str, Array] = {
        name: np.frombuffer(
            data[entry["data_offsets"][0] : entry["data_offsets"][1]], NUMPY[entry["dtype"]]
        ).reshape(entry["shape"])
        for name, entry in header.items()
    }
    return tensors


def random_tensor(rng: np.random.Generator, dtype: str, shape: Sequence[int]) -> Array:
    """Draw a tensor of any type."""
    kind = NUMPY[dtype]
    if kind.kind in "iu":
        bounds = np.iinfo(kind)
        low, high = max(bounds.min, -(2**40)), min(bounds.max, 2**40)
        whole: Array = np.asarray(rng.integers(low, high, shape, dtype="i8", endpoint=True))
        return whole.astype(kind)
    drawn: Array = np.asarray(rng.standard_normal(shape))
    return drawn.astype(kind)


def _share(beta: float, count: int) -> int:
    """Return ⌊βN⌋ as by hand: a β of 0.29 is 29 in 100, and one of 1 / 49 is 1 in 49."""
    return math.floor(Fraction(beta).limit_denominator(10_000) * count)


def columns(
    updates: Sequence[Mapping[str, Array]], rule: str, beta: float = 0.0, f: int = 0
) -> dict[str, Array]:
    """Combine updates by an element-wise rule, each column sorted by numpy.

    Those of ``bulyan`` are the selected ones.
    """
    result = {}
    for name, model in updates[0].items():
        integer = model.dtype.kind in "iu"
        wide = np.dtype("f8" if integer or model.dtype.itemsize == 8 else "f4")
        rows = np.stack([update[name].astype(wide) for update in updates])
        rows = np.sort(np.where(rows == 0, np.abs(rows), rows), axis=0)
        if rule == "sign":
            found = np.sign(np.sum(np.sign(rows), axis=0))
        elif rule == "bulyan":
            found = _around_median(rows, len(rows) - 2 * f)
        else:
            count = len(rows)
            cut = (count - 1) // 2 if rule == "median" else _share(beta, count)
            kept = list(rows[cut : count - cut])
            found = add_up(kept) / wide.type(len(kept))
        result[name] = np.asarray(np.rint(found) if integer else found).astype(model.dtype)
    return result


def _around_median(rows: Array, closest: int) -> Array:
    """Return the mean of the elements of sorted columns that are closest to the median."""
    flat = rows.reshape(len(rows), -1)
    found = np.empty(flat.shape[1], rows.dtype)
    for at, column in enumerate(flat.T):
        middle = (column[(len(column) - 1) // 2] + column[len(column) // 2]) / rows.dtype.type(2)
        # The sort is stable, so of two that are equally close the smaller one comes first.
        near = sorted(column, key=lambda value: abs(value - middle))[:closest]
        found[at] = add_up([np.asarray(value) for value in sorted(near)]) / rows.dtype.type(closest)
    return found.reshape(rows.shape[1:])
