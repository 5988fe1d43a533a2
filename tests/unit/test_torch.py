"""State dicts and updates, with the real PyTorch: `make test-torch`."""

import re
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import deserialize

from gradshard.client.round import Round
from gradshard.updates.compression import Compression
from gradshard.updates.tensors import pack, unpack
from gradshard_core.errors import UpdateError
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.formats.tensor_layout import encode_header
from tests import compressed
from tests.unit.fakes import MemoryStack, MemoryStore

torch = pytest.importorskip("torch", reason="PyTorch is not installed: `make test-torch`")

from gradshard.torch import apply, buffers, delta, load, tensors  # noqa: E402 - only with torch

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16]


def sent(update: dict[str, Any]) -> dict[str, np.ndarray]:
    """What others read of an update that was submitted."""
    layout, views = pack(update)
    return unpack(bytearray(encode_header(layout, {}) + b"".join(views)))


def copied(state: Any) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in state.items()}


def small(dtype: Any, *numbers: float) -> Any:
    return torch.tensor(numbers, dtype=dtype)


def test_a_model_is_trained_averaged_and_goes_on() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    before = copied(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
    after = model.state_dict()
    update = delta(before, after)
    assert list(update) == list(after)
    assert update["1.num_batches_tracked"].item() == 3

    fresh = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    fresh.load_state_dict(before)
    state = fresh.state_dict()
    new = apply(state, sent(update), scale=0.5)
    assert isinstance(new, OrderedDict)
    # The versions that modules note: without them BatchNorm would take it for an old checkpoint.
    assert new._metadata == state._metadata  # type: ignore[attr-defined]
    fresh.load_state_dict(new)
    for name, tensor in before.items():
        if tensor.is_floating_point():
            step = np.float32(0.5) * (after[name].numpy() - tensor.numpy())
            assert new[name].numpy().tobytes() == (tensor.numpy() + step).tobytes(), name
    assert new["1.num_batches_tracked"].item() == 2  # 1.5, half to even


def test_a_model_goes_through_the_federation_and_comes_back() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)).bfloat16()
    model.register_buffer("mask", torch.tensor([True, False]))
    model.register_buffer("level", torch.tensor([250], dtype=torch.uint8))
    state = model.state_dict()
    kept = sent(tensors(state))
    # Of the layout that its updates have.
    assert pack(tensors(state))[0].shapes == pack(delta(state, state))[0].shapes
    fresh = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    loaded = load(fresh, kept)
    for name, tensor in state.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], torch.zeros(2) > 0 if name == "mask" else tensor), name
        assert not fresh[name].any()
    # A round may have taken it out of the narrow type's bounds.
    assert load(fresh, {"level": np.array([300])})["level"].item() == 255


def test_every_tensor_that_is_no_parameter_is_a_buffer() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    model[0].weight.requires_grad_(requires_grad=False)
    model.register_buffer("mask", torch.tensor([True, False]))
    model.register_buffer("scratch", torch.ones(2), persistent=False)
    model.register_buffer("ema", torch.ones(2))
    model.twin = model[1]
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    expected = {"ema"} | {f"{bn}.{name}" for bn in ("1", "twin") for name in statistics}
    assert set(buffers(model)) == expected


def test_tied_tensors_are_loaded_as_one() -> None:
    state = Tied().state_dict()
    loaded = load(state, sent(tensors(state)))
    assert len({tensor.data_ptr() for tensor in state.values()}) < len(state)
    for one in state:
        for other in state:
            tied = state[one].data_ptr() == state[other].data_ptr()
            assert (loaded[one] is loaded[other]) == tied


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"v": np.ones(2)}, "'v' of the model that was fetched is not in the model"),
        ({"w": np.ones(3)}, r"'w' of the model that was fetched has shape \[3\]"),
        ({"w": np.ones(2, "i8")}, "'w' of the model that was fetched is torch.int64"),
    ],
)
def test_models_that_do_not_fit(model: dict[str, Any], message: str) -> None:
    with pytest.raises(UpdateError, match=message):
        load({"w": torch.ones(2)}, model)


@pytest.mark.parametrize("dtype", FLOATS)
def test_floats_keep_their_type_and_come_back(dtype: Any) -> None:
    before, after = small(dtype, 1.0, -2.0, 0.5), small(dtype, 1.5, -2.25, 0.5)
    update = delta({"w": before}, {"w": after})
    assert update["w"].dtype == dtype
    for change in (update, sent(update)):
        new = apply({"w": before}, change)["w"]
        assert new.dtype == dtype
        assert torch.equal(new, after)


def test_bfloat16_travels_by_its_bits_and_is_added_in_float32() -> None:
    base = torch.randn(1000).bfloat16()
    change = torch.randn(1000).bfloat16()
    back = sent({"w": change.reshape(10, 100).T})["w"]
    assert back.dtype == ml_dtypes.bfloat16
    assert (
        back.tobytes() == change.reshape(10, 100).T.contiguous().view(torch.int16).numpy().tobytes()
    )
    new = apply({"w": base}, {"w": change}, scale=0.3)["w"]
    expected = base.float().numpy() + np.float32(0.3) * change.float().numpy()
    assert torch.equal(new, torch.from_numpy(expected).bfloat16())


def test_a_change_in_float32_is_added_to_a_smaller_type() -> None:
    new = apply({"w": small(torch.bfloat16, 1.0)}, {"w": np.array([2**-9 + 2**-8], "f4")})["w"]
    assert (new.dtype, new.item()) == (torch.bfloat16, 1 + 2**-7)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_travel_as_differences_that_may_be_negative(dtype: Any) -> None:
    before, after = small(dtype, 100, 7, 0), small(dtype, 90, 7, 100)
    update = delta({"n": before}, {"n": after})
    assert update["n"].dtype == torch.int64
    assert update["n"].tolist() == [-10, 0, 100]
    new = apply({"n": before}, sent(update))["n"]
    assert new.dtype == dtype
    assert new.tolist() == after.tolist()


def test_integers_are_rounded_half_to_even_and_held_in_bounds() -> None:
    state = {"n": small(torch.uint8, 10, 10, 250, 3)}
    assert apply(state, {"n": np.array([1, 3, 90, -90])}, 0.5)["n"].tolist() == [10, 12, 255, 0]
    large = 2**53 + 1
    assert apply({"n": torch.tensor(0)}, {"n": np.array(large)})["n"].item() == large


def test_tensors_that_are_not_contiguous() -> None:
    wide = torch.arange(24.0).reshape(4, 6)
    cases = {
        "transposed": wide.T,
        "strided": wide[:, ::2],
        "expanded": torch.ones(1).expand(5),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 3),
    }
    update = delta(cases, {name: tensor + 1 for name, tensor in cases.items()})
    back = sent(update)
    new = apply(cases, back)
    for name, tensor in cases.items():
        np.testing.assert_allclose(back[name], np.ones(tensor.shape), rtol=1e-6, err_msg=name)
        assert new[name].shape == tensor.shape
        np.testing.assert_allclose(new[name], tensor + 1, rtol=1e-6, err_msg=name)
    for name in ("transposed", "channels_last"):
        assert new[name].stride() == cases[name].stride()


class Tied(torch.nn.Module):  # type: ignore[misc, name-defined]
    """As language models have it: the embedding is the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(5, 3)
        self.head = torch.nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


def test_tied_tensors_share_their_difference_and_stay_tied() -> None:
    model = Tied()
    before = copied(model.state_dict())
    with torch.no_grad():
        model.head.weight += 1
    # Copied apart before training, tied after it: one pair all the same.
    update = delta({**before, "head.weight": before["embedding.weight"]}, model.state_dict())
    assert update["embedding.weight"] is update["head.weight"]
    _, views = pack(update)
    first, second = (np.frombuffer(view, np.uint8) for view in views)
    assert np.shares_memory(first, second)

    for part in (update, {"head.weight": update["head.weight"]}):
        new = apply(model.state_dict(), sent(part))
        assert new["embedding.weight"].data_ptr() == new["head.weight"].data_ptr()
        assert torch.equal(new["embedding.weight"], model.head.weight + 1)


def test_tied_tensors_that_were_copied_apart_have_the_same_layout() -> None:
    state = Tied().state_dict()
    [layout, _], [apart, _] = (pack(delta(s, s)) for s in (state, copied(state)))
    assert layout == apart


def test_views_of_the_same_memory_are_not_tied() -> None:
    def views(matrix: Any) -> dict[str, Any]:
        return {"whole": matrix, "transposed": matrix.T, "first row": matrix[:1]}

    before, after = views(torch.zeros(2, 2)), views(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    new = apply(before, sent(delta(before, after)))
    assert all(torch.equal(new[name], after[name]) for name in after)


def test_tied_tensors_with_different_changes_are_rejected() -> None:
    state = Tied().state_dict()
    update = {"embedding.weight": torch.ones(5, 3), "head.weight": torch.zeros(5, 3)}
    with pytest.raises(UpdateError, match=r"'embedding.weight' and 'head.weight' are one tensor"):
        apply(state, update)


def test_nothing_given_is_changed() -> None:
    before, after = {"w": torch.ones(3)}, {"w": torch.full((3,), 2.0)}
    update = delta(before, after)
    new = apply(before, update)
    new["w"] += 1
    assert before["w"].tolist() == [1, 1, 1]
    assert after["w"].tolist() == [2, 2, 2]
    assert update["w"].tolist() == [1, 1, 1]


def test_parameters_that_want_gradients() -> None:
    model = torch.nn.Linear(2, 2)
    state = model.state_dict(keep_vars=True)
    update = delta(state, state)
    assert not update["weight"].requires_grad
    assert sent({"w": model.weight})["w"].shape == (2, 2)
    assert not apply(state, update)["weight"].requires_grad


def test_entries_that_are_no_numbers_stay_unchanged() -> None:
    state = {
        "mask": torch.tensor([True, False]),
        "freqs": torch.tensor([1 + 2j, complex("nan")]),
        "eighth": torch.ones(2).to(torch.float8_e4m3fn),
        "_extra_state": {"note": "kept"},
        "w": torch.ones(2),
    }
    update = delta(state, {**state, "w": torch.zeros(2), "freqs": state["freqs"].clone()})
    assert list(update) == ["w"]
    new = apply(state, update)
    assert new["w"].tolist() == [0, 0]
    assert all(new[name] is state[name] for name in state if name != "w")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({"m": [True]}, {"m": [False]}, r"'m' is torch.bool, which cannot be averaged, but train"),
        ({"c": [1j]}, {"c": [2j]}, r"'c' is torch.complex64"),
        ({"a": [1.0]}, {"b": [1.0]}, r"'a' is only in the state before training"),
        ({}, {"b": [1.0]}, r"'b' is only in the state after training"),
        ({"w": [1.0]}, {"w": [1.0, 2.0]}, r"'w' was torch.float32 \[1\].* \[2\] after it"),
        ({"w": [1.0]}, {"w": [1]}, r"'w' was torch.float32 .* is torch.int64"),
    ],
)
def test_states_without_a_difference(
    before: dict[str, Any], after: dict[str, Any], message: str
) -> None:
    states = [{n: torch.tensor(v) for n, v in state.items()} for state in (before, after)]
    with pytest.raises(UpdateError, match=message):
        delta(*states)


def odd_tensors() -> dict[str, Any]:
    return {
        "sparse": torch.eye(2).to_sparse(),
        "quantized": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "meta": torch.ones(2, device="meta"),
    }


@pytest.mark.parametrize("kind", ["sparse", "quantized", "meta"])
@pytest.mark.filterwarnings("ignore")  # torch's own, of quantization to come
def test_tensors_without_plain_elements_are_rejected(kind: str) -> None:
    tensor = odd_tensors()[kind]
    with pytest.raises(UpdateError, match=f"'w' is.*{kind}"):
        delta({"w": tensor}, {"w": tensor})
    with pytest.raises(UpdateError, match=f"'w' is.*{kind}"):
        apply({"w": tensor}, {"w": torch.ones(2)})
    with pytest.raises(UpdateError, match=r"'w'.*cannot be read"):
        pack({"w": tensor})


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"v": np.ones(2)}, r"'v' of the update is not in the model"),
        ({"w": np.ones(3)}, r"'w' of the update has shape \[3\], but the model's has \[2\]"),
        ({"w": np.ones(2, "i8")}, r"'w' of the update is torch.int64, but .* floating-point"),
        ({"n": np.ones(2)}, r"'n' of the update is torch.float64, but the model's is integer"),
        ({"b": np.ones(2)}, r"'b' of the model is torch.bool, which cannot be averaged"),
        ({"_extra_state": np.ones(2)}, r"'_extra_state' is no tensor in the model"),
        ({"w": np.array(["x", "y"])}, r"'w' of the update: "),
    ],
)
def test_updates_that_do_not_fit(update: dict[str, Any], message: str) -> None:
    state = {
        "w": torch.ones(2),
        "n": torch.ones(2, dtype=torch.int64),
        "b": torch.ones(2, dtype=torch.bool),
        "_extra_state": None,
    }
    with pytest.raises(UpdateError, match=message):
        apply(state, update)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number(scale: float) -> None:
    with pytest.raises(UpdateError, match="scale is"):
        apply({"w": torch.ones(1)}, {"w": np.ones(1)}, scale)


def test_arrays_that_torch_does_not_take_as_they_are() -> None:
    array = np.arange(3, dtype="f4")
    fixed = array.copy()
    fixed.flags.writeable = False
    for change in (fixed, array[::-1][::-1], array.astype(">f4"), array[::-1]):
        new = apply({"w": torch.zeros(3)}, {"w": change})["w"]
        np.testing.assert_array_equal(new, change)


def test_the_memory_of_a_torch_tensor_is_not_copied() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        tensor = torch.ones(100, 100, dtype=dtype)
        _, [view] = pack({"t": tensor})
        address = np.frombuffer(view, np.uint8).__array_interface__["data"][0]
        assert address == tensor.data_ptr()


def test_other_types_of_torch_are_rejected_by_name() -> None:
    for tensor in (torch.ones(1, dtype=torch.complex64), torch.ones(1).to(torch.float8_e5m2)):
        with pytest.raises(UpdateError, match=r"'w'.*(complex64|float8)"):
            pack({"w": tensor})


def test_every_element_arrives_as_it_was() -> None:
    data = torch.randn(6).bfloat16()
    layout, views = pack({"w": data})
    stored = dict(deserialize(encode_header(layout, {}) + b"".join(views)))["w"]
    assert (stored["dtype"], stored["data"]) == ("BF16", data.view(torch.int16).numpy().tobytes())


def test_the_documented_client_trains_and_takes_the_average() -> None:
    page = (Path(__file__).parents[2] / "docs" / "clients.md").read_text()
    pattern = r"<!-- run by: make test-torch -->\n```python\n(.*?)```"
    [snippet] = re.findall(pattern, page, re.DOTALL)
    submitted: dict[str, Any] = {}

    class Round:
        def submit(self, client: str, update: dict[str, Any], samples: int) -> None:
            submitted.update(sent(update))

        def wait(self) -> None: ...

        def fetch(self) -> dict[str, np.ndarray]:
            return {name: array / 2 for name, array in submitted.items()}

    def train(model: Any) -> None:
        with torch.no_grad():
            model.weight += 1

    model = torch.nn.Linear(2, 2, bias=False)
    expected = model.weight.detach() + 0.5
    exec(snippet, {"model": model, "train": train, "round_": Round()})
    torch.testing.assert_close(model.weight.detach(), expected)


@pytest.mark.parametrize("codec", ["int8", "fp8", "int4", "topk"])
def test_changes_of_a_model_are_compressed_as_they_are(codec: str) -> None:
    torch.manual_seed(0)
    before = {"w": torch.randn(70, 90), "half": torch.randn(640).bfloat16(), "n": torch.tensor(3)}
    after = {name: tensor + 1 for name, tensor in before.items()}
    after["w"] = after["w"] + torch.randn(90, 70).T
    store, keys = MemoryStore(), RoundKeys("r")
    spec = {"clients": ["ann"], "min_clients": 1, "timeout": 60, "codecs": [codec]}
    record = {"opened_at": "2026-01-01T00:00:00+00:00", "deadline_at": "2026-01-01T00:01:00+00:00"}
    store.put_json(keys.spec, {"round": "r", "spec": spec, **record})
    compression = Compression(codec)
    change = delta(before, after)
    Round(MemoryStack(store), "r").submit("ann", change, samples=3, codec=compression)
    arrived = compressed.read(store.objects[keys.update("ann")])
    error = norm = 0.0
    for name in ("w", "half"):
        exact = change[name].float().numpy()
        error += float(np.square(arrived[name].astype("f4") - exact).sum())
        norm += float(np.square(exact).sum())
    assert (error / norm) ** 0.5 == pytest.approx(compression.error, rel=0.02)
    assert arrived["n"] == change["n"].item()


def test_nothing_else_imports_torch() -> None:
    code = "import sys, gradshard.client.federation, gradshard.cli, gradshard.updates.tensors; "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
