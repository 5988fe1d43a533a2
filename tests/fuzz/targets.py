"""What reads bytes that a client wrote, each as a function of bytes that must not break.

A target raises only where an invariant does not hold. What is rejected must be rejected by the
error that its caller expects, in words that are short and can be printed.
"""

import contextlib
import io
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from gradshard.tickets.round_ticket import Ticket
from gradshard.tickets.ticket_file import NOT_A_TICKET
from gradshard_core.aggregation.decoding import DecodedSource, DecodingMemory
from gradshard_core.errors import PlanError, SpecError, UpdateError
from gradshard_core.formats.codecs.registry import CODECS
from gradshard_core.formats.codecs.scaled_block import BlockCodec
from gradshard_core.formats.codecs.topk import CHUNK, INDEX_BYTES, TopK
from gradshard_core.formats.compressed_updates import (
    ENCODED_KEY,
    EncodedLayout,
    EncodedRuns,
    encode_layout,
    parse_update,
)
from gradshard_core.formats.dtypes import DTYPES
from gradshard_core.formats.headers import (
    MAX_HEADER_BYTES,
    SAMPLES_KEY,
    Header,
    parse_header,
    parse_samples,
)
from gradshard_core.formats.object_keys import ObjectVersion, RoundKeys, check_id, parse_update_key
from gradshard_core.formats.tensor_layout import PREFIX_BYTES, Layout
from gradshard_core.planning.plan_parts import Rejection
from gradshard_core.rounds import arrivals
from gradshard_core.rounds.layout_vote import difference, majority
from gradshard_core.rounds.seen_layouts import SeenLayout
from gradshard_core.specs.round_spec_checks import parse_spec
from gradshard_core.stragglers.assignment_settings import AssignmentSettings
from gradshard_core.stragglers.assignments import assign, find_target
from gradshard_core.stragglers.client_report import parse_report
from gradshard_core.stragglers.layers import check_depth, coverage_of, layers_of
from tests import compressed

MAX_REASON: Final = 2_000
"""Characters of a rejection: its client reads it, and the machine carries it in 256 KiB for all."""

MAX_READ: Final = 100_000
"""Header bytes that are made up where an object says it has more than it has; more is slow."""

KEYS: Final = RoundKeys("r")
SPEC: Final = parse_spec({"clients": ["c"], "codecs": list(CODECS)})
TERMS: Final = AssignmentSettings(batch_size=8, epochs=1, learning_rate=0.1)


class _Memory:
    """A bucket of one update, as :mod:`gradshard_core.rounds.arrivals` reads it."""

    def __init__(self, blob: bytes, nbytes: int) -> None:
        self._blob, self._source = blob, ObjectVersion("key", "v", '"etag"', nbytes)

    def get_head(self, _key: str, nbytes: int) -> tuple[bytes, ObjectVersion]:
        return self._blob[:nbytes], self._source

    def get_range(self, _source: ObjectVersion, start: int, end: int) -> bytes:
        data = self._blob[start:end]
        return data + b" " * (end - start - len(data))


def update(data: bytes) -> None:
    """An object as it lies in the bucket; the first byte says whether it is as long as it says."""
    blob = data[1:]
    declared = int.from_bytes(blob[:PREFIX_BYTES], "little")
    is_read = declared < MAX_READ or declared > MAX_HEADER_BYTES
    nbytes = PREFIX_BYTES + declared + data[0] if data[:1] > b"\x80" and is_read else len(blob)
    _check_update(blob, nbytes)


def header(data: bytes) -> None:
    """A header that stands in an object of the size it speaks of last."""
    numbers = re.findall(rb"\d{1,12}", data)
    nbytes = PREFIX_BYTES + len(data) + int(numbers[-1] if numbers else 0)
    _check_update(len(data).to_bytes(PREFIX_BYTES, "little") + data, nbytes)


def pair(data: bytes) -> None:
    """Two headers, with a zero byte between them, of updates that are to be averaged."""
    found: dict[str, Header] = {}
    for client, text in zip("ab", data.split(b"\0", 1), strict=False):
        numbers = re.findall(rb"\d{1,12}", text)
        nbytes = PREFIX_BYTES + len(text) + int(numbers[-1] if numbers else 0)
        try:
            found[client] = parse_header(text, nbytes)
        except UpdateError as error:
            _check_reason(error)
    layouts = {client: parsed.layout for client, parsed in found.items()}
    if not layouts:
        return
    try:
        winner, whose = majority(
            {client: SeenLayout.of(layout) for client, layout in layouts.items()}
        )
    except PlanError as error:
        _check_reason(error)
        winner, whose = layouts["a"], "that of client 'a'"
    for partial in (False, True):
        for client, layout in layouts.items():
            reason = difference(layout, winner, whose, partial=partial)
            if reason is not None:
                _check_reason(reason)
                continue
            _check_runs(winner, found[client])
            layers = layers_of(winner)
            try:
                check_depth(layers, coverage_of(layers, layouts[client].shapes))
            except UpdateError as error:
                _check_reason(error)


def report(data: bytes) -> None:
    """Metadata: fields and values by turns, a line each."""
    names = [SAMPLES_KEY, "train_seconds", "batch_size", "epochs", "steps"]
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    metadata = dict(zip(names, lines, strict=False))
    try:
        samples = parse_samples(metadata)
    except UpdateError as error:
        _check_reason(error)
        samples = 1
    parsed = parse_report(samples, metadata)
    for note in parsed.notes:
        _check_reason(note)
    target = find_target(TERMS, [("a", parsed)])
    for entry in assign(TERMS, target, [("a", parsed)]):
        json.dumps(asdict(entry), allow_nan=False)


def key(data: bytes) -> None:
    """The key of an object, as an event gives it."""
    text = data.decode("utf-8", "replace")
    parsed = parse_update_key(text)
    if parsed is None:
        return
    try:
        keys, client = RoundKeys(parsed.round_id), check_id("client", parsed.client)
    except SpecError as error:
        _check_reason(error)
        return
    assert keys.update(client) == text
    assert keys.rejection(client).startswith(keys.root)


def ticket(data: bytes) -> None:
    """A ticket's file."""
    with contextlib.suppress(*NOT_A_TICKET):
        Ticket.parse(data)


def units(data: bytes) -> None:
    """Units of a codec, which the first byte names; they are read in two pieces."""
    codecs = [codec for codec in CODECS.values() if isinstance(codec, BlockCodec)]
    codec = codecs[data[0] % len(codecs)] if data else codecs[0]
    rows = (len(data) - 1) // codec.unit_bytes
    if rows < 1:
        return
    stored = np.frombuffer(data, np.uint8, rows * codec.unit_bytes, 1)
    elements = 32 * rows - data[0] // len(codecs) % 32
    layout = Layout.pack([("w", "F32", (elements,))])
    out = _decoded(encode_layout(layout, codec.name, {"w": ()}), stored.tobytes())
    shaped = stored.reshape(rows, -1)
    expected = compressed.decode_tensor(codec.name, shaped, "F32", (elements,))
    assert np.array_equal(np.frombuffer(out, np.float32), expected, equal_nan=True)


def entries(data: bytes) -> None:
    """A unit of entries: the first byte says the type, and the next three how many elements."""
    codec = TopK()
    dtype = ("F32", "BF16")[data[0] % 2] if data else "F32"
    size = DTYPES[dtype].size
    elements = 1 + int.from_bytes(data[1:4], "little") % (2 * CHUNK)
    body = data[4:]
    least = codec.unit_bytes(elements, 0, size)
    body = body[: len(body) - (len(body) - least) % (INDEX_BYTES + size)]
    if codec.check_unit(len(body), elements, size) is not None:
        return
    layout = Layout.pack([("w", dtype, (elements,))])
    out = _decoded(encode_layout(layout, codec.name, {"w": (len(body),)}), body)
    expected = compressed.decode_entries(body, dtype, (elements,), (len(body),))
    found = np.frombuffer(out, expected.dtype)
    assert np.array_equal(found.astype(np.float32), expected.astype(np.float32), equal_nan=True)


def _decoded(layout: EncodedLayout, stored: bytes) -> bytearray:
    """Return the elements of a tensor that is encoded; they are read in two pieces."""
    plain = layout.decoded
    runs = plain.runs_in(layout, 0)
    assert isinstance(runs, EncodedRuns)
    [asked] = runs.ranges(0, plain.nbytes)
    assert asked == (0, len(stored))
    source = DecodedSource(_Stream(stored), runs, 0, plain.nbytes, DecodingMemory())
    out = bytearray(plain.nbytes)
    cut = len(out) // 8 * 4
    with np.errstate(all="ignore"):
        source.read_into(memoryview(out)[:cut])
        source.read_into(memoryview(out)[cut:])
    return out


class _Stream:
    """Bytes, as a task reads them."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def read_into(self, buffer: memoryview) -> None:
        assert self._data.readinto(buffer) == len(buffer)


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    target.__name__: target
    for target in (update, header, pair, report, key, ticket, units, entries)
}


def _check_update(blob: bytes, nbytes: int) -> None:
    store: Any = _Memory(blob, nbytes)
    found = arrivals.check_update(store, KEYS, "c", SPEC)
    if isinstance(found, Rejection):
        _check_reason(found.reason)
        return
    assert found is not None
    layout = found.header.layout
    position = 0
    for tensor in layout.tensors:
        assert tensor.start == position <= tensor.end
        position = tensor.end
    stored = layout.stored.nbytes
    assert stored == nbytes - found.header.data_offset
    assert position > 0
    assert [span.end for span in layout.spans][-1] == position
    rewritten = layout.header(found.header.metadata)
    again = parse_update(rewritten[PREFIX_BYTES:], len(rewritten) + stored)
    assert again.layout.shapes == layout.shapes
    assert _plain(again.metadata) == _plain(found.header.metadata)
    _check_runs(layout, found.header)
    for note in parse_report(found.samples, found.header.metadata).notes:
        _check_reason(note)


def _plain(metadata: dict[str, str]) -> dict[str, str]:
    """Return metadata without the texts that are written anew."""
    return {name: text for name, text in metadata.items() if name != ENCODED_KEY}


def _check_runs(layout: Any, parsed: Header) -> None:
    runs = layout.runs_in(parsed.layout, parsed.data_offset)
    assert sum(run.end - run.start for run in runs) == parsed.layout.nbytes
    assert runs.nbytes == sum(t.end - t.start for t in parsed.layout.stored.tensors)
    for run in runs:
        assert run.offset >= parsed.data_offset


def _check_reason(reason: object) -> None:
    text = str(reason)
    assert len(text) <= MAX_REASON, len(text)
    text.encode()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text), text
