"""The order of additions: reading it, and who executes which part."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradshard_core.aggregation import addition_order, topologies
from gradshard_core.aggregation.addition_order import Order
from gradshard_core.aggregation.topologies import MAX_FAN_IN
from gradshard_core.errors import SpecError

SIZES = st.lists(st.integers(2, MAX_FAN_IN), max_size=6).map(tuple)


@given(order=SIZES)
def test_an_order_survives_being_written(order: Order) -> None:
    assert addition_order.parse_order(addition_order.format_order(order)) == order


@given(
    name=st.sampled_from(["shards", "lambda_fl", "lifl", "grid"]),
    contributors=st.integers(1, MAX_FAN_IN**2),
)
def test_a_topologys_own_order_is_one_that_can_be_asked_for(name: str, contributors: int) -> None:
    if name == "shards":
        contributors = min(contributors, MAX_FAN_IN)
    levels = topologies.group(name, contributors)
    order = addition_order.natural_order(levels)
    assert addition_order.parse_order(addition_order.format_order(order)) == order
    addition_order.check_order(order, contributors)
    # Each task adds one input after another.
    assert addition_order.split_order(order, levels) == (addition_order.SEQUENTIAL,) * len(levels)
    # And asked for, it gives the same groups again.
    if order:
        assert topologies.group(name, contributors, order) == levels


def test_orders_by_hand() -> None:
    assert addition_order.parse_order("sequential") == ()
    assert addition_order.parse_order("tree:4,5") == (4, 5)
    assert addition_order.format_order(()) == "sequential"
    assert addition_order.natural_order(((5, 5, 5, 5), (4,))) == (5, 4)
    assert addition_order.natural_order(((20,),)) == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("tree", "order is 'tree', neither sequential nor such as tree:4,4"),
        ("tree:", "neither sequential"),
        ("tree:4,", "neither sequential"),
        ("tree:4, 4", "neither sequential"),
        ("tree:-4", "neither sequential"),
        ("tree:4\n", "neither sequential"),
        ("Sequential", "neither sequential"),
        ([4, 4], r"order is \[4, 4\]"),
        (None, "order is None"),
        ("tree:1,4", "order tree:1,4 has groups of 1; a group is of 2 to 64"),
        ("tree:4,65", "order tree:4,65 has groups of 65; a group is of 2 to 64"),
        ("tree:0", "has groups of 0"),
    ],
)
def test_rejects_invalid_orders(text: object, reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        addition_order.parse_order(text)


@given(order=SIZES.filter(len), contributors=st.integers(1, MAX_FAN_IN**2))
def test_an_order_adds_up_to_one_sum_with_no_level_for_nothing(
    order: Order, contributors: int
) -> None:
    enough = math.prod(order) >= contributors
    needless = math.prod(order[:-1]) >= contributors
    try:
        addition_order.check_order(order, contributors)
    except SpecError:
        assert needless or not enough
    else:
        assert enough
        assert not needless


@pytest.mark.parametrize(
    ("order", "contributors", "reason"),
    [
        ((4, 4), 20, "order tree:4,4 adds 20 contributors up to 2 sums, .*: give tree:4,4,2"),
        ((2,), 200, "order tree:2 adds 200 contributors up to 100 sums, .*: give more levels"),
        (
            (4, 5, 2),
            20,
            "order tree:4,5,2 has 3 levels, but 20 contributors are one sum after 2: give tree:4,5",
        ),
        ((4,), 1, "has 1 levels, but 1 contributors are one sum after 0: give sequential"),
    ],
)
def test_an_error_suggests_an_order_that_fits(order: Order, contributors: int, reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        addition_order.check_order(order, contributors)


def test_a_suggested_order_is_accepted() -> None:
    addition_order.check_order((4, 4, 2), 20)
    addition_order.check_order((4, 5), 20)
    addition_order.check_order((), 20)


@pytest.mark.parametrize(
    ("order", "levels", "parts"),
    [
        # One function does it all, whole or with its last groups cut short.
        ((4, 5), ((20,),), ((4, 5),)),
        ((4, 5), ((18,),), ((4, 5),)),
        # One level each.
        ((4, 5), ((4,) * 5, (5,)), ((), ())),
        # Two and one; one and two.
        ((2, 2, 5), ((4,) * 5, (5,)), ((2, 2), ())),
        ((4, 5, 2), ((4,) * 10, (10,)), ((), (5, 2))),
        # Of so few there is but one group: what the order would add above it does not happen.
        ((4, 5), ((3,),), ((),)),
        ((), ((20,),), ((),)),
    ],
)
def test_each_level_executes_its_part(
    order: Order, levels: topologies.Levels, parts: tuple[Order, ...]
) -> None:
    assert addition_order.split_order(order, levels) == parts


@given(
    sizes=st.lists(st.integers(2, 6), min_size=1, max_size=6).map(tuple),
    cuts=st.data(),
    short=st.integers(0, 5),
)
def test_a_tree_may_be_cut_between_any_levels(
    sizes: Order, cuts: st.DataObject, short: int
) -> None:
    full = math.prod(sizes)
    # Some contributors of the last group may be missing.
    contributors = max(full - min(short, sizes[0] - 1), 1)
    at = sorted(cuts.draw(st.sets(st.integers(1, len(sizes) - 1)))) if len(sizes) > 1 else []
    pieces = [sizes[a:b] for a, b in zip([0, *at], [*at, len(sizes)], strict=True)]
    levels: list[tuple[int, ...]] = []
    inputs = contributors
    for piece in pieces:
        levels.append(topologies.groups(inputs, math.prod(piece)))
        inputs = len(levels[-1])
    assert addition_order.split_order(sizes, tuple(levels)) == tuple(
        piece if len(piece) > 1 else () for piece in pieces
    )


@pytest.mark.parametrize(
    ("order", "levels", "reason"),
    [
        (
            (),
            ((5, 5), (2,)),
            "order sequential .* adds groups of 5 and then groups of 2; give tree:5,2, or an",
        ),
        (
            (4, 5),
            ((5,) * 4, (4,)),
            "order tree:4,5 .* groups of 5 and then groups of 4; give tree:5,4",
        ),
        ((2, 5, 2), ((4,) * 5, (5,)), "order tree:2,5,2 .* give tree:4,5"),
        # It ends too early.
        ((4,), ((4,) * 5, (5,)), "order tree:4 .* give tree:4,5"),
        ((2,), ((4,),), "order tree:2 .* give sequential"),
    ],
)
def test_rejects_groups_that_are_not_the_topologys(
    order: Order, levels: topologies.Levels, reason: str
) -> None:
    with pytest.raises(SpecError, match=reason):
        addition_order.split_order(order, levels)
