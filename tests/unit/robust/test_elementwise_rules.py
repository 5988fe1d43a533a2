"""Element-wise rules: their definition, and that no cut changes a bit."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradshard_core.aggregation import kernel
from gradshard_core.aggregation.kernel import NonFiniteSumError, WeightedRange, aggregate
from gradshard_core.aggregation.sharding import cut_shards
from gradshard_core.formats.tensor_layout import Layout
from gradshard_core.robust import elementwise_rules
from gradshard_core.robust.elementwise_rules import cut_of
from gradshard_core.robust.rules import parse_robust_rule
from tests import reference
from tests.unit.aggregation.test_kernel import TENSOR, MemorySource, random_updates

RULES: list[dict[str, Any]] = [
    {"name": "median"},
    {"name": "trimmed_mean", "beta": 0.2},
    {"name": "trimmed_mean", "beta": 0.49},
    {"name": "sign"},
]


def combine(
    rule: dict[str, Any], updates: Sequence[dict[str, reference.Array]], shards: int = 1
) -> dict[str, reference.Array]:
    """Combine updates shard by shard, as tasks do."""
    layout = Layout.pack((n, reference.NAMES[t.dtype], t.shape) for n, t in updates[0].items())
    raw = [b"".join(update[t.name].tobytes() for t in layout.tensors) for update in updates]
    reduction = parse_robust_rule(rule).reduction(is_disordered=False)
    out = bytearray()
    for shard in cut_shards(layout.spans, layout.nbytes, shards):
        weighted_range = WeightedRange(shard.start, shard.end, [1.0] * len(updates))
        sources = [MemorySource(data[shard.start : shard.end]) for data in raw]
        aggregate(sources, [weighted_range], reduction, layout.spans, out.extend)
    return {
        t.name: np.frombuffer(out[t.start : t.end], reference.NUMPY[t.dtype]).reshape(t.shape)
        for t in layout.tensors
    }


def assert_same(found: dict[str, reference.Array], expected: dict[str, reference.Array]) -> None:
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].tobytes() == tensor.tobytes(), name


@settings(deadline=None, max_examples=150)
@given(
    rule=st.sampled_from(RULES),
    tensors=st.lists(TENSOR, min_size=1, max_size=6).filter(
        lambda ts: any(int(np.prod(shape)) for _, shape in ts)
    ),
    clients=st.integers(1, 13),
    shards=st.integers(1, 5),
    block=st.integers(2, 12),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_cut_gives_the_bits_of_sorted_columns(
    rule: dict[str, Any],
    tensors: list[tuple[str, tuple[int, ...]]],
    clients: int,
    shards: int,
    block: int,
    seed: int,
) -> None:
    updates, _ = random_updates(tensors, clients, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elementwise_rules, "ROW_BYTES", 8 * block)
        patch.setattr(elementwise_rules, "block_bytes", lambda *_, **__: 8 * block)
        patch.setattr(kernel, "SLICE_BYTES", 8 * max(1, block // 2))
        found = combine(rule, updates, shards)
    assert_same(found, reference.columns(updates, **{"rule": rule["name"], **_beta(rule)}))


def _beta(rule: dict[str, Any]) -> dict[str, float]:
    return {"beta": rule["beta"]} if "beta" in rule else {}


@settings(deadline=None, max_examples=100)
@given(
    tensors=st.lists(TENSOR, min_size=1, max_size=4).filter(
        lambda ts: any(int(np.prod(shape)) for _, shape in ts)
    ),
    f=st.integers(1, 4),
    more=st.integers(0, 5),
    has_ties=st.booleans(),
    shards=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_second_pass_of_bulyan_takes_the_mean_around_the_median(
    tensors: list[tuple[str, tuple[int, ...]]],
    f: int,
    more: int,
    has_ties: bool,
    shards: int,
    seed: int,
) -> None:
    selected = 2 * f + 3 + more
    updates, _ = random_updates(tensors, selected, seed)
    if has_ties:
        updates = [{name: np.rint(t).astype(t.dtype) for name, t in u.items()} for u in updates]
    found = combine({"name": "bulyan", "f": f}, updates, shards)
    assert_same(found, reference.columns(updates, "bulyan", f=f))


@pytest.mark.parametrize(
    ("beta", "inputs", "cut"),
    [
        (0.29, 100, 29),  # 0.29 * 100 is 28.999999999999996
        (0.35, 180, 63),
        (1 / 49, 49, 1),
        (0.3, 10, 3),
        (0.2, 5, 1),
        (0.2, 4, 0),
        (0.49, 100, 49),
        (0.299999, 10, 2),
        (0.4499999999999999, 40, 17),  # the product would be rounded up
        (math.nextafter(0.5, 0), 10, 4),  # something is left
    ],
)
def test_trimmed_mean_leaves_out_as_many_as_by_hand(beta: float, inputs: int, cut: int) -> None:
    assert cut_of(beta, inputs) == cut
    updates = [{"w": np.full(2, number, "f4")} for number in range(inputs)]
    # Larger at one end, so that the mean depends on how many are left out.
    updates[inputs - cut - 1] = {"w": np.full(2, 1e4, "f4")}
    found = combine({"name": "trimmed_mean", "beta": beta}, updates)
    kept = sorted(float(update["w"][0]) for update in updates)[cut : inputs - cut]
    assert found["w"][0] == pytest.approx(sum(kept) / len(kept), rel=1e-5)


def test_beta_of_k_in_n_leaves_k_of_n_out() -> None:
    for inputs in range(3, 260):
        cuts = range(1, (inputs + 1) // 2)
        assert [cut_of(cut / inputs, inputs) for cut in cuts] == [*cuts]


@pytest.mark.slow
@pytest.mark.parametrize("clients", range(1, 65))
def test_network_sorts_every_column_of_zeros_and_ones(clients: int) -> None:
    # A network that sorts all zeros and ones sorts everything (Knuth, 5.3.4, theorem Z). Columns
    # of up to twelve are tried exhaustively, and beyond that all thresholds of random columns.
    rng = np.random.default_rng(clients)
    if clients <= 12:
        values = (np.arange(2**clients) >> np.arange(clients)[:, None]) & 1
    else:
        ranks = rng.permuted(np.tile(np.arange(clients)[:, None], 200), axis=0)
        values = np.concatenate([ranks < bound for bound in range(clients + 1)], axis=1)
    # Sorted, a column's ones are its last rows.
    expected = np.arange(clients)[:, None] >= clients - values.sum(axis=0)
    values = values.astype("u1")  # the network compares numbers of any type
    for cut in range((clients - 1) // 2 + 1):
        rows = elementwise_rules._sort([*values.copy()], np.empty_like(values[0]), cut)
        assert np.array_equal(rows, expected[cut : clients - cut])


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16"])
@pytest.mark.parametrize("clients", [1, 2, 3, 20, 21, 64])
def test_median_has_the_bits_of_numpy(dtype: str, clients: int) -> None:
    updates, _ = random_updates([(dtype, (501,))], clients, clients)
    expected = np.median(np.stack([update["t0"] for update in updates]), axis=0)
    assert combine({"name": "median"}, updates)["t0"].tobytes() == expected.tobytes()


@cache
def long_updates(dtype: str) -> list[dict[str, reference.Array]]:
    return random_updates([(dtype, (300_000,))], 9, 3)[0]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["F32", "BF16", "F64"])
def test_infinity_that_would_not_show_is_found(
    rule: dict[str, Any], value: float, dtype: str
) -> None:
    updates = [*long_updates(dtype)]
    updates[4] = {"t0": updates[4]["t0"].copy()}
    updates[4]["t0"][270_001] = value
    with pytest.raises(NonFiniteSumError) as raised:
        combine(rule, updates)
    assert raised.value.position // reference.NUMPY[dtype].itemsize <= 270_001


def test_zeros_are_positive_whatever_the_processor_prefers() -> None:
    zeros = [{"t0": np.array([sign * 0.0] * 5, "f4")} for sign in (-1, 1, -1, -1, 1)]
    for rule in RULES:
        assert combine(rule, zeros)["t0"].tobytes() == bytes(20)


def test_mean_of_middle_two_that_overflows_is_found() -> None:
    updates = [{"t0": np.array([3e38], "f4")} for _ in range(4)]
    with pytest.raises(NonFiniteSumError):
        combine({"name": "median"}, updates)
