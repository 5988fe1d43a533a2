"""A masked round in one process: the protocol of docs/masked-protocol.md, without what carries it.

Clients, aggregator and keeper hold what the page says they hold, and nothing else.
"""

import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from gradshard_core.aggregation.fixed_point import FixedPoint
from gradshard_core.formats.masked_updates import roster_digest
from gradshard_core.masking import sealing
from gradshard_core.masking.key_stream import KeyStream
from gradshard_core.masking.sealing import SealContext

ELEMENTS = 1_001

Array = np.ndarray[Any, Any]

ONE_IN_A_MILLION = 377.0
"""Chi-square with 255 degrees of freedom exceeds it so often."""


def add(elements: Any, sums: Any) -> None:
    np.add(sums, elements, out=sums)


def subtract(elements: Any, sums: Any) -> None:
    np.subtract(sums, elements, out=sums)


def chi_square(counts: Array) -> float:
    """Compare how often each byte occurs with how often it should."""
    expected = counts.sum() / 256
    return float(((counts - expected) ** 2 / expected).sum())


def mask(seed: bytes, fixed: FixedPoint, start: int, end: int) -> Array:
    """Return elements [start, end) of the mask of a seed."""
    out = np.empty(end - start, fixed.dtype)
    size = fixed.dtype.itemsize
    KeyStream(seed, start * size, end * size).read_into(memoryview(out.view(np.uint8)))
    return out


class Client:
    """A client: it uploads once."""

    def __init__(self, number: int, fixed: FixedPoint) -> None:
        rng = np.random.default_rng(number)
        self.name = f"c{number}"
        self.values = rng.normal(0, 2, ELEMENTS).astype(np.float32)
        self.samples = int(rng.integers(1, fixed.max_samples + 1))
        self.fixed = fixed

    def upload(self, keeper: bytes, context: SealContext) -> tuple[Array, bytes]:
        """Return the masked update, with the count as its last element, and the sealed seed."""
        seed, elements = os.urandom(32), np.empty(ELEMENTS + 1, self.fixed.dtype)
        self.fixed.encode(self.values, self.samples, elements[:-1])
        elements[-1] = self.samples
        add(mask(seed, self.fixed, 0, ELEMENTS + 1), elements)
        return elements, sealing.seal(seed, keeper, context, os.urandom(32))


def sum_of_masks(
    sealed: Sequence[tuple[SealContext, bytes]], private: bytes, fixed: FixedPoint, cuts: list[int]
) -> Array:
    """Return what the keeper answers: the sum of the masks, computed range by range."""
    seeds = [sealing.unseal(message, private, context) for context, message in sealed]
    total = np.zeros(ELEMENTS + 1, fixed.dtype)
    for start, end in itertools.pairwise(cuts):
        for seed in seeds:
            add(mask(seed, fixed, start, end), total[start:end])
    return total


def plain_sum(clients: Sequence[Client], fixed: FixedPoint) -> list[int]:
    """Return the sum without masks, in whole numbers of any size, from the definition."""
    sums = [0] * ELEMENTS
    for client in clients:
        for index, value in enumerate(client.values.tolist()):
            clipped = max(-fixed.bound, min(fixed.bound, value))
            sums[index] += client.samples * round(clipped / fixed.step)
    return sums


@pytest.mark.parametrize("ring_bits", [32, 64])
@pytest.mark.parametrize(("count", "lost"), [(1, 0), (3, 1), (10, 3), (40, 12)])
def test_the_masked_sum_is_the_plain_one_whoever_drops_out(
    ring_bits: int, count: int, lost: int
) -> None:
    fixed = FixedPoint(4.0, 16, ring_bits, max_clients=40, max_samples=1_000)
    clients = [Client(number, fixed) for number in range(count)]
    private = sealing.new_key()
    roster = tuple(client.name for client in clients)
    contexts = {
        client.name: SealContext("r", client.name, roster_digest(roster), count - lost, repr(fixed))
        for client in clients
    }
    uploads = {
        client.name: client.upload(sealing.public_key(private), contexts[client.name])
        for client in clients
    }
    # The round freezes the contributors: a third never arrived.
    frozen = clients[lost:]
    total = np.zeros(ELEMENTS + 1, fixed.dtype)
    for client in reversed(frozen):
        add(uploads[client.name][0], total)
    sealed = [(contexts[client.name], uploads[client.name][1]) for client in frozen]
    cuts = [0, 1, 17, 500, ELEMENTS + 1]
    subtract(sum_of_masks(sealed, private, fixed, cuts), total)
    samples = fixed.check_total(int(total[-1]), len(frozen))
    assert samples == sum(client.samples for client in frozen)
    signed = total[:-1].view(f"i{fixed.dtype.itemsize}")
    assert signed.tolist() == plain_sum(frozen, fixed)
    average = fixed.decode(total[:-1], samples)
    clipped = [np.clip(client.values.astype("f8"), -4, 4) * client.samples for client in frozen]
    exact = sum(clipped) / samples
    assert np.abs(average - exact).max() <= fixed.max_error * (1 + 1e-9)


@pytest.mark.parametrize("ring_bits", [32, 64])
def test_a_masked_update_looks_uniform_even_if_the_update_is_all_zeros(ring_bits: int) -> None:
    fixed = FixedPoint(4.0, 16, ring_bits, max_clients=3, max_samples=10)
    client = Client(0, fixed)
    counts = np.zeros(256)
    for _ in range(200):
        client.values = np.zeros(ELEMENTS, np.float32)
        context = SealContext("r", client.name, roster_digest(["c0", "c1"]), 2, "")
        masked, _ = client.upload(sealing.public_key(sealing.new_key()), context)
        counts += np.bincount(masked.view(np.uint8), minlength=256)
    assert chi_square(counts) < ONE_IN_A_MILLION


def test_the_sum_of_some_masks_opens_no_other_sum() -> None:
    fixed = FixedPoint(4.0, 16, 32, max_clients=3, max_samples=10)
    clients = [Client(number, fixed) for number in range(3)]
    private = sealing.new_key()
    roster = tuple(client.name for client in clients)
    contexts = [SealContext("r", name, roster_digest(roster), 3, "") for name in roster]
    uploads = [
        client.upload(sealing.public_key(private), context)
        for client, context in zip(clients, contexts, strict=True)
    ]
    sealed = [(context, seal) for context, (_, seal) in zip(contexts, uploads, strict=True)]
    answer = sum_of_masks(sealed, private, fixed, [0, ELEMENTS + 1])
    for left_out in range(3):
        total = np.zeros(ELEMENTS + 1, fixed.dtype)
        for number, (masked, _) in enumerate(uploads):
            if number != left_out:
                add(masked, total)
        subtract(answer, total)
        # What is left is masked by the stream of the update that was left out.
        assert chi_square(np.bincount(total.view(np.uint8), minlength=256)) < ONE_IN_A_MILLION
        add(uploads[left_out][0], total)
        assert total[:-1].view("i4").tolist() == plain_sum(clients, fixed)
