"""Noise in a tree: what is in the model, what each round reveals, and how many rounds a client."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradshard_core.errors import SpecError
from gradshard_core.privacy.noise import BLOCK, NoiseSource, deviation
from gradshard_core.privacy.noise_tree import CancellingNoise, NoiseTree, Place, depth, parse_place
from gradshard_core.privacy.privacy_mechanism import PrivacyMechanism
from gradshard_core.records.privacy_ledger import Entry, PrivacyLedger

COMPLETED, FAILED, FORGOTTEN = "completed", "failed", "forgotten"


def dyadic(first: int, last: int, size: int) -> list[tuple[int, int]]:
    """Cut the leaves first … last into nodes of a binary tree over 1 … size, by its definition."""
    if first > last:
        return []

    def cut(low: int, high: int) -> list[tuple[int, int]]:
        if last < low or high < first:
            return []
        if first <= low and high <= last:
            return [(low, high)]
        middle = (low + high) // 2
        return [*cut(low, middle), *cut(middle + 1, high)]

    return cut(1, size)


def test_model_has_the_noise_of_the_nodes_that_its_rounds_are_cut_into() -> None:
    tree, leaves = NoiseTree(), 2**7 - 1
    node_of: dict[str, tuple[int, int]] = {}
    in_model: Counter[tuple[int, int]] = Counter()
    for leaf in range(1, leaves + 1):
        place = tree.place("t", "then", 8)
        assert place.leaf == leaf
        node_of[f"r{leaf}"] = dyadic(1, leaf, 2**7)[-1]
        in_model[node_of[f"r{leaf}"]] += 1
        for name in place.cancels:
            in_model[node_of[name]] -= 1
        # Exactly once each, and no other noise.
        there = {node: times for node, times in in_model.items() if times}
        assert there == dict.fromkeys(dyadic(1, leaf, 2**7), 1)
        tree = tree.after(f"r{leaf}", [], leaves, is_completed=True)
        assert len(there) == leaf.bit_count()
    assert tree == NoiseTree(2)


@given(st.lists(st.sampled_from([COMPLETED, FAILED, FORGOTTEN]), min_size=1, max_size=70))
def test_no_client_is_in_more_sums_than_the_tree_is_deep(events: list[str]) -> None:
    tree, leaves = NoiseTree(), len(events)
    # What Z of each round was first drawn for: the leaves whose updates it hides.
    hidden: dict[str, set[int]] = {}
    in_model: set[str] = set()
    for leaf, event in enumerate(events, 1):
        name = f"r{leaf}"
        if event == FORGOTTEN:
            tree = tree.forget(is_under_way=False)
        cancels = tree.place("t", "then", 8).cancels
        # Of sums that do not overlap; then round t releases their difference, which needs no
        # other noise: S_t + Z_t - … = (what Z_t hides, hidden) - (what the others hide, hidden).
        assert sum(len(hidden[other]) for other in cancels) == len(
            set().union(*(hidden[other] for other in cancels))
        )
        assert in_model >= set(cancels)
        hidden[name] = {leaf}.union(*(hidden[other] for other in cancels))
        if event != FAILED:
            in_model = (in_model - {*cancels}) | {name}
        tree = tree.after(name, [], leaves, is_completed=event != FAILED)
        assert tree.rounds <= in_model
    counted = Counter(leaf for sums in hidden.values() for leaf in sums)
    assert max(counted.values()) <= depth(leaves)
    assert depth(leaves) == math.ceil(math.log2(leaves + 1))  # as dp-accounting has it
    assert tree == NoiseTree(2)


@pytest.mark.parametrize("leaves", [2, 3, 4, 6])
def test_the_noise_of_all_releases_hides_a_client_as_well_as_the_ledger_says(leaves: int) -> None:
    for events in itertools.product([COMPLETED, FAILED, FORGOTTEN], repeat=6):
        tree, ledger = NoiseTree(), PrivacyLedger()
        names = [f"r{number}" for number in range(6)]
        noise, places = np.eye(6), []  # of each release: how much of which key's noise it has
        for number, event in enumerate(events):
            if event == FORGOTTEN:
                tree = tree.forget(is_under_way=False)
            place = tree.place("t", "then", 8)
            dp = PrivacyMechanism(1.0, 2.0, 1e-5, tree=place)
            entry = Entry(names[number], dp.to_json(), 8, ledger.added(dp), "then")
            ledger = replace(ledger, entries=(*ledger.entries, entry))
            noise[number, [names.index(name) for name in place.cancels]] -= 1
            places.append((tree.number, tree.leaf))
            tree = tree.after(names[number], [], leaves, is_completed=event != FAILED)
        assert len({*places}) == 6
        # Releases with the noise Bz tell as much as B⁻¹ of them, whose noise is z: a client that
        # changes sums by Cv changes these by C·B⁻¹v. It takes part in one round of each tree.
        shifts = np.linalg.inv(noise)
        for tried in itertools.product(
            *([n for n, (of, _) in enumerate(places) if of == each] for each in {*dict(places)})
        ):
            moved = shifts[:, list(tried)].sum(axis=1)
            assert moved @ moved <= ledger.spent * 2.0**2 + 1e-9


def test_a_round_after_many_failures_takes_out_no_more_than_it_may_state() -> None:
    tree = NoiseTree()
    live: set[str] = set()
    for leaf in range(1, 128):
        place = tree.place("t", "then", 8)
        assert parse_place(place.to_json()) == place
        is_completed = bool(leaf % 2) or leaf in {64, 96}
        if is_completed:
            live = {*live, f"r{leaf}"} - {*place.cancels}
        tree = tree.after(f"r{leaf}", [], 128, is_completed=is_completed)
        assert tree.rounds == live  # leaf 128 can take out what is left
        if leaf == 64:
            assert place.cancels == tuple(f"r{odd}" for odd in range(43, 64, 2))


def test_noise_that_is_not_taken_out_any_more_needs_no_key() -> None:
    tree = NoiseTree()
    for leaf in range(1, 6):
        tree = tree.after(f"r{leaf}", [], 6, is_completed=True)
    # Round 8 would take out those of round 4, and there are 6.
    assert tree.live == ((5, "r5"),)


def test_noise_of_a_round_that_was_under_way_when_all_was_forgotten_stays() -> None:
    tree = NoiseTree().after("r1", ["a"], 8, is_completed=True)
    tree = tree.forget(is_under_way=True).after("r2", ["b"], 8, is_completed=True)
    assert (tree.leaf, tree.live, tree.taken) == (3, (), ("a", "b"))
    assert tree.after("r3", [], 8, is_completed=True).live == ((3, "r3"),)


def drawn(key: bytes, start: int, count: int) -> np.ndarray:
    found = np.empty(count, np.int64)
    NoiseSource(key, 2, start).read_into(memoryview(found).cast("B"))
    return found


@pytest.mark.parametrize(("start", "pieces"), [(0, [BLOCK + 3, 1, 7]), (4095, [2, 2 * BLOCK])])
def test_noise_minus_that_of_earlier_rounds_in_any_pieces(start: int, pieces: list[int]) -> None:
    keys = [bytes([number]) * 32 for number in range(4)]
    own, *others = (NoiseSource(key, 2, start) for key in keys)
    source, found = CancellingNoise(own, others), []
    for count in pieces:
        piece = np.empty(count, np.int64)
        source.read_into(memoryview(piece).cast("B"))
        found.append(piece)
    first, *rest = (drawn(key, start, sum(pieces)) for key in keys)
    np.testing.assert_array_equal(np.concatenate(found), first - sum(rest))


def test_released_noise_adds_up_to_that_of_the_nodes_to_the_last_unit() -> None:
    size, leaves = 2000, 13
    keys = {f"r{leaf}": leaf.to_bytes(32, "big") for leaf in range(1, leaves + 1)}
    tree, total = NoiseTree(), np.zeros(size, np.int64)
    for leaf in range(1, leaves + 1):
        name, piece = f"r{leaf}", np.empty(size, np.int64)
        cancelled = [NoiseSource(keys[n], 2, 0) for n in tree.place("t", "then", 2).cancels]
        CancellingNoise(NoiseSource(keys[name], 2, 0), cancelled).read_into(
            memoryview(piece).cast("B")
        )
        total += piece
        # By the definition: the node that ends with a leaf has that round's noise.
        nodes = dyadic(1, leaf, 16)
        expected = sum(drawn(keys[f"r{last}"], 0, size) for _, last in nodes)
        np.testing.assert_array_equal(total, expected)
        spread = total.std() / deviation(2)
        assert spread == pytest.approx(math.sqrt(leaf.bit_count()), rel=0.1)
        tree = tree.after(name, [], 16, is_completed=True)


def test_a_place_is_read_as_it_was_written() -> None:
    place = Place("t", "2026-11-27 1", 4, ("a", "b"), 8)
    assert parse_place(place.to_json()) == place


@pytest.mark.parametrize(
    "wrong",
    [
        {"leaf": 0},
        {"leaf": True},
        {"divisor": 1.5},
        {"cancels": "abc"},
        {"cancels": ["a/b"]},
        {"cancels": [f"r{n}" for n in range(20)]},
        {"training": "a/b"},
        {"tree": 1},
        {"more": 1},
    ],
)
def test_a_place_that_no_training_states_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        parse_place(Place("t", "1", 4, (), 8).to_json() | wrong)
    with pytest.raises(SpecError, match="leave it out"):
        parse_place(4)


def test_state_is_read_as_it_was_written() -> None:
    tree = NoiseTree(2, 4, ((2, "b"), (3, "c")), ("x", "y"))
    stated = {
        "number": 2,
        "leaf": 4,
        "live": [[2, "b"], [3, "c"]],
        "taken": ["x", "y"],
        "is_forgotten": False,
    }
    assert NoiseTree.from_json(stated) == tree
