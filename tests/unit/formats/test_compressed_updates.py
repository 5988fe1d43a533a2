"""Headers of compressed updates: read as they are written, and bad ones rejected by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradshard.updates.compression import DecodedContent
from gradshard.updates.upload_source import FileContent
from gradshard_core.errors import UpdateError
from gradshard_core.formats.codecs.registry import CODECS
from gradshard_core.formats.compressed_updates import EncodedLayout, encode_layout, parse_update
from gradshard_core.formats.tensor_layout import Layout, Run
from tests import compressed, reference
from tests.compressed import UNIT_BYTES, random_units, rows_of
from tests.reference import Array
from tests.vectors.__main__ import entries, vector

TENSORS: dict[str, Array] = {"w": np.ones((5, 13), "f4"), "n": np.ones(3, "i8")}


def written(codec: str = "int8") -> tuple[dict[str, Any], bytes]:
    """Return the header and the data of a good update."""
    units = {"w": random_units(np.random.default_rng(0), codec, rows_of(TENSORS["w"]))}
    blob = compressed.write(codec, TENSORS, units, {"num_samples": "1"})
    length = int.from_bytes(blob[:8], "little")
    return json.loads(blob[8 : 8 + length]), blob[8 + length :]


def parsed(header: dict[str, Any], data: bytes) -> Any:
    text = json.dumps(header).encode()
    return parse_update(text, 8 + len(text) + len(data))


@pytest.mark.parametrize("codec", UNIT_BYTES)
def test_the_layout_is_that_of_the_decoded_elements(codec: str) -> None:
    layout = parsed(*written(codec)).layout
    assert isinstance(layout, EncodedLayout)
    assert layout.codec == codec
    assert layout.to_json() == {
        "w": {"dtype": "F32", "shape": [5, 13]},
        "n": {"dtype": "I64", "shape": [3]},
    }
    plain = Layout.pack([("w", "F32", (5, 13)), ("n", "I64", (3,))])
    assert plain.difference(layout) is None
    assert layout == encode_layout(plain, codec, {"w": ()})
    header = layout.header({"num_samples": "1"})
    assert parse_update(header[8:], len(header) + layout.stored.nbytes).layout == layout


def test_runs_join_where_a_tensor_ends_with_a_whole_unit() -> None:
    plain = Layout.pack([("a", "F32", (64,)), ("b", "F32", (33,)), ("c", "F32", (2,))])
    layout = encode_layout(plain, "int8", {"a": (), "b": (), "c": ()})
    runs = plain.runs_in(layout, 100)
    assert list(runs) == [Run(0, 388, 100, 4, 136), Run(388, 396, 236, 4, 34)]
    assert runs.are_in_order
    assert runs.nbytes == 5 * 34 == layout.stored.nbytes


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        *keys, last = path.split("/")
        for key in keys:
            header = header[key]
        if value is None:
            del header[last]
        else:
            header[last] = value

    return change


def _encoded(text: Any) -> Callable[[dict[str, Any]], None]:
    return _set("__metadata__/encoded", text if isinstance(text, str) else json.dumps(text))


W = {"dtype": "F32", "shape": [5, 13]}
BAD: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "unknown codec": (_set("__metadata__/codec", "zip"), "codec 'zip' is unknown; there are int8"),
    "long codec": (_set("__metadata__/codec", "z" * 9999), "is unknown; there are int8"),
    "no encoded": (_set("__metadata__/encoded", None), "have codec but no encoded"),
    "no JSON": (_encoded("{"), "encoded in the metadata: the header is not a JSON object"),
    "no object": (_encoded("[1]"), "encoded in the metadata: the header is not a JSON object"),
    "no entry": (_encoded({"w": 1}), "'w': encoded does not have its dtype and shape"),
    "more": (_encoded({"w": W | {"x": 1}}), "'w': encoded does not have its dtype and shape"),
    "no tensor": (_encoded({"w": W, "v": W}), "encoded names 'v', which is no tensor"),
    "integers": (_encoded({"w": W | {"dtype": "I32"}}), "'w': I32 [5, 13] cannot be encoded"),
    "float64": (_encoded({"w": W | {"dtype": "F64"}}), "encoded tensors are F32 or BF16"),
    "dtype is a list": (_encoded({"w": W | {"dtype": []}}), "cannot be encoded"),
    "shape is a number": (_encoded({"w": W | {"shape": 65}}), "'w': F32 65 cannot be encoded"),
    "negative": (_encoded({"w": W | {"shape": [-5, -13]}}), "'w' has shape [-5, -13], not a list"),
    "fraction": (_encoded({"w": W | {"shape": [5, 13.0]}}), "'w' has shape [5, 13.0], not a list"),
    "too many": (_encoded({"w": W | {"shape": [97]}}), "U8 [4, 34]: one row for each 32 of the 97"),
    "too few": (_encoded({"w": W | {"shape": [64]}}), "U8 [2, 34]: one row for each 32 of the 64"),
    "immense": (_encoded({"w": W | {"shape": [2**62, 2**62]}}), "one row for each 32 of the 2126"),
    "flat": (_set("w/shape", [3 * 34]), "'w' is U8 [102], but [5, 13] in int8 is U8 [3, 34]"),
    "not bytes": (_set("w/dtype", "I8"), "'w' is I8 [3, 34], but [5, 13] in int8 is U8 [3, 34]"),
    "cut unit": (_set("w/shape", [3, 33]), "U8 [3, 33] is 99 bytes"),
    "not encoded": (_encoded({}), ""),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_header_is_rejected_by_name(what: str) -> None:
    change, reason = BAD[what]
    header, data = written()
    change(header)
    if not reason:
        assert parsed(header, data).layout.shapes["w"] == ("U8", (3, 34))
        return
    with pytest.raises(UpdateError) as caught:
        parsed(header, data)
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 500


U = {"dtype": "F32", "shape": [300_000], "units": [16 + 6 * 32_768, 4 + 6 * 7]}
BAD_UNITS: dict[str, tuple[Any, str]] = {
    "none": (None, "of 300000 elements has 2 units, whose sizes units in encoded does not list"),
    "too few": ([16], "of 300000 elements has 2 units"),
    "too many": ([16, 4, 4], "of 300000 elements has 2 units"),
    "no list": ({}, "of 300000 elements has 2 units"),
    "no number": (["16", 4], "the size of unit 0 is 16, not a whole number from 16 to 196624"),
    "true": ([16, True], "the size of unit 1 is True, not a whole number from 4 to 28396"),
    "negative": ([-16, 4], "the size of unit 0 is -16"),
    "too small": ([15, 4], "the size of unit 0 is 15"),
    "too large": ([16 + 6 * 32_769, 4], "the size of unit 0 is 196630"),
    "half an entry": ([16 + 3, 4], "the size of unit 0 is 19, not 16 and a multiple of 6"),
    "other sum": ([16, 4], "'w' is U8 [196670], but [300000] in topk is U8 [20]: the sizes of its"),
}


@pytest.mark.parametrize("what", BAD_UNITS)
def test_bad_sizes_of_units_are_rejected_by_name(what: str) -> None:
    units, reason = BAD_UNITS[what]
    nbytes = sum(U["units"])  # type: ignore[arg-type]
    header: dict[str, Any] = {
        "__metadata__": {"codec": "topk", "encoded": json.dumps({"w": U})},
        "w": {"dtype": "U8", "shape": [nbytes], "data_offsets": [0, nbytes]},
    }
    layout = parsed(header, bytes(nbytes)).layout
    assert layout.to_json() == {"w": {"dtype": "F32", "shape": [300_000]}}
    assert parsed(json.loads(layout.header({})[8:]), bytes(nbytes)).layout == layout
    header["__metadata__"]["encoded"] = json.dumps({"w": U | {"units": units}})
    with pytest.raises(UpdateError) as caught:
        parsed(header, bytes(nbytes))
    assert reason in str(caught.value)


def test_values_in_the_description_are_counted_before_they_are_parsed() -> None:
    header, data = written()
    _encoded("[" * 1_500_000)(header)
    with pytest.raises(UpdateError, match="1500031 commas, colons and opening brackets"):
        parsed(header, data)


@pytest.mark.parametrize("codec", CODECS)
def test_the_vectors_are_decoded_bit_for_bit(codec: str) -> None:
    vectors = Path(__file__).parents[2] / "vectors"
    with FileContent(vectors / f"{codec}.safetensors", None) as content:
        decoded = DecodedContent(content)
        found = reference.decode(decoded.read(0, decoded.nbytes))
    expected = reference.decode((vectors / f"{codec}.decoded.safetensors").read_bytes())
    if codec == "topk":
        tensor = found.pop("two.units")
        assert tensor.shape == (3, 87_400)
        found["two.units.places"] = np.flatnonzero(tensor)
        found["two.units.values"] = tensor[tensor != 0]
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert np.array_equal(found[name], tensor, equal_nan=True), name
        is_number = ~np.isnan(tensor)
        signs = np.signbit(tensor)[is_number]
        assert np.array_equal(np.signbit(found[name])[is_number], signs), name
    made = entries() if codec == "topk" else vector(codec)
    assert made == (vectors / f"{codec}.safetensors").read_bytes()
