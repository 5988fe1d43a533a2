"""Updates in other orders: few requests, bounded memory, and a limit on what an order may cost."""

import io
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradshard_core.aggregation import reordered_reads
from gradshard_core.aggregation.block_sizes import SLICE_BYTES, reorder_memory_bytes
from gradshard_core.aggregation.reordered_reads import (
    GAP_BYTES,
    GROUPED,
    Disorder,
    groups,
    requests,
)
from gradshard_core.errors import ChangedObjectError, StoreError
from gradshard_core.formats.object_keys import ObjectVersion
from gradshard_core.formats.tensor_layout import Layout
from gradshard_core.s3 import range_streams, retries
from gradshard_core.s3.range_streams import ReorderedStream
from gradshard_core.s3.traffic import Meter
from gradshard_core.units import MIB

SOURCE = ObjectVersion("key", "", "", 0)


class Opener:
    """An object in memory, which counts what is asked of it."""

    def __init__(self, blob: bytes) -> None:
        self.blob, self.asked, self.gone = blob, list[tuple[int, int]](), False
        self.meter = Meter()

    def get_body(self, _: ObjectVersion, start: int, end: int) -> io.BytesIO:
        if self.gone:
            raise ChangedObjectError("gone")
        self.asked.append((start, end))
        return io.BytesIO(self.blob[start:end])


def shuffled(sizes: list[int], seed: int = 0) -> tuple[Layout, Layout]:
    tensors = [(f"t{n}", "U8", (size,)) for n, size in enumerate(sizes)]
    order = np.random.default_rng(seed).permutation(len(tensors))
    return Layout.pack(tensors), Layout.pack(tensors[n] for n in order)


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=30),
    seed=st.integers(0, 1000),
    block=st.integers(1, 300),
    gap=st.integers(0, 50),
    grouped=st.integers(1, 8),
    turn=st.integers(1, 64),
    data=st.data(),
)
def test_any_order_gives_the_bytes_in_the_layouts_order(
    sizes: list[int], seed: int, block: int, gap: int, grouped: int, turn: int, data: st.DataObject
) -> None:
    mine, theirs = shuffled(sizes, seed)
    blob = np.random.default_rng(seed).bytes(7 + theirs.nbytes)
    place = {tensor.name: 7 + tensor.start for tensor in theirs.tensors}
    expected = b"".join(blob[place[t.name] : place[t.name] + t.end - t.start] for t in mine.tensors)
    start = data.draw(st.integers(0, mine.nbytes))
    end = data.draw(st.integers(start, mine.nbytes))
    blocks = [(at, min(at + block, end)) for at in range(start, end, block)]
    runs, opener = mine.runs_in(theirs, 7), Opener(blob)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reordered_reads, "GAP_BYTES", gap)
        patch.setattr(reordered_reads, "GROUPED", grouped)
        patch.setattr(range_streams, "SLICE_BYTES", turn)
        memory = memoryview(bytearray(turn + block))
        stream = ReorderedStream(opener, SOURCE, runs, blocks, memory)
        stream.open()
        read = bytearray(end - start)
        for at in range(0, len(read), turn):
            stream.read_into(memoryview(read)[at : at + turn])
        assert read == expected[start:end]
        with pytest.raises(StoreError, match="past its ranges"):
            stream.read_into(memoryview(bytearray(1)))
        assert opener.asked == list(requests(groups(runs, blocks)))
        assert all(len(group.ranges) <= grouped for group in groups(runs, blocks))


class UnderWay:
    """The number of requests that are under way, noted whenever one begins."""

    def __init__(self) -> None:
        self.now, self.noted, self._lock = 0, list[int](), threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self.now += 1
            self.noted.append(self.now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.now -= 1


class Late(Opener):
    """An object whose answers take some time, and sometimes fail at first."""

    def __init__(self, blob: bytes, under_way: UnderWay) -> None:
        super().__init__(blob)
        self._under_way = under_way

    def get_body(self, source: ObjectVersion, start: int, end: int) -> io.BytesIO:
        with self._under_way:
            time.sleep(0.02)
        body = super().get_body(source, start, end)
        if len(self.asked) % 5 == 3:
            raise OSError("reset")
        return body


def test_requests_of_the_next_block_are_made_while_other_inputs_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retries, "sleep_backoff", lambda _: None)
    mine, theirs = shuffled([100] * 400)
    runs, blob = mine.runs_in(theirs, 0), np.random.default_rng(0).bytes(mine.nbytes)
    place = {tensor.name: tensor.start for tensor in theirs.tensors}
    expected = b"".join(blob[place[t.name] : place[t.name] + 100] for t in mine.tensors)
    blocks = [(at, at + 2000) for at in range(0, mine.nbytes, 2000)]
    under_way = UnderWay()
    openers = [Late(blob, under_way) for _ in range(4)]
    memory = memoryview(bytearray(SLICE_BYTES + 2000))
    with ThreadPoolExecutor(8) as pool:
        opened = [ReorderedStream(o, SOURCE, runs, blocks, memory, pool) for o in openers]
        read = [bytearray(mine.nbytes) for _ in opened]
        for start, end in blocks:
            for stream, target in zip(opened, read, strict=True):
                stream.read_into(memoryview(target)[start:end])
        for stream in opened:
            stream.close()
    assert [bytes(target) for target in read] == [expected] * 4
    asked = sum(len(opener.asked) for opener in openers)
    assert asked >= 4 * len(blocks)
    # One after another, each would be alone; so the time falls by this factor, on any machine.
    assert sum(under_way.noted) / len(under_way.noted) > 1 / 0.6


def test_an_object_deleted_meanwhile_is_reported_when_it_is_read() -> None:
    mine, theirs = shuffled([100] * 40)
    runs, opener = mine.runs_in(theirs, 0), Opener(bytes(mine.nbytes))
    blocks = [(0, 2000), (2000, 4000)]
    with ThreadPoolExecutor(1) as pool:
        memory = memoryview(bytearray(SLICE_BYTES + 2000))
        stream = ReorderedStream(opener, SOURCE, runs, blocks, memory, pool)
        stream.open()
        opener.gone = True
        stream.read_into(memoryview(bytearray(2000)))
        with pytest.raises(ChangedObjectError, match="gone"):
            stream.read_into(memoryview(bytearray(2000)))
        stream.close()


def test_the_projected_requests_of_an_order_are_the_real_ones() -> None:
    mine, theirs = shuffled([4000 * n for n in range(1, 120)])
    runs, opener = mine.runs_in(theirs, 0), Opener(bytes(mine.nbytes))
    size = reorder_memory_bytes()
    blocks = [(at, min(at + size, mine.nbytes)) for at in range(0, mine.nbytes, size)]
    memory = memoryview(bytearray(SLICE_BYTES + size))
    ReorderedStream(opener, SOURCE, runs, blocks, memory).read_into(
        memoryview(bytearray(mine.nbytes))
    )
    disorder = Disorder.of(runs, mine.nbytes)
    assert len(opener.asked) == 1 + disorder.requests
    assert sum(end - start for start, end in opener.asked) == mine.nbytes + disorder.skipped


def test_an_update_in_the_rounds_order_is_one_request_as_it_was() -> None:
    mine, _ = shuffled([100] * 500)
    opener = Opener(bytes(mine.nbytes))
    runs = mine.runs_in(mine, 0)
    stream = ReorderedStream(opener, SOURCE, runs, [(0, mine.nbytes)], memoryview(b""))
    stream.read_into(memoryview(bytearray(mine.nbytes)))
    assert opener.asked == [(0, mine.nbytes)]
    assert Disorder.of(runs, mine.nbytes) == Disorder()


def test_twenty_thousand_shuffled_tensors_are_a_handful_of_requests() -> None:
    mine, theirs = shuffled([100] * 20_000)
    runs = mine.runs_in(theirs, 0)
    assert len(runs) > 19_000
    disorder = Disorder.of(runs, mine.nbytes)
    assert disorder.requests <= 20_000 / GROUPED + 2
    assert disorder.excess(mine.nbytes) is None


def models() -> Iterator[list[tuple[str, str, tuple[int]]]]:
    """Name the tensors of models like ResNet-50, EfficientNet-B7 and BERT-base, by their order."""
    yield [
        (f"layer{n // 12}.{n % 12}.{kind}", "F32", (size,))
        for n in range(53)
        for kind, size in (("conv", 18_000 * (1 + n)), *((f"bn.{k}", 64 + 16 * n) for k in "abcd"))
    ]
    yield [
        (f"block.{n}.{kind}", "F32", (size,))
        for n in range(150)
        for kind, size in (("conv", 6_000 * (1 + n)), *((f"bn.{k}", 500) for k in "abcdefg"))
    ]
    yield [
        (f"encoder.layer.{n}.{kind}.{what}", "F32", (size,))
        for n in range(12)
        for kind, width in (("q", 590_000), ("k", 590_000), ("v", 590_000), ("out", 2_360_000))
        for what, size in (("weight", width), ("bias", 768))
    ]


@pytest.mark.parametrize(
    "model", list(models()), ids=["convolutions", "many small ones", "transformer"]
)
@pytest.mark.parametrize("order", [sorted, lambda t: t[::-1], lambda t: sorted(t, key=by_size)])
def test_orders_in_which_libraries_write_a_model_are_let_pass(
    model: list[tuple[str, str, tuple[int]]],
    order: Callable[[list[tuple[str, str, tuple[int]]]], list[tuple[str, str, tuple[int]]]],
) -> None:
    mine, theirs = Layout.pack(model), Layout.pack(order(model))
    disorder = Disorder.of(mine.runs_in(theirs, 0), mine.nbytes)
    print(f"{mine.nbytes / 1e6:.0f} MB, {len(model)} tensors: {disorder}")
    assert disorder.excess(mine.nbytes) is None


def by_size(tensor: tuple[str, str, tuple[int]]) -> int:
    return tensor[2][0]


def test_an_order_that_costs_more_is_rejected_with_the_numbers() -> None:
    mine, theirs = shuffled([100_000] * 4_000)
    disorder = Disorder.of(mine.runs_in(theirs, 0), mine.nbytes)
    excess = disorder.excess(mine.nbytes)
    most = 256 + mine.nbytes // GAP_BYTES
    assert excess is not None
    assert f"its {mine.nbytes} bytes takes {disorder.requests} further requests" in excess
    assert f"reads {disorder.skipped} bytes in vain" in excess
    assert f"may take {most} further requests, and {GAP_BYTES} bytes in vain count as one" in excess
    assert "write its tensors in the round's order" in excess


def test_cutting_begins_more_groups() -> None:
    disorder = Disorder(requests=10, skipped=20 * MIB, groups=5)
    assert disorder.cut(1) == (10, 20 * MIB)
    assert disorder.cut(6) == (20, 40 * MIB)
    assert Disorder().cut(6) == (0, 0)
