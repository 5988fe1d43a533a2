"""What clients send is what the formats page says, near what they have, and the same each time."""

import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gradshard.updates.compression import Compression, DecodedContent, EncodedContent, uniform
from gradshard.updates.conversion import convert
from gradshard.updates.upload_source import Content, FileContent, TensorContent
from gradshard_core.errors import UpdateError
from gradshard_core.formats.codecs.registry import CODECS
from gradshard_core.units import MIB
from tests import compressed, reference

HALF_STEP = {"int8": 0.5 / 127, "int4": 0.5 / 7, "fp8": 16 / 448}
"""Half of the largest distance between values, divided by the largest value."""

ROUNDED_UP = 1 + 2.0**-7
"""How much larger a scale in BF16 may be."""


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
