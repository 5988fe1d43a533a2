"""Who adds up whose updates."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradshard_core.aggregation import topologies
from gradshard_core.aggregation.topologies import MAX_FAN_IN, TOPOLOGIES, Levels
from gradshard_core.errors import SpecError

CONTRIBUTORS = st.integers(1, MAX_FAN_IN**2)
ASKED = st.lists(st.integers(2, MAX_FAN_IN), max_size=3)


def assert_adds_up(levels: Levels, contributors: int) -> None:
    """Every input is in exactly one group, and one sum is left."""
    inputs = contributors
    for sizes in levels:
        assert min(sizes) > 0
        assert sum(sizes) == inputs
        inputs = len(sizes)
    assert inputs == 1


@given(name=st.sampled_from(sorted(TOPOLOGIES)), contributors=CONTRIBUTORS, sizes=ASKED)
def test_every_input_is_in_one_group_or_rejected_with_the_numbers(
    name: str, contributors: int, sizes: list[int]
) -> None:
    levels = TOPOLOGIES[name].group(contributors, sizes)
    assert_adds_up(levels, contributors)
    # The first level that is too wide is the one that is named.
    wide = [max(level) for level in levels if max(level) > MAX_FAN_IN]
    if wide:
        numbers = (
            rf"{name} would have a task add {wide[0]} .* of {contributors} clients, over the 64"
        )
        with pytest.raises(SpecError, match=numbers):
            topologies.group(name, contributors, sizes)
    else:
        assert topologies.group(name, contributors, sizes) == levels


@given(name=st.sampled_from(sorted(TOPOLOGIES)), contributors=CONTRIBUTORS, sizes=ASKED)
def test_no_level_is_for_nothing(name: str, contributors: int, sizes: list[int]) -> None:
    levels = TOPOLOGIES[name].group(contributors, sizes)
    assert all(max(level) > 1 for level in levels) or contributors == 1
    assert all(len(level) > 1 for level in levels[:-1])


@given(name=st.sampled_from(["grid", "lifl", "lambda_fl"]), contributors=CONTRIBUTORS, sizes=ASKED)
def test_groups_of_a_level_are_alike_but_the_last(
    name: str, contributors: int, sizes: list[int]
) -> None:
    for level in TOPOLOGIES[name].group(contributors, sizes):
        assert len(set(level[:-1])) <= 1
        assert level[-1] <= level[0]


def test_shards_add_all_at_once() -> None:
    assert topologies.group("shards", 64) == ((64,),)
    with pytest.raises(
        SpecError, match=r"shards would have a task add 65 updates of 65 .*take grid"
    ):
        topologies.group("shards", 65)


@given(contributors=CONTRIBUTORS)
def test_lambda_fl_is_the_papers(contributors: int) -> None:
    leaves, *root = topologies.lambda_fl(contributors)
    k = math.ceil(math.sqrt(contributors))
    # L = ⌈N/k⌉ leaves, and a root over them unless one leaf is all.
    assert len(leaves) == -(-contributors // k)
    assert max(leaves) == k
    assert root == ([(len(leaves),)] if len(leaves) > 1 else [])


@given(contributors=CONTRIBUTORS)
def test_lifl_is_the_papers(contributors: int) -> None:
    levels = topologies.lifl(contributors)
    b = next(b for b in range(2, 17) if b**3 >= contributors)
    leaves = -(-contributors // b)
    middles = -(-leaves // b)
    assert [len(level) for level in levels] == [
        count for count, below in ((leaves, 2), (middles, leaves), (1, middles)) if below > 1
    ]
    assert max(map(max, levels)) <= b


@pytest.mark.parametrize(
    ("name", "contributors", "levels"),
    [
        ("lambda_fl", 20, ((5, 5, 5, 5), (4,))),
        ("lambda_fl", 13, ((4, 4, 4, 1), (4,))),
        ("lambda_fl", 16, ((4, 4, 4, 4), (4,))),
        ("lambda_fl", 17, ((5, 5, 5, 2), (4,))),
        ("lambda_fl", 2, ((2,),)),
        ("lambda_fl", 1, ((1,),)),
        ("lifl", 20, ((3,) * 6 + (2,), (3, 3, 1), (3,))),
        ("lifl", 27, ((3,) * 9, (3,) * 3, (3,))),
        ("lifl", 28, ((4,) * 7, (4, 3), (2,))),
        ("lifl", 4, ((2, 2), (2,))),
        ("lifl", 2, ((2,),)),
        ("grid", 64, ((64,),)),
        ("grid", 65, ((33, 32), (2,))),
        ("grid", 200, ((50, 50, 50, 50), (4,))),
        ("grid", 1000, ((63,) * 15 + (55,), (16,))),
        ("grid", 4096, ((64,) * 64, (64,))),
    ],
)
def test_groups(name: str, contributors: int, levels: Levels) -> None:
    assert topologies.group(name, contributors) == levels


@given(contributors=CONTRIBUTORS)
def test_a_grid_has_as_few_groups_as_can_be_and_those_as_small(contributors: int) -> None:
    [first, *above] = topologies.grid(contributors)
    fewest = -(-contributors // MAX_FAN_IN)
    assert len(first) == fewest
    assert max(first) == -(-contributors // fewest)
    assert len(above) == (fewest > 1)


@pytest.mark.parametrize(
    ("name", "sizes", "levels"),
    [
        # A root takes all that is left; LIFL's leaves and middles are alike; a grid goes on.
        ("lambda_fl", [2], ((2,) * 10, (10,))),
        ("lifl", [2], ((2,) * 10, (2,) * 5, (5,))),
        ("lifl", [5, 2], ((5,) * 4, (2, 2), (2,))),
        ("grid", [2], ((2,) * 10, (2,) * 5, (2, 2, 1), (2, 1), (2,))),
        ("grid", [10, 2], ((10, 10), (2,))),
        ("lambda_fl", [20], ((20,),)),
    ],
)
def test_sizes_that_were_asked_for(name: str, sizes: list[int], levels: Levels) -> None:
    assert topologies.group(name, 20, sizes) == levels


def test_rejects_groups_that_are_too_wide_though_the_last_is_not() -> None:
    with pytest.raises(SpecError, match="grid would have a task add 65 updates of 150 clients"):
        topologies.group("grid", 150, [65])


def test_rejects_a_root_of_too_many_sums() -> None:
    with pytest.raises(
        SpecError,
        match="lambda_fl would have a task add 100 partial sums of 200 clients, over the 64",
    ):
        topologies.group("lambda_fl", 200, [2])


def test_auto_is_one_level_as_long_as_a_task_holds_it() -> None:
    assert topologies.resolve("auto", 64) == "shards"
    assert topologies.resolve("auto", 65) == "grid"
    assert topologies.resolve("lifl", 65) == "lifl"


@given(contributors=CONTRIBUTORS)
def test_auto_takes_every_number_of_clients(contributors: int) -> None:
    name = topologies.resolve("auto", contributors)
    assert_adds_up(topologies.group(name, contributors), contributors)
