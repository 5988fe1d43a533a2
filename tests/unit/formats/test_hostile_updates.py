"""What a client may write: rejected in short words, in little memory; never a crash."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradshard_core.errors import UpdateError
from gradshard_core.formats.headers import MAX_HEADER_VALUES, parse_header
from gradshard_core.formats.tensor_layout import Layout
from tests.fuzz.targets import TARGETS

SEEDS = Path(__file__).parents[2] / "fuzz" / "seeds"
WORDS = [
    json.loads(f'"{line[1:-1]}"'.replace("\\\\", "\\u005c"))
    for line in (SEEDS / "words.txt").read_text().splitlines()
]


def tensors(count: int) -> bytes:
    return b'{"__metadata__":{"num_samples":"1"},%s}' % b",".join(
        b'"layer.%d.weight":{"dtype":"F32","shape":[1,1,1,1],"data_offsets":[%d,%d]}'
        % (number, 4 * number, 4 * number + 4)
        for number in range(count)
    )


def test_as_many_values_as_are_read_are_rejected_by_number_when_there_are_more() -> None:
    with pytest.raises(UpdateError, match=rf"has 2840000 commas.*over the {MAX_HEADER_VALUES}"):
        parse_header(b"[" * (2 * MAX_HEADER_VALUES), 10**9)


@pytest.mark.slow
def test_100_000_tensors_are_read() -> None:
    header = tensors(100_000)
    layout = parse_header(header, 8 + len(header) + 400_000).layout
    assert (len(layout.tensors), layout.spans) == (100_000, (("F32", 0, 400_000),))


@pytest.mark.parametrize("depth", [10, 1_000, 9_000, 30_000, 1_000_000])
def test_json_of_any_depth_is_rejected(depth: int) -> None:
    nested = b"[" * depth + b"]" * depth
    for text in (
        nested,
        b'{"a":%s}' % nested,
        b'{"__metadata__":%s}' % nested,
        b'{"a":{"dtype":"F32","shape":%s,"data_offsets":[0,4]}}' % nested,
    ):
        with pytest.raises(UpdateError) as error:
            parse_header(text, 8 + len(text) + 4)
        assert len(str(error.value)) < 300


def test_a_reason_is_short_for_names_of_any_length() -> None:
    name = "n" * 1_000_000
    long = Layout.pack([(name, "F32", (1,) * 64)])
    other = Layout.pack([(name, "F32", (1,) * 63)])
    short = Layout.pack([("m", "F32", (1,))])
    for reason in (long.difference(other), long.difference(short), short.difference(long)):
        assert reason is not None
        assert len(reason) < 300
    for start, end in ((2, 6), (6, 10), (int("9" * 4000), 4)):
        entry = {"dtype": "F32", "shape": [1], "data_offsets": [start, end]}
        text = json.dumps({"a": {**entry, "data_offsets": [0, 4]}, name: entry}).encode()
        with pytest.raises(UpdateError) as error:
            parse_header(text, 8 + len(text) + 10)
        assert len(str(error.value)) < 300


@cache
def seeds(target: str) -> list[bytes]:
    return [file.read_bytes() for file in sorted((SEEDS / target).iterdir())]


@pytest.mark.parametrize("target", TARGETS)
def test_fuzz_seeds_hold(target: str) -> None:
    assert seeds(target)
    for seed in seeds(target):
        TARGETS[target](seed)


PIECES = st.one_of(
    st.binary(max_size=12),
    st.sampled_from([word.encode("utf-8", "replace") for word in WORDS]),
    st.just(b""),
)


@st.composite
def mutated(draw: Any, target: str) -> bytes:
    """Cut pieces out of the seeds, and put others, words and noise in."""
    data: bytes = draw(st.one_of(st.sampled_from(seeds(target)), st.binary(max_size=300)))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 20)))
        data = data[:start] + draw(PIECES) + data[end:]
    return data


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@settings(deadline=None, max_examples=150)
@given(st.data())
def test_fuzz_briefly(target: str, data: st.DataObject) -> None:
    TARGETS[target](data.draw(mutated(target)))
