"""What encoding loses is added to the next update."""

import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gradshard.client.round import Round
from gradshard.updates.compression import Compression, EncodedContent
from gradshard.updates.residual import Residual, sum_of_squares
from gradshard.updates.upload_source import Content, TensorContent
from gradshard_core.errors import UpdateError
from gradshard_core.formats.codecs.registry import CODECS
from gradshard_core.formats.object_keys import RoundKeys
from tests import compressed, reference
from tests.blas import blas_threads
from tests.unit.fakes import MemoryStack, MemoryStore


def normal(seed: int) -> reference.Array:
    return np.random.default_rng(seed).standard_normal(6400).astype("f4")


def whole(content: Content) -> bytes:
    return content.read(0, content.nbytes)


def test_squares_are_added_up_by_one_thread() -> None:
    elements = np.random.default_rng(2).standard_normal(2**22, np.float32)
    expected = float(np.add.reduce(np.square(elements, dtype=np.float64)))
    with blas_threads(2):
        time.sleep(0.3)  # until they have stopped looking for something to do
        others, mine = time.process_time() - time.thread_time(), time.thread_time()
        assert sum_of_squares(elements) == pytest.approx(expected, rel=1e-13)
        mine = time.thread_time() - mine
        others = time.process_time() - time.thread_time() - others
    assert others < mine / 8, "BLAS keeps other cores busy"


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize(("codec", "rest"), [("int4", 0.5), ("topk", 20.0)])
def test_error_feedback_sends_in_the_end_all_of_the_updates(
    tmp_path: Path, codec: str, rest: float, in_file: bool
) -> None:
    path = tmp_path / "residual.safetensors"
    residual = Residual(path if in_file else None)
    rng = np.random.default_rng(5)
    total, sent = np.zeros(100), np.zeros(100)
    for number in range(20):
        tensors = {"w": rng.standard_normal(100).astype("f4"), "n": np.arange(3)}
        if in_file:
            residual = Residual(path)  # as another process would
        for _ in range(2):  # A repetition in the same round sends the same bytes.
            compression = Compression(
                codec, fraction=0.1 if codec == "topk" else None, residual=residual
            )
            content = EncodedContent(TensorContent(tensors, 5), compression, f"r{number}")
            blob = whole(content)
            content.keep_residual()
        sent += compressed.read(blob)["w"]
        total += tensors["w"]
        assert np.linalg.norm(total - sent) == pytest.approx(residual.norm, rel=1e-3)
    assert np.abs(total - sent).max() < rest


def test_a_residual_changes_only_when_the_update_was_sent() -> None:
    residual = Residual()
    tensors = {"w": np.linspace(-1, 1, 64, dtype="f4")}
    EncodedContent(TensorContent(tensors, 5), Compression("int4", residual=residual), "r")
    assert residual.norm == 0


def test_a_residual_of_other_tensors_is_an_error(tmp_path: Path) -> None:
    residual = Residual(tmp_path / "r")
    for size in (64, 96):
        compression = Compression("int4", residual=residual)
        tensors = {"w": np.linspace(-1, 1, size, dtype="f4")}
        if size == 96:
            with pytest.raises(UpdateError, match="64 elements of tensor 'w', and the update 96"):
                EncodedContent(TensorContent(tensors, 5), compression, "b")
        else:
            EncodedContent(TensorContent(tensors, 5), compression, "a").keep_residual()


def test_what_is_no_residual_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(reference.encode({"w": np.ones(3, "f4")}, {"num_samples": "3"}))
    with pytest.raises(UpdateError, match="is no residual: name another file"):
        _ = Residual(path).norm
    path.write_bytes(b"PK\x03\x04something")
    with pytest.raises(UpdateError, match="is no residual: "):
        _ = Residual(path).norm


@pytest.mark.parametrize("codec", sorted(CODECS))
@pytest.mark.parametrize("dtype", ["f4", ml_dtypes.bfloat16])
def test_what_is_sent_and_the_residual_are_the_update(codec: str, dtype: Any) -> None:
    residual = Residual()
    tensor = np.random.default_rng(1).standard_normal(1000).astype(dtype)
    content = EncodedContent(TensorContent({"w": tensor}, 5), Compression(codec, residual=residual))
    sent = compressed.read(whole(content))["w"].astype("f8")
    content.keep_residual()
    _, lost = residual._current()
    assert np.allclose(sent + lost["w"], tensor.astype("f8"), rtol=0, atol=1e-6)
    error = np.linalg.norm(lost["w"]) / np.linalg.norm(tensor.astype("f8"))
    assert content._compression.error == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize("codec", sorted(CODECS))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_update_does_not_spoil_the_next_ones(codec: str, bad: float) -> None:
    residual = Residual()
    good = np.random.default_rng(1).standard_normal(1000).astype("f4")
    spoiled = good.copy()
    spoiled[70] = bad
    for number, tensor in enumerate((good, spoiled, good)):
        compression = Compression(codec, residual=residual)
        content = EncodedContent(TensorContent({"w": tensor}, 5), compression, f"r{number}")
        sent = compressed.read(whole(content))["w"]
        content.keep_residual()
    assert np.isfinite(sent).all()


def test_a_residual_keeps_what_of_it_a_partial_update_lacks(tmp_path: Path) -> None:
    residual = Residual(tmp_path / "r")
    tensors = {name: normal(seed) for seed, name in enumerate("ab")}

    def send(round_id: str, *names: str) -> dict[str, reference.Array]:
        given = {name: tensors[name] for name in names}
        compression = Compression("int4", residual=residual)
        content = EncodedContent(TensorContent(given, 5), compression, round_id)
        arrived = compressed.read(whole(content))
        content.keep_residual()
        return arrived

    first = send("1", "a", "b")
    second = send("2", "b")
    third = send("3", "a")
    for name, arrived in (("a", [first, third]), ("b", [first, second])):
        lost = sum(tensors[name] - sent[name] for sent in arrived)
        other = send(f"then-{name}", name)
        expected = tensors[name] + lost
        assert np.allclose(other[name], expected, atol=np.abs(expected).max() / 7)
        assert not np.allclose(lost, 0)


def test_layers_that_are_sent_again_do_not_lose_twice(tmp_path: Path) -> None:
    store = MemoryStore()
    layout = {name: {"dtype": "F32", "shape": [6400]} for name in "ab"}
    spec = {"clients": ["ann"], "min_clients": 1, "timeout": 60, "rule": "fedavg"}
    spec |= {"layers": ["a", "b"], "layout": layout, "codecs": ["int4"]}
    record = {"opened_at": "2026-01-01T00:00:00+00:00", "deadline_at": "2026-01-01T00:01:00+00:00"}
    residual, tensors = Residual(tmp_path / "r"), {n: normal(0) for n in "ab"}
    lost = {name: np.zeros_like(tensor) for name, tensor in tensors.items()}
    for number in range(3):
        keys = RoundKeys(f"r{number}")
        store.put_json(keys.spec, {"round": keys.round_id, "spec": spec, **record})
        round_ = Round(MemoryStack(store), keys.round_id)
        growing = round_.layer_upload("ann", 5, codec=Compression("int4", residual=residual))
        growing.add({"b": tensors["b"]})
        body = store.objects[keys.partial_update("ann")]
        assert len(body) < 0.2 * tensors["b"].nbytes
        assert np.allclose(compressed.read(body)["b"], tensors["b"] + lost["b"], atol=1)
        growing.add({"a": tensors["a"]})
        growing.finish()
        arrived = compressed.read(store.objects[keys.update("ann")])
        for name, tensor in tensors.items():
            lost[name] += tensor - arrived[name]
    assert residual.norm == pytest.approx(np.linalg.norm([*lost.values()]), rel=1e-3)
