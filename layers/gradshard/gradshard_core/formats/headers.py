"""Reading the header of a safetensors object that a client has written.

Format: https://huggingface.co/docs/safetensors, "Format". Nothing in a header is trusted: what is
wrong with it is said in few words, and what it takes to read it is bounded.
"""

import itertools
import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from gradshard_core import garbage_collection
from gradshard_core.errors import UpdateError
from gradshard_core.formats.tensor_layout import (
    PREFIX_BYTES,
    Layout,
    Tensor,
    byte_length,
    check_not_empty,
    shorten,
)

MAX_HEADER_BYTES: Final = 16 * 1024 * 1024
"""The longest header that is read: room for 100,000 tensors. The format itself ends at 100 MB,
whose parsing would take more memory than a function has."""

FORMAT_HEADER_BYTES: Final = 100_000_000
MAX_HEADER_VALUES: Final = 1_420_000
"""The most commas, colons and opening brackets in a header: 14 for each of 100,000 tensors of four
dimensions, and some for metadata. They decide how much memory parsed JSON takes, up to 200 bytes
each, and its length does not: 16 MiB of empty lists would be 400 MiB."""

MAX_SAMPLES: Final = 2**53
"""Counts up to here are exact in float64, so a weight is one correctly rounded division."""

SAMPLES_KEY: Final = "num_samples"


class Header(NamedTuple):
    """An object's header, and the position of its first tensor byte."""

    layout: Layout
    metadata: dict[str, str]
    data_offset: int


FIRST_READ_BYTES: Final = 64 * 1024
"""The header of most models is shorter than this, so that one request reads it."""


def header_length(prefix: bytes, object_bytes: int) -> int:
    """Read the length of a header from the first eight bytes of an object.

    Raises
    ------
    UpdateError
        The object is too short for a header, or the header too long for it or for us.
    """
    if len(prefix) < PREFIX_BYTES:
        raise UpdateError(
            f"not a safetensors object: {object_bytes} bytes, fewer than the 8 of a header's length"
        )
    length = int.from_bytes(prefix[:PREFIX_BYTES], "little")
    if length > FORMAT_HEADER_BYTES:
        raise UpdateError(
            f"not a safetensors object: its first {PREFIX_BYTES} bytes would announce a header of "
            f"{length} bytes, over the format's {FORMAT_HEADER_BYTES}"
        )
    if PREFIX_BYTES + length > object_bytes:
        raise UpdateError(
            f"header of {length} bytes is longer than the object, which has {object_bytes} bytes"
        )
    if length > MAX_HEADER_BYTES:
        raise UpdateError(
            f"header of {length} bytes is over the {MAX_HEADER_BYTES} that gradshard reads; "
            "shorten the tensor names or the metadata"
        )
    return length


@garbage_collection.paused()
def parse_header(header: bytes, object_bytes: int) -> Header:
    """Read and check a whole safetensors header.

    Parameters
    ----------
    header
        The header without the eight bytes of its length.
    object_bytes
        The size of the object that has it.

    Raises
    ------
    UpdateError
        The header is not JSON, or does not describe the object's bytes exactly.
    """
    entries = parse_json(header)
    metadata = _parse_metadata(entries.pop("__metadata__", {}))
    data_offset = PREFIX_BYTES + len(header)
    data_bytes = object_bytes - data_offset
    tensors = sorted(
        (_parse_tensor(name, entry, data_bytes) for name, entry in entries.items()),
        key=lambda tensor: (tensor.start, tensor.end),
    )
    position = 0
    for tensor in tensors:
        if tensor.start != position:
            what = "overlaps the bytes before it" if tensor.start < position else "leaves a hole"
            raise UpdateError(
                f"tensor {shorten(tensor.name)!r} begins at byte {tensor.start}, not {position}: "
                f"it {what}"
            )
        position = tensor.end
    if position != data_bytes:
        raise UpdateError(
            f"the tensors end at byte {position}, but the object holds {data_bytes} bytes of them"
        )
    layout = Layout(tuple(tensors))
    check_not_empty(layout)
    return Header(layout, metadata, data_offset)


def parse_samples(metadata: Mapping[str, str]) -> int:
    """Read the number of samples an update was trained on from its metadata.

    Raises
    ------
    UpdateError
        ``num_samples`` is missing, or not a whole number from 1 to 2**53.
    """
    text = metadata.get(SAMPLES_KEY)
    if text is None:
        raise UpdateError(f"{SAMPLES_KEY} is missing from the header's __metadata__")
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_SAMPLES))):
        raise UpdateError(f"{SAMPLES_KEY} is {shorten(text)!r}, not a whole number above zero")
    samples = int(text)
    if not 1 <= samples <= MAX_SAMPLES:
        raise UpdateError(f"{SAMPLES_KEY} is {samples}, not from 1 to 2**53")
    return samples


def parse_json(header: bytes) -> dict[str, Any]:
    """Read a JSON object from a client, of bounded size and without duplicate keys.

    Raises
    ------
    UpdateError
        It is none.
    """

    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            raise UpdateError("the header names a key twice")
        return entries

    def reject_constant(text: str) -> float:
        raise ValueError(f"{text} is not JSON")

    values = sum(map(header.count, (b",", b":", b"[", b"{")))
    if values > MAX_HEADER_VALUES:
        raise UpdateError(
            f"header of {len(header)} bytes has {values} commas, colons and opening brackets, over "
            f"the {MAX_HEADER_VALUES} that gradshard reads; join tensors, or shorten the metadata"
        )
    try:
        entries = json.loads(
            header.decode("utf-8"),
            object_pairs_hook=without_duplicates,
            parse_constant=reject_constant,
        )
        "".join(entries).encode("utf-8")  # a lone surrogate could never be written back
    except (ValueError, RecursionError, TypeError) as error:
        raise UpdateError(f"the header is not a JSON object: {shorten(str(error))}") from None
    if not isinstance(entries, dict):
        raise UpdateError(f"the header is not a JSON object but a {type(entries).__name__}")
    return entries


def _parse_metadata(metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise UpdateError("the header's __metadata__ is not a map from text to text")
    try:
        "".join(itertools.chain(metadata, metadata.values())).encode("utf-8")
    except UnicodeEncodeError:
        raise UpdateError("the header's __metadata__ holds half a character") from None
    return metadata


def _parse_tensor(name: str, entry: Any, data_bytes: int) -> Tensor:
    # A header may have 100,000 tensors: each check here takes some time of a function.
    shown = shorten(name)
    try:
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError):  # it is no object, or lacks one of them
        raise UpdateError(f"tensor {shown!r} lacks dtype, shape or data_offsets") from None
    if not isinstance(dtype, str) or not isinstance(shape, list):
        raise UpdateError(f"tensor {shown!r}: dtype is not text, or shape not a list")
    if not (
        isinstance(offsets, list)
        and len(offsets) == 2
        and type(offsets[0]) is int
        and type(offsets[1]) is int
    ):
        raise UpdateError(f"tensor {shown!r}: data_offsets is not two whole numbers")
    start, end = offsets
    if not 0 <= start <= end <= data_bytes:
        raise UpdateError(
            f"tensor {shown!r} fills bytes {shorten(str(start))} to {shorten(str(end))}, out of "
            f"the object's {data_bytes}"
        )
    expected = byte_length(shown, dtype, shape)
    if end - start != expected:
        raise UpdateError(
            f"tensor {shown!r}: {dtype} {shorten(str(shape))} is {expected} bytes, "
            f"but its data_offsets span {end - start}"
        )
    return Tensor(name, dtype, tuple(shape), start, end)
