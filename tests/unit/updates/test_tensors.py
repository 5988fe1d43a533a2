"""Arrays and tensors to bytes and back."""

import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import deserialize
from safetensors.numpy import load, save

from gradshard.updates.tensors import pack, unpack
from gradshard_core.errors import UpdateError
from gradshard_core.formats.tensor_layout import encode_header

EVERY_TYPE = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1"]


def packed(tensors: dict[str, Any]) -> bytearray:
    layout, views = pack(tensors)
    return bytearray(encode_header(layout, {}) + b"".join(views))


@pytest.mark.parametrize("dtype", EVERY_TYPE)
def test_every_type_comes_back_and_loads_with_safetensors(dtype: str) -> None:
    array = np.arange(12).reshape(3, 4).astype(dtype)
    data = packed({"t": array})
    for tensors in (unpack(data), load(bytes(data))):
        assert tensors["t"].dtype == array.dtype
        np.testing.assert_array_equal(tensors["t"], array)


def test_bfloat16_comes_back_as_bfloat16() -> None:
    array = np.array([[1.5, -2.0, np.inf]], ml_dtypes.bfloat16)
    data = packed({"t": array, "scalar": ml_dtypes.bfloat16(3)})
    back = unpack(data)
    assert back["t"].dtype == ml_dtypes.bfloat16
    assert back["t"].tobytes() == array.tobytes()
    assert back["scalar"].shape == ()
    # The numpy side of safetensors reads no BF16.
    assert dict(deserialize(bytes(data)))["t"]["data"] == array.tobytes()


def test_memory_is_not_copied() -> None:
    array = np.ones((100, 100), np.float32)
    _, [view] = pack({"t": array})
    assert np.shares_memory(np.frombuffer(view, np.uint8), array)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.arange(6, dtype="f4").reshape(3, 2).T,
        np.arange(12, dtype="f4").reshape(2, 6)[:, ::2],
        np.asfortranarray(np.arange(6, dtype="f8").reshape(2, 3)),
        np.arange(6, dtype="f4")[::-1],
    ],
)
def test_other_byte_orders_and_strides_are_converted(array: np.ndarray) -> None:
    back = unpack(packed({"t": array}))["t"]
    assert back.dtype == array.dtype.newbyteorder("<")
    np.testing.assert_array_equal(back, array)


def test_scalars_and_empty_tensors_keep_their_shapes() -> None:
    tensors = {"s": np.int64(7), "f": 0.5, "i": 3, "e": np.empty((0, 4), "f4")}
    back = unpack(packed(tensors))
    assert {name: array.shape for name, array in back.items()} == {
        "s": (),
        "f": (),
        "i": (),
        "e": (0, 4),
    }
    assert {name: array.tolist() for name, array in back.items()} == {
        "s": 7,
        "f": 0.5,
        "i": 3,
        "e": [],
    }
    assert back["f"].dtype == np.float64


def test_wider_types_come_first_else_the_given_order() -> None:
    tensors = {
        "z": np.ones(3, "u1"),
        "b": np.ones(1, "f4"),
        "a": np.ones(1, "f4"),
        "d": np.ones(1, "f8"),
    }
    layout, _ = pack(tensors)
    assert [tensor.name for tensor in layout.tensors] == ["d", "b", "a", "z"]


def test_unaligned_tensors_of_others_are_usable() -> None:
    header = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
    header += b'"b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}'
    data = bytearray(len(header).to_bytes(8, "little") + header + b"\1" + np.float32(2).tobytes())
    back = unpack(data)["b"]
    assert back.flags.aligned
    assert back.tolist() == [2.0]


def test_a_file_of_safetensors_itself_is_read() -> None:
    tensors = {"w": np.ones((2, 2), "f4"), "n": np.array(5)}
    back = unpack(bytearray(save(tensors)))
    np.testing.assert_array_equal(back["w"], tensors["w"])
    assert back["n"] == 5


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (np.array([True]), "bool"),
        (True, "bool"),
        (np.ones(1, complex), "complex128"),
        (np.array(["x"]), "<U1"),
        (np.array([object()]), "object"),
        (np.ones(1, ml_dtypes.float8_e4m3fn), "float8_e4m3fn"),
        (np.ones(1, np.longdouble), "float128"),
        ([1.0, 2.0], "list"),
        (None, "NoneType"),
        ("1.0", "str"),
    ],
)
def test_other_types_are_rejected_by_name(tensor: Any, reason: str) -> None:
    with pytest.raises(UpdateError, match=f"'fc.bias'.*{reason}"):
        pack({"good": np.ones(1), "fc.bias": tensor})


@pytest.mark.parametrize("tensors", [{}, {"e": np.empty((0, 3))}])
def test_an_empty_update_is_rejected(tensors: dict[str, Any]) -> None:
    with pytest.raises(UpdateError, match="empty"):
        pack(tensors)


@pytest.mark.parametrize("name", ["__metadata__", 3, "\ud800"])
def test_names_that_safetensors_cannot_hold_are_rejected(name: Any) -> None:
    with pytest.raises(UpdateError, match="name"):
        pack({name: np.ones(1)})


class FakeTensor:
    """As much of a torch tensor as is used, so that torch need not be installed."""

    def __init__(self, array: np.ndarray, dtype: str) -> None:
        self.array, self.dtype = array, dtype

    def detach(self) -> "FakeTensor":
        return self

    cpu = contiguous = detach

    def view(self, dtype: str) -> "FakeTensor":
        return FakeTensor(self.array.view(dtype), dtype)

    def numpy(self, *, force: bool = False) -> np.ndarray:
        if self.dtype not in {"float32", "int16"}:
            raise TypeError(f"Got unsupported ScalarType {self.dtype}")
        assert force or self.dtype == "int16"
        return self.array


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    module = ModuleType("torch")
    vars(module).update(bfloat16="bfloat16", int16="int16")
    monkeypatch.setitem(sys.modules, "torch", module)
    monkeypatch.setattr(FakeTensor, "__module__", "torch.nn.parameter")
    return SimpleNamespace(tensor=FakeTensor)


def test_torch_tensors(torch: SimpleNamespace) -> None:
    brain = np.array([1.5, -3.0], ml_dtypes.bfloat16)
    back = unpack(
        packed(
            {
                "f": torch.tensor(np.ones((2, 3), "f4"), "float32"),
                "b": torch.tensor(brain, "bfloat16"),
            }
        )
    )
    assert back["f"].shape == (2, 3)
    assert back["b"].tobytes() == brain.tobytes()


def test_torch_types_that_numpy_lacks_are_rejected(torch: SimpleNamespace) -> None:
    with pytest.raises(UpdateError, match=r"'w' \(float8_e5m2\) cannot be read"):
        pack({"w": torch.tensor(np.ones(1, "u1"), "float8_e5m2")})


def test_without_torch_its_module_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "gradshard.torch", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'gradshard\[torch\]'"):
        importlib.import_module("gradshard.torch")
