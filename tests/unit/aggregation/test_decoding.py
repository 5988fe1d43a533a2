"""Any range of a compressed update, read in any pieces, gives its decoded bytes."""

import itertools
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gradshard_core.aggregation import decoding
from gradshard_core.aggregation.decoding import DecodedSource, DecodingMemory
from gradshard_core.formats import compressed_updates
from gradshard_core.formats.codecs import topk
from gradshard_core.formats.codecs.registry import CODECS
from gradshard_core.formats.compressed_updates import EncodedRuns, parse_update
from gradshard_core.formats.object_keys import ObjectVersion
from gradshard_core.formats.tensor_layout import Layout
from gradshard_core.s3.range_streams import ReorderedStream
from tests import compressed
from tests.compressed import random_entries, random_units, rows_of
from tests.reference import NAMES, Array
from tests.unit.aggregation.test_reordered_reads import Opener

SHAPES = [(33,), (0, 3), (), (5, 64), (31, 1), (2000,), (32,), (1,), (64,), (129,)]


def updates(seed: int, codec: str) -> tuple[Layout, bytes, bytes]:
    """Return a layout, an update of it in another order, and its decoded bytes."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, Array] = {
        f"t{i}": rng.standard_normal(shape).astype("f4" if i % 3 else ml_dtypes.bfloat16)
        for i, shape in enumerate(SHAPES)
    }
    units: dict[str, Any] = {
        name: random_entries(rng, tensor, 0.05)
        if codec == "topk"
        else random_units(rng, codec, rows_of(tensor))
        for name, tensor in tensors.items()
        if rng.random() < 0.7
    }
    order = list(rng.permutation(list(tensors))) if seed % 2 else list(tensors)
    blob = compressed.write(codec, tensors, units, {}, order)
    layout = Layout.pack((name, NAMES[t.dtype], t.shape) for name, t in tensors.items())
    read = compressed.read(blob)
    return layout, blob, b"".join(read[name].tobytes() for name in tensors)


def cuts(rng: np.random.Generator, layout: Layout, start: int, end: int) -> Iterator[int]:
    """Yield the sizes of pieces that end between elements."""
    ends = [
        position
        for tensor in layout.tensors
        for position in range(tensor.start, tensor.end, 2 if tensor.dtype == "BF16" else 4)
        if start < position < end
    ]
    chosen = sorted(rng.choice(ends, min(len(ends), 14), replace=False)) if ends else []
    for position in [*chosen, end]:
        yield position - start
        start = position


@pytest.mark.slow
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("step_units", [2, 1024])
def test_any_range_in_any_pieces(
    codec: str, seed: int, step_units: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "STEP_UNITS", step_units)
    if step_units == 2:  # Small units, of two chunks.
        for module in (topk, compressed_updates, compressed):
            monkeypatch.setattr(module, "UNIT", 64)
        for module in (topk, compressed):
            monkeypatch.setattr(module, "CHUNK", 32)
        monkeypatch.setattr(topk.TopK, "unit", 64)
    layout, blob, expected = updates(seed, codec)
    header = parse_update(blob[8 : 8 + int.from_bytes(blob[:8], "little")], len(blob))
    runs = layout.runs_in(header.layout, header.data_offset)
    assert isinstance(runs, EncodedRuns)
    assert runs.are_in_order is (seed % 2 == 0)
    rng = np.random.default_rng(seed)
    places = np.cumsum([0, *cuts(rng, layout, 0, layout.nbytes)])
    for start, end in itertools.pairwise(places.tolist()):
        for stop in {end, layout.nbytes}:
            pieces = list(cuts(rng, layout, start, stop))
            ends = np.cumsum([start, *pieces]).tolist()
            blocks = list(itertools.pairwise(ends)) if seed % 2 else [(start, stop)]
            memory = memoryview(bytearray(2 * 256 * 1024))
            opener, source = Opener(blob), ObjectVersion("k", "", "", len(blob))
            stored = ReorderedStream(opener, source, runs.read_from(start), blocks, memory)
            decoded = DecodedSource(stored, runs, start, stop, DecodingMemory())
            data = bytearray(stop - start)
            position = 0
            for piece in pieces:
                with np.errstate(all="ignore"):
                    decoded.read_into(memoryview(data)[position : position + piece])
                position += piece
            assert bytes(data) == expected[start:stop], (start, stop)
            if not seed % 2:
                assert len(opener.asked) == 1, "one request reads a range"
