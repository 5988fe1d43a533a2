"""What clients send is what the formats page says, near what they have, and the same each time."""

import time
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gradshard.client.round import Round
from gradshard.updates.compression import Compression, DecodedContent, EncodedContent, uniform
from gradshard.updates.conversion import convert
from gradshard.updates.residual import Residual, sum_of_squares
from gradshard.updates.upload_source import Content, FileContent, TensorContent
from gradshard_core.errors import UpdateError
from gradshard_core.formats.codecs.registry import CODECS
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.units import MIB
from tests import compressed, reference
from tests.blas import blas_threads
from tests.unit.fakes import MemoryStack, MemoryStore

HALF_STEP = {"int8": 0.5 / 127, "int4": 0.5 / 7, "fp8": 16 / 448}
"""Half of the largest distance between values, divided by the largest value."""

ROUNDED_UP = 1 + 2.0**-7
"""How much larger a scale in BF16 may be."""


def normal(seed: int) -> reference.Array:
    return np.random.default_rng(seed).standard_normal(6400).astype("f4")


def whole(content: Content) -> bytes:
    return content.read(0, content.nbytes)


def update(seed: int = 0) -> dict[str, reference.Array]:
    rng = np.random.default_rng(seed)
    return {
        "w": (rng.standard_normal((40, 77)) * 10.0 ** rng.integers(-30, 30, (40, 1))).astype("f4"),
        "zero": np.zeros(64, "f4"),
        "b": rng.standard_normal(65).astype(ml_dtypes.bfloat16),
        "tiny": np.full(40, 1e-44, "f4"),
        "huge": np.full(40, np.finfo("f4").max, "f4"),
        "bn.running_var": np.ones(64, "f4"),
        "n": np.arange(40),
        "few": np.ones(2, "f4"),
    }


@pytest.mark.parametrize("codec", HALF_STEP)
def test_what_is_sent_is_as_near_as_the_codec_allows(codec: str) -> None:
    tensors = update()
    compression = Compression(codec)
    content = EncodedContent(TensorContent(tensors, 5), compression)
    sent = compressed.read(whole(content))
    largest, lost, norm = 0.0, 0.0, 0.0
    for name, tensor in tensors.items():
        if name in {"bn.running_var", "n", "few"}:
            assert sent[name].tobytes() == tensor.tobytes(), "stays as it is"
            continue
        assert sent[name].dtype == tensor.dtype
        exact, got = (np.ravel(t).astype("f8") for t in (tensor, sent[name]))
        lost, norm = lost + ((exact - got) ** 2).sum(), norm + (exact**2).sum()
        for start in range(0, exact.size, 32):
            block = exact[start : start + 32]
            bound = np.abs(block).max() * HALF_STEP[codec] * ROUNDED_UP
            if name == "b":
                bound += np.abs(block).max() * 2.0**-8
            if name in {"tiny", "huge"}:  # The scale is a subnormal number, or held down.
                bound = np.abs(block).max() * 0.6 + 2.0**-133 * 448
            assert (np.abs(block - got[start : start + 32]) <= bound).all(), (name, start)
            largest = max(largest, np.abs(block).max())
    assert compression.error == pytest.approx(np.sqrt(lost / norm), rel=0.01)


@pytest.mark.parametrize(
    ("codec", "seed"), [*((codec, None) for codec in CODECS), *((c, 11) for c in HALF_STEP)]
)
def test_any_part_can_be_read_at_any_time(codec: str, seed: int | None) -> None:
    content = EncodedContent(TensorContent(update(), 5), Compression(codec, seed=seed))
    expected = whole(content)
    assert len(expected) == content.nbytes
    rng = np.random.default_rng(1)
    for start, end in np.sort(rng.integers(0, content.nbytes + 1, (100, 2)), axis=1).tolist():
        assert content.read(start, end) == expected[start:end]


@pytest.mark.parametrize("compression", [Compression("fp8"), Compression("topk", fraction=1e-5)])
def test_a_read_takes_a_few_mib_of_memory_however_many_elements_it_encodes(
    compression: Compression,
) -> None:
    tensors = {"w": np.random.default_rng(1).standard_normal(2 * MIB, np.float32)}
    content = EncodedContent(TensorContent(tensors, 5), compression)
    tracemalloc.start()
    try:
        content.read(0, min(MIB, content.nbytes))
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("codec", CODECS)
def test_decoding_gives_what_another_decoder_reads(codec: str) -> None:
    content = EncodedContent(TensorContent(update(), 5), Compression(codec))
    plain = DecodedContent(content)
    blob = whole(plain)
    expected = compressed.read(whole(content))
    found = reference.decode(blob)
    assert {n: t.tobytes() for n, t in found.items()} == {
        n: t.tobytes() for n, t in expected.items()
    }
    rng = np.random.default_rng(1)
    for start, end in np.sort(rng.integers(0, len(blob) + 1, (50, 2)), axis=1).tolist():
        assert plain.read(start, end) == blob[start:end]


def test_scales_that_overflow_are_decoded_without_a_warning(tmp_path: Path) -> None:
    # Warnings are errors here, and a client that checks a hostile update would see them.
    units = compressed.random_units(np.random.default_rng(3), "int8", 3)
    units[:, :2] = np.array([[0x80, 0x7F], [0x7F, 0x7F], [0xC0, 0x7F]], np.uint8)
    blob = compressed.write("int8", {"w": np.zeros(96, "f4")}, {"w": units}, {"num_samples": "1"})
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(blob)
    with FileContent(path, None) as content:
        found = reference.decode(whole(DecodedContent(content)))["w"]
    expected = compressed.decode_tensor("int8", units, "F32", (96,))
    assert np.isinf(expected).any()
    assert np.array_equal(found, expected, equal_nan=True)


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


@pytest.mark.parametrize("codec", HALF_STEP)
def test_stochastic_rounding_is_right_on_average_and_the_same_for_a_seed(codec: str) -> None:
    value = np.full(3200, 0.137, "f4")
    value[::32] = 1
    sent = []
    for seed in (1, 1, 2):
        blob = whole(EncodedContent(TensorContent({"w": value}, 5), Compression(codec, seed=seed)))
        sent.append(compressed.read(blob)["w"])
    assert sent[0].tobytes() == sent[1].tobytes()
    assert sent[0].tobytes() != sent[2].tobytes()
    others = np.delete(sent[0], np.arange(0, 3200, 32))
    assert others.mean() == pytest.approx(0.137, rel=0.03)
    assert len(set(others.tolist())) == 2


@pytest.mark.parametrize("dtype", ["f4", ml_dtypes.bfloat16])
def test_topk_keeps_the_largest_of_each_unit(dtype: Any) -> None:
    rng = np.random.default_rng(9)
    tensor = rng.standard_normal(300_000).astype(dtype)
    tensor[[5, 270_000]] = np.nan
    compression = Compression("topk", fraction=0.001)
    blob = whole(EncodedContent(TensorContent({"w": tensor}, 5), compression))
    assert len(blob) < 0.0011 * (2 + tensor.itemsize) * 300_000 + 500
    sent = compressed.read(blob)["w"]
    assert np.isnan(sent[[5, 270_000]]).all(), "so that a round finds it"
    for start, count in ((0, 263), (262_144, 38)):
        exact, got = (t[start : start + 262_144].astype("f4") for t in (tensor, sent))
        kept = got != 0
        assert kept.sum() == count
        assert np.array_equal(got[kept], exact[kept], equal_nan=True)
        assert np.nanmin(np.abs(got[kept])) >= np.nanmax(np.abs(exact[~kept]))


@pytest.mark.parametrize("fraction", [0, -1, 0.2, float("nan")])
def test_a_fraction_out_of_bounds_is_an_error(fraction: float) -> None:
    with pytest.raises(UpdateError, match="not above 0 and at most 1/8"):
        Compression("topk", fraction=fraction)


def test_a_fraction_goes_with_topk_alone() -> None:
    with pytest.raises(UpdateError, match="codec int4 keeps all elements: leave out the fraction"):
        Compression("int4", fraction=0.1)
    assert Compression("topk").kept_fraction == 0.01


def test_random_numbers_are_uniform_and_seekable() -> None:
    numbers = uniform(3, 0, 100_000)
    assert 0 <= numbers.min() <= numbers.max() < 1
    counts, _ = np.histogram(numbers, 100, (0, 1))
    assert ((counts - 1000) ** 2 / 1000).sum() < 160  # chi-squared, 99 degrees: p = 1e-4
    assert np.array_equal(uniform(3, 700, 50), numbers[700:750])


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


def test_a_block_with_a_nan_is_nan_so_that_a_round_finds_it() -> None:
    for codec in HALF_STEP:
        tensors = {"w": np.ones(96, "f4")}
        tensors["w"][40] = np.nan
        sent = compressed.read(whole(EncodedContent(TensorContent(tensors, 5), Compression(codec))))
        assert np.isnan(sent["w"][32:64]).all()
        assert np.isfinite(np.delete(sent["w"], np.s_[32:64])).all()


@pytest.mark.parametrize("codec", CODECS)
def test_files_are_converted_in_both_directions(tmp_path: Path, codec: str) -> None:
    plain, packed, again = (tmp_path / f"{name}.safetensors" for name in ("a", "b", "c"))
    plain.write_bytes(reference.encode(update(), {"num_samples": "5"}))
    compression = Compression(codec)
    done = convert(plain, packed, compression=compression)
    assert done.nbytes == packed.stat().st_size
    assert 0 < compression.error < (1 if codec == "topk" else 0.2)
    sent = compressed.read(packed.read_bytes())
    convert(packed, again, samples=7)
    found = reference.decode(again.read_bytes())
    assert {n: t.tobytes() for n, t in found.items()} == {n: t.tobytes() for n, t in sent.items()}
    with FileContent(again, None) as content:
        assert b'"num_samples":"7"' in content.read(0, content.nbytes)
        assert b"codec" not in content.read(0, content.nbytes)
    with pytest.raises(UpdateError, match="is compressed already"):
        convert(packed, tmp_path / "d", compression=compression)
    with pytest.raises(UpdateError, match="unless you compress it"):
        convert(plain, tmp_path / "d")


@pytest.mark.parametrize("compression", [None, Compression("int8")])
def test_a_bad_compressed_file_is_described_by_what_is_bad_in_it(
    tmp_path: Path, compression: Compression | None
) -> None:
    tensors = {"w": np.zeros(97, "f4")}
    units = {"w": np.zeros((3, 34), np.uint8)}
    (tmp_path / "bad").write_bytes(compressed.write("int8", tensors, units, {"num_samples": "1"}))
    with pytest.raises(UpdateError, match=r"bad: tensor 'w' is U8 \[3, 34\], but \[97\] in int8"):
        convert(tmp_path / "bad", tmp_path / "out", compression=compression)


def test_an_archive_is_compressed_at_once(tmp_path: Path) -> None:
    np.savez(tmp_path / "u.npz", w=np.linspace(-1, 1, 640, dtype="f4"))
    done = convert(tmp_path / "u.npz", tmp_path / "u", samples=5, compression=Compression("int8"))
    assert done.nbytes == (tmp_path / "u").stat().st_size
    sent = compressed.read((tmp_path / "u").read_bytes())
    assert np.abs(sent["w"] - np.linspace(-1, 1, 640)).max() < 0.01
    assert sorted(p.name for p in tmp_path.iterdir()) == ["u", "u.npz"]


def test_an_unknown_codec_is_named() -> None:
    with pytest.raises(UpdateError, match="'zip' is unknown; there are int8, fp8, int4, topk"):
        Compression("zip")


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
